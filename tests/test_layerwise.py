"""Rules as plain dicts: `no_decay`, and learning rates and decays that fall from layer to layer.

Each model is made together with the depth of its layers, as their places in it say.
"""

import copy
import functools
import pickle
import re

import keras
import numpy as np
import pytest

import keras_decoupled
from cases import numpy
from keras_decoupled import (
    SGDW,
    AdamW,
    layerwise_lr_multipliers,
    layerwise_weight_decays,
    no_decay,
)
from training import tensors

WIDTH = 4
RECURRENT = {"recurrent_initializer": "zeros"}  # JAX takes seconds to compile Keras' default
NAMES = ["layerwise_lr_multipliers", "layerwise_weight_decays", "no_decay"]
X = np.arange(24, dtype="int32").reshape(8, 3) % 10
Y = np.linspace(-1, 1, 16).astype("float32").reshape(8, 2)


@keras.saving.register_keras_serializable("test_layerwise")
class Block(keras.Layer):
    """x + dense(norm(x))."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.norm = keras.layers.LayerNormalization(name="norm")
        self.dense = keras.layers.Dense(WIDTH, name="dense")

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return x + self.dense(self.norm(x))

    def get_config(self):  # of itself, Keras keeps no arguments behind **
        return super().get_config()


class Recorder:
    """Lists each layer with its depth while a model is made."""

    def __init__(self):
        self.layers = []

    def __call__(self, layer, depth):
        self.layers.append((layer, depth))
        return layer

    def depths(self):
        return {v.path: depth for layer, depth in self.layers for v in layer.weights}


def embedded(inputs, at):
    return at(keras.layers.Embedding(10, WIDTH, name="tokens"), 0)(inputs)


def tail(x, at, depth):
    x = at(keras.layers.LayerNormalization(name="final_norm"), depth)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return at(keras.layers.Dense(2, name="head"), depth)(x)


def functional(names=("block_0", "block_1", "block_2"), first=0):
    at, inputs = Recorder(), keras.Input((3,), dtype="int32")
    x = embedded(inputs, at)
    for i, name in enumerate(names, start=1):
        x = at(Block(name=name), i)(x)
    return keras.Model(inputs, tail(x, at, len(names) + 1), name="net"), at


def of_automatic_names():
    return functional([None] * 3)


def nested():
    """A backbone inside a model: its own name is in no path."""
    at, inputs = Recorder(), keras.Input((3,), dtype="int32")
    x = at(Block(name="layer_1"), 1)(embedded(inputs, at))
    backbone = keras.Model(inputs, at(Block(name="layer_2"), 2)(x), name="backbone")
    outer = keras.Input((3,), dtype="int32")
    return keras.Model(outer, tail(backbone(outer), at, 3), name="net"), at


@keras.saving.register_keras_serializable("test_layerwise")
class Subclassed(keras.Model):
    def __init__(self, at=lambda layer, depth: layer, **arguments):
        super().__init__(**arguments)
        self.tokens = at(keras.layers.Embedding(10, WIDTH), 0)
        self.blocks = [at(Block(name=f"block_{i}"), i + 1) for i in range(3)]
        self.norm = at(keras.layers.LayerNormalization(), 4)
        self.head = at(keras.layers.Dense(2), 4)
        self.positions = at(keras.layers.Embedding(3, WIDTH), 0)  # defined last, used first

    def call(self, x):
        x = self.tokens(x) + self.positions(keras.ops.arange(3))
        for block in self.blocks:
            x = block(x)
        return self.head(keras.ops.mean(self.norm(x), axis=1))


def subclassed():
    at = Recorder()
    model = Subclassed(at, name="net")
    model(X)
    return model, at


def resnet():
    """The names and the order of keras.applications, where a shortcut stands beside its block."""
    at, inputs = Recorder(), keras.Input((8, 8, 3))

    def convolution(x, name, depth):
        x = at(keras.layers.Conv2D(WIDTH, 1, name=f"{name}_conv"), depth)(x)
        return at(keras.layers.BatchNormalization(name=f"{name}_bn"), depth)(x)

    x = convolution(inputs, "conv1", 0)
    names = [f"conv{stage}_block{block}" for stage in (2, 3) for block in (1, 2)]
    for depth, name in enumerate(names, start=1):
        shortcut = convolution(x, f"{name}_0", depth) if name.endswith("1") else x
        x = convolution(convolution(x, f"{name}_1", depth), f"{name}_2", depth)
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, at(keras.layers.Dense(2, name="predictions"), 5)(x)), at


def sequential():
    """No blocks: each layer with weights is a step."""
    at = Recorder()
    layers = [
        keras.Input((8, 3)),
        at(keras.layers.Conv1D(WIDTH, 2), 0),
        at(keras.layers.BatchNormalization(), 1),
        keras.layers.Dropout(0.5),
        at(keras.layers.SimpleRNN(WIDTH, **RECURRENT), 2),
        at(keras.layers.Dense(WIDTH, name="dense_a"), 3),
        at(keras.layers.Dense(2, name="dense_b"), 4),
    ]
    return keras.Sequential(layers, name="net"), at


def chain():
    """A functional model around a `Sequential`, and around another functional one."""
    at = Recorder()
    early, late, middle, head = (at(keras.layers.Dense(WIDTH), i) for i in (0, 1, 2, 3))
    first = keras.Sequential(
        [keras.Input((WIDTH,)), early, keras.layers.ReLU(), late], name="first"
    )
    inside = keras.Input((WIDTH,))
    second = keras.Model(inside, middle(inside), name="second")
    inputs = keras.Input((WIDTH,))
    return keras.Model(inputs, head(keras.ops.relu(second(first(inputs)))), name="net"), at


def of_stacked_layers():
    """A recurrent layer holds its cell."""
    at = Recorder()
    layers = [
        keras.Input((3,), dtype="int32"),
        at(keras.layers.Embedding(10, WIDTH), 0),
        at(
            keras.layers.Bidirectional(
                keras.layers.SimpleRNN(2, return_sequences=True, **RECURRENT)
            ),
            1,
        ),
        at(keras.layers.Bidirectional(keras.layers.SimpleRNN(2, **RECURRENT)), 2),
        at(keras.layers.Dense(2), 3),
    ]
    return keras.Sequential(layers), at


def tied():
    """One table for the first layer and the last, and a block that is used twice."""
    at, inputs = Recorder(), keras.Input((3,), dtype="int32")
    table = at(keras.layers.Embedding(10, WIDTH, name="tokens"), 0)
    first, second = at(Block(name="block_0"), 1), at(Block(name="block_1"), 2)
    x = first(second(first(table(inputs))))
    x = at(keras.layers.LayerNormalization(name="final_norm"), 3)(x)
    return keras.Model(inputs, x @ keras.ops.transpose(table.embeddings)), at


MODELS = {
    f.__name__: f
    for f in (
        functional,
        of_automatic_names,
        nested,
        subclassed,
        resnet,
        sequential,
        chain,
        of_stacked_layers,
        tied,
    )
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name):
    model, at = MODELS[name]()
    depths = at.depths()
    assert depths.keys() == {v.path for v in model.weights}
    return model, depths


def powers(depths, decay):
    """decay^(L + 1 − depth), multiplied out."""
    factors = {}
    for path, depth in depths.items():
        factors[path] = 1.0
        for _ in range(depth, max(depths.values())):
            factors[path] *= decay
    return factors


def is_vector(variable):
    return variable.path.endswith("bias") or len(variable.shape) < 2


# --- layer-wise rates and decays ---


@every_model
def test_rates_and_decays(name):
    model, depths = made(name)
    factors = powers(depths, 0.75)
    multipliers = layerwise_lr_multipliers(model, 0.75)
    assert dict(multipliers) == pytest.approx(factors)
    decays = layerwise_weight_decays(model, 0.02, 0.75)
    assert dict(decays) == pytest.approx({path: 0.02 * f for path, f in factors.items()})
    # Frozen layers have their depth, and do not change that of others.
    for layer in model.layers[:3]:
        layer.trainable = False
    assert layerwise_lr_multipliers(model, 0.75) == multipliers
    model.trainable = False
    assert layerwise_lr_multipliers(model, 0.75) == multipliers


def test_the_number_of_beit():
    """BEiT-base has 12 blocks: what the help says of its embeddings."""
    model, _ = functional([f"block_{i}" for i in range(12)])
    multipliers = layerwise_lr_multipliers(model, 0.75)
    assert multipliers["tokens/embeddings"] == pytest.approx(0.75**13)
    assert round(1 / multipliers["tokens/embeddings"]) == 42
    assert multipliers["block_11/dense/kernel"] == 0.75
    assert multipliers["final_norm/gamma"] == multipliers["head/kernel"] == 1
    for function in NAMES[:2]:
        text = " ".join(getattr(keras_decoupled, function).__doc__.split())
        assert re.search(
            r"12 blocks and `decay=0.75` an embedding .{,12} decayed 42 times as hard", text
        )


def test_a_decay_of_1_changes_nothing():
    assert set(layerwise_lr_multipliers(functional()[0], 1).values()) == {1.0}


def test_layers_as_given():
    """Strings and layers, a model too; a variable of none of them has 1."""
    model, _ = nested()
    block = model.get_layer("backbone").get_layer("layer_2")
    found = layerwise_lr_multipliers(model, 0.5, layers=["tokens", "layer_1/", block, "head"])
    assert found["tokens/embeddings"] == 0.125
    assert {x for path, x in found.items() if "layer_1" in path} == {0.25}
    assert {x for path, x in found.items() if "layer_2" in path} == {0.5}
    assert {x for path, x in found.items() if "final_norm" in path or "head" in path} == {1.0}
    found = layerwise_weight_decays(
        model, 0.1, 0.5, (model.get_layer("backbone"), "final_norm", "head")
    )
    assert {x for path, x in found.items() if "layer" in path or "tokens" in path} == {0.025}
    assert found["final_norm/gamma"] == 0.05
    assert found["head/kernel"] == 0.1
    assert layerwise_weight_decays(model, 0.1, 0.5, ["tokens", "layer_1"])["head/bias"] == 0.1


def test_layers_that_share_variables():
    """The first use of a variable says its depth."""
    model, _ = tied()
    table, block = model.get_layer("tokens"), model.get_layer("block_0")
    found = layerwise_lr_multipliers(model, 0.5, layers=[table, block, "block_1", block, table])
    assert found["tokens/embeddings"] == 0.0625
    assert found["block_0/dense/kernel"] == 0.125
    assert found["block_1/dense/kernel"] == 0.25
    assert found["final_norm/gamma"] == 1


def test_variables_of_one_path():
    """The later ones are "path#2", as in the optimizer's keys; frozen ones are the last."""

    def tower(name):
        inputs = keras.Input((WIDTH,))
        x = Block(name="block_1")(Block(name="block_0")(inputs))
        return keras.Model(inputs, x, name=name)

    inputs, towers = keras.Input((WIDTH,)), [tower("left"), tower("right")]
    both = [tower(inputs) for tower in towers]
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(both[0] * both[1]))
    towers[0].trainable = False
    found = layerwise_lr_multipliers(model, 0.5)
    for path, factor in (("block_0/dense/kernel", 0.25), ("block_1/dense/kernel", 0.5)):
        assert found[path] == found[f"{path}#2"] == factor
    assert len(found) == len(model.weights)
    optimizer = AdamW(weight_decay=0, lr_multipliers=found)
    for trainable in (False, True):
        towers[0].trainable = trainable
        optimizer.build(model.trainable_variables)
        trained = {v.path for v in model.trainable_variables if "head" not in v.path}
        assert {path for path in optimizer.lr_multipliers if "#" not in path} == trained
    assert "block_0/dense/kernel#2" in optimizer.lr_multipliers


