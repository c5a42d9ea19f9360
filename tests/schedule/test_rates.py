"""Odd learning rates: callables that return tensors, schedules that rise or end."""

import copy
import math
import re
import warnings

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

from keras_decoupled import AdamW, CosineWarmRestarts


def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])


X, Y = np.ones((8, 4), "float32"), np.ones((8, 1), "float32")


@pytest.mark.parametrize("kind", ["float", "tensor", "variable", "expression"])
def test_a_callable_in_fit(kind):
    """On TensorFlow the optimizer is built inside a traced step, where no tensor has a value."""
    variable = keras.Variable(0.01, name="rate", trainable=False)
    functions = {
        "float": lambda: 0.01,
        "tensor": lambda: keras.ops.convert_to_tensor(0.01),
        "variable": lambda: variable,
        "expression": lambda: keras.ops.convert_to_tensor(variable) * 1.0,
    }
    net = model()
    net.compile(AdamW(functions[kind], weight_decay=1e-4), loss="mse")
    net.fit(X, Y, verbose=0)
    assert float(net.optimizer.eta_t) == pytest.approx(1)
    assert float(net.optimizer.learning_rate) == pytest.approx(0.01)


def test_a_callable_that_cannot_be_asked_needs_a_base():
    optimizer = AdamW(lambda: "soon", weight_decay=1e-4)
    with pytest.raises(ValueError, match="base_learning_rate"):
        optimizer.build([keras.Variable(np.ones(2))])


@keras.saving.register_keras_serializable(package="test_rates")
class Attention(schedules.LearningRateSchedule):
    """Of "Attention is all you need": from 0 up to its peak at `warmup`, then down."""

    def __init__(self, warmup=4000):
        self.warmup = warmup

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rise = step * self.warmup**-1.5
        return 512**-0.5 * keras.ops.minimum(keras.ops.rsqrt(step), rise)

    def get_config(self):
        return {"warmup": self.warmup}


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


def warned_base(schedule, **arguments):
    """α of an optimizer that has to search it, with one warning that says so."""
    with pytest.warns(UserWarning, match=r"rises.*`base_learning_rate`") as caught:
        optimizer = AdamW(schedule, weight_decay=0.1, **arguments)
    (said,) = (warning for warning in caught if warning.category is UserWarning)
    assert said.filename == __file__
    base = optimizer.get_config()["base_learning_rate"]
    assert re.search(rf"\b{re.escape(format(base, 'g'))} is taken", str(said.message))
    return base


@pytest.mark.parametrize("warmup", [1, 7, 400, 3210, 4000, 250_000])
def test_the_base_of_a_warm_up_is_its_peak(warmup):
    assert warned_base(Attention(warmup)) == pytest.approx((512 * warmup) ** -0.5, rel=1e-6)


def test_a_warm_up_that_starts_at_0_trains():
    net = model()
    with pytest.warns(UserWarning, match="base_learning_rate"):
        optimizer = AdamW(Attention(3), weight_decay=0.1)
    net.compile(optimizer, loss="mse")
    net.fit(X, Y, batch_size=2, verbose=0)
    assert float(net.optimizer.eta_t) == pytest.approx(3**0.5 / 4**0.5, rel=1e-6)
    # α is in the config: nothing is searched again, so nothing is warned of.
    again = AdamW.from_config(optimizer.get_config())
    assert again.get_config()["base_learning_rate"] == pytest.approx(1536**-0.5, rel=1e-6)


@pytest.mark.parametrize("top", [1, 2, 3, 5, 8, 57, 99, 1234, 77_777, 999_999, 10**6])
def test_the_peak_is_found_to_the_step(top):
    assert warned_base(Of(lambda s: 0.1 - 0.05 * abs(s - top) / top)) == 0.1
    assert warned_base(Of(lambda s: 0.1 * 2 ** (-9 * abs(s - top) / top))) == 0.1


@pytest.mark.parametrize(
    ("schedule", "base"),
    [
        (schedules.PolynomialDecay(1e-6, 1000, 1e-3), 1e-3),
        (schedules.PiecewiseConstantDecay([50], [0.1, 0.102]), 0.102),
        (schedules.PiecewiseConstantDecay([5], [0.0, 0.1]), 0.1),
        # up between two powers of ten, and at both as at the start
        (schedules.PiecewiseConstantDecay([200, 900], [0.1, 0.3, 0.01]), 0.3),
        # up beyond the steps that are searched: α is the largest value in them
        (schedules.PiecewiseConstantDecay([5_000_000], [0.1, 0.3]), 0.1),
        (Of(lambda s: 1e-7 * s), 0.1),
        # tables that end, where they rise to the end and where they fall again
        (Of(lambda s: [0.001 * n for n in range(98)][s]), 0.097),
        (Of(lambda s: [0.001 * min(n, 80 - n) for n in range(81)][s]), 0.04),
        (Of(lambda s: math.nan if s > 7 else 0.1 * (s + 1)), 0.8),
        # what it says of itself is no more than its start
        (Of(lambda s: 0.1 * min(s, 30), initial_learning_rate=0.0), 3.0),
        (Of(lambda s: min(0.3 * s, 3.0), initial_learning_rate=0.1), 3.0),
    ],
)
def test_the_base_of_a_schedule_that_rises(schedule, base):
    assert warned_base(schedule) == pytest.approx(base, rel=1e-6)


