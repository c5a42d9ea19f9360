"""`explain()`: who is decayed, by which rule, and by how much; and `decay_vectors`."""

import json
import math
import re

import keras
import numpy as np
import pytest

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Muon, decouple

schedules = keras.optimizers.schedules
SHAPES = {
    "net/conv/kernel": (3, 3, 1, 4),
    "net/conv/bias": (4,),
    "net/norm/gamma": (4,),
    "net/norm/beta": (4,),
    "net/attention/query/kernel": (4, 2, 4),
    "net/attention/query/bias": (2, 4),
    "net/gru/recurrent_bias": (2, 3),
    "net/head/kernel": (4, 2),
    "net/head/bias": (2,),
    "net/temperature": (),
}
MATRICES = ["net/conv/kernel", "net/attention/query/kernel", "net/head/kernel"]
VECTORS = [path for path in SHAPES if path not in MATRICES]


def variables(dtype="float32"):
    return [make_variable(path, np.ones(shape), dtype) for path, shape in SHAPES.items()]


def column(optimizer, name, **arguments):
    found = optimizer.explain(variables(), **arguments).rows
    assert [row["path"] for row in found] == list(SHAPES)
    return {row["path"]: row[name] for row in found}


def small_model(**arguments):
    dense = keras.layers.Dense(2, name="head", **arguments)
    return keras.Sequential([keras.Input((3,)), dense], name="net")


# --- decay_vectors ---


def test_vectors_are_decayed_unless_told():
    assert all(column(AdamW(weight_decay=0.1), "l2").values())


def test_no_vector_is_decayed():
    """Biases of two dimensions count as vectors, and so does a scalar."""
    l2 = column(AdamW(weight_decay=0.1, decay_vectors=False), "l2")
    assert {path for path, value in l2.items() if value} == set(MATRICES)
    rule = column(AdamW(weight_decay=0.1, decay_vectors=False), "rule")
    assert {rule[path] for path in VECTORS} == {"decay_vectors"}


@pytest.mark.parametrize(
    ("key", "decayed"),
    [
        ("bias", ["net/conv/bias", "net/attention/query/bias", "net/head/bias"]),
        ("head/bias", ["net/head/bias"]),
        ("net/head/bias", ["net/head/bias"]),
        ("query/bias", ["net/attention/query/bias"]),
        ("gamma/", ["net/norm/gamma"]),
        ("temperature", ["net/temperature"]),
        ("norm", []),  # a key that names a layer says nothing of its vectors
        ("net", []),
        ("ead", []),
    ],
)
def test_a_key_that_names_a_vector_decides(key, decayed):
    optimizer = AdamW(weight_decay=0.1, weight_decays={key: 0.5}, decay_vectors=False)
    l2 = column(optimizer, "l2")
    assert [path for path in VECTORS if l2[path]] == decayed
    assert all(l2[path] == 0.5 for path in decayed)


def test_a_general_key_after_the_one_that_names_a_vector():
    optimizer = AdamW(weight_decays={"head/bias": 0.5, "head": 0.25}, decay_vectors=False)
    l2 = column(optimizer, "l2")
    assert (l2["net/head/kernel"], l2["net/head/bias"]) == (0.25, 0.5)


def test_exclusions_beat_a_key_that_names_a_vector():
    optimizer = AdamW(weight_decays={"bias": 0.5}, decay_vectors=False)
    optimizer.exclude_from_weight_decay(var_names=["head"])
    assert column(optimizer, "rule")["net/head/bias"] == "excluded"


def test_a_layer_as_key_and_a_model_say_nothing_of_vectors():
    model = small_model(bias_regularizer="l2", kernel_regularizer="l2")
    by_layer = AdamW(weight_decays={model.layers[0]: 0.5}, decay_vectors=False)
    assert [row["l2"] for row in by_layer.explain(model).rows] == [0.5, 0.0]
    by_model = AdamW(model=model, decay_vectors=False, total_iterations=10_000)
    assert [row["rule"] for row in by_model.explain(model).rows] == ["model", "decay_vectors"]