# --- no decay ---


@every_model
def test_no_decay_is_decay_vectors(name):
    """The optimizer's own argument leaves the same variables alone."""
    model, _ = made(name)
    model.layers[1].trainable = False
    rules = no_decay(model)
    assert set(rules.values()) == {0}
    assert set(rules) == {v.path for v in model.weights if is_vector(v)}
    model.trainable = True
    by_rules, by_argument = (
        [row["l2"] for row in AdamW(weight_decay=0.1, **arguments).explain(model).rows]
        for arguments in ({"weight_decays": rules}, {"decay_vectors": False})
    )
    assert by_rules == by_argument


def test_no_decay_of_embeddings():
    model, _ = subclassed()
    tables = {"net/embedding/embeddings", "net/embedding_1/embeddings"}
    assert no_decay(model, embeddings=True).keys() - no_decay(model).keys() == tables
    assert not tables & no_decay(model).keys()


# --- the dict ---


@functools.cache
def small():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="head")], name="net")


@functools.cache
def another():
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="other")], name="net_2")


def test_rules_put_together_know_both_models():
    one, other = no_decay(small()), layerwise_lr_multipliers(another(), 0.5)
    for united in (one | other, other | one):
        assert set(united.paths) == {*one.paths, *other.paths}
        assert united == {**one, **other}
    assert list(one | other) == [*one, *other]


