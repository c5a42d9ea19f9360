"""What a user reads from an optimizer and sets on it: the rate, η, positions, decays, multipliers; and what α is."""

import copy
import inspect
import json
import math
import re
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import BACKEND, eager, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, NadamW
from slots import saved
from small import WEAK, again, left, named, ones
from steps import floatx

schedules = keras.optimizers.schedules
CLASSES = pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
FAST = pytest.mark.parametrize("fast", [True, False])
ANNEALING = {"use_cosine_annealing": True, "total_iterations": 5}
close = partial(np.testing.assert_allclose, rtol=2e-7)


def number(x):
    return float(numpy(x))


def position(optimizer):
    return int(numpy(optimizer.t_cur))


def cosine(s, T):
    return 0.5 * (1 + np.cos(np.pi * s / (T - 1)))


# --- a constant rate: a variable, as in stock Keras ---


@CLASSES
@FAST
@pytest.mark.parametrize("assign", [True, False])
def test_a_constant_rate(cls, fast, assign):
    optimizer, ours = cls(0.1, weight_decay=0.5), ones()
    optimizer.fast = fast
    rate = optimizer.learning_rate
    assert isinstance(rate, keras.Variable)
    assert (rate.name, rate.dtype) == ("learning_rate", "float32")
    assert any(v is rate for v in optimizer.variables)
    assert float(rate.numpy()) == number(rate.value) == np.float32(0.1)
    assert left(optimizer, ours) == 0.5
    for now in (0.05, 0.2, 0.0, 0.3, 0, 0.1):  # above α, and from 0 up again
        if assign:
            rate.assign(now)
        else:
            optimizer.learning_rate = now
        assert float(optimizer.learning_rate.numpy()) == np.float32(now)
        assert number(optimizer.lr_t) == np.float32(now)
        close(number(optimizer.eta_t), now / 0.1)
        close(left(optimizer, ours), 1 - 0.5 * now / 0.1, atol=1e-7)
    assert number(optimizer.eta_t) == 1
    assert optimizer.learning_rate is rate


