"""Decoupled stock classes against the stock class itself, run beside it with the decay by hand, at every update."""

from functools import partial

import keras
import numpy as np
import pytest

import oracle
from cases import (
    ALPHA,
    BACKEND,
    COMPILED,
    Case,
    allowance,
    annealed,
    eager,
    eager_with_cond,
    kind,
    make_decay,
    make_variable,
    numpy,
    restart,
    set_decay,
    set_rate,
    uniform,
    warm_restarts,
)
from stock import (
    FAST,
    PATHS,
    STOCK,
    StockRun,
    assert_follows,
    follow,
    initial_values,
    make,
    make_stock,
    make_variables,
    micro_batches,
    pair,
    steps,
)

SHORT = 3  # updates

FEATURES = {
    # A pair is (l1, l2). What is excluded has no decay, whatever the rules say.
    "rules": Case(
        lambda: {
            "weight_decay": 0.03,
            "weight_decays": {
                "encoder": (0.004, 0.02),
                "bias": 0,
                "dense_10": 0.1,
                "scale": (0.01, 0.0),
                "embeddings": 0.5,
            },
        },
        {
            "encoder/dense_1/kernel": (0.004, 0.02),
            "encoder/dense_1/bias": (0.0, 0.0),
            "encoder/dense_10/kernel": (0.0, 0.1),
            "embedding/embeddings": (0.0, 0.0),
            "scale": (0.01, 0.0),
            "*": (0.0, 0.03),
        },
        exclude=("^embedding",),
        updates=SHORT,
    ),
    "multipliers and clipnorm": Case(
        lambda: {
            "weight_decay": 0.03,
            "lr_multipliers": {"encoder": 0.1, "head": 3, "dense_10": 0, "scale": 0, "conv": 0},
            "clipnorm": 0.5,
        },
        {"*": (0.0, 0.03)},
        {
            "encoder/dense_1/kernel": 0.1,
            "encoder/dense_1/bias": 0.1,
            "encoder/dense_10/kernel": 0.0,
            "conv/kernel": 0.0,
            "head/kernel": 3.0,
            "scale": 0.0,
        },
        updates=SHORT,
    ),
    "kinds by key": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 3, eta_min=0.1),
            "weight_decay": make_decay(kind(0.004, 0.05, cautious=True)),
            "weight_decays": {
                "encoder": make_decay(kind(0.002, 0.1, towards="initial")),
                "bias": make_decay(kind(l2=0.05, eta_power=0)),
                "conv": make_decay(kind(l2=0.05, eta_power=2)),
                "head": make_decay(kind(0.06, 0.02, soft_threshold=True)),
            },
        },
        {
            "encoder/dense_1/kernel": kind(0.002, 0.1, towards="initial"),
            "encoder/dense_1/bias": kind(l2=0.05, eta_power=0),
            "encoder/dense_10/kernel": kind(0.002, 0.1, towards="initial"),
            "conv/kernel": kind(l2=0.05, eta_power=2),
            "head/kernel": kind(0.06, 0.02, soft_threshold=True),
            "*": kind(0.004, 0.05, cautious=True),
        },
        schedule=partial(oracle.cosine, first=3, eta_min=0.1),
        updates=4,
    ),
    "restarts": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 2, t_mul=2, eta_min=0.1),
            "weight_decay": 0.03,
            "normalize_weight_decay": True,
        },
        {"*": (0.0, 0.03)},
        schedule=partial(oracle.cosine, first=2, t_mul=2, eta_min=0.1),
        normalize="cycle",
        updates=5,
        events={3: restart(1)},
    ),
    "rate and decay set": Case(
        lambda: {"weight_decay": 0.03, "weight_decays": {"bias": 0.01}},
        {"encoder/dense_1/bias": (0.0, 0.01), "*": (0.0, None)},
        weight_decay=0.03,
        events={1: set_rate(0.0), 2: set_rate(0.02), 3: set_decay(0.1)},
        updates=4,
    ),
}
KINDS = {
    "cautious": uniform(kind(0.004, 0.05, cautious=True), updates=SHORT),
    "towards initial": uniform(kind(0.004, 0.1, towards="initial"), updates=SHORT),
    "eta_power 0": uniform(kind(0.002, 0.03, eta_power=0), updates=4, **annealed(3)),
    "eta_power 2": uniform(kind(0.002, 0.03, eta_power=2), updates=4, **annealed(3)),
    "soft_threshold": uniform(kind(0.06, 0.02, soft_threshold=True), updates=SHORT),
}
ACCUMULATION = Case(
    lambda: {
        "learning_rate": warm_restarts(ALPHA, 3, eta_min=0.1),
        "weight_decay": 0.03,
        "gradient_accumulation_steps": 2,
    },
    {"*": (0.0, 0.03)},
    schedule=partial(oracle.cosine, first=3, eta_min=0.1),
    accumulate=2,
    cond=True,
    updates=4,
)

