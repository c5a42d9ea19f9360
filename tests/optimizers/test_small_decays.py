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


@pytest.mark.parametrize(("decay", "tolerance"), [(1e-6, 0.05), (1e-7, 0.25)])
@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("name", [*OURS, *STOCK])
def test_decay_alone(name, runner, decay, tolerance):
    """Of many weights together: one by one, float32 has no number between two that are next to each other."""
    if name in OURS:
        cls = getattr(keras_decoupled, name)
    else:
        cls = keras_decoupled.decouple(getattr(keras.optimizers, name))
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.3, 3.0, (64, 64)) * rng.choice([-1.0, 1.0], (64, 64))
    variable = make_variable("dense/kernel", weights.astype("float32"))
    before = np.abs(numpy(variable)).sum()
    step = COMPILED[runner](cls(1e-3, weight_decay=decay), [variable])
    for _ in range(UPDATES):
        step([np.zeros((64, 64), "float32")])
    removed = before - np.abs(numpy(variable)).sum()
    assert removed == pytest.approx(before * (1 - (1 - decay) ** UPDATES), rel=tolerance)