NUMBERS = {
    "float": lambda x: x,
    "int": int,
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.int64": np.int64,
    "array": np.array,
    "tensor": lambda x: keras.ops.convert_to_tensor(x, "float32"),
    "Variable": lambda x: keras.Variable(x, dtype="float32"),
    "bfloat16": lambda x: keras.ops.convert_to_tensor(x, "bfloat16"),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_any_real_number_can_be_set(make):
    optimizer, ours = SGDW(4.0, weight_decay=0.5), ones()
    optimizer.learning_rate = make(2.0)
    assert number(optimizer.learning_rate) == 2
    assert number(optimizer.eta_t) == 0.5
    optimizer.weight_decay = make(1.0)
    assert left(optimizer, ours) == 0.5
    optimizer.weight_decay = optimizer.weight_decay
    assert left(optimizer, ours) == 0.5


@pytest.mark.parametrize("make", [int, np.float32, np.float64, np.int64])
def test_any_real_number_is_accepted_by_the_constructor(make):
    one, zero = make(1), make(0)
    optimizer = SGDW(one, zero, base_learning_rate=one, weight_decay=one, clipnorm=one)
    assert number(optimizer.learning_rate) == 1
    AdamW(one, weight_decays={"a": (zero, one)}, lr_multipliers={"a": one}, beta_1=zero)
    NadamW(one, epsilon=one, momentum_decay=one)
    optimizer = AdamW(
        one, use_cosine_annealing=True, total_iterations=make(5), t_cur=make(4), eta_max=one
    )
    assert number(optimizer.eta_t) == 0
    CosineWarmRestarts(one, make(5), t_mul=one, warmup_steps=zero)


def test_eta_is_exactly_1_where_nobody_moved_the_rate():
    """Of every rate: α in float32 may be another number, and η is to it what the rate is to α."""
    for rate in [10 ** (2 - e / 6) for e in range(61)] + [0.1, 0.3, 1e-3, 3e-4, 7e-5, 0.7, 1 / 3]:
        for given in (rate, CosineWarmRestarts(rate, 10)):
            optimizer = SGDW(given, weight_decay=0.125)
            assert number(optimizer.learning_rate) == np.float32(rate)
            for now in (rate, number(optimizer.learning_rate), None):  # as a callback reads it
                assert number(optimizer.eta_t) == 1, rate
                if now:
                    optimizer.learning_rate = now
            optimizer.learning_rate = rate / 2
            close(number(optimizer.eta_t), 0.5)
        for constant in (rate, lambda rate=rate: rate):  # above 1 there is no peak to warn of
            AdamW(constant, 0).learning_rate = 3 * rate
    assert left(SGDW(rate, weight_decay=0.125), ones()) == 0.875


@pytest.mark.parametrize("move", [None, "assign", "set"])
@pytest.mark.parametrize(("rate", "base"), [(0.05, 0.1), (1e-4, 3e-4), (0.0, 0.1)])
def test_a_rate_from_another_base(rate, base, move):
    """0 is one, too: the start of a warm-up by callback. The config has the number that was given."""
    optimizer = SGDW(base if move else rate, base_learning_rate=base, weight_decay=0.5)
    if move == "assign":
        optimizer.learning_rate.assign(rate)
    elif move == "set":
        optimizer.learning_rate = rate
    for one in (optimizer, again(optimizer)):
        np.testing.assert_allclose(number(one.eta_t), rate / base, rtol=1e-7)
        assert number(one.learning_rate) == np.float32(rate)
        config = one.get_config()
        assert (config["learning_rate"], config["base_learning_rate"]) == (rate, base)
        one.learning_rate = base
        assert number(one.eta_t) == 1


def test_float64():
    """The variables are float32 as ever; where nobody moved them, α and λ are used with all their digits."""
    exact = partial(pytest.approx, rel=1e-15)
    with floatx("float64", x64=True):
        optimizer, ours = SGDW(0.1, weight_decay=0.1), ones(dtype="float64")
        assert optimizer.learning_rate.dtype == "float32"
        assert left(optimizer, ours) == 1 - 0.1
        for rate in (None, 0.05):
            if rate:
                optimizer.learning_rate.assign(rate)
            eta = float(np.float32(rate)) / float(np.float32(0.1)) if rate else 1
            ours[0].assign(np.ones(2))
            eager(optimizer, ours)([np.ones(2)])
            assert numpy(ours[0]) == exact(1 - eta * 0.1 - eta * 0.1)
        optimizer = SGDW(0.1, weight_decay=0.1)
        optimizer.weight_decay = 0.3
        assert left(optimizer, ones(dtype="float64")) == exact(0.7)
    if BACKEND != "jax":  # where float64 is the model's alone
        optimizer, ours = SGDW(0.1, weight_decay=0.1), ones(dtype="float64")
        assert left(optimizer, ours) == 1 - 0.1
        optimizer.weight_decay = 0.3
        assert left(optimizer, ours) == pytest.approx(0.7, rel=1e-7)


def test_a_bfloat16_floatx_leaves_both_in_float32():
    with floatx("bfloat16"):
        optimizer, ours = SGDW(0.1, weight_decay=2.0**-10), ones(dtype="bfloat16")
        assert optimizer.learning_rate.dtype == optimizer.weight_decay.dtype == "float32"
        assert float(optimizer.learning_rate.numpy()) == np.float32(0.1)
        assert number(optimizer.eta_t) == 1
        optimizer.weight_decay = 2.0**-9  # with 1 it is no number of bfloat16: a master copy has it
        for _ in range(4):
            eager(optimizer, ours)([np.zeros(2, "bfloat16")])
        assert numpy(ours[0])[0] == pytest.approx((1 - 2.0**-9) ** 4, abs=2.0**-9)


# --- a schedule: the rate is r·schedule(s), η is that over α, and r is what is set ---


class Of(schedules.LearningRateSchedule):
    """Any function of the step, computed in Python; `names` are attributes that say a rate."""

    def __init__(self, function, **names):
        self.function = function
        self.calls = 0
        vars(self).update(names)

    def __call__(self, step):
        self.calls += 1
        return self.function(int(step))

    def get_config(self):
        return {}


def test_a_schedule_has_a_factor_in_place_of_a_rate():
    optimizer = SGDW(CosineWarmRestarts(0.2, 5), weight_decay=0.5)
    names = [v.name for v in optimizer.variables]
    assert not isinstance(optimizer.learning_rate, keras.Variable)
    assert ("learning_rate_factor" in names, "learning_rate" in names) == (True, False)


def test_at_the_zero_of_a_schedule():
    optimizer = SGDW(0.1, weight_decay=0.5, t_cur=4, **ANNEALING)
    assert number(optimizer.learning_rate) == number(optimizer.eta_t) == 0
    optimizer.learning_rate = 0  # changes nothing; another rate is an error
    optimizer.restart()
    close(number(optimizer.learning_rate), 0.1)
    optimizer.learning_rate = 0  # r = 0, for good
    optimizer.restart(2)
    assert number(optimizer.learning_rate) == 0


@keras.saving.register_keras_serializable(package="test_attributes")
class Dial:
    """A callable whose value can be turned."""

    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value

    def get_config(self):
        return {"value": self.value}


def test_a_callable():
    """Its value at build is α; reading the rate before does not fix it."""
    dial = Dial(0.8)
    optimizer, ours = SGDW(dial, weight_decay=0.5), ones()
    close(number(optimizer.learning_rate), 0.8)
    assert number(optimizer.eta_t) == 1
    assert optimizer.get_config()["base_learning_rate"] is None
    dial.value = 0.4
    optimizer.build(ours)
    assert number(optimizer.eta_t) == 1
    close(left(optimizer, ours), 0.5)
    dial.value = 0.1
    assert optimizer.get_config()["base_learning_rate"] == 0.4
    close(number(optimizer.learning_rate), 0.1)
    close(number(optimizer.eta_t), 0.25)
    assert position(optimizer) == 1
    optimizer.learning_rate = 0.05  # r = 1/2
    close(number(optimizer.eta_t), 0.125)
    close(left(optimizer, ours), 1 - 0.5 * 0.125)
    dial.value = 0.4
    close(number(optimizer.learning_rate), 0.2)


VALUES = {
    "float": lambda variable: 0.01,
    "tensor": lambda variable: keras.ops.convert_to_tensor(0.01),
    "variable": lambda variable: variable,
    "expression": lambda variable: keras.ops.convert_to_tensor(variable) * 1.0,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_callable_in_fit(value):
    """On TensorFlow the optimizer is built inside a traced step, where no tensor has a value."""
    variable, model = keras.Variable(0.01, name="rate", trainable=False), net()
    model.compile(AdamW(lambda: value(variable), weight_decay=1e-4), loss="mse")
    fit(model, 1)
    assert float(model.optimizer.eta_t) == pytest.approx(1)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)


def test_a_copy_has_the_rate_that_was_set():
    for optimizer in (
        AdamW(1e-3, 0),
        AdamW(1e-3, 0, **ANNEALING),
        AdamW(CosineWarmRestarts(1e-3, 9), 0),
        AdamW(schedules.ExponentialDecay(1e-3, 9, 0.9), 0),
    ):
        optimizer.learning_rate = 5e-4
        assert float(copy.deepcopy(optimizer).learning_rate) == pytest.approx(5e-4)
        assert float(copy.deepcopy(optimizer).eta_t) == pytest.approx(0.5)


# --- α, the base learning rate ---


@keras.saving.register_keras_serializable(package="test_attributes")
class Attention(schedules.LearningRateSchedule):
    """Of "Attention is all you need": from 0 up to its peak at `warmup`, then down."""

    def __init__(self, warmup):
        self.warmup = warmup

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rise = step * self.warmup**-1.5
        return 512**-0.5 * keras.ops.minimum(keras.ops.rsqrt(step), rise)

    def get_config(self):
        return {"warmup": self.warmup}


def warns_late(s):
    if s > 100:
        warnings.warn("beyond the end of training", RuntimeWarning, stacklevel=2)
    return 0.1


# A rate that says its base, or does not rise far above its first value, and α.
BASES = [
    (0.1, 0.1),
    (CosineWarmRestarts(0.3, 5, eta_max=0.5), 0.3),
    (CosineWarmRestarts(0.1, 10, eta_max=3.0), 0.1),  # η is a multiple of 0.1 by its definition
    (schedules.CosineDecay(0.01, 10, warmup_target=0.5, warmup_steps=5), 0.5),
    (schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5), 0.1),
    (schedules.CosineDecay(0.01, 10), 0.01),
    (schedules.InverseTimeDecay(0.2, 10, 0.5), 0.2),
    (schedules.CosineDecayRestarts(0.2, 10), 0.2),
    (schedules.PolynomialDecay(0.1, 10, 0.2), 0.1),  # at most twice what it says
    (schedules.PiecewiseConstantDecay([3], [0.5, 0.25]), 0.5),
    # by less than a percent
    (schedules.PiecewiseConstantDecay([50], [0.1, 0.1005]), np.float32(0.1)),
    (Of(lambda s: 0.1 * 0.9**s), 0.1),
    (Of(lambda s: 0.1 + 0.0009 * (s > 9)), 0.1),
    (Of(lambda s: 0.1 + 0.1 * (s > 9), initial_learning_rate=0.1), 0.1),
    (Of(lambda s: min(0.001 * s, 0.1), initial_learning_rate=0.1), 0.1),  # it says its peak
    (Of(lambda s: 1.0, warmup_target=0.1, initial_learning_rate=0.0), 0.1),
    (Of(warns_late), 0.1),
]


