"""How much a test does: a part in CI, all of it under `nox -s reliability`."""

import os

import keras

FULL = os.environ.get("RELIABILITY") == "full"


def effort(ci, full):
    return full if FULL else ci


def in_turn(items):
    """CI tries each of these on one backend: a third of them here. Elsewhere all are tried."""
    if not os.environ.get("CI"):
        return list(items)
    return items[("jax", "tensorflow", "torch").index(keras.backend.backend()) :: 3]


def examples(count):
    """How many hypothesis tries: all on torch, a quarter where each operation on its own is slow."""
    return count if FULL or keras.backend.backend() == "torch" else count // 4
