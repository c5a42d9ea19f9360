"""A run on one device and on many, and on with its file: its numbers, its state, the page's code.

The number of devices is fixed when a process starts, so that many are had in child processes:
`many_devices/`. Here is the one device.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import forked
from many_devices import job
from many_processes import processes
from test_docs import DOCS, read_blocks

FOLDER = Path(__file__).parent / "many_devices"
BACKEND = job.BACKEND
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"),
    # Any free port, and no look-up of this machine's name.
    *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
]


def run(script, *arguments, cwd):
    """Run a script on many devices, each on the CPU."""
    if BACKEND == "jax":
        flags = "--xla_force_host_platform_device_count=8"
        forked.run(script, *arguments, cwd=cwd, XLA_FLAGS=flags)
    elif BACKEND == "tensorflow":
        forked.run(FOLDER / "two_cpus.py", script, *arguments, cwd=cwd)
    else:
        processes.run(BACKEND, 2, script, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What all runs left."""
    folder = tmp_path_factory.mktemp("runs")
    script = FOLDER / f"on_{BACKEND}.py"
    job.train_all(folder, start=lambda: run(script, folder, cwd=folder))
    return folder


@pytest.mark.parametrize("case", job.CASES)
def test_a_run_on_many_devices_ends_where_one_on_one_does(runs, case):
    job.assert_as_whole(runs, case)


# On how many devices the page's code ran.
DEVICES = {
    "jax": "len(model.layers[0].kernel.value.sharding.device_set)",
    "tensorflow": "strategy.num_replicas_in_sync",
    "torch": "size",
}[BACKEND]
# A file for each process: what several of them print comes out mixed.
COUNT = f"""
import os
from pathlib import Path
Path(f"{{os.getpid()}}.devices").write_text(str({DEVICES}))
"""


def test_the_page_on_many_devices(tmp_path):
    page = (DOCS / "many-devices.md").read_text(encoding="utf-8")
    [block] = [block for block in read_blocks(page) if block.lines[0] == f"# {BACKEND}"]
    script = tmp_path / "train.py"
    script.write_text(block.code + COUNT, encoding="utf-8")
    if BACKEND == "torch":
        command = [*TORCHRUN, str(script)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=tmp_path, env=env, timeout=300, check=True)
    else:
        run(script, cwd=tmp_path)
    counts = [file.read_text() for file in tmp_path.glob("*.devices")]
    assert counts == {"jax": ["8"], "tensorflow": ["2"], "torch": ["2", "2"]}[BACKEND]


if BACKEND == "tensorflow":

    def test_callbacks_under_one_and_two_replicas(tmp_path):
        run(FOLDER / "callbacks_tensorflow.py", cwd=tmp_path)
        assert len(list(tmp_path.glob("*.weights.h5"))) == 6  # three cycles under each