@pytest.mark.parametrize("plain_first", [True, False])
def test_rules_beside_a_plain_dict(plain_first):
    rules = no_decay(small())
    key = next(iter(rules))
    plain = {key: 0.5, "head": 0.25}
    united = plain | rules if plain_first else rules | plain
    assert united.paths == rules.paths
    assert united[key] == (0 if plain_first else 0.5)
    assert united["head"] == 0.25
    assert key in rules
    assert rules[key] == 0
    assert plain == {key: 0.5, "head": 0.25}


def test_rules_changed_in_place():
    rules = no_decay(small())
    other = layerwise_weight_decays(another(), 0.1, 0.5)
    paths = rules.paths
    rules |= other
    assert rules.paths == (*paths, *other.paths)
    rules |= {"head": 0.5}
    assert rules["head"] == 0.5
    with pytest.raises(TypeError):
        rules | [("head", 0.5)]


@pytest.mark.parametrize(
    "copied", [dict.copy, copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))]
)
def test_copies(copied):
    rules = no_decay(small())
    again = type(rules).copy(rules) if copied is dict.copy else copied(rules)
    assert again == rules
    assert again.paths == rules.paths
    assert type(again) is type(rules)


def test_the_paths_are_those_of_all_weights():
    model, _ = functional()
    model.get_layer("tokens").trainable = False
    for rules in (
        no_decay(model),
        layerwise_lr_multipliers(model, 0.5),
        layerwise_weight_decays(model, 0.1, 0.5),
    ):
        assert sorted(rules.paths) == sorted(v.path for v in model.weights)
        assert rules.paths[-1] == "tokens/embeddings"  # the frozen ones stand last


