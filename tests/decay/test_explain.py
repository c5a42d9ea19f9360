"""`explain()`: by how much each variable is decayed, what may be a mistake, and how it looks.

Which rule it names is in test_precedence.py.
"""

import dataclasses
import math
import re

import keras
import numpy as np
import pytest

from cases import BACKEND, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Muon, decouple, no_decay

schedules = keras.optimizers.schedules
SHAPES = {
    "net/conv/kernel": (3, 3, 1, 4),
    "net/norm/gamma": (4,),
    "net/norm/beta": (4,),
    "net/query/bias": (2, 4),
    "net/head/kernel": (4, 2),
    "net/head/bias": (2,),
}


def variables(dtype="float32", shapes=SHAPES):
    return [make_variable(path, np.ones(shape), dtype) for path, shape in shapes.items()]


def small_model(**arguments):
    dense = keras.layers.Dense(2, name="head", **arguments)
    return keras.Sequential([keras.Input((3,)), dense], name="net")


def column(optimizer, name, *given, **arguments):
    """{path: entry} of one column."""
    found = optimizer.explain(*(given or [variables()]), **arguments).rows
    return {row["path"]: row[name] for row in found}


def of_head(optimizer, name, **arguments):
    return column(optimizer, name, **arguments)["net/head/kernel"]


# --- rows ---


def test_a_row():
    optimizer = AdamW(0.1, weight_decay=0.01, weight_decays={"head/kernel": (0.002, 0.05)})
    half_life = math.log(0.5) / math.log(0.95)
    found = optimizer.explain(variables(), steps_per_epoch=10).rows
    assert [row["path"] for row in found] == list(SHAPES)
    assert found[4] == {
        "path": "net/head/kernel",
        "shape": (4, 2),
        "dtype": "float32",
        "rule": "head/kernel",
        "l1": 0.002,
        "l2": 0.05,
        "decay_per_update": 0.05,
        "l1_per_update": 0.002,
        "half_life_updates": pytest.approx(half_life),
        "half_life_epochs": pytest.approx(half_life / 10),
        "multiplier": 1.0,
        "kind": "",
    }


def test_the_decay_as_it_is_now():
    cosine = CosineWarmRestarts(0.1, 25)
    by_cycle = AdamW(cosine, weight_decay=0.1, normalize_weight_decay=True)
    assert of_head(by_cycle, "decay_per_update") == pytest.approx(0.02)
    assert of_head(by_cycle, "l2") == 0.1
    falling = AdamW(0.1, weight_decay=schedules.PolynomialDecay(0.25, 10, 0.0))
    assert of_head(falling, "l2") == 0.25
    assert of_head(falling, "kind") == "a schedule"
    optimizer = AdamW(weight_decay=0.1, weight_decays={"bias": 0.01})
    optimizer.build(variables())
    optimizer.weight_decay = 0.5
    l2 = column(optimizer, "l2", None)
    assert (l2["net/head/kernel"], l2["net/head/bias"]) == (0.5, 0.01)


def test_half_lives():
    optimizer = AdamW(0.1, weight_decay=0.1, weight_decays={"bias": 0}, lr_multipliers={"norm": 0})
    half_life = column(optimizer, "half_life_updates")
    assert half_life["net/head/bias"] is None  # no decay
    assert half_life["net/norm/gamma"] is None  # no rate
    assert half_life["net/conv/kernel"] > 0
    assert set(column(optimizer, "half_life_epochs").values()) == {None}
    # Epochs count batches, of which an update takes two under accumulation.
    plain, accumulated = (
        of_head(AdamW(weight_decay=0.1, **arguments), "half_life_epochs", steps_per_epoch=10)
        for arguments in ({}, {"gradient_accumulation_steps": 2})
    )
    assert accumulated == pytest.approx(2 * plain)


def test_kinds_and_parts():
    decay = Decay(0.1, cautious=True, eta_power=2, towards="initial")
    kinds = column(AdamW(weight_decays={"kernel": decay}), "kind")
    assert kinds["net/head/kernel"] == "towards initial, cautious, η^2"
    assert kinds["net/head/bias"] == ""
    part = column(Muon(weight_decay=0.1, exclude_layers=["head"]), "part")
    assert part["net/query/bias"] == part["net/head/kernel"] == "adam"


