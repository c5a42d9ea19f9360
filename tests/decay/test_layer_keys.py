"""Layers and models as keys of `weight_decays` and `lr_multipliers`: what no string can name.

The rules of a test are given as decays and as multipliers: both dicts must hit the same variables.
"""

import keras
import numpy as np
import pytest
from keras import layers

from keras_decoupled import SGDW
from small import again, ones


def backbone():
    """A functional model: inside another, its name is in no path."""
    x = keras.Input((3,))
    y = layers.Dense(3, name="stem")(x)
    y = layers.LayerNormalization(name="norm")(y)
    return keras.Model(x, y, name="backbone")


def net():
    x = keras.Input((3,))
    inner = backbone()
    model = keras.Model(x, layers.Dense(2, name="head")(inner(x)), name="net")
    return model, inner


def hits(number, *owners):
    """{path: number} of the variables of these layers."""
    return {v.path: number for owner in owners for v in owner.trainable_variables}


def make(rules, **more):
    """The uniform decay is 0.5: `values` leaves it out."""
    return SGDW(0.1, weight_decay=0.5, weight_decays=rules, lr_multipliers=rules, **more)


def values(optimizer):
    """{path: number} of what differs from that decay and from the multiplier 1."""
    found = {path: l2 for path, (_, l2) in optimizer.weight_decays.items() if l2 != 0.5}
    assert optimizer.lr_multipliers == found
    return found


def built(optimizer, model):
    """What `values` finds after a build on the model."""
    optimizer.build(model.trainable_variables)
    return values(optimizer)


def test_a_layer_or_a_model_means_its_variables():
    model, inner = net()
    stem, norm = inner.get_layer("stem"), inner.get_layer("norm")
    for owners in ([inner], [stem], [norm, model.get_layer("head")], [model]):
        assert built(make(dict.fromkeys(owners, 0.25)), model) == hits(0.25, *owners)


def test_a_layer_means_itself_and_not_its_name():
    """Two layers of one name, and variables of one path: a string would hit both."""
    ours = [layers.Dense(2, name="twin") for _ in range(2)]
    for layer in ours:
        layer.build((None, 2))
    optimizer = make({ours[1]: 0.25, "twin/bias": 0.125})
    optimizer.build([v for layer in ours for v in layer.trainable_variables])
    assert values(optimizer) == {"twin/bias": 0.125, "twin/kernel#2": 0.25, "twin/bias#2": 0.25}


def test_a_layers_path_is_no_part_of_another_path():
    """Also where the layer's path comes from a file, and its variable is gone."""

    class Owner(keras.Layer):
        def __init__(self, variable):
            super().__init__()
            self.variable, self.built = variable, True

    ours = ones("dense", "dense/kernel", "dense_1/kernel")
    optimizer = make({Owner(ours[0]): 0.25})
    before = again(optimizer)
    optimizer.build(ours)
    for one in (optimizer, again(optimizer), before):
        one.build(ours)
        assert values(one) == {"dense": 0.25}
    loaded = again(optimizer)
    loaded.build(ones("x/dense/kernel", "y/adense", shape=(3,)))
    assert values(loaded) == {}


def test_multipliers_have_the_precedence_of_decays():
    """A whole path first, then the last key. For decays that is in test_precedence.py."""
    model, inner = net()
    stem, kernel, bias = inner.get_layer("stem"), "stem/kernel", "stem/bias"
    for rules, expected in (
        ({kernel: 0.125, stem: 0.25}, {kernel: 0.125, bias: 0.25}),
        ({stem: 0.25, "stem": 0.125}, {kernel: 0.125, bias: 0.125}),
        ({inner: 0.125, stem: 0.25}, hits(0.125, inner) | hits(0.25, stem)),
        ({stem: 0.25, inner: 0.125}, hits(0.125, inner)),
    ):
        assert built(make(rules), model) == expected


