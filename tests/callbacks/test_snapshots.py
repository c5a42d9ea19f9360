"""`SnapshotEnsemble`: at which batch a cycle ends, which files there are, and that they hold those weights.

Where cycles end is counted by hand, and the weights are compared with those that another callback saw after each batch.
"""

import os
from pathlib import Path

import keras
import numpy as np
import pytest

from cases import BACKEND, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, WarmupStableDecay
from keras_decoupled.callbacks import RestartOnPlateau, SnapshotEnsemble
from training import Weights, batches_of_syncs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32") + 1
PATTERN = "snapshots/{cycle}.weights.h5"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def cosine(first=3, t_mul=2, **arguments):
    return CosineWarmRestarts(0.05, first, t_mul=t_mul, **arguments)


def sgdw(schedule=None, **arguments):
    return SGDW(schedule or cosine(), momentum=0.9, weight_decay=1e-3, **arguments)


def compiled(optimizer=None, **arguments):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    # TensorFlow's graph takes seconds for each model.
    eager = {"run_eagerly": BACKEND == "tensorflow" and not arguments}
    model.compile(optimizer or sgdw(), loss="mse", **eager, **arguments)
    return model


def fit(model, *callbacks, epochs=1, batches=4, **arguments):
    """Train on `batches` batches an epoch."""
    arguments = {"x": X[: 2 * batches], "y": Y[: 2 * batches], "batch_size": 2} | arguments
    return model.fit(
        epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks), **arguments
    )


