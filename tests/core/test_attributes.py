"""What is read from an optimizer and set on it: rates, positions, decays, and the time arguments behind them."""

from functools import partial

import keras
import numpy as np
import pytest

from cases import eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, NadamW

schedules = keras.optimizers.schedules
ANNEALING = {"use_cosine_annealing": True, "total_iterations": 5}
ZERO = np.zeros((2,), "float32")
close = partial(np.testing.assert_allclose, rtol=2e-7)


def number(x):
    return float(numpy(x))


def variables(*paths):
    return [make_variable(path, np.ones((2,), "float32")) for path in paths]


def stepper(optimizer):
    """A function that makes updates with zero gradients, and returns what is left of 1 at each."""
    ours = variables("w")
    step = eager(optimizer, ours)

    def updates(count=1):
        left = []
        for _ in range(count):
            ours[0].assign(np.ones((2,), "float32"))
            step([ZERO])
            left.append(numpy(ours[0])[0])
        return left

    return updates


def cosine(s, T):
    return 0.5 * (1 + np.cos(np.pi * s / (T - 1)))


@keras.saving.register_keras_serializable(package="test_attributes")
class NoBase(schedules.LearningRateSchedule):
    """Says nowhere what its base is."""

    def __call__(self, step):
        return 0.2 / (1.0 + keras.ops.cast(step, "float32"))

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable(package="test_attributes")
class Dial:
    """A callable whose value can be turned."""

    def __init__(self, value):
        self.value = value

    def __call__(self):
        return self.value

    def get_config(self):
        return {"value": self.value}


# --- learning_rate ---


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
def test_a_float(cls):
    optimizer = cls(0.1, weight_decay=0.1)
    close(number(optimizer.learning_rate), 0.1)
    assert number(optimizer.eta_t) == 1
    optimizer.learning_rate = 0.05
    close(number(optimizer.learning_rate), 0.05)
    close(number(optimizer.lr_t), 0.05)
    close(number(optimizer.eta_t), 0.5)
    optimizer.learning_rate = 0.3  # no schedule: r > 1 needs no warning
    close(number(optimizer.eta_t), 3)
    optimizer.learning_rate = 0
    assert number(optimizer.learning_rate) == 0
    assert number(optimizer.eta_t) == 0
    optimizer.learning_rate = 0.1  # a constant is never "at 0"
    assert number(optimizer.eta_t) == 1


VALUES = {
    "float": lambda x: x,
    "int": lambda x: int(x),
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.int64": np.int64,
    "array": np.array,
    "tensor": lambda x: keras.ops.convert_to_tensor(x, "float32"),
    "Variable": lambda x: keras.Variable(x, dtype="float32"),
    "bfloat16": lambda x: keras.ops.convert_to_tensor(x, "bfloat16"),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_any_real_number_is_accepted(make):
    optimizer = AdamW(4.0)
    optimizer.learning_rate = make(2.0)
    assert number(optimizer.learning_rate) == 2
    assert number(optimizer.eta_t) == 0.5


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
    CosineWarmRestarts(one, make(5), t_mul=one, warmup_steps=zero)


def test_r_is_over_the_schedule():
    optimizer = SGDW(CosineWarmRestarts(0.1, 5, t_mul=2), weight_decay=0.5)
    updates = stepper(optimizer)
    seen = []
    for k in range(10):
        if k in (1, 6):
            optimizer.learning_rate = 0.5 * number(optimizer.learning_rate)
        if k == 8:
            optimizer.learning_rate = 0.1 * cosine(3, 10)  # as scheduled: r = 1
        seen.append((number(optimizer.learning_rate), number(optimizer.eta_t)))
        updates()
    multipliers = [cosine(s, 5) for s in range(5)] + [cosine(s, 10) for s in range(5)]
    r = [1] + [0.5] * 5 + [0.25] * 2 + [1] * 2
    expected = np.multiply(r, multipliers)
    np.testing.assert_allclose([eta for _, eta in seen], expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose([rate for rate, _ in seen], 0.1 * expected, rtol=1e-6, atol=1e-9)


def test_at_the_zero_of_a_schedule():
    optimizer = SGDW(0.1, weight_decay=0.5, t_cur=4, **ANNEALING)
    assert number(optimizer.learning_rate) == 0
    assert number(optimizer.eta_t) == 0
    optimizer.learning_rate = 0  # changes nothing
    optimizer.learning_rate = 0.0
    with pytest.raises(ValueError, match="schedule is at 0"):
        optimizer.learning_rate = 1e-8
    optimizer.restart()
    close(number(optimizer.learning_rate), 0.1)
    optimizer.learning_rate = 0  # r = 0, for good
    optimizer.restart(2)
    assert number(optimizer.learning_rate) == 0


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        (lambda: schedules.ExponentialDecay(0.2, 2, 0.5), lambda s: 0.2 * 0.5 ** (s / 2)),
        (lambda: schedules.CosineDecay(0.2, 8), lambda s: 0.2 * 0.5 * (1 + np.cos(np.pi * s / 8))),
        (lambda: schedules.PiecewiseConstantDecay([1], [0.2, 0.1]), lambda s: [0.2, 0.1][s > 1]),
        (NoBase, lambda s: 0.2 / (1 + s)),
    ],
)
def test_a_keras_schedule(schedule, at):
    optimizer = SGDW(schedule(), weight_decay=0.5)
    updates = stepper(optimizer)
    for k in range(4):
        np.testing.assert_allclose(number(optimizer.learning_rate), at(k), rtol=1e-6)
        np.testing.assert_allclose(number(optimizer.eta_t), at(k) / 0.2, rtol=1e-6)
        assert int(numpy(optimizer.t_cur)) == k
        np.testing.assert_allclose(updates(), 1 - 0.5 * at(k) / 0.2, rtol=1e-6)
    optimizer.learning_rate = 0.5 * number(optimizer.learning_rate)
    np.testing.assert_allclose(number(optimizer.eta_t), 0.5 * at(4) / 0.2, rtol=1e-6)
    optimizer.restart(1)
    np.testing.assert_allclose(number(optimizer.eta_t), 0.5 * at(1) / 0.2, rtol=1e-6)


