"""Gradient accumulation: n micro-batches are one batch, and everything that counts counts weight updates."""

import keras
import numpy as np
import pytest

from cases import BACKEND, COMPILED, OPTIMIZERS, eager, make_variable, numpy, warm_restarts
from training import X, Y, linear, make, oracle_of, tensors, values

RUNNERS = {"eager": eager, **COMPILED}


def schedule():
    return warm_restarts(0.05, 3, t_mul=2, eta_min=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fit_in_micro_batches_is_fit_in_batches(name):
    final = []
    for batch_size, accumulate in [(16, None), (4, 4)]:
        model = linear()
        optimizer = make(
            name,
            learning_rate=schedule(),
            normalize_weight_decay=True,
            gradient_accumulation_steps=accumulate,
        )
        model.compile(optimizer, loss="mse")
        model.fit(X, Y, batch_size=batch_size, epochs=5, shuffle=False, verbose=0)
        assert int(numpy(optimizer.iterations)) == 5
        assert int(numpy(optimizer.t_cur)) == 2
        rates = [float(numpy(x)) for x in (optimizer.learning_rate, optimizer.eta_t)]
        final.append([*values(model.weights), *rates])
    for batch, micro in zip(*final, strict=True):
        np.testing.assert_allclose(micro, batch, atol=2e-6)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_between_updates_nothing_moves(name, runner):
    """Neither weights nor moments, position or rates: only the accumulator and the count of micro-batches."""
    variables = [make_variable("w", np.array([1.0, -2.0]))]
    optimizer = make(name, learning_rate=schedule(), gradient_accumulation_steps=3)
    optimizer.build(variables)
    step = RUNNERS[runner](optimizer, variables)
    for k in range(2):
        before = slots(optimizer), values(variables)
        for micro in range(3):
            assert int(numpy(optimizer.iterations)) == k
            assert int(numpy(optimizer.t_cur)) == k
            for a, b in zip(before[0] + before[1], slots(optimizer) + values(variables), strict=True):
                assert np.array_equal(a, b)
            step([np.array([0.5, 1.0 + micro], "float32")])
    assert int(numpy(optimizer.iterations)) == 2


def slots(optimizer):
    return [
        numpy(v)
        for v in optimizer.variables
        if not v.path.endswith(("gradient_accumulator", "iteration"))
    ]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-nesterov"])
def test_restart_and_rate_between_micro_batches(name, runner):
    """They act on the update that these micro-batches become."""
    variables = [make_variable("w", np.array([1.0, -2.0]))]
    optimizer = make(name, learning_rate=schedule(), gradient_accumulation_steps=2)
    optimizer.build(variables)
    step = RUNNERS[runner](optimizer, variables)
    run = oracle_of(
        name, values(variables), schedule=lambda s: __import__("oracle").cosine(s, 3, 2, eta_min=0.1)
    )
    grads = [np.array([0.5, 1.0], "float32")]
    for k in range(5):
        step(grads)
        if k == 2:
            optimizer.restart(1)
            run.restart(1)
        if k == 3:
            optimizer.learning_rate = 0.5 * float(numpy(optimizer.learning_rate))
            run.learning_rate *= 0.5
        step(grads)
        run.step(grads)
        np.testing.assert_allclose(numpy(variables[0]), run.values[0], atol=1e-6)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_variable_without_a_gradient(runner):
    """Its accumulator stays, it is left alone, and the others' updates are whole."""
    variables = [make_variable("a/w", np.ones(2)), make_variable("b/w", np.ones(2))]
    optimizer = make("adamw", gradient_accumulation_steps=2)
    run = oracle_of("adamw", [np.ones(2)])
    optimizer.build(variables)
    g = np.array([0.5, 1.0], "float32")
    for _ in range(2):
        for _ in range(2):
            with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
                optimizer.apply(tensors([g, None]), variables)
        run.step([g])
    np.testing.assert_allclose(numpy(variables[0]), run.values[0], atol=1e-6)
    assert np.array_equal(numpy(variables[1]), np.ones(2))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_low_precision(name, dtype, runner):
    """256 micro-batches of 1/256 sum to 1 in float32; in bfloat16 the sum would stop growing at 1/2... or so."""
    n = 512
    variable = keras.Variable(np.ones(2, "float32"), name="w", dtype=dtype)
    optimizer = make(name, gradient_accumulation_steps=n, learning_rate=0.125, weight_decay=0)
    run = oracle_of(name, [np.ones(2)], alpha=0.125, l2=0.0)
    step = RUNNERS[runner](optimizer, [variable])
    grads = tensors([np.ones(2)], dtype)
    for _ in range(n if runner != "eager" else 0):
        step(grads)
    if runner == "eager":
        return
    run.step([np.ones(2)])
    np.testing.assert_allclose(numpy(variable), run.values[0], rtol=2.0**-8)
