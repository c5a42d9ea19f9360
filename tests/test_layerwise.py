"""Rules as plain dicts: `no_decay`, and learning rates and decays that fall from layer to layer."""

import copy
import pickle
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_decoupled
from cases import numpy
from keras_decoupled import (
    SGDW,
    AdamW,
    layerwise_lr_multipliers,
    layerwise_weight_decays,
    no_decay,
)
from keras_decoupled.paths.blocks import depths, is_embedding
from training import tensors

WIDTH = 4
RECURRENT = {"recurrent_initializer": "zeros"}  # JAX takes seconds to compile Keras' default
X = np.arange(24, dtype="int32").reshape(8, 3) % 10
Y = np.linspace(-1, 1, 16).astype("float32").reshape(8, 2)

# --- the depths of paths, as networks have them in Keras and keras-hub ---


def transformer(block, first=0, length=3, inside="attention/query/kernel attention/output_1/bias"):
    """A network whose blocks are called `block` + number."""
    blocks = (
        " ".join([f"{i + 1}", *(f"{block}{i + first}/{name}" for name in inside.split())])
        for i in range(length)
    )
    return " ".join(["0 embedding/embeddings", *blocks, f"{length + 1} head"])


# Depths, each before the variables that have it: whole paths, or layers that have a kernel.
NETWORKS = {
    "BERT": transformer("transformer_layer_"),
    "inside an encoder": "0 patch/class_token patch/projection/kernel "
    + transformer("vit_encoder/transformer_block_", first=1)
    + " vit_encoder/ln/gamma predictions",
    "twelve": transformer("encoder/layers_", length=12),
    "inside a model of a number": transformer("net_3/block_"),
    "ALBERT's two numbers": transformer("group_0_inner_layer_"),
    "DeBERTa's": transformer("disentangled_attention_encoder_layer_"),
    "from 5 on": transformer("block_", first=5),
    "a block's own variable": transformer("block_", inside="scale dense/kernel"),
    "no number in the first": "0 embedding/embeddings 1 transformer_block/dense/kernel "
    "2 transformer_block_1/dense_1/kernel 3 transformer_block_2/dense_2/kernel 4 dense_3",
    "stages": "0 patch_embedding/norm/gamma 1 stage_0/blocks_0/mlp/kernel "
    "2 stage_0/blocks_1/mlp/kernel 3 stage_0/downsample/reduction/kernel "
    "3 stage_1/blocks_0/mlp/kernel 4 stage_1/downsample/reduction/kernel "
    "4 stage_2/blocks_0/mlp/kernel 5 stage_2/blocks_1/mlp/kernel 6 norm/gamma",
    "stages without blocks": "0 stem 1 stage_0/conv/kernel 2 stage_1/conv/kernel 3 head",
    "ResNet": "0 conv1_conv conv1_bn 1 conv2_block1_1_conv conv2_block1_0_conv "
    "2 conv2_block2_1_conv conv2_block2_2_bn 3 conv3_block1_0_conv conv3_block1_1_conv "
    "4 conv3_block2_1_conv 5 post_bn predictions",
    "EfficientNet": "0 stem_conv 1 block1a_dwconv block1a_se_reduce 2 block2a_expand_conv "
    "3 block2b_expand_conv block2b_project_bn 4 top_conv",
    "ConvNeXt": "0 tiny_stem/tiny_stem_conv/kernel 1 tiny_stage_0_block_0_depthwise_conv "
    "1 tiny_stage_0_block_0_pointwise_conv_1 2 tiny_stage_0_block_1_depthwise_conv "
    "3 tiny_downsampling_block_0/tiny_downsampling_conv_0/kernel "
    "3 tiny_stage_1_block_0_depthwise_conv "
    "4 tiny_downsampling_block_1/tiny_downsampling_conv_1/kernel "
    "4 tiny_stage_2_block_0_depthwise_conv 5 tiny_head_layernorm tiny_head_dense",
    "MobileNetV2": "0 Conv1 expanded_conv_depthwise_BN 1 block_1_expand block_1_expand_BN "
    "2 block_2_expand 3 block_10_expand 4 Conv_1 predictions",
    "VGG": "1 block1_conv1 block1_conv2 2 block2_conv1 3 fc1 predictions",
    "DenseNet": "0 conv1_conv 1 stack1_block1_1_conv 2 stack1_block2_1_conv 3 transition1_conv "
    "3 stack2_block1_1_conv 4 bn",
    "an embedding that is defined late": "1 block_0/dense/kernel 2 block_1/dense/kernel 3 head "
    "0 position_embedding/embeddings patches/cls_token",
    "an output layer in the embedding": "0 token_embedding/embeddings "
    "3 token_embedding/reverse_embeddings 1 layer_0/dense/kernel 2 layer_1/dense/kernel",
    "a block between two parts of another": "1 block_0/a/kernel 2 block_1/a/kernel "
    "1 block_0/b/kernel 3 norm/gamma",
}
WITHOUT_BLOCKS = {
    "nothing": "",
    "one layer": "dense/kernel",
    "numbered layers that hold no layers": "dense/kernel dense_1/kernel dense_2/kernel",
    "a variable without a layer": "w w_1",
    "one block": "embedding/embeddings block_0/a/kernel block_0/b/kernel head/kernel",
    "attention": "attention_0/query/kernel dense/kernel attention_1/query/kernel",
    "Sequential": "sequential/dense/kernel sequential_1/dense/kernel",
    "heads": "trunk/kernel head_0/dense/kernel head_1/dense/kernel",
    "different layers": "encoder/dense/kernel decoder/dense/kernel",
}
EMBEDDINGS = """lookup/embeddings lookup/embeddings#2 embedding/lora_embeddings_a cls_token
    patches/class_token encoder/position_embeddings position_embedding/variable_3 pos_embed
    query_tokens attn/relative_position_bias_table xlnet/mask_emb"""