@pytest.mark.parametrize(("rate", "base"), BASES)
def test_a_rate_that_says_its_base_or_does_not_rise(rate, base):
    first = rate if isinstance(rate, float) else number(rate(0))
    for given, alpha in ((None, base), (0.8, 0.8)):
        optimizer = AdamW(rate, base_learning_rate=given)
        assert optimizer.get_config()["base_learning_rate"] == alpha
        np.testing.assert_allclose(number(optimizer.learning_rate), first, rtol=1e-6)
        np.testing.assert_allclose(number(optimizer.eta_t), first / alpha, rtol=1e-6)


def warned_base(schedule):
    """α of an optimizer that has to search it, with one warning that says so."""
    with pytest.warns(UserWarning, match=r"rises.*`base_learning_rate`") as caught:
        optimizer = AdamW(schedule, weight_decay=0.1)
    (said,) = (warning for warning in caught if warning.category is UserWarning)
    assert said.filename == __file__
    base = optimizer.get_config()["base_learning_rate"]
    assert re.search(rf"(?<![\w.]){re.escape(format(base, 'g'))}(?![\w.]*\d)", str(said.message))
    return base


RISING = [
    *((Attention(n), (512 * n) ** -0.5) for n in (1, 7)),
    (schedules.PolynomialDecay(1e-6, 1000, 1e-3), 1e-3),
    (schedules.PiecewiseConstantDecay([50], [0.1, 0.102]), 0.102),
    (schedules.PiecewiseConstantDecay([5], [0.0, 0.1]), 0.1),
    # up between two powers of ten, and at both as at the start
    (schedules.PiecewiseConstantDecay([200, 900], [0.1, 0.3, 0.01]), 0.3),
    # up beyond the steps that are asked: α is the largest value in them
    (Of(lambda s: 1e-7 * s), 0.1),
    # tables that end, where they rise to the end and where they fall again
    (Of(lambda s: [0.001 * n for n in range(92)][s]), 0.091),
    (Of(lambda s: [0.001 * min(n, 80 - n) for n in range(81)][s]), 0.04),
    (Of(lambda s: math.nan if s > 7 else 0.1 * (s + 1)), 0.8),
    # what it says of itself is no more than its start
    (Of(lambda s: 0.1 * min(s, 30), initial_learning_rate=0.0), 3.0),
    (Of(lambda s: min(0.3 * s, 3.0), initial_learning_rate=0.1), 3.0),
]


