"""What α is, the rate at which η is 1: of a number, a schedule and a callable. See also schedule/test_base_rate.py."""

import copy
import math
import re
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers

from cases import numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts
from small import again, left, ones

schedules = keras.optimizers.schedules
close = partial(np.testing.assert_allclose, rtol=2e-7)


def number(x):
    return float(numpy(x))


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


@keras.saving.register_keras_serializable(package="test_alpha")
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


# --- a schedule: the rate is r·schedule(s), η is that over α, and r is what is set ---


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
    (schedules.PolynomialDecay(0.1, 10, 0.2), 0.1),  # at most twice what it says
    (schedules.PiecewiseConstantDecay([3], [0.5, 0.25]), 0.5),
    # by less than a percent
    (schedules.PiecewiseConstantDecay([50], [0.1, 0.1005]), np.float32(0.1)),
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


RISING = [
    (Attention(7), (512 * 7) ** -0.5),
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
    """One warning says so, with α and the user's line."""
    with pytest.warns(UserWarning, match=r"rises.*`base_learning_rate`") as caught:
        optimizer = AdamW(schedule, weight_decay=0.1)
    (said,) = (warning for warning in caught if warning.category is UserWarning)
    assert said.filename == __file__
    found = optimizer.get_config()["base_learning_rate"]
    assert found == pytest.approx(base, rel=1e-6)
    assert re.search(rf"(?<![\w.]){re.escape(format(found, 'g'))}(?![\w.]*\d)", str(said.message))
    assert AdamW(schedule, base_learning_rate=0.8).get_config()["base_learning_rate"] == 0.8


def test_a_warm_up_that_starts_at_0_trains():
    with pytest.warns(UserWarning, match="base_learning_rate"):
        optimizer = SGDW(Attention(3), weight_decay=0.5)
    eta = [0, 1 / 3, 2 / 3, 1, (3 / 4) ** 0.5]
    np.testing.assert_allclose(left(optimizer, ones(), 5), 1 - 0.5 * np.array(eta), rtol=1e-6)
    # In a config α is known: nothing is searched again, so nothing is warned of.
    config = again(optimizer).get_config()
    assert config["base_learning_rate"] == pytest.approx(1536**-0.5, rel=1e-6)


def test_a_schedule_is_asked_a_dozen_times_or_two_hundred():
    for names, most in (({"initial_learning_rate": 0.1}, 12), ({}, 202)):
        schedule = Of(lambda s: 0.1 * 0.9**s, **names)
        AdamW(schedule, weight_decay=0)
        assert schedule.calls <= most


def test_a_schedule_has_a_factor_in_place_of_a_rate():
    optimizer = SGDW(CosineWarmRestarts(0.2, 5), weight_decay=0.5)
    names = [v.name for v in optimizer.variables]
    assert not isinstance(optimizer.learning_rate, keras.Variable)
    assert ("learning_rate_factor" in names, "learning_rate" in names) == (True, False)


def test_a_copy_has_the_rate_that_was_set():
    for given in (1e-3, CosineWarmRestarts(1e-3, 9), schedules.ExponentialDecay(1e-3, 9, 0.9)):
        optimizer = AdamW(given, 0)
        optimizer.learning_rate = 5e-4
        copied = copy.deepcopy(optimizer)
        assert number(copied.learning_rate) == pytest.approx(5e-4)
        assert number(copied.eta_t) == pytest.approx(0.5)


# --- a callable ---


@keras.saving.register_keras_serializable(package="test_alpha")
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
    assert number(optimizer.t_cur) == 1
    optimizer.learning_rate = 0.05  # r = 1/2
    close(number(optimizer.eta_t), 0.125)
    close(left(optimizer, ours), 1 - 0.5 * 0.125)
    dial.value = 0.4
    close(number(optimizer.learning_rate), 0.2)


VALUES = {
    "variable": lambda variable: variable,
    "expression": lambda variable: keras.ops.convert_to_tensor(variable) * 1.0,
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_a_callable_in_fit(value):
    """On TensorFlow the optimizer is built inside a traced step, where no tensor has a value."""
    variable = keras.Variable(0.01, name="rate", trainable=False)
    model, x = keras.Sequential([keras.Input((2,)), layers.Dense(2)]), np.ones((4, 2))
    model.compile(AdamW(lambda: value(variable), weight_decay=1e-4), loss="mse")
    model.fit(x, x, verbose=0)
    assert float(model.optimizer.eta_t) == pytest.approx(1)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
