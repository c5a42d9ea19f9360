"""`WatchUpdates`: what single updates change, beside a float64 reference; by hand and in `fit`."""

import math

import keras
import numpy as np
import pytest

import oracle
from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Lion
from keras_decoupled.callbacks import WatchUpdates
from oracle import Decay as As
from training import batches_of_syncs

X, Y = np.ones((6, 3), "float32"), np.zeros((6, 1), "float32")
RNG = np.random.default_rng(0)

# --- by hand: the figures ---

# (of ours, of the reference)
KINDS = {
    "plain": (Decay(0.3, 0.02), As(0.02, 0.3)),
    "none": (Decay(0.0), As(0.0, 0.0)),
    "eta_power": (Decay(0.3, 0.02, eta_power=2), As(0.02, 0.3, eta_power=2)),
    "cautious": (Decay(0.3, 0.02, cautious=True), As(0.02, 0.3, cautious=True)),
    "initial": (Decay(0.3, 0.02, towards="initial"), As(0.02, 0.3, "initial")),
    "soft_threshold": (
        Decay(0.3, 0.1, soft_threshold=True),
        As(0.1, 0.3, soft_threshold=True),
    ),
    "soft_threshold to the start": (
        Decay(0.3, 0.03, soft_threshold=True, towards="initial"),
        As(0.03, 0.3, "initial", soft_threshold=True),
    ),
}
ETA = (1.0, 0.5, 0.25)  # of the updates


