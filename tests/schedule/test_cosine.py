"""CosineWarmRestarts against float64 arithmetic on Python's integers, at every boundary up to 2³¹."""

import copy
import itertools
import json
import math
import pickle
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_decoupled import CosineWarmRestarts
from steps import LAST, at, compiled, floatx, numpy, rates_of_stock, step_kinds

COUNTS = ("cycle", "position", "cycle_steps")

# Keras' Variable.__array__ lacks NumPy 2's `copy`; as in pyproject.toml, but also under `-W error`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def starts_and_lengths(first, t_mul, warmup_steps=0):
    """Every cycle that starts before step 2³¹ − 1, added up one by one."""
    start, i = warmup_steps, 0
    while i == 0 or start <= LAST:
        length = round(first * t_mul**i)
        yield start, length
        start, i = start + length, i + 1


def oracle(
    step,
    first,
    t_mul=1.0,
    m_mul=1.0,
    eta_min=0.0,
    eta_max=1.0,
    warmup_steps=0,
    endpoint=True,
    autorestart=True,
):
    """(η, cycle, position, T) by the definition: one cycle after another from the start."""
    if step < warmup_steps:
        return eta_max * (step + 1) / (warmup_steps + 1), 0, 0, first
    s, i, T = step - warmup_steps, 0, first
    if not autorestart and s >= T:
        return eta_min, 0, T - 1, T
    if t_mul == 1:
        i, s = divmod(s, T)
    else:
        while s >= T:
            s, i = s - T, i + 1
            T = round(first * t_mul**i)
    peak = eta_max * m_mul**i
    angle = math.pi * s / (T - 1 if endpoint else T)
    return eta_min + 0.5 * (peak - eta_min) * (1 + math.cos(angle)), i, s, T


def check_against_oracle(schedule, steps, **arguments):
    expected = np.array([oracle(int(step), **arguments) for step in steps])
    for column, name in enumerate(COUNTS, start=1):
        np.testing.assert_array_equal(at(getattr(schedule, name), steps), expected[:, column])
    # Relative to η itself where nothing is added to the cosine, so also just before its end.
    added = max(arguments.get("eta_min", 0.0), 1e-8)
    actual = at(schedule.multiplier, steps)
    np.testing.assert_allclose(actual, expected[:, 0], rtol=2e-6, atol=1e-6 * added)
    rate = schedule.initial_learning_rate
    np.testing.assert_allclose(at(schedule, steps), rate * actual, rtol=3e-7, atol=1e-37)


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


ARGUMENTS = st.fixed_dictionaries(
    {
        "first": st.integers(2, 20) | st.sampled_from([100, 299]),
        "t_mul": st.sampled_from([1.0, 1.0, 1.1, 1.37, 1.5, 2.0, math.e, 3.0]),
        "m_mul": st.just(1.0) | st.floats(0.0, 1.0),
        "eta_min": st.just(0.0) | st.floats(0.0, 0.3),
        "eta_max": st.just(1.0) | st.floats(0.3, 3.0),
        "warmup_steps": st.just(0) | st.integers(0, 300),
        "endpoint": st.booleans(),
        "autorestart": st.booleans(),
    }
)


def make(initial_learning_rate=0.01, **arguments):
    arguments["first_decay_steps"] = arguments.pop("first")
    return CosineWarmRestarts(initial_learning_rate, **arguments)


@settings(deadline=None, max_examples=300)
@given(ARGUMENTS, st.lists(st.integers(0, 3000), min_size=20, max_size=20))
def test_agrees_with_the_oracle(arguments, steps):
    check_against_oracle(make(**arguments), np.array(steps), **arguments)


@settings(deadline=None, max_examples=200)
@given(ARGUMENTS, st.lists(st.integers(0, LAST), min_size=10, max_size=10), st.integers(0, LAST))
def test_counts_agree_with_the_oracle_up_to_2_31(arguments, steps, warmup_steps):
    arguments |= {"t_mul": max(arguments["t_mul"], 1.1), "warmup_steps": warmup_steps}
    steps = np.array([0, *steps, warmup_steps, LAST])
    schedule = make(**arguments)
    expected = np.array([oracle(int(step), **arguments)[1:] for step in steps])
    expected[:, 2] = np.minimum(expected[:, 2], 2**31 - 1)
    for column, name in enumerate(COUNTS):
        np.testing.assert_array_equal(at(getattr(schedule, name), steps), expected[:, column])


