"""Layers and models as keys of `weight_decays` and `lr_multipliers`: what no string can name."""

import keras
import numpy as np
import pytest
from keras import layers

from cases import make_variable
from keras_decoupled import SGDW, AdamW, Decay
from small import again

ARGUMENTS = pytest.mark.parametrize("argument", ["weight_decays", "lr_multipliers"])


def backbone():
    """A functional model: inside another, its name is in no path."""
    x = keras.Input((3,))
    y = layers.Dense(3, name="stem")(x)
    y = layers.LayerNormalization(name="norm")(y)
    return keras.Model(x, y, name="backbone")


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


def net(inner=backbone):
    x = keras.Input((3,))
    inner = inner()
    model = keras.Model(x, layers.Dense(2, name="head")(inner(x)), name="net")
    return model, inner


def paths(*owners):
    return [v.path for owner in owners for v in owner.trainable_variables]


def make(argument, rules, **more):
    """The uniform decay is 0.5: `values` leaves it out."""
    return SGDW(0.1, **({"weight_decay": 0.5} | more), **{argument: rules})


def values(optimizer, argument):
    """{path: number} of what differs from that decay and from the multiplier 1."""
    if argument == "lr_multipliers":
        return optimizer.lr_multipliers
    return {path: l2 for path, (_, l2) in optimizer.weight_decays.items() if l2 != 0.5}


@ARGUMENTS
@pytest.mark.parametrize("inner", [backbone, sequential, Subclassed])
def test_a_layer_or_a_model_means_its_variables(argument, inner):
    model, inner = net(inner)
    first, second = inner.get_layer("stem"), inner.get_layer("norm")
    for owners in ([inner], [first], [second, model.get_layer("head")], [model]):
        optimizer = make(argument, dict.fromkeys(owners, 0.25))
        optimizer.build(model.trainable_variables)
        assert values(optimizer, argument) == dict.fromkeys(paths(*owners), 0.25)


@ARGUMENTS
def test_the_name_of_a_nested_functional_model_is_in_no_path(argument):
    model, _ = net()
    with pytest.raises(ValueError, match=r"'backbone'.*model\.get_layer\('backbone'\)"):
        make(argument, {"backbone": 0.25}).build(model.trainable_variables)


def test_a_layer_means_itself_and_not_its_name():
    """Two layers of one name, and variables of one path: a string would hit both."""
    ours = [layers.Dense(2, name="twin") for _ in range(2)]
    for layer in ours:
        layer.build((None, 2))
    variables = [v for layer in ours for v in layer.trainable_variables]
    optimizer = make("weight_decays", {ours[1]: 0.25, "twin/bias": 0})
    optimizer.build(variables)
    assert optimizer.weight_decays == {
        "twin/kernel": (0.0, 0.5),
        "twin/kernel#2": (0.0, 0.25),
        "twin/bias#2": (0.0, 0.25),
    }


@ARGUMENTS
def test_a_layers_path_is_no_part_of_another_path(argument):
    """Also where the layer's path comes from a file, and its variable is gone."""

    class Owner(keras.Layer):
        def __init__(self, variable):
            super().__init__()
            self.variable, self.built = variable, True

    def make_variables(*paths):
        return [make_variable(path, np.ones(len(paths))) for path in paths]

    ours = make_variables("dense", "dense/kernel", "dense_1/kernel")
    layer = Owner(ours[0])
    optimizer = make(argument, {layer: 0.25})
    optimizer.build(ours)
    for one in (optimizer, again(optimizer), again(make(argument, {layer: 0.25}))):
        one.build(ours)
        assert values(one, argument) == {"dense": 0.25}
    loaded = again(optimizer)
    loaded.build(make_variables("x/dense/kernel", "y/adense"))
    assert values(loaded, argument) == {}


def test_a_layer_that_two_models_share():
    x, shared = keras.Input((3,)), layers.Dense(3, name="shared")
    one, two = keras.Model(x, shared(x)), keras.Model(x, layers.Dense(1, name="top")(shared(x)))
    optimizer = make("weight_decays", {one: 0.25})
    optimizer.build(two.trainable_variables)
    assert values(optimizer, "weight_decays") == dict.fromkeys(paths(shared), 0.25)


def test_every_form_of_a_decay():
    model, inner = net()
    stem, norm, head = inner.get_layer("stem"), inner.get_layer("norm"), model.get_layer("head")
    kind = Decay(0.25, cautious=True)
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 9)
    given = {stem: (0.125, 0.25), norm: kind, head: schedule}
    optimizer = AdamW(0.1, weight_decays=given)
    assert optimizer.weight_decays == given  # before build as given
    for one in (optimizer, again(optimizer)):
        one.build(model.trainable_variables)
        rows = one.weight_decays
        assert [rows[p] for p in paths(stem)] == [(0.125, 0.25)] * 2
        assert [rows[p] for p in paths(norm)] == [kind] * 2
        for path in paths(head):
            assert rows[path][1].get_config() == schedule.get_config()


