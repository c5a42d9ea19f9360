"""Keras' callbacks, and restarts from everywhere, in real `fit` runs."""

import keras
import numpy as np
import pytest

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW

BATCHES = 4  # per epoch
OPTIMIZERS = pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])


def data():
    rng = np.random.default_rng(0)
    x = rng.random((8 * BATCHES, 3), "float32")
    return x, x @ np.array([[1.0], [-2.0], [0.5]], "float32")


def compiled(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    return model


def fit(model, epochs=1, **arguments):
    return model.fit(*data(), batch_size=8, epochs=epochs, shuffle=False, verbose=0, **arguments)


class Record(keras.callbacks.Callback):
    """η and position before each update."""

    def __init__(self):
        super().__init__()
        self.etas, self.positions = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.etas.append(float(self.model.optimizer.eta_t))
        self.positions.append(int(self.model.optimizer.t_cur))


class RestartAt(keras.callbacks.Callback):
    def __init__(self, batch, position=0):
        super().__init__()
        self.batch, self.position = batch, position

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.model.optimizer.restart(self.position)


@OPTIMIZERS
def test_learning_rate_scheduler_moves_eta(cls):
    model, record = compiled(cls(0.1, weight_decay=1e-3)), Record()
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / 2**epoch)
    fit(model, 3, callbacks=[scheduler, record])
    np.testing.assert_allclose(record.etas, np.repeat([1, 0.5, 0.25], BATCHES), rtol=1e-6)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)


@OPTIMIZERS
def test_reduce_on_plateau_composes_with_restarts(cls):
    schedule = CosineWarmRestarts(0.01, BATCHES)
    model, record = compiled(cls(schedule, weight_decay=1e-3)), Record()
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=0, min_delta=1e9, cooldown=0, min_lr=0
    )
    # The plateau sees an epoch end where the next update starts a cycle: η = r.
    fit(model, 3, callbacks=[plateau, record])
    cosine = np.array([float(schedule.multiplier(i)) for i in range(BATCHES)])
    wanted = np.concatenate([cosine, cosine, cosine / 2])  # no plateau after the first epoch
    np.testing.assert_allclose(record.etas, wanted, rtol=1e-6)


@OPTIMIZERS
def test_restart_between_fits_batches_and_from_a_callback(cls):
    schedule, record = CosineWarmRestarts(0.01, 10, t_mul=2), Record()
    model = compiled(cls(schedule, weight_decay=1e-3))
    fit(model, callbacks=[record])
    model.optimizer.restart()
    fit(model, callbacks=[record])
    model.optimizer.t_cur = 7
    fit(model, callbacks=[record])
    x, y = data()
    model.optimizer.restart(2)
    model.train_on_batch(x, y)
    model.optimizer.restart(5)
    model.train_on_batch(x, y)
    assert int(model.optimizer.t_cur) == 6
    fit(model, callbacks=[record, RestartAt(1, 3)])
    assert record.positions == [0, 1, 2, 3, 0, 1, 2, 3, 7, 8, 9, 0, 6, 7, 3, 4]


def test_restart_from_a_closure():
    """On JAX the optimizer holds no state inside an epoch: say so, and change nothing."""
    optimizer = AdamW(CosineWarmRestarts(0.01, 10), weight_decay=1e-3)
    model = compiled(optimizer)
    fit(model)

    class Closure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer.restart()

    if keras.backend.backend() == "jax":
        with pytest.raises(RuntimeError, match=r"go through `self\.model\.optimizer`"):
            fit(model, callbacks=[Closure()])
    else:
        fit(model, callbacks=[Closure()])
        assert int(optimizer.t_cur) == 0


def test_checkpoint_and_backup_go_on_in_the_cycle(tmp_path):
    def make():
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(2)
        return compiled(
            NadamW(0.01, weight_decay=1e-3, use_cosine_annealing=True, total_iterations=6)
        )

    straight = make()
    fit(straight, 4)

    checkpointed = make()
    fit(checkpointed, 2, callbacks=[keras.callbacks.ModelCheckpoint(str(tmp_path / "c.keras"))])
    loaded = keras.models.load_model(tmp_path / "c.keras")
    assert int(loaded.optimizer.t_cur) == 2
    fit(loaded, 2)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    backup = tmp_path / "backup"
    interrupted = make()
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, 4, callbacks=[keras.callbacks.BackupAndRestore(str(backup)), Stop()])
    resumed = make()
    fit(resumed, 4, callbacks=[keras.callbacks.BackupAndRestore(str(backup))])
    for model in (loaded, resumed):
        for a, b in zip(straight.trainable_variables, model.trainable_variables, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)
        assert int(model.optimizer.iterations) == 4 * BATCHES


if keras.backend.backend() == "tensorflow":  # which Keras' TensorBoard needs

    def test_tensorboard_logs_the_learning_rate(tmp_path):
        import tensorflow as tf

        model = compiled(AdamW(CosineWarmRestarts(0.01, 2 * BATCHES), weight_decay=1e-3))
        fit(model, callbacks=[keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)])
        logged = [
            float(tf.make_ndarray(value.tensor))
            for file in (tmp_path / "train").iterdir()
            for event in tf.compat.v1.train.summary_iterator(str(file))
            for value in event.summary.value
            if value.tag == "epoch_learning_rate"
        ]
        assert logged == [float(model.optimizer.learning_rate)]
        assert 0 < logged[0] < 0.01
