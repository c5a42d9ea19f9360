"""What rounding must not do: small and large k, variables and gradients of every float type.

Loss scaling and skipped steps are in test_wrappers.py.
"""

from functools import partial
from itertools import product

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
    RUNNERS,
    VARIANTS,
    assert_within,
    eager,
    gradients,
    make_decay,
    numpy,
    warm_restarts,
)
from effort import effort, examples
from slots import of_slot
from steps import floatx
from training import make

LOW = ["bfloat16", "float16"]
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23}  # of 1.0
START = np.array([1.0, -1.5, 0.25])
LAST = list(COMPILED)[-1]  # a way to compile: of TensorFlow's, XLA
TOGETHER = ["adamw", "nadamw", "sgdw-nesterov"]


def optimizer(name, **more):
    return make(name, **{"weight_decay": 0, **more})


def oracle_run(name, values, alpha=ALPHA, decay=(0.0, 0.0), schedule=oracle.constant, **more):
    cls, arguments = OPTIMIZERS[name]
    algorithm = partial(ALGORITHMS[cls], **{**arguments, **more})
    return oracle.Run(algorithm, values, alpha, [decay] * len(values), schedule=schedule)


def variables_of(starts, dtypes):
    both = zip(starts, dtypes, strict=True)
    return [keras.Variable(start, name=f"v{i}", dtype=t) for i, (start, t) in enumerate(both)]


def follow(step, variables, run, batches, most):
    """At each update each variable must be near the oracle's: most(its dtype, expected, way gone, k)."""
    for grads in batches:
        step(grads)
        run.step([numpy(g) for g in grads])
        for variable, expected, path in zip(variables, run.values, run.path, strict=True):
            allowed = most(variable.dtype, expected, path, run.k)
            assert_within(variable, expected, allowed, f"{variable.dtype} after {run.k} updates")


def cast(grads, dtypes):
    both = zip(grads, dtypes, strict=True)
    return [keras.ops.cast(keras.ops.convert_to_tensor(g), dtype) for g, dtype in both]


def rounded_once(dtype, expected, path, k):
    """The variable shows what was computed in float32, rounded to its type: ulp(x) ≤ ulp(1)·|x|."""
    return 0.5 * ULP[dtype] * np.abs(expected) + 2.0**-24 * (3 * k + 32)


# --- small k: 1 − β^k without cancellation ---

SLOW = {"beta_1": 0.9999, "beta_2": 0.99999999}  # in float32 this β2 is 1
SLOW_CASES = {
    "adamw": SLOW,
    "nadamw": SLOW,
    "nadamw, Keras' decay": {"beta_1": 0.9999, "beta_2": 0.999999, "momentum_decay": 1.0},
}


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("case", SLOW_CASES)
def test_first_steps(case, runner):
    """From θ = 0 float32 keeps all the digits of the way gone."""
    name, arguments = case.split(",")[0], SLOW_CASES[case]
    variables = variables_of([np.zeros(8)], ["float32"])
    step = RUNNERS[runner](optimizer(name, **arguments), variables)
    run = oracle_run(name, [np.zeros(8)], **arguments)
    follow(step, variables, run, gradients(6, [(8,)]), lambda dtype, value, path, k: 1e-5 * path)