@ARGUMENTS
def test_a_whole_path_beats_a_layer_and_among_the_rest_the_last_wins(argument):
    model, inner = net()
    stem, kernel, bias = inner.get_layer("stem"), "stem/kernel", "stem/bias"
    assert paths(stem) == [kernel, bias]
    both = {"norm/gamma": 0.1, "norm/beta": 0.1, kernel: 0.2, bias: 0.2}
    cases = [
        ({kernel: 0.1, stem: 0.2}, {kernel: 0.1, bias: 0.2}),
        ({stem: 0.2, kernel: 0.1}, {kernel: 0.1, bias: 0.2}),
        ({"stem": 0.1, stem: 0.2}, {kernel: 0.2, bias: 0.2}),
        ({stem: 0.2, "stem": 0.1}, {kernel: 0.1, bias: 0.1}),
        ({stem: 0.2, "bias": 0.1, kernel: 0.3}, {kernel: 0.3, bias: 0.1, "head/bias": 0.1}),
        ({inner: 0.1, stem: 0.2}, both),
        ({stem: 0.2, inner: 0.1}, dict.fromkeys(both, 0.1)),
        ({model: 0.1, stem: 0.2}, both | {"head/kernel": 0.1, "head/bias": 0.1}),
    ]
    for rules, expected in cases:
        optimizer = make(argument, rules)
        for one in (optimizer, again(optimizer)):  # the config keeps the order
            one.build(model.trainable_variables)
            assert values(one, argument) == expected, rules


def test_a_layer_of_one_variable_is_no_whole_path():
    """In a config it is one path; a string of that path would beat what was given after the layer."""
    layer = layers.Dense(2, use_bias=False, name="one")
    layer.build((None, 2))
    optimizer = make("weight_decays", {layer: 0.25, "kernel": 0.125})
    for one in (optimizer, again(optimizer), again(again(optimizer))):
        one.build(layer.trainable_variables)
        assert values(one, "weight_decays") == {layer.kernel.path: 0.125}


# --- frozen layers and files ---


@ARGUMENTS
@pytest.mark.parametrize(
    "way", ["as it is", "model", "copied before", "copied after", "copied twice"]
)
def test_a_frozen_layer_has_it_once_it_is_unfrozen(argument, way):
    model, inner = net()
    inner.trainable = False
    more = {"model": model} if way == "model" else {}
    optimizer = make(argument, {inner: 0.25, "head": 0.125}, **more)
    if way in ("copied before", "copied twice"):
        optimizer = again(optimizer)
    optimizer.build(model.trainable_variables)
    head = dict.fromkeys(paths(model.get_layer("head")), 0.125)
    assert values(optimizer, argument) == head
    if way in ("copied after", "copied twice"):
        optimizer = again(optimizer)
        optimizer.build(model.trainable_variables)
        assert values(optimizer, argument) == head
    inner.trainable = True
    for one in (again(optimizer), optimizer):
        one.build(model.trainable_variables)
        assert values(one, argument) == head | dict.fromkeys(paths(inner), 0.25)


@ARGUMENTS
def test_a_layer_of_which_a_part_is_frozen(argument):
    model, inner = net()
    inner.get_layer("norm").trainable = False
    optimizer = make(argument, {inner: 0.25})
    for hits in (2, 4):
        optimizer.build(model.trainable_variables)
        assert values(optimizer, argument) == dict.fromkeys(paths(inner), 0.25)
        assert len(paths(inner)) == hits
        inner.get_layer("norm").trainable = True


@ARGUMENTS
def test_a_model_file_keeps_it(argument, tmp_path):
    model, inner = net()
    inner.trainable = False
    model.compile(make(argument, {inner: 0.25}), loss="mse")
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert values(loaded.optimizer, argument) == {}
    loaded.get_layer("backbone").trainable = True
    loaded.compile(loaded.optimizer, loss="mse")
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.fit(x, y, verbose=0)
    expected = dict.fromkeys(paths(loaded.get_layer("backbone")), 0.25)
    assert values(loaded.optimizer, argument) == expected


@ARGUMENTS
@pytest.mark.parametrize("built", [False, True])
def test_a_config_has_the_paths_and_is_a_fixed_point(argument, built):
    model, inner = net()
    optimizer = make(argument, {inner: 0.25, "head": 0.125, model.get_layer("head"): 0.375})
    if built:
        optimizer.build(model.trainable_variables)
    config = optimizer.get_config()
    assert all(isinstance(key, str) for key in config[argument])
    assert any(all(path in key for path in paths(inner)) for key in config[argument])
    copied = again(optimizer)
    assert copied.get_config() == config
    for one in (copied, optimizer):
        one.build(model.trainable_variables)
    assert values(copied, argument) == values(optimizer, argument)
    assert copied.get_config()[argument] == config[argument]


# --- what is refused ---


@ARGUMENTS
def test_a_layer_of_another_model(argument):
    (model, _), (other, inner) = net(), net()
    refused = rf"`{argument}`.*Received: .*{{}}.*\. Take a"
    for key in (other, inner):
        optimizer = make(argument, {key: 0.25})
        with pytest.raises(ValueError, match=refused.format(key.name)):
            optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=refused.format("backbone")):
        make(argument, {inner: 0.25}, model=model)


@ARGUMENTS
def test_a_layer_that_has_no_weights(argument):
    for key in (layers.Dense(2), keras.Sequential([layers.Dense(2)]), layers.Flatten()):
        with pytest.raises(ValueError, match=rf"`{argument}`.*built.*Received: <.*Build the model"):
            make(argument, {key: 0.25})


@ARGUMENTS
def test_a_bad_number_under_a_layer_names_the_layer(argument):
    model, _ = net()
    with pytest.raises(ValueError, match=rf"{argument}\['head'\].*Received"):
        make(argument, {model.get_layer("head"): -1})