def reference(run, before, i):
    """The row of the update that a run has just made, in float64; its step is noted in the state."""
    theta, change, u = before[i], run.values[i] - before[i], run.states[i]["u"]
    decay = run.decays[i]
    if decay.soft_threshold:  # what it takes to where the weight is to go is all the decay's
        u = np.where(run.values[i] == (decay.towards == "initial") * run.initial[i], 0.0, u)
    c = -change - u

    def angle(a, b):
        a, b = a.ravel() / np.linalg.norm(a), b.ravel() / np.linalg.norm(b)
        return math.atan2(np.linalg.norm(b - (a @ b) * a), a @ b)

    def rms(x):
        return np.sqrt(np.mean(x**2))

    return {
        "weight_rms": rms(theta),
        "update_rms": rms(change),
        "step_rms": rms(u),
        "relative_update": rms(change) / rms(theta),
        "decay_share": rms(c) / (rms(c) + rms(u)),
        "turn": angle(theta, run.values[i]),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_figures_of_each_update(kind, dtype):
    decay, wanted = KINDS[kind]
    values = [RNG.normal(size=shape).astype("float32") for shape in ((6, 5), (7,))]
    values[0][0, 0] = 0.01  # under a soft threshold it gets to 0
    variables = [make_variable(f"v{i}/w", v, dtype) for i, v in enumerate(values)]
    values = [numpy(v) for v in variables]

    def step(g, state, k, rate):
        u = state["u"] = oracle.sgdw(g, state, k, rate, momentum=0.9)
        return u

    run = oracle.Run(step, values, 0.1, [wanted] * 2, multipliers=[1.0, 0.5])
    optimizer = SGDW(0.1, momentum=0.9, weight_decay=decay, lr_multipliers={"v1": 0.5})
    optimizer.build(variables)
    watch = WatchUpdates()
    for k, eta in enumerate(ETA):
        before = [v.copy() for v in run.values]
        optimizer.learning_rate = run.learning_rate = 0.1 * eta
        grads = [RNG.normal(size=v.shape).astype("float32") for v in values]
        grads = [numpy(keras.ops.cast(g, dtype)) for g in grads]
        watch.before(optimizer)
        optimizer.apply([keras.ops.convert_to_tensor(g, dtype) for g in grads], variables)
        watch.after(optimizer)
        run.step(grads)
        for i, row in enumerate(watch.rows[-2:]):
            assert (row["path"], row["update"], row["epoch"]) == (f"v{i}/w", k, None)
            assert row["rate"] == pytest.approx(0.1 * eta * (1, 0.5)[i])
            assert row["eta"] == pytest.approx(eta)
            power = decay.eta_power
            assert row["decay_per_update"] == pytest.approx(decay.l2 * eta**power, rel=1e-5)
            for name, value in reference(run, before, i).items():
                assert row[name] == pytest.approx(value, rel=2e-4, abs=2e-6), (name, k, i)
    assert len(watch.rows) == 2 * len(ETA)


def test_small_turns_and_ratios_with_zero():
    """An arccos of float32 gives 0 for such a turn."""
    turning, still, zero = (np.full((4, 4), x, "float32") for x in (1, 1, 0))
    variables = [make_variable(p, v) for p, v in (("a", turning), ("b", still), ("c", zero))]
    optimizer = SGDW(1e-5, weight_decay=0.1, lr_multipliers={"b": 0}, weight_decays={"c": 0})
    optimizer.build(variables)
    watch, g = WatchUpdates(), np.zeros((4, 4), "float32")
    g[0, 0] = 1.0
    watch.before(optimizer)
    eager(optimizer, variables)([g, g, 0 * g])
    watch.after(optimizer)
    a, b, c = watch.rows
    assert a["turn"] == pytest.approx(1e-5 / 4 / 0.9, rel=0.05)
    assert (b["update_rms"], b["decay_share"], b["relative_update"]) == (0, 0, 0)
    assert (c["update_rms"], c["decay_share"]) == (0, 0)
    assert math.isnan(c["relative_update"])
    assert math.isnan(c["turn"])


def test_a_long_variable_and_one_that_is_no_number(monkeypatch):
    """It is measured in chunks; a run that diverged has rows and no warning."""
    monkeypatch.setattr("keras_decoupled.callbacks.watch._CHUNK", 7)
    values = [RNG.normal(size=(5, 4)).astype("float32") for _ in range(2)]
    variables = [make_variable(path, value) for path, value in zip("ab", values, strict=True)]
    optimizer = SGDW(0.1, weight_decay=0.3)
    optimizer.build(variables)
    watch, g = WatchUpdates(), RNG.normal(size=(5, 4)).astype("float32")
    watch.before(optimizer)
    eager(optimizer, variables)([g, g * np.float32("inf")])
    watch.after(optimizer)
    a, b = watch.rows
    assert a["step_rms"] == pytest.approx(0.1 * np.sqrt(np.mean(g**2)), rel=1e-5)
    assert a["weight_rms"] == pytest.approx(np.sqrt(np.mean(values[0] ** 2)), rel=1e-6)
    assert not np.isfinite(b["update_rms"])


def test_an_optimizer_is_left_as_it_is():
    """It trains on to the same weights as one that nobody watched."""
    ends = []
    for watched in (True, False):
        variables = [make_variable("a/w", np.ones((3, 2)))]
        optimizer = AdamW(CosineWarmRestarts(0.1, 3), weight_decay=0.1)
        optimizer.build(variables)
        watch = WatchUpdates()
        for k in range(5):
            if watched:
                watch.before(optimizer)
            eager(optimizer, variables)([np.full((3, 2), k - 2.0, "float32")])
            if watched:
                watch.after(optimizer)
        ends.append([numpy(v) for v in (*variables, *optimizer.variables)])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


# --- in fit ---


def compiled(optimizer, *, dtype=None):
    dense = [
        keras.layers.Dense(2, name="a", kernel_initializer="ones", dtype=dtype),
        keras.layers.Dense(1, name="b", kernel_initializer="ones", dtype=dtype),
    ]
    model = keras.Sequential([keras.Input((3,)), *dense], name="net")
    model.compile(optimizer, "mse", run_eagerly=BACKEND == "tensorflow")  # its graph takes seconds
    return model


def fit(model, watch, *callbacks, epochs=2, batch_size=2):
    """Epochs of three batches."""
    fit = {"batch_size": batch_size, "epochs": epochs, "verbose": 0, "shuffle": False}
    return model.fit(X, Y, callbacks=[watch, *callbacks], **fit).history


def updates(watch):
    return sorted({(row["update"], row["epoch"]) for row in watch.rows})


@pytest.mark.parametrize(
    ("every", "accumulated", "epochs", "wanted"),
    [
        (None, None, 3, [(0, 0), (3, 1), (6, 2)]),
        (1, None, 1, [(0, 0), (1, 0), (2, 0)]),
        (2, None, 3, [(0, 0), (2, 0), (4, 1), (6, 2), (8, 2)]),
        (4, None, 3, [(0, 0), (4, 1), (8, 2)]),
        # Updates end with the batches 1, 3, 5, 7, of epochs of three.
        (1, 2, 3, [(0, 0), (1, 1), (2, 1), (3, 2)]),
        (None, 2, 3, [(0, 0), (1, 1), (3, 2)]),
        (2, 2, 3, [(0, 0), (2, 1)]),
    ],
)
def test_which_updates(every, accumulated, epochs, wanted):
    optimizer = AdamW(0.01, weight_decay=0.1, gradient_accumulation_steps=accumulated)
    watch = WatchUpdates(every)
    fit(compiled(optimizer), watch, epochs=epochs)
    assert updates(watch) == wanted
    assert len(watch.rows) == 4 * len(wanted)
    assert all(row["update_rms"] > 0 for row in watch.rows if row["path"].endswith("kernel"))


def test_fit_measures_what_a_loop_by_hand_does():
    by_fit, by_hand = (compiled(AdamW(0.01, weight_decay=0.1)) for _ in range(2))
    in_fit, watch = WatchUpdates(1), WatchUpdates()
    fit(by_fit, in_fit, epochs=1)
    by_hand.optimizer.build(by_hand.trainable_variables)
    for i in range(3):
        watch.before(by_hand.optimizer)
        by_hand.train_on_batch(X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2])
        watch.after(by_hand.optimizer)
    for a, b in zip(in_fit.rows, watch.rows, strict=True):
        assert (a.pop("path"), a.pop("epoch")) == (b.pop("path"), 0)
        assert b.pop("epoch") is None
        assert a == pytest.approx(b, rel=1e-4, abs=1e-7, nan_ok=True)


