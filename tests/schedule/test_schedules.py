"""What every schedule of ours promises: the oracle's numbers, any kind of step, a config, clear errors."""

import copy
import json
import math
import pickle
import re
from functools import partial
from typing import NamedTuple

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

import oracle
from effort import examples
from keras_decoupled import CosineWarmRestarts, WarmupStableDecay
from steps import LAST, at, compiled, floatx, numpy, rates_of_stock, step_kinds

BACKEND = keras.backend.backend()
NAN, INF = math.nan, math.inf

# Keras' Variable.__array__ lacks NumPy 2's `copy`; as in pyproject.toml, but also under `-W error`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Case(NamedTuple):
    schedule: keras.optimizers.schedules.LearningRateSchedule
    at: partial  # the oracle's numbers at a step

    @property
    def counts(self):
        return [x for x in ("position", "cycle", "cycle_steps") if hasattr(self.schedule, x)]


def cosine(first=4, warmup=0, **more):
    schedule = CosineWarmRestarts(0.1, first, warmup_steps=warmup, **more)
    return Case(schedule, partial(oracle.cosine, first=first, warmup=warmup, **more))


def stable(stable=5, decay=10, warmup=0, **more):
    schedule = WarmupStableDecay(0.1, stable, decay, warmup, **more)
    return Case(schedule, partial(oracle.stable, stable=stable, decay=decay, warmup=warmup, **more))


CASES = {
    "equal cycles": cosine(m_mul=0.9, eta_min=0.1),
    "growing cycles": cosine(t_mul=1.7, m_mul=0.9, warmup=3),
    "one cycle": cosine(20, autorestart=False, warmup=3),
    "the longest cycle": cosine(2**31 - 1),
    "1-sqrt": stable(warmup=4, eta_min=0.1),
    "cosine": stable(shape="cosine"),
    "the longest parts": stable(2**31 - 1, 2**31 - 1, 2**31 - 1),
    "the longest decay": stable(decay=2**31 - 1, shape="linear"),
}
EACH = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
BOTH = pytest.mark.parametrize("case", [cosine(3, t_mul=2.0, warmup=1), stable(2, 4, 2)])


# --- numbers ------------------------------------------------------------------------------------


def check(case, steps):
    """η, rate, position and T are the oracle's; returns η and the oracle's."""
    schedule, wanted = case.schedule, [case.at(int(step)) for step in steps]
    eta, expected = at(schedule.multiplier, steps), np.array([w.multiplier for w in wanted])
    T = np.array([w.cycle_steps or np.inf for w in wanted])
    position = np.minimum([w.position for w in wanted], T - 1)  # after the only cycle: its end
    np.testing.assert_array_equal(at(schedule.position, steps), position)
    if "cycle_steps" in case.counts:
        np.testing.assert_array_equal(at(schedule.cycle_steps, steps), np.minimum(T, LAST + 1))
    # Relative to η, also just before the end of a cosine; but where a peak below eta_min rises to it.
    atol = max(1e-15, 1e-6 * schedule.eta_min if hasattr(schedule, "m_mul") else 0)
    of_int32 = (T <= LAST + 1) | np.isinf(T)  # a cycle of more is one of 2³¹ − 1
    np.testing.assert_allclose(eta[of_int32], expected[of_int32], rtol=2e-6, atol=atol)
    # XLA and TensorFlow flush float32's subnormal numbers to 0.
    np.testing.assert_allclose(at(schedule, steps), 0.1 * eta, rtol=3e-7, atol=1e-37)
    return eta, expected


WARM_UP = st.just(0) | st.integers(0, 300)
LOW = st.just(0.0) | st.floats(0.0, 0.3)
COSINES = {
    "first": st.integers(2, 20) | st.sampled_from([100, 299]),
    "t_mul": st.sampled_from([1.0, 1.0, 1.1, 1.37, 1.5, 2.0, math.e, 3.0]),
    "m_mul": st.just(1.0) | st.floats(0.0, 1.0),
    "eta_min": LOW,
    "eta_max": st.just(1.0) | st.floats(0.3, 3.0),
    "warmup": WARM_UP,
    "endpoint": st.booleans(),
    "autorestart": st.booleans(),
}
STABLES = {
    "stable": st.none() | st.integers(0, 300),
    "decay": st.integers(2, 20) | st.integers(2, 800),
    "warmup": WARM_UP,
    "shape": st.sampled_from(["1-sqrt", "linear", "cosine"]),
    "eta_min": LOW | st.floats(0.0, 0.9),
}