def test_multipliers_know_no_vectors():
    assert set(
        column(AdamW(lr_multipliers={"net": 2}, decay_vectors=False), "multiplier").values()
    ) == {2.0}


def test_vectors_stay_as_they_are():
    """In an update without gradients, what is decayed shrinks by λ, and the rest stands still."""
    own = variables()
    optimizer = SGDW(0.5, weight_decay=0.25, decay_vectors=False)
    eager(optimizer, own)([np.zeros(shape, "float32") for shape in SHAPES.values()])
    for path, variable in zip(SHAPES, own, strict=True):
        assert np.all(numpy(variable) == (0.75 if path in MATRICES else 1.0)), path


def test_decay_vectors_is_saved():
    optimizer = AdamW(weight_decay=0.1, decay_vectors=False)
    again = AdamW.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert column(again, "l2") == column(optimizer, "l2")
    optimizer.build(variables())
    again = AdamW.from_config(json.loads(json.dumps(optimizer.get_config())))
    again.build(variables())
    assert again.explain().rows == optimizer.explain().rows
    more = [make_variable("new/kernel", np.ones((2, 2))), make_variable("new/bias", np.ones(2))]
    again.build([*variables(), *more])
    assert [row["l2"] for row in again.explain().rows[-2:]] == [0.1, 0.0]


def test_decay_vectors_is_a_flag():
    with pytest.raises(TypeError, match=r"`decay_vectors`.*Received: decay_vectors=0"):
        AdamW(decay_vectors=0)


# --- rows ---


def test_a_row():
    optimizer = AdamW(0.1, weight_decay=0.01, weight_decays={"head/kernel": (0.002, 0.05)})
    row = optimizer.explain(variables(), steps_per_epoch=10).rows[7]
    half_life = math.log(0.5) / math.log(0.95)
    assert row == {
        "path": "net/head/kernel",
        "shape": (4, 2),
        "dtype": "float32",
        "rule": "head/kernel",
        "l1": 0.002,
        "l2": 0.05,
        "decay_per_update": 0.05,
        "half_life_updates": pytest.approx(half_life),
        "half_life_epochs": pytest.approx(half_life / 10),
        "multiplier": 1.0,
        "kind": "",
    }


def test_which_rule_decides():
    model = small_model(kernel_regularizer="l2")
    head = model.layers[0]
    kernel, bias = model.trainable_variables

    def rules(built=False, exclude=(), **arguments):
        optimizer = AdamW(total_iterations_wd=10_000, **arguments)
        if exclude:
            optimizer.exclude_from_weight_decay(var_names=list(exclude))
        if built:
            optimizer.build([kernel, bias])
        return [row["rule"] for row in optimizer.explain(None if built else model).rows]

    for built in (False, True):
        assert rules(built, weight_decay=0.1) == ["weight_decay"] * 2
        assert rules(built, weight_decay=0) == ["weight_decay"] * 2
        assert rules(built, weight_decays={"kernel": 0.1}) == ["kernel", ""]
        assert rules(built, weight_decay=0.1, weight_decays={head: 0.2, "bias": 0}) == [
            "head",
            "bias",
        ]
        assert rules(built, weight_decay=0.1, weight_decays={kernel.path: 0.2}) == [
            "net/head/kernel",
            "weight_decay",
        ]
        assert rules(built, exclude=["bias"], weight_decay=0.1) == ["weight_decay", "excluded"]
        assert rules(built, model=model, zero_penalties=False, weight_decay=0.1) == [
            "model",
            "weight_decay",
        ]


def test_the_rule_is_saved():
    model = small_model()
    optimizer = AdamW(weight_decays={model.layers[0]: 0.2, "bias": 0})
    optimizer.build(model.trainable_variables)
    again = AdamW.from_config(json.loads(json.dumps(optimizer.get_config())))
    assert [row["rule"] for row in again.explain(model).rows] == ["head", "bias"]


