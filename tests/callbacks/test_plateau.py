"""`RestartOnPlateau` restarts where Keras' ReduceLROnPlateau reduces, given the same metrics."""

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

from cases import BACKEND
from keras_decoupled import AdamW, CosineWarmRestarts, WarmupStableDecay
from keras_decoupled.callbacks import RestartOnPlateau

EPOCHS = 25


def compiled(optimizer, **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **arguments)
    return model


def ours(**arguments):
    return compiled(AdamW(CosineWarmRestarts(0.1, 100), weight_decay=0), **arguments)


def told(callback, model, metrics, acted):
    """Give the callback the logs of some epochs: the epochs at whose end it acts."""
    callback.set_model(model)
    callback.on_train_begin()
    epochs = []
    for epoch, logs in enumerate(metrics):
        callback.on_epoch_end(epoch, dict(logs))
        if acted(model.optimizer):
            epochs.append(epoch)
    return epochs


def restarts(callback, metrics, model=None):
    def restarted(optimizer):
        position, optimizer.t_cur = int(optimizer.t_cur), 3
        return position == 0

    model = model or ours()
    model.optimizer.t_cur = 3
    return told(callback, model, metrics, restarted)


def reductions(callback, metrics):
    def reduced(optimizer):
        rate, optimizer.learning_rate = float(optimizer.learning_rate), 1.0
        return rate < 1

    return told(callback, compiled(keras.optimizers.SGD(1.0)), metrics, reduced)


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": 0},
        {"patience": 1, "cooldown": 2, "min_delta": 0.2},
        {"patience": 2, "cooldown": 1, "min_delta": 0.0, "mode": "max"},
        {"patience": 4, "monitor": "loss", "mode": "min", "min_delta": 0.05},
    ],
)
def test_like_keras(arguments):
    rng, n, model = np.random.default_rng(0), 0, ours()
    for _ in range(3):
        values = np.linspace(1, 0.5, EPOCHS) + rng.normal(scale=0.2, size=EPOCHS)
        metrics = [{"loss": v, "val_loss": v + 0.1} for v in values]
        wanted = reductions(keras.callbacks.ReduceLROnPlateau(**arguments), metrics)
        assert restarts(RestartOnPlateau(**arguments), metrics, model) == wanted
        n += len(wanted)
    assert n > 3


def test_auto_asks_the_metric():
    model = ours(metrics=["binary_accuracy"])
    model.evaluate(np.ones((2, 3)), np.ones((2, 1)), verbose=0)  # now it has its metrics
    rising = [{"val_binary_accuracy": 0.1 * i} for i in range(6)]
    callback = RestartOnPlateau("val_binary_accuracy", patience=2)
    assert restarts(callback, rising, model) == []
    assert restarts(callback, rising[::-1], model) == [2, 4]
    with pytest.raises(ValueError, match=r"^RestartOnPlateau .*Pass `mode='max'`"):
        restarts(RestartOnPlateau("unknown"), [{"unknown": 1.0}], model)


def test_each_fit_begins_anew():
    callback = RestartOnPlateau("loss", patience=2)
    assert restarts(callback, [{"loss": 1.0}] * 2) == []
    assert restarts(callback, [{"loss": 2.0}] * 2) == []
    assert restarts(callback, [{"loss": 2.0}] * 3) == [2]


def test_an_epoch_without_the_metric_does_not_count():
    """As with validation_freq=2."""
    with_and_without = [{"val_loss": 1.0}, {"loss": 1.0}] * 2
    with pytest.warns(UserWarning, match=r"looks at 'val_loss', .* The logs have: loss\."):
        assert restarts(RestartOnPlateau(patience=2), with_and_without) == []
    with pytest.warns(UserWarning, match="'val_loss'"):
        assert restarts(RestartOnPlateau(patience=1), with_and_without) == [2]


def test_verbose(capsys):
    restarts(RestartOnPlateau("loss", 1), [{"loss": 1.0}] * 3)
    assert capsys.readouterr().out == ""
    restarts(RestartOnPlateau("loss", 1, verbose=1), [{"loss": 1.0}] * 2)
    assert "Epoch 2: RestartOnPlateau restarts" in capsys.readouterr().out


def test_other_schedules():
    for schedule in (WarmupStableDecay(0.1, 2, 3, 1), schedules.ExponentialDecay(0.1, 3, 0.5)):
        model = compiled(AdamW(schedule, weight_decay=0))
        assert restarts(RestartOnPlateau("loss", 1), [{"loss": 1.0}] * 3, model) == [1, 2]


def test_in_fit_inside_a_loss_scale_optimizer():
    optimizer = AdamW(CosineWarmRestarts(0.1, 4, t_mul=2, warmup_steps=1), weight_decay=0)
    eager = {"run_eagerly": BACKEND == "tensorflow"}  # its graph takes seconds
    model = compiled(keras.optimizers.LossScaleOptimizer(optimizer, 8.0), **eager)
    x, y = np.ones((6, 3)), np.ones((6, 1))
    restart = RestartOnPlateau("loss", patience=1, min_delta=1e9)
    model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[restart])
    assert int(optimizer.t_cur) == 0
    assert float(optimizer.eta_t) == 1
    assert int(optimizer.iterations) == 6


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: AdamW(0.1, weight_decay=0), r"needs a schedule to restart: .* Received: "),
        (lambda: AdamW(lambda: 0.1, weight_decay=0), r"needs a schedule to restart: "),
        (lambda: keras.optimizers.SGD(CosineWarmRestarts(0.1, 3)), r"`RestartOnPlateau` needs an "),
    ],
)
def test_nothing_to_restart(optimizer, message):
    callback = RestartOnPlateau()
    callback.set_model(compiled(optimizer()))
    with pytest.raises(ValueError, match=message):
        callback.on_train_begin()


def test_wrong_arguments():
    wrong = [("patience", -1), ("patience", 1.5), ("cooldown", -1), ("min_delta", -0.1)]
    for name, value in [*wrong, ("mode", "up")]:
        with pytest.raises(ValueError, match=rf"`{name}` must be .* Received: {name}="):
            RestartOnPlateau(**{name: value})
