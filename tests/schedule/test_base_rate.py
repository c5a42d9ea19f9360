"""α where nobody gave it: a mistake in the user's function is told as it is, and a peak is searched."""

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

from cases import make_variable
from keras_decoupled import AdamW


class Of(schedules.LearningRateSchedule):
    """Any function of the step, computed in Python."""

    def __init__(self, function):
        self.function = function

    def __call__(self, step):
        return self.function(int(step))

    def get_config(self):
        return {}


def built(rate, **arguments):
    optimizer = AdamW(rate, weight_decay=1e-4, **arguments)
    optimizer.build([make_variable("kernel", np.ones(2))])
    return optimizer


def fitted(rate):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(AdamW(rate, weight_decay=1e-4), loss="mse")
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)


@pytest.mark.parametrize(
    ("use", "error"), [(built, TypeError), (built, RuntimeError), (fitted, NameError)]
)
def test_a_mistake_in_a_callable_is_told_as_it_is(use, error):
    def rate():
        raise error("name 'lerning_rate' is not defined")

    with pytest.raises(error, match="'lerning_rate' is not defined"):
        use(rate)


@pytest.mark.parametrize("value", ["soon", None, np.ones(2), float("nan"), 0.0])
def test_a_callable_that_returns_no_rate_needs_a_base(value):
    with pytest.raises(ValueError, match=r"callable.*Received: .*Pass `base_learning_rate`"):
        built(lambda: value)
    assert built(lambda: value, base_learning_rate=0.1)


def test_a_callable_may_read_its_own_optimizer():
    optimizer = AdamW(lambda: 0.1 / (1 + optimizer.iterations.numpy()), weight_decay=1e-4)
    optimizer.build([make_variable("kernel", np.ones(2))])
    assert float(optimizer.eta_t) == 1


@pytest.mark.parametrize("end", [IndexError, KeyError, OverflowError, ValueError])
def test_a_schedule_may_end_but_a_mistake_is_told_where_it_comes(end):
    def rate(step, error=end):
        if step >= 100:
            raise error("wramup")
        return 0.1 - 0.001 * step

    assert AdamW(Of(rate), weight_decay=0).get_config()["base_learning_rate"] == 0.1
    with pytest.raises(NameError, match="wramup"):
        AdamW(Of(lambda step: rate(step, NameError)))


@pytest.mark.parametrize("top", [1, 57, 77_777, 10**6])
def test_the_base_of_a_rising_schedule_is_its_largest_value_at_the_steps(top):
    """They grow by 7%: one of them is within 4% of any peak."""
    with pytest.warns(UserWarning, match=r"rises.*step (\d+), of 176 asked.*`base_learning_rate`"):
        optimizer = AdamW(Of(lambda s: 0.1 - 0.1 * abs(s - top) / top), weight_decay=0)
    base = optimizer.get_config()["base_learning_rate"]
    assert 0.096 < base <= 0.1
    assert base == 0.1 or top in (57, 77_777)
