"""Muon: what is a matrix, which of its axes are rows and columns, and that each kind is stepped so."""

import inspect
import json
import pickle
from functools import partial

import keras
import numpy as np
import pytest

import oracle
from cases import BACKEND, COMPILED, RUNNERS, assert_follows, eager, make_variable, numpy
from keras_decoupled import AdamW, Decay, Muon, decouple
from keras_decoupled.core.arguments import Shared

# Before Keras 3.13 its Muon has another step and other arguments.
beside_keras = pytest.mark.skipif(not Muon._kd_twins, reason="a Keras with another Muon")
BESIDE = {"attn/attention_output/kernel": (2, 4, 6), "attn/query/bias": (2, 4)}
# By hand: the matrices in an array, in order. (path, shape, matrix_axes, matrices)
KINDS = {
    "dense": ("mlp/kernel", (6, 4), None, lambda x: [x]),
    "conv": ("conv/kernel", (3, 2, 4, 5), None, lambda x: [x.reshape(24, 5)]),
    "transposed conv": ("up/kernel", (3, 2, 5, 4), None, lambda x: [x.reshape(30, 4)]),
    "query": ("attn/query/kernel", (6, 2, 4), None, lambda x: [x.reshape(6, 8)]),
    "output": ("attn/attention_output/kernel", (2, 4, 6), None, lambda x: [x.reshape(8, 6)]),
    "query, heads first": (
        "attn/query/kernel",
        (2, 6, 4),
        None,
        lambda x: [x.transpose(1, 0, 2).reshape(6, 8)],
    ),
    "each head": ("attn/query/kernel", (6, 2, 4), "rbc", lambda x: list(x.transpose(1, 0, 2))),
    "each head, heads first": ("attn/query/kernel", (2, 6, 4), "brc", list),
    "experts": ("experts/kernel", (3, 4, 5), "brc", list),
    "an embedding": ("embedding/embeddings", (5, 3), "rc", lambda x: [x]),
    "turned": ("mlp/kernel", (6, 4), "cr", lambda x: [x.T]),
}


class ByMatrix(oracle.Run):
    """NumPy's update of the first array, matrix by matrix; Adam steps the others."""

    def __init__(self, values, matrices, decay):
        super().__init__(self.each, values, 0.05, [(0.0, decay)] * len(values))
        places = np.arange(values[0].size).reshape(values[0].shape)
        self.places = matrices(places)  # where each entry of each matrix is in the array

    def each(self, g, state, k, rate):
        if state is not self.states[0]:
            return oracle.adamw(g, state, k, rate)
        step = np.zeros(g.size)
        for i, places in enumerate(self.places):
            own = state.setdefault(i, {})
            step[places] = oracle.muon(g.ravel()[places], own, k, rate)
        return step.reshape(g.shape)


RUNS = [(name, runner) for runner in COMPILED for name in KINDS] + [("each head", "eager")]


@pytest.mark.parametrize(("name", "runner"), RUNS)
def test_each_kind_of_matrix_as_by_numpy(name, runner):
    path, shape, axes, matrices = KINDS[name]
    shapes = {path: shape} | {p: s for p, s in BESIDE.items() if p != path}
    if path.startswith("attn/attention"):
        shapes.pop("attn/query/bias")
    rng = np.random.default_rng(0)
    values = [rng.uniform(0.5, 1, s).astype("float32") for s in shapes.values()]
    variables = list(map(make_variable, shapes, values))
    key = {path.split("/")[0]: axes} if axes else None  # it hits biases too
    exclude = [] if "attention_output" in path else ["attention_output"]
    optimizer = Muon(0.05, weight_decay=0.01, matrix_axes=key, exclude_layers=exclude)
    run = ByMatrix(values, matrices, 0.01)
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(4):
        grads = [(0.3 + rng.normal(size=s)).astype("float32") for s in shapes.values()]
        step(grads)
        run.step(grads)
        assert_follows(variables, run, list(shapes))