def test_the_base_given_decides_and_is_not_warned_of():
    rising = schedules.PolynomialDecay(1e-6, 1000, 1e-3)
    optimizer = AdamW(rising, base_learning_rate=1e-3, weight_decay=1e-4)
    assert float(optimizer.eta_t) == pytest.approx(1e-3, rel=1e-4)
    with pytest.warns(UserWarning, match=r"peak at 0\.001999"):  # twice its top, not twice 1e-6
        optimizer.learning_rate = 2e-6


@pytest.mark.parametrize(
    ("schedule", "base"),
    [
        (Of(lambda s: 0.1 * 0.9**s), 0.1),
        (Of(lambda s: 0.1 + 0.0009 * (s > 9)), 0.1),  # by less than a percent
        (Of(lambda s: 0.1 + 0.1 * (s > 9), initial_learning_rate=0.1), 0.1),  # at most twice
        (Of(lambda s: min(0.001 * s, 0.1), initial_learning_rate=0.1), 0.1),  # it says its peak
        (Of(lambda s: 1.0, warmup_target=0.1, initial_learning_rate=0.0), 0.1),
        (CosineWarmRestarts(0.1, 10, eta_max=3.0), 0.1),  # η is a multiple of 0.1 by its definition
    ],
)
def test_a_schedule_that_says_its_base_or_does_not_rise(schedule, base):
    assert AdamW(schedule, weight_decay=0).get_config()["base_learning_rate"] == base


def test_an_ordinary_schedule_is_asked_a_dozen_times():
    schedule = Of(lambda s: 0.1 * 0.9**s, initial_learning_rate=0.1)
    AdamW(schedule, weight_decay=0)
    assert schedule.calls <= 12
    schedule = Of(lambda s: 0.1 * 0.9**s)
    AdamW(schedule, weight_decay=0)
    assert schedule.calls <= 202


@pytest.mark.filterwarnings("error")
def test_asking_a_schedule_warns_of_nothing():
    def warns_late(s):
        if s > 100:
            warnings.warn("beyond the end of training", RuntimeWarning, stacklevel=2)
        return 0.1

    AdamW(Of(warns_late), weight_decay=0)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_schedule_of_no_usable_rate_is_refused(value):
    with pytest.raises(ValueError, match=r"value at step 0.*Received: .*`base_learning_rate`"):
        AdamW(Of(lambda s: value))


def test_a_schedule_that_rises_without_a_bound_is_refused():
    with pytest.raises(ValueError, match=r"largest value, at step 8.*Received: inf\. Pass `base_l"):
        AdamW(Of(lambda s: 0.1 if s < 8 else math.inf))


def test_a_schedule_that_fails_at_once_says_why_itself():
    with pytest.raises(ZeroDivisionError):
        AdamW(Of(lambda s: 1 / s))


class Lookup(schedules.LearningRateSchedule):
    def __call__(self, step):
        if int(step) >= 100:
            raise IndexError(step)
        return 0.1 - 0.001 * float(step)


def test_a_schedule_that_ends_is_asked_no_further():
    assert float(AdamW(Lookup(), weight_decay=0).eta_t) == 1


def test_a_class_is_no_schedule():
    with pytest.raises(TypeError, match=r"Make an instance: ExponentialDecay\(\.\.\.\)"):
        AdamW(schedules.ExponentialDecay)


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 1e-3},
        {"learning_rate": 1e-3, "use_cosine_annealing": True, "total_iterations": 9},
        {"learning_rate": CosineWarmRestarts(1e-3, 9)},
        {"learning_rate": schedules.ExponentialDecay(1e-3, 9, 0.9)},
    ],
)
def test_a_copy_has_the_rate_that_was_set(arguments):
    optimizer = AdamW(weight_decay=0, **arguments)
    optimizer.learning_rate = 5e-4
    assert float(copy.deepcopy(optimizer).learning_rate) == pytest.approx(5e-4)
    assert float(copy.deepcopy(optimizer).eta_t) == pytest.approx(0.5)


def test_the_rate_in_the_config_is_the_number_given():
    optimizer = AdamW(1e-4, base_learning_rate=3e-4, weight_decay=0)
    assert optimizer.get_config()["learning_rate"] == pytest.approx(1e-4, rel=1e-15)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_moving_average_of_low_precision_follows(dtype):
    """In bfloat16 a momentum of 0.999 is 1, and the average would stay where it began."""
    variable = keras.Variable(np.ones(2), dtype=dtype)
    optimizer = AdamW(weight_decay=1e-2, use_ema=True, ema_momentum=0.995)
    zeros = keras.ops.zeros((2,), dtype)
    theta = average = 1.0
    for k in range(60):
        optimizer.apply([zeros], [variable])
        theta *= 1 - 1e-2
        average = theta if k == 0 else 0.995 * average + 0.005 * theta
    optimizer.finalize_variable_values([variable])
    wanted = pytest.approx(average, rel=1e-5 if dtype == "float32" else 4e-3)
    assert keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))[0] == wanted
