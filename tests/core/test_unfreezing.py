"""The variables change while the optimizer stays: layers unfrozen and frozen again, with one instance.

What an optimizer knows of a variable (moments, average, decay, multiplier) stays bit for bit; what is new starts fresh.
"""

import keras
import numpy as np
import pytest

from cases import BACKEND, OPTIMIZERS, eager, make_variable, numpy
from training import DECAY, X, Y, make, oracle_of, state, tensors, values

ARGUMENTS = {
    "plain": {},
    "EMA": {"use_ema": True, "ema_momentum": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
}


def grads(k, n):
    return np.random.default_rng(k).normal(size=(n, 2)).astype("float32")


# --- through apply ---


@pytest.mark.parametrize(
    ("name", "arguments"),
    [*((name, "EMA") for name in OPTIMIZERS), ("adamw", "plain"), ("nadamw", "accumulation")],
)
def test_unknown_variables_in_apply(name, arguments):
    """The known variable goes on as if nothing had happened, also in mid-accumulation and in another place."""
    known, twin, new = (make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in ("x", "x", "y"))
    optimizer, alone = (make(name, **ARGUMENTS[arguments]) for _ in range(2))
    for k in range(3):
        optimizer.apply(tensors(grads(k, 1)), [known])
        alone.apply(tensors(grads(k, 1)), [twin])
    old = {id(v) for v in optimizer.variables}
    for k in range(3, 6):
        g = grads(k, 1)
        optimizer.apply(tensors([-g[0], g[0]]), [new, known])
        alone.apply(tensors(g), [twin])
        assert np.array_equal(numpy(known), numpy(twin))
    assert old < {id(v) for v in optimizer.variables}
    now = state(optimizer)
    for path, value in state(alone).items():
        assert np.array_equal(now[path.replace(alone.name, optimizer.name, 1)], value), path
    assert np.all(numpy(new) != [1.0, -2.0])
    assert optimizer.weight_decays == {"y/w": (0.0, DECAY), "x/w": (0.0, DECAY)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_variable_starts_fresh(name):
    """Its moments are 0 at update 3; the bias correction is that of the count."""
    known, new = (make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in "xy")
    optimizer, run = make(name), oracle_of(name, values([known]))
    for k in range(3):
        eager(optimizer, [known])(grads(k, 1))
        run.step(grads(k, 1))
    run.values.append(np.array([1.0, -2.0]))
    run.decays, run.multipliers = run.decays * 2, run.multipliers * 2
    run.states.append({})
    run.path.append(np.zeros(2))
    for k in range(3, 5):
        eager(optimizer, [known, new])(grads(k, 2))
        run.step(grads(k, 2))
    for variable, expected in zip([known, new], run.values, strict=True):
        np.testing.assert_allclose(numpy(variable), expected, atol=1e-6)


def test_a_new_average_starts_at_its_variable():
    """Zeros would pull the variable to 0 when the average becomes the weights."""
    known, new = (make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in "xy")
    optimizer = make("sgdw", weight_decay=0, use_ema=True, ema_momentum=0.99)
    zero = np.zeros(2, "float32")
    for _ in range(2):
        optimizer.apply(tensors([zero]), [known])
    optimizer.apply(tensors([zero, zero]), [known, new])
    optimizer.finalize_variable_values([known, new])
    np.testing.assert_allclose(values([known, new]), [[1.0, -2.0]] * 2, rtol=1e-6)


def test_the_average_of_what_was_frozen_before_the_first_update_starts_at_its_variable():
    """Keras starts averages in update 0 alone; this one is not there in it."""
    kept, away = (make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in "xy")
    optimizer = make("sgdw", weight_decay=0, use_ema=True, ema_momentum=0.99)
    zero = np.zeros(2, "float32")
    optimizer.build([kept, away])
    optimizer.build([kept])
    optimizer.apply(tensors([zero]), [kept])
    optimizer.build([kept, away])
    optimizer.apply(tensors([zero, zero]), [kept, away])
    optimizer.finalize_variable_values([kept, away])
    np.testing.assert_allclose(values([kept, away]), [[1.0, -2.0]] * 2, rtol=1e-6)


def test_rules_for_what_is_unfrozen_later():
    """A key may name a frozen variable when the model is given, and is used once that is unfrozen."""
    model = two_branches()
    optimizer = make("adamw", model=model, weight_decays={"a": 0.2}, lr_multipliers={"a": 0.5})
    optimizer.build(model.trainable_variables)
    assert set(optimizer.weight_decays) == {"b/kernel", "b/bias"}
    model.get_layer("a").trainable = True
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays["a/kernel"] == (0.0, 0.2)
    assert optimizer.weight_decays["b/kernel"] == (0.0, DECAY)
    assert optimizer.lr_multipliers == {"a/kernel": 0.5, "a/bias": 0.5}


# --- through fit ---


def two_branches(dtype=None):
    """X → a(X) + b(X), in which a is frozen; a comes first."""
    x = keras.Input((3,))
    a = keras.layers.Dense(2, name="a", trainable=False, dtype=dtype)(x)
    b = keras.layers.Dense(2, name="b", dtype=dtype)(x)
    return keras.Model(x, keras.layers.Add()([a, b]))


def fit(model, epochs=2):
    model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0)


def branch(weights, name):
    return {path: value for path, value in weights.items() if f"/{name}_" in path}


def assert_same(before, after):
    assert before
    assert before.keys() == after.keys()
    for path, value in before.items():
        assert np.array_equal(value, after[path]), path


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("name", ["adamw-amsgrad", "nadamw", "sgdw-momentum"])
def test_unfreeze_compile_build_fit(name, arguments):
    model, optimizer = two_branches(), make(name, **ARGUMENTS[arguments])
    model.compile(optimizer, loss="mse")
    fit(model)
    frozen, before = values(model.get_layer("a").weights), state(optimizer)
    model.get_layer("a").trainable = True
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    now = state(optimizer)
    assert_same(before, {path: now[path] for path in before})
    assert branch(now, "a").keys() == {p.replace("/b_", "/a_") for p in branch(now, "b")}
    fit(model)
    counts = ARGUMENTS[arguments].get("gradient_accumulation_steps", 1)
    assert int(numpy(optimizer.iterations)) == 4 // counts
    for old, new in zip(frozen, values(model.get_layer("a").weights), strict=True):
        assert np.all(old != new)
        assert np.all(np.isfinite(new))


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum"])
def test_freeze_again_and_unfreeze_again(name):
    """What a variable had when it left is there when it comes back."""
    model, optimizer = two_branches(), make(name)
    layer = model.get_layer("a")
    for trainable in (True, False, True):
        before = values(layer.weights)
        layer.trainable = trainable
        model.compile(optimizer, loss="mse")
        saved = state(optimizer) if optimizer.built else None
        optimizer.build(model.trainable_variables)
        if saved is not None:
            assert_same(saved, state(optimizer))
            assert_same(branch(saved, "a"), branch(state(optimizer), "a"))
        fit(model)
        same = [np.array_equal(a, b) for a, b in zip(before, values(layer.weights), strict=True)]
        assert same == [not trainable] * 2
    assert int(numpy(optimizer.iterations)) == 6


def test_a_frozen_layer_stays_where_averages_overwrite():
    """Frozen again, a layer is not set to the average of what it was."""
    model = two_branches()
    layer = model.get_layer("a")
    layer.trainable = True
    optimizer = make("adamw", use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    model.compile(optimizer, loss="mse")
    fit(model, 2)
    layer.trainable = False
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    before = values(layer.weights)
    fit(model, 4)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(layer.weights), strict=True))