@pytest.mark.parametrize(("schedule", "base"), RISING)
def test_the_base_of_a_schedule_that_rises_is_its_peak(schedule, base):
    assert warned_base(schedule) == pytest.approx(base, rel=1e-6)
    assert AdamW(schedule, base_learning_rate=0.8).get_config()["base_learning_rate"] == 0.8


def test_a_warm_up_that_starts_at_0_trains():
    model = net()
    with pytest.warns(UserWarning, match="base_learning_rate"):
        model.compile(AdamW(Attention(3), weight_decay=0.1), loss="mse")
    fit(model, 2)
    assert float(model.optimizer.eta_t) == pytest.approx(3**0.5 / 4**0.5, rel=1e-6)
    # In a config α is known: nothing is searched again, so nothing is warned of.
    config = again(model.optimizer).get_config()
    assert config["base_learning_rate"] == pytest.approx(1536**-0.5, rel=1e-6)


def test_the_peak_of_a_schedule_whose_base_is_given():
    optimizer = AdamW(schedules.PolynomialDecay(1e-6, 1000, 1e-3), 0.1, base_learning_rate=1e-3)
    assert float(optimizer.eta_t) == pytest.approx(1e-3, rel=1e-4)
    with pytest.warns(UserWarning, match=r"0\.001999"):  # twice its top, not twice 1e-6
        optimizer.learning_rate = 2e-6


def test_a_schedule_is_asked_a_dozen_times_or_two_hundred():
    for names, most in (({"initial_learning_rate": 0.1}, 12), ({}, 202)):
        schedule = Of(lambda s: 0.1 * 0.9**s, **names)
        AdamW(schedule, weight_decay=0)
        assert schedule.calls <= most


# --- positions ---


def annealed(**arguments):
    return SGDW(0.1, weight_decay=0.5, normalize_weight_decay=False, **{**ANNEALING, **arguments})


@pytest.mark.parametrize(("first", "expected"), [(3, [3, 4, 4, 4]), (-1, [0, 1, 2])])
def test_t_cur_of_the_first_update_and_after_the_only_cycle(first, expected):
    optimizer, ours = annealed(t_cur=first, autorestart=False), ones()
    seen = [position(optimizer)]
    for _ in expected[1:]:
        left(optimizer, ours)
        seen.append(position(optimizer))
    assert seen == expected


@pytest.mark.parametrize("how", [SGDW.restart, lambda o, to: setattr(o, "t_cur", to)])
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize(("to", "there"), [(-1, 0), (4, 4), (np.int64(3), 3)])
def test_restart(how, before, to, there):
    """Before the first update it takes effect at build. The count of updates goes on."""
    optimizer, ours = annealed(t_cur=1), ones()
    left(optimizer, ours, before)
    how(optimizer, to)
    assert position(optimizer) == there
    optimizer.build(ours)
    assert (position(optimizer), int(numpy(optimizer.iterations))) == (there, before)
    expected = [1 - 0.5 * cosine(s % 5, 5) for s in (there, there + 1)]
    np.testing.assert_allclose(left(optimizer, ours, 2), expected, rtol=1e-6)


# --- decays and multipliers as they were given, and as they are ---


