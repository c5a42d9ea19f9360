"""What every test starts with: fresh automatic names, a fixed seed, and its hypothesis profile.

In CI, JAX and TensorFlow share the cases of each test; torch, where tests take the least time, runs all.
"""

import os
import zlib
from collections import defaultdict

import hypothesis
import keras
import pytest

CI = bool(os.environ.get("CI"))
# No deadline: the first example of a property pays for tracing and compiling.
hypothesis.settings.register_profile("local", deadline=None)
# In CI the same examples each time: a red run can be repeated, and nobody else's change is blamed.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("fixed" if CI else "local")

COMPILED = {"jit", "graph", "xla"}
PLACE = {"jax": 0, "tensorflow": 1}.get(keras.backend.backend())


def pytest_collection_modifyitems(config, items):
    """In CI, run every second case of a test on JAX, and the others on TensorFlow.

    All cases run in a test marked `every_case`, and all that compile a step: they are one backend's own.
    """
    if not CI or PLACE is None:
        return
    cases = defaultdict(list)
    for item in items:
        if not hasattr(item, "callspec") or item.get_closest_marker("every_case"):
            continue
        if item.callspec.params.get("runner") not in COMPILED:
            cases[item.nodeid.partition("[")[0]].append(item)
    elsewhere = set()
    for group in cases.values():
        if len(group) == 1:
            continue
        # In no order that has to do with the parameters: one backend would get all that are alike.
        group.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        elsewhere.update(group[1 - PLACE :: 2])
    config.hook.pytest_deselected(items=[item for item in items if item in elsewhere])
    items[:] = [item for item in items if item not in elsewhere]


@pytest.fixture(autouse=True)
def fresh_keras():
    """Automatic names start again ("dense", not "dense_7"), and random numbers too."""
    keras.utils.clear_session(free_memory=False)  # a full garbage collection per test is slow
    keras.utils.set_random_seed(0)


@pytest.fixture
def backend():
    """The backend in use: "jax", "tensorflow" or "torch"."""
    return keras.backend.backend()
