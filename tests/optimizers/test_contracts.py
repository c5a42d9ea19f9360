"""What any Keras optimizer promises, over the table of optimizers and every way to train with them."""

import itertools

import keras
import numpy as np
import pytest

from cases import BACKEND, ONE_OF_EACH, RUNNERS, eager, make_variable, numpy
from training import (
    FITS,
    LOOPS,
    X,
    Y,
    assert_no_graph,
    by_fit,
    linear,
    make,
    mse_gradients,
    oracle_of,
    state,
    tensors,
    values,
)

one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)
START = np.array([1.0, -2.0])


def assert_follows(variables, run, atol=1e-6):
    for variable, expected in zip(variables, run.values, strict=True):
        np.testing.assert_allclose(numpy(variable), expected, atol=atol)


@pytest.mark.parametrize(
    ("way", "name"), list(zip(LOOPS | FITS, itertools.cycle(ONE_OF_EACH), strict=False))
)
def test_every_way_to_train_is_the_same(name, way):
    model, optimizer = linear(), make(name)
    run = oracle_of(name, values(model.trainable_variables))
    (LOOPS | FITS)[way](optimizer, model, 4)
    for _ in range(4):
        run.step(mse_gradients(*run.values))
    assert_follows(model.trainable_variables, run, atol=1e-5)
    assert int(numpy(optimizer.iterations)) == 4
    assert_no_graph(optimizer, model.trainable_variables)


@one_of_each
def test_keeps_types(name):
    """A slot has its variable's type, and float32 where that has less."""
    dtypes = ["float32", "bfloat16", "float16"] + ["float64"] * (BACKEND != "jax")
    values = [np.ones((2, 3 + i)) for i in range(len(dtypes))]
    variables = [make_variable("v", *both) for both in zip(values, dtypes, strict=True)]
    optimizer = make(name)
    for _ in range(2):
        grads = [tensors([g], dtype)[0] for g, dtype in zip(values, dtypes, strict=True)]
        optimizer.apply(grads, variables)
    for variable, dtype in zip(variables, dtypes, strict=True):
        slots = [v for v in optimizer.variables if tuple(v.shape) == variable.shape]
        expected = dtype if dtype in ("float32", "float64") else "float32"
        for v, own in [(variable, dtype), *((slot, expected) for slot in slots)]:
            assert {str(keras.backend.standardize_dtype(x.dtype)) for x in (v, v.value)} == {own}


if BACKEND != "jax":  # which has float64 only where it is switched on
    schedules = keras.optimizers.schedules
    FALLING = schedules.PolynomialDecay(0.1, 5, 0.01)
    KERAS = {"use_ema": True, "gradient_accumulation_steps": 2, "clipnorm": 9.0}
    TYPED = [
        ("adamw", {"total_iterations": 3, "use_cosine_annealing": True, "weight_decay": FALLING}),
        ("nadamw", {"learning_rate": schedules.CosineDecay(0.05, 10, alpha=0.1), **KERAS}),
        ("sgdw-momentum", {"learning_rate": lambda: 0.05, **KERAS}),
    ]

    @pytest.mark.parametrize("runner", RUNNERS)
    @pytest.mark.parametrize(("name", "arguments"), TYPED)
    def test_float64_with_all_that_has_a_type(name, arguments, runner):
        """Schedules give float32 (or the type of floatx) and meet float64 scalars; beside them is a float32 weight."""
        variables = [make_variable(t, np.ones(2), t) for t in ("float64", "float32")]
        optimizer = make(name, **arguments)
        step = RUNNERS[runner](optimizer, variables)
        for _ in range(2):
            step([np.array([0.5, -1.0]), np.array([0.5, -1.0], "float32")])
        double, single = values(variables)
        np.testing.assert_allclose(double, single, atol=1e-6)
        assert np.all(np.isfinite(double) & (double != 1))
        optimizer.learning_rate = 0.5 * float(numpy(optimizer.learning_rate))
        assert np.isfinite(float(numpy(optimizer.eta_t)))


