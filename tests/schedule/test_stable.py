"""WarmupStableDecay against float64 arithmetic on Python's integers, at every boundary up to 2³¹."""

import copy
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

import oracle
from keras_decoupled import WarmupStableDecay
from steps import LAST, at, compiled, floatx, numpy, rates_of_stock, step_kinds

SHAPES = ("1-sqrt", "linear", "cosine")

# Keras' Variable.__array__ lacks NumPy 2's `copy`; as in pyproject.toml, but also under `-W error`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def make(stable=5, decay=10, warmup=0, **arguments):
    return WarmupStableDecay(0.01, stable, decay, warmup, **arguments)


def expected_eta(steps, **arguments):
    return np.array([oracle.stable(int(step), **arguments).multiplier for step in steps])


# --- values -------------------------------------------------------------------------------------


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
    assert make().get_config()["shape"] == "1-sqrt"


ARGUMENTS = st.fixed_dictionaries(
    {
        "stable": st.none() | st.integers(0, 300),
        "decay": st.integers(2, 20) | st.integers(2, 800),
        "warmup": st.just(0) | st.integers(0, 300),
        "shape": st.sampled_from(SHAPES),
        "eta_min": st.just(0.0) | st.floats(0.0, 0.9),
    }
)


@settings(max_examples=50)
@given(ARGUMENTS)
def test_agrees_with_the_oracle_at_every_step(arguments):
    schedule = make(**arguments)
    steps = np.arange(1500)
    eta = at(schedule.multiplier, steps)
    expected = expected_eta(steps, **arguments)
    np.testing.assert_allclose(eta, expected, rtol=2e-6, atol=1e-15)
    # XLA and TensorFlow flush float32's subnormal numbers to 0.
    np.testing.assert_allclose(at(schedule, steps), 0.01 * eta, rtol=3e-7, atol=1e-37)

    # exactly 1 in the stable part, exactly eta_min at the end, between them elsewhere
    warmup, low = arguments["warmup"], np.float32(arguments["eta_min"])
    start = LAST if arguments["stable"] is None else warmup + arguments["stable"]
    assert set(eta[warmup : start + 1]) <= {1.0}
    assert set(eta[start + arguments["decay"] - 1 :]) <= {low}
    assert np.all((eta[:warmup] > 0) & (eta[:warmup] < 1))
    assert np.all((eta[warmup:] >= low) & (eta[warmup:] <= 1))
    # The formula's own roundings may rise by one: XLA divides by a product.
    assert np.all(np.diff(eta[warmup:]) <= 1.2e-7)
    np.testing.assert_array_equal(at(schedule.position, steps), np.maximum(steps - warmup, 0))


