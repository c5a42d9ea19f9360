"""Training in few bits, and in many: whole models in bfloat16 and float16, skipped steps, float64.

Single updates against the oracle are in test_precision.py, the wrapper alone in test_wrappers.py.
"""

import os
import subprocess
import sys
from functools import cache, partial
from itertools import product
from pathlib import Path

import keras
import numpy as np
import pytest

import oracle
from cases import (
    ALGORITHMS,
    BACKEND,
    COMPILED,
    OPTIMIZERS,
    eager,
    gradients,
    make_decay,
    numpy,
    warm_restarts,
)
from effort import effort
from training import make, state, values

RUNNERS = {"eager": eager, **COMPILED}
NAMES = effort(["adamw", "nadamw", "sgdw-momentum"], list(OPTIMIZERS))
LOW = ["bfloat16", "float16"]
ULP = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # of 1.0
LossScale = keras.optimizers.LossScaleOptimizer
# The ways in which `fit` runs a step.
FIT = {"eager": {"run_eagerly": True}, "compiled": {}}
if BACKEND != "torch":
    FIT |= {"xla": {"jit_compile": True}, "no xla": {"jit_compile": False}}

_rng = np.random.default_rng(5)
X = _rng.normal(size=(64, 8)).astype("float32")
Y = (np.tanh(X @ _rng.normal(size=(8, 4))) @ _rng.normal(size=(4, 1))).astype("float32")
# Steps that are a fraction of what bfloat16 resolves at a weight of 1.
RATES = {"adamw": 1e-3, "nadamw": 1e-3, "sgdw-momentum": 2e-3}


# --- learning ---


def network(policy):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "tanh", dtype=policy),
            keras.layers.Dense(1, dtype=policy),
        ]
    )
    # The same start for every policy, in numbers that all types hold.
    rng = np.random.default_rng(2)
    for variable in model.trainable_variables:
        start = np.round(rng.normal(size=variable.shape) * 64) / 128
        variable.assign(start.astype("float32"))
    return model


def loss_of(model):
    """In float64, so that what is compared are the weights alone."""
    kernel, bias, head, shift = values(model.trainable_variables)
    return np.mean((np.tanh(X @ kernel + bias) @ head + shift - Y) ** 2)


@cache
def curve(name, policy, epochs):
    model = network(policy)
    optimizer = make(name, learning_rate=RATES[name], weight_decay=1e-4)
    model.compile(optimizer, loss="mse")
    losses = [loss_of(model)]
    for _ in range(epochs):
        model.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0)
        losses.append(loss_of(model))
    return np.array(losses)


@pytest.mark.parametrize("policy", LOW)
@pytest.mark.parametrize("name", RATES)
def test_a_model_of_low_precision_learns_as_one_of_float32(name, policy):
    epochs = 40
    wanted, found = curve(name, "float32", epochs), curve(name, policy, epochs)
    assert wanted[-1] < 0.5 * wanted[0]  # there is something to learn
    np.testing.assert_allclose(found, wanted, rtol=0.1, atol=0.01 * wanted[0])


# --- decay, through fit ---


@pytest.mark.reliability
@pytest.mark.parametrize("way", FIT)
@pytest.mark.parametrize(
    ("name", "dtype"),
    effort([("adamw", "bfloat16"), ("sgdw-momentum", "float16")], list(product(RATES, LOW))),
)
def test_decay_alone_through_fit(name, dtype, way):
    """1 − 1e-4 is 1 in either type. A thousand updates without a gradient leave 0.905 of the weight."""
    updates, decay = 1000, 1e-4
    if way in ("eager", "no xla"):
        updates, decay = effort((100, 1e-3), (1000, 1e-4))
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(3, use_bias=False, dtype=dtype)]
    )
    kernel = model.trainable_variables[0]
    kernel.assign(np.array([[1.0, -0.7, 3.0], [0.01, -2.5, 0.3]], "float32"))
    start = numpy(kernel)
    model.compile(
        make(name, weight_decay=decay),
        loss=lambda y, prediction: 0 * keras.ops.mean(prediction),
        **FIT[way],
    )
    model.fit(np.ones((updates, 2)), np.ones((updates, 3)), batch_size=1, verbose=0)
    assert int(numpy(model.optimizer.iterations)) == updates
    left = (1 - decay) ** updates
    np.testing.assert_allclose(
        numpy(kernel), left * start, rtol=0.5 * ULP[dtype] + 3 * updates * 2.0**-24
    )