@pytest.mark.parametrize("make", [AdamW, decouple(keras.optimizers.Nadam)])
def test_nothing_is_built(make):
    model, optimizer = small_model(), make(0.1, weight_decay=0.1)
    before = len(optimizer.variables)
    assert len(optimizer.explain(model).rows) == 2
    assert not optimizer.built
    assert len(optimizer.variables) == before
    optimizer.build(model.trainable_variables)
    state = [numpy(v) for v in optimizer.variables]
    assert optimizer.explain().rows == optimizer.explain(model).rows
    assert all(map(np.array_equal, state, map(numpy, optimizer.variables)))


# --- warnings ---


def warnings_of(given, excluded=None, **arguments):
    optimizer = AdamW(**{"weight_decay": 1e-4, "decay_vectors": False} | arguments)
    optimizer.exclude_from_weight_decay(var_names=excluded)
    return optimizer.explain(given).warnings


OVERRIDDEN = {"weight_decays": {"conv/kernel": 1e-3, "conv": 1e-4}}
OVERRIDDEN |= {"lr_multipliers": {"head": 2, "net": 1}}


@pytest.mark.parametrize(
    ("arguments", "patterns"),
    [
        ({}, []),
        ({"weight_decay": 0}, []),
        ({"decay_vectors": True}, ["Biases.*net/norm/gamma.* and 1 more.*decay_vectors=False"]),
        ({"weight_decay": 1.0}, ["whole weight.*: net/conv/kernel"]),
        ({"weight_decay": 1.0, "total_iterations": 100}, []),
        ({"excluded": ["gamam"]}, ["'gamam'"]),
        (
            OVERRIDDEN,
            ["`weight_decays` changes .*: conv/kernel", "`lr_multipliers` changes.*: head"],
        ),
        # It hits vectors alone. If these are not decayed, it decides for none.
        ({"weight_decays": {"norm": 1e-3}}, ["`weight_decays` changes nothing.*: norm"]),
        ({"weight_decays": {"norm": 1e-3}, "decay_vectors": True}, ["Biases"]),
        # Below the resolution of float32. There is a float32 copy of a bfloat16 weight.
        ({"weight_decay": 1e-8}, ["rounding"]),
        ({"weight_decay": 1e-7}, []),
        ({"weight_decay": 1e-4, "dtype": "bfloat16"}, []),
        ({"weight_decay": 1e-8, "dtype": "bfloat16"}, ["rounding"]),
        # JAX has float64 only where it is switched on.
        *[({"weight_decay": 1e-8, "dtype": "float64"}, [])] * (BACKEND != "jax"),
    ],
)
def test_warnings(arguments, patterns):
    arguments = {"dtype": "float32"} | arguments
    found = warnings_of(variables(arguments.pop("dtype")), **arguments)
    assert len(found) == len(patterns)
    for pattern, text in zip(patterns, found, strict=True):
        assert re.search(pattern, text)


@pytest.mark.parametrize("penalty", ["l2", "l1", keras.regularizers.L1L2(1e-4, 1e-4)])
def test_a_penalty_beside_a_decay(penalty):
    model = small_model(kernel_regularizer=penalty)
    (text,) = warnings_of(model)
    assert re.search("penalized.*net/head/kernel.*`model=`", text)
    arguments = {"model": model, "weight_decay": None, "total_iterations": 10_000}
    assert warnings_of(model, **arguments) == []


@pytest.mark.parametrize(
    "penalty", [keras.regularizers.L2(0.0), keras.regularizers.OrthogonalRegularizer()]
)
def test_penalties_that_are_no_second_decay(penalty):
    assert warnings_of(small_model(kernel_regularizer=penalty)) == []


# --- how it looks ---


def blocks():
    """Twelve blocks of a network."""
    parts = {"query/kernel": (768, 768), "key/kernel": (768, 768), "query/bias": (768,)}
    names = {f"net/block_{i}/attention/{n}": shape for i in range(12) for n, shape in parts.items()}
    return variables(shapes=names)