NO_EMBEDDINGS = """vit_patching_and_embedding/patch_embedding/kernel patch_embedding/bias w
    embeddings/patch_embeddings/projection/kernel embeddings_layer_norm/gamma token_mixing/kernel
    token_embedding/reverse_embeddings dense/kernel"""


def parsed(text):
    """{word: the number before it}"""
    found, depth = {}, None
    for word in text.split():
        if word.isdigit():
            depth = int(word)
        else:
            found[word] = depth
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_depths(name):
    words = parsed(NETWORKS[name])
    expected = {word if "/" in word else f"{word}/kernel": depth for word, depth in words.items()}
    found, count = depths(list(expected))
    pairs = zip(expected, found, strict=True)
    assert [(path, depth) for path, depth in pairs if depth != expected[path]] == []
    assert count == max(expected.values()) - 1


@pytest.mark.parametrize("name", WITHOUT_BLOCKS)
def test_no_blocks(name):
    assert depths(WITHOUT_BLOCKS[name].split())[1] == 0


def test_embeddings():
    paths = [*EMBEDDINGS.split(), *NO_EMBEDDINGS.split()]
    assert list(filter(is_embedding, paths)) == EMBEDDINGS.split()


# --- models, each made together with the depth of its layers ---


@keras.saving.register_keras_serializable("test_layerwise")
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
    parts = [
        layers.Conv1D(WIDTH, 2),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
        layers.SimpleRNN(WIDTH, **RECURRENT),
        layers.Dense(WIDTH, name="dense_a"),
        layers.Dense(2, name="dense_b"),
    ]
    return keras.Sequential([keras.Input((8, 3)), *parts], name="net")


def stacked():
    """A recurrent layer holds its cell."""
    one, two = (layers.SimpleRNN(2, return_sequences=more, **RECURRENT) for more in (True, False))
    recurrent = layers.Bidirectional(one), layers.Bidirectional(two)
    return keras.Sequential(
        [token_input(), layers.Embedding(10, WIDTH), *recurrent, layers.Dense(2)]
    )


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
    sequential: "0 conv1d 1 batch_normalization 2 simple_rnn 3 dense_a 4 dense_b",
    stacked: "0 embedding 1 bidirectional 2 bidirectional_1 3 dense",
    chain: "0 dense 1 dense_1 2 dense_2 3 dense_3",
    tied: "0 tokens 1 block_0 2 block_1 3 final_norm",
}
every_model = pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)


def powers(model, text, decay):
    """decay^(L + 1 − depth) of each variable, multiplied out."""
    depth_of = parsed(text)
    last = max(depth_of.values())
    depths = {
        v.path: next(depth for layer, depth in depth_of.items() if layer in v.path.split("/"))
        for v in model.weights
    }
    return {path: np.prod([decay] * (last - depth)) for path, depth in depths.items()}


def is_vector(variable):
    return variable.path.endswith("bias") or len(variable.shape) < 2


def factors_of(found, part):
    return {factor for path, factor in found.items() if part in path}


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


@pytest.mark.parametrize("function", [layerwise_lr_multipliers, layerwise_weight_decays])
def test_the_number_of_beit(function):
    """BEiT-base has 12 blocks: what the help says of its embeddings."""
    model = functional([f"block_{i}" for i in range(12)])
    multipliers = layerwise_lr_multipliers(model, 0.75)
    assert multipliers["tokens/embeddings"] == pytest.approx(0.75**13)
    assert round(1 / multipliers["tokens/embeddings"]) == 42
    assert multipliers["block_11/dense/kernel"] == 0.75
    words = r"12 blocks and `decay=0.75` an embedding .{,12} decayed 42 times as hard"
    assert re.search(words, " ".join(function.__doc__.split()))


