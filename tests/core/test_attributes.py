"""What a user reads from an optimizer and sets on it: the rate, η, positions, decays and multipliers.

That every class follows what is set, `CASES` shows beside the oracle: here one class stands for all.
"""

import inspect
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers

from cases import BACKEND, eager, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW
from small import again, left, ones
from steps import floatx

schedules = keras.optimizers.schedules
ANNEALING = {"use_cosine_annealing": True, "total_iterations": 5}
close = partial(np.testing.assert_allclose, rtol=2e-7)


def number(x):
    return float(numpy(x))


def position(optimizer):
    return int(numpy(optimizer.t_cur))


def cosine(s, T):
    return 0.5 * (1 + np.cos(np.pi * s / (T - 1)))


# --- a constant rate: a variable, as in stock Keras ---


@pytest.mark.parametrize("assign", [True, False])
def test_a_constant_rate(assign):
    optimizer, ours = SGDW(0.1, weight_decay=0.5), ones()
    rate = optimizer.learning_rate
    assert isinstance(rate, keras.Variable)
    assert (rate.name, rate.dtype) == ("learning_rate", "float32")
    assert any(v is rate for v in optimizer.variables)
    assert float(rate.numpy()) == number(rate.value) == np.float32(0.1)
    assert left(optimizer, ours) == 0.5
    for now in (0.05, 0.2, 0.0, 0.3, 0, 0.1):  # above α, and from 0 up again
        if assign:
            rate.assign(now)
        else:
            optimizer.learning_rate = now
        assert float(optimizer.learning_rate.numpy()) == np.float32(now)
        assert number(optimizer.lr_t) == np.float32(now)
        close(number(optimizer.eta_t), now / 0.1)
        close(left(optimizer, ours), 1 - 0.5 * now / 0.1, atol=1e-7)
    assert number(optimizer.eta_t) == 1
    assert optimizer.learning_rate is rate


