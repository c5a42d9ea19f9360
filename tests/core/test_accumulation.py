"""Gradient accumulation: n micro-batches are one batch, and everything that counts counts weight updates."""

import keras
import numpy as np
import pytest

import oracle
from cases import COMPILED, make_variable, numpy, warm_restarts
from training import X, Y, linear, make, oracle_of, values


def schedule():
    return warm_restarts(0.05, 3, t_mul=2, eta_min=0.1)


def test_fit_in_micro_batches_is_fit_in_batches():
    final = []
    for batch_size, accumulate in [(16, None), (4, 4)]:
        model = linear()
        optimizer = make(
            "nadamw",
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


@pytest.mark.parametrize("runner", COMPILED)
def test_between_updates_nothing_moves(runner):
    """Neither weights nor moments, position or rates: only the accumulator and the count of micro-batches.

    A restart and a rate that are set there act on the update that these micro-batches become.
    """
    variables = [make_variable("w", np.array([1.0, -2.0]))]
    optimizer = make("nadamw", learning_rate=schedule(), gradient_accumulation_steps=2)
    optimizer.build(variables)
    step = COMPILED[runner](optimizer, variables)
    run = oracle_of(
        "nadamw", values(variables), schedule=lambda s: oracle.cosine(s, 3, t_mul=2, eta_min=0.1)
    )
    moving = ("gradient_accumulator", "iteration")
    still = [*variables, *(v for v in optimizer.variables if not v.path.endswith(moving))]
    for k in range(5):
        before, position = values(still), run.at.position
        step([np.array([0.5, 0.75], "float32")])
        assert all(map(np.array_equal, before, values(still)))
        assert int(numpy(optimizer.iterations)) == k
        assert int(numpy(optimizer.t_cur)) == position
        if k == 2:
            optimizer.restart(1)
            run.restart(1)
            assert int(numpy(optimizer.t_cur)) == 1
        if k == 3:
            optimizer.learning_rate = 0.5 * float(numpy(optimizer.learning_rate))
            run.learning_rate *= 0.5
        step([np.array([0.5, 1.25], "float32")])
        run.step([np.array([0.5, 1.0])])
        np.testing.assert_allclose(numpy(variables[0]), run.values[0], atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_each_type_adds_in_one_that_holds_the_sum(name):
    """A sum of 64 gradients of bfloat16 needs more than bfloat16: from 16 on it would not notice 1/32."""
    dtypes = ["float32", "bfloat16", "float16"]
    variables = [keras.Variable(np.ones(2, "float32"), name=f"v_{t}", dtype=t) for t in dtypes]
    optimizer = make(name, gradient_accumulation_steps=64, learning_rate=0.5)
    run = oracle_of(name, values(variables), alpha=0.5)
    step = next(iter(COMPILED.values()))(optimizer, variables)
    grads = [np.array([g, -2.0 * g]) for g in [16.0, *[1 / 32] * 63]]
    for g in grads:
        step([keras.ops.convert_to_tensor(g, t) for t in dtypes])
    run.step([np.mean(grads, axis=0)] * 3)
    for variable, expected in zip(variables, run.values, strict=True):
        np.testing.assert_allclose(numpy(variable), expected, rtol=2.0**-8)
