"""CosineWarmRestarts: its cycles by hand, every boundary up to 2³¹, and the schedules of Keras and torch."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_decoupled import CosineWarmRestarts
from steps import LAST, at, compiled, numpy

COUNTS = ("cycle", "position", "cycle_steps")


def starts_and_lengths(first, t_mul, warmup_steps=0):
    """Every cycle that starts before step 2³¹ − 1, added up one by one."""
    start, i = warmup_steps, 0
    while i == 0 or start <= LAST:
        length = round(first * t_mul**i)
        yield start, length
        start, i = start + length, i + 1


# --- values -------------------------------------------------------------------------------------


def test_one_cycle_by_hand():
    schedule = CosineWarmRestarts(0.2, 5)
    half = [1.0, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2), 0.0]
    np.testing.assert_allclose(numpy(schedule.multiplier(np.arange(10))), half * 2, rtol=1e-6)
    np.testing.assert_allclose(numpy(schedule(np.arange(5))), 0.2 * np.array(half), rtol=1e-6)
    assert numpy(schedule.cycle(np.arange(10))).tolist() == [0] * 5 + [1] * 5
    assert numpy(schedule.position(np.arange(10))).tolist() == [0, 1, 2, 3, 4] * 2
    assert numpy(schedule.cycle_steps(np.arange(10))).tolist() == [5] * 10


def test_growing_cycles_by_hand():
    schedule = CosineWarmRestarts(1.0, 3, t_mul=1.5, m_mul=0.5, warmup_steps=2, eta_max=3.0)
    steps = np.arange(14)  # warm-up 2, then cycles of 3, round(4.5) = 4 and round(6.75) = 7
    assert numpy(schedule.cycle_steps(steps)).tolist() == [3] * 5 + [4] * 4 + [7] * 5
    assert numpy(schedule.cycle(steps)).tolist() == [0] * 5 + [1] * 4 + [2] * 5
    assert numpy(schedule.position(steps)).tolist() == [0, 0, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
    eta = [1, 2, 3, 1.5, 0, 1.5, 1.125, 0.375, 0, 0.75]
    np.testing.assert_allclose(numpy(schedule.multiplier(steps[:10])), eta, rtol=1e-6)


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("span", [100, 10_001, 3_000_000, 2**30, 2**31 - 2])
def test_keeps_its_digits_at_the_end_of_a_long_cycle(span, endpoint):
    schedule = CosineWarmRestarts(1.0, span + endpoint, endpoint=endpoint)
    steps = np.array([span // 3, span // 2, span - 99, span - 2, span - 1])
    expected = np.sin(np.pi / 2 * (span - steps) / span) ** 2
    np.testing.assert_allclose(numpy(schedule.multiplier(steps)), expected, rtol=2e-6)


@pytest.mark.parametrize("m_mul", [0.999, 0.9999, 1.0005])
def test_the_peak_keeps_its_digits_after_many_cycles(m_mul):
    schedule = CosineWarmRestarts(1.0, 3, m_mul=m_mul)
    cycles = np.array([0, 1, 2, 1000, 2047, 2048, 2049, 40_000])
    expected = [m_mul ** int(i) for i in cycles]
    np.testing.assert_allclose(numpy(schedule.multiplier(3 * cycles)), expected, rtol=3e-7)


def test_peaks_beyond_float32():
    falling, rising = (CosineWarmRestarts(1.0, 2, m_mul=m) for m in (0.5, 2.0))
    steps = np.array([2 * 5000, LAST - 2])  # both even: peaks
    assert numpy(falling.multiplier(steps)).tolist() == [0.0, 0.0]
    assert np.all(numpy(rising.multiplier(steps)) > 1e38)
    assert numpy(rising.multiplier(steps + 1)).tolist() == [0.0, 0.0]  # no inf · 0
    zero = CosineWarmRestarts(1.0, 2, m_mul=2.0, eta_max=0.0)
    assert numpy(zero.multiplier(steps)).tolist() == [0.0, 0.0]


# --- boundaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_steps", [0, 13])
@pytest.mark.parametrize(
    ("first", "t_mul"),
    [
        (2, 1.1),
        (2, 1.5),
        (2, 2),
        (3, 2),
        (10, 1.01),
        (10, 1.001),
        (1000, 3),
        (5, math.pi),
        (2, 1e9),
    ],
)
def test_every_boundary_is_exact(first, t_mul, warmup_steps):
    table = list(starts_and_lengths(first, t_mul, warmup_steps))
    starts, lengths = (np.array(column, dtype="int64") for column in zip(*table, strict=True))
    T = np.minimum(lengths, 2**31 - 1)
    i = np.arange(len(table))
    schedule = CosineWarmRestarts(
        1.0, first, t_mul, m_mul=0.5, eta_min=0.1, eta_max=0.7, warmup_steps=warmup_steps
    )

    rows = [
        np.stack([starts, i, 0 * i, T]),
        np.stack([starts + 1, i, 0 * i + 1, T]),
        np.stack([starts[1:] - 1, i[:-1], lengths[:-1] - 1, T[:-1]]),
        np.stack([[LAST], i[-1:], LAST - starts[-1:], T[-1:]]),
    ]
    steps, *expected = (row := np.concatenate(rows, axis=1))[:, row[0] <= LAST]
    for name, counts in zip(COUNTS, expected, strict=True):
        np.testing.assert_array_equal(at(getattr(schedule, name), steps), counts)

    # The ends of a cycle are exact numbers, also after the compiler.
    ends = starts[1:] - 1
    for multiplier in [schedule.multiplier, *compiled(schedule.multiplier)]:
        eta = at(lambda x: multiplier(ops.convert_to_tensor(x.astype("int32"))), ends)  # noqa: B023
        np.testing.assert_array_equal(eta, np.float32(0.1))
    eta = at(schedule.multiplier, starts)
    np.testing.assert_allclose(eta, 0.7 * 0.5**i, rtol=2e-7, atol=1e-37)


@pytest.mark.parametrize("warmup_steps", [0, 5])
@pytest.mark.parametrize("first", [1, 2, 3, 10, 65537, 10**9, LAST - 1, LAST, LAST + 1])
def test_equal_cycles_are_exact_up_to_2_31(first, warmup_steps):
    schedule = CosineWarmRestarts(1.0, first, endpoint=False, warmup_steps=warmup_steps)
    cycles = {0, 1, 2, 1000, (LAST - warmup_steps) // first}
    starts = [warmup_steps + first * i for i in cycles]
    steps = {step for start in starts for step in (start - 1, start, start + 1)} | {LAST - 1, LAST}
    steps = np.array(sorted(step for step in steps if warmup_steps <= step <= LAST))
    i, s = np.divmod(steps - warmup_steps, first)
    np.testing.assert_array_equal(at(schedule.cycle, steps), i)
    np.testing.assert_array_equal(at(schedule.position, steps), s)
    assert set(at(schedule.cycle_steps, steps).tolist()) == {first}
    expected = np.sin(np.pi / 2 * (first - s) / first) ** 2
    np.testing.assert_allclose(at(schedule.multiplier, steps), expected, rtol=2e-6)


def test_one_is_one():
    schedule = CosineWarmRestarts(1e-3, 7, t_mul=1.3, eta_min=0.1, m_mul=1.0)
    starts = np.array([start for start, _ in starts_and_lengths(7, 1.3)])
    assert set(numpy(schedule.multiplier(starts)).tolist()) == {1.0}
    assert set(numpy(schedule(starts)).tolist()) == {float(np.float32(1e-3))}
    constant = CosineWarmRestarts(1e-3, 7, eta_min=1.0)
    assert set(numpy(constant.multiplier(np.arange(50))).tolist()) == {1.0}


# --- the other implementations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "t_mul", "m_mul", "alpha"),
    [(10, 1.0, 1.0, 0.0), (10, 1.0, 0.8, 0.0), (10, 2.0, 0.8, 0.0), (8, 1.5, 1.0, 0.2)],
)
def test_agrees_with_keras(first, t_mul, m_mul, alpha):
    # Not at Keras' restarts, which its float32 logarithm misses by one update now and then.
    starts = list(itertools.islice(starts_and_lengths(first, t_mul), 4))
    steps = np.concatenate([np.arange(start + 1, start + length - 1) for start, length in starts])
    theirs = keras.optimizers.schedules.CosineDecayRestarts(0.3, first, t_mul, m_mul, alpha)
    ours = CosineWarmRestarts(0.3, first, t_mul, m_mul, alpha, endpoint=False)
    expected = numpy(theirs(ops.convert_to_tensor(steps.astype("float32"))))
    np.testing.assert_allclose(numpy(ours(steps)), expected, rtol=3e-5, atol=1e-6)


# --- errors -------------------------------------------------------------------------------------


def test_first_decay_steps_of_1_needs_no_endpoint():
    with pytest.raises(ValueError, match=r"≥ 2.*=1\. .*endpoint=True a cycle needs 2"):
        CosineWarmRestarts(0.1, 1)
    with pytest.raises(ValueError, match="`first_decay_steps` must be an integer ≥ 1"):
        CosineWarmRestarts(0.1, 0, endpoint=False)
    schedule = CosineWarmRestarts(0.1, 1, endpoint=False)
    assert set(numpy(schedule.multiplier(np.arange(10))).tolist()) == {1.0}


def test_eta_min_above_eta_max():
    words = r"`eta_min` must be ≤ `eta_max`.*Received: eta_min=0.5, eta_max=0.4\. Lower"
    with pytest.raises(ValueError, match=words):
        CosineWarmRestarts(0.1, 10, eta_min=0.5, eta_max=0.4)


@pytest.mark.parametrize("t_mul", [1 + 1e-15, 1.00001])
def test_too_many_cycles(t_mul):
    words = r"`t_mul` > 1 .* at most 100,000 cycles.*Received: t_mul=.*Pass t_mul=1"
    with pytest.raises(ValueError, match=words):
        CosineWarmRestarts(0.1, 10, t_mul)
    CosineWarmRestarts(0.1, 10, t_mul, autorestart=False)  # one cycle is not too many


def test_a_cycle_of_any_length_ends_the_table():
    schedule = CosineWarmRestarts(0.1, 3, t_mul=1.7e308)
    assert numpy(schedule.cycle(np.array([2, 3, LAST]))).tolist() == [0, 1, 1]
    assert int(schedule.cycle_steps(3)) == 2**31 - 1
    assert numpy(schedule.multiplier(np.array([2, 3]))).tolist() == [0, 1]