def test_layers_as_given():
    """Strings and layers, a model too; a variable of none of them has 1."""
    model = nested()
    backbone = model.get_layer("backbone")
    given = ["tokens", "layer_1/", backbone.get_layer("layer_2"), "head"]
    found = layerwise_lr_multipliers(model, 0.5, layers=given)
    assert factors_of(found, "tokens") == {0.125}
    assert factors_of(found, "layer_1") == {0.25}
    assert factors_of(found, "layer_2") == {0.5}
    assert found["final_norm/gamma"] == found["head/kernel"] == 1
    found = layerwise_weight_decays(model, 0.1, 0.5, (backbone, "final_norm", "head"))
    assert factors_of(found, "layer_2/dense") == factors_of(found, "tokens") == {0.025}
    assert (found["final_norm/gamma"], found["head/kernel"]) == (0.05, 0.1)
    assert layerwise_weight_decays(model, 0.1, 0.5, ["tokens", "layer_1"])["head/bias"] == 0.1


def test_layers_that_share_variables():
    """The first use of a variable says its depth."""
    model = tied()
    table, block = model.get_layer("tokens"), model.get_layer("block_0")
    found = layerwise_lr_multipliers(model, 0.5, layers=[table, block, "block_1", block, table])
    assert found["tokens/embeddings"] == 0.0625
    assert found["block_0/dense/kernel"] == 0.125
    assert found["block_1/dense/kernel"] == 0.25
    assert found["final_norm/gamma"] == 1


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


def test_rules_put_together_know_both_models():
    one, other = no_decay(small()), layerwise_lr_multipliers(small("other"), 0.5)
    for a, b in ((one, other), (other, one)):
        assert (a | b).paths == (*a.paths, *b.paths)
        assert list((a | b).items()) == [*a.items(), *b.items()]
    united = one | other
    one |= other
    assert (one, one.paths) == (united, united.paths)
    one |= {"head": 0.5}
    assert one["head"] == 0.5
    assert one.paths == united.paths
    with pytest.raises(TypeError):
        one | [("head", 0.5)]


@pytest.mark.parametrize("plain_first", [True, False])
def test_rules_beside_a_plain_dict(plain_first):
    rules = no_decay(small())
    (key,) = rules
    plain = {key: 0.5, "head": 0.25}
    united = plain | rules if plain_first else rules | plain
    assert united.paths == rules.paths
    assert united == {key: 0 if plain_first else 0.5, "head": 0.25}
    assert (rules, plain) == ({key: 0}, {key: 0.5, "head": 0.25})


@pytest.mark.parametrize(
    "copied",
    [lambda d: d.copy(), copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))],
)
def test_copies(copied):
    rules = no_decay(small())
    again = copied(rules)
    assert again == rules
    assert again.paths == rules.paths
    assert type(again) is type(rules)


def test_the_paths_are_those_of_all_weights():
    model = functional()
    model.get_layer("tokens").trainable = False
    for name, arguments in FUNCTIONS.items():
        rules = getattr(keras_decoupled, name)(model, **arguments)
        assert sorted(rules.paths) == sorted(v.path for v in model.weights)
        assert rules.paths[-1] == "tokens/embeddings"  # the frozen ones stand last


# --- in an optimizer ---


def test_an_update():
    """θ ← θ − λ_v·θ − α·m_v·g, with the depth of each variable."""
    model = functional()
    variables, alpha, l2 = model.trainable_variables, 0.5, 0.25
    decays = layerwise_weight_decays(model, l2, 0.75) | no_decay(model)
    multipliers = layerwise_lr_multipliers(model, 0.75)
    optimizer = SGDW(alpha, weight_decays=decays, lr_multipliers=multipliers)
    before = [numpy(v) for v in variables]
    optimizer.apply(tensors([np.ones(v.shape) for v in variables]), variables)
    factors = powers(model, MODELS[functional], 0.75)
    for v, old in zip(variables, before, strict=True):
        decayed = old * (1 - (0 if is_vector(v) else l2 * factors[v.path]))
        np.testing.assert_allclose(numpy(v), decayed - alpha * factors[v.path], atol=1e-6)


