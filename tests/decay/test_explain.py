"""`explain()`: who is decayed, by which rule, and by how much; and `decay_vectors`."""

import math
import re

import keras
import numpy as np
import pytest

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Muon, decouple
from small import again

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


def of_head(optimizer, name, **arguments):
    return column(optimizer, name, **arguments)["net/head/kernel"]


def small_model(**arguments):
    dense = keras.layers.Dense(2, name="head", **arguments)
    return keras.Sequential([keras.Input((3,)), dense], name="net")


def rows(optimizer, given, name):
    return [row[name] for row in optimizer.explain(given).rows]


# --- decay_vectors ---


@pytest.mark.parametrize(
    ("key", "decayed"),
    [
        ("bias", ["net/conv/bias", "net/attention/query/bias", "net/head/bias"]),
        ("head/bias", ["net/head/bias"]),
        ("net/head/bias", ["net/head/bias"]),
        ("query/bias", ["net/attention/query/bias"]),
        ("gamma/", ["net/norm/gamma"]),
        ("temperature", ["net/temperature"]),
        ("norm", []),  # the name of a layer says nothing of its vectors
        ("net", []),
        ("ead", []),
    ],
)
def test_a_key_that_names_a_vector_decides(key, decayed):
    optimizer = AdamW(weight_decay=0.1, weight_decays={key: 0.5}, decay_vectors=False)
    l2 = column(optimizer, "l2")
    assert [path for path in VECTORS if l2[path]] == decayed
    assert all(l2[path] == 0.5 for path in decayed)


def test_which_vectors_are_decayed():
    assert all(column(AdamW(weight_decay=0.1), "l2").values())
    # Biases of two dimensions count as vectors, and so does a scalar.
    optimizer = AdamW(weight_decay=0.1, decay_vectors=False)
    assert [path for path, l2 in column(optimizer, "l2").items() if l2] == MATRICES
    rule = column(optimizer, "rule")
    assert [path for path in SHAPES if rule[path] == "decay_vectors"] == VECTORS
    # A general key after the one that names a vector:
    optimizer = AdamW(weight_decays={"head/bias": 0.5, "head": 0.25}, decay_vectors=False)
    l2 = column(optimizer, "l2")
    assert (l2["net/head/kernel"], l2["net/head/bias"]) == (0.25, 0.5)
    optimizer.exclude_from_weight_decay(var_names=["head"])
    assert column(optimizer, "rule")["net/head/bias"] == "excluded"
    multipliers = AdamW(lr_multipliers={"net": 2}, decay_vectors=False)
    assert set(column(multipliers, "multiplier").values()) == {2.0}


def test_a_layer_as_key_and_a_model_say_nothing_of_vectors():
    model = small_model(bias_regularizer="l2", kernel_regularizer="l2")
    by_layer = AdamW(weight_decays={model.layers[0]: 0.5}, decay_vectors=False)
    assert rows(by_layer, model, "l2") == [0.5, 0.0]
    by_model = AdamW(model=model, decay_vectors=False, total_iterations=10_000)
    assert rows(by_model, model, "rule") == ["model", "decay_vectors"]


def test_vectors_stay_as_they_are():
    """In an update without gradients, what is decayed shrinks by λ, and the rest stands still."""
    own = variables()
    optimizer = SGDW(0.5, weight_decay=0.25, decay_vectors=False)
    eager(optimizer, own)([np.zeros(shape, "float32") for shape in SHAPES.values()])
    for path, variable in zip(SHAPES, own, strict=True):
        assert np.all(numpy(variable) == (0.75 if path in MATRICES else 1.0)), path


def test_decay_vectors_is_saved():
    optimizer = AdamW(weight_decay=0.1, decay_vectors=False)
    assert column(again(optimizer), "l2") == column(optimizer, "l2")
    optimizer.build(variables())
    loaded = again(optimizer)
    loaded.build(variables())
    assert loaded.explain().rows == optimizer.explain().rows
    more = [make_variable("new/kernel", np.ones((2, 2))), make_variable("new/bias", np.ones(2))]
    loaded.build([*variables(), *more])
    assert rows(loaded, None, "l2")[-2:] == [0.1, 0.0]


# --- rows ---