class At(keras.callbacks.Callback):
    """Does something to the model after the n-th batch, or at the end of the n-th epoch."""

    def __init__(self, action, batch=None, epoch=None):
        super().__init__()
        self.action, self.batch, self.epoch = action, batch, epoch
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.batches == self.batch:
            self.action(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 == self.epoch:
            self.action(self.model)


def restart(model):
    model.optimizer.restart()


def check(snapshots, weights, ends, numbers=None):
    """The files are those of the cycles that ended after so many batches."""
    names = [f"{i}.weights.h5" for i in numbers or range(len(ends))]
    files = snapshots.files()
    assert files == [os.path.join("snapshots", name) for name in names]
    assert sorted(os.listdir("snapshots")) == sorted(names)
    model = compiled(SGDW(0.1, weight_decay=0))
    for file, end in zip(files, ends, strict=True):
        model.load_weights(file, objects_to_skip=[model.optimizer])
        for found, wanted in zip(model.get_weights(), weights.seen[end], strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=f"{file}, after {end} batches")


# --- where a cycle ends -------------------------------------------------------------------------

ANNEALED = {"use_cosine_annealing": True, "total_iterations": 4}
PLATEAU = {"monitor": "loss", "patience": 1, "min_delta": 1e9}
# The optimizer, batches per epoch, epochs, the batches after which cycles have ended. And another callback.
ENDS = {
    "growing": (lambda: sgdw(cosine(2)), 5, 3, [2, 6, 14]),
    "warm-up and accumulation": (
        lambda: sgdw(cosine(2, t_mul=1, warmup_steps=3), gradient_accumulation_steps=2),
        *(6, 3, [10, 14, 18]),
    ),
    "position": (lambda: AdamW(0.05, weight_decay=0, t_cur=1, **ANNEALED), 4, 2, [3, 7]),
    "shortest": (lambda: sgdw(cosine(1, t_mul=1, endpoint=False)), 2, 2, [1, 2, 3, 4]),
    # A cycle that is restarted before its end has no file; the next epoch reads the position again.
    "restarted inside": (
        *(lambda: sgdw(cosine(3, t_mul=1)), 3, 3, [5, 8]),
        lambda: At(restart, batch=2),
    ),
    # At each epoch but the first.
    "on a plateau": (lambda: sgdw(cosine(2)), 3, 3, [2, 6, 8], lambda: RestartOnPlateau(**PLATEAU)),
    "stopped early": (
        sgdw,
        4,
        3,
        [3],
        lambda: At(lambda model: setattr(model, "stop_training", True), batch=3),
    ),
    # A cycle that had its last update has ended, whoever restarts it first; there is none of 6.
    "restarted at its end": (lambda: sgdw(cosine(3)), 3, 2, [3, 6], lambda: At(restart, epoch=1)),
    "restarted after the only cycle": (
        *(lambda: sgdw(cosine(2, autorestart=False)), 3, 3, [2, 8]),
        lambda: At(restart, epoch=2),
    ),
}
OTHER_FIRST = ["on a plateau", "restarted at its end", "restarted after the only cycle"]


@pytest.mark.parametrize(
    ("name", "last"), [*((name, True) for name in ENDS), *((name, False) for name in OTHER_FIRST)]
)
def test_a_file_of_each_cycle_after_its_last_batch(name, last):
    optimizer, batches, epochs, ends, *other = ENDS[name]
    snapshots, weights = SnapshotEnsemble(PATTERN), Weights()
    both = [snapshots, *(make() for make in other)]
    both = both if last else both[::-1]
    fit(compiled(optimizer()), *both, weights, batches=batches, epochs=epochs)
    check(snapshots, weights, ends)


def test_validation_and_predictions_change_nothing():
    """Nor do they count as batches, nor move the metrics of the running epoch."""
    snapshots, weights = SnapshotEnsemble(PATTERN), Weights()
    watching = {
        "callbacks": [
            At(lambda model: model.predict(X, batch_size=4, verbose=0), epoch=1),
            At(lambda model: model.evaluate(X, Y, batch_size=4, verbose=0), epoch=1),
            At(lambda model: snapshots.predict(model, X, verbose=0), batch=6),
        ],
        "data": {"validation_data": (X, Y), "validation_batch_size": 4},
    }
    losses = []
    for callbacks, data in (([], {}), watching.values()):
        keras.utils.set_random_seed(3)
        both = [*callbacks[:1], snapshots, *callbacks[1:], weights] if callbacks else []
        losses.append(fit(compiled(sgdw(cosine(2))), *both, epochs=2, **data).history["loss"])
    assert losses[0] == losses[1]
    check(snapshots, weights, [2, 6])


if BACKEND != "torch":  # where Keras has no steps_per_execution

    def test_steps_per_execution_that_end_with_a_cycle():
        snapshots = SnapshotEnsemble(PATTERN)
        model = compiled(sgdw(cosine(6, t_mul=1)), steps_per_execution=4)
        fit(model, snapshots, epochs=2, batches=6)
        for n, file in enumerate(snapshots.files(), start=1):
            model.load_weights(file)
            assert int(model.optimizer.iterations) == 6 * n
        assert n == 2

    @pytest.mark.parametrize("first", [3, 5])  # the second ends inside the last ones of an epoch
    def test_steps_per_execution_that_a_cycle_ends_inside(first):
        model = compiled(sgdw(cosine(first)), steps_per_execution=2)
        with pytest.raises(
            ValueError, match=r"steps_per_execution=2, and a cycle that ended 1 batches"
        ):
            fit(model, SnapshotEnsemble(PATTERN), batches=6)
        assert not Path("snapshots").exists()


def test_stopped_where_the_data_end():
    """Keras announces a batch that never comes."""
    data = ((X[:2], Y[:2]) for _ in range(7))
    snapshots, weights = SnapshotEnsemble(PATTERN), Weights()
    arguments = {"x": data, "y": None, "batch_size": None, "steps_per_epoch": 4}
    with pytest.warns(UserWarning, match="ran out of data"):
        fit(compiled(sgdw(cosine(7))), snapshots, weights, epochs=2, **arguments)
    check(snapshots, weights, [7])


def test_updates_that_a_loss_scale_skips_make_the_cycle_longer():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        snapshots, weights = SnapshotEnsemble(PATTERN), Weights()
        scaled = keras.optimizers.LossScaleOptimizer(sgdw(cosine(2)), initial_scale=2.0**17)
        model = compiled(scaled)
        fit(model, snapshots, weights, epochs=3)
        assert 6 <= weights.updates[-1] < 12  # of 12 batches
        check(snapshots, weights, [weights.updates.index(2), weights.updates.index(6)])
        assert snapshots.predict(model, X, verbose=0).dtype == "float16"
    finally:
        keras.config.set_dtype_policy(before)


# --- names of files -----------------------------------------------------------------------------


def test_files_that_are_there_are_kept_and_counting_goes_on():
    os.makedirs("snapshots")
    there = [Path("snapshots", name) for name in ("1.weights.h5", "7.weights.h5", "8.txt")]
    for file in there:
        file.write_bytes(file.name.encode())
    snapshots, weights, model = SnapshotEnsemble(PATTERN), Weights(), compiled()
    fit(model, snapshots, weights)
    fit(model, snapshots, weights, epochs=2)
    names = [os.path.basename(file) for file in snapshots.files()]
    assert names == [f"{i}.weights.h5" for i in (1, 7, 8, 9)]
    for file in there:
        assert file.read_bytes() == file.name.encode()
        file.unlink()
    check(snapshots, weights, [3, 9], numbers=[8, 9])


@pytest.mark.parametrize(
    ("pattern", "stems"),
    [
        ("{cycle:03d}.weights.h5", ["000", "007", "1234"]),
        (Path("a/{cycle}/[b]/{cycle:02}.weights.h5"), ["a/0/[b]/00", "a/10/[b]/10"]),
        ("./{{{cycle}}}.weights.h5", ["{0}", "{10}"]),
    ],
)
def test_patterns(pattern, stems):
    snapshots = SnapshotEnsemble(pattern)
    assert snapshots.files() == []
    for stem in reversed([*stems, "7", "0005", "x", "a/0/[b]/01", "{1"]):
        file = Path(f"{stem}.weights.h5")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = [Path(file).as_posix() for file in snapshots.files()]
    assert found == [f"{stem}.weights.h5" for stem in stems]


STEMS = "a {epoch} {cycle}-{epoch} {} {cycle {{cycle}} {cycle:x} {cycle:,} {cycle:>5} {cycle:s}"
NO_PATTERNS = ["", "weights.h5", "{cycle}", "{cycle}.keras", "{cycle}.h5"]
NO_PATTERNS += [f"{stem}.weights.h5" for stem in STEMS.split()]


@pytest.mark.parametrize("pattern", NO_PATTERNS)
def test_patterns_that_are_none(pattern):
    with pytest.raises(ValueError, match=r"`filepath` must have \"{cycle}\".*Received: filepath='"):
        SnapshotEnsemble(pattern)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: AdamW(0.1, weight_decay=0),
        lambda: AdamW(WarmupStableDecay(0.1, 2, 3), weight_decay=0),
        lambda: keras.optimizers.Adam(cosine()),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
    ],
)
def test_an_optimizer_without_cosine_cycles(optimizer):
    snapshots = SnapshotEnsemble(PATTERN)
    snapshots.set_model(compiled(optimizer()))
    words = r"needs an optimizer .* cosine cycles\. Received: optimizer="
    with pytest.raises(ValueError, match=words):
        snapshots.on_train_begin()


