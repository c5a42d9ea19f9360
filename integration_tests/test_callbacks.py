"""Keras' callbacks, ours, and restarts from everywhere, in real `fit` runs."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW, WarmupStableDecay
from keras_decoupled.callbacks import LogRates, SnapshotEnsemble
from training import Weights

BATCHES = 5  # per epoch
OPTIMIZERS = pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2 * BATCHES, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32") + 1


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def compiled(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    return model


def fit(model, *callbacks, epochs=1):
    arguments = {"batch_size": 2, "shuffle": False, "verbose": 0}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **arguments)


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
    fit(model, scheduler, record, epochs=3)
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
    fit(model, plateau, record, epochs=3)
    cosine = np.array([float(schedule.multiplier(i)) for i in range(BATCHES)])
    wanted = np.concatenate([cosine, cosine, cosine / 2])  # no plateau after the first epoch
    np.testing.assert_allclose(record.etas, wanted, rtol=1e-6)


@OPTIMIZERS
def test_restart_between_fits_batches_and_from_a_callback(cls):
    schedule, record = CosineWarmRestarts(0.01, 10, t_mul=2), Record()
    model = compiled(cls(schedule, weight_decay=1e-3))
    fit(model, record)
    model.optimizer.restart()
    fit(model, record)
    model.optimizer.t_cur = 7
    fit(model, record)
    model.optimizer.restart(2)
    model.train_on_batch(X, Y)
    model.optimizer.restart(5)
    model.train_on_batch(X, Y)
    assert int(model.optimizer.t_cur) == 6
    fit(model, record, RestartAt(1, 3))
    expected = [*range(5), *range(5), 7, 8, 9, 0, 1, 6, 7, 3, 4, 5]
    assert record.positions == expected


@pytest.mark.parametrize(
    ("schedule", "action", "eta"),
    [
        (CosineWarmRestarts(0.01, 10), AdamW.restart, 1),
        (WarmupStableDecay(0.01, None, 6, 3, "linear"), AdamW.begin_decay, 0.6),
    ],
)
def test_from_a_closure(schedule, action, eta):
    """On JAX the optimizer holds no state inside an epoch: say so, and change nothing."""
    optimizer = AdamW(schedule, weight_decay=1e-3)
    model = compiled(optimizer)

    class Closure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            action(optimizer)

    if keras.backend.backend() == "jax":
        with pytest.raises(RuntimeError, match=r"go through `self\.model\.optimizer`"):
            fit(model, Closure())
    else:
        fit(model, Closure())  # the decay began after the warm-up of 3: two updates ago
        assert float(optimizer.eta_t) == pytest.approx(eta)


class Killed(BaseException):
    pass


class KillAfter(keras.callbacks.Callback):
    """Kills this run after its n-th batch."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Killed


def run(wrapped, *callbacks):
    """Cycles end after 3, 6, 9, 12 and 15 batches; epochs after 5, 10 and 15."""
    keras.utils.set_random_seed(1)
    optimizer = SGDW(CosineWarmRestarts(0.05, 3), momentum=0.9, weight_decay=1e-3)
    model = compiled(keras.optimizers.LossScaleOptimizer(optimizer, 8.0) if wrapped else optimizer)
    fit(model, *callbacks, epochs=3)
    return model


def assert_same(found, wanted, where=""):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=where)


@pytest.mark.parametrize(
    ("kills", "wrapped", "ends"),
    [  # each kill after so many batches of the run that it ends
        # after 7, then after 13: the cycles of 6, and of 12, are trained twice
        ([7, 8], False, [3, 6, 6, 9, 12, 12, 15]),
        ([14], True, [3, 6, 9, 12, 12, 15]),
    ],
)
def test_a_killed_run_writes_the_repeated_epoch_again(kills, wrapped, ends):
    """Under new numbers: what was there before the kill stays, as does another model's file."""
    weights = Weights()
    run(wrapped, weights)
    snapshots = SnapshotEnsemble("snapshots/{cycle}.weights.h5")
    backup = keras.callbacks.BackupAndRestore("backup", double_checkpoint=True)
    other, first = Path("snapshots/3.weights.h5"), 4
    other.parent.mkdir()
    other.write_bytes(b"of another run")
    for batches in kills:
        with pytest.raises(Killed):
            run(wrapped, snapshots, backup, KillAfter(batches))
    Path("snapshots/99.part.weights.h5").write_bytes(b"half")  # killed while it wrote
    model = run(wrapped, snapshots, backup)
    assert_same(model.get_weights(), weights.seen[-1])
    names = [f"{i}.weights.h5" for i in range(first - 1, first + len(ends))]
    assert [Path(file).name for file in snapshots.files()] == names
    assert other.read_bytes() == b"of another run"
    for file, end in zip(snapshots.files()[1:], ends, strict=True):
        model.load_weights(file)
        assert_same(model.get_weights(), weights.seen[end], f"{file}, after {end} batches")


if keras.backend.backend() == "tensorflow":  # which Keras' TensorBoard needs

    @pytest.mark.parametrize("ours", [[], [LogRates()]], ids=["Keras alone", "LogRates"])
    def test_tensorboard(ours):
        import tensorflow as tf

        model = compiled(AdamW(CosineWarmRestarts(0.05, 4), weight_decay=1e-3))
        board, rates = keras.callbacks.TensorBoard("logs", write_graph=False), []
        rate = lambda epoch, logs: rates.append(float(model.optimizer.learning_rate))  # noqa: E731
        note = keras.callbacks.LambdaCallback(on_epoch_end=rate)
        history = fit(model, *ours, board, note, epochs=2).history | {"learning_rate": rates}
        for name in ("learning_rate", *(["eta", "t_cur", "weight_decay"] if ours else [])):
            logged = [
                float(tf.make_ndarray(value.tensor))
                for file in Path("logs/train").iterdir()
                for event in tf.compat.v1.train.summary_iterator(str(file))
                for value in event.summary.value
                if value.tag == f"epoch_{name}"
            ]
            np.testing.assert_allclose(logged, history[name], rtol=1e-6)
