"""Rules as plain dicts: `no_decay`, and learning rates and decays that fall from layer to layer."""

import copy
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers

from keras_decoupled import AdamW, layerwise_lr_multipliers, layerwise_weight_decays, no_decay

WIDTH = 4
X = np.arange(24, dtype="int32").reshape(8, 3) % 10

# --- models, each made together with the depth of its layers ---


class Block(layers.Layer):
    """x + dense(norm(x))."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.norm = layers.LayerNormalization(name="norm")
        self.dense = layers.Dense(WIDTH, name="dense")

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x):
        return x + self.dense(self.norm(x))


def token_input():
    return keras.Input((3,), dtype="int32")


def tail(x):
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="final_norm")(x))
    return layers.Dense(2, name="head")(x)


def functional(names=("block_0", "block_1", "block_2")):
    inputs = token_input()
    x = layers.Embedding(10, WIDTH, name="tokens")(inputs)
    for name in names:
        x = Block(name=name)(x)
    return keras.Model(inputs, tail(x), name="net")


def automatic():
    return functional([None] * 3)


def nested():
    """A backbone inside a model: its own name is in no path."""
    inputs, outer = token_input(), token_input()
    x = layers.Embedding(10, WIDTH, name="tokens")(inputs)
    backbone = keras.Model(inputs, Block(name="layer_2")(Block(name="layer_1")(x)), name="backbone")
    return keras.Model(outer, tail(backbone(outer)), name="net")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.tokens = layers.Embedding(10, WIDTH)
        self.blocks = [Block(name=f"block_{i}") for i in range(3)]
        self.norm = layers.LayerNormalization()
        self.head = layers.Dense(2)
        self.positions = layers.Embedding(3, WIDTH)  # defined last, used first

    def call(self, x):
        x = self.tokens(x) + self.positions(keras.ops.arange(3))
        for block in self.blocks:
            x = block(x)
        return self.head(keras.ops.mean(self.norm(x), axis=1))


def subclassed():
    model = Subclassed()
    model(X)
    return model


def sequential():
    """A recurrent layer holds its cell."""
    cell = layers.SimpleRNN(2, recurrent_initializer="zeros")  # JAX takes seconds for the default
    parts = [
        layers.Conv1D(WIDTH, 2),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.Bidirectional(cell),
        layers.Dense(WIDTH, name="dense_a"),
        layers.Dense(2, name="dense_b"),
    ]
    return keras.Sequential([keras.Input((8, 3)), *parts], name="net")


def chain():
    """A functional model around a `Sequential`, and around another functional one."""
    early, late, middle, head = [layers.Dense(WIDTH) for _ in range(4)]
    first = keras.Sequential([keras.Input((WIDTH,)), early, layers.ReLU(), late], name="first")
    inside, inputs = keras.Input((WIDTH,)), keras.Input((WIDTH,))
    second = keras.Model(inside, middle(inside), name="second")
    return keras.Model(inputs, head(keras.ops.relu(second(first(inputs)))), name="net")


def tied():
    """One table for the first layer and the last, and a block that is used twice."""
    inputs, table = token_input(), layers.Embedding(10, WIDTH, name="tokens")
    first, second = Block(name="block_0"), Block(name="block_1")
    x = layers.LayerNormalization(name="final_norm")(first(second(first(table(inputs)))))
    return keras.Model(inputs, x @ keras.ops.transpose(table.embeddings))


# Depths, each before the layers that have it.
MODELS = {
    functional: "0 tokens 1 block_0 2 block_1 3 block_2 4 final_norm head",
    automatic: "0 tokens 1 block 2 block_1 3 block_2 4 final_norm head",
    nested: "0 tokens 1 layer_1 2 layer_2 3 final_norm head",
    subclassed: "0 embedding embedding_1 1 block_0 2 block_1 3 block_2 4 layer_normalization dense",
    sequential: "0 conv1d 1 batch_normalization 2 bidirectional 3 dense_a 4 dense_b",
    chain: "0 dense 1 dense_1 2 dense_2 3 dense_3",
    tied: "0 tokens 1 block_0 2 block_1 3 final_norm",
}
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def depths_in(text):
    """{word: the number before it}"""
    found, depth = {}, None
    for word in text.split():
        if word.isdigit():
            depth = int(word)
        else:
            found[word] = depth
    return found


def powers(model, text, decay):
    """decay^(L + 1 − depth) of each variable, multiplied out."""
    depth_of = depths_in(text)
    last = max(depth_of.values())
    depths = {
        v.path: next(depth for layer, depth in depth_of.items() if layer in v.path.split("/"))
        for v in model.weights
    }
    return {path: np.prod([decay] * (last - depth)) for path, depth in depths.items()}


def is_vector(variable):
    return variable.path.endswith("bias") or len(variable.shape) < 2


# --- layer-wise rates and decays ---


@every_model
def test_rates_and_decays(make):
    model = make()
    factors = powers(model, MODELS[make], 0.75)
    multipliers = layerwise_lr_multipliers(model, 0.75)
    assert dict(multipliers) == pytest.approx(factors)
    decays = layerwise_weight_decays(model, 0.02, 0.75)
    assert dict(decays) == pytest.approx({path: 0.02 * f for path, f in factors.items()})
    assert set(layerwise_lr_multipliers(model, 1).values()) == {1.0}
    # Frozen layers have their depth, and do not change that of others.
    for frozen in (*model.layers[:3], model):
        frozen.trainable = False
        assert layerwise_lr_multipliers(model, 0.75) == multipliers


def test_the_number_of_beit():
    """BEiT-base has 12 blocks: what the help says of its embeddings."""
    multipliers = layerwise_lr_multipliers(functional([f"block_{i}" for i in range(12)]), 0.75)
    assert multipliers["tokens/embeddings"] == pytest.approx(0.75**13)
    assert round(1 / multipliers["tokens/embeddings"]) == 42
    words = r"12 blocks and `decay=0.75` an embedding .{,12} decayed 42 times as hard"
    for function in (layerwise_lr_multipliers, layerwise_weight_decays):
        assert re.search(words, " ".join(function.__doc__.split()))


def test_layers_as_given():
    """Strings, layers and models. The first use of a variable counts, and the rest is like the last."""
    net, shared = nested(), tied()
    backbone = net.get_layer("backbone")
    layer = backbone.get_layer("layer_2")
    table, block = shared.get_layer("tokens"), shared.get_layer("block_0")
    for model, given, text in (
        (net, ["tokens", "layer_1/", layer, "head"], MODELS[nested]),
        (net, (backbone, "final_norm", "head"), "0 tokens layer_1 layer_2 1 final_norm 2 head"),
        (net, ["tokens", "layer_1"], "0 tokens 1 layer_1 layer_2 final_norm head"),
        (shared, [table, block, "block_1", table], "0 tokens 1 block_0 2 block_1 3 final_norm"),
    ):
        expected = powers(model, text, 0.5)
        assert layerwise_lr_multipliers(model, 0.5, layers=given) == expected
        decays = {path: 0.25 * factor for path, factor in expected.items()}
        assert layerwise_weight_decays(model, 0.25, 0.5, given) == decays


def test_a_chain_with_a_tied_layer():
    class Transposed(layers.Layer):
        def __init__(self, other):
            super().__init__()
            self.other = other

        def call(self, x):
            return x @ keras.ops.transpose(self.other.kernel)

    first = layers.Dense(WIDTH, name="first")
    parts = [first, layers.Dense(WIDTH, name="middle"), Transposed(first)]
    model = keras.Sequential([keras.Input((WIDTH,)), *parts], name="net")
    assert layerwise_lr_multipliers(model, 0.5)["net/first/kernel"] == 0.25


def test_variables_of_one_path():
    """The later ones are "path#2", as in the optimizer's keys; frozen ones are the last."""

    def tower(name):
        inputs = keras.Input((WIDTH,))
        x = Block(name="block_1")(Block(name="block_0")(inputs))
        return keras.Model(inputs, x, name=name)

    inputs, left, right = keras.Input((WIDTH,)), tower("left"), tower("right")
    model = keras.Model(inputs, layers.Dense(2, name="head")(left(inputs) * right(inputs)))
    left.trainable = False
    found = layerwise_lr_multipliers(model, 0.5)
    for path, factor in (("block_0/dense/kernel", 0.25), ("block_1/dense/kernel", 0.5)):
        assert found[path] == found[f"{path}#2"] == factor
    assert len(found) == len(model.weights)
    optimizer = AdamW(weight_decay=0, lr_multipliers=found)
    for trainable in (False, True):
        left.trainable = trainable
        optimizer.build(model.trainable_variables)
        trained = {v.path for v in model.trainable_variables if "head" not in v.path}
        assert {path for path in optimizer.lr_multipliers if "#" not in path} == trained
    assert "block_0/dense/kernel#2" in optimizer.lr_multipliers