def test_a_callable():
    dial = Dial(0.4)
    optimizer = SGDW(dial, weight_decay=0.5)
    close(number(optimizer.learning_rate), 0.4)
    updates = stepper(optimizer)
    close(updates(), 0.5)
    dial.value = 0.1
    close(number(optimizer.learning_rate), 0.1)
    close(number(optimizer.eta_t), 0.25)
    assert int(numpy(optimizer.t_cur)) == 1
    optimizer.learning_rate = 0.05  # r = 1/2
    close(number(optimizer.eta_t), 0.125)
    close(updates(), 1 - 0.5 * 0.125)
    dial.value = 0.4
    close(number(optimizer.learning_rate), 0.2)


def test_a_callable_is_asked_for_its_base_at_build():
    dial = Dial(0.4)
    optimizer = SGDW(dial, weight_decay=0.5)
    assert optimizer.get_config()["base_learning_rate"] is None
    dial.value = 0.2
    optimizer.build(variables("w"))
    dial.value = 0.1
    assert optimizer.get_config()["base_learning_rate"] == 0.2
    close(number(optimizer.eta_t), 0.5)


def test_reading_a_callable_rate_before_build_does_not_fix_its_base():
    dial = Dial(0.4)
    optimizer = SGDW(dial, weight_decay=0.5)
    close(number(optimizer.learning_rate), 0.4)
    close(number(optimizer.eta_t), 1)
    dial.value = 0.2
    optimizer.build(variables("w"))
    close(number(optimizer.eta_t), 1)
    assert optimizer.get_config()["base_learning_rate"] == 0.2


BASES = {
    "float": (lambda: 0.1, 0.1),
    "cosine": (lambda: CosineWarmRestarts(0.3, 5, eta_max=0.5), 0.3),
    "warmup_target": (
        lambda: schedules.CosineDecay(0.01, 10, warmup_target=0.5, warmup_steps=5),
        0.5,
    ),
    "no warmup_target": (lambda: schedules.CosineDecay(0.01, 10), 0.01),
    "initial_learning_rate": (lambda: schedules.InverseTimeDecay(0.2, 10, 0.5), 0.2),
    "restarts of Keras": (lambda: schedules.CosineDecayRestarts(0.2, 10), 0.2),
    "value at step 0": (lambda: schedules.PiecewiseConstantDecay([3], [0.5, 0.25]), 0.5),
    "value of a custom one": (NoBase, 0.2),
}


