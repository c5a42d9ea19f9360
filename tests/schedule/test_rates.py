"""Odd learning rates: callables that return tensors, schedules that rise or end."""

import copy

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


def test_a_warm_up_in_the_shape_of_a_decay_needs_a_base():
    rising = schedules.PolynomialDecay(1e-6, 1000, 1e-3)
    with pytest.raises(ValueError, match=r"it rises: 1e-06 at step 0.*Pass `base_learning_rate`"):
        AdamW(rising)
    optimizer = AdamW(rising, base_learning_rate=1e-3, weight_decay=1e-4)
    assert float(optimizer.eta_t) == pytest.approx(1e-3, rel=1e-4)


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