@settings(deadline=None, max_examples=200)
@given(ARGUMENTS)
def test_stays_within_its_bounds_and_only_falls_within_a_cycle(arguments):
    arguments |= {"m_mul": 1.0, "warmup_steps": 0}
    schedule, steps = make(**arguments), np.arange(400)
    eta, position = numpy(schedule.multiplier(steps)), numpy(schedule.position(steps))
    low, high = np.float32(arguments["eta_min"]), np.float32(arguments["eta_max"])
    assert eta.min() >= low
    assert eta.max() <= high
    assert np.all((eta[1:] <= eta[:-1] + 2e-7 * high) | (position[1:] == 0))


@pytest.mark.parametrize("endpoint", [True, False])
@pytest.mark.parametrize("span", [100, 10_001, 3_000_000, 2**30, 2**31 + 5, 10**10])
def test_keeps_its_digits_at_the_end_of_a_long_cycle(span, endpoint):
    schedule = CosineWarmRestarts(1.0, span + endpoint, endpoint=endpoint)
    steps = [s for s in (span // 3, span // 2, span - 99, span - 2, span - 1) if s <= LAST]
    expected = [math.sin(math.pi / 2 * (span - s) / span) ** 2 for s in [*steps, LAST]]
    if span < LAST:
        steps, expected = steps[:], expected[:-1]
    else:
        steps = [*steps, LAST]
    np.testing.assert_allclose(numpy(schedule.multiplier(np.array(steps))), expected, rtol=2e-6)


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


def test_m_mul_0_has_one_peak():
    schedule = CosineWarmRestarts(1.0, 3, m_mul=0.0, eta_min=0.0)
    np.testing.assert_allclose(
        numpy(schedule.multiplier(np.arange(7))), [1, 0.5, 0, 0, 0, 0, 0], rtol=1e-6
    )


def test_a_peak_below_eta_min_rises_to_it():
    arguments = {"first": 4, "m_mul": 0.1, "eta_min": 0.5}
    check_against_oracle(make(**arguments), np.arange(12), **arguments)


def test_without_autorestart_it_stays_at_the_end():
    for endpoint, t_mul in itertools.product([True, False], [1.0, 2.0]):
        schedule = CosineWarmRestarts(
            1.0, 4, t_mul, eta_min=0.25, endpoint=endpoint, autorestart=False, warmup_steps=3
        )
        after = np.array([7, 8, 11, 12, 1000, LAST])
        assert numpy(schedule.multiplier(after)).tolist() == [0.25] * 6
        assert numpy(schedule.position(after)).tolist() == [3] * 6
        assert numpy(schedule.cycle(after)).tolist() == [0] * 6
        assert numpy(schedule.cycle_steps(after)).tolist() == [4] * 6
        assert (float(schedule.multiplier(6)) == 0.25) is endpoint


@pytest.mark.parametrize("warmup_steps", [1, 9, 2**31 - 2, 2**31 - 1, 2**31, 10**12])
def test_warm_up(warmup_steps):
    schedule = CosineWarmRestarts(1.0, 5, 2.0, eta_max=2.0, warmup_steps=warmup_steps)
    steps = np.array([s for s in (0, 1, 8, 10**9, LAST - 1, LAST) if s < warmup_steps])
    expected = 2.0 * (steps + 1) / (warmup_steps + 1)
    np.testing.assert_allclose(numpy(schedule.multiplier(steps)), expected, rtol=3e-7)
    for name, value in zip(COUNTS, (0, 0, 5), strict=True):
        assert set(numpy(getattr(schedule, name)(steps)).tolist()) == {value}
    if warmup_steps <= LAST:
        assert float(schedule.multiplier(warmup_steps)) == 2.0
        assert int(schedule.position(warmup_steps)) == 0


# --- boundaries ---------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_steps", [0, 13])
@pytest.mark.parametrize(
    ("first", "t_mul"),
    [(2, 1.1), (2, 1.5), (2, 2), (3, 2), (10, 1.01), (7, 1.001), (1000, 3), (5, math.pi), (2, 1e9)],
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
@pytest.mark.parametrize(
    "first", [1, 2, 3, 10, 65537, 10**9, LAST - 1, LAST, LAST + 1, LAST + 2, 10**12]
)
def test_equal_cycles_are_exact_up_to_2_31(first, warmup_steps):
    schedule = CosineWarmRestarts(1.0, first, endpoint=False, warmup_steps=warmup_steps)
    cycles = {0, 1, 2, 1000, (LAST - warmup_steps) // first}
    starts = [warmup_steps + first * i for i in cycles]
    steps = {step for start in starts for step in (start - 1, start, start + 1)} | {LAST - 1, LAST}
    steps = np.array(sorted(step for step in steps if warmup_steps <= step <= LAST))
    i, s = np.divmod(steps - warmup_steps, first)
    np.testing.assert_array_equal(at(schedule.cycle, steps), i)
    np.testing.assert_array_equal(at(schedule.position, steps), s)
    assert set(at(schedule.cycle_steps, steps).tolist()) == {min(first, 2**31 - 1)}
    expected = np.sin(np.pi / 2 * (first - s) / first) ** 2
    np.testing.assert_allclose(at(schedule.multiplier, steps), expected, rtol=2e-6)


def test_tens_of_thousands_of_cycles():
    table = list(starts_and_lengths(10, 1.0002))
    assert 50_000 < len(table) <= 100_000
    starts = np.array([start for start, _ in table])
    schedule = CosineWarmRestarts(1.0, 10, 1.0002, m_mul=0.9999)
    np.testing.assert_array_equal(numpy(schedule.cycle(starts)), np.arange(len(table)))
    np.testing.assert_array_equal(numpy(schedule.cycle(starts[1:] - 1)), np.arange(len(table) - 1))
    expected = 0.9999 ** np.arange(len(table))
    np.testing.assert_allclose(numpy(schedule.multiplier(starts)), expected, rtol=3e-7)


# XLA flushes float32's subnormal numbers to 0
LEVELS = st.just(0.0) | st.floats(1e-37, 10.0)


@settings(deadline=None, max_examples=100)
@given(LEVELS, LEVELS, st.integers(2, 10**6), st.booleans())
def test_the_ends_of_a_cycle_are_exact(a, b, first, endpoint):
    eta_min, eta_max = sorted((a, b))
    t_mul = 1.5 if first % 2 else 1.0
    schedule = CosineWarmRestarts(1.0, first, t_mul, 1.0, eta_min, eta_max, endpoint=endpoint)
    start = np.array([0, first, first + round(first * t_mul)])
    np.testing.assert_array_equal(numpy(schedule.multiplier(start)), np.float32(eta_max))
    if endpoint:
        np.testing.assert_array_equal(
            numpy(schedule.multiplier(start[1:] - 1)), np.float32(eta_min)
        )


def test_one_is_one():
    schedule = CosineWarmRestarts(1e-3, 7, t_mul=1.3, eta_min=0.1, m_mul=1.0)
    starts = np.array([start for start, _ in starts_and_lengths(7, 1.3)])
    assert set(numpy(schedule.multiplier(starts)).tolist()) == {1.0}
    assert set(numpy(schedule(starts)).tolist()) == {float(np.float32(1e-3))}
    constant = CosineWarmRestarts(1e-3, 7, eta_min=1.0)
    assert set(numpy(constant.multiplier(np.arange(50))).tolist()) == {1.0}


# --- steps, dtypes, compilers -------------------------------------------------------------------

SCHEDULES = {
    "equal": {"first_decay_steps": 4, "m_mul": 0.9, "eta_min": 0.1},
    "growing": {"first_decay_steps": 4, "t_mul": 1.7, "m_mul": 0.9, "warmup_steps": 3},
    "sgdr": {"first_decay_steps": 4, "t_mul": 2, "endpoint": False},
    "single": {"first_decay_steps": 40, "autorestart": False, "warmup_steps": 3},
    "long": {"first_decay_steps": 10**10},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_kind_of_step(name):
    schedule = CosineWarmRestarts(0.1, **SCHEDULES[name])
    for method in ("__call__", "multiplier", *COUNTS):
        expected = getattr(schedule, method)(17)
        assert ops.is_tensor(expected)
        assert tuple(expected.shape) == ()
        dtype = keras.backend.standardize_dtype(expected.dtype)
        assert dtype == ("int32" if method in COUNTS else "float32")
        for step in step_kinds(17):
            assert numpy(getattr(schedule, method)(step)) == numpy(expected), repr(step)
        square = getattr(schedule, method)(np.full((2, 3), 17))
        np.testing.assert_array_equal(numpy(square), np.full((2, 3), numpy(expected)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_compiled(name):
    schedule = CosineWarmRestarts(0.1, **SCHEDULES[name])
    steps = np.array([*range(40), 10**6, LAST - 1, LAST], dtype="int32")
    vectors = {
        method: numpy(getattr(schedule, method)(steps)) for method in ("multiplier", *COUNTS)
    }

    def everything(step):
        return [getattr(schedule, method)(step) for method in vectors]

    for function in compiled(everything):
        for row, step in enumerate(steps):
            actual = [numpy(x) for x in function(ops.convert_to_tensor(step))]
            expected = [vector[row] for vector in vectors.values()]
            np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-12)
            assert actual[1:] == expected[1:]
            if int(step) == 0 and not schedule.warmup_steps:
                assert actual[0] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float64 of x64"])
def test_is_never_computed_below_float32(name, dtype):
    dtype, _, x64 = dtype.partition(" of ")
    schedule = CosineWarmRestarts(0.1, **SCHEDULES[name])
    steps = np.array([*range(60), 2**24 + 1, LAST - 1, LAST])
    counts = [numpy(getattr(schedule, count)(steps)) for count in COUNTS]
    with floatx(dtype, bool(x64)):
        eta, rate = numpy(schedule.multiplier(steps)), numpy(schedule(steps))
        for count, expected in zip(COUNTS, counts, strict=True):
            actual = getattr(schedule, count)(steps)
            assert keras.backend.standardize_dtype(actual.dtype) == "int32"
            np.testing.assert_array_equal(numpy(actual), expected)
    wide = dtype == "float64" and (keras.backend.backend() != "jax" or x64)
    assert eta.dtype == rate.dtype == ("float64" if wide else "float32")

    arguments = dict(SCHEDULES[name])
    arguments["first"] = arguments.pop("first_decay_steps")
    expected = np.array([oracle(int(step), **arguments)[0] for step in steps])
    # Keras has no float64 sine on JAX.
    exact = wide and keras.backend.backend() != "jax"
    tolerance = {"rtol": 1e-13, "atol": 1e-16} if exact else {"rtol": 1e-6, "atol": 1e-16}
    if "t_mul" in arguments:  # 1e-9 of a huge cycle: the oracle's own 1 + cos has no more digits
        tolerance["atol"] = 1e-15
    np.testing.assert_allclose(eta, expected, **tolerance)
    np.testing.assert_allclose(rate, 0.1 * expected, **tolerance)


@pytest.mark.parametrize(
    "step",
    [-1, 2**31 - 1, 10**30, 1.5, math.nan, math.inf, True, np.array([0, -1]), np.float32(2**31)],
)
def test_refuses_a_step_that_is_none(step):
    with pytest.raises(
        ValueError, match=r"`step` must be an integer from 0 to 2\*\*31 - 2.*Receiv"
    ):
        CosineWarmRestarts(0.1, 10)(step)


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


@pytest.mark.parametrize(("T_0", "T_mult"), [(1, 1), (7, 1), (7, 2), (3, 3)])
def test_agrees_with_torch(T_0, T_mult):
    # The loop and the formula of torch.optim.lr_scheduler.CosineAnnealingWarmRestarts.step().
    base, eta_min, T_cur, T_i, expected = 0.3, 0.03, 0, T_0, []
    for _ in range(200):
        expected.append(eta_min + (base - eta_min) * (1 + math.cos(math.pi * T_cur / T_i)) / 2)
        T_cur += 1
        if T_cur >= T_i:
            T_cur, T_i = T_cur - T_i, T_i * T_mult
    ours = CosineWarmRestarts(base, T_0, T_mult, eta_min=eta_min / base, endpoint=False)
    np.testing.assert_allclose(numpy(ours(np.arange(200))), expected, rtol=1e-6)


def test_stock_optimizers_follow_it():
    for make_optimizer in (keras.optimizers.SGD, keras.optimizers.Adam):
        schedule = CosineWarmRestarts(0.1, 3, 2.0, warmup_steps=1)
        rates, variable = rates_of_stock(make_optimizer, schedule, 12)
        np.testing.assert_allclose(rates, numpy(schedule(np.arange(12))))
    # Adam's steps on a constant gradient are lr·1, SGD's too
    np.testing.assert_allclose(numpy(variable.value), -sum(rates) * np.ones(2), rtol=1e-4)


# --- saving -------------------------------------------------------------------------------------

FULL = {
    "initial_learning_rate": 0.1,
    "first_decay_steps": 7,
    "t_mul": 1.5,
    "m_mul": 0.9,
    "eta_min": 0.01,
    "eta_max": 2.0,
    "warmup_steps": 3,
    "endpoint": False,
    "autorestart": True,
    "name": "warm",
}


def test_config_is_every_argument_and_a_fixed_point():
    schedule = CosineWarmRestarts(**FULL)
    assert schedule.get_config() == FULL
    public = {name for name in vars(schedule) if not name.startswith("_")}
    assert public == set(FULL)
    assert {name: getattr(schedule, name) for name in FULL} == FULL

    serialized = keras.saving.serialize_keras_object(schedule)
    assert serialized["registered_name"] == "keras_decoupled>CosineWarmRestarts"
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(serialized)))
    assert isinstance(again, CosineWarmRestarts)
    assert keras.saving.serialize_keras_object(again) == serialized
    expected = numpy(schedule(np.arange(100)))
    copies = [
        again,
        keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule)),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ]
    for other in copies:
        assert other.get_config() == FULL
        np.testing.assert_array_equal(numpy(other(np.arange(100))), expected)


def test_numbers_of_any_kind_are_stored_as_pythons():
    schedule = CosineWarmRestarts(
        np.float32(0.5), 10.0, 2, np.int64(1), 0, 1, np.float64(3.0), np.bool_(False), np.True_
    )
    config = schedule.get_config()
    assert config == {
        "initial_learning_rate": 0.5,
        "first_decay_steps": 10,
        "t_mul": 2.0,
        "m_mul": 1.0,
        "eta_min": 0.0,
        "eta_max": 1.0,
        "warmup_steps": 3,
        "endpoint": False,
        "autorestart": True,
        "name": None,
    }
    assert [type(config[name]) for name in ("first_decay_steps", "t_mul", "endpoint")] == [
        int,
        float,
        bool,
    ]


def test_goes_on_inside_a_saved_model(tmp_path):
    x, y = np.ones((16, 3), "float32"), np.ones((16, 1), "float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    schedule = CosineWarmRestarts(0.1, 3, 2.0, warmup_steps=1)
    model.compile(keras.optimizers.SGD(schedule), "mse")
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 8
    assert float(again.optimizer.learning_rate) == float(schedule(8))
    again.fit(x, y, batch_size=4, epochs=1, verbose=0)
    assert float(again.optimizer.learning_rate) == float(schedule(12))


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "error", "rule"),
    [
        ("initial_learning_rate", -1, ValueError, "a finite number ≥ 0"),
        ("initial_learning_rate", math.nan, ValueError, "a finite number ≥ 0"),
        ("initial_learning_rate", 10**400, ValueError, "a finite number ≥ 0"),
        ("initial_learning_rate", "0.1", TypeError, "a finite number ≥ 0"),
        ("initial_learning_rate", True, TypeError, "a finite number ≥ 0"),
        ("initial_learning_rate", None, TypeError, "a finite number ≥ 0"),
        ("first_decay_steps", 0, ValueError, "an integer ≥ 2"),
        ("first_decay_steps", 1, ValueError, "an integer ≥ 2"),
        ("first_decay_steps", 2.5, ValueError, "an integer ≥ 2"),
        ("first_decay_steps", math.inf, ValueError, "an integer ≥ 2"),
        ("first_decay_steps", math.nan, ValueError, "an integer ≥ 2"),
        ("first_decay_steps", 10**400, ValueError, "an integer ≥ 2"),
        ("first_decay_steps", "10", TypeError, "an integer ≥ 2"),
        ("first_decay_steps", True, TypeError, "an integer ≥ 2"),
        ("t_mul", 0.99, ValueError, "a finite number ≥ 1"),
        ("t_mul", math.inf, ValueError, "a finite number ≥ 1"),
        ("t_mul", None, TypeError, "a finite number ≥ 1"),
        ("m_mul", -0.1, ValueError, "a finite number ≥ 0"),
        ("m_mul", math.nan, ValueError, "a finite number ≥ 0"),
        ("m_mul", [1.0], TypeError, "a finite number ≥ 0"),
        ("eta_min", -1, ValueError, "a finite number ≥ 0"),
        ("eta_min", np.bool_(False), TypeError, "a finite number ≥ 0"),
        ("eta_max", -1, ValueError, "a finite number ≥ 0"),
        ("eta_max", math.inf, ValueError, "a finite number ≥ 0"),
        ("eta_max", 1j, TypeError, "a finite number ≥ 0"),
        ("warmup_steps", -1, ValueError, "an integer ≥ 0"),
        ("warmup_steps", 0.5, ValueError, "an integer ≥ 0"),
        ("warmup_steps", False, TypeError, "an integer ≥ 0"),
        ("endpoint", 1, TypeError, "True or False"),
        ("autorestart", None, TypeError, "True or False"),
        ("name", 3, TypeError, "a string or None"),
    ],
)
def test_errors_name_the_argument_the_rule_and_the_cure(argument, value, error, rule):
    received = re.escape(f"Received: {argument}={value!r}")
    kind = f" of type {type(value).__name__}" if error is TypeError else ""
    cure = r"\. \w+" if rule != "True or False" else r"\."
    with pytest.raises(error, match=f"^`{argument}` must be {rule}. {received}{kind}{cure}"):
        CosineWarmRestarts(
            **{"initial_learning_rate": 0.1, "first_decay_steps": 10, argument: value}
        )


def test_first_decay_steps_of_1_needs_no_endpoint():
    with pytest.raises(ValueError, match=r"≥ 2.*=1\. .*endpoint=True a cycle needs 2"):
        CosineWarmRestarts(0.1, 1)
    with pytest.raises(ValueError, match="`first_decay_steps` must be an integer ≥ 1"):
        CosineWarmRestarts(0.1, 0, endpoint=False)
    schedule = CosineWarmRestarts(0.1, 1, endpoint=False)
    assert set(numpy(schedule.multiplier(np.arange(10))).tolist()) == {1.0}


def test_eta_min_above_eta_max():
    with pytest.raises(
        ValueError,
        match=r"`eta_min` must be ≤ `eta_max`.*Received: eta_min=0.5, eta_max=0.4\. Lower",
    ):
        CosineWarmRestarts(0.1, 10, eta_min=0.5, eta_max=0.4)


@pytest.mark.parametrize("t_mul", [1 + 1e-15, 1.00001])
def test_too_many_cycles(t_mul):
    with pytest.raises(
        ValueError, match=r"`t_mul` > 1 .* at most 100,000 cycles.*Received: t_mul=.*Pass t_mul=1"
    ):
        CosineWarmRestarts(0.1, 10, t_mul)
    CosineWarmRestarts(0.1, 10, t_mul, autorestart=False)  # one cycle is not too many


def test_a_cycle_of_any_length_ends_the_table():
    schedule = CosineWarmRestarts(0.1, 3, t_mul=1.7e308)
    assert numpy(schedule.cycle(np.array([2, 3, LAST]))).tolist() == [0, 1, 1]
    assert float(schedule.multiplier(LAST)) == 1.0