def test_a_row():
    optimizer = AdamW(0.1, weight_decay=0.01, weight_decays={"head/kernel": (0.002, 0.05)})
    half_life = math.log(0.5) / math.log(0.95)
    assert optimizer.explain(variables(), steps_per_epoch=10).rows[7] == {
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


@pytest.mark.filterwarnings("ignore:Decayed, and also penalized")
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (lambda model: {"weight_decay": 0.1}, ["weight_decay"] * 2),
        (lambda model: {"weight_decay": 0}, ["weight_decay"] * 2),
        (lambda model: {"weight_decays": {"kernel": 0.1}}, ["kernel", ""]),
        (lambda model: {"weight_decays": {model.layers[0]: 0.2, "bias": 0}}, ["head", "bias"]),
        (
            lambda model: {"weight_decay": 0.1, "weight_decays": {model.weights[0].path: 0.2}},
            ["net/head/kernel", "weight_decay"],
        ),
        (lambda model: {"weight_decay": 0.1, "exclude": ["bias"]}, ["weight_decay", "excluded"]),
        (lambda model: {"weight_decay": 0.1, "model": model}, ["model", "weight_decay"]),
    ],
)
def test_which_rule_decides(built, arguments, expected):
    model = small_model(kernel_regularizer="l2")
    arguments = {"exclude": [], **arguments(model)}
    exclude = arguments.pop("exclude")
    optimizer = AdamW(total_iterations_wd=10_000, **arguments)
    optimizer.exclude_from_weight_decay(var_names=exclude)
    if built:
        optimizer.build(model.trainable_variables)
    assert rows(optimizer, None if built else model, "rule") == expected
    if built:  # it is saved
        assert rows(again(optimizer), model, "rule") == expected


def test_normalization_and_schedules():
    cosine = CosineWarmRestarts(0.1, 25)
    by_cycle = AdamW(cosine, weight_decay=0.1, normalize_weight_decay=True)
    assert of_head(by_cycle, "decay_per_update") == pytest.approx(0.02)
    assert of_head(by_cycle, "l2") == 0.1
    falling = AdamW(0.1, weight_decay=schedules.PolynomialDecay(0.25, 10, 0.0))
    assert of_head(falling, "l2") == 0.25
    assert of_head(falling, "kind") == "a schedule"


def test_half_lives():
    optimizer = AdamW(0.1, weight_decay=0.1, weight_decays={"bias": 0}, lr_multipliers={"head": 0})
    half_life = column(optimizer, "half_life_updates")
    assert half_life["net/conv/bias"] is None  # no decay
    assert half_life["net/head/kernel"] is None  # no rate
    assert half_life["net/conv/kernel"] > 0
    assert set(column(optimizer, "half_life_epochs").values()) == {None}
    # Epochs count batches, of which an update takes two under accumulation.
    plain, accumulated = (
        of_head(AdamW(weight_decay=0.1, **arguments), "half_life_epochs", steps_per_epoch=10)
        for arguments in ({}, {"gradient_accumulation_steps": 2})
    )
    assert accumulated == pytest.approx(2 * plain)


def test_the_decay_as_it_is_now():
    optimizer = AdamW(weight_decay=0.1, weight_decays={"bias": 0.01})
    optimizer.build(variables())
    optimizer.weight_decay = 0.5
    l2 = dict(zip(SHAPES, rows(optimizer, None, "l2"), strict=True))
    assert (l2["net/head/kernel"], l2["net/head/bias"]) == (0.5, 0.01)


def test_kinds_and_parts():
    decay = Decay(0.1, cautious=True, eta_power=2, towards="initial")
    kinds = column(AdamW(weight_decays={"kernel": decay}), "kind")
    assert kinds["net/head/kernel"] == "towards initial, cautious, η^2"
    assert kinds["net/head/bias"] == ""
    part = column(Muon(weight_decay=0.1, exclude_layers=["head"]), "part")
    assert part["net/attention/query/bias"] == "muon"  # two dimensions, as in Keras
    assert part["net/head/kernel"] == "adam"
    assert "part" not in AdamW(weight_decay=0.1).explain(variables()).rows[0]


@pytest.mark.parametrize(
    "make", [AdamW, SGDW, decouple(keras.optimizers.Nadam), decouple(keras.optimizers.Lion)]
)
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


def warnings_of(given=None, excluded=None, **arguments):
    optimizer = AdamW(**{"weight_decay": 1e-4, "decay_vectors": False} | arguments)
    optimizer.exclude_from_weight_decay(var_names=excluded)
    return optimizer.explain(variables() if given is None else given).warnings


OVERRIDDEN = {"weight_decays": {"conv/kernel": 1e-3, "conv": 1e-4}}
OVERRIDDEN |= {"lr_multipliers": {"head": 2, "net": 1}}