def test_frozen_layers_and_keys():
    model = compiled(Lion(0.01, weight_decay=0.1))
    a, b = model.layers
    watch = WatchUpdates(variables=["kernel", b])
    fit(model, watch, epochs=1)
    assert [row["path"] for row in watch.rows] == ["net/a/kernel", "net/b/kernel", "net/b/bias"]
    a.trainable = False
    model.compile(Lion(0.01, weight_decay=0.1), "mse", run_eagerly=BACKEND == "tensorflow")
    watch = WatchUpdates()
    fit(model, watch, epochs=1)
    assert [row["path"] for row in watch.rows] == ["net/b/kernel", "net/b/bias"]


def test_unfrozen_layers_are_watched_from_the_first_update_on():
    """On JAX `fit` refuses an optimizer that does not know all that is trained."""
    optimizer = AdamW(0.01, weight_decay=0.1)
    model = compiled(optimizer)
    model.layers[0].trainable = False
    model.compile(optimizer, "mse", run_eagerly=BACKEND == "tensorflow")
    fit(model, WatchUpdates(), epochs=1)
    with pytest.raises(ValueError, match="hit only frozen variables"):
        fit(model, WatchUpdates(variables=[model.layers[0]]), epochs=1)
    model.layers[0].trainable = True
    model.compile(optimizer, "mse", run_eagerly=BACKEND == "tensorflow")
    if BACKEND == "jax":
        optimizer.build(model.trainable_variables)
    watch = WatchUpdates(variables=["a/kernel", "b/kernel"])
    fit(model, watch, epochs=1)
    assert {row["path"] for row in watch.rows} == {"net/a/kernel", "net/b/kernel"}
    assert updates(watch) == [(3, 0)]


