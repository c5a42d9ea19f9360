"""Gradients and variables out of the ordinary: none, overwriting, constrained, frozen, raw."""

import warnings
from functools import partial

import keras
import numpy as np
import pytest

from cases import BACKEND, COMPILED, OPTIMIZERS, eager, make_variable, numpy
from keras_decoupled.core.gradients import check_variables
from training import X, linear, make, oracle_of, state, tensors, values

RUNNERS = {"eager": eager, **COMPILED}
G = np.array([0.5, -1.0], "float32")


def two():
    return [
        make_variable("a/w", np.array([1.0, -2.0])),
        make_variable("b/w", np.array([1.0, -2.0])),
    ]


# --- no gradient ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_a_gradient_neither_updated_nor_decayed(name):
    variables, optimizer = two(), make(name)
    run = oracle_of(name, values(variables[:1]))
    optimizer.build(variables)
    fresh = state(optimizer)
    for _ in range(3):
        with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['b/w'\]"):
            optimizer.apply(tensors([G, None]), variables)
        run.step([G])
        np.testing.assert_allclose(numpy(variables[0]), run.values[0], atol=1e-6)
    assert np.array_equal(numpy(variables[1]), [1.0, -2.0])
    for path, value in state(optimizer).items():
        if "b_w" in path:
            assert np.array_equal(value, fresh[path])
    assert int(numpy(optimizer.iterations)) == 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_gradient_at_all(name):
    variables, optimizer = two(), make(name)
    optimizer.build(variables)
    before = state(optimizer)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None], variables)
    optimizer.apply([], [])  # a no-op in Keras
    assert all(np.array_equal(before[path], value) for path, value in state(optimizer).items())
    assert all(np.array_equal(v, [1.0, -2.0]) for v in values(variables))


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
def test_gradients_of_some_variables(name):
    """A list of some of the variables is an update of these."""
    variables, optimizer = two(), make(name)
    run = oracle_of(name, values(variables[1:]))
    optimizer.build(variables)
    for _ in range(2):
        optimizer.apply(tensors([G]), variables[1:])
        run.step([G])
    np.testing.assert_allclose(numpy(variables[1]), run.values[0], atol=1e-6)
    assert np.array_equal(numpy(variables[0]), [1.0, -2.0])


# --- frozen, overwritten, constrained ---


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_multiplier_of_zero_freezes(name, dtype, runner):
    start = np.array([1.0, -3.0], "float32")
    variables = [keras.Variable(start, name=n, dtype=dtype) for n in "ab"]
    optimizer = make(name, weight_decays={"b": (0.1, 0.1)}, lr_multipliers={"b": 0})
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(2):
        step(tensors([G, G], dtype))
    assert np.array_equal(numpy(variables[1]), start)
    assert np.all(numpy(variables[0]) != start)


@pytest.mark.parametrize("accumulate", [None, 2])
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", ["adamw-amsgrad", "nadamw", "sgdw", "sgdw-momentum"])
def test_overwrite_with_gradient(name, runner, accumulate):
    """float8's scales: the "gradient" is the new value; no step, no decay, whatever the rules say."""
    variables = two()
    variables[0].overwrite_with_gradient = True
    optimizer = make(name, weight_decays={"w": (0.1, 0.1)}, gradient_accumulation_steps=accumulate)
    optimizer.build(variables)
    run = oracle_of(name, values(variables[1:]))
    run.decays = [(0.1, 0.1)]
    step = RUNNERS[runner](optimizer, variables)
    for k in range(2):
        for _ in range(accumulate or 1):
            step([np.array([7.0 + k, 3.0], "float32"), G])
        run.step([G])
        assert np.array_equal(numpy(variables[0]), [7.0 + k, 3.0])
        np.testing.assert_allclose(numpy(variables[1]), run.values[0], atol=1e-6)
    assert "a/w" not in optimizer.weight_decays