@pytest.mark.parametrize("case", BASES.values(), ids=BASES)
def test_base_learning_rate(case):
    make, base = case
    rate = make()
    optimizer = AdamW(rate)
    close(optimizer.get_config()["base_learning_rate"], base)
    first = rate if isinstance(rate, float) else number(rate(0))
    np.testing.assert_allclose(number(optimizer.eta_t), first / base, rtol=1e-6)
    given = AdamW(make(), base_learning_rate=0.8)
    assert given.get_config()["base_learning_rate"] == 0.8
    np.testing.assert_allclose(number(given.learning_rate), first, rtol=1e-6)
    np.testing.assert_allclose(number(given.eta_t), first / 0.8, rtol=1e-6)


def test_base_learning_rate_where_the_rate_is_0():
    optimizer = SGDW(0, base_learning_rate=0.1, weight_decay=0.5)
    assert number(optimizer.eta_t) == 0
    optimizer.learning_rate = 0.1  # a warm-up by callback
    assert number(optimizer.eta_t) == 1


def test_annealing_from_another_rate_than_the_base():
    optimizer = SGDW(0.05, base_learning_rate=0.1, weight_decay=0.5, **ANNEALING)
    close(number(optimizer.learning_rate), 0.05)
    close(number(optimizer.eta_t), 0.5)
    assert optimizer.get_config()["base_learning_rate"] == 0.1


# --- positions ---


def position(optimizer):
    return int(numpy(optimizer.t_cur))


