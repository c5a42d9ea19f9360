"""`width_lr_multipliers`: which axes of each kernel are its inputs, and which models correspond."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_decoupled import AdamW, width_lr_multipliers

WIDTH = 8  # of the base model; the other is four times as wide


def built(*made, shape):
    return keras.Sequential([keras.Input(shape), *made], name="net")


def attention(width):
    inputs = keras.Input((5, width))
    x = layers.MultiHeadAttention(width // 4, 4, name="attention")(inputs, inputs)
    x = layers.GroupQueryAttention(4, width // 4, 2, name="grouped")(x, x)
    return keras.Model(inputs, x, name="net")


def tokens(width):
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(11, width, name="token_embedding")(inputs)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.LSTM(width, name="lstm")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="net")


def reversible(width):
    table = layers.ReversibleEmbedding(20, width, tie_weights=False, name="token_embedding")
    inputs = keras.Input((5,), dtype="int32")
    return keras.Model(inputs, table(table(inputs), reverse=True), name="net")


def depthwise(width):
    return built(layers.DepthwiseConv2D(3, name="conv"), shape=(9, 9, width))


def convolution(width):
    return built(layers.Conv2D(width, 3, name="conv"), shape=(9, 9, width))


def images(width):
    return built(
        layers.Conv2D(width, 3, name="conv"),
        layers.DepthwiseConv2D(3, name="deep"),
        layers.SeparableConv2D(width, 3, name="separable"),
        layers.BatchNormalization(name="norm"),
        layers.PReLU(name="prelu"),
        layers.Permute((3, 1, 2)),
        layers.LayerNormalization((1, 2, 3), name="of_all_axes"),
        layers.Permute((2, 3, 1)),
        layers.Conv2DTranspose(3, 2, name="up"),
        shape=(9, 9, 3),
    )


def experts(width):
    einsum = layers.EinsumDense("bec,ecd->bed", (6, 2 * width), bias_axes="ed", name="experts")
    return built(einsum, layers.Dense(2, name="head"), shape=(6, width))


# What is not named here has 1.
MODELS = {
    attention: {
        "attention/query/kernel": 1 / 4,
        "attention/key/kernel": 1 / 4,
        "attention/value/kernel": 1 / 4,
        "attention/attention_output/kernel": 1 / 4,
        "grouped/query/kernel": 1 / 4,
        "grouped/key/kernel": 1 / 4,
        "grouped/value/kernel": 1 / 4,
        "grouped/attention_output/kernel": 1 / 4,
    },
    reversible: {"token_embedding/reverse_embeddings": 1 / 4},
    tokens: {
        "lstm/lstm_cell/kernel": 1 / 4,
        "lstm/lstm_cell/recurrent_kernel": 1 / 4,
        "head/kernel": 1 / 4,
    },
    images: {"separable/pointwise_kernel": 1 / 4, "up/kernel": 1 / 4},
    experts: {"experts/kernel": 1 / 4, "head/kernel": 1 / 4},
}


@pytest.mark.parametrize("make", MODELS)
def test_fan_in_of_each_kind_of_kernel(make):
    model = make(4 * WIDTH)
    found = width_lr_multipliers(model, make(WIDTH))
    assert len(found) == len(model.weights)
    scaled = {path.removeprefix("net/"): m for path, m in found.items() if m != 1}
    assert scaled == MODELS[make]
    assert {path: 1 / m for path, m in found.items()} == width_lr_multipliers(make(WIDTH), model)


def test_rules_of_an_optimizer_and_steps():
    """Each weight of a hidden kernel moves a quarter as far, and its decay is the same."""
    model = tokens(4 * WIDTH)
    rules = width_lr_multipliers(model, tokens(WIDTH))
    optimizer = AdamW(0.01, weight_decay=1e-3, lr_multipliers=rules)
    rows = {row["path"]: row for row in optimizer.explain(model).rows}
    assert rows["head/kernel"]["multiplier"] == 0.25
    assert {row["l2"] for row in rows.values()} == {1e-3}
    optimizer = AdamW(0.01, weight_decay=0, lr_multipliers=rules)
    before = [np.array(v) for v in map(keras.ops.convert_to_numpy, model.trainable_variables)]
    grads = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    optimizer.apply(grads, model.trainable_variables)
    for v, old in zip(model.trainable_variables, before, strict=True):
        moved = old - keras.ops.convert_to_numpy(v)
        np.testing.assert_allclose(moved, 0.01 * rules.get(v.path, 1.0), rtol=1e-3)


def test_what_is_frozen_keeps_its_place():
    model = tokens(4 * WIDTH)
    wanted = width_lr_multipliers(model, tokens(WIDTH))
    model.get_layer("token_embedding").trainable = False
    assert width_lr_multipliers(model, tokens(WIDTH)) == wanted


def test_other_layers_are_told_from_each_other():
    """Their kernels have the same name and number of axes."""
    with pytest.raises(ValueError, match="in the place of net/conv/kernel"):
        width_lr_multipliers(convolution(4), depthwise(4))


@pytest.mark.parametrize(
    ("base", "error", "words"),
    [
        (lambda: layers.Dense(2), TypeError, "`base_model` must be a keras.Model"),
        (lambda: keras.Sequential([layers.Dense(2)]), ValueError, "`base_model` must be built"),
        (lambda: images(WIDTH), ValueError, "in the place of token_embedding/embeddings"),
        (lambda: built(layers.Embedding(11, WIDTH), shape=(5,)), ValueError, "1 variables for 8"),
    ],
)
def test_models_that_do_not_correspond_are_refused(base, error, words):
    with pytest.raises(error, match=words):
        width_lr_multipliers(tokens(4 * WIDTH), base())