def test_weight_decays_and_lr_multipliers():
    l2 = schedules.ExponentialDecay(0.1, 10, 0.5)
    given = {"a": 0.5, "b": (0.25, l2), "bias": 0, "c/kernel": (0.1, 0)}
    multipliers = {"a": 0.5, "b": 1, "bias": 0}
    shown = {"weight_decays": given, "lr_multipliers": multipliers}
    optimizer = AdamW(weight_decay=1e-3, **shown, total_iterations=100)  # before normalization
    assert optimizer.weight_decays == given
    assert optimizer.lr_multipliers == multipliers
    assert optimizer.weight_decay == 1e-3
    given["a"] = multipliers["a"] = 0.7
    optimizer.build(ones("a/kernel", "b/kernel", "b/bias", "c/kernel", "d"))
    assert optimizer.weight_decays == {
        "a/kernel": (0.0, 0.5),
        "b/kernel": (0.25, l2),
        "c/kernel": (0.1, 0.0),
        "d": (0.0, 1e-3),
    }
    assert optimizer.weight_decays["b/kernel"][1] is l2
    assert optimizer.lr_multipliers == {"a/kernel": 0.5, "b/bias": 0.0}
    assert optimizer.weight_decay == 1e-3


def test_variables_that_share_a_path():
    optimizer = SGDW(
        0.1, weight_decays={"w": 0.1, "w#2": 0.2, "v": 0.5}, lr_multipliers={"w#3": 3, "v/": 2}
    )
    ours = ones("w", "v", "w", "w", "v")
    # "v", like "w", is a whole path, and so names one variable.
    np.testing.assert_allclose(left(optimizer, ours), [0.9, 0.5, 0.8, 1, 1], rtol=1e-6)
    assert optimizer.weight_decays == {"w": (0.0, 0.1), "w#2": (0.0, 0.2), "v": (0.0, 0.5)}
    assert optimizer.lr_multipliers == {"w#3": 3.0, "v": 2.0, "v#2": 2.0}


L = 0.5
RESTARTS = {"learning_rate": CosineWarmRestarts(0.1, 4, t_mul=4)}
FOUR = {"total_iterations": 4, "use_cosine_annealing": True}
ON, OFF = ({"normalize_weight_decay": asked} for asked in (True, False))
T, T_WD = {"total_iterations": 16}, {"total_iterations_wd": 25}
in_4 = [cosine(s, 4) for s in (0, 1, 2, 3, 0)]
in_4_and_16 = np.array([cosine(s, 4) for s in range(4)] + [cosine(s, 16) for s in range(2)])
# arguments, and √(1/T)·η of each update
NORMALIZED = [
    ({}, [1]),
    (OFF, [1]),  # nothing to switch off
    (T, [1 / 4]),
    (T_WD, [1 / 5]),
    (T | T_WD, [1 / 5]),
    (T | ON, [1 / 4]),
    (T_WD | ON, [1 / 5]),
    (T | OFF, [1]),
    (T | {"normalize_weight_decay": np.False_}, [1]),
    ({"total_iterations": 1}, [1]),
    (T | {"autorestart": False}, [1 / 4] * 6),  # no annealing without being asked
    (FOUR, np.divide(in_4, 2)),
    (FOUR | OFF, in_4),
    (FOUR | {"total_iterations_wd": 100}, np.divide(in_4, 10)),
    (RESTARTS, in_4_and_16),
    (RESTARTS | ON, in_4_and_16 / np.array([2, 2, 2, 2, 4, 4])),
    (RESTARTS | T_WD, in_4_and_16 / 5),
    (RESTARTS | T_WD | ON, in_4_and_16 / 5),
    (RESTARTS | OFF, in_4_and_16),
    (T | {"learning_rate": schedules.ExponentialDecay(0.1, 1, 0.5)}, [1 / 4, 1 / 8, 1 / 16]),
    (T | {"learning_rate": Dial(0.1)}, [1 / 4]),
]


@pytest.mark.parametrize(("arguments", "share"), NORMALIZED)
@pytest.mark.parametrize("decay", [0.5, (0.3, 0.2)])  # l1 too
def test_normalization(arguments, share, decay):
    optimizer = SGDW(**{"learning_rate": 0.1, "weight_decay": decay, **arguments})
    expected = 1 - L * np.array(share)
    np.testing.assert_allclose(left(optimizer, ones(), len(share)), expected, rtol=1e-6)


SUGAR = [{}, {"autorestart": True}, {"t_cur": 3}, {"total_iterations": 2}]
SUGAR += [{"eta_min": 0.1, "eta_max": 0.7}]
SUGAR += [{"eta_min": 0.1, "autorestart": off} for off in (False, np.False_)]


@pytest.mark.parametrize("arguments", SUGAR)
@pytest.mark.parametrize("normalize", [None, False])
def test_annealing_is_sugar(arguments, normalize):
    arguments = {**ANNEALING, **arguments}
    sweet = SGDW(0.1, weight_decay=0.5, normalize_weight_decay=normalize, **arguments)
    meaning = {name: arguments[name] for name in ("eta_min", "eta_max") if name in arguments}
    meaning["autorestart"] = bool(arguments.get("autorestart", True))
    rate = CosineWarmRestarts(0.1, arguments["total_iterations"], **meaning)
    plain = SGDW(rate, weight_decay=0.5, normalize_weight_decay=normalize is None)
    plain.t_cur = arguments.get("t_cur", 0)
    theirs, ours = ones(), ones()
    for _ in range(8):
        for name in ("learning_rate", "eta_t", "t_cur"):
            assert number(getattr(sweet, name)) == number(getattr(plain, name))
        assert left(sweet, ours) == left(plain, theirs)


