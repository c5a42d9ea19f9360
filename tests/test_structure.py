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
# From the top down: a folder imports only what stands on a line below its own.
FLOORS = [
    ["callbacks", "width"],
    ["layerwise", "plots"],
    ["optimizers"],
    ["core"],
    ["saving", "fast"],
    ["decay", "schedule"],
    ["paths"],
    ["checks", "calls"],
]
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def dotted(path):
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)


def name_of(file):
    return dotted(file).removesuffix(".__init__")


def imports(file):
    """The import statements of a file, and the modules of each; `from a.b import c` is a.b.c."""
    for node in ast.walk(TREES[file]):
        if isinstance(node, ast.ImportFrom):
            assert node.module, file
            assert node.level <= 1, f"{file}: a relative import from another folder"
            module = f"{dotted(file.parent)}.{node.module}" if node.level else node.module
            yield node, [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            yield node, [alias.name for alias in node.names]


def imported(file, packages, at_top=False):
    """The modules of these packages that a file imports, at its top alone or inside functions too."""
    return {
        name
        for node, names in imports(file)
        for name in names
        if name.partition(".")[0] in packages and (node in TREES[file].body or not at_top)
    }


def test_imports_run_one_way():
    for file in FILES:
        folder = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        if folder != "__init__":
            others = {name.split(".")[1] for name in imported(file, {"keras_decoupled"})} - {folder}
            back = {other for other in others if FLOOR[other] <= FLOOR[folder]}
            assert not back, f"{file} must not import {back}"


def test_no_two_files_import_each_other():
    """At the top of a file, where it counts: not inside a function."""
    modules = {name_of(file) for file in FILES}
    graph = {}
    for file in FILES:
        found = imported(file, {"keras_decoupled"}, at_top=True)
        # `from a.b import c` is the file a.b.c, or something in a.b
        found = {n if n in modules else n.rpartition(".")[0] for n in found}
        graph[name_of(file)] = found - {name_of(file)}
    del graph["keras_decoupled"]  # which gathers the public names
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_fast_knows_a_backend():
    """All else is public Keras, which works on each of them."""
    for file in FILES:
        used = imported(file, {"tensorflow", "torch", "jax"})
        assert not used or file.parent.name == "fast", (file, used)


def test_autograph_can_read_a_file():
    """Of `:=` in what a TensorFlow step runs through, AutoGraph warns; TensorFlow never imports torch_*.py."""
    for file, tree in TREES.items():
        named = [node for node in ast.walk(tree) if isinstance(node, ast.NamedExpr)]
        assert file.name.startswith("torch_") or not named, file


def test_a_file_can_be_read_in_one_sitting():
    for file, tree in TREES.items():
        lines = file.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 500, file
        assert not [i for i, line in enumerate(lines, start=1) if len(line) > 100], file
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                statements = [n for n in ast.walk(node) if isinstance(n, ast.stmt)]
                assert len(statements) <= 51, (file, node.name)


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
    found = [base for base in cls.__mro__ if base.__module__.startswith("keras_decoupled.")]
    assert found == [cls, Decoupled, KerasHooks]


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


@pytest.mark.parametrize(
    ("cls", "twin", "rate"),
    [
        (AdamW, "AdamW", 0.1),
        (NadamW, "Nadam", CosineWarmRestarts(0.1, 5)),
        (SGDW, "SGD", WarmupStableDecay(0.1, None, 5)),
        (Lion, "Lion", lambda: 0.1),
    ],
)
def test_one_private_attribute_on_an_instance(cls, twin, rate):
    """Beside what Keras' own class has on its instance, and the arguments by their names."""
    stock = getattr(keras.optimizers, twin)()
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer = cls(rate, weight_decay=0.1)
    for each in (optimizer, stock):
        each.build([variable])
        each.apply([keras.ops.ones(2)], [variable])
    own = vars(optimizer).keys() - vars(stock).keys()
    assert {name for name in own if name.startswith("_")} == {"_kd"}
    assert own - {"_kd"} <= {*cls._kd_algorithm.arguments}
