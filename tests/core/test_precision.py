"""What rounding must not do: small k, large k, and variables and gradients of every float type."""

from functools import partial

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import example, given, settings

import oracle
from cases import (
    ALGORITHMS,
    ALPHA,
    BACKEND,
    COMPILED,
    OPTIMIZERS,
    eager,
    gradients,
    make_decay,
    make_variable,
    numpy,
    warm_restarts,
)

RUNNERS = {"eager": eager, **COMPILED}
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}  # of 1.0


def ours(cls, **arguments):
    import keras_decoupled

    return getattr(keras_decoupled, cls)(**arguments)


def oracle_run(name, values, alpha=ALPHA, l2=0.0, schedule=oracle.constant, **more):
    cls, arguments = OPTIMIZERS[name]
    algorithm = partial(ALGORITHMS[cls], **{**arguments, **more})
    return oracle.Run(algorithm, values, alpha, [(0.0, l2)] * len(values), schedule=schedule)


def optimizer(name, **more):
    cls, arguments = OPTIMIZERS[name]
    return ours(cls, **{"learning_rate": ALPHA, "weight_decay": 0, **arguments, **more})


# --- small k: 1 − β^k without cancellation ---

SLOW = {
    "adamw": {"beta_1": 0.9, "beta_2": 0.999999},
    "adamw, slower": {"beta_1": 0.9999, "beta_2": 0.99999999},  # in float32 this β2 is 1
    "adamw, usual": {},
    "nadamw": {"beta_1": 0.9, "beta_2": 0.999999},
    "nadamw, slower": {"beta_1": 0.9999, "beta_2": 0.99999999},
    "nadamw, Keras' decay": {"beta_1": 0.9999, "beta_2": 0.999999, "momentum_decay": 1.0},
    "nadamw, no momentum decay": {"beta_1": 0.9999, "beta_2": 0.999999, "momentum_decay": 0.0},
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("case", SLOW)
def test_first_steps(case, runner):
    """From θ = 0 float32 keeps all the digits of the way gone."""
    name, arguments = case.split(",")[0], SLOW[case]
    variable = keras.Variable(np.zeros(8, "float32"), name="v")
    step = RUNNERS[runner](optimizer(name, **arguments), [variable])
    run = oracle_run(name, [np.zeros(8)], **arguments)
    for grads in gradients(6, [(8,)]):
        step(grads)
        run.step(grads)
        error = np.abs(numpy(variable) - run.values[0])
        assert np.all(error <= 1e-5 * run.path[0]), (
            f"{error / run.path[0]} of the way after {run.k} updates"
        )


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(["adamw", "adamw-amsgrad", "nadamw", "nadamw-keras"]),
    beta_1=st.floats(0.0, 1 - 1e-6),
    beta_2=st.floats(0.0, 1 - 1e-8),
)
@example(name="nadamw", beta_1=1e-130, beta_2=0.0)
@example(name="nadamw", beta_1=0.0, beta_2=0.9)
@example(name="nadamw", beta_1=4e-4, beta_2=0.9)
@example(name="nadamw-keras", beta_1=6e-4, beta_2=0.9)
def test_first_steps_with_any_beta(name, beta_1, beta_2):
    betas = {"beta_1": beta_1, "beta_2": beta_2}
    variable = keras.Variable(np.zeros(4, "float32"), name="v")
    step = eager(optimizer(name, **betas), [variable])
    run = oracle_run(name, [np.zeros(4)], **betas)
    for grads in gradients(3, [(4,)]):
        step(grads)
        run.step(grads)
        # α as a scale too: with β near 0 a step is α·sign g, and g may bring the weight back
        np.testing.assert_allclose(
            numpy(variable), run.values[0], rtol=1e-5, atol=1e-5 * (ALPHA + run.path[0].max())
        )