def test_normalization_and_schedules():
    cosine = CosineWarmRestarts(0.1, 25)
    by_cycle = AdamW(cosine, weight_decay=0.1, normalize_weight_decay=True)
    assert column(by_cycle, "decay_per_update")["net/head/kernel"] == pytest.approx(0.02)
    assert column(by_cycle, "l2")["net/head/kernel"] == 0.1
    falling = AdamW(0.1, weight_decay=schedules.PolynomialDecay(0.25, 10, 0.0))
    assert column(falling, "l2")["net/head/kernel"] == 0.25
    assert column(falling, "kind")["net/head/kernel"] == "a schedule"


def test_no_half_life_without_a_decay_or_a_rate():
    optimizer = AdamW(0.1, weight_decay=0.1, weight_decays={"bias": 0}, lr_multipliers={"head": 0})
    half_life = column(optimizer, "half_life_updates", steps_per_epoch=7)
    assert half_life["net/conv/bias"] is None
    assert half_life["net/head/kernel"] is None
    assert half_life["net/conv/kernel"] > 0
    assert set(column(optimizer, "half_life_epochs").values()) == {None}


def test_epochs_count_batches():
    """Of which an update takes two, under accumulation."""
    plain = AdamW(weight_decay=0.1)
    accumulated = AdamW(weight_decay=0.1, gradient_accumulation_steps=2)
    one, two = (
        column(o, "half_life_epochs", steps_per_epoch=10)["net/head/kernel"]
        for o in (plain, accumulated)
    )
    assert two == pytest.approx(2 * one)


def test_the_decay_as_it_is_now():
    optimizer = AdamW(weight_decay=0.1, weight_decays={"bias": 0.01})
    optimizer.build(variables())
    optimizer.weight_decay = 0.5
    l2 = {row["path"]: row["l2"] for row in optimizer.explain().rows}
    assert (l2["net/head/kernel"], l2["net/head/bias"]) == (0.5, 0.01)


def test_kinds_and_parts():
    decay = Decay(0.1, cautious=True, eta_power=2, towards="initial")
    kinds = column(AdamW(weight_decays={"kernel": decay}), "kind")
    assert kinds["net/head/kernel"] == "cautious, towards initial, η^2"
    assert kinds["net/head/bias"] == ""
    part = column(Muon(weight_decay=0.1, exclude_layers=["head"]), "part")
    assert part["net/attention/query/bias"] == "muon"  # two dimensions, as in Keras
    assert part["net/head/kernel"] == "adam"
    with pytest.raises(KeyError):
        column(AdamW(weight_decay=0.1), "part")


@pytest.mark.parametrize(
    "make", [AdamW, SGDW, decouple(keras.optimizers.Nadam), decouple(keras.optimizers.Lion)]
)
def test_nothing_is_built(make):
    model = small_model()
    optimizer = make(0.1, weight_decay=0.1)
    before = len(optimizer.variables)
    assert len(optimizer.explain(model).rows) == 2
    assert not optimizer.built
    assert len(optimizer.variables) == before
    optimizer.build(model.trainable_variables)
    state = [numpy(v) for v in optimizer.variables]
    assert optimizer.explain().rows == optimizer.explain(model).rows
    assert all(map(np.array_equal, state, map(numpy, optimizer.variables)))


def test_frozen_layers_are_left_out():
    model = small_model()
    model.trainable = False
    found = AdamW(weight_decay=0.1).explain(model)
    assert found.rows == []
    assert "0 of 0 variables" in str(found)
    assert "<table>" in found._repr_html_()


# --- warnings ---


def warnings_of(optimizer, given=None):
    return " ".join(optimizer.explain(variables() if given is None else given).warnings)


def test_no_warning_where_all_is_well():
    assert warnings_of(AdamW(weight_decay=1e-4, decay_vectors=False)) == ""
    assert warnings_of(AdamW(weight_decay=0)) == ""


@pytest.mark.parametrize("penalty", ["l2", "l1", keras.regularizers.L1L2(1e-4, 1e-4)])
def test_a_penalty_beside_a_decay(penalty):
    model = small_model(kernel_regularizer=penalty)
    optimizer = AdamW(weight_decay=1e-4, decay_vectors=False)
    assert re.search("penalized.*net/head/kernel.*`model=`", warnings_of(optimizer, model))
    model = small_model(kernel_regularizer=penalty)
    taken = AdamW(model=model, total_iterations=10_000, decay_vectors=False)
    assert warnings_of(taken, model) == ""


