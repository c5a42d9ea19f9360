"""Gradients, rates and variables that nobody means: not finite, of another shape or type, too many, twice, unknown.

What comes out is an error that names the variable, or what stock Keras does; never quietly something else.
"""

import keras
import numpy as np
import pytest

from cases import ALPHA, BACKEND, COMPILED, OPTIMIZERS, eager, make_variable, numpy
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
STOCK = {
    "adamw": lambda **more: keras.optimizers.Adam(ALPHA, **more),
    "nadamw-keras": lambda **more: keras.optimizers.Nadam(
        ALPHA, beta_1=0.8, beta_2=0.99, epsilon=0.01, **more
    ),
    "sgdw-momentum": lambda **more: keras.optimizers.SGD(ALPHA, momentum=0.9, **more),
}
G = np.array([0.5, -1.0, 0.25], "float32")


def pair():
    value = np.array([1.0, -2.0, 3.0])
    return [make_variable("a/w", value), make_variable("b/w", -value)]


def snapshot(optimizer, variables):
    """Every number that an update may change."""
    return [numpy(v) for v in variables], state(optimizer)


def assert_unchanged(optimizer, variables, before):
    weights, slots = before
    for variable, old in zip(variables, weights, strict=True):
        np.testing.assert_array_equal(numpy(variable), old, err_msg=variable.path)
    for path, value in state(optimizer).items():
        np.testing.assert_array_equal(value, slots[path], err_msg=path)


def assert_follows(variables, run, rows=slice(None)):
    """The first of the oracle's weights are these."""
    for variable, expected in zip(variables, run.values, strict=False):
        np.testing.assert_allclose(numpy(variable)[rows], expected[rows], atol=2e-6)


# --- not finite ---


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", STOCK)
def test_one_bad_element_spoils_itself_alone_as_in_keras(name, bad, runner):
    spoilt = [G.copy(), G.copy()]
    spoilt[1][1] = bad
    updates = [[G, -G], spoilt, [G, G]]
    ours, theirs = pair(), pair()
    steps = (
        RUNNERS[runner](make(name, weight_decay=0), ours),
        RUNNERS[runner](STOCK[name](), theirs),
    )
    decayed, run = pair(), oracle_of(name, values(pair()))
    step = RUNNERS[runner](make(name), decayed)
    for grads in updates:
        for one in (*steps, step):
            one(grads)
        run.step([np.where(np.isfinite(g), g, 0.0) for g in grads])
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        kept = np.isfinite(b)
        np.testing.assert_allclose(a[kept], b[kept], atol=2e-6)
    assert [np.isfinite(v).tolist() for v in values(decayed)] == [[True] * 3, [True, False, True]]
    assert_follows(decayed, run, rows=[0, 2])


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize(
    "clipping", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 0.5}]
)
@pytest.mark.parametrize("name", STOCK)
def test_clipping_spreads_what_is_not_finite_as_in_keras(name, clipping, bad, runner):
    ours, theirs = pair(), pair()
    bad_one = np.array([0.5, bad, 0.25], "float32")
    for optimizer, variables in [
        (make(name, weight_decay=0, **clipping), ours),
        (STOCK[name](**clipping), theirs),
    ]:
        step = RUNNERS[runner](optimizer, variables)
        for grads in ([G, G], [G, bad_one], [G, -G]):
            step(grads)
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        np.testing.assert_allclose(a[np.isfinite(b)], b[np.isfinite(b)], atol=2e-6)


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
    variable = keras.Variable(np.array([1.0, -2.0, 3.0], "float32"), name="w", dtype=dtype)
    step = RUNNERS[runner](make(name), [variable])
    for g in ([0.5, 0.5, 0.5], [0.5, NAN, 0.5], [0.5, 0.5, 0.5]):
        step(tensors([np.array(g)], dtype))
    assert np.isfinite(numpy(variable)).tolist() == [True, False, True]


