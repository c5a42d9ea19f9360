"""`LogRates`: the numbers of the next update, at the end of each epoch."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers import schedules

from cases import BACKEND
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, WarmupStableDecay
from keras_decoupled.callbacks import LogRates

X, Y = np.ones((6, 3), "float32"), np.zeros((6, 1), "float32")
NAMES = {"learning_rate", "eta", "t_cur", "weight_decay"}
COSINE = CosineWarmRestarts(0.1, 4, t_mul=2)


def compiled(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", run_eagerly=BACKEND == "tensorflow")  # its graph takes seconds
    return model


def logged(optimizer, *callbacks, epochs):
    """The logs of epochs of three batches."""
    fit = {"batch_size": 2, "epochs": epochs, "verbose": 0, "callbacks": [*callbacks, LogRates()]}
    return compiled(optimizer).fit(X, Y, **fit).history


def log(optimizer):
    """What it logs before the first update."""
    callback, logs = LogRates(), {}
    callback.set_model(compiled(optimizer))
    callback.on_train_begin()
    callback.on_epoch_end(0, logs)
    return logs


def wanted(schedule, *updates):
    return [float(schedule(k)) for k in updates]


def test_a_cosine():
    found = logged(AdamW(COSINE, weight_decay=1e-3), epochs=3)
    assert found.keys() == {"loss", *NAMES}
    np.testing.assert_allclose(found["learning_rate"], wanted(COSINE, 3, 6, 9), rtol=1e-6)
    np.testing.assert_allclose(found["eta"], np.divide(found["learning_rate"], 0.1), rtol=1e-6)
    assert found["t_cur"] == [3, 2, 5]
    np.testing.assert_allclose(found["weight_decay"], 1e-3)
    assert {type(x) for name in NAMES for x in found[name]} == {float, int}  # for JSON and CSV


def test_accumulated_gradients_and_a_schedule_as_decay():
    """Both are asked at updates, not at batches."""
    decay = schedules.PiecewiseConstantDecay([1, 2], [3e-3, 2e-3, 1e-3])
    schedule = WarmupStableDecay(0.1, 1, 4, 2)
    optimizer = SGDW(schedule, weight_decay=Decay(decay), gradient_accumulation_steps=2)
    found = logged(optimizer, epochs=2)
    np.testing.assert_allclose(found["learning_rate"], wanted(schedule, 1, 3), rtol=1e-6)
    np.testing.assert_allclose(found["weight_decay"], [3e-3, 1e-3], rtol=1e-6)
    assert found["t_cur"] == [0, 1]


class OfTensors(schedules.LearningRateSchedule):
    """Takes tensors only."""

    def __call__(self, step):
        assert ops.is_tensor(step)
        return 1e-3 / (1 + ops.cast(step, "float32"))

    def get_config(self):
        return {}


def test_a_decay_that_takes_tensors():
    found = logged(AdamW(0.1, weight_decay=OfTensors()), epochs=1)
    np.testing.assert_allclose(found["weight_decay"], [1e-3 / 4], rtol=1e-6)


def test_what_callbacks_set_before_it():
    def halve(epoch, logs):
        optimizer = callback.model.optimizer
        optimizer.learning_rate = float(optimizer.learning_rate) / 2
        optimizer.weight_decay = float(optimizer.weight_decay) / 2

    callback = keras.callbacks.LambdaCallback(on_epoch_end=halve)
    found = logged(AdamW(0.1, weight_decay=Decay(1e-3, eta_power=2)), callback, epochs=2)
    np.testing.assert_allclose(found["learning_rate"], [0.05, 0.025], rtol=1e-6)
    np.testing.assert_allclose(found["eta"], [0.5, 0.25], rtol=1e-6)
    np.testing.assert_allclose(found["weight_decay"], [5e-4, 2.5e-4], rtol=1e-6)


def test_what_an_optimizer_has():
    no_uniform_decay = AdamW(0.1, weight_decays={"kernel": 1e-3})
    ours = {"learning_rate": pytest.approx(0.1), "eta": 1, "t_cur": 0}
    assert log(no_uniform_decay) == ours
    wrapped = keras.optimizers.LossScaleOptimizer(AdamW(COSINE, weight_decay=1e-3), 8.0)
    assert log(wrapped) == ours | {"weight_decay": pytest.approx(1e-3)}
    for rate in (0.1, COSINE):
        stock = keras.optimizers.AdamW(rate, weight_decay=1e-3)
        assert log(stock) == {"learning_rate": pytest.approx(0.1)}


if hasattr(keras.optimizers, "MultiOptimizer"):  # since Keras 3.15

    def test_a_multi_optimizer_has_several():
        default = AdamW(0.1, weight_decay=0)
        optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(default))
        with pytest.raises(ValueError, match=r"`LogRates` needs .* Received: optimizer="):
            log(optimizer)
