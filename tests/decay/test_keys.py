"""Layers and models as keys of `weight_decays` and `lr_multipliers`: what no string can name."""

import json
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import make_variable, numpy
from keras_decoupled import SGDW, AdamW, Decay

ARGUMENTS = pytest.mark.parametrize("argument", ["weight_decays", "lr_multipliers"])


def backbone():
    """A functional model: inside another, its name is in no path."""
    x = keras.Input((3,))
    y = layers.Dense(3, name="stem")(x)
    y = layers.LayerNormalization(name="norm")(y)
    return keras.Model(x, y, name="backbone")


def net(inner=backbone):
    x = keras.Input((3,))
    inner = inner()
    return keras.Model(x, layers.Dense(2, name="head")(inner(x)), name="net")


def paths(*owners):
    return [v.path for owner in owners for v in owner.trainable_variables]


def make(argument, rules, **more):
    return SGDW(0.1, **({"weight_decay": 0.5} | more), **{argument: rules})


def found(optimizer, argument):
    """{path: number} of what differs from the uniform decay 0.5 and the multiplier 1."""
    if argument == "lr_multipliers":
        return optimizer.lr_multipliers
    return {path: l2 for path, (_, l2) in optimizer.weight_decays.items() if l2 != 0.5}


def copy(optimizer):
    return type(optimizer).from_config(json.loads(json.dumps(optimizer.get_config())))


# --- what a layer hits ---


@ARGUMENTS
def test_a_nested_functional_backbone(argument):
    model = net()
    inner = model.get_layer("backbone")
    with pytest.raises(ValueError, match=r"'backbone'.*model\.get_layer\('backbone'\)"):
        make(argument, {"backbone": 0.25}).build(model.trainable_variables)
    optimizer = make(argument, {inner: 0.25})
    optimizer.build(model.trainable_variables)
    assert found(optimizer, argument) == dict.fromkeys(paths(inner), 0.25)


def sequential():
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(3, name="stem"), layers.BatchNormalization(name="norm")],
        name="backbone",
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="backbone")
        self.stem, self.norm = layers.Dense(3, name="stem"), layers.LayerNormalization(name="norm")
        self.build((None, 3))

    def build(self, shape):
        self.stem.build(shape)
        self.norm.build(shape)
        self.built = True

    def call(self, x):
        return self.norm(self.stem(x))


@ARGUMENTS
@pytest.mark.parametrize("inner", [sequential, Subclassed])
def test_other_models_and_single_layers(argument, inner):
    model = net(inner)
    inner = model.get_layer("backbone")
    for owners in ([inner], [inner.layers[0]], [inner.layers[1], model.get_layer("head")], [model]):
        optimizer = make(argument, dict.fromkeys(owners, 0.25))
        optimizer.build(model.trainable_variables)
        assert found(optimizer, argument) == dict.fromkeys(paths(*owners), 0.25)


def test_a_layer_means_itself_and_not_its_name():
    """Two layers of one name, and variables of one path: a string would hit both."""
    ours = [layers.Dense(2, name="twin") for _ in range(2)]
    for layer in ours:
        layer.build((None, 2))
    variables = [v for layer in ours for v in layer.trainable_variables]
    optimizer = make("weight_decays", {ours[1]: 0.25, "twin/bias": 0})
    optimizer.build(variables)
    assert [row.decay.l2 for row in optimizer._table.rows] == [0.5, 0, 0.25, 0.25]


def test_a_layer_that_two_models_share():
    x, shared = keras.Input((3,)), layers.Dense(3, name="shared")
    one, two = keras.Model(x, shared(x)), keras.Model(x, layers.Dense(1, name="top")(shared(x)))
    optimizer = make("weight_decays", {one: 0.25})
    optimizer.build(two.trainable_variables)
    assert found(optimizer, "weight_decays") == dict.fromkeys(paths(shared), 0.25)


def test_every_form_of_a_decay():
    model = net()
    stem, norm = (model.get_layer("backbone").get_layer(n) for n in ("stem", "norm"))
    kind = Decay(0.25, cautious=True)
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 9)
    given = {stem: (0.125, 0.25), norm: kind, model.get_layer("head"): schedule}
    optimizer = AdamW(0.1, weight_decays=given)
    assert optimizer.weight_decays == given  # before build as given
    for one in (optimizer, copy(optimizer)):
        one.build(model.trainable_variables)
        rows = one.weight_decays
        assert [rows[p] for p in paths(stem)] == [(0.125, 0.25)] * 2
        assert [rows[p] for p in paths(norm)] == [kind] * 2
        for path in paths(model.get_layer("head")):
            assert rows[path][1].get_config() == schedule.get_config()