# --- rates that turn bad on the way; setting a bad one by hand is refused, see test_errors.py ---

TURN = 2  # the update from which on they do


class Turns(keras.optimizers.schedules.LearningRateSchedule):
    """`first` for a while, then `then`."""

    def __init__(self, first, then):
        self.first, self.then = first, then

    def __call__(self, step):
        return keras.ops.where(keras.ops.cast(step, "int32") < TURN, self.first, self.then)

    def get_config(self):
        return {"first": self.first, "then": self.then}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", STOCK)
def test_a_schedule_that_stops_being_finite_spoils_what_it_does_in_keras(name, bad, runner):
    ours, theirs = pair(), pair()
    stock = STOCK[name]()
    stock.learning_rate = Turns(ALPHA, bad)
    steps = [
        RUNNERS[runner](
            make(name, learning_rate=Turns(ALPHA, bad), base_learning_rate=ALPHA), ours
        ),
        RUNNERS[runner](stock, theirs),
    ]
    for _ in range(TURN):
        for step in steps:
            step([G, -G])
    assert all(np.isfinite(v).all() for v in values([*ours, *theirs]))
    for step in steps:
        step([G, -G])
    assert not any(np.isfinite(v).any() for v in values([*ours, *theirs]))


@pytest.mark.parametrize("rate", [-0.02, -1e-4])
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", SOME)
def test_a_schedule_that_falls_below_zero_goes_uphill_as_in_keras(name, runner, rate):
    """No one's wish, but η is the rate over α on every path: the decay has its sign, too."""
    variables = pair()
    rates = Turns(ALPHA, rate)
    optimizer = make(name, learning_rate=rates, base_learning_rate=ALPHA, weight_decay=0.5)
    run = oracle_of(
        name,
        values(variables),
        l2=0.5,
        schedule=lambda s: At(1.0 if s < TURN else rate / ALPHA, s, None),
    )
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(TURN + 2):
        step([G, -G])
        run.step([G, -G])
        assert_follows(variables, run)


@pytest.mark.parametrize("rate", [NAN, INF, -0.02])
@pytest.mark.parametrize("name", SOME)
def test_a_callable_that_turns_bad_does_what_such_a_schedule_does(name, rate):
    now = {"rate": ALPHA}
    variables = pair()
    optimizer = make(name, learning_rate=lambda: now["rate"], weight_decay=0.5)
    run = oracle_of(
        name, values(variables), l2=0.5, schedule=lambda s: At(now["rate"] / ALPHA, s, None)
    )
    step = eager(optimizer, variables)
    for k in range(TURN + 2):
        now["rate"] = ALPHA if k < TURN else rate
        step([G, -G])
        if np.isfinite(rate) or k < TURN:
            run.step([G, -G])
            assert_follows(variables, run)
    if not np.isfinite(rate):
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
    assert_follows(variables[:1], run)
    if np.isfinite(bad):
        np.testing.assert_allclose(numpy(variables[1]), run.values[1], atol=2e-6)
    else:
        assert not np.isfinite(numpy(variables[1])).any()


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
    start = [rng.normal(size=shape) for shape in SIZES]
    variables = [
        make_variable(f"{'abcde'[i]}/w", value.astype("float32"), dtype)
        for i, value in enumerate(start)
    ]
    optimizer = make(name, weight_decays={"c": (0.01, 0.02), "b": (0.1, 0.0)}, **arguments)
    run = oracle_of(name, values(variables))
    run.decays[1:3] = [(0.1, 0.0), (0.01, 0.02)]
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(3):
        grads = [rng.normal(size=shape).astype("float32") for shape in SIZES]
        step(tensors(grads, dtype))
        grads = [numpy(g) for g in tensors(grads, dtype)]
        norms = [np.sqrt(np.sum(g**2)) for g in grads]
        if "clipnorm" in arguments:
            grads = [g * min(1, 0.1 / max(n, 1e-9)) for g, n in zip(grads, norms, strict=True)]
        if "global_clipnorm" in arguments:
            grads = [g * min(1, 0.1 / np.linalg.norm(norms)) for g in grads]
        run.step(grads)
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
    step = RUNNERS[runner](optimizer, [variable])
    step([np.zeros((3, 0), "float32")])
    assert numpy(variable).shape == (3, 0)
    assert int(numpy(optimizer.iterations)) == 1