# --- no decay ---


@every_model
def test_no_decay_is_decay_vectors(make):
    """The optimizer's own argument leaves the same variables alone."""
    model = make()
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
    model = subclassed()
    tables = {"net/embedding/embeddings", "net/embedding_1/embeddings"}
    assert no_decay(model, embeddings=True).keys() - no_decay(model).keys() == tables
    assert not tables & no_decay(model).keys()


# --- the dict ---


def small(name="head"):
    return keras.Sequential([keras.Input((2,)), layers.Dense(2, name=name)], name=f"net_{name}")


def test_rules_put_together():
    """The later rules win, and the result knows the variables of both models."""
    one, other = no_decay(small()), layerwise_lr_multipliers(small("other"), 0.5)
    (key,) = one
    plain = {key: 0.5, "head": 0.25}
    for a, b in ((one, other), (other, one), (one, plain), (plain, one)):
        paths = [*getattr(a, "paths", ()), *getattr(b, "paths", ())]
        united = a | b
        assert united == {**a, **b}
        assert list(united.paths) == paths
        if a is not plain:
            a = a.copy()
            a |= b
            assert (a, list(a.paths)) == (united, paths)
    assert (one, plain) == ({key: 0}, {key: 0.5, "head": 0.25})
    with pytest.raises(TypeError):
        one | [("head", 0.5)]