def cases(**others):
    """Cases of both kinds, with other numbers for some arguments."""
    for make, arguments in ((cosine, COSINES), (stable, STABLES)):
        arguments = {name: others.get(name, values) for name, values in arguments.items()}
        yield st.builds(make, **arguments)


@settings(max_examples=examples(300))
@example(cosine(m_mul=0.1, eta_min=0.5), [0])  # a peak below eta_min rises to it
@example(cosine(m_mul=0.0), [0])
@given(st.one_of(*cases()), st.lists(st.integers(0, 3000), min_size=20, max_size=20))
def test_agrees_with_the_oracle(case, steps):
    schedule, steps = case.schedule, np.array([*steps, *range(44)])
    eta, expected = check(case, steps)
    ends = np.isin(expected, [schedule.eta_max, schedule.eta_min])  # these are exact
    np.testing.assert_array_equal(eta[ends], expected[ends].astype("float32"))
    assert eta.max() <= np.float32(schedule.eta_max)
    if getattr(schedule, "m_mul", 1) == 1:  # else a peak may be below eta_min
        assert np.all((eta >= np.float32(schedule.eta_min)) | (steps < schedule.warmup_steps))


LONG = st.integers(0, LAST)
LONG_CASES = cases(
    t_mul=st.sampled_from([1.0, 1.1, 1.5, math.e]),
    warmup=LONG,
    stable=LONG,
    decay=st.integers(2, LAST + 1),
)


@settings(max_examples=examples(200))
@example(cosine(warmup=LAST + 1, eta_max=2.0), [0, 1, 10**9])  # no run ends this warm-up
@example(stable(warmup=LAST + 1), [0, 1, 10**9])
@given(st.one_of(*LONG_CASES), st.lists(LONG, min_size=10, max_size=10))
def test_agrees_with_the_oracle_up_to_2_31(case, steps):
    schedule = case.schedule
    bounds = [schedule.warmup_steps, LAST]
    if case.at.func is oracle.stable:
        start = schedule.warmup_steps + schedule.stable_steps
        bounds += [start, start + schedule.decay_steps - 1]
    steps += [bound + d for bound in bounds for d in (-1, 0, 1)]
    check(case, np.array([step for step in steps if 0 <= step <= LAST]))