# --- gradients of another shape ---

# Some would be broadcast: a gradient for the mean of a variable, in effect. Stock Keras does so on some backends.
SHAPES = [
    ((3,), (1,)),
    ((3,), ()),
    ((3,), (1, 3)),
    ((3,), (2, 3)),
    ((3,), (2,)),
    ((3,), (0,)),
    ((2, 3), (3,)),
    ((2, 3), (2, 1)),
    ((2, 3), (3, 2)),
    ((2, 3), (6,)),
    ((1,), ()),
    ((), (1,)),
    ((1,), (3,)),
    ((0,), (1,)),
]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(("shape", "other"), SHAPES, ids=str)
@pytest.mark.parametrize("name", effort(["adamw", "sgdw"], list(OPTIMIZERS)))
def test_a_gradient_of_another_shape_is_refused_by_name(name, shape, other, runner):
    variables = [make_variable("a/w", np.ones(2)), make_variable("b/w", np.ones(shape))]
    optimizer = make(name)
    step = RUNNERS[runner](optimizer, variables)
    optimizer.build(variables)
    before = snapshot(optimizer, variables)
    with pytest.raises(ValueError, match="b/w"):
        step([np.ones(2, "float32"), np.ones(other, "float32")])
    assert_unchanged(optimizer, variables, before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"gradient_accumulation_steps": 2},
        {"clipnorm": 1.0},
        {"global_clipnorm": 1.0},
        {"use_ema": True},
        {"lr_multipliers": {"w": 0}},
    ],
    ids=str,
)
@pytest.mark.parametrize("other", [(1,), (2,)])
def test_such_a_gradient_is_refused_before_anything_else_is_done(other, arguments):
    variable = make_variable("a/w", np.ones(3))
    optimizer = make("adamw", **arguments)
    optimizer.build([variable])
    before = snapshot(optimizer, [variable])
    with pytest.raises(ValueError, match="a/w"):
        optimizer.apply(tensors([np.ones(other)]), [variable])
    assert_unchanged(optimizer, [variable], before)


@pytest.mark.parametrize("other", [(1,), (2,), ()])
def test_such_a_gradient_is_refused_in_the_update_that_builds(other):
    variable = make_variable("a/w", np.ones(3))
    with pytest.raises(ValueError, match="a/w"):
        make("sgdw").apply(tensors([np.ones(other)]), [variable])
    np.testing.assert_array_equal(numpy(variable), 1)


# --- gradients of another type; floats are in test_precision.py ---


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum"])
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


@pytest.mark.parametrize(
    "bad", ["x", ["x", "y", "z"], {"a": 1}, object()], ids=["a", "b", "c", "d"]
)
def test_what_is_no_gradient_is_an_error(bad):
    variables, optimizer = pair(), make("adamw")
    optimizer.build(variables)
    before = snapshot(optimizer, variables)
    with pytest.raises(REFUSALS):
        optimizer.apply([tensors([G])[0], bad], variables)
    assert_unchanged(optimizer, variables, before)


# --- lists of another length ---


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("last", ["a gradient", None])
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_fewer_or_more_gradients_than_variables(name, built, last, count):
    """Stock Keras drops what is left over and says nothing."""
    variables, optimizer = pair(), make(name)
    if built:
        optimizer.build(variables)
    before = snapshot(optimizer, variables)
    grads = tensors([G] * (count - 1)) + (tensors([G]) if last else [None])
    with pytest.raises(ValueError, match=rf"{count} gradients.*2 variables"):
        optimizer.apply(grads, variables)
    if built:
        assert_unchanged(optimizer, variables, before)
    np.testing.assert_array_equal(values(variables), before[0])