# --- in an optimizer ---


def test_an_update():
    """θ ← θ − λ_v·θ − α·m_v·g, with the depth of each variable."""
    model, depths = made("functional")
    variables, alpha, l2 = model.trainable_variables, 0.5, 0.25
    decays = layerwise_weight_decays(model, l2, 0.75) | no_decay(model)
    multipliers = layerwise_lr_multipliers(model, 0.75)
    optimizer = SGDW(alpha, weight_decays=decays, lr_multipliers=multipliers)
    before = [numpy(v) for v in variables]
    optimizer.apply(tensors([np.ones(v.shape) for v in variables]), variables)
    factors = powers(depths, 0.75)
    for v, old in zip(variables, before, strict=True):
        decayed = old * (1 - (0 if is_vector(v) else l2 * factors[v.path]))
        np.testing.assert_allclose(numpy(v), decayed - alpha * factors[v.path], atol=1e-6)


def rules_of(model):
    return {
        "weight_decay": 0.01,
        "weight_decays": no_decay(model),
        "lr_multipliers": layerwise_lr_multipliers(model, 0.5),
    }


def compiled(frozen):
    """A backbone in a model. Its layers hold no others: Keras thaws those of a frozen one at a load."""
    at, inputs = Recorder(), keras.Input((3,), dtype="int32")
    x = embedded(inputs, at)
    for i in (1, 2):
        x = at(keras.layers.Dense(WIDTH, "relu", name=f"block_{i}_dense"), i)(x)
        x = at(keras.layers.LayerNormalization(name=f"block_{i}_norm"), i)(x)
    backbone = keras.Model(inputs, x, name="backbone")
    backbone.trainable = not frozen
    outer = keras.Input((3,), dtype="int32")
    model = keras.Model(outer, tail(backbone(outer), at, 3), name="net")
    model.compile(AdamW(1e-3, **rules_of(model)), loss="mse")
    return model, at.depths()