def test_decayed_vectors():
    text = warnings_of(AdamW(weight_decay=1e-4))
    assert re.search("Biases.*net/conv/bias.* and 4 more.*decay_vectors=False", text)


def test_a_key_that_others_override():
    text = warnings_of(
        AdamW(
            weight_decays={"conv/kernel": 1e-3, "conv": 1e-4},
            lr_multipliers={"head": 2, "net": 1},
            decay_vectors=False,
        )
    )
    assert re.search("`weight_decays` decides for no variable.*: conv/kernel", text)
    assert re.search("`lr_multipliers` decides for no variable.*: head", text)
    assert "wherever it hits: conv." not in text


def test_a_key_that_means_vectors_alone():
    """Without decay of vectors, it decides for none of them: they are not called "norm"."""
    arguments = {"weight_decay": 1e-4, "weight_decays": {"norm": 1e-3}}
    text = warnings_of(AdamW(**arguments, decay_vectors=False))
    assert re.search("`weight_decays` decides for no variable.*: norm", text)
    assert "decides for no variable" not in warnings_of(AdamW(**arguments))


@pytest.mark.parametrize(
    ("dtype", "decay", "warned"),
    [
        ("float32", 1e-8, True),
        ("float32", 1e-7, False),
        ("bfloat16", 1e-4, False),  # there is a copy in float32
        ("bfloat16", 1e-8, True),
        ("float64", 1e-8, False),
    ],
)
def test_a_decay_below_the_resolution(dtype, decay, warned):
    if dtype == "float64" and BACKEND == "jax":  # where it has to be switched on
        dtype, warned = "float32", True
    text = warnings_of(AdamW(weight_decay=decay, decay_vectors=False), variables(dtype))
    assert ("rounding" in text) == warned


def test_a_decay_of_one():
    assert "whole weight" in warnings_of(AdamW(weight_decay=1.0, decay_vectors=False))
    normalized = AdamW(weight_decay=1.0, total_iterations=100, decay_vectors=False)
    assert warnings_of(normalized) == ""


def test_a_pattern_that_excludes_nothing():
    optimizer = AdamW(weight_decay=1e-4, decay_vectors=False)
    optimizer.exclude_from_weight_decay(var_names=["gamam"])
    assert "'gamam'" in warnings_of(optimizer)


# --- how it looks ---


def test_text_is_as_wide_as_the_terminal(monkeypatch):
    optimizer = AdamW(weight_decay=1e-4, weight_decays={"head": Decay(1e-3, cautious=True)})
    for width in (60, 80, 140):
        monkeypatch.setenv("COLUMNS", str(width))
        text = str(optimizer.explain(variables(), steps_per_epoch=10))
        assert max(map(len, text.splitlines())) <= width
        assert "\x1b" not in text
        whole = ("weight_decay", "half-life", "1e-04", "0.0001")  # folded are paths and kinds alone
        assert sum(word in text for word in whole) == 3


def test_columns_that_say_nothing_are_left_out():
    text = str(AdamW(weight_decay=1e-4).explain(variables()))
    assert not any(
        word in text.splitlines()[2] for word in ("l1", "kind", "rate", "epochs", "dtype")
    )


def test_html_is_escaped():
    own = [make_variable("a<b>/kernel", np.ones((2, 2)))]
    page = AdamW(weight_decay=1e-4).explain(own)._repr_html_()
    assert "a&lt;b&gt;/kernel" in page
    assert page.count("<tr>") == 2


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
def test_errors(given, error, words):
    with pytest.raises(error, match=words) as caught:
        AdamW(weight_decay=0.1).explain(given)
    assert "Received: " in str(caught.value)


def test_steps_per_epoch_counts():
    with pytest.raises(ValueError, match="`steps_per_epoch`"):
        AdamW(weight_decay=0.1).explain(variables(), steps_per_epoch=0)


def test_a_rule_that_the_build_would_refuse():
    with pytest.raises(ValueError, match="nearest"):
        AdamW(weight_decays={"kernle": 0.1}).explain(variables())
