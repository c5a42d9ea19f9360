"""Whatever is given to a public function or constructor: it works, or the error says what is wrong with it.

Not asked: what is given to a stock class's own argument, where the error is Keras' own, and what no `for` takes in
place of the values of `fill_dict_in_order`, where it is Python's.
"""

import datetime
import fractions
import inspect
import math

import keras
import numpy as np
import pytest

import hostile
import keras_decoupled
from keras_decoupled import (
    SGDW,
    AdamW,
    CosineWarmRestarts,
    Decay,
    Lion,
    Muon,
    NadamW,
    WarmupStableDecay,
    callbacks,
    convert_weight_decay,
    decay_from_timescale,
    decouple,
    fill_dict_in_order,
    get_weight_decays,
    layerwise_lr_multipliers,
    layerwise_weight_decays,
    no_decay,
)
from keras_decoupled.core.arguments import KERAS_ARGUMENTS

# What is refused may be mentioned by a warning first: "decays no variable", a missing base rate.
pytestmark = [pytest.mark.reliability, pytest.mark.filterwarnings("ignore::UserWarning")]

ExponentialDecay = keras.optimizers.schedules.ExponentialDecay
WRONG = {
    repr(x): lambda x=x: x
    for x in (
        *(None, True, 0, -1, 1, 2.5, -0.5, math.nan, math.inf, -math.inf, 1e300, 1e-300, 2**31),
        *("", "x", "(", b"x", 1j, [], [1], [None], (), (1, 2), (1, 2, 3), {1}, ..., NotImplemented),
        *({}, {1: 2}, {"x": None}, {None: 1}, {"a/kernel": "x"}, {"a/kernel": [0.1]}),
        *({"a/kernel": math.nan}, range(3), datetime.date(2020, 1, 1), fractions.Fraction(1, 3)),
        *(np.float32(0.5), np.int64(3), np.array([1.0, 2.0]), np.array(0.1), np.zeros(0)),
        *(np.array([None, "x"], dtype=object), np.array("x"), np.array([True])),
    )
} | {
    "10**400": lambda: 10**400,
    "an object": object,
    "a class": lambda: object,
    "a function of none": lambda: lambda: 0.1,
    "a function of one": lambda: lambda x: x,
    "a function that returns text": lambda: lambda: "x",
    "a generator": lambda: (i for i in range(3)),
    "a tensor": lambda: keras.ops.ones((2,)),
    "a variable": lambda: keras.Variable(0.1),
    "a schedule": lambda: ExponentialDecay(0.1, 10, 0.9),
    "CosineWarmRestarts": lambda: CosineWarmRestarts(0.1, 10),
    "Decay": lambda: Decay(0.1),
    "an optimizer": keras.optimizers.SGD,
    "a layer": lambda: keras.layers.Dense(1),
}
MANY = ("not iterable", "0-d array")  # Python's own words


def a_model():
    inside = [keras.layers.Dense(2, name="a"), keras.layers.LayerNormalization(name="norm")]
    return keras.Sequential([keras.Input((4,)), *inside, keras.layers.Dense(1, name="head")])


def train(optimizer):
    variables = a_model().trainable_variables
    optimizer.build(variables)
    optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)
    return optimizer


def trained(cls):
    def call(**arguments):
        optimizer = train(cls(**{"learning_rate": 0.1, "weight_decay": 0.01} | arguments))
        optimizer.explain(a_model())
        return optimizer.get_config()

    return call


def schedule(cls, **arguments):
    def call(**changed):
        made = cls(**arguments | changed)
        return made(3), made.get_config()

    return call


def with_the_rest(function, **arguments):
    return lambda **changed: function(**arguments | changed)


def of_method(name):
    def call(**arguments):
        optimizer = AdamW(WarmupStableDecay(0.1, None, 5), weight_decay=0.1)
        return getattr(optimizer, name)(**arguments)

    return call


def of_attribute(name):
    def call(value):
        optimizer = AdamW(0.1, weight_decay=0.1)
        if name == "t_cur":
            optimizer = AdamW(CosineWarmRestarts(0.1, 10), weight_decay=0.1)
        setattr(train(optimizer), name, value)
        train(optimizer)

    return call


def own_arguments(function):
    """Those that are not the stock class's own."""
    names = set(inspect.signature(function).parameters) - {"self", "args", "kwargs"}
    if stock := getattr(function, "stock", None):
        theirs = inspect.signature(stock.__init__).parameters.keys()
        names -= theirs - KERAS_ARGUMENTS.keys() - {"learning_rate", "weight_decay"}
    return sorted(names)


MODEL = a_model()
RULES = {"model": MODEL, "weight_decay": 0.1, "decay": 0.5}
LAYERS = {name: value for name, value in RULES.items() if name != "weight_decay"}
SCHEDULES = {
    CosineWarmRestarts: {"initial_learning_rate": 0.1, "first_decay_steps": 5},
    WarmupStableDecay: {"peak_learning_rate": 0.1, "stable_steps": 5, "decay_steps": 5},
}
FUNCTIONS = {
    Decay: {},
    convert_weight_decay: {"weight_decay": 0.1, "learning_rate": 0.1, "source": "torch"},
    decay_from_timescale: {"epochs": 5, "steps_per_epoch": 10},
    decouple: {},
    fill_dict_in_order: {"wd_dict": {"a": 0, "b": 1}, "values": [1, 2]},
    get_weight_decays: {"model": MODEL},
    layerwise_lr_multipliers: LAYERS,
    layerwise_weight_decays: RULES,
    no_decay: {"model": MODEL},
    callbacks.RestartOnPlateau: {},
    callbacks.SnapshotEnsemble: {"pattern": "snapshots/{cycle}.weights.h5"},
}
CALLS = {
    **{
        (cls.__name__, name): trained(cls)
        for cls in (AdamW, NadamW, SGDW, Lion, Muon)
        for name in own_arguments(cls)
    },
    **{
        (cls.__name__, name): schedule(cls, **arguments)
        for cls, arguments in SCHEDULES.items()
        for name in own_arguments(cls)
    },
    **{
        (function.__name__, name): with_the_rest(function, **arguments)
        for function, arguments in FUNCTIONS.items()
        for name in own_arguments(function)
    },
    **{
        (method, name): of_method(method)
        for method in ("restart", "explain", "exclude_from_weight_decay")
        for name in own_arguments(getattr(AdamW, method))
    },
    ("from_keras", "optimizer"): AdamW.from_keras,
    ("from_config", "config"): AdamW.from_config,
    **{(f"set {n}", "value"): of_attribute(n) for n in ("learning_rate", "weight_decay", "t_cur")},
}


@pytest.mark.parametrize(("where", "name"), CALLS)
def test_a_wrong_argument(where, name):
    for what, value in WRONG.items():
        try:
            CALLS[where, name](**{name: value()})
        except Exception as error:
            if name == "values" and any(text in str(error) for text in MANY):
                continue
            error.add_note(f"{where}({name}={what})")
            hostile.assert_clear(error)


def test_everything_public_is_tried():
    tried = {where for where, _ in CALLS} | {"LogRates"}  # which takes nothing
    # plot_schedule would draw 2³¹ steps; tests/test_plots.py has its errors.
    public = {*keras_decoupled.__all__} - {"callbacks", "plot_schedule"}
    stock = {name for name in public if hasattr(getattr(keras_decoupled, name), "stock")}
    assert public - stock <= tried
    assert {name for name in dir(callbacks) if name[0].isupper()} <= tried