def check_table(model, depths):
    """Every variable that is trained has its multiplier and its decay; a load may have shortened paths."""
    trained, factors = model.trainable_variables, powers(depths, 0.5)
    factor = {
        v.path: next(f for path, f in factors.items() if f"/{path}".endswith(f"/{v.path}"))
        for v in trained
    }
    multipliers = {path: f for path, f in factor.items() if f != 1}
    assert model.optimizer.lr_multipliers == multipliers
    decayed = {v.path: (0.0, 0.01) for v in trained if not is_vector(v)}
    assert model.optimizer.weight_decays == decayed


def test_a_frozen_backbone_is_unfrozen():
    """Rules that hit frozen variables alone wait."""
    model, depths = compiled(frozen=True)
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer.lr_multipliers == {}
    assert model.optimizer.weight_decays == {"head/kernel": (0.0, 0.01)}
    model.get_layer("backbone").trainable = True
    model.optimizer.build(model.trainable_variables)
    check_table(model, depths)


def test_a_frozen_backbone_is_unfrozen_after_a_load(tmp_path):
    model, depths = compiled(frozen=True)
    model.train_on_batch(X, Y)
    model.save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras")
    model.get_layer("backbone").trainable = True
    model.compile(model.optimizer, loss="mse")
    model.optimizer.build(model.trainable_variables)
    check_table(model, depths)
    model.train_on_batch(X, Y)


def test_rules_that_hit_frozen_layers_alone():
    """Without the model's paths that is a mistake in a key."""
    model, _ = nested()
    model.get_layer("backbone").trainable = False
    rules = {p: 0.5 for p in layerwise_lr_multipliers(model, 0.5) if "layer" in p}
    with pytest.raises(ValueError, match="lr_multipliers"):
        AdamW(weight_decay=0, lr_multipliers=rules).build(model.trainable_variables)
    known = no_decay(model) | rules
    AdamW(weight_decay=0, lr_multipliers=known).build(model.trainable_variables)


# --- errors ---


def branched():
    inputs = keras.Input((WIDTH,))
    a, b = (keras.layers.Dense(WIDTH, name=name)(inputs) for name in "ab")
    return keras.Model(inputs, keras.layers.Dense(2, name="c")(a + b), name="net")


def of_two_outputs():
    inputs = keras.Input((WIDTH,))
    x = keras.layers.Dense(WIDTH, name="trunk")(inputs)
    return keras.Model(inputs, [keras.layers.Dense(2, name=n)(x) for n in "ab"], name="net")


