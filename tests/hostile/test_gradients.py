"""Gradients, rates and variables that nobody means: not finite, of another shape, too many, twice, unknown.

What comes out is an error that names the variable, or what stock Keras does; never quietly something else.
"""

import contextlib

import keras
import numpy as np
import pytest

from cases import ALPHA, BACKEND, COMPILED, ONE_OF_EACH, RUNNERS, eager, make_variable, numpy
from oracle import At
from training import make, oracle_of, state, tensors, values

NAN, INF = float("nan"), float("inf")
pytestmark = pytest.mark.reliability
# A way to compile, with TensorFlow's ops where it has them; and the one in which XLA has a part.
FIRST, LAST = next(iter(COMPILED)), list(COMPILED)[-1]
every_runner = pytest.mark.parametrize("runner", RUNNERS)
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
        np.testing.assert_equal(state(optimizer), slots)


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


@pytest.mark.parametrize(
    ("name", "runner"), dict.fromkeys([*((name, FIRST) for name in STOCK), ("adamw", LAST)])
)
def test_one_bad_element_spoils_itself_alone_as_in_keras(name, runner):
    spoilt = [np.array([INF, -1.0, -INF], "float32"), np.array([0.5, NAN, 0.25], "float32")]
    updates = [[G, -G], spoilt, [G, G]]
    assert_as_in_keras(name, runner, updates)
    decayed, run = pair(), oracle_of(name, values(pair()))
    step = RUNNERS[runner](make(name), decayed)
    for grads in updates:
        step(grads)
        run.step([np.where(np.isfinite(g), g, 0.0) for g in grads])
    for variable, expected, g in zip(decayed, run.values, spoilt, strict=True):
        expected[~np.isfinite(g)] = NAN
        found = np.where(np.isfinite(numpy(variable)), numpy(variable), NAN)
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize(
    "clipping", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 0.5}], ids=str
)
def test_clipping_spreads_what_is_not_finite_as_in_keras(clipping, bad):
    spoilt = np.array([0.5, bad, 0.25], "float32")
    assert_as_in_keras("adamw", "eager", [[G, G], [G, spoilt], [G, -G]], **clipping)


@every_runner
def test_a_low_precision_weight_does_not_hide_it(runner):
    """The finer copy of such a weight must not bring an old value back."""
    dtypes, value = ["bfloat16", "float16"], np.array([1.0, -2.0, 3.0], "float32")
    variables = [make_variable(dtype, value, dtype) for dtype in dtypes]
    step = RUNNERS[runner](make("adamw"), variables)
    for g in ([0.5, 0.5, 0.5], [0.5, NAN, 0.5], [0.5, 0.5, 0.5]):
        step([keras.ops.convert_to_tensor(g, dtype) for dtype in dtypes])
    assert [np.isfinite(v).tolist() for v in values(variables)] == [[True, False, True]] * 2


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


@pytest.mark.parametrize(
    ("name", "rate", "runner"),
    [
        *((name, -0.02, FIRST) for name in ONE_OF_EACH),
        *(("adamw", rate, "callable") for rate in (-0.02, NAN)),
        *(("adamw", bad, FIRST) for bad in (NAN, INF)),
    ],
)
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
            np.testing.assert_allclose(values(variables), run.values, atol=2e-6)
        else:
            assert not np.isfinite(values(variables)).any()


@pytest.mark.parametrize("bad", [NAN, -0.25])
def test_a_decay_schedule_that_turns_bad_spoils_the_decayed_alone(bad):
    variables = pair()
    optimizer = make("adamw", weight_decay=0, weight_decays={"b": Turns(0.1, bad)})
    step = RUNNERS[FIRST](optimizer, variables)
    run = oracle_of("adamw", values(variables), l2=0.0)
    run.decays = [(0.0, 0.0), (0.0, lambda k: 0.1 if k < TURN else bad)]
    for _ in range(TURN + 1):
        step([G, -G])
        with np.errstate(all="ignore"):
            run.step([G, -G])
    np.testing.assert_allclose(values(variables), run.values, atol=2e-6)


# --- sizes ---

SIZES = [(0,), (0, 3), (), (2,), (1,)]
NORMS = {"clipnorm": 99.0, "use_ema": True}  # which clip nothing here, if no size makes them NaN


WITH_SIZES = [
    ("adamw-amsgrad", NORMS, SIZES, FIRST),
    ("nadamw", {}, SIZES, FIRST),
    ("sgdw", {}, SIZES, FIRST),
    ("sgdw-momentum", {"global_clipnorm": 99.0}, SIZES, FIRST),
    ("adamw", {"global_clipnorm": 99.0}, [(3, 0)], FIRST),  # and nothing else
]
if LAST != FIRST:
    WITH_SIZES.append(("adamw-amsgrad", NORMS, SIZES, LAST))