def unfreeze(model):
    model.get_layer("a").trainable = True


def swap(model):
    model.get_layer("b").trainable = False
    model.get_layer("a").trainable = True


def freeze_one(model):
    model.get_layer("b").kernel.trainable = False


CHANGES = [unfreeze, freeze_one, swap]

if BACKEND == "jax":

    @pytest.mark.parametrize("wrapped", [False, True])
    @pytest.mark.parametrize("change", CHANGES)
    def test_fit_without_build_asks_for_it(change, wrapped):
        """Inside a compiled step no variable can be made. As many variables as before must not pass for the same."""
        model, optimizer = two_branches(), make("adamw")
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        model.compile(optimizer, loss="mse")
        fit(model)
        change(model)
        model.compile(optimizer, loss="mse")
        with pytest.raises((ValueError, RuntimeError), match=r"optimizer\.build"):
            fit(model)

else:

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [False])
    def test_fit_without_build(change, arguments, jit_compile):
        """apply finds the new variables by itself; the known ones go on with what they had."""
        model, optimizer = two_branches(), make("nadamw", **ARGUMENTS[arguments])
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)
        fit(model)
        before = {v.path: numpy(v) for v in model.weights}
        known = {id(v) for v in optimizer.variables}
        change(model)
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)
        fit(model)
        for variable in model.weights:
            assert np.all(np.isfinite(numpy(variable)))
            moved = not np.array_equal(before[variable.path], numpy(variable))
            assert moved == variable.trainable, variable.path
        assert known <= {id(v) for v in optimizer.variables}
        counts = ARGUMENTS[arguments].get("gradient_accumulation_steps", 1)
        assert int(numpy(optimizer.iterations)) == 4 // counts
        if optimizer.use_ema:  # fit ends by putting each variable's own average into it
            averages = {p.split("/")[-1]: v for p, v in state(optimizer).items()}
            for variable in model.trainable_variables:
                average = averages[variable.path.replace("/", "_") + "_average"]
                assert np.array_equal(numpy(variable), average), variable.path

    @pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [False])
    def test_an_average_that_is_new_in_fit_starts_at_its_variable(jit_compile):
        """With a momentum of 1 it stays there, and `fit` ends by putting it into the variable."""
        model, optimizer = two_branches(), make("adamw", use_ema=True, ema_momentum=1.0)
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)
        fit(model)
        start = values(model.get_layer("a").weights)
        unfreeze(model)
        model.compile(optimizer, loss="mse", jit_compile=jit_compile)
        fit(model)
        for old, new in zip(start, values(model.get_layer("a").weights), strict=True):
            assert np.array_equal(old, new)

    @pytest.mark.parametrize("change", CHANGES)
    def test_fit_without_build_in_a_loss_scale_optimizer(change):
        model = two_branches()
        optimizer = keras.optimizers.LossScaleOptimizer(make("adamw"), initial_scale=8.0)
        model.compile(optimizer, loss="mse")
        fit(model)
        before = {v.path: numpy(v) for v in model.weights}
        change(model)
        model.compile(optimizer, loss="mse")
        fit(model)
        for variable in model.weights:
            moved = not np.array_equal(before[variable.path], numpy(variable))
            assert moved == variable.trainable, variable.path
        assert int(numpy(optimizer.iterations)) == 4

    def test_fit_without_build_and_the_moments():
        """With the unfrozen layer held still by its multiplier, the other one's run is that of no unfreezing."""
        runs = []
        for unfreezing in (False, True):
            keras.utils.set_random_seed(0)
            model = two_branches()
            optimizer = make(
                "adamw", model=model, lr_multipliers={"a": 0}, use_ema=True, ema_momentum=0.5
            )
            model.compile(optimizer, loss="mse")
            fit(model, 3)
            if unfreezing:
                unfreeze(model)
                model.compile(optimizer, loss="mse")
            fit(model, 3)
            runs.append([*values(model.weights), *branch(state(optimizer), "b").values()])
        for a, b in zip(*runs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_variable_unfrozen_after_the_last_update_has_no_average():
    """`fit` sets what is trainable at its end, and a callback may have unfrozen a layer just then."""
    known, new = (make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in "xy")
    optimizer = make("adamw", use_ema=True, ema_momentum=0.5)
    for k in range(2):
        optimizer.apply(tensors(grads(k, 1)), [known])
    optimizer.finalize_variable_values([known, new])
    assert np.array_equal(numpy(known), numpy(optimizer.averages[0]))
    np.testing.assert_array_equal(numpy(new), [1.0, -2.0])


def test_a_layer_frozen_by_intent():
    """Who freezes and asks for a build on the same variables means to go on with all of them."""
    x, y = variables = [make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in "xy"]
    optimizer = make("adamw")
    optimizer.build(variables)
    y.trainable = False
    values = [numpy(v) for v in variables]
    state_now = [numpy(v) for v in optimizer.variables]
    with pytest.raises(ValueError, match="of which 1 are frozen"):
        optimizer.stateless_apply(state_now, tensors(grads(0, 2)), values)
    optimizer.build(variables)
    optimizer._check_values(values)
    y.trainable = True
    optimizer.build(variables)
    x.trainable = False
    with pytest.raises(ValueError, match="of which 1 are frozen"):
        optimizer.stateless_apply(state_now, tensors(grads(0, 2)), values)
