"""CosineWarmRestarts: every boundary and peak up to 2³¹, Keras' schedule, and errors of its own."""

import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from keras_decoupled import CosineWarmRestarts
from steps import LAST, at, compiled, numpy


def starts_and_lengths(first, t_mul, warmup_steps=0):
    """Every cycle that starts before step 2³¹ − 1, added up one by one."""
    start, i = warmup_steps, 0
    while i == 0 or start <= LAST:
        length = round(first * t_mul**i)
        yield start, length
        start, i = start + length, i + 1


# --- boundaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "t_mul", "warmup_steps"),
    [(2, 1.1, 0), (3, 2, 13), (10, 1.001, 13), (1000, 3, 0), (5, math.pi, 0), (2, 1e9, 13)],
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
    for name, counts in zip(("cycle", "position", "cycle_steps"), expected, strict=True):
        np.testing.assert_array_equal(at(getattr(schedule, name), steps), counts)

    # The ends of a cycle are exact numbers, also after the compiler.
    ends = starts[1:] - 1
    for multiplier in [schedule.multiplier, *compiled(schedule.multiplier)]:
        eta = at(lambda x: multiplier(ops.convert_to_tensor(x.astype("int32"))), ends)  # noqa: B023
        np.testing.assert_array_equal(eta, np.float32(0.1))
    eta = at(schedule.multiplier, starts)
    np.testing.assert_allclose(eta, 0.7 * 0.5**i, rtol=2e-7, atol=1e-37)


@pytest.mark.parametrize("warmup_steps", [0, 5])
@pytest.mark.parametrize("first", [1, 3, 65537, LAST, LAST + 1])
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


def test_a_second_cycle_that_no_float_holds():
    schedule = CosineWarmRestarts(0.1, 3, t_mul=1.7e308)
    assert numpy(schedule.cycle(np.array([2, 3, LAST]))).tolist() == [0, 1, 1]
    assert int(schedule.cycle_steps(3)) == 2**31 - 1
    assert numpy(schedule.multiplier(np.array([2, 3]))).tolist() == [0, 1]


# --- peaks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("m_mul", [0.9999, 1.0005])
def test_the_peak_keeps_its_digits_after_many_cycles(m_mul):
    schedule = CosineWarmRestarts(1.0, 3, m_mul=m_mul)
    cycles = np.array([0, 1, 2, 1000, 2047, 2048, 2049, 40_000])
    expected = [m_mul ** int(i) for i in cycles]
    np.testing.assert_allclose(numpy(schedule.multiplier(3 * cycles)), expected, rtol=3e-7)


def test_peaks_beyond_float32():
    steps = np.array([2 * 5000, LAST - 2])  # both even: peaks
    for zero in ({"m_mul": 0.5}, {"m_mul": 2.0, "eta_max": 0.0}):
        assert numpy(CosineWarmRestarts(1.0, 2, **zero).multiplier(steps)).tolist() == [0.0, 0.0]
    rising = CosineWarmRestarts(1.0, 2, m_mul=2.0)
    assert np.all(numpy(rising.multiplier(steps)) > 1e38)
    assert numpy(rising.multiplier(steps + 1)).tolist() == [0.0, 0.0]  # no inf · 0


@pytest.mark.parametrize(
    ("first", "t_mul", "m_mul", "alpha"), [(10, 1.0, 0.8, 0.0), (8, 1.5, 1.0, 0.2)]
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


def test_arguments_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"≥ 2.*=1\. .*endpoint=True a cycle needs 2"):
        CosineWarmRestarts(0.1, 1)
    words = r"`eta_min` must be ≤ `eta_max`.*Received: eta_min=0.5, eta_max=0.4\. Lower"
    with pytest.raises(ValueError, match=words):
        CosineWarmRestarts(0.1, 10, eta_min=0.5, eta_max=0.4)


@pytest.mark.parametrize("t_mul", [1 + 1e-15, 1.00001])
def test_too_many_cycles(t_mul):
    words = r"`t_mul` > 1 .* at most 100,000 cycles.*Received: t_mul=.*Pass t_mul=1"
    with pytest.raises(ValueError, match=words):
        CosineWarmRestarts(0.1, 10, t_mul)
    CosineWarmRestarts(0.1, 10, t_mul, autorestart=False)  # one cycle is not too many
