"""WarmupStableDecay: its parts by hand, and what holds at every step of any."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_decoupled import WarmupStableDecay
from steps import LAST, at, numpy

SHAPES = ("1-sqrt", "linear", "cosine")


@pytest.mark.parametrize(
    ("shape", "falling"),
    [
        ("1-sqrt", [1, 1 - 0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2), 0]),
    ],
)
def test_by_hand(shape, falling):
    schedule = WarmupStableDecay(0.2, 3, 5, warmup_steps=2, shape=shape, eta_min=0.1)
    eta = [1 / 3, 2 / 3, 1, 1, 1, *(0.1 + 0.9 * np.array(falling)), 0.1, 0.1]
    steps = np.arange(len(eta))
    np.testing.assert_allclose(numpy(schedule.multiplier(steps)), eta, rtol=1e-6)
    np.testing.assert_allclose(numpy(schedule(steps)), 0.2 * np.array(eta), rtol=1e-6)
    assert numpy(schedule.position(steps)).tolist() == [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_1_sqrt_is_the_default():
    assert WarmupStableDecay(0.1, 5, 10).get_config()["shape"] == "1-sqrt"


@given(
    stable=st.none() | st.integers(0, 300),
    decay=st.integers(2, 20) | st.integers(2, 800),
    warmup=st.just(0) | st.integers(0, 300),
    shape=st.sampled_from(SHAPES),
    eta_min=st.just(0.0) | st.floats(0.0, 0.9),
)
def test_every_part_stays_within_its_bounds(stable, decay, warmup, shape, eta_min):
    """Exactly 1 in the stable part, exactly eta_min at the end, between them elsewhere."""
    schedule = WarmupStableDecay(0.01, stable, decay, warmup, shape, eta_min)
    eta, low = at(schedule.multiplier, np.arange(1500)), np.float32(eta_min)
    start = LAST if stable is None else warmup + stable
    assert set(eta[warmup : start + 1]) <= {1.0}
    assert set(eta[start + decay - 1 :]) <= {low}
    assert np.all((eta[:warmup] > 0) & (eta[:warmup] < 1))
    assert np.all((eta[warmup:] >= low) & (eta[warmup:] <= 1))
    # The formula's own roundings may rise by one: XLA divides by a product.
    assert np.all(np.diff(eta[warmup:]) <= 1.2e-7)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("span", [100, 10_001, 3_000_000, 2**30, 2**31 - 2])
def test_keeps_its_digits_at_the_end_of_a_long_decay(span, shape):
    """Relative to an η that falls to 1e-19: 1 − x in float32 has no digit left there."""
    schedule = WarmupStableDecay(1.0, 0, span + 1, shape=shape)
    steps = np.array([1, span // 3, span // 2, span - 99, span - 2, span - 1, LAST])
    left = np.maximum(span - steps, 0) / span
    expected = {
        "1-sqrt": left / (1 + np.sqrt(1 - left)),
        "linear": left,
        "cosine": np.sin(np.pi / 2 * left) ** 2,
    }[shape]
    np.testing.assert_allclose(numpy(schedule.multiplier(steps)), expected, rtol=2e-6)


def test_without_stable_steps_it_never_ends():
    schedule = WarmupStableDecay(0.01, None, 10, 3)
    assert numpy(schedule.multiplier(np.array([0, 1, 2, 3, 10**6, LAST]))).tolist() == [
        *(0.25, 0.5, 0.75, 1, 1, 1)
    ]


def test_another_start_counts_if_it_comes_earlier():
    schedule = WarmupStableDecay(0.01, 20, 5, 3, "linear")
    for start in (9, ops.convert_to_tensor(9), ops.convert_to_tensor(np.array(9))):
        np.testing.assert_allclose(
            numpy(schedule.starting(start).multiplier(np.arange(8, 15))),
            [1, 1, 0.75, 0.5, 0.25, 0, 0],
        )
        later = schedule.starting(start + 15)
        assert float(later.multiplier(24)) == 0.75
    assert float(schedule.multiplier(10)) == 1  # it is another one
