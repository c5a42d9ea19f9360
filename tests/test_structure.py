"""The folders of src/: which may import which, and how long a file may be."""

import ast
from pathlib import Path

import pytest

import keras_decoupled

SOURCE = Path(keras_decoupled.__file__).parent
# From the top down: a folder imports what stands on its own line or below it.
FLOORS = [
    ["callbacks", "layerwise", "plots"],
    ["optimizers"],
    ["core"],
    ["saving", "fast"],
    ["decay", "schedule"],
    ["paths"],
    ["checks"],
]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
FILES = sorted(SOURCE.rglob("*.py"))


def imported(file):
    """The modules of this package that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("keras_decoupled."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_run_one_way(file):
    folder = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if folder == "__init__":
        return
    others = {name.split(".")[1] for name in imported(file)} - {folder}
    back = {other for other in others if FLOOR[other] <= FLOOR[folder]}
    assert not back, f"{folder} must not import {back}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_file_can_be_read_in_one_sitting(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 300