@pytest.mark.parametrize("name", ["adamw", "nadamw"])
def test_1_minus_beta_is_that_of_the_number_given(name):
    """Of 0.9999 in float32 it is 1.0002e-4."""
    made, variables = optimizer(name, **SLOW), variables_of([np.zeros(2)], ["float32"])
    made.fast = False  # a kernel of NadamW's finds m from a sum with g, which rounds
    RUNNERS[LAST](made, variables)([np.ones(2, "float32")])
    for slot, expected in (("momentum", 1e-4), ("velocity", 1e-8)):
        (found,) = of_slot(made, slot).values()
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@settings(max_examples=examples(effort(80, 200)), deadline=None)
@given(
    name=st.sampled_from(["adamw", "adamw-amsgrad", "nadamw", "nadamw-keras"]),
    beta_1=st.floats(0.0, 1 - 1e-6),
    beta_2=st.floats(0.0, 1 - 1e-8),
)
@example(name="adamw", **SLOW)
@example(name="nadamw", **SLOW)
@example(name="nadamw", beta_1=1e-130, beta_2=0.0)
@example(name="nadamw", beta_1=0.0, beta_2=0.9)
@example(name="nadamw", beta_1=4e-4, beta_2=0.9)
@example(name="nadamw-keras", beta_1=6e-4, beta_2=0.9)
def test_first_steps_with_any_beta(name, beta_1, beta_2):
    betas = {"beta_1": beta_1, "beta_2": beta_2}
    variables = variables_of([np.zeros(4)], ["float32"])
    step, run = eager(optimizer(name, **betas), variables), oracle_run(name, [np.zeros(4)], **betas)

    def most(dtype, value, path, k):
        # α as a scale too: with β near 0 a step is α·sign g, and g may bring the weight back
        return 1e-5 * (np.abs(value) + ALPHA + path.max())

    follow(step, variables, run, gradients(3, [(4,)]), most)


# --- large k ---


@pytest.mark.parametrize(
    ("name", "runner"), [("adamw", "eager"), ("adamw", LAST), ("nadamw", LAST)]
)
@pytest.mark.parametrize("k", [2**24 + 1, 2**31 - 10])
def test_late_in_a_run(k, name, runner):
    """A cycle of ten updates, where float32 can't tell k from its neighbours, and a β2^k that is not 0 yet."""
    arguments = {"beta_2": 1 - 1e-7}
    if name == "nadamw":  # Π is a product over the updates made, which k alone does not give
        arguments["beta_1"] = 0.0
    value = np.linspace(1, 2, 5).astype("float32")
    variables = variables_of([value], ["float32"])
    made = optimizer(name, learning_rate=warm_restarts(ALPHA, 10), weight_decay=0.05, **arguments)
    made.build(variables)
    made.variables[0].assign(k)
    schedule = partial(oracle.cosine, first=10)
    run = oracle_run(name, [value], decay=(0.0, 0.05), schedule=schedule, **arguments)
    if name == "nadamw":
        run.algorithm = partial(nadamw_without_momentum, beta_2=1 - 1e-7)
    run.k = k
    assert int(numpy(made.t_cur)) == run.at.position
    step = RUNNERS[runner](made, variables)

    def most(dtype, value, path, k):
        assert int(numpy(made.t_cur)) == run.at.position
        return 2e-6 * np.abs(value) + 4e-6 * path.max()

    follow(step, variables, run, gradients(min(12, 2**31 - 1 - k - 1), [(5,)]), most)


def nadamw_without_momentum(g, state, k, rate, beta_2):
    """oracle.nadamw at β1 = 0, where μ = Π = 0; that one would make arrays of k numbers."""
    v = state["v"] = beta_2 * state.get("v", 0.0) + (1 - beta_2) * g**2
    return rate * g / (np.sqrt(v / (1 - beta_2 ** (k + 1))) + 1e-7)


def test_nadamw_when_its_product_has_vanished():
    """Π underflows float32 after some 130 updates, and nothing happens."""
    start = np.linspace(1, 2, 3).astype("float32")
    variables = variables_of([start], ["float32"])
    runner = COMPILED.get("jit") or COMPILED.get("graph") or eager
    made = optimizer("nadamw", weight_decay=0.001)
    step = runner(made, variables)
    run = oracle_run("nadamw", [start], decay=(0.0, 0.001))
    for grads in gradients(200, [(3,)]):
        step(grads)
        run.step(grads)
    most = 2.0**-24 * (3 * run.k + 16 * run.path[0].max()) + 1e-7 * np.abs(run.values[0])
    assert_within(variables[0], run.values[0], most, "after 200 updates")
    product = next(v for v in made.variables if "momentum_product" in v.path)
    assert float(numpy(product)) == 0