def test_t_cur_counts_within_the_cycle():
    optimizer = SGDW(CosineWarmRestarts(0.1, 2, t_mul=2, warmup_steps=2), weight_decay=0.5)
    updates = stepper(optimizer)
    seen = [position(optimizer)]
    for _ in range(9):
        updates()
        seen.append(position(optimizer))
    assert seen == [0, 0, 0, 1, 0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("how", ["restart", "t_cur"])
@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize(("to", "expected"), [(0, 0), (-1, 0), (2, 2), (4, 4), (np.int64(3), 3)])
def test_restart(how, before, to, expected):
    optimizer = SGDW(0.1, weight_decay=0.5, normalize_weight_decay=False, **ANNEALING)
    updates = stepper(optimizer)
    updates(before)
    if how == "restart":
        optimizer.restart(to)
    else:
        optimizer.t_cur = to
    assert position(optimizer) == expected
    assert int(numpy(optimizer.iterations)) == before
    expected = [1 - 0.5 * cosine(s % 5, 5) for s in (expected, expected + 1)]
    np.testing.assert_allclose(updates(2), expected, rtol=1e-6)


def test_restart_before_build_takes_effect_at_build():
    optimizer = SGDW(0.1, weight_decay=0.5, t_cur=4, **ANNEALING)
    assert position(optimizer) == 4
    optimizer.restart(2)
    assert position(optimizer) == 2
    optimizer.build(variables("w"))
    assert position(optimizer) == 2


def test_restart_goes_to_the_first_cycle_without_its_warmup():
    optimizer = SGDW(CosineWarmRestarts(0.1, 3, t_mul=2, m_mul=0.5, warmup_steps=2), 0.0)
    optimizer.build([])
    assert number(optimizer.eta_t) < 0.5
    optimizer.restart()
    assert (position(optimizer), number(optimizer.eta_t)) == (0, 1)
    optimizer = SGDW(
        CosineWarmRestarts(0.1, 3, t_mul=2, m_mul=0.5, warmup_steps=2), weight_decay=0.5
    )
    updates = stepper(optimizer)
    updates(6)  # in the second cycle, 6 long and from 1/2
    assert position(optimizer) == 1
    optimizer.restart(1)
    np.testing.assert_allclose(number(optimizer.eta_t), cosine(1, 3), rtol=1e-6)
    updates(2)
    assert (position(optimizer), number(optimizer.eta_t)) == (0, 0.5)


def test_restart_after_the_only_cycle():
    optimizer = SGDW(0.1, weight_decay=0.5, eta_min=0.2, autorestart=False, **ANNEALING)
    updates = stepper(optimizer)
    updates(7)
    assert position(optimizer) == 4
    close(number(optimizer.eta_t), 0.2)
    optimizer.restart()
    assert (position(optimizer), number(optimizer.eta_t)) == (0, 1)
    updates(6)
    close(number(optimizer.eta_t), 0.2)  # and stays there again


def test_restart_keeps_r_and_the_moments():
    optimizer = SGDW(0.1, 0.9, weight_decay=0, **ANNEALING)
    ours = variables("w")
    step = eager(optimizer, ours)
    optimizer.learning_rate = 0.05
    step([ZERO + 1])
    optimizer.restart()
    close(number(optimizer.learning_rate), 0.05)
    np.testing.assert_allclose(numpy(optimizer.variables[-1]), -0.05, rtol=1e-6)


def test_restart_inside_an_accumulation():
    optimizer = SGDW(
        0.1,
        weight_decay=0.5,
        normalize_weight_decay=False,
        gradient_accumulation_steps=2,
        **ANNEALING,
    )
    ours = variables("w")
    step = eager(optimizer, ours)

    def left(micro_batches):
        found = []
        for _ in range(micro_batches):
            ours[0].assign(np.ones((2,), "float32"))
            step([ZERO])
            found.append(numpy(ours[0])[0])
        return found

    np.testing.assert_allclose(left(3), [1, 0.5, 1], rtol=1e-6)
    assert position(optimizer) == 1
    optimizer.restart(3)  # one micro-batch is in already
    assert position(optimizer) == 3
    expected = [1 - 0.5 * cosine(3, 5), 1, 1 - 0.5 * cosine(4, 5), 1, 0.5]
    np.testing.assert_allclose(left(5), expected, rtol=1e-6)


def test_t_cur_argument():
    given = SGDW(0.1, weight_decay=0.5, t_cur=3, **ANNEALING)
    assert position(given) == 3
    np.testing.assert_allclose(number(given.eta_t), cosine(3, 5), rtol=1e-6)
    assert position(SGDW(0.1, t_cur=-1, **ANNEALING)) == 0
    updates = stepper(given)
    updates(2)
    assert (position(given), number(given.eta_t)) == (0, 1)


def test_without_a_schedule_t_cur_is_the_number_of_updates():
    optimizer = SGDW(0.1, weight_decay=0.5, gradient_accumulation_steps=2)
    updates = stepper(optimizer)
    updates(5)
    assert position(optimizer) == 2


# --- decays and multipliers ---


def test_weight_decays_and_lr_multipliers():
    l2 = schedules.ExponentialDecay(0.1, 10, 0.5)
    optimizer = AdamW(
        weight_decay=1e-3,
        weight_decays={"a": 0.5, "b": (0.25, l2), "bias": 0, "c/kernel": (0.1, 0)},
        lr_multipliers={"a": 0.5, "b": 1, "bias": 0},
        total_iterations=100,  # shown before normalization
    )
    given = {"a": 0.5, "b": (0.25, l2), "bias": 0, "c/kernel": (0.1, 0)}
    assert optimizer.weight_decays == given
    assert optimizer.lr_multipliers == {"a": 0.5, "b": 1, "bias": 0}
    assert optimizer.weight_decay == 1e-3
    optimizer.build(variables("a/kernel", "b/kernel", "b/bias", "c/kernel", "d"))
    assert optimizer.weight_decays == {
        "a/kernel": (0.0, 0.5),
        "b/kernel": (0.25, l2),
        "c/kernel": (0.1, 0.0),
        "d": (0.0, 1e-3),
    }
    assert optimizer.weight_decays["b/kernel"][1] is l2
    assert optimizer.lr_multipliers == {"a/kernel": 0.5, "b/bias": 0.0}
    assert optimizer.weight_decay == 1e-3


def test_what_is_read_is_a_copy():
    given = {"w": 0.5}
    optimizer = AdamW(weight_decays=given, lr_multipliers=given)
    given["w"] = 0.7
    optimizer.weight_decays["w"] = 0.9
    optimizer.lr_multipliers.clear()
    optimizer.build(variables("w"))
    optimizer.weight_decays.clear()
    assert optimizer.weight_decays == {"w": (0.0, 0.5)}
    assert optimizer.lr_multipliers == {"w": 0.5}


def test_variables_that_share_a_path():
    optimizer = SGDW(
        0.1,
        weight_decays={"w": 0.1, "w#2": 0.2, "v": 0.5},
        lr_multipliers={"w#3": 3, "v/": 2},
    )
    ours = variables("w", "v", "w", "w", "v")
    optimizer.build(ours)
    assert optimizer.weight_decays == {
        "w": (0.0, 0.1),
        "w#2": (0.0, 0.2),
        "v": (0.0, 0.5),
    }
    assert optimizer.lr_multipliers == {"w#3": 3.0, "v": 2.0, "v#2": 2.0}
    eager(optimizer, ours)([ZERO] * 5)
    # "v", like "w", is a whole path, and so names one variable.
    np.testing.assert_allclose([numpy(v)[0] for v in ours], [0.9, 0.5, 0.8, 1, 1], rtol=1e-6)


def test_an_attribute_for_each_argument():
    optimizer = AdamW(0.1, beta_1=0.8, beta_2=0.9, epsilon=1e-3, amsgrad=True, clipnorm=1.0)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.8, 0.9, 1e-3)
    assert optimizer.amsgrad is True
    assert optimizer.clipnorm == 1
    optimizer = NadamW(momentum_decay=1)
    assert optimizer.momentum_decay == 1
    optimizer = SGDW(0.1, 0.9, True)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
