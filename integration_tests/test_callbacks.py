"""Keras' callbacks, ours, and restarts from everywhere, in real `fit` runs."""

from pathlib import Path

import keras
import numpy as np
import pytest

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW, WarmupStableDecay
from keras_decoupled.callbacks import LogRates, SnapshotEnsemble
from training import Weights

BATCHES = 5  # per epoch
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


class AfterBatch(keras.callbacks.Callback):
    """Calls a function of the optimizer after the n-th batch."""

    def __init__(self, n, function):
        super().__init__()
        self.left, self.function = n, function

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.function(self.model.optimizer)


def test_learning_rate_scheduler_moves_eta():
    model, record = compiled(AdamW(0.1, weight_decay=1e-3)), Record()
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / 2**epoch)
    fit(model, scheduler, record, epochs=3)
    np.testing.assert_allclose(record.etas, np.repeat([1, 0.5, 0.25], BATCHES), rtol=1e-6)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)


def test_reduce_on_plateau_composes_with_restarts():
    schedule = CosineWarmRestarts(0.01, BATCHES)
    model, record = compiled(SGDW(schedule, weight_decay=1e-3)), Record()
    plateau = keras.callbacks.ReduceLROnPlateau(
        monitor="loss", factor=0.5, patience=0, min_delta=1e9, cooldown=0, min_lr=0
    )
    # The plateau sees an epoch end where the next update starts a cycle: η = r.
    fit(model, plateau, record, epochs=3)
    cosine = np.array([float(schedule.multiplier(i)) for i in range(BATCHES)])
    wanted = np.concatenate([cosine, cosine, cosine / 2])  # no plateau after the first epoch
    np.testing.assert_allclose(record.etas, wanted, rtol=1e-6)


def test_restart_between_fits_batches_and_from_a_callback():
    schedule, record = CosineWarmRestarts(0.01, 10, t_mul=2), Record()
    model = compiled(NadamW(schedule, weight_decay=1e-3))
    fit(model, record)
    model.optimizer.restart()
    fit(model, record)
    model.optimizer.t_cur = 7
    fit(model, record)
    model.optimizer.restart(5)
    model.train_on_batch(X, Y)
    assert int(model.optimizer.t_cur) == 6
    fit(model, record, AfterBatch(2, lambda optimizer: optimizer.restart(3)))
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
    act = lambda batch, logs: action(optimizer)  # noqa: E731
    model, closure = compiled(optimizer), keras.callbacks.LambdaCallback(on_train_batch_end=act)
    if keras.backend.backend() == "jax":
        with pytest.raises(RuntimeError, match=r"go through `self\.model\.optimizer`"):
            fit(model, closure)
    else:
        fit(model, closure)  # the decay began after the warm-up of 3: two updates ago
        assert float(optimizer.eta_t) == pytest.approx(eta)


class Killed(BaseException):
    pass


def kill(optimizer):
    raise Killed


def run(*callbacks):
    """Cycles end after 3, 6, 9, 12 and 15 batches; epochs after 5, 10 and 15."""
    keras.utils.set_random_seed(1)
    optimizer = SGDW(CosineWarmRestarts(0.05, 3), momentum=0.9, weight_decay=1e-3)
    model = compiled(keras.optimizers.LossScaleOptimizer(optimizer, 8.0))
    fit(model, *callbacks, epochs=3)
    return model


def assert_same(found, wanted, where=""):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=where)


def test_a_killed_run_writes_the_repeated_epoch_again():
    """Under new numbers: what was there before the kill stays, as does another model's file."""
    weights = Weights()
    run(weights)
    snapshots = SnapshotEnsemble("snapshots/{cycle}.weights.h5")
    backup = keras.callbacks.BackupAndRestore("backup", double_checkpoint=True)
    other = Path("snapshots/3.weights.h5")
    other.parent.mkdir()
    other.write_bytes(b"of another run")
    for batches in (7, 8):  # after 7, then after 13: the cycles of 6, and of 12, are trained twice
        with pytest.raises(Killed):
            run(snapshots, backup, AfterBatch(batches, kill))
    ends = [3, 6, 6, 9, 12, 12, 15]
    Path("snapshots/99.part.weights.h5").write_bytes(b"half")  # killed while it wrote
    model = run(snapshots, backup)
    assert_same(model.get_weights(), weights.seen[-1])
    names = [f"{i}.weights.h5" for i in range(3, 4 + len(ends))]
    assert [Path(file).name for file in snapshots.files()] == names
    assert other.read_bytes() == b"of another run"
    for file, end in zip(snapshots.files()[1:], ends, strict=True):
        model.load_weights(file)
        assert_same(model.get_weights(), weights.seen[end], f"{file}, after {end} batches")


if keras.backend.backend() == "tensorflow":  # which Keras' TensorBoard needs

    def test_tensorboard():
        import tensorflow as tf

        model, rates = compiled(AdamW(CosineWarmRestarts(0.05, 4), weight_decay=1e-3)), []

        def note(epoch, logs):
            rates.append(float(model.optimizer.learning_rate))

        last = keras.callbacks.LambdaCallback(on_epoch_end=note)
        names = ["learning_rate", "eta", "t_cur", "weight_decay"]
        for folder, ours, columns in (("alone", [], names[:1]), ("ours", [LogRates()], names)):
            rates.clear()
            board = keras.callbacks.TensorBoard(folder, write_graph=False)
            history = fit(model, *ours, board, last, epochs=2).history | {"learning_rate": rates}
            (file,) = Path(folder, "train").iterdir()
            for name in columns:
                logged = [
                    float(tf.make_ndarray(value.tensor))
                    for event in tf.compat.v1.train.summary_iterator(str(file))
                    for value in event.summary.value
                    if value.tag == f"epoch_{name}"
                ]
                np.testing.assert_allclose(logged, history[name], rtol=1e-6)