# --- low precision ---

PLAIN = oracle.Decay(l2=0.001)
# One variable for each.
DECAYS = [
    ("bfloat16", PLAIN),
    ("float16", PLAIN),
    ("bfloat16", oracle.Decay(l2=0.002, cautious=True, eta_power=0)),
    ("bfloat16", oracle.Decay(0.0005, 0.01, "initial")),
    ("bfloat16", oracle.Decay(0.002, 0.001, soft_threshold=True)),
    ("bfloat16", oracle.Decay(0.0005, 0.01, "initial", soft_threshold=True)),
]


@pytest.mark.parametrize(
    ("name", "runner"), [*product(VARIANTS, ["eager"]), *product(["adamw"], COMPILED)]
)
def test_low_precision_follows_the_oracle(name, runner):
    """Steps far below the resolution of the type add up, and the type shows the oracle's weights rounded once.

    The reference of a decay too: what is near it differs from it by less than the type resolves.
    """
    alpha = 0.0005 if name.startswith("sgdw") else 0.001  # an eighth of a bfloat16's distance at 1
    start = np.array([1.0, -1.5, 0.25, 1.875, 0.0])  # in either type, and one that starts at 0
    dtypes, decays = zip(*DECAYS, strict=True)
    variables = variables_of([start] * len(DECAYS), dtypes)
    own = {f"v{i}": make_decay(decay) for i, decay in enumerate(decays)}
    made = optimizer(name, learning_rate=alpha, weight_decays=own)
    batches = [cast(g * len(DECAYS), dtypes) for g in gradients(60, [(5,)])]
    run = oracle_run(name, [start] * len(DECAYS), alpha)
    run.decays = decays
    follow(RUNNERS[runner](made, variables), variables, run, batches, rounded_once)
    assert {v.dtype for v in made.variables if "reference" in v.path} == {"float32"}
    assert np.all(numpy(variables[0]) != start)


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["adamw", "sgdw"] if BACKEND == "torch" else ["adamw"])  # kernels
def test_decay_alone(name):
    """0.905 of the weight must be left in the end: 1 − 1e-4 is 1 in either type."""
    variables = variables_of([np.array([1.0, -0.7, 3.0])] * 2, LOW)
    start, updates = [numpy(v) for v in variables], 1000
    step = COMPILED[LAST](optimizer(name, weight_decay=1e-4), variables)
    grads = cast([np.zeros(3, "float32")] * 2, LOW)
    for _ in range(updates):
        step(grads)
    for variable, value in zip(variables, start, strict=True):
        rtol = 0.5 * ULP[variable.dtype] + 3 * updates * 2.0**-24
        np.testing.assert_allclose(numpy(variable), (1 - 1e-4) ** updates * value, rtol=rtol)


@pytest.mark.parametrize("runner", RUNNERS)
def test_training_goes_on_from_the_whole_average(runner):
    """And not from the float32 copy before it, where both round to the same number."""
    variables = variables_of([np.array([1.0, -0.7, 3.0])] * 2, LOW)
    averaging = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    made = optimizer("adamw", weight_decay=1e-4, learning_rate=1e-4, **averaging)
    step = RUNNERS[runner](made, variables)
    for grads in gradients(7, [(3,), (3,)]):
        step(cast(grads, LOW))
    assert all(np.any(a != b) for a, b in zip(*copies_and_averages(made), strict=True))
    made.finalize_variable_values(variables)
    for a, b in zip(*copies_and_averages(made), strict=True):
        np.testing.assert_array_equal(a, b)
    for grads in gradients(2, [(3,), (3,)]):  # nine in all
        step(cast(grads, LOW))
    for a, b in zip(*copies_and_averages(made), strict=True):
        np.testing.assert_array_equal(a, b)


def copies_and_averages(made):
    return [list(of_slot(made, name).values()) for name in ("master", "average")]


# --- types side by side, and gradients of another type ---

FLOATS = ["bfloat16", "float32", "float16"]
FLOATS += ["float64"] * (BACKEND != "jax")  # JAX has it only where it is switched on