def test_a_line_stands_for_all_variables_that_get_the_same(capsys):
    """In a table it stands for one."""
    optimizer = AdamW(weight_decay=1e-4, weight_decays={"bias": 0}, lr_multipliers={"query": 0.5})
    explanation = optimizer.explain(blocks(), steps_per_epoch=100)
    lines = [line.split() for line in str(explanation).splitlines()[2:9]]
    assert lines == [
        ["decay", "half-life", "epochs", "rate", "variables", "weights"],
        ["0.0001", "6,931", "69.3", "×0.5", "12", "7,077,888"],
        ["weight_decay:", "net/block_*/attention/query/kernel"],
        ["0.0001", "6,931", "69.3", "×1", "12", "7,077,888"],
        ["weight_decay:", "net/block_*/attention/key/kernel"],
        ["0", "×0.5", "12", "9,216"],
        ["bias:", "net/block_*/attention/query/bias"],
    ]
    explanation.table()
    table = capsys.readouterr().out
    kernels = r"0\.0001 +6,931 +69.3 +×\S+  net/block_\d+/attention/\w+/kernel  768×768"
    assert len(re.findall(kernels, table)) == 24
    biases = r" 0 +×0.5  net/block_\d+/attention/query/bias  768  bias"
    assert len(re.findall(biases, table)) == 12


def test_it_fits_into_80_columns():
    """However long the names are, and no number is cut."""
    longest = Decay(1.234e-5, 1.234e-7, cautious=True, towards="initial", eta_power=0.123)
    own = variables(shapes={"/".join([f"a_long_name_{i}"] * 9): (9, 9) for i in range(7)})
    optimizer = AdamW(weight_decay=longest, lr_multipliers={"a_long_name_1": 1.23e-5})
    text = str(optimizer.explain(own, steps_per_epoch=123))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("1.23e-05", "1.23e-07", "56,170", "457", "×1.23e-05", "towards initial, cautious"):
        assert word in text


def test_paths_that_differ_in_the_middle_and_the_warnings_at_the_end():
    names = ["the_first_one", "the_second_one", "the_third_one"]
    own = variables(shapes={f"net/{name}/dense/kernel": (2, 2) for name in names})
    explanation = AdamW(weight_decay=1e-4, weight_decays={"the": 1e-3, "dense": 1e-2}).explain(own)
    text = str(explanation)
    assert "dense: net/…/dense/kernel" in text
    assert len(explanation.warnings) == 1
    assert " ".join(text.split()).endswith(f"Warning: {explanation.warnings[0]}")


# Things that variables of one line have in common, and another value of each.
ALIKE = {
    "decay_per_update": 0.5,
    "l1_per_update": 0.25,
    "multiplier": 2.0,
    "rule": "bias",
    "part": "adam",
}
ALIKE |= {"multiplier_schedule": "PolynomialDecay", "kind": "cautious", "dtype": "bfloat16"}


@pytest.mark.parametrize("name", ALIKE)
def test_what_differs_in_one_thing_has_two_lines_of_its_own(name):
    """However long its name is."""
    one = AdamW(weight_decay=1e-4).explain(variables())
    row, long = one.rows[0], "/".join(["a_long_name"] * 20)
    others = [{**row, "path": "net/a"}, {**row, "path": long, name: ALIKE[name]}]
    texts = [
        str(dataclasses.replace(one, rows=[row, other], warnings=[])).splitlines()
        for other in others
    ]
    assert len(texts[1]) == len(texts[0]) + 2


def test_columns_that_say_nothing_and_the_summary():
    text = str(AdamW(weight_decay=1e-4).explain(variables()))
    assert text.splitlines()[2].split() == ["decay", "half-life", "variables", "weights"]
    assert "6 of 6 variables are decayed, 62 of 62 parameters." in text
    frozen = AdamW(weight_decay=1e-4, lr_multipliers={"head": 0})
    assert "4 of 6 variables are decayed, 52 of 62" in str(frozen.explain(variables()))


def test_html_is_escaped():
    own = variables(shapes={"a<b>/kernel": (2, 2)})
    page = AdamW(weight_decay=1e-4).explain(own)._repr_html_()
    assert "a&lt;b&gt;/kernel" in page
    assert page.count("<tr>") == 2  # the titles, and one group


def test_frozen_layers_are_left_out():
    model = small_model()
    model.trainable = False
    found = AdamW(weight_decay=0.1).explain(model)
    assert found.rows == []
    assert "0 of 0 variables" in str(found)
    assert "<table>" in found._repr_html_()


# --- errors ---


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (None, ValueError, r"before the optimizer is built.*explain\(model\)"),
        (keras.Sequential([keras.layers.Dense(2)]), ValueError, "model.build"),
        ("net", TypeError, "a model or a list"),
        ([np.ones(2)], TypeError, "keras variables"),
    ],
)
def test_what_cannot_be_explained(given, error, words):
    with pytest.raises(error, match=words) as caught:
        AdamW(weight_decay=0.1).explain(given)
    assert "Received: " in str(caught.value)


