"""Helpers of the integration tests. They run against an installed wheel: `nox -s integration`."""

import os
import subprocess
import sys

import keras
import pytest


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

    def run(source, name="script.py"):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        script = tmp_path / name
        script.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(script)],
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
