"""What any Keras optimizer promises, over the table of optimizers and every way to train with them."""

import keras
import numpy as np
import pytest

from cases import BACKEND, COMPILED, ONE_OF_EACH, RUNNERS, VARIANTS, eager, make_variable, numpy
from training import (
    FITS,
    LOOPS,
    X,
    Y,
    assert_no_graph,
    by_fit,
    linear,
    make,
    mse,
    mse_gradients,
    oracle_of,
    state,
    tensors,
    values,
)

COMPILED_RUNNER = next(iter(COMPILED.values()))
DTYPES = ["float32", "bfloat16", "float16"] + ["float64"] * (BACKEND != "jax")
every_optimizer = pytest.mark.parametrize("name", VARIANTS)
every_runner = pytest.mark.parametrize("runner", RUNNERS)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)
START = np.array([1.0, -2.0])


def assert_follows(variables, run, atol=1e-6):
    for variable, expected in zip(variables, run.values, strict=True):
        np.testing.assert_allclose(numpy(variable), expected, atol=atol)


def assert_same(ends):
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@every_optimizer
def test_converges(name):
    """To a thousandth of the loss, and with a decay of 1e-4 no further than that from the optimum."""
    weights = [np.full((3, 2), 0.5, "float32"), np.full(2, -0.5, "float32")]
    variables = [make_variable(f"linear/{i}", w) for i, w in enumerate(weights)]
    optimizer = make(
        name, learning_rate=0.1, weight_decay=1e-4, total_iterations=120, use_cosine_annealing=True
    )
    step = COMPILED_RUNNER(optimizer, variables)
    start = mse(*weights)
    for _ in range(120):
        step([g.astype("float32") for g in mse_gradients(*values(variables))])
    assert mse(*values(variables)) < 1e-3 * start


WAYS = [(name, loop) for name in VARIANTS for loop in LOOPS]
WAYS += [(name, fit) for name in ("adamw-amsgrad", "nadamw", "sgdw-nesterov") for fit in FITS]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_every_way_to_train_is_the_same(name, way):
    model, optimizer = linear(), make(name)
    run = oracle_of(name, values(model.trainable_variables))
    (LOOPS | FITS)[way](optimizer, model, 4)
    for _ in range(4):
        run.step(mse_gradients(*run.values))
    assert_follows(model.trainable_variables, run, atol=1e-5)
    assert int(numpy(optimizer.iterations)) == 4
    assert_no_graph(optimizer, model.trainable_variables)


@pytest.mark.parametrize("dtype", DTYPES)
@every_optimizer
def test_keeps_types(name, dtype):
    """A slot has its variable's type, and float32 where that has less."""
    variable = keras.Variable(np.ones((2, 3), "float32"), name="v", dtype=dtype)
    optimizer = make(name)
    step = eager(optimizer, [variable])
    for _ in range(2):
        step(tensors([np.ones((2, 3))], dtype))
    slots = [v for v in optimizer.variables if tuple(v.shape) == (2, 3)]
    expected = dtype if dtype in ("float32", "float64") else "float32"
    for v, own in [(variable, dtype), *((slot, expected) for slot in slots)]:
        assert {str(keras.backend.standardize_dtype(x.dtype)) for x in (v, v.value)} == {own}


