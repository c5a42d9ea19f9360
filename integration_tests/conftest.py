"""Helpers of the integration tests. They run against an installed wheel: `nox -s integration`."""

import os
import subprocess
import sys

import keras
import pytest

# Runs a script in which a warning is an error. What Keras and its backends say while they are imported
# is not the script's fault, nor is NumPy's word on Keras' `Variable.__array__`: see pyproject.toml.
STRICT = """
import runpy, sys, warnings
import keras, keras_decoupled
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def fresh_keras():
    """Automatic names start again ("dense", not "dense_7"), and random numbers too."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture
def backend():
    """The backend in use: "jax", "tensorflow" or "torch"."""
    return keras.backend.backend()


@pytest.fixture
def run_script(tmp_path, backend):
    """A function that runs Python source in a fresh process and folder, and gives its output."""

    def run(source, name="script.py", warnings=None):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        script = tmp_path / name
        script.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, *(["-c", STRICT] if warnings == "error" else []), str(script)],
            cwd=folder,
            env=os.environ | {"KERAS_BACKEND": backend, "MPLBACKEND": "Agg"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
        return done.stdout

    return run
