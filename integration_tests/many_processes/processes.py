"""Start a script in several processes that know of each other, and kill them.

What runs in each of them is this file: `python processes.py SCRIPT ARGUMENTS`.
"""

import contextlib
import faulthandler
import json
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 150  # after which a process ends itself, whatever became of the one that started it
STOPPED = "stopped"  # the file that tells of a process waiting to be killed


def surroundings(backend, count):
    """For each process, what tells it how many they are, which it is, and where the first one is."""
    with contextlib.ExitStack() as stack:  # all are open at once, so that no port comes twice
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        ports = [s.getsockname()[1] for s in sockets]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    for i in range(count):
        if backend == "jax":
            yield {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": addresses[0],
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(i),
            }
        elif backend == "tensorflow":
            task = {"type": "worker", "index": i}
            yield {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": task})}
        else:  # what torchrun sets
            yield {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(ports[0]),
                "WORLD_SIZE": str(count),
                "RANK": str(i),
            }


@contextlib.contextmanager
def started(backend, count, script, *arguments, cwd, **env):
    """Start a script in so many processes; none of them outlives the `with`."""
    env |= {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "error::UserWarning", __file__, script, *arguments]
    children = []
    try:
        for i, place in enumerate(surroundings(backend, count)):
            with open(log(cwd, i), "w", encoding="utf-8") as output:
                child = subprocess.Popen(
                    [*map(str, command)],
                    cwd=cwd,
                    env=os.environ | env | place,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            children.append(child)
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def run(backend, count, script, *arguments, cwd):
    """Run a script to its end in so many processes."""
    with started(backend, count, script, *arguments, cwd=cwd) as children:
        wait(children, cwd, until=lambda: not any(child.returncode is None for child in children))


def run_and_kill(backend, count, script, *, cwd, save):
    """Run a script, and kill all its processes in the middle of a save of that number."""
    with started(backend, count, script, cwd=cwd, STOP_AT=str(save)) as children:
        wait(children, cwd, until=(Path(cwd) / STOPPED).exists)
        assert [child.poll() for child in children] == [None] * count, logs(cwd, count)
    (Path(cwd) / STOPPED).unlink()


def wait(children, cwd, until):
    """Wait until something is so; it is an error if a process fails before."""
    end = time.monotonic() + SECONDS
    while True:
        codes = [child.poll() for child in children]
        failed = any(codes) or time.monotonic() > end
        assert not failed, f"{codes}\n{logs(cwd, len(children))}"
        if until():
            return
        time.sleep(0.02)


def log(cwd, i):
    return Path(cwd) / f"{i}.log"


def logs(cwd, count):
    return "\n".join(f"--- {i}:\n{log(cwd, i).read_text()[-6000:]}" for i in range(count))


def stop_at(save):
    """Wait, for a kill, where the save of that number has written a file and not moved it yet."""
    replace, count = os.replace, 0

    def replace_or_stop(source, target):
        nonlocal count
        count += 1
        if count == save:
            Path(STOPPED).touch()
            time.sleep(SECONDS)
        replace(source, target)

    os.replace = replace_or_stop


if __name__ == "__main__":
    faulthandler.enable()  # where a signal ends the process, the log says what it was doing
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    if "STOP_AT" in os.environ:
        stop_at(int(os.environ["STOP_AT"]))
    del sys.argv[0]
    sys.path[0] = str(Path(__file__).parents[1])  # for `from many_devices import job`
    runpy.run_path(sys.argv[0], run_name="__main__")
    if os.environ["KERAS_BACKEND"] == "torch":
        # DistributedDataParallel keeps gloo's threads alive after `destroy_process_group`. Once, a
        # process with nothing left to do was aborted by one of them while Python was shutting down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