@pytest.mark.reliability
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", effort(["adamw"], ["adamw", "nadamw", "sgdw", "sgdw-momentum"]))
def test_decay_alone_eagerly(name, dtype):
    """test_precision.py does this compiled, and eagerly with ten times the decay."""
    variable = keras.Variable(np.array([1.0, -0.7, 3.0], "float32"), name="v", dtype=dtype)
    start = numpy(variable)
    step = eager(make(name, weight_decay=1e-4), [variable])
    zero = [keras.ops.zeros(3, dtype)]
    for _ in range(1000):
        step(zero)
    np.testing.assert_allclose(
        numpy(variable), 0.9999**1000 * start, rtol=0.5 * ULP[dtype] + 3000 * 2.0**-24
    )


# --- skipped steps ---


def scaled_model(name, policy, **arguments):
    model = network(policy)
    inner = make(
        name,
        learning_rate=warm_restarts(0.05, 3, t_mul=2, eta_min=0.1),
        weight_decay=0.1,
        normalize_weight_decay=True,
        use_ema=True,
        ema_momentum=0.5,
        **arguments,
    )
    model.compile(LossScale(inner, initial_scale=4.0), loss="mse")
    return model, inner


def everything(model, inner):
    """The model's weights and all that its optimizer keeps: moments, averages, masters, counters."""
    return {v.path: numpy(v) for v in model.trainable_variables} | state(inner)


MORE = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "average": {"ema_overwrite_frequency": 2},
    "clipping": {"clipnorm": 0.5},
}
SKIPPED = [
    ("adamw-amsgrad", "mixed_float16", "plain", np.inf),
    ("nadamw", "float16", "accumulation", np.nan),
    ("sgdw-momentum", "mixed_float16", "average", np.nan),
]
ALL_SKIPPED = product(
    ["adamw-amsgrad", "nadamw", "sgdw-momentum"],
    ["mixed_float16", "float16"],
    MORE,
    [np.inf, np.nan],
)


@pytest.mark.reliability
@pytest.mark.parametrize(("name", "policy", "more", "bad"), effort(SKIPPED, list(ALL_SKIPPED)))
def test_a_skipped_step_in_training_changes_nothing(name, policy, more, bad):
    """No weight, no moment, no decay, no average, no master copy, no place in the schedule."""
    model, inner = scaled_model(name, policy, **MORE[more])
    for _ in range(3):
        model.train_on_batch(X, Y)
    before, scale = everything(model, inner), float(numpy(model.optimizer.dynamic_scale))
    assert int(numpy(inner.t_cur)) == (1 if more == "accumulation" else 0)
    spoilt = X.copy()
    spoilt[3, 2] = bad
    model.train_on_batch(spoilt, Y)
    after = everything(model, inner)
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)
    assert float(numpy(model.optimizer.dynamic_scale)) == scale / 2
    for _ in range(2):
        model.train_on_batch(X, Y)
    now = everything(model, inner)
    assert sum(not np.array_equal(now[path], value) for path, value in before.items()) > 4
    assert all(np.isfinite(value).all() for value in now.values())


@pytest.mark.reliability
@pytest.mark.parametrize("name", effort(["nadamw"], ["adamw", "nadamw", "sgdw-momentum"]))
def test_skipped_steps_leave_the_run_as_if_they_had_not_been(name):
    """Scales are powers of two: the good steps of both runs compute the same numbers."""
    with_bad, inner = scaled_model(name, "mixed_float16")
    without, twin = scaled_model(name, "mixed_float16")
    spoilt = np.full_like(X, np.nan)
    for k in range(8):
        for model in (with_bad, without):
            model.train_on_batch(X[k::8], Y[k::8])
        if k % 3 == 0:
            with_bad.train_on_batch(spoilt, Y)
    ours, theirs = everything(with_bad, inner), everything(without, twin)
    assert int(numpy(inner.iterations)) == 8
    for (path, a), b in zip(ours.items(), theirs.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4, err_msg=path)