NUMBERS = {
    "float": lambda x: x,
    "int": int,
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.int64": np.int64,
    "array": np.array,
    "tensor": lambda x: keras.ops.convert_to_tensor(x, "float32"),
    "Variable": lambda x: keras.Variable(x, dtype="float32"),
    "bfloat16": lambda x: keras.ops.convert_to_tensor(x, "bfloat16"),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_any_real_number_can_be_set(make):
    optimizer, ours = SGDW(4.0, weight_decay=0.5), ones()
    optimizer.learning_rate = make(2.0)
    assert number(optimizer.learning_rate) == 2
    assert number(optimizer.eta_t) == 0.5
    optimizer.weight_decay = make(1.0)
    assert left(optimizer, ours) == 0.5
    optimizer.weight_decay = optimizer.weight_decay
    assert left(optimizer, ours) == 0.5


@pytest.mark.parametrize("make", [int, np.float32, np.float64, np.int64])
def test_any_real_number_is_accepted_by_the_constructor(make):
    one, zero = make(1), make(0)
    optimizer = SGDW(one, zero, base_learning_rate=one, weight_decay=one, clipnorm=one)
    assert number(optimizer.learning_rate) == 1
    AdamW(one, weight_decays={"a": (zero, one)}, lr_multipliers={"a": one}, beta_1=zero)
    NadamW(one, epsilon=one, momentum_decay=one)
    optimizer = AdamW(
        one, use_cosine_annealing=True, total_iterations=make(5), t_cur=make(4), eta_max=one
    )
    assert number(optimizer.eta_t) == 0


def test_eta_is_exactly_1_where_nobody_moved_the_rate():
    """Of every rate: α in float32 may be another number, and η is to it what the rate is to α."""
    for rate in [10 ** (2 - e / 2) for e in range(21)] + [0.3, 7e-5, 1 / 3]:
        for given in (rate, CosineWarmRestarts(rate, 10)):
            optimizer = SGDW(given, weight_decay=0.125)
            assert number(optimizer.learning_rate) == np.float32(rate)
            for now in (rate, number(optimizer.learning_rate), None):  # as a callback reads it
                assert number(optimizer.eta_t) == 1, rate
                if now:
                    optimizer.learning_rate = now
            optimizer.learning_rate = rate / 2
            close(number(optimizer.eta_t), 0.5)
    assert left(SGDW(rate, weight_decay=0.125), ones()) == 0.875


@pytest.mark.parametrize(
    ("rate", "base", "move"),
    [(0.05, 0.1, None), (0.0, 0.1, None), (1e-4, 3e-4, "set"), (0.0, 0.1, "assign")],
)
def test_a_rate_from_another_base(rate, base, move):
    """0 is one, too: the start of a warm-up by callback. The config has the number that was given."""
    optimizer = SGDW(base if move else rate, base_learning_rate=base, weight_decay=0.5)
    if move == "assign":
        optimizer.learning_rate.assign(rate)
    elif move == "set":
        optimizer.learning_rate = rate
    for one in (optimizer, again(optimizer)):
        close(number(one.eta_t), rate / base)
        assert number(one.learning_rate) == np.float32(rate)
        config = one.get_config()
        assert (config["learning_rate"], config["base_learning_rate"]) == (rate, base)
        one.learning_rate = base
        assert number(one.eta_t) == 1


def test_float64():
    """The variables are float32 as ever; where nobody moved them, α and λ are used with all their digits."""
    exact = partial(pytest.approx, rel=1e-15)
    with floatx("float64", x64=True):
        optimizer, ours = SGDW(0.1, weight_decay=0.1), ones(dtype="float64")
        assert optimizer.learning_rate.dtype == "float32"
        assert left(optimizer, ours) == 1 - 0.1
        for rate in (None, 0.05):
            if rate:
                optimizer.learning_rate.assign(rate)
            eta = float(np.float32(rate)) / float(np.float32(0.1)) if rate else 1
            ours[0].assign(np.ones(2))
            eager(optimizer, ours)([np.ones(2)])
            assert numpy(ours[0]) == exact(1 - eta * 0.1 - eta * 0.1)
        optimizer = SGDW(0.1, weight_decay=0.1)
        optimizer.weight_decay = 0.3
        assert left(optimizer, ones(dtype="float64")) == exact(0.7)
    if BACKEND != "jax":  # where float64 is the model's alone
        optimizer, ours = SGDW(0.1, weight_decay=0.1), ones(dtype="float64")
        assert left(optimizer, ours) == 1 - 0.1
        optimizer.weight_decay = 0.3
        assert left(optimizer, ours) == pytest.approx(0.7, rel=1e-7)


def test_a_bfloat16_floatx_leaves_both_in_float32():
    with floatx("bfloat16"):
        optimizer, ours = SGDW(0.1, weight_decay=2.0**-10), ones(dtype="bfloat16")
        assert optimizer.learning_rate.dtype == optimizer.weight_decay.dtype == "float32"
        assert float(optimizer.learning_rate.numpy()) == np.float32(0.1)
        assert number(optimizer.eta_t) == 1
        optimizer.weight_decay = 2.0**-9  # with 1 it is no number of bfloat16: a master copy has it
        for _ in range(4):
            eager(optimizer, ours)([np.zeros(2, "bfloat16")])
        assert numpy(ours[0])[0] == pytest.approx((1 - 2.0**-9) ** 4, abs=2.0**-9)


# --- positions ---


def annealed(**arguments):
    given = {"learning_rate": 0.1, "weight_decay": 0.5, "normalize_weight_decay": False}
    return SGDW(**given | ANNEALING | arguments)


def test_t_cur_of_the_first_update_and_after_the_only_cycle():
    assert position(annealed(t_cur=-1)) == 0
    optimizer, ours, seen = annealed(t_cur=3, autorestart=False), ones(), []
    for _ in range(4):
        seen.append(position(optimizer))
        left(optimizer, ours)
    assert seen == [3, 4, 4, 4]


@pytest.mark.parametrize("before", [0, 3])
def test_restart(before):
    """Before the first update it takes effect at build. The count of updates goes on."""
    optimizer, ours = annealed(t_cur=1), ones()
    left(optimizer, ours, before)
    optimizer.t_cur = np.int64(3)
    assert position(optimizer) == 3
    optimizer.restart(-1)
    assert position(optimizer) == 0
    optimizer.restart(4)
    optimizer.build(ours)
    assert (position(optimizer), int(numpy(optimizer.iterations))) == (4, before)
    expected = [1 - 0.5 * cosine(s, 5) for s in (4, 0)]
    np.testing.assert_allclose(left(optimizer, ours, 2), expected, rtol=1e-6)


def test_at_the_zero_of_a_schedule():
    optimizer = annealed(t_cur=4)
    assert number(optimizer.learning_rate) == number(optimizer.eta_t) == 0
    optimizer.learning_rate = 0  # changes nothing; another rate is an error
    optimizer.restart()
    close(number(optimizer.learning_rate), 0.1)
    optimizer.learning_rate = 0  # r = 0, for good
    optimizer.restart(2)
    assert number(optimizer.learning_rate) == 0


# --- the arguments about time ---

RESTARTS = {"learning_rate": CosineWarmRestarts(0.1, 4, t_mul=4)}
FOUR = {"total_iterations": 4, "use_cosine_annealing": True}
ON, OFF = ({"normalize_weight_decay": asked} for asked in (True, False))
T, T_WD = {"total_iterations": 16}, {"total_iterations_wd": 25}
in_4 = [cosine(s, 4) for s in (0, 1, 2, 3, 0)]
in_4_and_16 = np.array([cosine(s, 4) for s in range(4)] + [cosine(s, 16) for s in range(2)])
# arguments, and √(1/T)·η of each update
NORMALIZED = [
    (OFF, [1]),  # nothing to switch off
    (T_WD, [1 / 5]),
    (T | T_WD, [1 / 5]),
    (T | ON, [1 / 4]),
    (T | {"normalize_weight_decay": np.False_}, [1]),
    ({"total_iterations": 1}, [1]),
    (T | {"autorestart": False}, [1 / 4] * 6),  # no annealing without being asked
    (FOUR, np.divide(in_4, 2)),
    (FOUR | OFF, in_4),
    (FOUR | {"total_iterations_wd": 100}, np.divide(in_4, 10)),
    (RESTARTS, in_4_and_16),
    (RESTARTS | ON, in_4_and_16 / np.array([2, 2, 2, 2, 4, 4])),
    (RESTARTS | T_WD | ON, in_4_and_16 / 5),
    (T | {"learning_rate": schedules.ExponentialDecay(0.1, 1, 0.5)}, [1 / 4, 1 / 8, 1 / 16]),
    (T | {"learning_rate": lambda: 0.1}, [1 / 4]),
]


@pytest.mark.parametrize(("arguments", "share"), NORMALIZED)
def test_normalization(arguments, share):
    """Of l1 and l2."""
    optimizer = SGDW(**{"learning_rate": 0.1, "weight_decay": (0.3, 0.2), **arguments})
    expected = 1 - 0.5 * np.array(share)
    np.testing.assert_allclose(left(optimizer, ones(), len(share)), expected, rtol=1e-6)


SUGAR = [
    ({}, None),
    ({"t_cur": 3, "autorestart": True}, None),
    ({"total_iterations": 2, "eta_min": 0.1, "eta_max": 0.7}, False),
    ({"eta_min": 0.1, "autorestart": np.False_}, False),
]


@pytest.mark.parametrize(("arguments", "normalize"), SUGAR)
def test_annealing_is_sugar(arguments, normalize):
    arguments = {**ANNEALING, **arguments}
    sweet = SGDW(0.1, weight_decay=0.5, normalize_weight_decay=normalize, **arguments)
    meaning = {name: arguments[name] for name in ("eta_min", "eta_max") if name in arguments}
    meaning["autorestart"] = bool(arguments.get("autorestart", True))
    rate = CosineWarmRestarts(0.1, arguments["total_iterations"], **meaning)
    plain = SGDW(rate, weight_decay=0.5, normalize_weight_decay=normalize is None)
    plain.t_cur = arguments.get("t_cur", 0)
    theirs, ours = ones(), ones()
    for _ in range(8):
        for name in ("learning_rate", "eta_t", "t_cur"):
            assert number(getattr(sweet, name)) == number(getattr(plain, name))
        assert left(sweet, ours) == left(plain, theirs)


def test_annealing_from_another_rate_than_the_base():
    optimizer = annealed(learning_rate=0.05, base_learning_rate=0.1)
    close(number(optimizer.learning_rate), 0.05)
    close(number(optimizer.eta_t), 0.5)
    assert optimizer.get_config()["base_learning_rate"] == 0.1


# --- decays and multipliers as they were given, and as they are ---


def test_weight_decays_and_lr_multipliers():
    l2 = schedules.ExponentialDecay(0.1, 10, 0.5)
    given = {"a": 0.5, "b": (0.25, l2), "bias": 0, "c/kernel": (0.1, 0)}
    multipliers = {"a": 0.5, "b": 1, "bias": 0, "c/kernel": l2}
    shown = {"weight_decays": given, "lr_multipliers": multipliers}
    optimizer = AdamW(weight_decay=1e-3, **shown, total_iterations=100)  # before normalization
    assert optimizer.weight_decays == given
    assert optimizer.lr_multipliers == multipliers
    assert optimizer.weight_decay == 1e-3
    given["a"] = multipliers["a"] = 0.7
    optimizer.build(ones("a/kernel", "b/kernel", "b/bias", "c/kernel", "d"))
    assert optimizer.weight_decays == {
        "a/kernel": (0.0, 0.5),
        "b/kernel": (0.25, l2),
        "c/kernel": (0.1, 0.0),
        "d": (0.0, 1e-3),
    }
    assert optimizer.weight_decays["b/kernel"][1] is l2
    assert optimizer.lr_multipliers == {"a/kernel": 0.5, "b/bias": 0.0, "c/kernel": l2}
    assert optimizer.weight_decay == 1e-3


def test_variables_that_share_a_path():
    optimizer = SGDW(
        0.1, weight_decays={"w": 0.1, "w#2": 0.2, "v": 0.5}, lr_multipliers={"w#3": 3, "v/": 2}
    )
    ours = ones("w", "v", "w", "w", "v")
    # "v", like "w", is a whole path, and so names one variable.
    np.testing.assert_allclose(left(optimizer, ours), [0.9, 0.5, 0.8, 1, 1], rtol=1e-6)
    assert optimizer.weight_decays == {"w": (0.0, 0.1), "w#2": (0.0, 0.2), "v": (0.0, 0.5)}
    assert optimizer.lr_multipliers == {"w#3": 3.0, "v": 2.0, "v#2": 2.0}


# --- both in fit ---

# What is done before each batch, and η·λ from then on.
ACTIONS = [
    (lambda o: None, 0.5),
    (lambda o: o.learning_rate.assign(0.05), 0.25),
    (lambda o: setattr(o, "learning_rate", 0.1), 0.5),
    (lambda o: o.learning_rate.assign(o.learning_rate.numpy() / 2), 0.25),
    (lambda o: o.learning_rate.assign(o.learning_rate * 2.0), 0.5),
    (lambda o: setattr(o, "weight_decay", 0.25), 0.25),
    (lambda o: setattr(o, "weight_decay", float(o.weight_decay) * 2), 0.5),
    (lambda o: o.weight_decay.assign(0.25), 0.25),
]


class Acts(keras.callbacks.Callback):
    """Does the next of these with the optimizer before each of two batches of an epoch; `get` finds it."""

    def __init__(self, get):
        super().__init__()
        self.get, self.actions, self.seen = get, [action for action, _ in ACTIONS], []

    def act(self):
        self.actions.pop(0)(self.get(self.model))

    def on_epoch_begin(self, epoch, logs=None):
        self.act()

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights()[0][0, 0])
        if batch == 0:
            self.act()