if BACKEND != "torch":  # where Keras wants 1

    def test_fit_over_several_batches_per_call():
        """steps_per_execution runs several updates in one call: each has its own place in the schedule."""
        final = []
        for steps in (1, 4):
            model = linear()
            optimizer = make("adamw", total_iterations=5, use_cosine_annealing=True)
            model.compile(optimizer, loss="mse", steps_per_execution=steps, run_eagerly=steps == 1)
            model.fit(X, Y, batch_size=2, shuffle=False, verbose=0)
            assert int(numpy(optimizer.iterations)) == 8
            assert int(numpy(optimizer.t_cur)) == 8 % 5
            final.append(values(model.weights))
        for one, other in zip(*final, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_model_without_trainable_variables():
    model = linear(trainable=False)
    before = values(model.weights)
    model.compile(make("adamw"), loss="mse")
    if BACKEND == "jax":
        model.fit(X, Y, verbose=0)
    else:
        with pytest.warns(UserWarning, match="does not have any trainable weights"):
            model.fit(X, Y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(model.weights), strict=True))


def test_apply_builds():
    """As in Keras: with variables it builds, without them it asks for a build."""
    variable, optimizer = make_variable("w", np.ones(2)), make("adamw")
    with pytest.raises(ValueError, match=r"must already be built.*optimizer\.build"):
        optimizer.apply(tensors([np.ones(2)]))
    assert not optimizer.built
    assert int(numpy(optimizer.iterations)) == 0
    optimizer.apply(tensors([np.ones(2)]), [variable])
    after = numpy(variable)
    assert optimizer.built
    optimizer.apply(tensors([np.ones(2)]))
    assert np.all(numpy(variable) < after)
    assert int(numpy(optimizer.iterations)) == 2


def test_two_optimizers_over_one_model():
    """Neither knows of the other: each has its own moments, counters and decays."""
    variable = make_variable("w", START)
    both = [{"name": "nadamw"}, {"name": "sgdw-nesterov", "alpha": 0.01, "l2": 0.2}]
    one, other = make("nadamw"), make("sgdw-nesterov", learning_rate=0.01, weight_decay=0.2)
    run, run_other = (oracle_of(values=values([variable]), **own) for own in both)
    for g in np.random.default_rng(0).normal(size=(3, 1, 2)):
        eager(one, [variable])(g.astype("float32"))
        run.step(g)
        run_other.values = run.values
        eager(other, [variable])(g.astype("float32"))
        run_other.step(g)
        run.values = run_other.values
        assert_follows([variable], run)


def test_compile_with_another_optimizer_and_back():
    """The first one keeps its state, and goes on; a second build on the same variables changes nothing."""
    model = linear()
    first = make("nadamw", total_iterations=50, use_cosine_annealing=True, use_ema=True)
    by_fit(first, model, 2, jit_compile=False)
    variables, kept = first.variables, state(first)
    by_fit(make("sgdw-momentum"), model, 1, jit_compile=False)
    first.build(model.trainable_variables)
    assert [id(v) for v in first.variables] == [id(v) for v in variables]
    assert all(np.array_equal(kept[path], value) for path, value in state(first).items())
    by_fit(first, model, 2, jit_compile=False)
    assert int(numpy(first.t_cur)) == 4


if BACKEND == "tensorflow":

    @pytest.mark.parametrize(("built", "jit_compile"), [(True, False), (False, True)])
    def test_one_optimizer_in_two_functions(built, jit_compile):
        import tensorflow as tf

        variable = make_variable("w", START)
        optimizer, run = make("nadamw"), oracle_of("nadamw", values([variable]))
        if built:
            optimizer.build([variable])
        functions = [
            tf.function(lambda g: optimizer.apply([g], [variable]), jit_compile=jit_compile)
            for _ in range(2)
        ]
        for function in [*functions, *functions]:
            function(tf.constant([0.5, 0.25]))
            run.step([np.array([0.5, 0.25])])
            assert_follows([variable], run)
        # TensorFlow itself traces a function that makes variables once more, without them.
        assert [f.experimental_get_tracing_count() for f in functions] == [1 if built else 2, 1]