def test_a_layer_of_one_variable_is_no_whole_path():
    """In a config it is one path; a string of that path would beat what was given after the layer."""
    layer = layers.Dense(2, use_bias=False, name="one")
    layer.build((None, 2))
    optimizer = make({layer: 0.25, "kernel": 0.125})
    for one in (optimizer, again(optimizer), again(again(optimizer))):
        assert built(one, layer) == hits(0.125, layer)


def test_a_layer_and_a_model_of_the_same_variables():
    """The place of the later one counts, and not that of the first."""
    layer = layers.Dense(2, name="one")
    model = keras.Sequential([keras.Input((2,)), layer])
    rules = {model: 0.25, "bias": 0.125, layer: 0.375}
    assert built(make(rules), model) == hits(0.375, layer)


# --- frozen layers and files ---


@pytest.mark.parametrize("frozen", ["backbone", "norm"])
@pytest.mark.parametrize("way", ["as it is", "model", "copied"])
def test_a_frozen_layer_has_it_once_it_is_unfrozen(way, frozen):
    """All of the key's layer is frozen, or a part of it."""
    model, inner = net()
    layer = inner if frozen == "backbone" else inner.get_layer(frozen)
    layer.trainable = False
    head = hits(0.125, model.get_layer("head"))
    optimizer = make({inner: 0.25, "head": 0.125}, **({"model": model} if way == "model" else {}))
    for _ in range(2):
        optimizer = again(optimizer) if way == "copied" else optimizer
        assert built(optimizer, model) == head | hits(0.25, inner)
    layer.trainable = True
    for one in (again(optimizer), optimizer):
        assert built(one, model) == head | hits(0.25, inner)
    assert len(values(optimizer)) == 6


def test_a_model_file_keeps_it(tmp_path):
    model, inner = net()
    inner.trainable = False
    model.compile(make({inner: 0.25}), loss="mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert values(loaded.optimizer) == {}
    loaded.get_layer("backbone").trainable = True
    loaded.compile(loaded.optimizer, loss="mse")
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.fit(np.ones((4, 3), "float32"), np.ones((4, 2), "float32"), verbose=0)
    assert values(loaded.optimizer) == hits(0.25, loaded.get_layer("backbone"))


@pytest.mark.parametrize("before", [False, True])
def test_a_config_has_the_paths_and_is_a_fixed_point(before):
    model, inner = net()
    rules = {inner: 0.25, "head": 0.125, model.get_layer("head"): 0.375}
    optimizer = make(rules)
    assert optimizer.weight_decays == optimizer.lr_multipliers == rules  # before build, as given
    if not before:
        optimizer.build(model.trainable_variables)
    config, copied = optimizer.get_config(), again(optimizer)
    for argument in ("weight_decays", "lr_multipliers"):
        assert all(isinstance(key, str) for key in config[argument])
        assert any(all(path in key for path in hits(0, inner)) for key in config[argument])
    assert copied.get_config() == config
    assert built(copied, model) == built(optimizer, model)
    assert copied.get_config()["weight_decays"] == config["weight_decays"]


# --- what is refused ---


@pytest.mark.parametrize("argument", ["weight_decays", "lr_multipliers"])
def test_layers_that_are_refused(argument):
    (model, _), (other, inner) = net(), net()
    not_ours = rf"`{argument}`.*Received: .*{{}}.*\. Take a"
    normalization = layers.BatchNormalization()  # its moving statistics are never trained
    normalization.build((None, 2))
    for key in (other, inner, normalization):
        with pytest.raises(ValueError, match=not_ours.format(key.name)):
            SGDW(**{argument: {key: 0.25}}).build(model.trainable_variables)
    with pytest.raises(ValueError, match=not_ours.format("backbone")):
        SGDW(model=model, **{argument: {inner: 0.25}})
    for key in (layers.Dense(2), keras.Sequential([layers.Dense(2)]), layers.Flatten()):
        with pytest.raises(ValueError, match=rf"`{argument}`.*built.*Received: <.*Build the model"):
            SGDW(**{argument: {key: 0.25}})
    with pytest.raises(ValueError, match=rf"{argument}\['head'\].*Received"):
        SGDW(**{argument: {model.get_layer("head"): -1}})
