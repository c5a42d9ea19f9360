"""A decay that is no more than a rounding error of its weight still comes to what the formula says."""

import keras
import numpy as np
import pytest

import keras_decoupled
from cases import COMPILED, make_variable, numpy

UPDATES = 400
OURS = ("AdamW", "NadamW", "SGDW")
STOCK = (
    "Adadelta", "Adafactor", "Adagrad", "Adamax", "Lamb", "Lion", "Muon", "Nadam", "RMSprop",
)  # fmt: skip


def class_of(name):
    if name in OURS:
        return getattr(keras_decoupled, name)
    return keras_decoupled.decouple(getattr(keras.optimizers, name))


@pytest.mark.parametrize(("decay", "tolerance"), [(1e-6, 0.05), (1e-7, 0.25)])
@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("name", [*OURS, *STOCK])
def test_decay_alone(name, runner, decay, tolerance):
    """Of many weights together: one by one, float32 has no number between two that are next to each other."""
    cls = class_of(name)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.3, 3.0, (64, 64)) * rng.choice([-1.0, 1.0], (64, 64))
    variable = make_variable("dense/kernel", weights.astype("float32"))
    before = np.abs(numpy(variable)).sum()
    step = COMPILED[runner](cls(1e-3, weight_decay=decay), [variable])
    for _ in range(UPDATES):
        step([np.zeros((64, 64), "float32")])
    removed = before - np.abs(numpy(variable)).sum()
    assert removed == pytest.approx(before * (1 - (1 - decay) ** UPDATES), rel=tolerance)


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize(
    "name", sorted({*OURS, *STOCK} - {"Lion"})
)  # whose steps are all of one size
def test_l1_beside_a_step(name, runner):
    """A tenth of what float32 can tell beside the weight: in one sum with steps of many sizes, it counts."""
    l1, g = 1e-8, 1e-3
    cls = class_of(name)
    rng = np.random.default_rng(0)
    weights = rng.uniform(1.0, 1.9, (64, 64)).astype("float32")
    ends = []
    for l1_now in (0.0, l1):
        variable = make_variable("dense/kernel", weights)
        optimizer = cls(1e-3, weight_decay=keras_decoupled.Decay(l1=l1_now))
        step = COMPILED[runner](optimizer, [variable])
        for k in range(UPDATES):
            step([g * np.random.default_rng(k).normal(size=(64, 64)).astype("float32")])
        ends.append(np.float64(numpy(variable)))
    assert np.mean(ends[0] - ends[1]) == pytest.approx(l1 * UPDATES, rel=0.35)