# Each argument away from its default.
OWN = {
    "adam_beta_1": 0.5,
    "adam_beta_2": 0.75,
    "epsilon": 0.25,
    "adam_lr_ratio": 0.5,
    "momentum": 0.75,
    "nesterov": False,
    "rms_rate": None,
    "ns_steps": 3,
    "muon_a": 3.5,
    "muon_b": -4.5,
    "muon_c": 1.5,
}
RULES = {
    "exclude_layers": ["head", "out.*"],
    "exclude_embeddings": False,
    "matrix_axes": {"kernel": "cr"},
    "ns_dtype": "bfloat16",
}


@pytest.mark.parametrize("given", [OWN, {"rms_rate": 0.3}])
def test_every_argument_as_by_numpy(given):
    shapes = {"net/kernel": (4, 3), "net/bias": (3,), "head/kernel": (3, 2)}
    rng = np.random.default_rng(0)
    values = [rng.uniform(0.5, 1, s).astype("float32") for s in shapes.values()]
    variables = list(map(make_variable, shapes, values))
    optimizer = Muon(0.05, weight_decay=0.01, exclude_layers=["head"], **given)
    run = oracle.Run(partial(oracle.muon, **given), values, 0.05, [(0.0, 0.01)] * 3)
    run.states[2]["adam"] = True
    for _ in range(4):
        grads = [(0.3 + rng.normal(size=s)).astype("float32") for s in shapes.values()]
        eager(optimizer, variables)(grads)
        run.step(grads)
        assert_follows(variables, run, list(shapes))


@beside_keras
def test_arguments_and_config():
    """In Keras' order, and every one of them in the config."""
    stock, ours = (
        list(inspect.signature(cls).parameters.values()) for cls in (keras.optimizers.Muon, Muon)
    )
    names = [p.name for p in ours if p.name != "shared"]
    removed = {*Shared.__annotations__, "adam_weight_decay", "kwargs"}
    assert names == [p.name for p in stock if p.name not in removed] + ["matrix_axes", "ns_dtype"]
    defaults = {p.name: p.default for p in stock} | {"weight_decay": None}
    assert all(p.default == defaults.get(p.name) for p in ours if p.name != "shared")
    given = OWN | RULES
    assert given.keys() == {*names} - {"learning_rate", "weight_decay"}
    config = json.loads(json.dumps(Muon(**given).get_config()))
    assert {name: config[name] for name in given} == given
    for again in (Muon.from_config(config), pickle.loads(pickle.dumps(Muon(**given)))):
        assert json.loads(json.dumps(again.get_config())) | {"name": ""} == config | {"name": ""}
    with pytest.raises(ValueError, match=r"adam_weight_decay=0\.1.*or `weight_decays` by key"):
        Muon(adam_weight_decay=0.1)


@beside_keras
@pytest.mark.parametrize("nesterov", [True, False])
def test_equal_to_that_of_keras_on_dense_kernels(nesterov):
    shapes = {"a/kernel": (8, 4), "b/kernel": (4, 8), "c/kernel": (6, 6), "d/kernel": (32, 8)}
    rng = np.random.default_rng(0)
    values = [rng.normal(size=s).astype("float32") for s in shapes.values()]
    ours, theirs = (list(map(make_variable, shapes, values)) for _ in range(2))
    optimizer = Muon(0.01, weight_decay=0, nesterov=nesterov)
    no_decay = {"weight_decay": None, "adam_weight_decay": None}
    stock = keras.optimizers.Muon(0.01, nesterov=nesterov, **no_decay)
    for _ in range(5):
        grads = [rng.normal(size=s).astype("float32") for s in shapes.values()]
        eager(optimizer, ours)(grads)
        eager(stock, theirs)(grads)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(numpy(a), numpy(b), rtol=0, atol=1e-6)


# --- what is a matrix ---