@pytest.mark.parametrize("count", [1, 3])
def test_a_bare_list_of_another_length(count):
    variables, optimizer = pair(), make("adamw")
    optimizer.build(variables)
    before = snapshot(optimizer, variables)
    with pytest.raises(ValueError, match=rf"{count} gradients.*2 trainable"):
        optimizer.apply(tensors([G] * count))
    assert_unchanged(optimizer, variables, before)


def test_an_empty_list_does_nothing():
    for nothing in (None, []):
        optimizer = make("adamw")
        optimizer.apply([], nothing)
        assert not optimizer.built
        assert int(numpy(optimizer.iterations)) == 0
    variables = pair()
    optimizer.build(variables)
    before = snapshot(optimizer, variables)
    optimizer.apply([])
    optimizer.apply([], [])
    assert_unchanged(optimizer, variables, before)


# --- variables: not built yet, unknown, in another order, twice ---


def test_a_bare_list_before_build():
    optimizer = make("adamw")
    with pytest.raises(ValueError, match=r"must already be built.*optimizer\.build"):
        optimizer.apply(tensors([G, G]))
    assert not optimizer.built
    assert int(numpy(optimizer.iterations)) == 0


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
    variable = pair()[0]
    optimizer = make(name, weight_decays={key: 0.1})
    with pytest.raises(ValueError, match="a/w"):
        optimizer.build([variable, variable])
    assert not optimizer.built
    with pytest.raises(ValueError, match="a/w"):
        optimizer.apply(tensors([G, G]), [variable, variable])
    np.testing.assert_array_equal(numpy(variable), numpy(pair()[0]))


if BACKEND != "torch":  # stock Keras loses the second there; ours: testtorch_update_tensors.py

    @pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum"])
    def test_a_variable_given_twice_to_apply(name):
        """An error, or as in stock Keras one step after the other within one update."""
        ours, theirs = pair(), pair()
        optimizer, stock = make(name, weight_decay=0), None
        if name == "nadamw":
            optimizer = make("nadamw-keras", weight_decay=0)
            stock = STOCK["nadamw-keras"]()
        stock = stock or STOCK[name]()
        optimizer.build(ours)
        stock.build(theirs)
        before = snapshot(optimizer, ours)
        try:
            optimizer.apply(tensors([G, -3 * G]), [ours[0]] * 2)
        except ValueError as error:
            assert "a/w" in str(error)  # noqa: PT017 - one of two outcomes
            assert_unchanged(optimizer, ours, before)
            return
        stock.apply(tensors([G, -3 * G]), [theirs[0]] * 2)
        np.testing.assert_allclose(values(ours), values(theirs), atol=2e-6)


@pytest.mark.parametrize("bad", [G, "w", None, 3], ids=["array", "string", "None", "number"])
def test_what_is_no_variable_is_an_error(bad):
    optimizer = make("adamw")
    with pytest.raises((ValueError, TypeError, AttributeError)):
        optimizer.build([bad])
    assert not optimizer.built


# --- a changed model ---


def test_an_optimizer_that_goes_on_with_another_model():
    """Its variables are new ones. JAX hands them over without their names: there it has to be said."""

    optimizer, first = make("adamw"), linear()
    first.compile(optimizer, loss="mse")
    first.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    second = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(2)])
    second.compile(optimizer, loss="mse")
    before = values(second.trainable_variables)
    if BACKEND == "jax":
        weights = [v.value for v in second.trainable_variables]
        with pytest.raises(ValueError, match=r"built on other variables.*optimizer\.build"):
            optimizer.stateless_apply([v.value for v in optimizer.variables], weights, weights)
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