WRAPPERS = {
    "alone": (lambda optimizer: optimizer, lambda model: model.optimizer),
    "scaled": (
        keras.optimizers.LossScaleOptimizer,
        lambda model: model.optimizer.inner_optimizer,
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_own_callback(wrapper):
    """A loss without a gradient: only the decay moves the weights."""
    wrap, get = WRAPPERS[wrapper]
    dense = layers.Dense(2, use_bias=False, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(wrap(SGDW(0.1, weight_decay=0.5)), loss=lambda y, x: 0 * keras.ops.mean(x, -1))
    acts, x = Acts(get), np.ones((2, 2))
    model.fit(x, x, batch_size=1, epochs=len(ACTIONS) // 2, verbose=0, callbacks=[acts])
    expected = np.cumprod([1 - decay for _, decay in ACTIONS])
    np.testing.assert_allclose(acts.seen, expected, rtol=1e-6)


# --- the arguments, and `fast` ---


@pytest.mark.parametrize(
    ("cls", "stock"),
    [
        (AdamW, keras.optimizers.AdamW),
        (NadamW, keras.optimizers.Nadam),
        (SGDW, keras.optimizers.SGD),
    ],
)
def test_positional_order_and_defaults_are_keras_own(cls, stock):
    """Of the arguments that are ours and theirs; the default of weight_decay apart. The others are by keyword."""

    def positional(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}

    ours, theirs = positional(cls), positional(stock)
    assert [name for name in ours if name in theirs] == [name for name in theirs if name in ours]
    for name in ours.keys() & theirs.keys() - {"weight_decay"}:
        assert ours[name] == theirs[name], name
    with pytest.raises(TypeError, match="positional"):
        cls(*[0.1] * 7)


def test_fast_is_an_attribute_and_in_no_config():
    optimizer = AdamW(0.1)
    assert optimizer.fast is True
    optimizer.fast = False
    assert optimizer.fast is False
    assert "fast" not in optimizer.get_config()
    assert AdamW.from_config(optimizer.get_config()).fast is True