# A path and shape, then the axes, "" for Adam's part.
PARTS = """
dense/kernel 8x4 rc
dense/bias 4
dense/kernel 8x1
dense/kernel 1x8
conv2d/kernel 3x3x4x8 rrrc
conv2d/kernel 1x1x4x8 rrrc
conv1d/kernel 1x4x1
depthwise_conv2d/kernel 3x3x8x2
separable_conv2d/depthwise_kernel 3x3x8x2
separable_conv2d/pointwise_kernel 1x1x16x4 rrrc
conv2d_transpose/kernel 3x3x8x4 rrrc
lstm/lstm_cell/kernel 8x16 rc
lstm/lstm_cell/recurrent_kernel 4x16 rc
gru/gru_cell/bias 2x12
embedding/embeddings 20x8
token_embedding/reverse_embeddings 8x20
vit/class_token 1x1x8
vit/position_embedding/embeddings 17x8
norm/gamma 4x4
norm/scale 4x4
lora/lora_kernel_a 8x2
lora/lora_kernel_b 2x8
attn/query/kernel 8x2x4 rcc
attn/key/kernel 8x2x4 rcc
attn/query/bias 2x4
attn/attention_output/kernel 2x4x8 rrc
gemma/query/kernel 2x8x4 crc
gemma/attention_output/kernel 2x4x8 rrc
alone/query_dense/kernel 8x2x4 rcc
alone/query_key_value/kernel 8x2x12 rcc
square/value/kernel 8x8x8 rcc
square/attention_output/kernel 8x8x8 rrc
wavenet/gate/kernel 3x4x8 rrc
wavenet/value/kernel 3x4x8 rrc
one_feature/query/kernel 1x4x16
cross/query/kernel 64x8x16 rcc
cross/key/kernel 128x8x64 rcc
cross/attention_output/kernel 8x16x64 rrc
one_feature/attention_output/kernel 4x16x1
experts/kernel 4x8x16 rrc
feedforward/gate/kernel 8x16 rc
"""


def parts_of(optimizer, shapes):
    variables = [make_variable(path, np.ones(shape)) for path, shape in shapes]
    return optimizer.explain(variables).rows, variables


def test_what_is_a_matrix():
    table = [line.split() for line in PARTS.split("\n") if line]
    shapes = [(path, tuple(map(int, shape.split("x")))) for path, shape, *_ in table]
    optimizer = Muon()
    _, variables = parts_of(optimizer, shapes)
    with pytest.warns(UserWarning, match="decays no variable"):
        optimizer.build(variables)
    rows = optimizer.get_config()["resolved"]["table"]
    found = [[row.get("axes", ""), row["part"]] for row in rows]
    axes = [(row[2:] or [""])[0] for row in table]
    assert found == [[letters, "muon" if letters else "adam"] for letters in axes]


def test_embeddings_are_matrices_if_they_are_not_excluded():
    rows, _ = parts_of(Muon(exclude_embeddings=False), [("embedding/embeddings", (20, 8))])
    assert (rows[0]["part"], rows[0]["matrix"]) == ("muon", "20×8")


def test_exclude_layers_beats_axes_and_axes_beat_the_name():
    shapes = [("a/norm/gamma", (4, 3)), ("b/norm/gamma", (4, 3)), ("b/kernel", (4, 3, 2))]
    shapes += [("b/norm/scale", (4, 3)), ("b/embeddings", (4, 3))]
    shapes += [("c/kernel", (4, 3)), ("c/kernel", (4, 3))]  # with one path, which has no "#2"
    keys = {"b": "cr", "gamma": "rc", "b/kernel": "crb"}  # "b" says nothing of a scale or a gamma
    rows, _ = parts_of(Muon(exclude_layers=["^a/", "c/kernel$"], matrix_axes=keys), shapes)
    assert [row.get("matrix") for row in rows] == [None, "4×3", "2 of 3×4", None, "3×4", None, None]