@pytest.mark.parametrize(("name", "arguments", "sizes", "runner"), WITH_SIZES, ids=str)
def test_variables_without_elements_and_without_dimensions(name, arguments, sizes, runner):
    """Each size in float32, and in bfloat16 beside it."""
    rng, shapes = np.random.default_rng(0), [*sizes, *sizes]
    dtypes = ["float32"] * len(sizes) + ["bfloat16"] * len(sizes)
    start = [rng.normal(size=shape).astype("float32") for shape in shapes]
    parts = zip("abcdefghij", start, dtypes, strict=False)
    variables = [make_variable(f"{x}/w", value, dtype) for x, value, dtype in parts]
    decays = {"b": (0.1, 0.0), "c": (0.01, 0.02)} if len(sizes) > 1 else {}
    optimizer = make(name, weight_decays=decays, **arguments)
    run = oracle_of(name, values(variables))
    run.decays[1 : 1 + len(decays)] = decays.values()
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(3):
        new = [rng.normal(size=shape).astype("float32") for shape in shapes]
        grads = [tensors([g], dtype)[0] for g, dtype in zip(new, dtypes, strict=True)]
        step(grads)
        run.step(values(grads))
    for variable, dtype, expected in zip(variables, dtypes, run.values, strict=True):
        assert numpy(variable).shape == expected.shape
        rtol = 1e-6 if dtype == "float32" else 2.0**-8
        np.testing.assert_allclose(numpy(variable), expected, rtol=rtol, atol=2e-5)
    store, again = {}, make(name, weight_decays=decays, **arguments)
    optimizer.save_own_variables(store)
    again.build(variables)
    again.load_own_variables(store)
    np.testing.assert_equal(values(again.variables), values(optimizer.variables))


# --- gradients of another shape ---

# Some would be broadcast: a gradient for the mean of a variable, in effect. Stock Keras does so on some backends.
SHAPES = [
    *(((3,), other) for other in [(1,), (), (1, 3), (2,)]),
    *(((2, 3), other) for other in [(3,), (2, 1), (6,)]),
    *[((), (1,)), ((1,), (3,)), ((0,), (1,))],
]


@pytest.mark.parametrize(
    ("shape", "other", "runner"),
    [*((*shapes, "eager") for shapes in SHAPES), *(((3,), (1,), runner) for runner in COMPILED)],
    ids=str,
)
def test_a_gradient_of_another_shape_is_refused_by_name(shape, other, runner):
    variables = [make_variable("a/w", np.ones(2)), make_variable("b/w", np.ones(shape))]
    optimizer = make("adamw")
    step = RUNNERS[runner](optimizer, variables)
    optimizer.build(variables)
    with refused(optimizer, variables, "b/w"):
        step([np.ones(2, "float32"), np.ones(other, "float32")])


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 2, "use_ema": True, "clipnorm": 1.0},
        {"global_clipnorm": 1.0, "lr_multipliers": {"w": 0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("built", [True, False])
def test_such_a_gradient_is_refused_before_anything_else_is_done(built, arguments):
    """Also in the update that builds, and of a frozen variable."""
    variables, optimizer = [make_variable("a/w", np.ones(3))], make("adamw", **arguments)
    if built:
        optimizer.build(variables)
    with refused(optimizer, variables, "a/w"):
        optimizer.apply(tensors([np.ones(1)]), variables)


# --- what is no gradient or no variable, and lists of another length ---

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


class NoVariable:
    value = 1.0


NO_VARIABLES = [np.ones(2), NoVariable(), keras.ops.ones(2), None]
if BACKEND == "torch":
    import torch

    NO_VARIABLES.append(torch.nn.Parameter(torch.ones(2)))


@pytest.mark.parametrize("wrong", NO_VARIABLES, ids=type)
def test_what_is_no_variable_is_refused(wrong):
    kind = f"{type(wrong).__module__}.{type(wrong).__qualname__}"
    match = rf"keras variables.*model\.trainable_variables\. Received: a {kind} "
    if BACKEND == "torch":
        match += ".*`variable.value.grad`"
    variables = [make_variable("w", np.ones(2)), wrong]
    with pytest.raises(TypeError, match=match):
        make("adamw").build(variables)
    with pytest.raises(TypeError, match=match):  # the first build
        make("adamw").apply([np.ones(2)] * 2, variables)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("given", ["built", "not built", "bare"])
def test_fewer_or_more_gradients_than_variables(given, count):
    """Stock Keras drops what is left over and says nothing."""
    variables, optimizer = pair(), make("adamw")
    if given != "not built":
        optimizer.build(variables)
    for last in (G, None):
        grads = tensors([G] * (count - 1) + [last])
        with refused(optimizer, variables, rf"{count} gradients.*2 (trainable )?variables"):
            optimizer.apply(grads, *[variables] * (given != "bare"))


# --- variables: twice, of another model ---


def test_a_variable_given_twice_to_build_is_refused_by_name():
    """Which of its two rows and slots would be meant? Stock Keras makes both and uses the last."""
    twice, optimizer = pair()[:1] * 2, make("adamw")
    with refused(optimizer, twice, "a/w"):
        optimizer.build(twice)
    assert not optimizer.built
    with refused(optimizer, twice, "a/w"):
        optimizer.apply(tensors([G, G]), twice)


if BACKEND != "torch":  # stock Keras loses the second there; ours: test_torch_situations.py

    def test_a_variable_given_twice_to_apply():
        """As in stock Keras, one step after the other within one update."""
        ours, theirs = pair(), pair()
        optimizers = make("adamw", weight_decay=0), STOCK["adamw"]()
        for optimizer, variables in zip(optimizers, (ours, theirs), strict=True):
            optimizer.build(variables)
            optimizer.apply(tensors([G, -3 * G]), [variables[0]] * 2)
        np.testing.assert_allclose(values(ours), values(theirs), atol=2e-6)


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
