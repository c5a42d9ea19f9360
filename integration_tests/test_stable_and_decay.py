"""WarmupStableDecay in real runs: several decays from one checkpoint, callbacks, a longer run."""

import keras
import numpy as np
import pytest

from keras_decoupled import AdamW, CosineWarmRestarts, WarmupStableDecay

BATCHES = 4  # per epoch
# TensorFlow's graph takes seconds for each model. One test has it.
EAGER = keras.backend.backend() == "tensorflow"


def data():
    rng = np.random.default_rng(0)
    x = rng.random((8 * BATCHES, 3), "float32")
    return x, x @ np.array([[1.0], [-2.0], [0.5]], "float32")


def make(stable_steps=None, decay_steps=6, run_eagerly=EAGER, **arguments):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    schedule = WarmupStableDecay(0.02, stable_steps, decay_steps, warmup_steps=3, shape="linear")
    optimizer = AdamW(schedule, weight_decay=1e-3, **arguments)
    model.compile(optimizer, loss="mse", run_eagerly=run_eagerly)
    return model


class BeforeEachBatch(keras.callbacks.Callback):
    """Calls a function of the optimizer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_train_batch_begin(self, batch, logs=None):
        self.function(self.model.optimizer)


def fit(model, epochs=1, *callbacks):
    """Train; η before each update."""
    etas = []
    rates = BeforeEachBatch(lambda optimizer: etas.append(float(optimizer.eta_t)))
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(*data(), epochs=epochs, callbacks=[*callbacks, rates], **arguments)
    return etas


def same(model, other):
    for a, b in zip(model.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-7)


def test_decays_branch_from_one_checkpoint_of_the_stable_part(tmp_path):
    trunk, file = make(), tmp_path / "stable.keras"
    assert fit(trunk, 2) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])
    trunk.save(file)

    # 1. The decay that the file has.
    branch = keras.models.load_model(file)
    branch.optimizer.begin_decay()
    assert fit(branch) == pytest.approx([1, 0.8, 0.6, 0.4])
    branch.save(tmp_path / "decay.keras")
    assert fit(branch) == pytest.approx([0.2, 0, 0, 0])
    planned = make(stable_steps=5)
    fit(planned, 4)
    same(branch, planned)

    # 2. Another decay: a new optimizer that takes the state of the file.
    longer = make(decay_steps=9)
    longer.optimizer.build(longer.trainable_variables)
    longer.load_weights(file)
    longer.optimizer.begin_decay()
    assert fit(longer, 2) == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])

    # 3. The stable part goes on as if nobody had branched.
    assert fit(trunk) == [1.0] * BATCHES

    # 4. A run that is stopped in its decay goes on in it, also where it is told to begin again.
    stopped = keras.models.load_model(tmp_path / "decay.keras")
    stopped.optimizer.begin_decay()
    assert fit(stopped) == pytest.approx([0.2, 0, 0, 0])
    same(stopped, branch)

    # 5. And back.
    stopped.optimizer.restart()
    assert fit(stopped) == [1.0] * BATCHES


def test_begun_by_a_callback_in_the_middle_of_an_epoch():
    model = make(gradient_accumulation_steps=2, run_eagerly=False)

    def begin(optimizer):
        if int(optimizer.iterations) == 5:
            optimizer.begin_decay()

    etas = fit(model, 6, BeforeEachBatch(begin))
    wanted = [min((k + 1) / 4, 1) if k < 5 else max(1 - (k - 5) / 5, 0) for k in range(12)]
    assert etas == pytest.approx(list(np.repeat(wanted, 2)))


def test_a_stable_part_made_longer(tmp_path):
    """The file keeps what `begin_decay` said, and not where the schedule's own decay begins."""
    short = make(stable_steps=5)
    fit(short)
    short.save_weights(tmp_path / "w.weights.h5")
    long = make(stable_steps=9)
    long.optimizer.build(long.trainable_variables)
    long.load_weights(tmp_path / "w.weights.h5")
    assert fit(long, 3) == pytest.approx([*[1.0] * 9, 0.8, 0.6, 0.4])


def test_from_a_run_with_another_schedule(tmp_path):
    first = make()
    optimizer = AdamW(CosineWarmRestarts(0.02, 9), weight_decay=1e-3)
    first.compile(optimizer, loss="mse", run_eagerly=EAGER)
    fit(first)
    first.save_weights(tmp_path / "w.weights.h5")
    second = make()
    second.optimizer.build(second.trainable_variables)
    with pytest.warns(UserWarning, match="Started fresh: decay_start"):
        second.load_weights(tmp_path / "w.weights.h5")
    assert fit(second) == [1.0] * BATCHES
    second.optimizer.begin_decay()
    assert fit(second) == pytest.approx([1, 0.8, 0.6, 0.4])