def test_fast_can_be_set_at_any_time(cls):
    """It is how the numbers are computed: to rounding they stay, and it is no part of the optimizer's state."""
    runs = {}
    for fast in ((True,), (False,), (True, False), (False, True)):
        optimizer = cls(0.1, weight_decay=Decay(0.1, l1=1e-3))
        assert optimizer.fast is True
        rng = np.random.default_rng(0)
        ours = [make_variable(f"w{i}", rng.normal(size=(3, 2))) for i in range(2)]
        for k in range(6):
            optimizer.fast = fast[k % len(fast)]
            assert optimizer.fast is fast[k % len(fast)]
            eager(optimizer, ours)([rng.normal(size=(3, 2)).astype("float32") for _ in ours])
        runs[fast] = [numpy(v) for v in [*ours, *optimizer.variables]]
        assert "fast" not in optimizer.get_config()
        assert cls.from_config(optimizer.get_config()).fast is True
    for run in runs.values():
        for one, other in zip(run, runs[True,], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("cls", "stock"),
    [
        (AdamW, keras.optimizers.AdamW),
        (NadamW, keras.optimizers.Nadam),
        (SGDW, keras.optimizers.SGD),
    ],
)
def test_positional_order_and_defaults_are_keras_own(cls, stock):
    """Of the arguments that are ours and theirs; weight_decay and momentum_decay apart."""
    import inspect

    def positional(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}

    ours, theirs = positional(cls), positional(stock)
    theirs = {name: default for name, default in theirs.items() if name in ours}
    ours = {name: default for name, default in ours.items() if name in theirs}
    assert list(ours) == list(theirs)
    for name in ours.keys() - {"weight_decay"}:
        assert ours[name] == theirs[name], name


def test_keyword_only():
    for cls in (AdamW, NadamW, SGDW):
        with pytest.raises(TypeError, match="positional"):
            cls(*[0.1] * 7)


# --- T and normalization ---