def test_a_layer_is_a_key():
    attention = keras.layers.MultiHeadAttention(2, 3, name="attn")
    x = keras.Input((5, 6))
    model = keras.Model(x, attention(x, x))
    optimizer = Muon(weight_decay=0, matrix_axes={attention: "rbc"})
    optimizer.build(model.trainable_variables)
    rows = {row["path"]: row for row in optimizer.explain().rows}
    assert rows["attn/query/kernel"]["matrix"] == "2 of 6×3"
    assert rows["attn/query/bias"]["part"] == "adam"
    config = json.loads(json.dumps(optimizer.get_config()))
    assert Muon.from_config(config).explain(model).rows == optimizer.explain().rows


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"matrix_axes": {"kernel": "rx"}}, ValueError, "one letter for each axis"),
        ({"matrix_axes": {"kernel": "rr"}}, ValueError, "at least one r and one c"),
        ({"matrix_axes": {"kernel": 2}}, TypeError, r"matrix_axes\['kernel'\].*Received: .*2"),
        ({"matrix_axes": "rc"}, TypeError, "dict from keys"),
        ({"matrix_axes": {"kernel": "rcc"}}, ValueError, r"'kernel': 'rcc' for the shape \(4, 3\)"),
        ({"matrix_axes": {"karnel": "rc"}}, ValueError, "nearest paths: 'net/kernel'"),
        ({"ns_dtype": "float16"}, ValueError, 'None or "bfloat16"'),
        ({"ns_steps": 0}, ValueError, "integer ≥ 1"),
        ({"exclude_layers": "head"}, TypeError, "must be a list"),
        ({"exclude_layers": ["("]}, ValueError, "not a regular expression"),
        ({"exclude_layers": ["a{99999999999}"]}, ValueError, "not a regular expression"),
    ],
)
def test_a_wrong_argument_is_refused(given, error, words):
    variable = make_variable("net/kernel", np.ones((4, 3)))
    with pytest.raises(error, match=words):
        Muon(weight_decay=0, **given).build([variable])


# --- the parts stay ---

CONV = {"conv/kernel": (2, 3, 4), "dense/kernel": (4, 3), "dense/bias": (3,)}


def conv_variables():
    return [make_variable(path, np.ones(shape)) for path, shape in CONV.items()]