each = pytest.mark.parametrize("name", STOCK)
fast_or_not = pytest.mark.parametrize("fast", FAST)


@fast_or_not
@pytest.mark.parametrize("feature", FEATURES)
@each
def test_every_update(name, feature, fast):
    follow(FEATURES[feature], *pair(name, fast), fast=fast)


@fast_or_not
@pytest.mark.parametrize("case", KINDS)
@each
def test_a_kind_of_decay_on_all_weights(name, case, fast):
    follow(KINDS[case], *pair(name, fast), fast=fast)


@fast_or_not
@each
def test_accumulation(name, fast):
    """Between two updates no weight moves, and the schedule counts updates."""
    follow(ACCUMULATION, *pair(name, fast), fast=fast)


@pytest.mark.parametrize(
    ("name", "runner"),
    [(name, runner) for name in STOCK for runner in COMPILED],
)
def test_compiled(name, runner):
    """With rules and, for what no key names, the plain decay."""
    follow(FEATURES["rules"], *pair(name), COMPILED[runner])


@fast_or_not
@each
def test_a_plain_decay_and_moving_averages(name, fast):
    """They start at the weights after the first update, decay included, and become the weights in the end."""
    case = Case(
        lambda: {"weight_decay": 0.03, "use_ema": True, "ema_momentum": 0.75},
        {"*": (0.0, 0.03)},
        updates=SHORT,
    )
    expected = None
    for state in steps(case, *pair(name, fast), fast=fast):
        optimizer, variables, run = state
        new = [value.copy() for value in run.values]
        expected = (
            [0.75 * a + 0.25 * b for a, b in zip(expected, new, strict=True)] if expected else new
        )
        averages = optimizer._model_variables_moving_average
        for a, b, most in zip(averages, expected, allowance(run), strict=True):
            assert np.all(np.abs(numpy(a) - b) <= most)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, averages, strict=True):
        assert np.array_equal(numpy(variable), numpy(average))


# --- types ---


def rounded(x):
    """Half the distance between two neighbours of bfloat16."""
    return np.ldexp(1.0, np.frexp(x)[1] - 9)


TYPES = [(name, ["bfloat16", "float32"]) for name in STOCK]
ULP = 2.0**-53  # of a float64 step
if BACKEND != "jax":  # which has float64 only where it is switched on
    # On TensorFlow Keras' Muon multiplies by numbers in float32, which fails in float64.
    TYPES += [(name, ["float64"]) for name in STOCK if name != "muon" or BACKEND == "torch"]
    # After 3.15 Keras computes a step of float64 in float32 on torch (keras#23704).
    one = keras.ops.convert_to_tensor(1.0, "float64")
    if "float64" not in str(keras.ops.add(one, one).dtype):
        ULP = 2.0**-24