def test_copies():
    rules = no_decay(small())
    for again in (rules.copy(), copy.deepcopy(rules), pickle.loads(pickle.dumps(rules))):
        assert again == rules
        assert again.paths == rules.paths
        assert type(again) is type(rules)


FUNCTIONS = [
    no_decay,
    lambda model: layerwise_lr_multipliers(model, 0.5),
    lambda model: layerwise_weight_decays(model, 0.1, 0.5),
]


def test_the_paths_are_those_of_all_weights():
    model = functional()
    model.get_layer("tokens").trainable = False
    for function in FUNCTIONS:
        rules = function(model)
        assert sorted(rules.paths) == sorted(v.path for v in model.weights)
        assert rules.paths[-1] == "tokens/embeddings"  # the frozen ones stand last


# --- in an optimizer ---


def test_rules_that_hit_frozen_variables_alone_wait(tmp_path):
    """Also in a file, and under the shorter paths of a loaded model."""
    # Its layers hold no others: Keras thaws those of a frozen one at a load.
    inputs, outer = token_input(), token_input()
    x = layers.Embedding(10, WIDTH, name="tokens")(inputs)
    for i in (1, 2):
        x = layers.Dense(WIDTH, name=f"block_{i}_dense")(x)
        x = layers.LayerNormalization(name=f"block_{i}_norm")(x)
    backbone = keras.Model(inputs, x, name="backbone")
    backbone.trainable = False
    model = keras.Model(outer, tail(backbone(outer)), name="net")
    multipliers = layerwise_lr_multipliers(model, 0.5)
    rules = {"weight_decays": no_decay(model), "lr_multipliers": multipliers}
    model.compile(AdamW(1e-3, weight_decay=0.01, **rules), loss="mse")
    model.optimizer.build(model.trainable_variables)
    assert model.optimizer.lr_multipliers == {}
    assert model.optimizer.weight_decays == {"head/kernel": (0.0, 0.01)}
    model.save(tmp_path / "m.keras")
    depths = "0 tokens 1 block_1_dense block_1_norm 2 block_2_dense block_2_norm 3 final_norm head"
    for one in (model, keras.models.load_model(tmp_path / "m.keras")):
        one.get_layer("backbone").trainable = True
        one.optimizer.build(one.trainable_variables)
        factors = {path: f for path, f in powers(one, depths, 0.5).items() if f != 1}
        assert one.optimizer.lr_multipliers == factors
        decayed = {v.path: (0.0, 0.01) for v in one.weights if not is_vector(v)}
        assert one.optimizer.weight_decays == decayed


