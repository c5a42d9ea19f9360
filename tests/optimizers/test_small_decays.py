"""A decay that is no more than a rounding error of its weight still comes to what the formula says."""

import keras
import numpy as np
import pytest

import keras_decoupled
import stock
from cases import BACKEND, COMPILED, make_variable, numpy

UPDATES = 400
OURS = ("AdamW", "NadamW", "SGDW")
STOCK = sorted({cls for cls, _ in stock.STOCK.values()})
TABLE = [(name, 1e-6, 400, 0.05) for name in OURS]
TABLE += [(name, 1e-7, 400, 0.25) for name in [*OURS, *STOCK]]
if BACKEND == "torch":  # float32(1 − 1e-6) is 1 − 0.954e-6, 5% off: the host multiplies by better
    TABLE += [(name, decay, 3000, 0.01) for name in OURS for decay in (1e-4, 1e-6)]


def class_of(name):
    if name in OURS:
        return getattr(keras_decoupled, name)
    return keras_decoupled.decouple(getattr(keras.optimizers, name))


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize(("name", "decay", "updates", "tolerance"), TABLE)
def test_decay_alone(name, runner, decay, updates, tolerance):
    """Of many weights together: one by one, float32 has no number between two that are next to each other."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.3, 3.0, (64, 64)) * rng.choice([-1.0, 1.0], (64, 64))
    variable = make_variable("dense/kernel", weights.astype("float32"))
    before = np.abs(numpy(variable)).sum()
    step = COMPILED[runner](class_of(name)(1e-3, weight_decay=decay), [variable])
    for _ in range(updates):
        step([np.zeros((64, 64), "float32")])
    removed = before - np.abs(numpy(variable)).sum()
    assert removed == pytest.approx(before * (1 - (1 - decay) ** updates), rel=tolerance)


@pytest.mark.parametrize("runner", list(COMPILED)[-1:])
@pytest.mark.parametrize("name", sorted({*OURS, *STOCK} - {"Lion"}))  # its steps have one size
def test_l1_beside_a_step(name, runner):
    """A tenth of what float32 can tell beside the weight: in one sum with steps of many sizes, it counts."""
    l1, g = 1e-8, 1e-3
    weights = np.random.default_rng(0).uniform(1.0, 1.9, (64, 64)).astype("float32")
    ends = []
    for l1_now in (0.0, l1):
        variable = make_variable("dense/kernel", weights)
        optimizer = class_of(name)(1e-3, weight_decay=keras_decoupled.Decay(l1=l1_now))
        step = COMPILED[runner](optimizer, [variable])
        for k in range(UPDATES):
            step([g * np.random.default_rng(k).normal(size=(64, 64)).astype("float32")])
        ends.append(np.float64(numpy(variable)))
    assert np.mean(ends[0] - ends[1]) == pytest.approx(l1 * UPDATES, rel=0.35)
