"""Every argument of keras.optimizers.Optimizer does with ours what it does with Keras' own.

Two runs side by side, ours without decay and Keras'. β is dyadic, so that Keras' float32 powers are exact.
"""

import inspect
import pydoc
import re
import typing

import keras
import numpy as np
import pytest

from cases import BACKEND, COMPILED, ONE_OF_EACH, OPTIMIZERS, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, NadamW
from keras_decoupled.core.arguments import KERAS_ARGUMENTS, Shared
from keras_decoupled.schedule import timing
from training import X, Y, by_fit, linear, make, oracle_of, state, tensors, values

# Keras' own Nadam on torch calls np.array(tensor), which NumPy 2 does not like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

COMPILED_NAME, COMPILED_RUNNER = next(iter(COMPILED.items()))
RUNNERS = {"eager": eager, COMPILED_NAME: COMPILED_RUNNER}
if BACKEND == "jax":  # each eager operation costs a millisecond
    RUNNERS = {COMPILED_NAME: COMPILED_RUNNER}
BETAS = {"beta_1": 0.875, "beta_2": 1 - 2.0**-7}
STOCK = {
    "adamw": (keras.optimizers.Adam, BETAS),
    "nadamw-keras": (keras.optimizers.Nadam, BETAS),
    "sgdw-momentum": (keras.optimizers.SGD, {"momentum": 0.9}),
}
EMA = {"use_ema": True, "ema_momentum": 0.75}
ARGUMENTS = {
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.2},
    "global_clipnorm": {"global_clipnorm": 0.7},
    "clipnorm, accumulation": {"clipnorm": 0.5, "gradient_accumulation_steps": 2},
    "EMA overwrites": EMA | {"ema_overwrite_frequency": 3},
    "EMA, accumulation": EMA | {"ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 4.0},
    "all": EMA
    | {"ema_overwrite_frequency": 4, "gradient_accumulation_steps": 2}
    | {"loss_scale_factor": 2.0, "clipvalue": 0.3},
}
SHAPES = [(3, 2), (2,), ()]
_rng = np.random.default_rng(5)
GRADIENTS = [[_rng.normal(size=s).astype("float32") for s in SHAPES] for _ in range(8)]


def pair(name, **arguments):
    """Ours without decay, and Keras'."""
    stock, betas = STOCK[name]
    _, own = OPTIMIZERS[name]
    ours = {**betas, **{k: own[k] for k in ("momentum_decay",) if k in own}}
    if "beta_1" in betas:
        ours["epsilon"] = 1e-7
    common = {"learning_rate": 0.05, **arguments}
    return make(name, weight_decay=0, **ours, **common), stock(**betas, **common)


# Each of the arguments with one of the classes, and in compiled code with the next. (On torch, whose kernels know these
# arguments, fast/test_torch_update.py has them with every class.) TensorFlow compiles: there the arguments take turns.
CLASSES = list(STOCK)
AS_IN_KERAS = [
    (CLASSES[(place + turn) % len(CLASSES)], arguments, runner)
    for turn, runner in enumerate(RUNNERS)
    for place, arguments in enumerate(ARGUMENTS)
    if BACKEND == "torch" or (place + turn) % len(RUNNERS) == 0
]