@fast_or_not
@pytest.mark.parametrize(("name", "kinds"), TYPES)
def test_types(name, kinds, fast):
    """A weight in bfloat16 is the rounding of one that was trained in float32.

    The numbers are exact in float32, which a stock class keeps its rate in.
    """
    alpha, l2 = 2.0**-4, 2.0**-5
    dtypes = [kinds[i % len(kinds)] for i in range(len(PATHS))]
    variables = [
        make_variable(path, value, dtype)
        for path, value, dtype in zip(PATHS, initial_values(), dtypes, strict=True)
    ]
    optimizer = make(name, learning_rate=alpha, weight_decay=l2)
    optimizer.fast = fast
    optimizer.build(variables)
    runs = []
    for dtype in kinds:
        # What has less than float32 is stepped by itself, with a copy in float32.
        low = dtype == "bfloat16"
        members = [i for i, d in enumerate(dtypes) if d == dtype]
        run = StockRun(
            partial(make_stock, name, fast=fast and not low),
            [PATHS[i] for i in members],
            [numpy(variables[i]) for i in members],
            alpha,
            [(0.0, l2)] * len(members),
            dtype="float32" if low else dtype,
        )
        checks = {
            "bfloat16": {"rounded": rounded},
            "float32": {},
            "float64": {"ulp": ULP},
        }
        runs.append((members, run, checks[dtype]))
    for grads in micro_batches(SHORT):
        grads = [keras.ops.convert_to_tensor(g, d) for g, d in zip(grads, dtypes, strict=True)]
        optimizer.apply(grads, variables)
        for members, run, checks in runs:
            run.step([numpy(grads[i]) for i in members])
            own, paths = [variables[i] for i in members], [PATHS[i] for i in members]
            assert_follows(own, run, paths, **checks)


# --- wrappers ---


def loss_scaled(optimizer, variables):
    """In a LossScaleOptimizer; before each update comes one that overflows, which halves the scale and no more."""
    wrapper = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
    wrapper.build(variables)
    apply = eager_with_cond(wrapper, variables)

    def step(grads):
        before = [numpy(variable) for variable in variables]
        scale = float(numpy(wrapper.dynamic_scale))
        apply([np.full_like(g, np.inf) for g in grads])
        for variable, value in zip(variables, before, strict=True):
            assert np.array_equal(numpy(variable), value)
        assert float(numpy(wrapper.dynamic_scale)) == scale / 2
        apply([(scale / 2 * g).astype("float32") for g in grads])

    return step


@fast_or_not
@each
def test_in_a_loss_scale_optimizer(name, fast):
    follow(FEATURES["rules"], *pair(name, fast), loss_scaled, fast)


if hasattr(keras.optimizers, "MultiOptimizer"):  # an older Keras has none

    @fast_or_not
    @pytest.mark.parametrize(("name", "other"), [("lion", "muon"), ("adafactor", "nadam")])
    def test_two_in_a_multi_optimizer(name, other, fast):
        """Each has its own decay, and counts its own updates."""
        variables, values = make_variables(), initial_values()
        decays = {name: 0.03, other: 0.1}
        inner = {n: make(n, weight_decay=l2) for n, l2 in decays.items()}
        owners = [name if path.startswith("encoder/") else other for path in PATHS]
        runs = []
        for n, l2 in decays.items():
            inner[n].fast = fast
            members = [i for i, owner in enumerate(owners) if owner == n]
            run = StockRun(
                partial(make_stock, n, fast=fast),
                [PATHS[i] for i in members],
                [values[i] for i in members],
                ALPHA,
                [(0.0, l2)] * len(members),
            )
            runs.append((members, run))
        which = keras.optimizers.OptimizerMap(inner[other], {"encoder/.*": inner[name]})
        step = eager(keras.optimizers.MultiOptimizer(which), variables)
        for grads in micro_batches(SHORT):
            step(grads)
            for members, run in runs:
                run.step([grads[i] for i in members])
                own, paths = [variables[i] for i in members], [PATHS[i] for i in members]
                assert_follows(own, run, paths)