# --- float64 ---


def assert_float64(name, runner):
    """Scalars, moments and weights all have it: sixteen digits of the way gone, and of the decay."""
    cls, arguments = OPTIMIZERS[name]
    start = [np.array([1.0, -1.5, 0.25]), np.array(2.0), *[np.array([1.0, -1.5, 0.25])] * 3]
    variables = [keras.Variable(v, name=f"v{i}", dtype="float64") for i, v in enumerate(start)]
    alpha, l2 = 0.01 / 3, 0.1 / 3  # neither of which float32 holds
    kinds = {
        "v2": oracle.Decay(l2 / 9, l2, cautious=True, eta_power=2),
        "v3": oracle.Decay(l2 / 9, l2, towards="initial", eta_power=0.3),
        "v4": oracle.Decay(9 * l2, l2, soft_threshold=True, eta_power=0),
    }
    optimizer = make(
        name,
        learning_rate=alpha,
        base_learning_rate=alpha / 2,  # η is 2
        weight_decays={"v0": l2, "v1": (l2, 0)}
        | {key: make_decay(decay) for key, decay in kinds.items()},
        lr_multipliers={"v1": 1 / 3},
        total_iterations=7,
    )
    run = oracle.Run(
        partial(ALGORITHMS[cls], **arguments),
        start,
        alpha / 2,
        [(0.0, l2), (l2, 0.0), *kinds.values()],
        [1.0, 1 / 3, 1.0, 1.0, 1.0],
        schedule=lambda s: oracle.At(2.0, s, None),
        normalize=7,
    )
    step = RUNNERS[runner](optimizer, variables)
    for grads in gradients(12, [(3,), (), *[(3,)] * 3]):
        grads = [np.array(g / 3, "float64") for g in grads]  # arrays: Keras rounds numbers
        step(grads)
        run.step(grads)
        for variable, expected, path in zip(variables, run.values, run.path, strict=True):
            error = np.abs(numpy(variable) - expected)
            assert np.all(error <= 1e-12 * path + 1e-15), (run.k, error / path)


JAX_WITH_FLOAT64 = """
import sys
sys.path[:0] = {path!r}
import test_low_precision
for name in test_low_precision.NAMES:
    for runner in test_low_precision.RUNNERS:
        test_low_precision.assert_float64(name, runner)
print("all of them")
"""

if BACKEND == "jax":

    @pytest.mark.reliability
    def test_float64_everywhere():
        """JAX has it where it is switched on, for a whole process."""
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                JAX_WITH_FLOAT64.format(path=[str(Path(__file__).parent), *sys.path]),
            ],
            env=os.environ | {"JAX_ENABLE_X64": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "all of them" in done.stdout

else:

    @pytest.mark.reliability
    @pytest.mark.parametrize("runner", RUNNERS)
    @pytest.mark.parametrize("name", NAMES)
    def test_float64_everywhere(name, runner):
        assert_float64(name, runner)

    @pytest.mark.parametrize("runner", RUNNERS)
    @pytest.mark.parametrize("name", ["adamw", "sgdw-momentum"])
    def test_float64_beside_others(name, runner):
        """Types mixed in one model: each variable is updated in its own."""
        start = np.array([1.0, -1.5, 0.25])
        types = ["float32", "float64", "bfloat16"]
        variables = [keras.Variable(start, name=t, dtype=t) for t in types]
        optimizer = make(name, learning_rate=1e-9, weight_decay=2e-9)
        run = oracle.Run(
            partial(ALGORITHMS[OPTIMIZERS[name][0]], **OPTIMIZERS[name][1]),
            [start] * 3,
            1e-9,
            [(0.0, 2e-9)] * 3,
        )
        step = RUNNERS[runner](optimizer, variables)
        for grads in gradients(10, [(3,)] * 3):
            step(
                [
                    g.astype(t if t != "bfloat16" else "float32")
                    for g, t in zip(grads, types, strict=True)
                ]
            )
            run.step(grads)
        gone, expected = numpy(variables[1]) - start, run.values[1] - start
        np.testing.assert_allclose(gone, expected, rtol=1e-6)
        assert [v.dtype for v in variables] == types