CONSTRAINTS = {
    "NonNeg": (keras.constraints.NonNeg, lambda w: np.all(w >= 0)),
    "MaxNorm": (
        lambda: keras.constraints.MaxNorm(0.5),
        lambda w: np.all(np.linalg.norm(w, axis=0) <= 0.504),
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("constraint", CONSTRAINTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_constraints_hold_after_each_update(name, constraint, dtype):
    make_constraint, holds = CONSTRAINTS[constraint]
    layer = keras.layers.Dense(2, kernel_constraint=make_constraint(), dtype=dtype)
    layer.build((None, 3))
    optimizer, rng = make(name, learning_rate=0.5), np.random.default_rng(0)
    step = eager(optimizer, layer.trainable_variables)
    for _ in range(4):
        step(tensors([rng.normal(size=(3, 2)), rng.normal(size=2)], dtype))
        assert holds(numpy(layer.kernel))


def test_constraints_in_fit():
    for make_constraint, holds in CONSTRAINTS.values():
        model = linear(kernel_constraint=make_constraint())
        model.compile(make("adamw", learning_rate=0.5), loss="mse")
        model.fit(X, -np.abs(X[:, :2]) * 9, verbose=0, epochs=3)
        assert holds(numpy(model.weights[0]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_constrained_weight_goes_on_from_where_the_constraint_put_it(dtype):
    variable = keras.Variable(np.ones(2, "float32"), name="w", dtype=dtype)
    variable.constraint = keras.constraints.NonNeg()
    step = eager(make("sgdw", learning_rate=1.0, weight_decay=0.5), [variable])
    step(tensors([np.array([8.0, 8.0])], dtype))
    assert np.array_equal(numpy(variable), [0, 0])
    step(tensors([np.array([-0.25, 0.25])], dtype))
    assert np.array_equal(numpy(variable), [0.25, 0])


# --- raw variables ---

if BACKEND == "tensorflow":

    @pytest.mark.parametrize("graph", [False, True])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_raw_tf_variables(name, graph):
        """They have no path: rules go by their name."""
        import tensorflow as tf

        variables = [tf.Variable([1.0, -2.0], name="a/kernel"), tf.Variable(3.0, name="b/bias")]
        optimizer = make(name, weight_decays={"bias": 0.5}, lr_multipliers={"a": 2})
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
        optimizer.build(variables)
        assert optimizer.weight_decays == {"b/bias": (0.0, 0.5)}
        assert optimizer.lr_multipliers == {"a/kernel": 2.0}
        run = oracle_of(name, [[1.0, -2.0], 3.0], multipliers=[2.0, 1.0])
        run.decays = [(0.0, 0.0), (0.0, 0.5)]
        apply = optimizer.apply_gradients
        grads = [tf.constant(G), tf.constant(0.25)]
        step = lambda: apply(zip(grads, variables, strict=True))  # noqa: E731
        step = tf.function(step) if graph else step
        for _ in range(3):
            step()
            run.step([G, 0.25])
        for variable, expected in zip(variables, run.values, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("name", ["adamw", "sgdw"])
    def test_raw_tf_variables_of_the_same_name(name):
        import tensorflow as tf

        variables = [tf.Variable([1.0, -2.0]), tf.Variable([1.0, -2.0])]
        optimizer = make(name, weight_decays={"Variable#2": 0})
        optimizer.build(variables)
        assert optimizer.weight_decays == {"Variable": (0.0, 0.03)}


# --- what is no variable of Keras ---


class NoVariable:
    value = 1.0


def test_what_is_no_variable_is_refused():
    check_variables([make_variable("w", np.ones(2))], id)
    for wrong in (np.ones(2), NoVariable(), keras.ops.ones(2), None):
        with pytest.raises(
            TypeError,
            match=rf"keras variables.*model\.trainable_variables\. Received: a {type(wrong).__module__}\.",
        ):
            check_variables([make_variable("w", np.ones(2)), wrong], id)


if BACKEND == "tensorflow":

    def test_a_raw_tf_variable_is_one():
        import tensorflow as tf

        check_variables([tf.Variable(1.0)], id)


if BACKEND == "torch":

    def test_torch_parameters_are_refused():
        import torch

        parameter = torch.nn.Parameter(torch.ones(2))
        with pytest.raises(
            TypeError, match=r"Received: a torch.*\.Parameter.*`variable.value.grad`"
        ):
            check_variables([parameter], id)
        with pytest.raises(TypeError, match=r"Received: a torch.*\.Parameter"):
            make("adamw").apply([torch.ones(2)], [parameter])

    def test_torch_compile_has_nothing_to_warn_of(monkeypatch):
        """Of nothing in this package, that is. Without Inductor, whose half minute traces nothing."""
        import torch

        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        model = linear()
        model.compile(make("adamw"), loss="mse", jit_compile=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X, X[:, :2], verbose=0, batch_size=len(X))
        ours = [str(w.message) for w in caught if "keras_decoupled" in f"{w.filename} {w.message}"]
        assert ours == []