@pytest.mark.parametrize(
    ("arguments", "patterns"),
    [
        ({}, []),
        ({"weight_decay": 0}, []),
        ({"decay_vectors": True}, ["Biases.*net/conv/bias.* and 4 more.*decay_vectors=False"]),
        ({"weight_decay": 1.0}, ["whole weight.*: net/conv/kernel"]),
        ({"weight_decay": 1.0, "total_iterations": 100}, []),
        ({"excluded": ["gamam"]}, ["'gamam'"]),
        (OVERRIDDEN, ["`weight_decays` decides .*: conv/kernel", "`lr_multipliers` de.*: head"]),
        # It hits vectors alone. If these are not decayed, it decides for none.
        ({"weight_decays": {"norm": 1e-3}}, ["`weight_decays` decides for no variable.*: norm"]),
        ({"weight_decays": {"norm": 1e-3}, "decay_vectors": True}, ["Biases"]),
    ],
)
def test_warnings(arguments, patterns):
    found = warnings_of(**arguments)
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
    # Penalties of zero, and of other kinds:
    for other in (keras.regularizers.L2(0.0), keras.regularizers.OrthogonalRegularizer()):
        assert warnings_of(small_model(kernel_regularizer=other)) == []


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
    found = warnings_of(variables(dtype), weight_decay=decay)
    assert ["rounding" in text for text in found] == [True] * warned


# --- how it looks ---


def blocks():
    """Twelve blocks of a network."""
    parts = {"query/kernel": (768, 768), "key/kernel": (768, 768), "query/bias": (768,)}
    return [
        make_variable(f"net/block_{i}/attention/{name}", np.zeros(shape, "float32"))
        for i in range(12)
        for name, shape in parts.items()
    ]


def test_a_line_stands_for_all_variables_that_get_the_same():
    optimizer = AdamW(weight_decay=1e-4, weight_decays={"bias": 0}, lr_multipliers={"query": 0.5})
    text = str(optimizer.explain(blocks(), steps_per_epoch=100))
    lines = [line.split() for line in text.splitlines()[2:9]]
    assert lines == [
        ["decay", "half-life", "epochs", "rate", "variables", "weights"],
        ["0.0001", "6,931", "69.3", "×0.5", "12", "7,077,888"],
        ["weight_decay:", "net/block_*/attention/query/kernel"],
        ["0.0001", "6,931", "69.3", "×1", "12", "7,077,888"],
        ["weight_decay:", "net/block_*/attention/key/kernel"],
        ["0", "×0.5", "12", "9,216"],
        ["bias:", "net/block_*/attention/query/bias"],
    ]


def test_it_fits_into_80_columns():
    """However long the names are, and no number is cut."""
    longest = Decay(1.234e-5, 1.234e-7, cautious=True, towards="initial", eta_power=0.123)
    own = [make_variable("/".join([f"a_long_name_{i}"] * 9), np.zeros((9, 9))) for i in range(7)]
    optimizer = AdamW(weight_decay=longest, lr_multipliers={"a_long_name_1": 1.23e-5})
    text = str(optimizer.explain(own, steps_per_epoch=123))
    assert max(map(len, text.splitlines())) <= 80
    for word in ("1.23e-05", "1.23e-07", "56,170", "457", "×1.23e-05", "towards initial, cautious"):
        assert word in text


def test_a_line_of_the_table_stands_for_each_variable(capsys):
    AdamW(weight_decay=1e-4, weight_decays={"bias": 0}).explain(blocks()).table()
    text = capsys.readouterr().out
    assert (
        len(re.findall(r"0\.0001 +6,931  net/block_\d+/attention/\w+/kernel  768×768", text)) == 24
    )
    assert len(re.findall(r" 0 +  net/block_\d+/attention/query/bias  768  bias", text)) == 12


def test_columns_that_say_nothing_are_left_out():
    head = str(AdamW(weight_decay=1e-4).explain(variables())).splitlines()[2]
    assert head.split() == ["decay", "half-life", "variables", "weights"]


def test_the_summary_counts_no_frozen_variables():
    text = str(AdamW(weight_decay=1e-4, lr_multipliers={"head": 0}).explain(variables()))
    assert "8 of 10 variables are decayed, 95 of 105 parameters." in text


def test_html_is_escaped():
    own = [make_variable("a<b>/kernel", np.ones((2, 2)))]
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
        AdamW(weight_decays={"kernle": 0.1}).explain(variables())