@settings(max_examples=200, deadline=None)
@given(alpha=st.floats(1e-8, 100.0), scheduled=st.booleans())
def test_eta_is_1_at_first(alpha, scheduled):
    """Not (float32 of α)/α, which is 1.00000005 for some α."""
    learning_rate = warm_restarts(alpha, 10) if scheduled else alpha
    made = ours("SGDW", learning_rate=learning_rate, weight_decay=0)
    made.build([keras.Variable(np.ones(1, "float32"), name="v")])
    assert float(numpy(made.eta_t)) == 1.0
    assert float(numpy(made.learning_rate)) == float(np.float32(alpha))


# --- large k ---


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("k", [10**6, 2**24 + 1, 2**31 - 10])
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum"])
def test_late_in_a_run(name, k, runner):
    """A cycle of ten updates, where float32 can't tell k from its neighbours, and a β2^k that is not 0 yet."""
    arguments = {} if name == "sgdw-momentum" else {"beta_2": 1 - 1e-7}
    if name == "nadamw":
        arguments["beta_1"] = (
            0.0  # Π is a product over the updates made, which k alone does not give
        )
    schedule = partial(oracle.cosine, first=10)
    value = np.linspace(1, 2, 5).astype("float32")
    variable = keras.Variable(value, name="v")
    made = optimizer(name, learning_rate=warm_restarts(ALPHA, 10), weight_decay=0.05, **arguments)
    made.build([variable])
    made.variables[0].assign(k)
    run = oracle_run(name, [value], l2=0.05, schedule=schedule, **arguments)
    run.k = k
    assert int(numpy(made.t_cur)) == run.at.position
    step = RUNNERS[runner](made, [variable])
    updates = min(12, 2**31 - 1 - k - 1)
    if name == "nadamw":
        run.algorithm = partial(nadamw_without_momentum, beta_2=1 - 1e-7)
    for grads in gradients(updates, [(5,)]):
        step(grads)
        run.step(grads)
        np.testing.assert_allclose(
            numpy(variable), run.values[0], rtol=2e-6, atol=4e-6 * run.path[0].max()
        )
        assert int(numpy(made.t_cur)) == run.at.position


def nadamw_without_momentum(g, state, k, rate, beta_2):
    """oracle.nadamw at β1 = 0, where μ = Π = 0; that one would make arrays of k numbers."""
    v = state["v"] = beta_2 * state.get("v", 0.0) + (1 - beta_2) * g**2
    return rate * g / (np.sqrt(v / (1 - beta_2 ** (k + 1))) + 1e-7)


@pytest.mark.parametrize("name", ["nadamw", "nadamw-keras"])
def test_nadamw_when_its_product_has_vanished(name):
    """Π underflows float32 within a thousand updates, and nothing happens."""
    values = [np.linspace(1, 2, 3).astype("float32")]
    variable = keras.Variable(values[0], name="v")
    runner = COMPILED.get("jit") or COMPILED.get("graph") or eager
    step = runner(optimizer(name, beta_1=0.9, weight_decay=0.001), [variable])
    run = oracle_run(name, values, l2=0.001, beta_1=0.9)
    for grads in gradients(1200, [(3,)]):
        step(grads)
        run.step(grads)
    most = 2.0**-24 * (3 * run.k + 16 * run.path[0].max())
    np.testing.assert_allclose(numpy(variable), run.values[0], atol=most)


# --- low precision ---


def cast(grads, dtype):
    return [keras.ops.cast(keras.ops.convert_to_tensor(g), dtype) for g in grads]