def test_plain_rules_that_hit_frozen_variables_alone():
    """Without the model's paths that is a mistake in a key."""
    model = nested()
    model.get_layer("backbone").trainable = False
    rules = {p: 0.5 for p in layerwise_lr_multipliers(model, 0.5) if "layer" in p}
    with pytest.raises(ValueError, match="lr_multipliers"):
        AdamW(weight_decay=0, lr_multipliers=rules).build(model.trainable_variables)
    known = no_decay(model) | rules
    AdamW(weight_decay=0, lr_multipliers=known).build(model.trainable_variables)


@pytest.mark.parametrize(
    ("argument", "make"), [("weight_decays", no_decay), ("lr_multipliers", FUNCTIONS[1])]
)
def test_rules_of_another_model_are_refused(argument, make):
    """None of their keys would hit anything, and all would be taken for frozen layers."""
    model, rules = small(), {argument: make(small("other"))}
    with pytest.raises(ValueError, match=r"must be made from the model.*Received: .*Make them"):
        AdamW(weight_decay=0.1, **rules).build(model.trainable_variables)
    AdamW(weight_decay=0.1, **{argument: make(model)}).build(model.trainable_variables)


# --- errors ---


def branched():
    inputs = keras.Input((WIDTH,))
    a, b = (layers.Dense(WIDTH, name=name)(inputs) for name in "ab")
    return keras.Model(inputs, layers.Dense(2, name="c")(a + b), name="net")


def of_two_outputs():
    inputs = keras.Input((WIDTH,))
    x = layers.Dense(WIDTH, name="trunk")(inputs)
    return keras.Model(inputs, [layers.Dense(2, name=n)(x) for n in "ab"], name="net")


def chain_of_a_branched_model():
    return keras.Sequential([branched(), layers.Dense(2)], name="net")


class TwoLayers(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.a, self.b = layers.Dense(2), layers.Dense(2)
        self(np.ones((1, 2), "float32"))

    def call(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize("make", [branched, of_two_outputs, TwoLayers, chain_of_a_branched_model])
def test_no_blocks_to_find(make):
    model = make()
    with pytest.raises(ValueError, match=r"`layers` must be given .*'net'.*layers=\["):
        layerwise_lr_multipliers(model, 0.5)
    first = model.weights[0].path.split("/")[-2]
    assert 0.5 in layerwise_lr_multipliers(model, 0.5, [f"{first}/", model]).values()


def test_several_kinds_of_blocks():
    model = functional(["left_0", "left_1", "right_0", "right_1"])
    words = r"`layers` must be given .*'right_0', 'left_0'.*layers=\["
    with pytest.raises(ValueError, match=words):
        layerwise_weight_decays(model, 0.1, 0.5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_wrong_models(function):
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Model\. Received: .*Give the"):
        function([keras.Sequential()])
    for model in (keras.Sequential([layers.Dense(2)]), Subclassed()):
        with pytest.raises(ValueError, match=r"`model` must be built.*Received: .*\.build\(input"):
            function(model)
    with pytest.raises(ValueError, match=r"`model` must have weights\. Received: .*none"):
        function(keras.Sequential([keras.Input((2,)), layers.ReLU()]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weight_decay": -0.1}, ValueError, r"`weight_decay` must be.*Received: weight_decay="),
        ({"decay": 0}, ValueError, r"`decay` must be in \(0, 1\]. Received: decay=0\..*try 0.75"),
        ({"decay": 1.01}, ValueError, r"`decay` must be in \(0, 1\]. Received: decay=1\.01"),
        ({"layers": []}, ValueError, r"`layers` must name at least one.*Received.*layers=\["),
        ({"layers": "head"}, TypeError, r"`layers` must be a list.*'head'.*layers=\["),
        ({"layers": ["heda"]}, ValueError, r"`layers`.*'heda'.*'net_head/head/kernel'"),
        ({"layers": [3]}, TypeError, r"`layers\[0\]` must be a string or a layer.*=3 of type"),
        ({"layers": ["head", Block()]}, ValueError, r"`layers\[1\]` must be.*without weights"),
        ({"layers": [small()]}, ValueError, r"`layers\[0\]`.*'net_head', none of whose.*\.layers"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        layerwise_weight_decays(small(), **{"weight_decay": 0.1, "decay": 0.5} | arguments)
