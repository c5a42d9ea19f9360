"""Decoupled stock classes against the stock class itself, run beside it with the decay by hand, at every update."""

import itertools
from functools import partial

import keras
import numpy as np
import pytest

from cases import (
    ALPHA,
    BACKEND,
    COMPILED,
    Case,
    allowance,
    assert_follows,
    assert_within,
    case,
    cosine,
    each,
    eager,
    eager_with_cond,
    kind,
    l2,
    make_decay,
    make_variable,
    numpy,
    restart,
    set_decay,
    set_rate,
    uniform,
)
from stock import (
    FAST,
    PATHS,
    STOCK,
    StockRun,
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
TO_A_TENTH = cosine(3, eta_min=0.1)

CASES = {
    # A pair is (l1, l2). What is excluded has no decay, whatever the rules say.
    "rules": Case(
        {
            "weight_decay": 0.03,
            "weight_decays": {"encoder": (0.004, 0.02), "bias": 0, "dense_10": 0.1}
            | {"scale": (0.01, 0.0), "embeddings": 0.5},
        },
        l2((0.004, 0.02), 0.0, 0.1, 0.03, 0.0, 0.03, (0.01, 0.0), paths=PATHS),
        exclude=("^embedding",),
        updates=SHORT,
    ),
    "multipliers and clipnorm": uniform(
        0.03,
        {
            "lr_multipliers": {"encoder": 0.1, "head": 3, "dense_10": 0, "scale": 0, "conv": 0},
            "clipnorm": 0.5,
        },
        multipliers=each(0.1, 0.1, 0.0, 0.0, 1.0, 3.0, 0.0, paths=PATHS),
        updates=SHORT,
    ),
    "kinds by key": case(
        {
            "weight_decay": make_decay(kind(0.004, 0.05, cautious=True)),
            "weight_decays": {
                "encoder": make_decay(kind(0.002, 0.1, towards="initial")),
                "bias": make_decay(kind(l2=0.05, eta_power=0)),
                "conv": make_decay(kind(l2=0.05, eta_power=2)),
                "head": make_decay(kind(0.06, 0.02, soft_threshold=True)),
            },
        },
        each(
            kind(0.002, 0.1, towards="initial"),
            kind(l2=0.05, eta_power=0),
            kind(0.002, 0.1, towards="initial"),
            kind(l2=0.05, eta_power=2),
            kind(0.004, 0.05, cautious=True),
            kind(0.06, 0.02, soft_threshold=True),
            kind(0.004, 0.05, cautious=True),
            paths=PATHS,
        ),
        TO_A_TENTH,
        updates=4,
    ),
    "restarts": uniform(
        0.03,
        rate=cosine(2, normalized=True, t_mul=2, eta_min=0.1),
        updates=5,
        events={3: restart(1)},
    ),
    "rate and decay set": Case(
        {"weight_decay": 0.03, "weight_decays": {"bias": 0.01}},
        {"encoder/dense_1/bias": (0.0, 0.01), "*": (0.0, None)},
        weight_decay=0.03,
        events={1: set_rate(0.0), 2: set_rate(0.02), 3: set_decay(0.1)},
        updates=4,
    ),
    # Between two updates no weight moves, and the schedule counts updates.
    "accumulation": uniform(
        0.03, {"gradient_accumulation_steps": 2}, TO_A_TENTH, accumulate=2, updates=4
    ),
}

fast_or_not = pytest.mark.parametrize("fast", FAST)
# torch steps each class by code of its own. Elsewhere all go one way: each takes one case eagerly, and one compiled.
MATRIX = list(itertools.product(STOCK, CASES))
if BACKEND != "torch":
    MATRIX = list(zip(STOCK, itertools.cycle(CASES), strict=False))


@fast_or_not
@pytest.mark.parametrize(("name", "case"), MATRIX)
def test_every_update(name, case, fast):
    follow(CASES[case], *pair(name, fast), fast=fast)


@pytest.mark.parametrize(
    ("name", "runner"), list(zip(STOCK, itertools.cycle(COMPILED), strict=False))
)
def test_compiled(name, runner):
    follow(CASES["kinds by key"], *pair(name), COMPILED[runner])


@fast_or_not
@pytest.mark.parametrize("name", ["lion", "lamb"])  # lamb never has torch's code for many tensors
def test_a_plain_decay_and_moving_averages(name, fast):
    """They start at the weights after the first update, decay included, and become the weights in the end."""
    case = uniform(0.03, {"use_ema": True, "ema_momentum": 0.75}, updates=SHORT)
    expected = None
    for state in steps(case, *pair(name, fast), fast=fast):
        optimizer, variables, run = state
        new = [value.copy() for value in run.values]
        pairs = zip(expected or new, new, strict=True)
        expected = [0.75 * a + 0.25 * b for a, b in pairs]
        averages = optimizer._model_variables_moving_average
        for average, value, most in zip(averages, expected, allowance(run), strict=True):
            assert_within(average, value, most, average.path)
    optimizer.finalize_variable_values(variables)
    for variable, average in zip(variables, averages, strict=True):
        assert np.array_equal(numpy(variable), numpy(average))


# --- types ---


def rounded(x):
    """Half the distance between two neighbours of bfloat16."""
    return np.ldexp(1.0, np.frexp(x)[1] - 9)


LOW, HIGH = ["bfloat16", "float32"], ["float64"]
TYPES = [(name, LOW) for name in STOCK]
ULP = 2.0**-53  # of a float64 step
if BACKEND != "jax":  # which has float64 only where it is switched on
    # Keras' Nadam has one product for all types.
    TYPES = [(name, LOW if name == "nadam" else HIGH + LOW) for name in STOCK] + [("nadam", HIGH)]
    # After 3.15 Keras computes a step of float64 in float32 on torch (keras#23704).
    one = keras.ops.convert_to_tensor(1.0, "float64")
    if "float64" not in str(keras.ops.add(one, one).dtype):
        ULP = 2.0**-24
# Keras casts a Python number to float64 by way of float32 on TensorFlow. These are exact in both.
EXACT = {"beta_1": 0.875, "beta_2": 0.75, "epsilon": 2.0**-23}
EXACT = {"adamax": EXACT, "lamb": EXACT, "nadam": EXACT}


class Part:
    """The reference for some of the variables, chosen by position."""

    def __init__(self, stock, variables, chosen, alpha=ALPHA, l2=0.0):
        self.members = [i for i in range(len(PATHS)) if chosen(i)]
        self.variables = [variables[i] for i in self.members]
        self.paths = [PATHS[i] for i in self.members]
        dtype = "float64" if self.variables[0].dtype == "float64" else "float32"
        values, decays = [numpy(v) for v in self.variables], [(0.0, l2)] * len(self.members)
        self.run = StockRun(stock, self.paths, values, alpha, decays, dtype=dtype)

    def step(self, grads, **checks):
        self.run.step([numpy(grads[i]) for i in self.members])
        assert_follows(self.variables, self.run, self.paths, **checks)


@fast_or_not
@pytest.mark.parametrize(("name", "kinds"), TYPES)
def test_types(name, kinds, fast):
    """A weight in bfloat16 is the rounding of one that was trained in float32.

    The numbers are exact in float32, which a stock class keeps its rate in.
    """
    alpha, l2 = 2.0**-4, 2.0**-5
    dtypes = [kinds[i % len(kinds)] for i in range(len(PATHS))]
    parts = zip(PATHS, initial_values(), dtypes, strict=True)
    variables = [make_variable(*part) for part in parts]
    exact = EXACT.get(name, {})
    optimizer = make(name, learning_rate=alpha, weight_decay=l2, **exact)
    optimizer.fast = fast
    optimizer.build(variables)
    runs = []
    for dtype in kinds:
        # What has less than float32 is stepped by itself, with a copy in float32.
        low = dtype == "bfloat16"
        stock = partial(make_stock, name, fast=fast and not low, **exact)
        checks = {"bfloat16": {"rounded": rounded}, "float64": {"ulp": ULP}}.get(dtype, {})
        part = Part(stock, variables, lambda i, dtype=dtype: dtypes[i] == dtype, alpha, l2)
        runs.append((part, checks))
    for grads in micro_batches(SHORT):
        grads = [keras.ops.convert_to_tensor(g, d) for g, d in zip(grads, dtypes, strict=True)]
        optimizer.apply(grads, variables)
        for part, checks in runs:
            part.step(grads, **checks)


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
@pytest.mark.parametrize("name", ["lion", "nadam"])  # nadam has a number beside its slots
def test_in_a_loss_scale_optimizer(name, fast):
    follow(CASES["rules"], *pair(name, fast), loss_scaled, fast)


if hasattr(keras.optimizers, "MultiOptimizer"):  # an older Keras has none

    @fast_or_not
    def test_two_in_a_multi_optimizer(fast):
        """Each has its own decay, and counts its own updates."""
        name, other = "adafactor", "nadam"
        variables, decays = make_variables(), {name: 0.03, other: 0.1}
        inner = {n: make(n, weight_decay=l2) for n, l2 in decays.items()}
        owners = [name if path.startswith("encoder/") else other for path in PATHS]
        parts = []
        for n, l2 in decays.items():
            inner[n].fast = fast
            stock = partial(make_stock, n, fast=fast)
            parts.append(Part(stock, variables, lambda i, n=n: owners[i] == n, l2=l2))
        which = keras.optimizers.OptimizerMap(inner[other], {"encoder/.*": inner[name]})
        step = eager(keras.optimizers.MultiOptimizer(which), variables)
        for grads in micro_batches(SHORT):
            step(grads)
            for part in parts:
                part.step(grads)