@pytest.mark.parametrize(("name", "arguments", "runner"), AS_IN_KERAS)
def test_as_in_keras(name, arguments, runner):
    runs = []
    for optimizer in pair(name, **ARGUMENTS[arguments]):
        variables = [make_variable(f"v{i}", np.full(s, 0.5)) for i, s in enumerate(SHAPES)]
        runs.append((optimizer, variables, RUNNERS[runner](optimizer, variables)))
    for grads in [*GRADIENTS, None]:
        for optimizer, variables, step in runs:
            if grads is None:  # the end, where averages become the weights
                optimizer.finalize_variable_values(variables)
            else:
                step(grads)
        for a, b in zip(values(runs[0][1]), values(runs[1][1]), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_as_in_keras_in_fit():
    """fit scales the loss, and ends by putting the averages into the weights."""
    final = []
    for optimizer in pair("adamw", **ARGUMENTS["all"]):
        model = linear()
        by_fit(optimizer, model, 6)
        final.append(values(model.weights))
    for a, b in zip(*final, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "argument"),
    [*zip(ONE_OF_EACH, ["clipnorm", "clipvalue", "global_clipnorm"], strict=True)],
)
def test_clipping_leaves_the_decay_alone(name, argument):
    """Of one number, all three clip the same."""
    variable = make_variable("w", np.array([-20.0]))
    optimizer, run = make(name, **{argument: 0.5}), oracle_of(name, [np.array([-20.0])])
    step = COMPILED_RUNNER(optimizer, [variable])
    for g in np.random.default_rng(1).normal(size=(4, 1)):
        step([g.astype("float32")])
        run.step([np.clip(g, -0.5, 0.5)])
        np.testing.assert_allclose(numpy(variable), run.values[0], atol=2e-5)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_low_precision_with_average_and_accumulation(dtype, runner):
    """Numbers that all these types hold, so that only the mechanism can be wrong: α = 1/4, λ = 1/2, β = 1/2."""
    variable = keras.Variable(np.array([1.0, -2.0], "float32"), name="w", dtype=dtype)
    own = {"learning_rate": 0.25, "weight_decay": 0.5, "ema_momentum": 0.5}
    optimizer = make("sgdw", **ARGUMENTS["EMA, accumulation"] | own)
    step = RUNNERS[runner](optimizer, [variable])
    seen, expected = [], []
    theta = average = np.array([1.0, -2.0])
    for micro in range(4):
        step(tensors([np.array([1.0, 2.0])], dtype))
        seen.append(numpy(variable))
        assert keras.backend.standardize_dtype(variable.dtype) == dtype
        if micro % 2:
            theta = theta - 0.5 * theta - 0.25 * np.array([1.0, 2.0])
        # The iteration count that Keras looks at still lacks this micro-batch: it averages by micro-batches,
        # and overwrites where (updates + 1) % 2 == 0, after micro-batches 2 and 3.
        average = theta if micro // 2 == 0 else 0.5 * average + 0.5 * theta
        if (micro // 2 + 1) % 2 == 0:
            theta = average
        expected.append(theta)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_moving_average_of_low_precision_follows(dtype):
    """In bfloat16 a momentum of 0.999 is 1, and the average would stay where it began."""
    variable = keras.Variable(np.ones(2), dtype=dtype)
    optimizer = AdamW(weight_decay=1e-2, use_ema=True, ema_momentum=0.995)
    step = COMPILED_RUNNER(optimizer, [variable])
    theta = average = 1.0
    for k in range(60):
        step(tensors([np.zeros(2)], dtype))
        theta *= 1 - 1e-2
        average = theta if k == 0 else 0.995 * average + 0.005 * theta
    optimizer.finalize_variable_values([variable])
    rounding = 1e-5 if dtype == "float32" else 4e-3
    assert numpy(variable)[0] == pytest.approx(average, rel=rounding)


def test_name():
    optimizer = make("adamw", name="mine")
    optimizer.build([make_variable("w", np.ones(2))])
    assert optimizer.name == "mine"
    assert all("mine" in v.path for v in optimizer.variables)
    assert type(optimizer).from_config(optimizer.get_config()).name == "mine"


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
def test_the_help_of_a_class_has_all_of_its_arguments(cls):
    """The constructor takes most of them as **shared, where no signature shows them."""
    own = {n for n, p in inspect.signature(cls).parameters.items() if p.kind is not p.VAR_KEYWORD}
    shared = set(typing.get_type_hints(Shared))
    assert len(own) > 3
    assert len(shared) > 20
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    missing = [name for name in own | shared if not re.search(rf"^ .*\b{name}[:,]", text, re.M)]
    assert not missing
    # And nothing but these is taken: the constructor names what it does not know.
    accepted = (set(KERAS_ARGUMENTS) | set(timing.ARGUMENTS)) - own
    assert accepted <= shared


def test_averages_in_fit_with_a_callback_and_again():
    """SwapEMAWeights reads and swaps what Keras calls the moving averages; at the end they become the weights.

    On JAX a weight and its average must not be one buffer then: a compiled step gives both away.
    """
    model, optimizer = linear(), make("adamw", use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, loss="mse")
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    for callbacks in ([swap], [], []):
        model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=callbacks)
    assert int(numpy(optimizer.iterations)) == 6
    averages = [v for path, v in state(optimizer).items() if path.endswith("average")]
    assert len(averages) == 2
    assert all(np.isfinite(w).all() for w in values(model.weights))
