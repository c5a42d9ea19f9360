"""TensorFlow's fused ops against `update_step`: which steps they make, and that they make the same ones.

What the ops compute is also compared with the float64 oracle: every test that is not under XLA runs them.
"""

import contextlib
from unittest.mock import patch

import numpy as np
import pytest

import keras_decoupled
from cases import BACKEND, COMPILED, OPTIMIZERS, eager, make_variable, numpy
from training import X, Y, linear, make

if BACKEND == "tensorflow":
    import tensorflow as tf

    from keras_decoupled.fast import tensorflow_ops

    SHAPES = [(3, 2), (2,), ()]
    RUNNERS = {"eager": eager, "graph": COMPILED["graph"]}
    RULES = {
        "weight_decay": 0.03,
        "weight_decays": {"v1": (0.01, 0.02)},
        "lr_multipliers": {"v2": 0.5},
    }

    def normal(shape, seed, dtype="float32"):
        return np.asarray(0.3 + np.random.default_rng(seed).normal(size=shape)).astype(dtype)

    @contextlib.contextmanager
    def counted():
        """Give a list with, for each step of a variable that is traced or run, whether an op made it."""
        calls = []
        usable = tensorflow_ops.Op.usable

        def watch(self, *arguments):
            calls.append(usable(self, *arguments))
            return calls[-1]

        with patch.object(tensorflow_ops.Op, "usable", watch):
            yield calls

    def run(name, runner, dtype="float32", updates=5, fused=True, **arguments):
        """Weights and state after some updates, and whether an op made each step."""
        arguments = RULES | arguments
        variables = [
            make_variable(f"v{i}/w", normal(shape, i), dtype) for i, shape in enumerate(SHAPES)
        ]
        optimizer = make(name, **arguments)
        optimizer.build(variables)
        if not fused:
            optimizer.fast = False
        step = RUNNERS.get(runner, COMPILED.get(runner))(optimizer, variables)
        with counted() as calls:
            for k in range(updates):
                step([normal(shape, 10 * k + i, dtype) for i, shape in enumerate(SHAPES)])
        return [numpy(v) for v in (*variables, *optimizer.variables)], calls

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("runner", RUNNERS)
    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("small", [0, tensorflow_ops.SMALL])
    def test_an_op_gives_what_update_step_gives(name, runner, dtype, small, monkeypatch):
        monkeypatch.setattr(tensorflow_ops, "SMALL", small)
        ours, calls = run(name, runner, dtype)
        reference, none = run(name, runner, dtype, fused=False)
        assert calls
        assert all(calls)
        assert none == []
        # 1 − β1 is 2.4e-7 off where float32 computes it
        rtol = 3e-6 if dtype == "float32" else 1e-13
        for a, b in zip(ours, reference, strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_under_xla_update_step_does_it(name):
        _, calls = run(name, "xla", updates=1)
        assert calls
        assert not any(calls)

    @pytest.mark.parametrize("jit_compile", [True, False])
    def test_fit_knows_whether_xla_compiles_it(jit_compile):
        model = linear()
        model.compile(make("adamw"), loss="mse", jit_compile=jit_compile, steps_per_execution=2)
        with counted() as calls:
            model.fit(X, Y, batch_size=4, verbose=0)
        assert calls
        assert all(fused != jit_compile for fused in calls)

    def test_a_function_inside_a_compiled_one_is_compiled():
        variable = make_variable("v0/w", normal((3,), 0))
        optimizer = make("sgdw", weight_decay=0.1)
        optimizer.build([variable])
        inner = tf.function(lambda g: optimizer.apply([g], [variable]))
        with counted() as calls:
            tf.function(lambda g: inner(g), jit_compile=True)(tf.ones(3))
        assert calls
        assert not any(calls)

    @pytest.mark.parametrize("small", [0, tensorflow_ops.SMALL])
    @pytest.mark.parametrize("beta_1", [0.0, 0.99, 0.999])
    @pytest.mark.parametrize("name", ["adamw", "nadamw"])
    def test_any_beta_1(name, beta_1, small, monkeypatch):
        """1 − 0.999 is 1.3e-5 off in float32: not left to the op, as the moments show."""
        monkeypatch.setattr(tensorflow_ops, "SMALL", small)
        ours, _ = run(name, "eager", beta_1=beta_1)
        reference, _ = run(name, "eager", beta_1=beta_1, fused=False)
        for a, b in zip(ours, reference, strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-6 * np.abs(b).max())

    @pytest.mark.parametrize("name", ["adamw", "nadamw"])
    def test_a_beta_1_that_was_set(name):
        variable = make_variable("v0/w", normal((3,), 0))
        optimizer = make(name)
        optimizer.build([variable])
        optimizer.beta_1 = 0.999
        with counted() as calls:
            optimizer.apply([tf.ones(3)], [variable])
        assert calls == [False]

    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("eta_power", [0, 2])
    def test_any_decay_that_is_a_share_of_the_weight(name, eta_power):
        decay = keras_decoupled.Decay(0.03, eta_power=eta_power)
        arguments = {"weight_decay": decay, "weight_decays": None}
        ours, calls = run(name, "graph", **arguments)
        reference, _ = run(name, "graph", fused=False, **arguments)
        assert calls
        assert all(calls)
        for a, b in zip(ours, reference, strict=True):
            np.testing.assert_allclose(a, b, rtol=3e-6, atol=3e-6 * np.abs(b).max())

    @pytest.mark.parametrize(
        "kind",
        [{"l1": 0.01}, {"cautious": True}, {"soft_threshold": True}, {"towards": "initial"}],
        ids=str,
    )
    def test_any_other_is_left_to_update_step(kind):
        decay = keras_decoupled.Decay(0.03, **kind)
        _, calls = run("adamw", "eager", weight_decay=decay, weight_decays=None)
        assert calls == []

    def test_below_float32_update_step_does_it():
        """There is a master copy, which is written with the variable."""
        variable = make_variable("v0/w", normal((3,), 0), "bfloat16")
        with counted() as calls:
            make("adamw").apply([tf.ones(3, "bfloat16")], [variable])
        assert not any(calls)

    def test_a_class_derived_from_ours_computes_what_it_says():
        class Standing(type(make("sgdw"))):
            def step(self, gradient, slots, rate, scalars):
                return 0.0 * gradient, slots

        variable = make_variable("v0/w", np.ones(3, "float32"))
        Standing(0.1, weight_decay=0).apply([tf.ones(3)], [variable])
        np.testing.assert_array_equal(numpy(variable), 1.0)
