"""Our callbacks beside Keras' own: a run that is killed and resumed, CSVLogger, TensorBoard."""

import csv
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts
from keras_decoupled.callbacks import LogRates, RestartOnPlateau, SnapshotEnsemble

BATCHES, EPOCHS = 5, 3
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


def fit(model, *callbacks, epochs=EPOCHS, **arguments):
    arguments = {"batch_size": 2, "shuffle": False, "verbose": 0} | arguments
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **arguments)


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


class Weights(keras.callbacks.Callback):
    """The weights after each batch, from the first on."""

    def __init__(self):
        super().__init__()
        self.seen = [None]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())


def run(wrapped, *callbacks):
    """Cycles end after 3, 6, 9, 12 and 15 batches; epochs after 5, 10 and 15."""
    keras.utils.set_random_seed(1)
    optimizer = SGDW(CosineWarmRestarts(0.05, 3), momentum=0.9, weight_decay=1e-3)
    model = compiled(keras.optimizers.LossScaleOptimizer(optimizer, 8.0) if wrapped else optimizer)
    fit(model, *callbacks)
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
    """Under new numbers: what was there before the kill stays, and so does a file of another model."""
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


def test_csv_and_history_and_ensemble():
    schedule = CosineWarmRestarts(0.05, 4, t_mul=2)
    model = compiled(AdamW(schedule, weight_decay=1e-3))
    snapshots = SnapshotEnsemble("{cycle:02d}.weights.h5")
    logger = keras.callbacks.CSVLogger("log.csv")
    plateau = RestartOnPlateau("val_loss", patience=9)
    history = fit(model, snapshots, plateau, LogRates(), logger, validation_data=(X, Y)).history
    updates = [BATCHES * epoch for epoch in range(1, EPOCHS + 1)]
    wanted = {
        "learning_rate": [float(schedule(k)) for k in updates],
        "eta": [float(schedule.multiplier(k)) for k in updates],
        "t_cur": [1, 6, 3],
        "weight_decay": [1e-3] * EPOCHS,
    }
    with open("log.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name, values in wanted.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
        np.testing.assert_allclose([float(row[name]) for row in rows], values, rtol=1e-6)
    assert snapshots.files() == ["00.weights.h5", "01.weights.h5"]
    assert snapshots.predict(model, X, verbose=0).shape == Y.shape


if keras.backend.backend() == "tensorflow":  # which Keras' TensorBoard needs

    def test_tensorboard():
        import tensorflow as tf

        model = compiled(AdamW(CosineWarmRestarts(0.05, 4), weight_decay=1e-3))
        board = keras.callbacks.TensorBoard("logs", write_graph=False)
        history = fit(model, LogRates(), board, epochs=2).history
        for name in ("learning_rate", "eta", "t_cur", "weight_decay"):
            logged = [
                float(tf.make_ndarray(value.tensor))
                for file in Path("logs/train").iterdir()
                for event in tf.compat.v1.train.summary_iterator(str(file))
                for value in event.summary.value
                if value.tag == f"epoch_{name}"
            ]
            np.testing.assert_allclose(logged, history[name], rtol=1e-6)