def test_annealing_from_another_rate_than_the_base():
    optimizer = SGDW(0.05, base_learning_rate=0.1, weight_decay=0.5, **ANNEALING)
    close(number(optimizer.learning_rate), 0.05)
    close(number(optimizer.eta_t), 0.5)
    assert optimizer.get_config()["base_learning_rate"] == 0.1


# --- λ, the uniform decay: a variable, too ---


@CLASSES
@pytest.mark.parametrize(
    "given", [0, 0.1, (0.25, 0.1), Decay(0.1), Decay(0.1, cautious=True, eta_power=0)], ids=repr
)
def test_a_number_is_a_variable(cls, given):
    for built in (False, True):
        optimizer = cls(0.1, weight_decay=given)
        if built:
            optimizer.build(ones())
        decay = optimizer.weight_decay
        assert isinstance(decay, keras.Variable)
        assert decay.name == "weight_decay"
        assert any(v is decay for v in optimizer.variables)
        assert float(decay) == (np.float32(0.1) if given else 0)
        optimizer.weight_decay = 0.3
        assert float(optimizer.weight_decay) == np.float32(0.3)
        assert optimizer.weight_decay is decay


def test_nothing_and_a_schedule_come_back_as_given():
    schedule = schedules.PolynomialDecay(0.1, 5, 0.01)
    assert AdamW(0.1).weight_decay is None
    for given in (schedule, Decay(schedule, cautious=True), (0.1, schedule)):
        optimizer = AdamW(0.1, weight_decay=given)
        assert optimizer.weight_decay is schedule
        assert "weight_decay" not in [v.name for v in optimizer.variables]


@CLASSES
@FAST
def test_it_moves_the_decay_and_0_is_no_special_case(cls, fast):
    """An optimizer made with 0 may be given a decay later: nothing may leave it out at build."""
    optimizer, ours = cls(0.1, weight_decay=0), ones()
    optimizer.fast = fast
    for now in (None, 0.5, 0.25, 0, 0.125):
        if now is not None:
            optimizer.weight_decay = now
        np.testing.assert_array_equal(left(optimizer, ours, 4), 1 - (now or 0))
        assert optimizer.weight_decays == ({"w": (0.0, now)} if now else {})


@FAST
def test_it_moves_those_that_it_reaches_and_no_others(fast):
    """Not those with a penalty, a key (even of the same number) or an exclusion."""
    model = named(regularizers.L2(WEAK))
    ours = [*model.trainable_variables, *ones("three/kernel", "three/bias", shape=(2, 2))]
    keys = {"two/kernel": 0.25, "two/bias": 0.5}
    optimizer = SGDW(0.1, weight_decay=0.5, model=model, weight_decays=keys)
    optimizer.fast = fast
    optimizer.exclude_from_weight_decay(var_names=["three/bias"])
    before = [WEAK, 0.5, 0.25, 0.5, 0.5, 0]
    after = [WEAK, 0.125, 0.25, 0.5, 0.125, 0]
    np.testing.assert_array_equal(1 - left(optimizer, ours), before)
    optimizer.weight_decay = 0.125
    np.testing.assert_array_equal(1 - left(optimizer, ours), after)
    rows = {v.path: (0.0, l2) for v, l2 in zip(ours, after, strict=True) if l2}
    assert optimizer.weight_decays == rows
    copied = again(optimizer)
    copied.build(ours)
    assert copied.weight_decays == rows
    np.testing.assert_array_equal(1 - left(copied, ours), after)
    copied.weight_decay = 0.5  # which rows follow it is in the config
    np.testing.assert_array_equal(1 - left(copied, ours), before)


# λ as it is given, what is left of 1 under an l2, and T
KINDS = {
    "a number": (0.5, lambda x: 1 - x, None),
    "before normalization": (0.5, lambda x: 1 - x / 2, 4),
    "with l1": (Decay(0.5, 0.25), lambda x: 1 - x - 0.25, None),
    "a pair": ((0.25, 0.5), lambda x: 1 - x - 0.25, None),
    "without eta": (Decay(0.5, eta_power=0), lambda x: 1 - x, None),
    "cautious": (Decay(0.5, cautious=True), lambda x: 1 - x, None),
    "soft threshold": (Decay(0.5, 0.25, soft_threshold=True), lambda x: 1 - x - 0.25, None),
    "initial": (Decay(0.5, towards="initial"), lambda x: 1.0, None),
}


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_it_is_the_l2_of_a_decay(case):
    given, expected, total = case
    optimizer, ours = SGDW(0.1, weight_decay=given, total_iterations=total), ones()
    for now in (0.5, 0.125, 0.0, 0.25):
        optimizer.weight_decay = now
        assert left(optimizer, ours) == expected(now)
        copied = again(optimizer)
        copied.build(ours)
        assert float(copied.weight_decay) == now
        assert left(copied, ours) == expected(now)
        assert copied.get_config() == optimizer.get_config()
    if given == 0.5:
        assert optimizer.weight_decays == {"w": (0.0, 0.25)}
        assert optimizer.get_config()["weight_decay"] == 0.25
    if getattr(given, "towards", "") == "initial":  # the reference stays where it was
        ours[0].assign(np.full(2, 3.0))
        eager(optimizer, ours)([np.zeros(2, "float32")])
        assert numpy(ours[0])[0] == 3 - 0.25 * 2


