"""A decay that is no more than a rounding error of its weight still comes to what the formula says."""

import keras
import numpy as np
import pytest

import keras_decoupled
from cases import BACKEND, COMPILED, make_variable, numpy

OURS = ("AdamW", "NadamW", "SGDW")
# Off torch all classes are decayed by the same code. torch has kernels for ours, steps the variables of
# Adagrad together, and those of Lamb one by one.
CLASSES = [*OURS, "Adagrad", "Lamb"] if BACKEND == "torch" else ["AdamW", "Adagrad"]
# Class, decay, updates, how near the decay must come.
TABLE = [(name, 1e-7, 400, 0.25) for name in CLASSES]
if BACKEND == "torch":  # float32(1 − 1e-6) is 1 − 0.954e-6, 5% off: the host multiplies by better
    TABLE += [(name, 1e-6, 3000, 0.01) for name in OURS]
every_runner = pytest.mark.parametrize("runner", COMPILED)


def stepper(name, runner, weights, decay):
    """A variable of these weights, and what applies a gradient to it."""
    variable = make_variable("dense/kernel", weights.astype("float32"))
    of = keras_decoupled if name in OURS else keras.optimizers
    cls = keras_decoupled.decouple(getattr(of, name))
    return variable, COMPILED[runner](cls(1e-3, weight_decay=decay), [variable])


@every_runner
@pytest.mark.parametrize(("name", "decay", "updates", "tolerance"), TABLE)
def test_decay_alone(name, runner, decay, updates, tolerance):
    """Of many weights together: one by one, float32 has no number between two that are next to each other."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.3, 3.0, (64, 64)) * rng.choice([-1.0, 1.0], (64, 64))
    variable, step = stepper(name, runner, weights, decay)
    before = np.abs(numpy(variable)).sum()
    for _ in range(updates):
        step([np.zeros((64, 64), "float32")])
    removed = before - np.abs(numpy(variable)).sum()
    assert removed == pytest.approx(before * (1 - (1 - decay) ** updates), rel=tolerance)


@every_runner
@pytest.mark.parametrize("name", CLASSES)
def test_l1_beside_a_step(name, runner):
    """A tenth of what float32 can tell beside the weight: in one sum with steps of many sizes, it counts."""
    l1, updates, ends = 1e-8, 400, []
    weights = np.random.default_rng(0).uniform(1.0, 1.9, (64, 64))
    for l1_now in (0.0, l1):
        variable, step = stepper(name, runner, weights, keras_decoupled.Decay(l1=l1_now))
        rng = np.random.default_rng(0)
        for _ in range(updates):
            step([1e-3 * rng.normal(size=(64, 64)).astype("float32")])
        ends.append(numpy(variable))
    assert np.mean(ends[0] - ends[1]) == pytest.approx(l1 * updates, rel=0.35)
