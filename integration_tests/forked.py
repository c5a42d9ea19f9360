"""Scripts in processes of their own that need not import Keras again: a server imports it once and is forked.

On TensorFlow the import takes longer than most scripts.
"""

import faulthandler
import multiprocessing
import os
import runpy
import sys
import warnings

import keras  # noqa: F401  what a script would import first

SECONDS = 300  # a script that takes longer ends with an error
# macOS and Windows do not fork safely. There each process imports Keras.
PROCESSES = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
PROCESSES.set_forkserver_preload(["keras", "keras_decoupled"])


def run(script, *arguments, cwd, strict=False, **env):
    """Run a script to its end, and return what it printed. With `strict`, a warning is an error.

    Raise if the script fails.
    """
    printed, log = (cwd / f"{script.stem}.{kind}" for kind in ("out", "log"))
    task = (str(script), [*map(str, arguments)], cwd, printed, log, strict, env)
    process = PROCESSES.Process(target=_in_the_process, args=task)
    process.start()
    process.join()
    out, err = (file.read_text(encoding="utf-8") for file in (printed, log))
    assert process.exitcode == 0, f"{script.name} failed:\n{out[-4000:]}\n{err[-8000:]}"
    return out


def _in_the_process(script, arguments, cwd, printed, log, strict, env):
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    os.chdir(cwd)
    os.environ.update(env)
    for path, stream in ((printed, sys.stdout), (log, sys.stderr)):
        with open(path, "w", encoding="utf-8") as file:
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = [script, *arguments]
    sys.path.insert(0, os.path.dirname(script))
    if strict:
        warnings.simplefilter("error")
        # NumPy's word on Keras' `Variable.__array__`: see pyproject.toml.
        array = "__array__ implementation doesn't accept a copy"
        warnings.filterwarnings("ignore", array, DeprecationWarning)
    runpy.run_path(script, run_name="__main__")
