"""Gradients, rates and variables that nobody means: not finite, of another shape or type, too many, twice, unknown.

What comes out is an error that names the variable, or what stock Keras does; never quietly something else.
"""

import contextlib

import keras
import numpy as np
import pytest

from cases import ALPHA, BACKEND, COMPILED, ONE_OF_EACH, OPTIMIZERS, eager, make_variable, numpy
from effort import FULL, effort
from oracle import At
from training import DECAY, linear, make, oracle_of, state, tensors, values

NAN, INF = float("nan"), float("inf")
RUNNERS = {"eager": eager, **COMPILED}
if not FULL:  # without XLA on TensorFlow, where compiling takes longest
    RUNNERS = dict(list(RUNNERS.items())[:2])
BAD = effort([NAN, INF], [NAN, INF, -INF])
SOME = effort(["adamw", "nadamw", "sgdw"], list(OPTIMIZERS))
pytestmark = pytest.mark.reliability
# What they compute without decay, in stock Keras.
NADAM = {"beta_1": 0.8, "beta_2": 0.99, "epsilon": 0.01}
STOCK = {
    "adamw": lambda **more: keras.optimizers.Adam(ALPHA, **more),
    "nadamw-keras": lambda **more: keras.optimizers.Nadam(ALPHA, **NADAM, **more),
    "sgdw-momentum": lambda **more: keras.optimizers.SGD(ALPHA, momentum=0.9, **more),
}
G = np.array([0.5, -1.0, 0.25], "float32")


def pair():
    value = np.array([1.0, -2.0, 3.0])
    return [make_variable("a/w", value), make_variable("b/w", -value)]


@contextlib.contextmanager
def refused(optimizer, variables, match, error=ValueError):
    """The error comes, and no number has changed that an update may change."""
    weights, slots = values(variables), state(optimizer)
    with pytest.raises(error, match=match):
        yield
    for variable, old in zip(variables, weights, strict=True):
        np.testing.assert_array_equal(numpy(variable), old, err_msg=variable.path)
    if slots:  # else it was not built, and may be by now
        assert state(optimizer).keys() == slots.keys()
        for path, value in state(optimizer).items():
            np.testing.assert_array_equal(value, slots[path], err_msg=path)


def assert_follows(variables, run, rows=slice(None)):
    """The first of the oracle's weights are these."""
    for variable, expected in zip(variables, run.values, strict=False):
        np.testing.assert_allclose(numpy(variable)[rows], expected[rows], atol=2e-6)


# --- not finite ---


def assert_as_in_keras(name, runner, updates, **clipping):
    ours, theirs = pair(), pair()
    for optimizer, variables in [
        (make(name, weight_decay=0, **clipping), ours),
        (STOCK[name](**clipping), theirs),
    ]:
        step = RUNNERS[runner](optimizer, variables)
        for grads in updates:
            step(grads)
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        np.testing.assert_allclose(a[np.isfinite(b)], b[np.isfinite(b)], atol=2e-6)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", STOCK)
def test_one_bad_element_spoils_itself_alone_as_in_keras(name, bad, runner):
    spoilt = [G.copy(), G.copy()]
    spoilt[1][1] = bad
    updates = [[G, -G], spoilt, [G, G]]
    assert_as_in_keras(name, runner, updates)
    decayed, run = pair(), oracle_of(name, values(pair()))
    step = RUNNERS[runner](make(name), decayed)
    for grads in updates:
        step(grads)
        run.step([np.where(np.isfinite(g), g, 0.0) for g in grads])
    assert [np.isfinite(v).tolist() for v in values(decayed)] == [[True] * 3, [True, False, True]]
    assert_follows(decayed, run, rows=[0, 2])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize(
    "clipping", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 0.5}], ids=str
)
@pytest.mark.parametrize("name", STOCK)
def test_clipping_spreads_what_is_not_finite_as_in_keras(name, clipping, bad, runner):
    spoilt = np.array([0.5, bad, 0.25], "float32")
    assert_as_in_keras(name, runner, [[G, G], [G, spoilt], [G, -G]], **clipping)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", SOME)
def test_a_frozen_variable_takes_no_bad_gradient(name, runner):
    variables = pair()
    before = numpy(variables[1])
    step = RUNNERS[runner](make(name, lr_multipliers={"b": 0}), variables)
    run = oracle_of(name, values(variables[:1]))
    for _ in range(2):
        step([G, np.full(3, NAN, "float32")])
        run.step([G])
    np.testing.assert_array_equal(numpy(variables[1]), before)
    assert_follows(variables[:1], run)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
