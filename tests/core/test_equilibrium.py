"""Where gradients are noise: how large a weight gets, and how fast it turns, as docs/alpha-and-lambda.md says."""

import math

import keras
import numpy as np
import pytest

from cases import make_variable
from keras_decoupled import SGDW, AdamW, Lion, NadamW
from keras_decoupled.callbacks import WatchUpdates

COUNT = 2000  # numbers
SIGMA = 0.5  # of the gradients


def in_equilibrium(optimizer, decay):
    """Size and turn of a weight, over 4/λ updates after 6/λ."""
    rng, watch = np.random.default_rng(0), WatchUpdates()
    variable = make_variable("w", np.zeros(COUNT))
    optimizer.build([variable])
    first, last = round(6 / decay), round(10 / decay)
    for k in range(last):
        watched = k >= first and k % 10 == 0
        if watched:
            watch.before(optimizer)
        gradient = rng.normal(scale=SIGMA, size=COUNT).astype("float32")
        optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
        if watched:
            watch.after(optimizer)
    sizes, turns = ([row[name] for row in watch.rows] for name in ("weight_rms", "turn"))
    return math.sqrt(np.mean(np.square(sizes))), np.mean(turns)


@pytest.mark.parametrize(
    ("rate", "decay", "beta_1"),
    [
        (0.01, 0.002, 0.9),
        (0.001, 0.002, 0.9),
        (0.01, 0.001, 0.9),
        (0.01, 0.004, 0.5),
        (0.1, 0.003, 0.8),
    ],
)
def test_adamw(rate, decay, beta_1):
    size, turn = in_equilibrium(AdamW(rate, decay, beta_1=beta_1), decay)
    assert size == pytest.approx(rate / math.sqrt(2 * decay), rel=0.02)
    assert turn == pytest.approx(math.sqrt(2 * decay * (1 - beta_1) / (1 + beta_1)), rel=0.02)


def test_a_lower_rate_changes_both():
    """η is a half: of a constant rate that was set to a half of what the optimizer was made with."""
    optimizer = AdamW(0.01, 0.004)
    optimizer.learning_rate = 0.005
    size, turn = in_equilibrium(optimizer, 0.002)
    assert size == pytest.approx(0.01 * math.sqrt(0.5 / (2 * 0.004)), rel=0.02)
    assert turn == pytest.approx(math.sqrt(2 * 0.5 * 0.004 * 0.1 / 1.9), rel=0.02)


B = 0.9
TWICE = (1 - B) ** 2 * ((1 + B) ** 2 + B**4 / (1 - B**2))  # of a momentum that looks ahead
# (optimizer, λ, s·√κ, 1/κ, tolerance)
OTHERS = {
    "SGD, momentum": (
        lambda: SGDW(0.01, B, weight_decay=0.002),
        SIGMA / (1 - B),
        (1 - B) / (1 + B),
        0.02,
    ),
    "SGD, Nesterov": (
        lambda: SGDW(0.01, B, nesterov=True, weight_decay=0.002),
        SIGMA / (1 - B),
        TWICE,
        0.02,
    ),
    # momentum_decay is so fast that μ is β1 all the time
    "Nadam": (lambda: NadamW(0.01, weight_decay=0.002, momentum_decay=50.0), 1.0, TWICE, 0.02),
    "Lion": (lambda: Lion(0.01, weight_decay=0.002), math.sqrt(45.9), 1 / 45.9, 0.08),
}


@pytest.mark.parametrize("name", OTHERS)
def test_others(name):
    make, size, turn, tolerance = OTHERS[name]
    found = in_equilibrium(make(), 0.002)
    assert found[0] == pytest.approx(0.01 * size * math.sqrt(1 / 0.004), rel=tolerance)
    assert found[1] == pytest.approx(math.sqrt(0.004 * turn), rel=tolerance)