@beside_keras
def test_parts_of_a_trained_stock_muon_stay():
    """For Keras, a convolution's kernel is no matrix."""
    variables = conv_variables()
    grads = [keras.ops.ones(v.shape) for v in variables]
    stock = keras.optimizers.Muon(0.05, weight_decay=None, adam_weight_decay=None)
    stock.apply(grads, variables)
    optimizer = Muon.from_keras(stock)
    assert [row["part"] for row in optimizer.explain().rows] == ["adam", "muon", "adam"]
    before, after = list(map(numpy, variables)), []
    for one in (stock, optimizer):
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        one.apply(grads, variables)
        after.append(list(map(numpy, variables)))
    for theirs, ours in zip(*after, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@beside_keras
def test_the_decay_of_the_adam_part():
    stock = keras.optimizers.Muon(0.1, weight_decay=0.5, adam_weight_decay=0.25)
    with pytest.raises(ValueError, match=r"adam_weight_decay.*Received: .*not built"):
        Muon.from_keras(stock)
    assert Muon.from_keras(stock, weight_decay=0.125).get_config()["weight_decay"] == 0.125
    shapes = {"kernel": (3, 3), "bias": (3,)}
    variables = [make_variable(f"net/{n}", np.ones(s)) for n, s in shapes.items() for _ in range(2)]
    stock.build(variables)
    decays = Muon.from_keras(stock).weight_decays
    l2 = {path: l2 for path, (_, l2) in decays.items()}
    assert l2 == pytest.approx(
        {
            "net/kernel": 0.05,
            "net/kernel#2": 0.05,
            "net/bias": 0.025,
            "net/bias#2": 0.025,
        }
    )


def test_a_running_muon_gets_other_axes():
    variable = make_variable("attn/query/kernel", np.ones((6, 2, 4)))
    optimizer = Muon(weight_decay=0)
    optimizer.apply([keras.ops.ones((6, 2, 4))], [variable])
    again = Muon.from_keras(optimizer, matrix_axes={"query": "rbc"})
    assert again.explain().rows[0]["matrix"] == "2 of 6×4"
    assert again.iterations == 1
    with pytest.raises(ValueError, match="`exclude_layers` cannot be changed"):
        Muon.from_keras(optimizer, exclude_layers=["query"])


@beside_keras
@pytest.mark.parametrize("reload", [False, True])
def test_other_changes_leave_the_parts_of_a_trained_stock_muon(reload):
    """Its convolution was stepped by Adam, and stays so whatever is changed or frozen later."""
    variables = conv_variables()
    stock = keras.optimizers.Muon(0.05, weight_decay=None, adam_weight_decay=None)
    stock.apply([keras.ops.ones(v.shape) for v in variables], variables)
    optimizer = Muon.from_keras(stock, matrix_axes={"dense": "cr"})
    optimizer.build(variables[1:])
    if reload:
        optimizer = Muon.from_config(json.loads(json.dumps(optimizer.get_config())))
        optimizer.build(variables[1:])
    optimizer.build(variables)
    optimizer = Muon.from_keras(optimizer, weight_decays={"bias": 0}, lr_multipliers={"conv": 0.5})
    rows = optimizer.explain().rows
    assert [(row["part"], row.get("matrix")) for row in rows] == [
        ("adam", None),
        ("muon", "3×4"),
        ("adam", None),
    ]
    assert rows[0]["multiplier"] == 0.5
    with pytest.raises(ValueError, match=r"`matrix_axes` cannot make.*'rrc' for conv/kernel"):
        Muon.from_keras(stock, matrix_axes={"conv": "rrc"})


def test_rows_of_a_file_that_do_not_fit_are_decided_anew():
    """The layer has another rank by now, or the file is damaged."""
    optimizer = Muon(weight_decay=0.5, weight_decays={"kernel": 0.25})
    optimizer.build(conv_variables())
    config = json.loads(json.dumps(optimizer.get_config()))
    table = config["resolved"]["table"]
    table[0]["part"] = "nobody"
    del table[1]["axes"]  # as 0.2 wrote it
    table[2] |= {"part": "muon"}  # a vector
    loaded = Muon.from_config(config)
    with pytest.raises(ValueError, match="`exclude_layers` cannot be set on an optimizer from a"):
        loaded.exclude_layers = ["conv"]
    loaded.build(conv_variables())
    assert loaded.explain().rows == optimizer.explain().rows
    table[0]["axes"] = "rc"
    with pytest.raises(ValueError, match=r"\['axes'\].*one letter for each axis"):
        Muon.from_config(config)


@pytest.mark.parametrize("cls", [Muon, AdamW])
def test_a_number_is_set_where_a_variable_has_no_state(cls):
    """One that Keras overwrites with its gradient has none: a scale of float8, say."""
    variables = conv_variables()
    variables[0].overwrite_with_gradient = True
    optimizer = cls(weight_decay=0.5)
    optimizer.build(variables)
    optimizer.epsilon = 0.5
    assert optimizer.epsilon == 0.5


if BACKEND == "tensorflow":

    def test_a_gradient_of_unknown_shape():
        import tensorflow as tf

        ours, theirs = (make_variable("a/kernel", np.ones((4, 3))) for _ in range(2))
        optimizers = Muon(0.1, weight_decay=0), Muon(0.1, weight_decay=0)
        for optimizer, variable in zip(optimizers, (ours, theirs), strict=True):
            optimizer.build([variable])
        gradient = np.arange(12, dtype="float32").reshape(4, 3)
        specification = tf.TensorSpec([None, None])
        tf.function(lambda g: optimizers[0].apply([g]), input_signature=[specification])(gradient)
        optimizers[1].apply([tf.constant(gradient)])
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-6)