# --- both in fit ---

X, Y = np.ones((8, 2), "float32"), np.ones((8, 2), "float32")
BATCHES = 2  # per epoch


def net():
    """One kernel, all ones."""
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(2, use_bias=False, kernel_initializer="ones")], name="net"
    )


def no_loss(y_true, y_pred):
    """It has no gradients: only the decay moves the weights."""
    return 0 * keras.ops.sum(y_pred, axis=-1)


def fit(model, epochs, *callbacks):
    model.fit(X, Y, batch_size=len(X) // BATCHES, epochs=epochs, verbose=0, callbacks=[*callbacks])


def trained(optimizer, epochs, *callbacks):
    """What is left of a weight of 1."""
    model = net()
    model.compile(optimizer, loss=no_loss)
    fit(model, epochs, *callbacks)
    return numpy(model.trainable_variables[0])[0, 0]


class Do(keras.callbacks.Callback):
    """Do something with the model's optimizer once, after so many batches in all."""

    def __init__(self, action, after):
        super().__init__()
        self.action, self.after, self.batches = action, after, 0

    def act(self):
        if self.batches == self.after and self.action:
            self.action(self.model.optimizer)
            self.action = None

    def on_epoch_begin(self, epoch, logs=None):
        self.act()

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches % BATCHES:  # else at the beginning of the next epoch
            self.act()


ACTIONS = {  # each of them halves η·λ
    "assign": lambda o: o.learning_rate.assign(0.05),
    "set": lambda o: setattr(o, "learning_rate", 0.05),
    "assign by its value": lambda o: o.learning_rate.assign(o.learning_rate.numpy() / 2),
    "assign by itself": lambda o: o.learning_rate.assign(o.learning_rate * 0.5),
    "decay": lambda o: setattr(o, "weight_decay", 0.25),
    "decay by itself": lambda o: setattr(o, "weight_decay", float(o.weight_decay) / 2),
    "decay assigned": lambda o: o.weight_decay.assign(0.25),
}


@pytest.mark.parametrize("before", [BATCHES, BATCHES + 1])
@pytest.mark.parametrize(
    ("cls", "action"),
    [*((SGDW, action) for action in ACTIONS), (AdamW, "assign"), (NadamW, "decay")],
)
def test_an_own_callback(cls, action, before):
    weight = trained(cls(0.1, weight_decay=0.5), 3, Do(ACTIONS[action], before))
    assert weight == pytest.approx(0.5**before * 0.75 ** (3 * BATCHES - before), rel=1e-6)


def test_through_a_loss_scale_optimizer():
    def both(optimizer):
        optimizer.inner_optimizer.weight_decay = 0.25
        optimizer.inner_optimizer.learning_rate.assign(0.05)

    wrapper = keras.optimizers.LossScaleOptimizer(SGDW(0.1, weight_decay=0.5))
    assert trained(wrapper, 2, Do(both, BATCHES)) == pytest.approx(
        (0.5 * 0.875) ** BATCHES, rel=1e-6
    )


# --- both saved ---


@CLASSES
def test_both_are_saved_and_the_run_goes_on_bit_for_bit(cls, tmp_path):
    def train(model, first, last):
        for k in range(first, last):
            rng = np.random.default_rng(k)
            model.train_on_batch(rng.normal(size=(8, 2)), rng.normal(size=(8, 2)))

    model, optimizer = net(), cls(0.1, weight_decay=0.3)
    model.compile(optimizer, loss="mse")
    train(model, 0, 3)
    optimizer.learning_rate.assign(0.07)
    optimizer.weight_decay = 0.013
    train(model, 3, 6)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert float(loaded.optimizer.weight_decay) == np.float32(0.013)
    assert float(loaded.optimizer.learning_rate.numpy()) == np.float32(0.07)
    config = loaded.optimizer.get_config()
    names = ("learning_rate", "base_learning_rate", "weight_decay")
    assert [config[name] for name in names] == [0.07, 0.1, 0.013]
    assert list(loaded.optimizer.weight_decays.values()) == [(0.0, 0.013)]
    for one in (model, loaded):
        train(one, 6, 9)
    np.testing.assert_array_equal(*(numpy(m.trainable_variables[0]) for m in (loaded, model)))
    loaded.save(tmp_path / "m.keras")
    twice = keras.models.load_model(tmp_path / "m.keras")
    assert twice.optimizer.get_config() == loaded.optimizer.get_config()
    assert number(twice.optimizer.eta_t) == number(optimizer.eta_t)


def built(*args, **kwargs):
    optimizer = SGDW(*args, **kwargs)
    optimizer.build(ones())
    return optimizer


def test_state_in_an_optimizer_of_another_rate_keeps_eta():
    """Weights of a run at 1e-3 in a fine-tuning at 1e-4: the rate of the file would make η 10."""
    run = built(1e-3, weight_decay=0.5)
    for eta, rate in ((1, 1e-3), (0.25, 2.5e-4)):
        run.learning_rate = rate
        tuned = built(1e-4, weight_decay=0.5)
        tuned.load_own_variables(saved(run))
        assert number(tuned.eta_t) == pytest.approx(eta, rel=1e-6)
        assert number(tuned.learning_rate) == pytest.approx(eta * 1e-4, rel=1e-6)
        assert (number(tuned.eta_t) == 1) == (eta == 1)


def test_state_between_a_constant_rate_and_a_schedule():
    scheduled = built(CosineWarmRestarts(0.2, 9), weight_decay=0.5)
    scheduled.learning_rate = 0.05
    constant = built(0.1, weight_decay=0.5)
    constant.load_own_variables(saved(scheduled))
    assert number(constant.learning_rate) == pytest.approx(0.025, rel=1e-6)
    constant.learning_rate = 0.05
    scheduled.load_own_variables(saved(constant))
    assert number(scheduled.learning_rate) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("r", [1.0, 0.5])
def test_a_constant_rate_in_a_file_of_0_1(r):
    """There r was the variable, λ was none, and nothing said what the optimizer was made with."""
    store = saved(built(0.1, weight_decay=0.5))
    layout = json.loads(store.pop("layout").tobytes())
    names = [name for name, _ in layout["variables"]]
    store[str(names.index("learning_rate"))] = np.float32(r)
    layout["variables"][names.index("learning_rate")][0] = "learning_rate_factor"
    last = names.index("weight_decay")  # in 0.1 there was none
    arrays = [array for i, array in store.items() if int(i) != last]
    del layout["variables"][last], layout["given"]
    store = {str(i): array for i, array in enumerate(arrays)}
    store["layout"] = np.frombuffer(json.dumps(layout).encode(), "uint8")

    optimizer = built(0.3, weight_decay=0.25)
    optimizer.load_own_variables(store)
    assert number(optimizer.eta_t) == r
    assert number(optimizer.learning_rate) == np.float32(np.float32(0.3) * r)
    assert float(optimizer.weight_decay) == 0.25


def test_a_files_decay_is_taken_where_it_was_made_with_the_constructors():
    run = built(0.1, weight_decay=0.5)
    run.weight_decay = 0.125
    schedule = schedules.PolynomialDecay(0.5, 9)
    for given, now in ((0.5, 0.125), (0.25, 0.25), (0, 0), (schedule, schedule)):
        optimizer = built(0.1, weight_decay=given)
        optimizer.load_own_variables(saved(run))
        assert optimizer.weight_decay is now or float(optimizer.weight_decay) == now
    fresh = built(0.1, weight_decay=0.5)
    fresh.load_own_variables(saved(optimizer))  # a file without a number is not in the way of one
    assert float(fresh.weight_decay) == 0.5


# --- the arguments, and `fast` ---


def test_an_attribute_for_each_argument():
    for cls, arguments in (
        (AdamW, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "amsgrad": True, "clipnorm": 1.0}),
        (NadamW, {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3, "momentum_decay": 1}),
        (SGDW, {"momentum": 0.9, "nesterov": True}),
    ):
        optimizer = cls(0.1, **arguments)
        assert {name: getattr(optimizer, name) for name in arguments} == arguments


@pytest.mark.parametrize(
    ("cls", "stock"),
    [
        (AdamW, keras.optimizers.AdamW),
        (NadamW, keras.optimizers.Nadam),
        (SGDW, keras.optimizers.SGD),
    ],
)
def test_positional_order_and_defaults_are_keras_own(cls, stock):
    """Of the arguments that are ours and theirs; the default of weight_decay apart. The others are by keyword."""

    def positional(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}

    ours, theirs = positional(cls), positional(stock)
    assert [name for name in ours if name in theirs] == [name for name in theirs if name in ours]
    for name in ours.keys() & theirs.keys() - {"weight_decay"}:
        assert ours[name] == theirs[name], name
    with pytest.raises(TypeError, match="positional"):
        cls(*[0.1] * 7)


def test_fast_is_an_attribute_and_in_no_config():
    optimizer = AdamW(0.1)
    assert optimizer.fast is True
    optimizer.fast = False
    assert optimizer.fast is False
    assert "fast" not in optimizer.get_config()
    assert AdamW.from_config(optimizer.get_config()).fast is True