def test_a_low_precision_weight_does_not_hide_it(name, runner, dtype):
    """The finer copy of such a weight must not bring an old value back."""
    variable = make_variable("w", np.array([1.0, -2.0, 3.0], "float32"), dtype)
    step = RUNNERS[runner](make(name), [variable])
    for g in ([0.5, 0.5, 0.5], [0.5, NAN, 0.5], [0.5, 0.5, 0.5]):
        step(tensors([np.array(g)], dtype))
    assert np.isfinite(numpy(variable)).tolist() == [True, False, True]


# --- rates that turn bad on the way; setting a bad one by hand is refused, see test_calls ---

TURN = 2  # the update from which on they do


class Turns(keras.optimizers.schedules.LearningRateSchedule):
    """`first` for a while, then `then`."""

    def __init__(self, first, then):
        self.first, self.then = first, then

    def __call__(self, step):
        return keras.ops.where(keras.ops.cast(step, "int32") < TURN, self.first, self.then)

    def get_config(self):
        return {"first": self.first, "then": self.then}


@pytest.mark.parametrize("runner", [*RUNNERS, "callable"])
@pytest.mark.parametrize("rate", [*BAD, -0.02, -1e-4])
@pytest.mark.parametrize("name", SOME)
def test_a_rate_that_turns_bad(name, rate, runner):
    """η is the rate over α on every path. One below zero goes uphill, as in Keras: the decay has its sign, too."""
    now = {"rate": ALPHA}
    rates = (lambda: now["rate"]) if runner == "callable" else Turns(ALPHA, rate)
    variables = pair()
    optimizer = make(name, learning_rate=rates, base_learning_rate=ALPHA, weight_decay=0.5)
    schedule = lambda s: At(1.0 if s < TURN else rate / ALPHA, s, None)  # noqa: E731
    run = oracle_of(name, values(variables), l2=0.5, schedule=schedule)
    step = RUNNERS.get(runner, eager)(optimizer, variables)
    for k in range(TURN + 2):
        now["rate"] = ALPHA if k < TURN else rate
        step([G, -G])
        if k < TURN or np.isfinite(rate):
            run.step([G, -G])
            assert_follows(variables, run)
        else:
            assert not any(np.isfinite(v).any() for v in values(variables))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bad", [*BAD, -0.25])
@pytest.mark.parametrize("name", SOME)
def test_a_decay_schedule_that_turns_bad_spoils_the_decayed_alone(name, bad, runner):
    variables = pair()
    optimizer = make(name, weight_decay=0, weight_decays={"b": Turns(0.1, bad)})
    step = RUNNERS[runner](optimizer, variables)
    run = oracle_of(name, values(variables), l2=0.0)
    run.decays = [(0.0, 0.0), (0.0, lambda k: 0.1 if k < TURN else bad)]
    for _ in range(TURN + 1):
        step([G, -G])
        with np.errstate(all="ignore"):
            run.step([G, -G])
    assert_follows(variables[: 1 + np.isfinite(bad)], run)
    assert np.isfinite(bad) or not np.isfinite(numpy(variables[1])).any()


# --- sizes ---