def test_other_errors():
    with pytest.raises(TypeError, match=r"`decay_vectors`.*Received: decay_vectors=0"):
        AdamW(decay_vectors=0)
    with pytest.raises(ValueError, match="`steps_per_epoch`"):
        AdamW(weight_decay=0.1).explain(variables(), steps_per_epoch=0)
    with pytest.raises(ValueError, match="nearest"):  # a rule that the build would refuse
        SGDW(weight_decays={"kernle": 0.1}).explain(variables())


# --- what newcomers were not told ---


def test_a_schedule_counts_with_its_value_at_the_next_update():
    """Of a decay and of a multiplier; those that move apart later have lines of their own."""
    own, falling = variables(), schedules.PolynomialDecay(0.25, 10, 0.0)
    thaws = {
        name: schedules.PiecewiseConstantDecay([3], [0.0, x])
        for name, x in (("conv", 0.5), ("head", 0.25))
    }
    optimizer = AdamW(0.1, weight_decay=falling, lr_multipliers=thaws)
    optimizer.build(own)
    for now in ([0.0, 0.0], [0.5, 0.25]):
        rows = {row["path"]: row for row in optimizer.explain().rows}
        kernels = [next(r for p, r in rows.items() if p.endswith(f"{n}/kernel")) for n in thaws]
        assert [row["multiplier"] for row in kernels] == now
        k = int(optimizer.iterations)
        assert kernels[0]["decay_per_update"] == pytest.approx(0.25 * (1 - k / 10))
        assert str(optimizer.explain()).count("rate by a PiecewiseConstantDecay") == 2
        for _ in range(5):
            optimizer.apply([keras.ops.zeros(v.shape) for v in own], own)


def test_an_l1_is_what_an_update_removes():
    optimizer = AdamW(
        1e-3, weight_decay=(0.25, 0.5), lr_multipliers={"bias": 0}, total_iterations=100
    )
    found = column(optimizer, "l1_per_update")
    assert (found["net/head/kernel"], found["net/head/bias"]) == (pytest.approx(0.025), 0.0)


def test_keys_that_two_builds_took_one_by_one():
    late, first = (
        make_variable(f"{name}/kernel", np.ones((2, 2))) for name in ("dense_1", "dense")
    )
    optimizer = AdamW(weight_decay=0.5, weight_decays={"dense": 0.25})
    optimizer.build([first])
    optimizer.build([first, late])
    assert [row["l2"] for row in optimizer.explain().rows] == [0.25, 0.5]


def test_a_frozen_variable_has_no_decay():
    rows = AdamW(weight_decay=0.1, lr_multipliers={"head": 0}).explain(variables()).rows
    assert {row["decay_per_update"] for row in rows if "head" in row["path"]} == {0.0}


def test_rules_of_whole_paths_have_one_line():
    own = variables()
    rules = {v.path: 0 for v in own}
    lines = str(AdamW(weight_decay=1e-3, weight_decays=rules).explain(own)).splitlines()
    assert sum("its path" in line for line in lines) == 1


def test_a_beaten_key_that_would_give_the_same_is_not_told():
    own = variables()
    rules = {v.path: 0.5 for v in own}
    warned = [
        "changes nothing"
        in " ".join(AdamW(weight_decays=rules | {"head": x}).explain(own).warnings)
        for x in (0.5, 0.25)
    ]
    assert warned == [False, True]


def test_scales_of_any_rank_are_no_matrices():
    """Those of a normalization over two axes, and of a PReLU, too."""
    x = keras.Input((3, 4))
    norm = keras.layers.LayerNormalization(axis=[1, 2], name="norm")
    slope = keras.layers.PReLU(name="slope")
    model = keras.Model(x, keras.layers.Dense(2, name="head")(slope(norm(x))))
    assert {v.ndim for v in (*norm.trainable_variables, slope.alpha)} == {2}
    rows = AdamW(weight_decay=1e-3, decay_vectors=False).explain(model).rows
    assert [row["path"] for row in rows if row["l2"]] == ["head/kernel"]
    assert no_decay(model).keys() == {row["path"] for row in rows if not row["l2"]}
