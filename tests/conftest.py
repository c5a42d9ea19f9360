"""What every test starts with: fresh automatic names, a fixed seed, and its hypothesis profile."""

import os

import hypothesis
import keras
import pytest

# No deadline: the first example of a property pays for tracing and compiling.
hypothesis.settings.register_profile("local", deadline=None)
# In CI the same examples each time: a red run can be repeated, and nobody else's change is blamed.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("fixed" if os.environ.get("CI") else "local")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Automatic names start again ("dense", not "dense_7"), and random numbers too."""
    keras.utils.clear_session(free_memory=False)  # a full garbage collection per test is slow
    keras.utils.set_random_seed(0)


@pytest.fixture
def backend():
    """The backend in use: "jax", "tensorflow" or "torch"."""
    return keras.backend.backend()