def test_half_written_files_have_no_number(monkeypatch):
    def fail(path, **arguments):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    model, snapshots = compiled(), SnapshotEnsemble(PATTERN)
    monkeypatch.setattr(model, "save_weights", fail)
    with pytest.raises(OSError, match="disk full"):
        fit(model, snapshots)
    assert snapshots.files() == []


if BACKEND == "jax":  # elsewhere the state is always there

    def test_jax_state_comes_back_where_a_cycle_ends_and_nowhere_else(monkeypatch):
        schedule = cosine(5, t_mul=1, warmup_steps=2)
        model = compiled(sgdw(schedule, gradient_accumulation_steps=2))
        snapshots = SnapshotEnsemble(PATTERN)
        batches = batches_of_syncs(model, monkeypatch)
        fit(model, snapshots, epochs=2, x=np.tile(X, (4, 1)), y=np.tile(Y, (4, 1)))
        assert len(snapshots.files()) == 4
        assert batches == [14, 24, 34, 44, 48]  # 24 and 48: epochs end


# --- predict ------------------------------------------------------------------------------------


def ensemble(model, n=3):
    """Snapshots of random weights, and the predictions of each."""
    snapshots, predictions = SnapshotEnsemble(PATTERN), []
    os.makedirs("snapshots")
    for i in range(n):  # above 0, as variances are
        model.set_weights([RNG.uniform(0.5, 2, size=w.shape) for w in model.get_weights()])
        model.save_weights(PATTERN.format(cycle=i))
        predictions.append(model.predict(X, verbose=0))
    model.set_weights([np.ones(w.shape) for w in model.get_weights()])
    return snapshots, predictions