SIZES = [(0,), (0, 3), (), (2,), (1,)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "arguments", [{}, {"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"use_ema": True}], ids=str
)
@pytest.mark.parametrize("name", effort(["adamw-amsgrad", "sgdw"], list(OPTIMIZERS)))
def test_variables_without_elements_and_without_dimensions(name, arguments, runner, dtype):
    rng = np.random.default_rng(0)
    start = [rng.normal(size=shape).astype("float32") for shape in SIZES]
    variables = [
        make_variable(f"{x}/w", value, dtype) for x, value in zip("abcde", start, strict=True)
    ]
    optimizer = make(name, weight_decays={"c": (0.01, 0.02), "b": (0.1, 0.0)}, **arguments)
    run = oracle_of(name, values(variables))
    run.decays[1:3] = [(0.1, 0.0), (0.01, 0.02)]
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(3):
        grads = tensors([rng.normal(size=shape).astype("float32") for shape in SIZES], dtype)
        step(grads)
        grads = values(grads)
        norms = np.array([np.linalg.norm(g) for g in grads])
        if "global_clipnorm" in arguments:
            norms[:] = np.linalg.norm(norms)
        clip = np.minimum(1, 0.1 / np.maximum(norms, 1e-9)) if "clip" in str(arguments) else [1] * 5
        run.step([g * c for g, c in zip(grads, clip, strict=True)])
    for variable, shape, expected in zip(variables, SIZES, run.values, strict=True):
        assert numpy(variable).shape == shape
        rtol = 1e-6 if dtype == "float32" else 2.0**-8
        np.testing.assert_allclose(numpy(variable), expected, rtol=rtol, atol=2e-5)
    store, again = {}, make(name, weight_decays={"c": 0.1}, **arguments)
    optimizer.save_own_variables(store)
    again.build(variables)
    again.load_own_variables(store)
    for a, b in zip(optimizer.variables, again.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", SOME)
def test_nothing_but_a_variable_without_elements(name, runner):
    variable = make_variable("a/w", np.zeros((3, 0), "float32"))
    optimizer = make(name)
    RUNNERS[runner](optimizer, [variable])([np.zeros((3, 0), "float32")])
    assert numpy(variable).shape == (3, 0)
    assert int(numpy(optimizer.iterations)) == 1


# --- gradients of another shape ---

# Some would be broadcast: a gradient for the mean of a variable, in effect. Stock Keras does so on some backends.
SHAPES = [
    *(((3,), other) for other in [(1,), (), (1, 3), (2, 3), (2,), (0,)]),
    *(((2, 3), other) for other in [(3,), (2, 1), (3, 2), (6,)]),
    *[((1,), ()), ((), (1,)), ((1,), (3,)), ((0,), (1,))],
]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("shape", "other"), SHAPES, ids=str)
@pytest.mark.parametrize("name", effort(["adamw", "sgdw"], list(OPTIMIZERS)))
def test_a_gradient_of_another_shape_is_refused_by_name(name, shape, other, runner):
    variables = [make_variable("a/w", np.ones(2)), make_variable("b/w", np.ones(shape))]
    optimizer = make(name)
    step = RUNNERS[runner](optimizer, variables)
    optimizer.build(variables)
    with refused(optimizer, variables, "b/w"):
        step([np.ones(2, "float32"), np.ones(other, "float32")])


ARGUMENTS = [{}, {"gradient_accumulation_steps": 2}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}]
ARGUMENTS += [{"use_ema": True}, {"lr_multipliers": {"w": 0}}]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
@pytest.mark.parametrize("other", [(1,), (2,), ()])
@pytest.mark.parametrize("built", [True, False])
def test_such_a_gradient_is_refused_before_anything_else_is_done(built, other, arguments):
    """Also in the update that builds."""
    variables, optimizer = [make_variable("a/w", np.ones(3))], make("adamw", **arguments)
    if built:
        optimizer.build(variables)
    with refused(optimizer, variables, "a/w"):
        optimizer.apply(tensors([np.ones(other)]), variables)


# --- gradients of another type; floats are in test_precision.py ---


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_whole_numbers_are_gradients(name, dtype, runner):
    variables, run = pair(), oracle_of(name, values(pair()))
    step = RUNNERS[runner](make(name), variables)
    for _ in range(3):
        g = np.array([1, 0, 1]).astype(dtype)
        step([g, g])
        run.step([g.astype("float64")] * 2)
    assert_follows(variables, run)


@pytest.mark.parametrize("how", [list, tuple, np.array], ids=["list", "tuple", "array"])
@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_lists_and_arrays_are_gradients(name, how):
    variables, run = pair(), oracle_of(name, values(pair()))
    optimizer = make(name)
    for _ in range(2):
        optimizer.apply([how([0.5, -1.0, 0.25])] * 2, variables)
        run.step([G, G])
    assert_follows(variables, run)


REFUSALS = (ValueError, TypeError)
if BACKEND == "tensorflow":
    import tensorflow as tf

    REFUSALS += (tf.errors.OpError,)


@pytest.mark.parametrize("bad", ["x", list("xyz"), {"a": 1}, object()], ids=list("abcd"))
def test_what_is_no_gradient_is_an_error(bad):
    variables, optimizer = pair(), make("adamw")
    optimizer.build(variables)
    with refused(optimizer, variables, None, REFUSALS):
        optimizer.apply([tensors([G])[0], bad], variables)


# --- lists of another length ---


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("last", ["a gradient", None])
@pytest.mark.parametrize("given", ["built", "not built", "bare"])
@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_fewer_or_more_gradients_than_variables(name, given, last, count):
    """Stock Keras drops what is left over and says nothing."""
    variables, optimizer = pair(), make(name)
    if given != "not built":
        optimizer.build(variables)
    grads = tensors([G] * (count - 1) + [G if last else None])
    with refused(optimizer, variables, rf"{count} gradients.*2 (trainable )?variables"):
        optimizer.apply(grads, *[variables] * (given != "bare"))


def test_an_empty_list_does_nothing():
    for nothing in (None, []):
        optimizer = make("adamw")
        optimizer.apply([], nothing)
        assert not optimizer.built
        assert int(numpy(optimizer.iterations)) == 0
    variables = pair()
    optimizer.build(variables)
    before = values(variables), state(optimizer)
    optimizer.apply([])
    optimizer.apply([], [])
    np.testing.assert_equal((values(variables), state(optimizer)), before)


# --- variables: in another order, twice, no variables, of another model ---


@pytest.mark.parametrize("name", SOME)
def test_variables_in_another_order(name):
    variables, optimizer = pair(), make(name, weight_decays={"a": 0.2})
    run = oracle_of(name, values(variables))
    run.decays[0] = (0.0, 0.2)
    optimizer.build(variables)
    for k in range(4):
        order = [1, 0] if k % 2 else [0, 1]
        grads = [G, -2 * G]
        optimizer.apply(tensors([grads[i] for i in order]), [variables[i] for i in order])
        run.step(grads)
    assert_follows(variables, run)


@pytest.mark.parametrize("key", ["a/w", "w"])
@pytest.mark.parametrize("name", ["adamw", "sgdw-momentum"])
def test_a_variable_given_twice_to_build_is_refused_by_name(name, key):
    """Which of its two rows and slots would be meant? Stock Keras makes both and uses the last."""
    twice, optimizer = pair()[:1] * 2, make(name, weight_decays={key: 0.1})
    with refused(optimizer, twice, "a/w"):
        optimizer.build(twice)
    assert not optimizer.built
    with refused(optimizer, twice, "a/w"):
        optimizer.apply(tensors([G, G]), twice)


if BACKEND != "torch":  # stock Keras loses the second there; ours: test_torch_tensors.py

    @pytest.mark.parametrize("name", STOCK)
    def test_a_variable_given_twice_to_apply(name):
        """As in stock Keras, one step after the other within one update."""
        ours, theirs = pair(), pair()
        for optimizer, variables in [(make(name, weight_decay=0), ours), (STOCK[name](), theirs)]:
            optimizer.build(variables)
            optimizer.apply(tensors([G, -3 * G]), [variables[0]] * 2)
        np.testing.assert_allclose(values(ours), values(theirs), atol=2e-6)


def test_an_optimizer_that_goes_on_with_another_model():
    """After an update it has to be said. On JAX, values come without their names."""
    optimizer, first = make("adamw"), linear()
    first.compile(optimizer, loss="mse")
    first.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    second = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    second.compile(optimizer, loss="mse")
    before = values(second.trainable_variables)
    if BACKEND == "jax":  # an error in `fit` would leave both without values: test_told.py has it
        weights = [v.value for v in second.trainable_variables]
        with pytest.raises(
            ValueError, match=r"other variables than the optimizer was built on.*optimizer\.build"
        ):
            optimizer.stateless_apply([v.value for v in optimizer.variables], weights, weights)
    else:
        with pytest.raises(ValueError, match=r"new optimizer for each model.*optimizer\.build"):
            second.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    optimizer.build(second.trainable_variables)
    second.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    assert not any(map(np.array_equal, before, values(second.trainable_variables)))
    decays = optimizer.weight_decays
    assert all(decays[v.path] == (0.0, DECAY) for v in second.trainable_variables)


if BACKEND != "tensorflow":  # Keras has no stateless_apply there

    def test_weights_of_another_shape_in_stateless_apply():
        """They come without their names; a swap of two that have one shape cannot be seen."""
        variables = [make_variable("a/w", np.ones(3)), make_variable("b/w", np.ones((2, 3)))]
        optimizer = make("adamw")
        optimizer.build(variables)
        state_now = [v.value for v in optimizer.variables]
        weights = [v.value for v in variables]
        with pytest.raises(ValueError, match="other variables"):
            optimizer.stateless_apply(state_now, weights[::-1], weights[::-1])
        with pytest.raises(ValueError, match=r"a/w|b/w"):
            optimizer.stateless_apply(state_now, weights[::-1], weights)
