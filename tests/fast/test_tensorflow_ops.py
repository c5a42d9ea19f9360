"""TensorFlow's fused ops against `update_step`: which steps they make, and that they make the same ones.

What the ops compute is also compared with the float64 oracle: every test that is not under XLA runs them.
"""

import contextlib
from unittest.mock import patch

import numpy as np
import pytest
import tensorflow as tf

from cases import FUSED, RUNNERS, make_variable, numpy
from keras_decoupled import Decay
from keras_decoupled.fast import tensorflow_ops
from training import X, Y, linear, make

SHAPES = [(3, 2), (2,), ()]
RULES = {
    "weight_decay": Decay(0.03, eta_power=2),  # a share of the weight still
    "weight_decays": {"v1": (0.01, 0.02)},
    "lr_multipliers": {"v2": 0.5},
}
SMALL = tensorflow_ops.SMALL


def normal(shape, seed, dtype="float32"):
    return np.asarray(0.3 + np.random.default_rng(seed).normal(size=shape)).astype(dtype)


@contextlib.contextmanager
def ops():
    """Give a set of the shapes that TensorFlow's training ops update, when traced or run."""
    shapes, names = set(), [n for n in dir(tf.raw_ops) if n.startswith("ResourceApply")]

    def watched(op):
        def watch(**arguments):
            shapes.add(tuple(arguments.get("grad", arguments.get("delta")).shape))
            return op(**arguments)

        return watch

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(patch.object(tf.raw_ops, name, watched(getattr(tf.raw_ops, name))))
        yield shapes


def run(name, runner, dtype="float32", updates=5, fused=True, **arguments):
    """Weights and state after some updates, and the shapes that ops updated."""
    variables = [make_variable(f"v{i}/w", normal(s, i), dtype) for i, s in enumerate(SHAPES)]
    optimizer = make(name, **{**RULES, **arguments})
    optimizer.build(variables)
    optimizer.fast = fused
    step = RUNNERS[runner](optimizer, variables)
    with ops() as shapes:
        for k in range(updates):
            step([normal(s, 10 * k + i, dtype) for i, s in enumerate(SHAPES)])
    return [numpy(v) for v in (*variables, *optimizer.variables)], shapes


def assert_same(name, runner, dtype="float32", **arguments):
    """As `update_step`; returns the shapes that ops updated."""
    made, shapes = run(name, runner, dtype, **arguments)
    reference, none = run(name, runner, dtype, fused=False, **arguments)
    assert none == set()
    # 1 − β1 is 2.4e-7 off where float32 computes it
    rtol = 3e-6 if dtype == "float32" else 1e-13
    for a, b in zip(made, reference, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
    return shapes


@pytest.mark.parametrize("small", [0, SMALL])
@pytest.mark.parametrize(("dtype", "runner"), [("float32", "graph"), ("float64", "eager")])
@pytest.mark.parametrize("name", [name for name in FUSED if name != "muon"])
def test_an_op_gives_what_update_step_gives(name, dtype, runner, small, monkeypatch):
    """What is not a share of the weight is `update_step`'s: v1 has an l1."""
    monkeypatch.setattr(tensorflow_ops, "SMALL", small)
    assert assert_same(name, runner, dtype) == {(3, 2), ()}


@pytest.mark.parametrize("small", [0, SMALL])
@pytest.mark.parametrize("name", ["adamw", "nadamw"])
def test_without_beta_1(name, small, monkeypatch):
    monkeypatch.setattr(tensorflow_ops, "SMALL", small)
    assert assert_same(name, "eager", beta_1=0.0) == {(3, 2), ()}


KINDS = [{"l1": 0.01}, {"cautious": True}, {"soft_threshold": True}, {"towards": "initial"}]


@pytest.mark.parametrize(
    ("runner", "arguments"),
    [
        ("xla", {}),
        ("eager", {"dtype": "bfloat16"}),  # there is a master copy, which is written with it
        *(("eager", {"weight_decay": Decay(0.03, **k), "weight_decays": None}) for k in KINDS),
    ],
)
def test_what_is_left_to_update_step(runner, arguments):
    _, shapes = run("adamw", runner, updates=1, **arguments)
    assert shapes == set()


@pytest.mark.parametrize("jit_compile", [True, False])
def test_fit_knows_whether_xla_compiles_it(jit_compile):
    model = linear()
    model.compile(make("adamw"), loss="mse", jit_compile=jit_compile, steps_per_execution=2)
    with ops() as shapes:
        model.fit(X, Y, batch_size=4, verbose=0)
    assert shapes == (set() if jit_compile else {(3, 2), (2,)})


@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_function_inside_a_compiled_one_is_compiled(jit_compile):
    variable, optimizer = make_variable("v0/w", normal((3,), 0)), make("sgdw", weight_decay=0.1)
    optimizer.build([variable])
    inner = tf.function(lambda g: optimizer.apply([g], [variable]))
    with ops() as shapes:
        tf.function(lambda g: inner(g), jit_compile=jit_compile)(tf.ones(3))
    assert shapes == (set() if jit_compile else {(3,)})


@pytest.mark.parametrize("name", ["adamw", "nadamw"])
def test_the_op_is_used_where_its_beta_1_is_exact(name):
    """1 − 0.99 is 1e-6 off in float32. A β1 that was set is what the variable holds, and so exact."""
    for beta_1, moved, used in ((0.9, 0.999, {(3,)}), (0.99, None, set()), (0.999, 0.5, set())):
        variable, optimizer = make_variable("v0/w", normal((3,), 0)), make(name, beta_1=beta_1)
        optimizer.build([variable])
        if moved:
            optimizer.beta_1 = moved
        with ops() as shapes:
            optimizer.apply([tf.ones(3)], [variable])
        assert shapes == used