def all_state(model):
    return [numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def assert_same(found, wanted):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_predict_is_the_mean_and_leaves_the_model_alone():
    trained = compiled()
    fit(trained)
    snapshots, predictions = ensemble(trained)
    before = all_state(trained)
    found = snapshots.predict(trained, X, batch_size=5, verbose=0)
    np.testing.assert_allclose(found, np.mean(predictions, 0), rtol=1e-6)
    assert found.dtype == "float32"
    assert_same(all_state(trained), before)
    assert int(trained.optimizer.iterations) == 4
    # another optimizer, and none
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    np.testing.assert_allclose(snapshots.predict(other, X, verbose=0), found, rtol=1e-6)
    other.compile("adam", "mse")
    np.testing.assert_allclose(snapshots.predict(other, X, verbose=0), found, rtol=1e-6)


class Outputs(keras.Model):
    """A tree of outputs, one of them of integers, and weights that are not trained."""

    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()
        self.dense = keras.layers.Dense(4)

    def call(self, x):
        logits = self.dense(self.norm(x))
        return {"best": keras.ops.argmax(logits, axis=-1), "all": (logits, [logits + 1])}


def test_predict_with_a_tree_of_outputs():
    model = Outputs()
    model.compile(sgdw(), loss=None, jit_compile=False)
    model(X)
    snapshots, predictions = ensemble(model)
    found = snapshots.predict(model, X, verbose=0)
    assert found["best"].dtype == "float64"
    np.testing.assert_allclose(found["best"], np.mean([p["best"] for p in predictions], 0))
    for of in (lambda p: p["all"][0], lambda p: p["all"][1][0]):
        np.testing.assert_allclose(of(found), np.mean([of(p) for p in predictions], 0), rtol=1e-5)


def test_predict_puts_the_weights_back_after_an_error():
    model = compiled()
    snapshots, _ = ensemble(model)
    before = all_state(model)
    with pytest.raises(Exception, match=r"incompatible|expected"):  # TensorFlow's own
        snapshots.predict(model, X[:, :2], verbose=0)
    assert_same(all_state(model), before)
    Path("snapshots/1.weights.h5").write_bytes(b"half")  # after the first was loaded
    with pytest.raises(OSError, match=r"1\.weights|file"):
        snapshots.predict(model, X, verbose=0)
    assert_same(all_state(model), before)


def test_predict_of_nothing_and_from_a_generator():
    model, snapshots = compiled(), SnapshotEnsemble(PATTERN)
    words = r"`predict\(\)` needs at least one snapshot\. Received: filepath="
    with pytest.raises(ValueError, match=words):
        snapshots.predict(model, X)
    ensemble(model)
    with pytest.raises(TypeError, match=r"`x` must be data that can be read once for each"):
        snapshots.predict(model, (X for _ in range(3)))