@settings(max_examples=40)
@given(
    ARGUMENTS,
    st.integers(0, LAST),
    st.integers(0, LAST),
    st.integers(2, 2**32) | st.integers(2, 10**12),
)
def test_agrees_with_the_oracle_up_to_2_31(arguments, warmup, stable, decay):
    arguments |= {"warmup": warmup, "stable": stable, "decay": decay}
    start, end = warmup + stable, warmup + stable + decay - 1
    steps = [x + d for x in (0, warmup, start, (start + end) // 2, end, LAST) for d in (-1, 0, 1)]
    steps = np.array([step for step in steps if 0 <= step <= LAST])
    eta = at(make(**arguments).multiplier, steps)
    # atol: the oracle's own 1 − √x and 1 + cos have no more digits
    np.testing.assert_allclose(eta, expected_eta(steps, **arguments), rtol=2e-6, atol=1e-15)
    assert set(eta[(steps >= warmup) & (steps <= start)]) <= {1.0}
    assert set(eta[steps >= end]) <= {np.float32(arguments["eta_min"])}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("span", [100, 10_001, 3_000_000, 2**30, 2**31 - 2, 2**31 + 5, 10**10])
def test_keeps_its_digits_at_the_end_of_a_long_decay(span, shape):
    """Relative to an η that falls to 1e-19: 1 − x in float32 has no digit left there."""
    schedule = WarmupStableDecay(1.0, 0, span + 1, shape=shape)
    steps = [s for s in (1, span // 3, span // 2, span - 99, span - 2, span - 1, LAST) if s <= LAST]
    left = np.array([(span - s) / span for s in steps])
    expected = {
        "1-sqrt": left / (1 + np.sqrt(1 - left)),
        "linear": left,
        "cosine": np.sin(np.pi / 2 * left) ** 2,
    }[shape]
    expected[np.array(steps) >= span] = 0
    np.testing.assert_allclose(numpy(schedule.multiplier(np.array(steps))), expected, rtol=2e-6)


@pytest.mark.parametrize("steps", [2**31 - 1, 10**12, 10**300])
def test_parts_of_any_length(steps):
    assert float(make(steps, 10).multiplier(LAST)) == 1
    assert float(make(0, steps, shape="linear").multiplier(10**9)) == pytest.approx(
        1 - 10**9 / (steps - 1), rel=1e-6
    )
    assert float(make(5, 10, steps).multiplier(10**9)) == pytest.approx(
        10**9 / (steps + 1), rel=1e-6, abs=1e-37
    )


def test_without_stable_steps_it_never_ends():
    schedule = make(None, 10, 3)
    assert numpy(schedule.multiplier(np.array([0, 1, 2, 3, 10**6, LAST]))).tolist() == [
        *(0.25, 0.5, 0.75, 1, 1, 1)
    ]


def test_another_start_counts_if_it_comes_earlier():
    schedule = make(20, 5, 3, shape="linear")
    for start in (9, ops.convert_to_tensor(9), ops.convert_to_tensor(np.array(9))):
        np.testing.assert_allclose(
            numpy(schedule.starting(start).multiplier(np.arange(8, 15))),
            [1, 1, 0.75, 0.5, 0.25, 0, 0],
        )
        later = schedule.starting(start + 15)
        assert float(later.multiplier(24)) == 0.75
    assert float(schedule.multiplier(10)) == 1  # it is another one


# --- steps, dtypes, compilers -------------------------------------------------------------------

SCHEDULES = {
    **{shape: {"shape": shape} for shape in SHAPES},
    "warmed up": {"warmup": 4, "eta_min": 0.1},
    "endless": {"stable": None, "warmup": 4},
    "long": {"decay": 10**10},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_kind_of_step(name):
    schedule = make(**SCHEDULES[name])
    for method in ("__call__", "multiplier", "position"):
        expected = getattr(schedule, method)(9)
        assert ops.is_tensor(expected)
        assert tuple(expected.shape) == ()
        dtype = keras.backend.standardize_dtype(expected.dtype)
        assert dtype == ("int32" if method == "position" else "float32")
        for step in step_kinds(9) if name == "warmed up" else ():
            assert numpy(getattr(schedule, method)(step)) == numpy(expected), repr(step)
        square = getattr(schedule, method)(np.full((2, 3), 9))
        np.testing.assert_array_equal(numpy(square), np.full((2, 3), numpy(expected)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_compiled(name):
    schedule = make(**SCHEDULES[name])
    steps = np.array([*range(25), 10**6, LAST - 1, LAST], dtype="int32")
    expected = numpy(schedule.multiplier(steps))
    for function in compiled(lambda step: (schedule.multiplier(step), schedule.position(step))):
        eta = []
        for step in steps:
            now, position = map(numpy, function(ops.convert_to_tensor(step)))
            eta.append(now)
            assert position == max(step - schedule.warmup_steps, 0)
        np.testing.assert_allclose(eta, expected, rtol=1e-6)
        ends = np.isin(expected, [1, np.float32(schedule.eta_min)])
        np.testing.assert_array_equal(np.array(eta)[ends], expected[ends])


@pytest.mark.parametrize("name", [*SHAPES, "warmed up"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "float64 of x64"])
def test_is_never_computed_below_float32(name, dtype):
    dtype, _, x64 = dtype.partition(" of ")
    schedule = make(**SCHEDULES[name])
    steps = np.array([*range(30), 2**24 + 1, LAST - 1, LAST])
    with floatx(dtype, bool(x64)):
        eta, rate = numpy(schedule.multiplier(steps)), numpy(schedule(steps))
        position = schedule.position(steps)
        assert keras.backend.standardize_dtype(position.dtype) == "int32"
    wide = dtype == "float64" and (keras.backend.backend() != "jax" or x64)
    assert eta.dtype == rate.dtype == ("float64" if wide else "float32")
    expected = expected_eta(steps, **{"stable": 5, "decay": 10, **SCHEDULES[name]})
    # Keras has no float64 sine on JAX.
    exact = wide and not (keras.backend.backend() == "jax" and name == "cosine")
    tolerance = {"rtol": 1e-13, "atol": 1e-16} if exact else {"rtol": 1e-6, "atol": 1e-16}
    np.testing.assert_allclose(eta, expected, **tolerance)
    np.testing.assert_allclose(rate, 0.01 * expected, **tolerance)


@pytest.mark.parametrize("step", [-1, 2**31 - 1, 1.5, math.nan, True, np.array([0, -1])])
def test_refuses_a_step_that_is_none(step):
    for method in (make(), make().multiplier, make().position):
        with pytest.raises(ValueError, match=r"`step` must be an integer from 0 to .*Receiv"):
            method(step)


def test_stock_optimizers_follow_it():
    for make_optimizer in (keras.optimizers.SGD, keras.optimizers.Adam):
        schedule = make(2, 4, 2)
        rates, _ = rates_of_stock(make_optimizer, schedule, 9)
        np.testing.assert_allclose(rates, numpy(schedule(np.arange(9))))
    assert rates[-1] == 0


# --- saving -------------------------------------------------------------------------------------

FULL = {
    "initial_learning_rate": 0.1,
    "stable_steps": 7,
    "decay_steps": 9,
    "warmup_steps": 3,
    "shape": "cosine",
    "eta_min": 0.01,
    "name": "wsd",
}


@pytest.mark.parametrize("stable_steps", [7, None])
def test_config_is_every_argument_and_a_fixed_point(stable_steps):
    full = FULL | {"stable_steps": stable_steps}
    schedule = WarmupStableDecay(**full)
    assert schedule.get_config() == full
    public = {name for name in vars(schedule) if not name.startswith("_")}
    assert public == set(full)

    serialized = keras.saving.serialize_keras_object(schedule)
    assert serialized["registered_name"] == "keras_decoupled>WarmupStableDecay"
    expected = numpy(schedule(np.arange(30)))
    copies = [
        keras.saving.deserialize_keras_object(json.loads(json.dumps(serialized))),
        keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule)),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ]
    for other in copies:
        assert isinstance(other, WarmupStableDecay)
        assert other.get_config() == full
        np.testing.assert_array_equal(numpy(other(np.arange(30))), expected)


def test_numbers_of_any_kind_are_stored_as_pythons():
    config = WarmupStableDecay(
        np.float32(0.5), np.int64(3), 10.0, 2.0, "linear", np.float64(0.25)
    ).get_config()
    assert json.loads(json.dumps(config)) == {
        "initial_learning_rate": 0.5,
        "stable_steps": 3,
        "decay_steps": 10,
        "warmup_steps": 2,
        "shape": "linear",
        "eta_min": 0.25,
        "name": None,
    }


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value", "error", "rule"),
    [
        ("initial_learning_rate", -1, ValueError, "a finite number ≥ 0"),
        ("initial_learning_rate", math.inf, ValueError, "a finite number ≥ 0"),
        ("initial_learning_rate", None, TypeError, "a finite number ≥ 0"),
        ("stable_steps", -1, ValueError, "an integer ≥ 0"),
        ("stable_steps", 1.5, ValueError, "an integer ≥ 0"),
        ("stable_steps", True, TypeError, "an integer ≥ 0"),
        ("stable_steps", "10", TypeError, "an integer ≥ 0"),
        ("decay_steps", 1, ValueError, "an integer ≥ 2"),
        ("decay_steps", 2.5, ValueError, "an integer ≥ 2"),
        ("decay_steps", math.nan, ValueError, "an integer ≥ 2"),
        ("decay_steps", None, TypeError, "an integer ≥ 2"),
        ("warmup_steps", -1, ValueError, "an integer ≥ 0"),
        ("warmup_steps", None, TypeError, "an integer ≥ 0"),
        ("eta_min", -0.1, ValueError, "a finite number ≥ 0 and < 1"),
        ("eta_min", 1, ValueError, "a finite number ≥ 0 and < 1"),
        ("eta_min", math.nan, ValueError, "a finite number ≥ 0 and < 1"),
        ("eta_min", "0", TypeError, "a finite number ≥ 0 and < 1"),
        ("shape", "sqrt", ValueError, "one of '1-sqrt', 'linear', 'cosine'"),
        ("shape", None, TypeError, "one of '1-sqrt', 'linear', 'cosine'"),
        ("shape", ["linear"], TypeError, "one of '1-sqrt', 'linear', 'cosine'"),
        ("name", 3, TypeError, "a string or None"),
    ],
)
def test_errors_name_the_argument_the_rule_and_the_cure(argument, value, error, rule):
    received = re.escape(f"Received: {argument}={value!r}")
    kind = f" of type {type(value).__name__}" if error is TypeError else ""
    with pytest.raises(error, match=rf"^`{argument}` must be {rule}. {received}{kind}\. \S+"):
        WarmupStableDecay(
            **{
                "initial_learning_rate": 0.1,
                "stable_steps": 10,
                "decay_steps": 10,
                argument: value,
            }
        )
