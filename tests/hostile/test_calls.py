"""Each wrong value for each argument of each public name: it works, or the error says what is wrong with it.

Not asked: what is given to a stock class's own argument or handed on to Keras, where the error is Keras' own, and
what no `for` takes in place of the values of `fill_dict_in_order`, where it is Python's.
"""

import datetime
import fractions
import functools
import inspect
import math
import typing

import keras
import numpy as np
import pytest

import keras_decoupled
from effort import effort
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
)

from .watch import assert_clear

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
# Right for no argument.
NEVER = {"nan", "inf", "-inf", "Ellipsis", "NotImplemented", "1j", "b'x'", "an object"}
HANDED_ON = {"monitor", "verbose", "custom_objects"}
MANY = ("not iterable", "0-d array")  # Python's own words


inside = [keras.layers.Dense(2, name="a"), keras.layers.LayerNormalization(name="norm")]
MODEL = keras.Sequential([keras.Input((4,)), *inside, keras.layers.Dense(1, name="head")])


def train(optimizer):
    variables = MODEL.trainable_variables
    optimizer.build(variables)
    optimizer.apply([keras.ops.ones(v.shape) for v in variables], variables)
    return optimizer


def try_out(function, arguments):
    """Call the function, and use what it made."""
    made = function(**arguments)
    if isinstance(made, keras.optimizers.Optimizer):
        train(made).explain()
        made.get_config()
    if isinstance(made, callbacks.WatchUpdates):
        optimizer = train(AdamW(0.1, weight_decay=0.01))
        made.before(optimizer)
        train(optimizer)
        made.after(optimizer)
    if isinstance(made, keras.optimizers.schedules.LearningRateSchedule):
        made(3)
        made.get_config()


def method(name):
    @functools.wraps(getattr(AdamW, name))
    def call(**arguments):
        return getattr(AdamW(WarmupStableDecay(0.1, None, 5), weight_decay=0.1), name)(**arguments)

    return call


def attribute(name):
    rate = CosineWarmRestarts(0.1, 10) if name == "t_cur" else 0.1
    optimizer = train(AdamW(rate, weight_decay=0.1))

    def call(value):
        setattr(optimizer, name, value)
        train(optimizer)

    call.__name__ = f"set {name}"
    return call


RATE = {"learning_rate": 0.1, "weight_decay": 0.01}
# Arguments with which each works.
RIGHT = {
    **dict.fromkeys((AdamW, NadamW, SGDW, Lion, Muon), RATE),
    CosineWarmRestarts: {"initial_learning_rate": 0.1, "first_decay_steps": 5},
    WarmupStableDecay: {"initial_learning_rate": 0.1, "stable_steps": 5, "decay_steps": 5},
    Decay: {},
    keras_decoupled.convert_weight_decay: RATE | {"source": "torch"},
    keras_decoupled.decay_from_timescale: {"epochs": 5, "steps_per_epoch": 10},
    keras_decoupled.decouple: {"optimizer_class": keras.optimizers.RMSprop},
    keras_decoupled.fill_dict_in_order: {"wd_dict": {"a": 0, "b": 1}, "values": [1, 2]},
    keras_decoupled.get_weight_decays: {"model": MODEL},
    keras_decoupled.layerwise_lr_multipliers: {"model": MODEL, "decay": 0.5},
    keras_decoupled.layerwise_weight_decays: {"model": MODEL, "decay": 0.5, "weight_decay": 0.1},
    keras_decoupled.no_decay: {"model": MODEL},
    keras_decoupled.width_lr_multipliers: {"model": MODEL, "base_model": MODEL},
    callbacks.LogRates: {},
    callbacks.WatchUpdates: {},
    callbacks.RestartOnPlateau: {},
    callbacks.SnapshotEnsemble: {"filepath": "snapshots/{cycle}.weights.h5"},
    method("restart"): {},
    method("explain"): {"model_or_variables": MODEL},
    method("exclude_from_weight_decay"): {"var_names": ["bias"]},
    AdamW.from_keras: {"optimizer": keras.optimizers.AdamW()},
    AdamW.from_config: {"config": AdamW(0.1).get_config()},
    attribute("learning_rate"): {"value": 0.1},
    attribute("weight_decay"): {"value": 0.1},
    attribute("t_cur"): {"value": 1},
}
# What an error says where it does not say the argument's name.
SAID = {
    ("decouple", "optimizer_class"): "decouple",
    ("explain", "model_or_variables"): "model",
    ("from_config", "config"): "",  # the name of what is in it
    ("set learning_rate", "value"): "learning_rate",
    ("set weight_decay", "value"): "weight_decay",
    ("set t_cur", "value"): "position",
}
# Handled by code that all classes share: in CI on one of them.
SHARED = effort([AdamW], [AdamW, NadamW, SGDW, Lion, Muon])
OTHERS = [cls for cls in (NadamW, SGDW, Lion, Muon) if cls not in SHARED]


def names_of(function):
    """The names of all arguments but of those that are a stock class's own."""
    init = function.__init__ if isinstance(function, type) else function
    names = set()
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            names.add(name)
        elif function in SHARED:  # **shared: Unpack[a TypedDict]
            (names_of_shared,) = typing.get_args(typing.get_type_hints(init)[name])
            names |= names_of_shared.__annotations__.keys()
    if stock := getattr(function, "_kd_stock", None):
        names -= inspect.signature(stock).parameters.keys() - {*COMMON, *RATE}
    if function in OTHERS:
        names -= RATE.keys()
    return sorted(names - {"self"} - HANDED_ON)


COMMON = inspect.signature(keras.optimizers.Optimizer).parameters.keys()
CASES = {(f.__name__, name): f for f in RIGHT for name in names_of(f)}


def test_right_arguments():
    """Else a wrong name in the table above would be what the next test finds refused."""
    for function, arguments in RIGHT.items():
        try_out(function, arguments)


@pytest.mark.parametrize(("where", "name"), CASES)
def test_a_wrong_argument(where, name):
    function = CASES[where, name]
    for what, value in WRONG.items():
        try:
            try_out(function, RIGHT[function] | {name: value()})
        except Exception as error:
            if name == "values" and any(text in str(error) for text in MANY):
                continue
            error.add_note(f"{where}({name}={what})")
            assert_clear(error, SAID.get((where, name), name))
        else:
            assert what not in NEVER, f"{what} is taken"


def test_everything_public_is_tried():
    # plot_schedule would draw 2³¹ steps; tests/test_plots.py has its errors.
    public = {*keras_decoupled.__all__} - {"callbacks", "plot_schedule"}
    public -= {name for name in public if hasattr(getattr(keras_decoupled, name), "_kd_stock")}
    public |= {name for name in dir(callbacks) if name[0].isupper()}
    assert public <= {function.__name__ for function in RIGHT}
    shared = inspect.signature(AdamW).parameters.keys() | {"weight_decays", "clipnorm"}
    assert shared - {"shared"} <= {name for where, name in CASES if where == "AdamW"}
