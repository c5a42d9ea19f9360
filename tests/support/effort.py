"""How much a test does: a part in CI, all of it under `nox -s reliability`."""

import os

FULL = os.environ.get("RELIABILITY") == "full"


def effort(ci, full):
    return full if FULL else ci