def test_unfrozen_layers_in_a_loss_scale_optimizer_leave_its_scale():
    optimizer = keras.optimizers.LossScaleOptimizer(AdamW(0.01, weight_decay=0.1), 64.0)
    model = compiled(optimizer)
    model.layers[0].trainable = False
    model.compile(optimizer, "mse", run_eagerly=BACKEND == "tensorflow")
    fit(model, WatchUpdates(), epochs=1)
    steps = int(numpy(optimizer.step_counter))
    count = len(optimizer.variables) - len(optimizer.inner_optimizer.variables)
    model.layers[0].trainable = True
    model.compile(optimizer, "mse", run_eagerly=BACKEND == "tensorflow")
    watch = WatchUpdates()
    if BACKEND == "jax":  # there, Keras' wrapper cannot train them, and says so
        with pytest.raises(ValueError, match="must match"):
            fit(model, watch, epochs=1)
        return
    fit(model, watch, epochs=1)
    assert len(watch.rows) > 0
    assert int(numpy(optimizer.step_counter)) == 2 * steps > 0
    assert len(optimizer.variables) - len(optimizer.inner_optimizer.variables) == count


def test_several_updates_between_two_looks_are_refused():
    optimizer, variable = AdamW(0.01, weight_decay=0.1), make_variable("w", np.ones(3))
    optimizer.build([variable])
    watch = WatchUpdates()
    watch.before(optimizer)
    for _ in range(2):
        eager(optimizer, [variable])([np.ones(3, "float32")])
    with pytest.raises(ValueError, match="2 updates since the last look"):
        watch.after(optimizer)
    watch.before(optimizer)
    with pytest.raises(ValueError, match="with the same optimizer"):
        watch.after(compiled_and_built().optimizer)


def compiled_and_built():
    model = compiled(AdamW(0.01, weight_decay=0.1))
    model.optimizer.build(model.trainable_variables)
    return model


def test_logs_of_an_epoch_without_an_update():
    """Every epoch has all columns: CSVLogger takes those of the first."""
    optimizer = AdamW(0.01, weight_decay=0.1, gradient_accumulation_steps=4)
    logs = fit(compiled(optimizer), WatchUpdates(log=True), epochs=4)
    assert len(logs) == 7
    assert {len(values) for values in logs.values()} == {4}
    assert np.isnan(logs["turn_max"]).tolist() == [True, False, False, False]


def test_logs():
    watch = WatchUpdates(log=True)
    logs = fit(compiled(AdamW(0.01, weight_decay=0.1)), watch)
    names = {
        f"{x}_{y}" for x in ("relative_update", "turn", "decay_share") for y in ("median", "max")
    }
    assert logs.keys() == {"loss", *names}
    second = [row for row in watch.rows if row["update"] == 3]
    shares = [row["decay_share"] for row in second]
    assert logs["decay_share_median"][1] == pytest.approx(np.median(shares))
    assert logs["decay_share_max"][1] == max(shares)
    assert {type(x) for values in logs.values() for x in values} == {float}


def test_logs_leave_out_what_did_not_move():
    """A multiplier of 0 may freeze most of the variables."""
    watch = WatchUpdates(log=True)
    optimizer = AdamW(0.01, weight_decay=0.1, lr_multipliers={"kernel": 0})
    logs = fit(compiled(optimizer), watch)
    rows = [row for row in watch.rows if row["update"] == 3]
    moved = [row["relative_update"] for row in rows if row["rate"]]
    assert 0 < len(moved) < len(rows)
    assert logs["relative_update_median"][1] == pytest.approx(np.median(moved))