LOW = {
    "adamw": {"learning_rate": 0.001},
    "adamw-amsgrad": {"learning_rate": 0.001},
    "nadamw": {"learning_rate": 0.001},
    "nadamw-keras": {"learning_rate": 0.001},
    "sgdw": {"learning_rate": 0.0005},
    "sgdw-momentum": {"learning_rate": 0.0005},
    "sgdw-nesterov": {"learning_rate": 0.0005},
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", LOW)
def test_low_precision_follows_the_oracle(name, dtype, runner):
    """Steps far below the resolution of the type add up, and the type shows the oracle's weights rounded once."""
    alpha = LOW[name]["learning_rate"]
    value = np.array([1.0, -1.5, 0.25, 1.9])  # 0.001 is an eighth of a bfloat16's distance at 1
    variable = keras.Variable(value.astype("float32"), name="v", dtype=dtype)
    made = optimizer(name, learning_rate=alpha, weight_decay=0.001)
    step = RUNNERS[runner](made, [variable])
    run = oracle_run(name, [value], alpha=alpha, l2=0.001)
    for grads in gradients(60, [(4,)]):
        grads = cast(grads, dtype)
        step(grads)
        run.step([numpy(g) for g in grads])
        half_ulp = 0.5 * ULP[dtype] * np.abs(run.values[0])  # at most: ulp(x) ≤ ulp(1)·|x|
        error = np.abs(numpy(variable) - run.values[0])
        assert np.all(error <= half_ulp + 2.0**-24 * (3 * run.k + 32)), f"{error} after {run.k}"
    assert np.all(numpy(variable) != value)


KINDS = [
    oracle.Decay(l2=0.002, cautious=True, eta_power=0),
    oracle.Decay(0.0005, 0.01, "initial"),
    oracle.Decay(0.002, 0.001, soft_threshold=True),
    oracle.Decay(0.0005, 0.01, "initial", soft_threshold=True),
]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("decay", KINDS, ids=lambda decay: repr(make_decay(decay)))
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum"])
def test_kinds_in_low_precision_follow_the_oracle(name, decay, dtype, runner):
    """The reference too: what is near it differs from it by less than the type resolves."""
    alpha = LOW[name]["learning_rate"]
    value = np.array([1.0, -1.5, 0.25, 1.875, 0.0])  # in either type, and one that starts at 0
    variable = keras.Variable(value.astype("float32"), name="v", dtype=dtype)
    made = optimizer(name, learning_rate=alpha, weight_decay=make_decay(decay))
    step = RUNNERS[runner](made, [variable])
    run = oracle_run(name, [value], alpha=alpha)
    run.decays = [decay]
    for grads in gradients(40, [(5,)]):
        grads = cast(grads, dtype)
        step(grads)
        run.step([numpy(g) for g in grads])
        half_ulp = 0.5 * ULP[dtype] * np.abs(run.values[0])
        error = np.abs(numpy(variable) - run.values[0])
        assert np.all(error <= half_ulp + 2.0**-24 * (3 * run.k + 32)), f"{error} after {run.k}"


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw", "sgdw-momentum"])
def test_low_precision_decays(name, dtype, runner):
    """0.9999 is 1 in bfloat16, and so is 0.999: still 0.905 of the weight must be left in the end."""
    decay, updates = (1e-3, 100) if runner == "eager" else (1e-4, 1000)
    value = np.array([1.0, -0.7, 3.0])
    variable = keras.Variable(value.astype("float32"), name="v", dtype=dtype)
    start = numpy(variable)
    step = RUNNERS[runner](optimizer(name, weight_decay=decay), [variable])
    zero = cast([np.zeros(3, "float32")], dtype)
    for _ in range(updates):
        step(zero)
    left = (1 - decay) ** updates
    np.testing.assert_allclose(
        numpy(variable), left * start, rtol=0.5 * ULP[dtype] + 3 * updates * 2.0**-24
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_assigned_low_precision_value_counts(name):
    """Whatever finer copy is kept: a weight that somebody sets goes on from there."""
    variable = keras.Variable(np.ones(3, "float32"), name="v", dtype="bfloat16")
    step = eager(optimizer(name, learning_rate=1e-4, weight_decay=1e-4), [variable])
    grads = cast([np.ones(3, "float32")], "bfloat16")
    for _ in range(3):
        step(grads)
    variable.assign(np.full(3, -2.0, "float32"))
    step(grads)
    np.testing.assert_allclose(numpy(variable), -2.0, rtol=ULP["bfloat16"])


@pytest.mark.parametrize("name", ["adamw", "nadamw", "nadamw-keras", "sgdw-nesterov"])
@pytest.mark.parametrize(
    "order", [["bfloat16", "float32", "float16"], ["float16", "float32", "bfloat16"]]
)
def test_types_side_by_side(name, order):
    """A scalar shared by all variables must not take the type of the first."""
    value = np.array([1.0, -1.5, 0.25])
    variables = [keras.Variable(value.astype("float32"), name=f"v_{t}", dtype=t) for t in order]
    step = eager(optimizer(name, learning_rate=0.003, weight_decay=0.01), variables)
    run = oracle_run(name, [value] * 3, alpha=0.003, l2=0.01)
    for (g,) in gradients(15, [(3,)]):
        grads = [cast([g], t)[0] for t in order]
        step(grads)
        run.step([numpy(g) for g in grads])
        for dtype, variable, expected in zip(order, variables, run.values, strict=True):
            error = np.abs(numpy(variable) - expected)
            half_ulp = 0.5 * ULP[dtype] * np.abs(expected)
            assert np.all(error <= half_ulp + 2.0**-24 * (3 * run.k + 32)), f"{dtype}: {error}"


# --- gradients of another type ---

OTHER = {"jax": ["bfloat16", "float16"]}.get(BACKEND, ["bfloat16", "float16", "float64"])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", OTHER)
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum"])
def test_gradients_are_cast(name, dtype, runner):
    value = np.array([1.0, -1.5, 0.25], "float32")
    variable = make_variable("a/kernel", value)
    step = RUNNERS[runner](optimizer(name, weight_decay=0.01), [variable])
    run = oracle_run(name, [value], l2=0.01)
    for grads in gradients(8, [(3,)]):
        grads = cast(grads, dtype)
        step(grads)
        run.step([numpy(g).astype("float32") for g in grads])
        np.testing.assert_allclose(
            numpy(variable), run.values[0], atol=2.0**-24 * (3 * run.k + 16) * 2
        )


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
def test_wider_gradients_of_low_precision_weights(name):
    value = np.array([1.0, -1.5, 0.25])
    variable = keras.Variable(value.astype("float32"), name="v", dtype="bfloat16")
    step = eager(optimizer(name, learning_rate=0.003, weight_decay=0.01), [variable])
    run = oracle_run(name, [value], alpha=0.003, l2=0.01)
    for (g,) in gradients(10, [(3,)]):
        step([g])
        run.step([g])
    # whether the gradient is rounded to the variable's type first is left open: 2⁻⁹ of the way gone
    most = (
        0.5 * ULP["bfloat16"] * np.abs(run.values[0])
        + 0.5 * ULP["bfloat16"] * run.path[0].max()
        + 1e-6
    )
    assert np.all(np.abs(numpy(variable) - run.values[0]) <= most)


# --- float64; JAX has it only where it is switched on ---

if BACKEND != "jax":

    @pytest.mark.parametrize("runner", RUNNERS)
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_float64(name, runner):
        """Steps of 1e-9 leave no float32 of about 1; scalars of float32 allow for 1e-6 of the way gone."""
        value = np.array([1.0, -1.5, 0.25])
        variable = keras.Variable(value, name="v", dtype="float64")
        step = RUNNERS[runner](optimizer(name, learning_rate=1e-9, weight_decay=2e-9), [variable])
        run = oracle_run(name, [value], alpha=1e-9, l2=2e-9)
        for grads in gradients(20, [(3,)]):
            grads = [g.astype("float64") + 1e-12 for g in grads]
            step(grads)
            run.step(grads)
            gone, expected = numpy(variable) - value, run.values[0] - value
            assert np.all(np.abs(gone - expected) <= 2e-6 * run.path[0] + 1e-15), (
                f"{gone} for {expected}"
            )