@pytest.mark.parametrize("loaded", [False, True])
def test_rules_that_hit_frozen_variables_alone_wait(loaded, tmp_path):
    # Its layers hold no others: Keras thaws those of a frozen one at a load.
    inputs, outer = token_input(), token_input()
    x = layers.Embedding(10, WIDTH, name="tokens")(inputs)
    for i in (1, 2):
        x = layers.Dense(WIDTH, "relu", name=f"block_{i}_dense")(x)
        x = layers.LayerNormalization(name=f"block_{i}_norm")(x)
    backbone = keras.Model(inputs, x, name="backbone")
    backbone.trainable = False
    model = keras.Model(outer, tail(backbone(outer)), name="net")
    multipliers = layerwise_lr_multipliers(model, 0.5)
    rules = {"weight_decays": no_decay(model), "lr_multipliers": multipliers}
    model.compile(AdamW(1e-3, weight_decay=0.01, **rules), loss="mse")
    model.train_on_batch(X, Y)
    assert model.optimizer.lr_multipliers == {}
    assert model.optimizer.weight_decays == {"head/kernel": (0.0, 0.01)}
    if loaded:  # with shorter paths
        model.save(tmp_path / "m.keras")
        model = keras.models.load_model(tmp_path / "m.keras")
    model.get_layer("backbone").trainable = True
    model.compile(model.optimizer, loss="mse")
    model.optimizer.build(model.trainable_variables)
    depths = "0 tokens 1 block_1_dense block_1_norm 2 block_2_dense block_2_norm 3 final_norm head"
    factors = powers(model, depths, 0.5)
    assert model.optimizer.lr_multipliers == {path: f for path, f in factors.items() if f != 1}
    decayed = {v.path: (0.0, 0.01) for v in model.weights if not is_vector(v)}
    assert model.optimizer.weight_decays == decayed
    model.train_on_batch(X, Y)


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
    ("argument", "make"),
    [("weight_decays", no_decay), ("lr_multipliers", lambda m: layerwise_lr_multipliers(m, 0.5))],
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


FUNCTIONS = {
    "layerwise_lr_multipliers": {"decay": 0.5},
    "layerwise_weight_decays": {"decay": 0.5, "weight_decay": 0.1},
    "no_decay": {},
}


def call(name, model, **arguments):
    return getattr(keras_decoupled, name)(model, **FUNCTIONS[name] | arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_models(name):
    for model in (None, "net", [keras.Sequential()], layers.Dense(2)):
        words = r"`model` must be a keras\.Model\. Received: .*Give the"
        with pytest.raises(TypeError, match=words):
            call(name, model)
    for model in (keras.Sequential(), keras.Sequential([layers.Dense(2)]), Subclassed()):
        with pytest.raises(ValueError, match=r"`model` must be built.*Received: .*\.build\(input"):
            call(name, model)
    with pytest.raises(ValueError, match=r"`model` must have weights\. Received: .*none"):
        call(name, keras.Sequential([keras.Input((2,)), layers.ReLU()]))


@pytest.mark.parametrize("name", list(FUNCTIONS)[:2])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"decay": 0}, ValueError, r"`decay` must be in \(0, 1\]. Received: decay=0\..*start"),
        ({"decay": 1.01}, ValueError, r"`decay` must be in \(0, 1\]. Received: decay=1\.01"),
        ({"decay": -0.5}, ValueError, r"`decay`"),
        ({"decay": "0.5"}, TypeError, r"`decay`.*Received: decay='0.5'"),
        ({"decay": True}, TypeError, r"`decay`"),
        ({"layers": []}, ValueError, r"`layers` must name at least one.*Received.*layers=\["),
        ({"layers": "head"}, TypeError, r"`layers` must be a list.*'head'.*layers=\["),
        ({"layers": {"head": 1}}, TypeError, r"`layers` must be a list"),
        ({"layers": ["heda"]}, ValueError, r"`layers`.*'heda'.*'net_head/head/kernel'"),
        ({"layers": [3]}, TypeError, r"`layers\[0\]` must be a string or a layer.*=3 of type"),
        ({"layers": [""]}, ValueError, r"`layers`"),
        ({"layers": ["head", Block()]}, ValueError, r"`layers\[1\]` must be.*without weights"),
        ({"layers": [small()]}, ValueError, r"`layers\[0\]`.*'net_head', none of whose.*\.layers"),
    ],
)
def test_wrong_arguments(name, arguments, error, message):
    with pytest.raises(error, match=message):
        call(name, small(), **arguments)


def test_wrong_arguments_of_one_function():
    for wrong, error in ((-0.1, ValueError), (float("inf"), ValueError), (None, TypeError)):
        with pytest.raises(error, match=r"`weight_decay` must be.*Received: weight_decay="):
            layerwise_weight_decays(small(), wrong, 0.5)
    with pytest.raises(TypeError, match=r"`embeddings` must be True or False.*Received"):
        no_decay(small(), embeddings="tokens")