L = 0.5
WARM = partial(CosineWarmRestarts, 0.1, 4, t_mul=4)
# arguments, and what is left of 1 after each update with zero gradients: 1 − η·λ·√(1/T)
NORMALIZED = {
    "neither": ({}, [L]),
    "total_iterations": ({"total_iterations": 16}, [L / 4]),
    "total_iterations_wd": ({"total_iterations_wd": 25}, [L / 5]),
    "both": ({"total_iterations": 16, "total_iterations_wd": 25}, [L / 5]),
    "asked for": ({"total_iterations": 16, "normalize_weight_decay": True}, [L / 4]),
    "asked for, wd": ({"total_iterations_wd": 25, "normalize_weight_decay": True}, [L / 5]),
    "refused": ({"total_iterations": 16, "normalize_weight_decay": False}, [L]),
    "False of NumPy": ({"total_iterations": 16, "normalize_weight_decay": np.False_}, [L]),
    "nothing to refuse": ({"normalize_weight_decay": False}, [L]),
    "T = 1": ({"total_iterations": 1}, [L]),
    "annealing": (
        {"total_iterations": 4, "use_cosine_annealing": True},
        [L / 2 * cosine(s, 4) for s in (0, 1, 2, 3, 0)],
    ),
    "annealing, not normalized": (
        {"total_iterations": 4, "use_cosine_annealing": True, "normalize_weight_decay": False},
        [L * cosine(s, 4) for s in (0, 1, 2, 3, 0)],
    ),
    "annealing, another T": (
        {"total_iterations": 4, "use_cosine_annealing": True, "total_iterations_wd": 100},
        [L / 10 * cosine(s, 4) for s in (0, 1, 2, 3, 0)],
    ),
    "cosine": (
        {"learning_rate": WARM},
        [L * cosine(s, 4) for s in range(4)] + [L * cosine(s, 16) for s in range(2)],
    ),
    "cosine, normalized": (
        {"learning_rate": WARM, "normalize_weight_decay": True},
        [L / 2 * cosine(s, 4) for s in range(4)] + [L / 4 * cosine(s, 16) for s in range(2)],
    ),
    "cosine, a fixed T": (
        {"learning_rate": WARM, "total_iterations_wd": 25},
        [L / 5 * cosine(s, 4) for s in range(4)] + [L / 5 * cosine(s, 16) for s in range(2)],
    ),
    "cosine, a fixed T, asked for": (
        {"learning_rate": WARM, "total_iterations_wd": 25, "normalize_weight_decay": True},
        [L / 5 * cosine(0, 4)],
    ),
    "cosine, not normalized": ({"learning_rate": WARM, "normalize_weight_decay": False}, [L]),
    "keras schedule": (
        {"learning_rate": partial(schedules.ExponentialDecay, 0.1, 1, 0.5), "total_iterations": 16},
        [L / 4, L / 8, L / 16],
    ),
    "callable": ({"learning_rate": partial(Dial, 0.1), "total_iterations": 16}, [L / 4]),
}


@pytest.mark.parametrize("case", NORMALIZED.values(), ids=NORMALIZED)
def test_normalization(case):
    arguments, decays = case
    rate = arguments.get("learning_rate", lambda: 0.1)()
    optimizer = SGDW(**{**arguments, "learning_rate": rate, "weight_decay": L})
    np.testing.assert_allclose(stepper(optimizer)(len(decays)), 1 - np.array(decays), rtol=1e-6)


def test_normalization_is_of_l1_too():
    optimizer = SGDW(0.1, weight_decays={"w": (0.4, 0.2)}, total_iterations=4)
    np.testing.assert_allclose(stepper(optimizer)(), [1 - 0.3], rtol=1e-6)


SUGAR = {
    "plain": ({}, {}),
    "eta": ({"eta_min": 0.1, "eta_max": 0.7}, {"eta_min": 0.1, "eta_max": 0.7}),
    "once": ({"autorestart": False, "eta_min": 0.1}, {"autorestart": False, "eta_min": 0.1}),
    "False of NumPy": (
        {"autorestart": np.False_, "eta_min": 0.1},
        {"autorestart": False, "eta_min": 0.1},
    ),
    "again": ({"autorestart": True}, {"autorestart": True}),
    "t_cur": ({"t_cur": 3}, {}),
    "two": ({"total_iterations": 2}, {}),
}


@pytest.mark.parametrize("case", SUGAR.values(), ids=SUGAR)
@pytest.mark.parametrize("normalize", [None, False])
def test_annealing_is_sugar(case, normalize):
    arguments, meaning = case
    arguments = {**ANNEALING, **arguments}
    sweet = SGDW(0.1, weight_decay=0.5, normalize_weight_decay=normalize, **arguments)
    plain = SGDW(
        CosineWarmRestarts(0.1, arguments["total_iterations"], **meaning),
        weight_decay=0.5,
        normalize_weight_decay=normalize is None,
    )
    plain.t_cur = arguments.get("t_cur", 0)
    sweet_updates, plain_updates = stepper(sweet), stepper(plain)
    for _ in range(8):
        assert number(sweet.learning_rate) == number(plain.learning_rate)
        assert number(sweet.eta_t) == number(plain.eta_t)
        assert position(sweet) == position(plain)
        assert sweet_updates() == plain_updates()


def test_annealing_is_off_by_default():
    optimizer = SGDW(0.1, weight_decay=0.5, total_iterations=4, autorestart=False)
    np.testing.assert_allclose(stepper(optimizer)(6), 0.75, rtol=1e-6)