class TwoLayers(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.a, self.b = keras.layers.Dense(2), keras.layers.Dense(2)

    def call(self, x):
        return self.b(self.a(x))


def of_two_layers():
    model = TwoLayers()
    model(np.ones((1, 2), "float32"))
    return model


def chain_of_a_branched_model():
    return keras.Sequential([branched(), keras.layers.Dense(2)], name="net")


@pytest.mark.parametrize(
    "make", [branched, of_two_outputs, of_two_layers, chain_of_a_branched_model]
)
def test_no_blocks_to_find(make):
    model = make()
    with pytest.raises(ValueError, match=r"`layers` must be given .*'net'.*layers=\["):
        layerwise_lr_multipliers(model, 0.5)
    first = next(v.path for v in model.weights).split("/")[-2]
    assert 0.5 in layerwise_lr_multipliers(model, 0.5, [f"{first}/", model]).values()


def test_several_kinds_of_blocks():
    model, _ = functional(["left_0", "left_1", "right_0", "right_1"])
    with pytest.raises(
        ValueError, match=r"`layers` must be given .*'right_0', 'left_0'|'left_0', 'r"
    ):
        layerwise_weight_decays(model, 0.1, 0.5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", [None, "net", keras.layers.Dense(2), [keras.Sequential()]])
def test_what_is_no_model(name, model):
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Model\. Received: .*Give the"):
        call(name, model)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.Sequential([keras.layers.Dense(2)]),
        lambda: Subclassed(),
        lambda: keras.Sequential([keras.Input((2,)), keras.layers.ReLU()]),
        lambda: keras.Sequential(),
    ],
)
def test_a_model_without_weights(name, make):
    with pytest.raises(ValueError, match=r"`model` must be built.*Received: .*build\(input_shape"):
        call(name, make())


def call(name, model, **arguments):
    needed = {"decay": 0.5, "weight_decay": 0.1}
    if name != "layerwise_weight_decays":
        del needed["weight_decay"]
    if name == "no_decay":
        needed = {}
    return getattr(keras_decoupled, name)(model, **needed | arguments)


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay": 0}, ValueError, r"`decay` must be in \(0, 1\]. Received: decay=0\..*start"),
        ({"decay": 1.01}, ValueError, r"`decay` must be in \(0, 1\]. Received: decay=1\.01"),
        ({"decay": -0.5}, ValueError, r"`decay`"),
        ({"decay": float("nan")}, ValueError, r"`decay`.*Received: decay=nan"),
        ({"decay": "0.5"}, TypeError, r"`decay`.*Received: decay='0.5'"),
        ({"decay": True}, TypeError, r"`decay`"),
        ({"layers": []}, ValueError, r"`layers` must name at least one.*Received.*layers=\["),
        ({"layers": "head"}, TypeError, r"`layers` must be a list.*'head'.*layers=\["),
        ({"layers": {"head": 1}}, TypeError, r"`layers` must be a list"),
        ({"layers": ["heda"]}, ValueError, r"`layers`.*'heda'.*'net/head/kernel'"),
        ({"layers": [3]}, TypeError, r"`layers`.*3"),
        ({"layers": [""]}, ValueError, r"`layers`"),
        ({"layers": ["head", Block()]}, ValueError, r"`layers\[1\]` must be.*without weights"),
    ],
)
def test_wrong_arguments(name, arguments, error, message):
    with pytest.raises(error, match=message):
        call(name, small(), **arguments)


def test_a_layer_of_another_model():
    other = keras.layers.Dense(2, name="head")
    other.build((None, 2))
    with pytest.raises(ValueError, match=r"`layers\[0\]`.*'head', none of whose.*model\.layers"):
        layerwise_lr_multipliers(small(), 0.5, [other])


@pytest.mark.parametrize(
    ("weight_decay", "error"), [(-0.1, ValueError), (float("inf"), ValueError), (None, TypeError)]
)
def test_a_wrong_weight_decay(weight_decay, error):
    with pytest.raises(error, match=r"`weight_decay` must be.*Received: weight_decay="):
        layerwise_weight_decays(small(), weight_decay, 0.5)


def test_a_wrong_choice_of_embeddings():
    with pytest.raises(TypeError, match=r"`embeddings` must be True or False.*Received"):
        no_decay(small(), embeddings="tokens")


def test_rules_of_another_model_are_refused():
    """None of their keys would hit anything, and all would be taken for frozen layers."""
    one, other = (
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name=name)], name=name)
        for name in ("one", "other")
    )
    for rules in (
        {"weight_decays": no_decay(one)},
        {"lr_multipliers": layerwise_lr_multipliers(one, 0.5)},
    ):
        with pytest.raises(ValueError, match=r"must be made from the model.*Received: .*Make them"):
            AdamW(weight_decay=0.1, **rules).build(other.trainable_variables)
        AdamW(weight_decay=0.1, **rules).build(one.trainable_variables)
