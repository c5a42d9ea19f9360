"""The form of the package: which file may import which, how long things are, and whose names are taken."""

import ast
import graphlib
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_decoupled
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Lion, NadamW, WarmupStableDecay
from keras_decoupled.core.keras_hooks import KerasHooks
from keras_decoupled.core.optimizer import PUBLIC, Decoupled
from keras_decoupled.optimizers.stock import Stock

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
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


def trees(file):
    return ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def name_of(file):
    parts = ["keras_decoupled", *file.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(part for part in parts if part != "__init__")


def imported(file, nodes=None):
    """The modules of this package that a file imports, inside functions and relatively too."""
    package = name_of(file).split(".")
    package = package if file.stem == "__init__" else package[:-1]
    for node in nodes or trees(file):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith("keras_decoupled."))


@every_file
def test_imports_run_one_way(file):
    folder = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    if folder == "__init__":
        return
    others = {name.split(".")[1] for name in imported(file)} - {folder}
    back = {other for other in others if FLOOR[other] <= FLOOR[folder]}
    assert not back, f"{folder} must not import {back}"


@every_file
def test_only_fast_knows_a_backend(file):
    """All else is public Keras, which works on each of them."""
    names = {"tensorflow", "torch", "jax"}
    for node in trees(file):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            used = names & {module.split(".")[0] for module in modules if module}
            assert not used or file.parent.name == "fast", used


@every_file
def test_autograph_can_read_a_file(file):
    """Of `:=` in what a TensorFlow step runs through, AutoGraph warns; TensorFlow never imports torch_*.py."""
    named = [node for node in trees(file) if isinstance(node, ast.NamedExpr)]
    assert file.name.startswith("torch_") or not named


def test_no_two_files_import_each_other():
    """At the top of a file, where it counts: not inside a function."""
    modules = {name_of(file): file for file in FILES}
    graph = {}
    for name, file in modules.items():
        found = imported(file, ast.parse(file.read_text(encoding="utf-8")).body)
        # `from a.b import c` is the file a.b.c, or something in a.b
        graph[name] = {n if n in modules else n.rpartition(".")[0] for n in found} - {name}
    del graph["keras_decoupled"]  # which gathers the public names
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@every_file
def test_a_file_can_be_read_in_one_sitting(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 500
    assert not [i for i, line in enumerate(lines, start=1) if len(line) > 100]
    for node in trees(file):
        if isinstance(node, ast.FunctionDef):
            assert sum(isinstance(n, ast.stmt) for n in ast.walk(node)) <= 51, node.name


# --- one class ---

OURS = [getattr(keras_decoupled, n) for n in keras_decoupled.__all__]
OURS = [c for c in OURS if isinstance(c, type) and issubclass(c, Decoupled)]
CHAIN = [*OURS, Stock, Decoupled, KerasHooks]
# Methods of ours that another class of ours overrides. They are at most eight.
OVERRIDDEN = {
    "_kd_arguments",
    "_kd_build_keras",
    "_kd_own_config",
    "_kd_step",
    "_kd_twin_state",
}


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
def test_an_optimizer_is_one_class_over_its_parts(cls):
    ours = [base for base in cls.__mro__ if base.__module__.startswith("keras_decoupled.")]
    assert ours == [cls, Decoupled, KerasHooks]


def test_methods_that_are_overridden():
    found = set()
    for cls in CHAIN:
        above = {n for base in cls.__mro__[1:] if base in CHAIN for n in vars(base)}
        values = {n for n, value in vars(cls).items() if callable(value) or n in vars(Decoupled)}
        found |= {n for n in above & values if not n.startswith("__")}
    # Class attributes say what a class is; they hold no code.
    found -= {"_kd_algorithm", "_kd_twins", "_kd_own", "_kd_kind"}
    # What Keras' own classes have, too, is a hook of Keras'.
    found -= {*dir(keras.optimizers.Optimizer), *dir(keras.optimizers.Muon)}
    assert found == OVERRIDDEN
    assert len(OVERRIDDEN) <= 8


def test_names_on_the_class():
    """Each is a hook of Keras', stands on the API page, or begins with `_kd`."""
    page = (SOURCE.parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    keras_names = {*dir(keras.optimizers.Optimizer), *dir(keras.optimizers.Muon)}
    for cls in CHAIN:
        own = {n for n in vars(cls) if not n.startswith(("__", "_kd"))} - keras_names
        own -= getattr(cls, "_kd_own", {}).keys()
        assert own <= PUBLIC, cls
    assert not [name for name in PUBLIC if name not in page]


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW, Lion])
@pytest.mark.parametrize(
    "rate", [0.1, CosineWarmRestarts(0.1, 5), WarmupStableDecay(0.1, None, 5), lambda: 0.1]
)
def test_one_private_attribute_on_an_instance(cls, rate):
    """Beside what Keras' own class has on its instance, and the arguments by their names."""
    twin = {AdamW: "AdamW", NadamW: "Nadam", SGDW: "SGD", Lion: "Lion"}[cls]
    stock = getattr(keras.optimizers, twin)()
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer = cls(rate, weight_decay=0.1)
    for each in (optimizer, stock):
        each.build([variable])
        each.apply([keras.ops.ones(2)], [variable])
    own = vars(optimizer).keys() - vars(stock).keys()
    assert {name for name in own if name.startswith("_")} == {"_kd"}
    assert own - {"_kd"} <= {*cls._kd_algorithm.arguments}