@pytest.mark.parametrize(
    ("name", "order", "runner"),
    [
        *product(TOGETHER, [FLOATS], ["eager"]),
        *product(["adamw"], [FLOATS[::-1]], RUNNERS),
    ],
    ids=str,
)
def test_types_side_by_side(name, order, runner):
    """Each variable is updated in its own: a scalar shared by all must not take the type of the first."""

    def most(dtype, expected, path, k):
        return (
            1e-12 * path + 1e-15 if dtype == "float64" else rounded_once(dtype, expected, path, k)
        )

    alpha, l2 = 2.0**-8, 2.0**-7  # in float32 too
    variables = variables_of([START] * len(order), order)
    made = optimizer(name, learning_rate=alpha, weight_decay=l2)
    batches = [cast(g * len(order), order) for g in gradients(15, [(3,)])]
    run = oracle_run(name, [START] * len(order), alpha, (0.0, l2))
    follow(RUNNERS[runner](made, variables), variables, run, batches, most)
    assert [v.dtype for v in variables] == order


@pytest.mark.parametrize("runner", RUNNERS)
def test_gradients_are_cast(runner):
    """Floats of every type, for a float32 weight; and float32, for one below it."""
    dtypes = ["float32"] * len(FLOATS) + ["bfloat16"]
    variables = variables_of([START] * len(dtypes), dtypes)
    step = RUNNERS[runner](optimizer("adamw", weight_decay=0.01), variables)
    batches = [cast(g * len(dtypes), [*FLOATS, "float32"]) for g in gradients(8, [(3,)])]
    run = oracle_run("adamw", [START] * len(dtypes), decay=(0.0, 0.01))

    def most(dtype, value, path, k):
        if dtype == "float32":
            return 2.0**-24 * (3 * k + 16) * 2
        # whether the gradient is rounded to the variable's type first is left open: 2⁻⁹ of the way gone
        return 0.5 * ULP[dtype] * (np.abs(value) + path.max()) + 1e-6

    follow(step, variables, run, batches, most)


# --- float64 ---


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("name", "runner"),
    [*product(OPTIMIZERS, ["eager"]), *product(["adamw"], COMPILED)],
)
def test_float64_everywhere(name, runner):
    """Scalars, moments and weights all have it: sixteen digits of the way gone, and of the decay."""
    with floatx("float32", x64=True):  # where JAX has it
        starts = [START, np.array(2.0), *[START] * 3]
        alpha, l2 = 0.01 / 3, 0.1 / 3  # neither of which float32 holds
        kinds = {
            "v2": oracle.Decay(l2 / 9, l2, cautious=True, eta_power=2),
            "v3": oracle.Decay(l2 / 9, l2, towards="initial", eta_power=0.3),
            "v4": oracle.Decay(9 * l2, l2, soft_threshold=True, eta_power=0),
        }
        variables = variables_of(starts, ["float64"] * 5)
        decays = {"v0": l2, "v1": (l2, 0)} | {
            key: make_decay(decay) for key, decay in kinds.items()
        }
        made = make(
            name,
            learning_rate=alpha,
            base_learning_rate=alpha / 2,  # η is 2
            weight_decays=decays,
            lr_multipliers={"v1": 1 / 3},
            total_iterations=7,
        )
        run = oracle_run(name, starts, alpha / 2, schedule=lambda s: oracle.At(2.0, s, None))
        run.decays, run.multipliers = (
            [(0.0, l2), (l2, 0.0), *kinds.values()],
            [1.0, 1 / 3, *[1.0] * 3],
        )
        run.normalize = 7
        # Arrays: Keras rounds numbers.
        batches = [
            [np.array(g / 3, "float64") for g in grads]
            for grads in gradients(12, [start.shape for start in starts])
        ]
        step = RUNNERS[runner](made, variables)
        follow(step, variables, run, batches, lambda dtype, value, path, k: 1e-12 * path + 1e-15)