# --- order and rank ---


@ARGUMENTS
def test_an_exact_path_beats_a_layer_and_among_the_rest_the_last_wins(argument):
    model = net()
    inner = model.get_layer("backbone")
    stem, kernel, bias = inner.get_layer("stem"), "stem/kernel", "stem/bias"
    assert paths(stem) == [kernel, bias]
    cases = [
        ({kernel: 0.1, stem: 0.2}, {kernel: 0.1, bias: 0.2}),
        ({stem: 0.2, kernel: 0.1}, {kernel: 0.1, bias: 0.2}),
        ({"stem": 0.1, stem: 0.2}, {kernel: 0.2, bias: 0.2}),
        ({stem: 0.2, "stem": 0.1}, {kernel: 0.1, bias: 0.1}),
        ({stem: 0.2, "bias": 0.1, kernel: 0.3}, {kernel: 0.3, bias: 0.1, "head/bias": 0.1}),
        ({inner: 0.1, stem: 0.2}, {"norm/gamma": 0.1, "norm/beta": 0.1, kernel: 0.2, bias: 0.2}),
        ({stem: 0.2, inner: 0.1}, dict.fromkeys(paths(inner), 0.1)),
        (
            {model: 0.1, stem: 0.2},
            dict.fromkeys(paths(model), 0.1) | dict.fromkeys(paths(stem), 0.2),
        ),
    ]
    for rules, expected in cases:
        optimizer = make(argument, rules)
        for one in (optimizer, copy(optimizer)):  # the config keeps the order
            one.build(model.trainable_variables)
            assert found(one, argument) == expected, rules


def test_a_layer_beats_model_and_an_exclusion_beats_a_layer():
    x = keras.Input((3,))
    dense = partial(layers.Dense, kernel_regularizer=regularizers.L2(2.0**-10))
    model = keras.Model(x, dense(2, name="two")(dense(2, name="one")(x)), name="net")
    optimizer = SGDW(0.1, model=model, weight_decays={model.get_layer("one"): 0.25})
    optimizer.exclude_from_weight_decay(var_names=["one/bias"])
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays == {
        path: (0.0, l2)
        for path, l2 in zip(paths(model), [0.25, None, 2.0**-10], strict=False)
        if l2
    }


# --- frozen layers ---


@ARGUMENTS
@pytest.mark.parametrize("way", ["as it is", "copied before", "copied after", "copied twice"])
def test_a_frozen_layer_has_it_once_it_is_unfrozen(argument, way):
    model = net()
    inner = model.get_layer("backbone")
    inner.trainable = False
    optimizer = make(argument, {inner: 0.25, "head": 0.125})
    if way in ("copied before", "copied twice"):
        optimizer = copy(optimizer)
    optimizer.build(model.trainable_variables)
    head = dict.fromkeys(paths(model.get_layer("head")), 0.125)
    assert found(optimizer, argument) == head
    if way in ("copied after", "copied twice"):
        optimizer = copy(optimizer)
        optimizer.build(model.trainable_variables)
        assert found(optimizer, argument) == head
    inner.trainable = True
    optimizer.build(model.trainable_variables)
    assert found(optimizer, argument) == head | dict.fromkeys(paths(inner), 0.25)


@ARGUMENTS
def test_a_layer_of_which_a_part_is_frozen(argument):
    model = net()
    inner = model.get_layer("backbone")
    inner.get_layer("norm").trainable = False
    optimizer = make(argument, {inner: 0.25})
    optimizer.build(model.trainable_variables)
    assert found(optimizer, argument) == dict.fromkeys(paths(inner), 0.25)
    inner.get_layer("norm").trainable = True
    optimizer.build(model.trainable_variables)
    assert len(found(optimizer, argument)) == 4