def test_plot():
    """A line for each variable, in the model's order; a dot where the decay is more than half."""
    model = compiled(AdamW(0.001, weight_decay=0, weight_decays={"b/kernel": 0.5}))
    watch = WatchUpdates(2)
    with pytest.raises(ValueError, match="needs a watched update"):
        watch.plot()
    fit(model, watch, epochs=2)
    ax = watch.plot()
    try:
        assert [text.get_text() for text in ax.get_yticklabels()] == [
            *("a/kernel", "a/bias", "b/kernel", "b/bias")
        ]
        colours = np.ma.filled(ax.collections[0].get_array(), np.nan).reshape(4, 3)
        found = {(row["path"], row["update"]): row["relative_update"] for row in watch.rows}
        assert colours[2].tolist() == [found["net/b/kernel", k] for k in (0, 2, 4)]
        assert np.isnan(colours[1, 0])  # a bias starts at 0
        dots = [line.get_xydata().tolist() for line in ax.lines]
        assert dots == [[[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]]
        assert ax.get_ylim()[0] > ax.get_ylim()[1]
        with pytest.raises(TypeError, match="`ax`"):
            watch.plot(3)
    finally:
        import matplotlib.pyplot as plt

        plt.close(ax.figure)


def test_mixed_precision_and_a_skipped_update():
    """The update that overflows has no row, and the next one that happens has one."""
    model = compiled(
        keras.optimizers.LossScaleOptimizer(AdamW(0.01, weight_decay=0.1), initial_scale=4.0)
    )
    watch = WatchUpdates(1)
    data = X.copy()
    data[:2] = np.inf
    options = {"batch_size": 2, "epochs": 1, "verbose": 0, "shuffle": False, "callbacks": [watch]}
    model.fit(data, Y, **options)
    assert updates(watch) == [(0, 0), (1, 0)]
    assert all(np.isfinite(row["update_rms"]) for row in watch.rows)
    half = compiled(AdamW(0.01, weight_decay=0.1), dtype="bfloat16")
    watch = WatchUpdates(1)
    fit(half, watch, epochs=1)
    row = watch.rows[0]
    assert row["relative_update"] == pytest.approx(0.11, rel=0.02)  # of the float32 copy


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"every": 0}, ValueError, "integer ≥ 1"),
        ({"every": 2.5}, ValueError, "integer ≥ 1"),
        ({"variables": "kernel"}, TypeError, "list of keys"),
        ({"variables": [3]}, TypeError, "key of `variables`"),
        ({"log": "yes"}, TypeError, "`log`"),
    ],
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        fit(compiled(AdamW(0.01, weight_decay=0.1)), WatchUpdates(**arguments), epochs=1)


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(ValueError, match="optimizer of keras_decoupled"):
        fit(compiled(keras.optimizers.Adam()), WatchUpdates())
    model = compiled(AdamW(0.01, weight_decay=0.1))
    model.compile(AdamW(0.01, weight_decay=0.1), "mse", steps_per_execution=2)
    with pytest.raises(ValueError, match="steps_per_execution` must be 1"):
        fit(model, WatchUpdates())
    with pytest.raises(ValueError, match=r"nearest paths: 'net/[ab]/kernel'"):
        fit(compiled(AdamW(0.01, weight_decay=0.1)), WatchUpdates(variables=["kernle"]))
    with pytest.raises(ValueError, match="needs an optimizer that is built"):
        WatchUpdates().before(AdamW(0.01, weight_decay=0.1))
    with pytest.raises(ValueError, match="must come after `before`"):
        WatchUpdates().after(model.optimizer)


if BACKEND == "jax":  # elsewhere the state is always there

    def test_jax_state_comes_back_at_watched_updates_alone(monkeypatch):
        model = compiled(AdamW(0.01, weight_decay=0.1))
        batches = batches_of_syncs(model, monkeypatch)
        fit(model, WatchUpdates(4), epochs=2, batch_size=1)  # epochs of six
        assert batches == [1, 4, 5, 6, 8, 9, 12]  # before and after 0, 4, 8; the ends of epochs