def test_a_state_of_other_parts_is_refused():
    own, store = conv_variables(), {}
    as_keras = Muon(weight_decay=0, exclude_layers=["conv"])
    as_keras.build(own)
    as_keras.save_own_variables(store)
    ours = Muon(weight_decay=0)
    ours.build(conv_variables())
    with pytest.raises(ValueError, match=r"conv/kernel with a velocity.*load_model"):
        ours.load_own_variables(store)
    back = {}
    ours.save_own_variables(back)
    with pytest.raises(ValueError, match=r"conv/kernel with no velocity.*load_model"):
        as_keras.load_own_variables(back)


# --- the iteration ---


@pytest.mark.parametrize("shape", [(48, 16), (16, 48), (3, 8, 20)])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("fast", [True, False] if BACKEND == "torch" else [True])
def test_singular_values_come_near_1(shape, dtype, fast):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    variable = make_variable("kernel", np.zeros(shape))
    as_it_is = {"rms_rate": None, "momentum": 0, "nesterov": False, "weight_decay": 0}
    axes = {"kernel": "brc" if len(shape) == 3 else "rc"}
    optimizer = Muon(1, **as_it_is, ns_dtype=dtype, matrix_axes=axes)
    optimizer.fast = fast
    optimizer.apply([keras.ops.convert_to_tensor(x)], [variable])
    found = -numpy(variable)
    u, _, v = np.linalg.svd(x, full_matrices=False)
    near_1 = np.linalg.svd(found, compute_uv=False)
    assert np.all((near_1 > 0.6) & (near_1 < 1.25))
    # In the bases of x it is diagonal, up to the rounding.
    turned = np.swapaxes(u, -2, -1) @ found @ np.swapaxes(v, -2, -1)
    off = turned * (1 - np.eye(turned.shape[-1]))
    assert np.abs(off).max() < (1e-4 if dtype is None else 0.1)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("fast", [True, False] if BACKEND == "torch" else [True])
def test_singular_values_of_all_sizes_stay_bounded(dtype, fast):
    """Iterations on the Gram matrix alone make its rounding errors grow: their number is limited."""
    axes, steps, many = {"kernel": "brc"}, 9, 40  # more steps than usual show it sooner
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(many, n, 16)))[0] for n in (16, 256))
    x = (u * 10.0 ** (-np.arange(16) / 4)) @ np.swapaxes(v, -2, -1)
    variable = make_variable("kernel", np.zeros(x.shape))
    as_it_is = {"rms_rate": None, "momentum": 0, "nesterov": False, "weight_decay": 0}
    optimizer = Muon(1, **as_it_is, ns_dtype=dtype, ns_steps=steps, matrix_axes=axes)
    optimizer.fast = fast
    optimizer.apply([keras.ops.convert_to_tensor(x, "float32")], [variable])
    assert np.linalg.svd(numpy(variable), compute_uv=False).max() < 1.25


def test_decouple_gives_it_and_a_kind_of_decay_works():
    assert decouple(keras.optimizers.Muon) is Muon
    after = []
    for decay in (0, Decay(0.01, cautious=True)):
        variable = make_variable("net/kernel", np.ones((4, 3)))
        Muon(0.1, weight_decay=decay).apply([keras.ops.ones((4, 3))], [variable])
        after.append(numpy(variable))
    assert after[1].max() < 0.99
    np.testing.assert_allclose(after[0] - after[1], 0.01, rtol=1e-4)


def test_an_exclusion_that_excludes_nothing_is_told():
    """A slip of the pen, which would have the output layer stepped as a matrix."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    with pytest.warns(UserWarning, match=r"`exclude_layers` should match .*'haed/'.*head"):
        Muon(weight_decay=1e-3, exclude_layers=["haed/"]).build(model.trainable_variables)


def test_rows_say_the_part_of_every_variable():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    rows = Muon(weight_decay=1e-3).explain(model).rows
    assert [(row["part"], row["matrix"]) for row in rows] == [("muon", "4×2"), ("adam", None)]