@ARGUMENTS
def test_a_frozen_layer_beside_model(argument):
    model = net()
    inner = model.get_layer("backbone")
    inner.trainable = False
    optimizer = make(argument, {inner: 0.25}, model=model)
    optimizer.build(model.trainable_variables)
    assert found(optimizer, argument) == {}
    inner.trainable = True
    for one in (copy(optimizer), optimizer):
        one.build(model.trainable_variables)
        assert found(one, argument) == dict.fromkeys(paths(inner), 0.25)


@ARGUMENTS
def test_a_model_file_keeps_it(argument, tmp_path):
    model = net()
    inner = model.get_layer("backbone")
    inner.trainable = False
    model.compile(make(argument, {inner: 0.25}), loss="mse")
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert found(loaded.optimizer, argument) == {}
    loaded.get_layer("backbone").trainable = True
    loaded.compile(loaded.optimizer, loss="mse")
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.fit(x, y, verbose=0)
    expected = dict.fromkeys(paths(loaded.get_layer("backbone")), 0.25)
    assert found(loaded.optimizer, argument) == expected


# --- configs ---


@ARGUMENTS
@pytest.mark.parametrize("built", [False, True])
def test_a_config_has_the_paths_and_is_a_fixed_point(argument, built):
    model = net()
    inner = model.get_layer("backbone")
    optimizer = make(argument, {inner: 0.25, "head": 0.125, model.get_layer("head"): 0.375})
    if built:
        optimizer.build(model.trainable_variables)
    config = optimizer.get_config()
    assert all(isinstance(key, str) for key in config[argument])
    assert any(all(path in key for path in paths(inner)) for key in config[argument])
    again = copy(optimizer)
    assert again.get_config() == config
    again.build(model.trainable_variables)
    optimizer.build(model.trainable_variables)
    assert found(again, argument) == found(optimizer, argument)
    assert again.get_config()[argument] == config[argument]


def test_a_layer_of_one_variable_is_no_exact_path():
    """In a config it is one path; a string of that path would beat what was given after the layer."""
    layer = layers.Dense(2, use_bias=False, name="one")
    layer.build((None, 2))
    optimizer = make("weight_decays", {layer: 0.25, "kernel": 0.125})
    for one in (optimizer, copy(optimizer), copy(copy(optimizer))):
        one.build(layer.trainable_variables)
        assert found(one, "weight_decays") == {layer.kernel.path: 0.125}


# --- what is refused ---


@ARGUMENTS
def test_a_layer_of_another_model(argument):
    model, other = net(), net()
    for key in (other, other.get_layer("backbone")):
        optimizer = make(argument, {key: 0.25})
        with pytest.raises(ValueError, match=rf"`{argument}`.*Received: .*{key.name}.*\. Take a"):
            optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=rf"`{argument}`.*Received: .*backbone.*\. Take a"):
        make(argument, {other.get_layer("backbone"): 0.25}, model=model)


@ARGUMENTS
def test_a_layer_that_has_no_weights(argument):
    for key in (layers.Dense(2), keras.Sequential([layers.Dense(2)]), layers.Flatten()):
        with pytest.raises(ValueError, match=rf"`{argument}`.*built.*Received: <.*Build the model"):
            make(argument, {key: 0.25})


@ARGUMENTS
def test_what_is_neither_a_string_nor_a_layer(argument):
    variable = make_variable("w", np.ones(2))
    for key in (3, None, ("a", "b"), 0.5, variable.path.encode()):
        with pytest.raises(TypeError, match=rf"`{argument}`.*Received: .*variable\.path"):
            make(argument, {key: 0.25})


@ARGUMENTS
def test_a_bad_number_under_a_layer_names_the_layer(argument):
    model = net()
    with pytest.raises(ValueError, match=rf"{argument}\['head'\].*Received"):
        make(argument, {model.get_layer("head"): -1})


def test_the_numbers_act():
    model = net()
    inner = model.get_layer("backbone")
    ours = model.trainable_variables
    optimizer = SGDW(
        0.5, weight_decay=0.5, weight_decays={inner: 0.25}, lr_multipliers={inner: 0.5}
    )
    for v in ours:
        v.assign(np.ones(v.shape))
    optimizer.apply([keras.ops.ones(v.shape) for v in ours], ours)
    values = [float(numpy(v).ravel()[0]) for v in ours]
    assert values == [1 - 0.25 - 0.25] * 4 + [1 - 0.5 - 0.5] * 2
