"""How much a test does: a part in CI, all of it under `nox -s reliability`."""

import os

import keras

FULL = os.environ.get("RELIABILITY") == "full"


def effort(ci, full):
    return full if FULL else ci


def examples(count):
    """How many hypothesis tries: all on torch, a quarter where each operation on its own is slow."""
    return count if FULL or keras.backend.backend() == "torch" else count // 4