if BACKEND != "jax":  # which has float64 only where it is switched on

    @every_runner
    @pytest.mark.parametrize(
        "arguments",
        [
            {"total_iterations": 3, "use_cosine_annealing": True},
            {"learning_rate": keras.optimizers.schedules.CosineDecay(0.05, 10, alpha=0.1)},
            {"learning_rate": lambda: 0.05},
            {"weight_decay": keras.optimizers.schedules.PolynomialDecay(0.1, 5, 0.01)},
            {"use_ema": True, "gradient_accumulation_steps": 2, "clipnorm": 9.0},
        ],
        ids=["annealing", "schedule", "callable", "decay by a schedule", "Keras' arguments"],
    )
    @one_of_each
    def test_float64_with_all_that_has_a_type(name, arguments, runner):
        """Schedules give float32 (or the type of floatx) and meet float64 scalars; beside them is a float32 weight."""
        variables = [make_variable(t, np.ones(2), t) for t in ("float64", "float32")]
        optimizer = make(name, **arguments)
        step = RUNNERS[runner](optimizer, variables)
        for _ in range(2):
            step([np.array([0.5, -1.0]), np.array([0.5, -1.0], "float32")])
        assert_same([[v] for v in values(variables)])
        assert all(np.all(np.isfinite(v) & (v != 1)) for v in values(variables))
        optimizer.learning_rate = 0.5 * float(numpy(optimizer.learning_rate))
        assert np.isfinite(float(numpy(optimizer.eta_t)))


if BACKEND != "torch":  # where Keras wants 1

    @pytest.mark.parametrize("jit_compile", ["auto", False])
    def test_fit_over_several_batches_per_call(jit_compile):
        """steps_per_execution runs several updates in one call: each has its own place in the schedule."""
        final = []
        for steps in (1, 4):
            model = linear()
            optimizer = make("adamw", total_iterations=5, use_cosine_annealing=True)
            model.compile(optimizer, loss="mse", jit_compile=jit_compile, steps_per_execution=steps)
            model.fit(X, Y, batch_size=2, epochs=2, shuffle=False, verbose=0)
            assert int(numpy(optimizer.iterations)) == 16
            assert int(numpy(optimizer.t_cur)) == 16 % 5
            final.append(values(model.weights))
        assert_same(final)


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
def test_a_model_without_trainable_variables(name):
    model = linear(trainable=False)
    before = values(model.weights)
    model.compile(make(name), loss="mse")
    if BACKEND == "jax":
        model.fit(X, Y, verbose=0)
    else:
        with pytest.warns(UserWarning, match="does not have any trainable weights"):
            model.fit(X, Y, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, values(model.weights), strict=True))


@every_optimizer
def test_apply_builds(name):
    """As in Keras: with variables it builds, without them it asks for a build."""
    variable = make_variable("w", np.ones(2))
    optimizer = make(name)
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


@every_optimizer
def test_two_optimizers_over_one_model(name):
    """Neither knows of the other: each has its own moments, counters and decays."""
    variable = make_variable("w", START)
    one, other = make(name), make("sgdw-nesterov", learning_rate=0.01, weight_decay=0.2)
    run = oracle_of(name, values([variable]))
    run_other = oracle_of("sgdw-nesterov", values([variable]), alpha=0.01, l2=0.2)
    for g in np.random.default_rng(0).normal(size=(3, 1, 2)):
        eager(one, [variable])(g.astype("float32"))
        run.step(g)
        run_other.values = run.values
        eager(other, [variable])(g.astype("float32"))
        run_other.step(g)
        run.values = run_other.values
        assert_follows([variable], run)


def test_compile_with_another_optimizer_and_back():
    model, first = linear(), make("adamw", total_iterations=50, use_cosine_annealing=True)
    by_fit(first, model, 2)
    kept = state(first)
    by_fit(make("sgdw-momentum"), model, 3)
    assert all(np.array_equal(kept[path], value) for path, value in state(first).items())
    by_fit(first, model, 2)
    assert int(numpy(first.t_cur)) == 4


@pytest.mark.parametrize("name", ["adamw-amsgrad", "nadamw", "sgdw", "sgdw-momentum"])
def test_a_second_build_on_the_same_variables_changes_nothing(name):
    model, optimizer = linear(), make(name, use_ema=True)
    by_fit(optimizer, model, 2)
    variables, before = optimizer.variables, state(optimizer)
    optimizer.build(model.trainable_variables)
    assert [id(v) for v in optimizer.variables] == [id(v) for v in variables]
    assert all(np.array_equal(before[path], value) for path, value in state(optimizer).items())


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("built", [True, False])
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