@pytest.mark.parametrize("shape", ["1-sqrt", "linear", "cosine", "cycle"])
@pytest.mark.parametrize("span", [10_001, 3_000_000, 2**31 - 2])
def test_keeps_its_digits_at_the_end_of_a_long_fall(span, shape):
    """Relative to an η that falls to 1e-19: 1 − x in float32 has no digit left there."""
    if shape == "cycle":
        schedule = CosineWarmRestarts(1.0, span + 1, autorestart=False)
    else:
        schedule = WarmupStableDecay(1.0, 0, span + 1, shape=shape)
    steps = np.array([1, span // 3, span // 2, span - 99, span - 2, span - 1, LAST])
    left = np.maximum(span - steps, 0) / span
    expected = {"1-sqrt": left / (1 + np.sqrt(1 - left)), "linear": left}
    wave = np.sin(np.pi / 2 * left) ** 2
    found = numpy(schedule.multiplier(steps))
    np.testing.assert_allclose(found, expected.get(shape, wave), rtol=2e-6)


# --- steps, dtypes, compilers -------------------------------------------------------------------


@EACH
def test_every_kind_of_step(case):
    for method in ("__call__", "multiplier", *case.counts):
        function = getattr(case.schedule, method)
        expected = function(13)
        assert ops.is_tensor(expected)
        assert tuple(expected.shape) == ()
        dtype = keras.backend.standardize_dtype(expected.dtype)
        assert dtype == ("int32" if method in case.counts else "float32")
        for step in step_kinds(13):
            assert numpy(function(step)) == numpy(expected), repr(step)
        square = numpy(function(np.full((2, 3), 13)))
        np.testing.assert_array_equal(square, np.full((2, 3), numpy(expected)))


@EACH
def test_compiled(case):
    steps = np.array([*range(30), 10**6, LAST - 1, LAST], dtype="int32")
    methods = [getattr(case.schedule, method) for method in ("multiplier", *case.counts)]
    eta, *counts = (numpy(method(steps)) for method in methods)
    for function in compiled(lambda step: [method(step) for method in methods]):
        rows = [[numpy(x) for x in function(ops.convert_to_tensor(step))] for step in steps]
        found, *found_counts = np.transpose(rows).astype("float64")
        np.testing.assert_allclose(found, eta, rtol=1e-6, atol=1e-12)
        ends = np.isin(eta, np.float32([1, case.schedule.eta_min]))
        np.testing.assert_array_equal(found[ends], eta[ends])
        np.testing.assert_array_equal(found_counts, counts)


@EACH
@pytest.mark.parametrize("dtype", ["bfloat16", "float64", *["float64 of x64"] * (BACKEND == "jax")])
def test_is_never_computed_below_float32(case, dtype):
    dtype, _, x64 = dtype.partition(" of ")
    schedule, steps = case.schedule, np.array([*range(40), 2**24 + 1, LAST - 1, LAST])
    counts = [numpy(getattr(schedule, count)(steps)) for count in case.counts]
    with floatx(dtype, bool(x64)):
        eta, rate = numpy(schedule.multiplier(steps)), numpy(schedule(steps))
        for count, expected in zip(case.counts, counts, strict=True):
            actual = getattr(schedule, count)(steps)
            assert keras.backend.standardize_dtype(actual.dtype) == "int32"
            np.testing.assert_array_equal(numpy(actual), expected)
    wide = dtype == "float64" and (BACKEND != "jax" or x64)
    assert eta.dtype == rate.dtype == ("float64" if wide else "float32")

    expected = np.array([case.at(int(step)).multiplier for step in steps])
    # Keras has no float64 sine on JAX.
    sine = getattr(schedule, "shape", "cosine") == "cosine"
    tolerance = {"rtol": 1e-13 if wide and not (sine and BACKEND == "jax") else 1e-6}
    # 1e-9 of a huge cycle: the oracle's own 1 + cos has no more digits
    tolerance["atol"] = 1e-15 if getattr(schedule, "t_mul", 1) > 1 else 1e-16
    np.testing.assert_allclose(eta, expected, **tolerance)
    np.testing.assert_allclose(rate, 0.1 * expected, **tolerance)


NO_STEPS = [-1, 2**31 - 1, 10**30, 1.5, NAN, INF, True, np.array([0, -1]), np.float32(2**31)]


@BOTH
def test_refuses_a_step_that_is_none(case):
    words = r"`step` must be an integer from 0 to 2\*\*31 - 2.*Rec"
    for step in NO_STEPS:
        for method in (case.schedule, case.schedule.multiplier, case.schedule.position):
            with pytest.raises(ValueError, match=words):
                method(step)


@BOTH
def test_stock_optimizers_follow_it_and_save_it(case, tmp_path):
    rates, variable = rates_of_stock(keras.optimizers.SGD, case.schedule, 12)
    np.testing.assert_allclose(rates, numpy(case.schedule(np.arange(12))))
    np.testing.assert_allclose(numpy(variable.value), -sum(rates) * np.ones(2), rtol=1e-4)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(case.schedule), "mse", run_eagerly=BACKEND == "tensorflow")
    fit = {"x": np.ones((16, 3)), "y": np.ones((16, 1)), "batch_size": 4, "verbose": 0}
    model.fit(**fit)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 4
    assert float(again.optimizer.learning_rate) == float(case.schedule(4))
    again.fit(**fit)
    assert float(again.optimizer.learning_rate) == float(case.schedule(8))


# --- arguments ----------------------------------------------------------------------------------

COSINE = {"initial_learning_rate": 0.1, "first_decay_steps": 7, "t_mul": 1.5, "m_mul": 0.9}
COSINE |= {"eta_min": 0.01, "eta_max": 2.0, "warmup_steps": 3}
COSINE |= {"endpoint": False, "autorestart": True, "name": "warm"}
STABLE = {"initial_learning_rate": 0.1, "stable_steps": 7, "decay_steps": 9, "warmup_steps": 3}
STABLE |= {"shape": "cosine", "eta_min": 0.01, "name": "wsd"}
FULL = [
    (CosineWarmRestarts, COSINE),
    (WarmupStableDecay, STABLE),
    (WarmupStableDecay, STABLE | {"stable_steps": None}),
]


@pytest.mark.parametrize(("cls", "full"), FULL)
def test_config_is_every_argument_and_a_fixed_point(cls, full):
    schedule = cls(**full)
    assert schedule.get_config() == full
    assert {x: value for x, value in vars(schedule).items() if not x.startswith("_")} == full

    serialized = keras.saving.serialize_keras_object(schedule)
    assert serialized["registered_name"] == f"keras_decoupled>{cls.__name__}"
    expected = numpy(schedule(np.arange(100)))
    for other in (
        keras.saving.deserialize_keras_object(json.loads(json.dumps(serialized))),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ):
        assert type(other) is cls
        assert other.get_config() == full
        np.testing.assert_array_equal(numpy(other(np.arange(100))), expected)


@pytest.mark.parametrize(("cls", "full"), FULL)
def test_numbers_of_any_kind_are_stored_as_pythons(cls, full):
    numbers = {x: value for x, value in full.items() if not isinstance(value, str | None)}
    given = full | {x: np.asarray(value)[()] for x, value in numbers.items()}
    found = cls(**given | {"warmup_steps": 3.0}).get_config()
    assert found == full
    assert [*map(type, found.values())] == [*map(type, full.values())]


REAL, TOO_LONG = "a finite number ≥ 0", r"at most 2\*\*31 - 1, as updates are counted in int32"
ANY_SHAPE = "one of '1-sqrt', 'linear', 'cosine'"
WRONG = {  # argument: rule, values of a wrong range, values of a wrong type
    CosineWarmRestarts: [
        ("initial_learning_rate", REAL, [-1, NAN, INF, 10**400], ["0.1", True, None]),
        ("warmup_steps", "an integer ≥ 0", [-1, 0.5], [False, None]),
        ("warmup_steps", TOO_LONG, [2**31], []),
        ("name", "a string or None", [], [3]),
        ("first_decay_steps", "an integer ≥ 1", [0, 2.5, INF, NAN, 10**400], ["10", True]),
        ("first_decay_steps", TOO_LONG, [2**31, 10**12], []),
        ("t_mul", "a finite number ≥ 1", [0.99, INF], [None]),
        ("m_mul", REAL, [-0.1, NAN], [[1.0]]),
        ("eta_min", REAL, [-1], [np.bool_(False)]),
        ("eta_max", REAL, [-1, INF], [1j]),
        ("endpoint", "True or False", [], [1]),
        ("autorestart", "True or False", [], [None]),
    ],
    WarmupStableDecay: [
        ("stable_steps", "an integer ≥ 0", [-1, 1.5], [True, "10"]),
        ("stable_steps", TOO_LONG, [2**31], []),
        ("decay_steps", "an integer ≥ 2", [1, 2.5, NAN], [None]),
        ("decay_steps", TOO_LONG, [2**31], []),
        ("eta_min", "a finite number ≥ 0 and < 1", [-0.1, 1, NAN], ["0"]),
        ("shape", ANY_SHAPE, ["sqrt"], [None, ["linear"]]),
    ],
}


@pytest.mark.parametrize(
    ("cls", "argument", "rule", "value", "error"),
    [
        (cls, argument, rule, value, error)
        for cls, rows in WRONG.items()
        for argument, rule, ranges, types in rows
        for error, values in ((ValueError, ranges), (TypeError, types))
        for value in values
    ],
)
def test_errors_name_the_argument_the_rule_and_the_cure(cls, argument, rule, value, error):
    received = re.escape(f"Received: {argument}={value!r}")
    kind = f" of type {type(value).__name__}" if error is TypeError else ""
    with pytest.raises(error, match=rf"^`{argument}` must be {rule}\. {received}{kind}\. \S+"):
        cls(**{**dict(FULL[:2])[cls], argument: value})
