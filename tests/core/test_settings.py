"""Settings: β1, ε, momentum and so on may be schedules, and may be set at any time.

All are compared with the float64 NumPy version at every update, compiled and eagerly.
"""

import itertools
import math
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PiecewiseConstantDecay, PolynomialDecay

import keras_decoupled
import oracle
import training
from cases import ALPHA, BACKEND, COMPILED, assert_follows, eager, gradients, make_variable, numpy
from keras_decoupled import (
    SGDW,
    Adafactor,
    Adagrad,
    AdamW,
    CosineWarmRestarts,
    Lion,
    Muon,
    NadamW,
    RMSprop,
    decouple,
)
from keras_decoupled.callbacks import LogRates
from small import again

FIRST, SECOND, UPDATES = 2, 4, 7  # the updates before which a setting moves
# name: (what it is made with, {setting: its three values}). All are exact in float32: what rounds is tested apart.
MOVES = {
    "AdamW": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.875)}),
    "AdamW, ε": ({"amsgrad": True}, {"epsilon": (0.125, 1.0, 0.0)}),
    "NadamW": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.875, 0.5)}),
    "NadamW, ψ": ({}, {"momentum_decay": (0.0, 1.0, 0.5), "epsilon": (0.125, 1.0, 0.25)}),
    "SGDW": ({}, {"momentum": (0.875, 0.0, 0.5)}),
    "SGDW, nesterov": ({"nesterov": True}, {"momentum": (0.875, 0.0, 0.5)}),
    "Adadelta": ({}, {"rho": (0.75, 0.5, 0.875), "epsilon": (0.25, 0.5, 1.0)}),
    "Adafactor": (
        {},
        {"beta_2_decay": (-0.5, -1.0, -0.25), "clip_threshold": (1.0, 0.5, 2.0)}
        | {"epsilon_1": (0.125, 1.0, 0.5), "epsilon_2": (0.25, 0.5, 0.125)},
    ),
    "Adagrad": ({}, {"epsilon": (0.25, 1.0, 0.125)}),
    "Adamax": (
        {},
        {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.25), "epsilon": (0.125, 1.0, 0.5)},
    ),
    "Lamb": (
        {},
        {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.875), "epsilon": (0.125, 1.0, 0.5)},
    ),
    "Lion": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.875)}),
    "RMSprop": ({"momentum": 0.5}, {"rho": (0.75, 0.5, 0.875), "epsilon": (0.125, 1.0, 0.5)}),
    "Muon": (
        {"adam_beta_2": 0.75},
        {"momentum": (0.875, 0.5, 0.75), "rms_rate": (0.25, 0.5, 0.125)}
        | {"adam_beta_1": (0.875, 0.5, 0.75), "adam_lr_ratio": (1.0, 0.5, 0.25)},
    ),
    "Muon, Adam": (
        {"adam_beta_1": 0.875},
        {"adam_beta_2": (0.75, 0.5, 0.875), "epsilon": (0.125, 1.0, 0.5)}
        | {"muon_a": (3.5, 3.0, 2.5), "muon_b": (-4.5, -4.0, -3.0), "muon_c": (1.5, 2.0, 1.0)},
    ),
}


def one_by_one(optimizer, variables):
    optimizer.fast = False
    return eager(optimizer, variables)


RUNNERS = {"eager": eager, "one by one": one_by_one} if BACKEND == "torch" else COMPILED
FIRST_RUNNER, *OTHER_RUNNERS = RUNNERS
# In one turn every other setting is a schedule, and the rest are set; in the next turn it is the other way round.
# Where each run is compiled, the cases themselves take turns. (case, turn, runner, gradients accumulated)
TURNS = (0, 1) if BACKEND == "torch" else (0,)
TRIED = [(case, turn, FIRST_RUNNER, 1) for case in MOVES for turn in TURNS]
TRIED += [
    (case, turn, runner, 1)
    for runner in OTHER_RUNNERS
    for turn in TURNS
    for case in ("AdamW", "NadamW, ψ", "SGDW", "Lion", "RMSprop", "Lamb")
]
TRIED += [(case, 0, FIRST_RUNNER, 2) for case in ("AdamW", "Lion")]
SHAPES = {"net/kernel": (3, 2), "net/bias": (2,)}  # for Muon one of each part
VALUES = [np.linspace(0.2, 0.7, math.prod(s)).reshape(s).astype("float32") for s in SHAPES.values()]


def at(values, k):
    return values[(k >= FIRST) + (k >= SECOND)]


def make(case, **arguments):
    given, _ = MOVES[case]
    cls = getattr(keras_decoupled, case.partition(",")[0])
    return cls(**{"learning_rate": ALPHA, "weight_decay": 2.0**-5, **given, **arguments})


def first_values(moves):
    return {setting: values[0] for setting, values in moves.items()}


def as_schedules(moves):
    boundaries = [FIRST - 1, SECOND - 1]
    return {name: PiecewiseConstantDecay(boundaries, [*values]) for name, values in moves.items()}


def follow(step, variables, algorithm, move, accumulate=1, multipliers=None):
    """Updates beside NumPy's in float64. At each, the weights have to agree; `move` is called before."""
    run = oracle.Run(algorithm, VALUES, ALPHA, [(0.0, 2.0**-5)] * len(VALUES), multipliers)
    for k, grads in enumerate(gradients(UPDATES, list(SHAPES.values()))):
        for state, theta in zip(run.states, run.values, strict=True):
            state |= {"theta": theta, "adam": theta.ndim < 2}
        move(k)
        for _ in range(accumulate):
            step(grads)
        run.step(grads)
        assert_follows(variables, run, list(SHAPES))


def moving_algorithm(case):
    """The oracle's step, with each setting as it is at update k."""
    given, moves = MOVES[case]
    name = case.partition(",")[0]
    of, mus = getattr(oracle, name.lower()), []

    def algorithm(g, state, k, rate):
        own = given | {setting: at(values, k) for setting, values in moves.items()}
        if name == "NadamW":  # the product keeps its earlier factors
            psi = own.get("momentum_decay", 0.004)
            mus[k:] = [own.get("beta_1", 0.9) * (1 - 0.5 * 0.96 ** ((k + 1) * psi))]
            own["mus"] = mus
        return of(g, state, k, rate, **own)

    return algorithm


# The multiplier of a stock class's kernel: in update 2 the weight waits, and its moments go on. (Of our own classes,
# `CASES` has some.)
THAWING = PiecewiseConstantDecay([1, 2], [0.5, 0.0, 1.0])
THAWING_OF_NUMPY = [lambda k: [0.5, 0.0, 1.0][(k > 1) + (k > 2)], 1.0]


@pytest.mark.parametrize(("case", "turn", "runner", "accumulate"), TRIED)
def test_every_update_is_that_of_numpy(case, turn, runner, accumulate):
    """Set between updates, or given as a schedule of k: both are the same numbers."""
    moves = MOVES[case][1]
    first = (list(MOVES).index(case) + turn) % 2
    scheduled = as_schedules({setting: moves[setting] for setting in [*moves][first::2]})
    own = first_values(moves) | scheduled
    own |= {"gradient_accumulation_steps": accumulate} if accumulate > 1 else {}
    thaws = case.partition(",")[0] not in ("AdamW", "NadamW", "SGDW")
    own |= {"lr_multipliers": {"kernel": THAWING}} if thaws else {}
    optimizer, variables = make(case, **own), list(map(make_variable, SHAPES, VALUES))
    kernels = []

    def move(k):
        kernels.append(numpy(variables[0]))
        for setting, values in moves.items():
            if setting not in scheduled and k in (FIRST, SECOND):
                setattr(optimizer, setting, at(values, k))
            now = getattr(optimizer, setting)
            assert now is scheduled[setting] if setting in scheduled else now == at(values, k)

    multipliers = THAWING_OF_NUMPY if thaws else None
    step = RUNNERS[runner](optimizer, variables)
    follow(step, variables, moving_algorithm(case), move, accumulate, multipliers)
    still = [np.array_equal(*pair) for pair in itertools.pairwise(kernels)]
    assert still == [thaws and k == 2 for k in range(UPDATES - 1)]


def test_a_restart_leaves_the_schedules_of_settings_alone():
    """They count updates. At a rate that is always the same, `restart()` changes nothing else."""
    both = []
    for restarts in (False, True):
        flat = CosineWarmRestarts(ALPHA, 9, eta_min=1.0)
        optimizer = SGDW(flat, weight_decay=2.0**-5, momentum=SCHEDULED)
        variables = list(map(make_variable, SHAPES, VALUES))
        step = RUNNERS[FIRST_RUNNER](optimizer, variables)
        for k, grads in enumerate(gradients(UPDATES, list(SHAPES.values()))):
            if restarts and k in (2, 4):
                optimizer.restart()
            step(grads)
        both.append(list(map(numpy, variables)))
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one, other)


def test_variables_share_the_evaluation_of_a_schedule():
    """Of a multiplier and of a decay: an update asks each once, however many variables have it."""

    class Counting(keras.optimizers.schedules.LearningRateSchedule):
        calls = 0

        def __call__(self, step):
            self.calls += 1
            return 0.5

    multiplier, decay, own = Counting(), Counting(), list(map(make_variable, SHAPES, VALUES))
    rules = {"kernel": multiplier, "bias": multiplier}
    decays = {"kernel": decay, "bias": (0.0, decay)}
    optimizer = SGDW(ALPHA, lr_multipliers=rules, weight_decays=decays)
    step, (grads,) = eager(optimizer, own), gradients(1, list(SHAPES.values()))
    step(grads)
    multiplier.calls = decay.calls = 0
    step(grads)
    assert (multiplier.calls, decay.calls) == (1, 1)


# --- in training ---


def fitted(optimizer, *callbacks):
    """The model after four epochs, and its history."""
    model = training.linear()
    model.compile(optimizer, loss="mse")
    given = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [*callbacks]}
    return model, model.fit(training.X, training.Y, epochs=4, **given).history


class Moves(keras.callbacks.Callback):
    """Sets β1 at the beginning of each epoch; `get` finds the optimizer."""

    def __init__(self, get):
        super().__init__()
        self.get = get

    def on_epoch_begin(self, epoch, logs=None):
        self.get(self.model).beta_1 = 0.5 + 0.125 * epoch


SCHEDULED = PiecewiseConstantDecay([1, 3, 5], [0.5, 0.625, 0.75, 0.875])  # two updates an epoch
SCALED = partial(keras.optimizers.LossScaleOptimizer, initial_scale=1.0)
WRAPPERS = [
    (lambda one: one, lambda model: model.optimizer),
    (SCALED, lambda model: model.optimizer.inner_optimizer),
]


def test_a_callback_sets_it():
    """As a schedule of the same numbers; and what moves is seen."""
    own = {"weight_decay": 0.01, "beta_2": PolynomialDecay(0.9, 8, 0.5)}
    scheduled, _ = fitted(AdamW(ALPHA, beta_1=SCHEDULED, **own))
    for wrap, get in WRAPPERS:
        model, history = fitted(wrap(AdamW(ALPHA, **own)), LogRates(), Moves(get))
        for one, other in zip(model.get_weights(), scheduled.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6)
        assert history["beta_1"] == [0.5, 0.625, 0.75, 0.875]
        np.testing.assert_allclose(history["beta_2"], [0.8, 0.7, 0.6, 0.5], rtol=1e-6)
        assert "epsilon" not in history
        text = str(get(model).explain())
        assert "beta_1 is 0.875 now; the optimizer was made with 0.9." in text
        assert "beta_2 follows a PolynomialDecay; the next update uses 0.5." in text
        assert "epsilon" not in text


@pytest.mark.parametrize("cls", [SGDW, Lion])
def test_a_derived_class_reads_the_value_of_the_update(cls):
    """In `update_step`, also where it is compiled; outside, a float."""
    name = "momentum" if cls is SGDW else "beta_1"
    read = []

    class Mine(cls):
        def update_step(self, gradient, variable, learning_rate):
            read.append(getattr(self, name))
            super().update_step(gradient * getattr(self, name), variable, learning_rate)

    ours, by_hand = (list(map(make_variable, SHAPES, VALUES)) for _ in range(2))
    optimizer, plain = (made(ALPHA, weight_decay=0.01, **{name: 0.5}) for made in (Mine, cls))
    step, step_by_hand = RUNNERS[FIRST_RUNNER](optimizer, ours), eager(plain, by_hand)
    for value, grads in zip((0.5, 0.25), gradients(2, list(SHAPES.values())), strict=True):
        for one in (optimizer, plain):
            setattr(one, name, value)
        step(grads)
        step_by_hand([value * g for g in grads])
    for a, b in zip(ours, by_hand, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-6)
    assert getattr(optimizer, name) == 0.25
    assert isinstance(getattr(optimizer, name), float)
    assert BACKEND != "torch" or {type(value) for value in read} == {float}


# --- what an optimizer refuses ---

A_SCHEDULE = PolynomialDecay(0.9, 10, 0.5)
# A class, what it is made with, and what cannot be set after the build: ValueErrors and TypeErrors.
REFUSED = [
    (
        AdamW,
        {},
        [
            *[("beta_1", 1.0), ("beta_1", -0.1), ("beta_1", math.nan)],
            ("beta_2", 0.99999999),  # 1 in float32
            *[("epsilon", -1e-8), ("epsilon", math.inf), ("epsilon", 1e300), ("amsgrad", True)],
        ],
        [("beta_1", "0.9"), ("beta_1", True), ("beta_1", None), ("beta_1", A_SCHEDULE)],
    ),
    (AdamW, {"beta_1": A_SCHEDULE}, [("beta_1", 0.5)], []),
    (NadamW, {}, [("beta_1", 1.0), ("momentum_decay", -1.0)], []),
    (SGDW, {}, [("momentum", 0.9)], []),  # it has no buffer
    (SGDW, {"momentum": 0.9}, [("momentum", 1.0), ("nesterov", True)], []),
    (Lion, {}, [("beta_1", 1.0), ("beta_1", -0.1)], []),
    (RMSprop, {"momentum": 0.5}, [("momentum", 0.9), ("centered", True), ("rho", 1.0)], []),
    (Adagrad, {}, [("initial_accumulator_value", 0.5), ("epsilon", -1e-7)], []),
    (
        Adafactor,
        {},
        [
            *[("clip_threshold", 0.0), ("beta_2_decay", 0.0), ("relative_step", False)],
            *[("epsilon_1", -1e-30), ("epsilon_2", -1e-3)],
        ],
        [],
    ),
    (
        Muon,
        {},
        [
            *[("ns_steps", 3), ("exclude_layers", ["head"]), ("momentum", 1.0)],
            *[("adam_beta_1", 1.0), ("adam_beta_2", -0.1), ("epsilon", -1e-7)],
            *[("muon_a", math.nan), ("adam_lr_ratio", math.inf), ("rms_rate", -math.inf)],
        ],
        [("rms_rate", None)],
    ),
    (Muon, {"rms_rate": None}, [("rms_rate", 0.2)], []),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: f"{row[0].__name__}-{[*row[1]]}")
def test_what_cannot_be_set(row):
    """The error names the setting and what it got; nothing has changed."""
    cls, given, *refused = row
    optimizer = cls(ALPHA, weight_decay=0.01, **given)
    optimizer.build(list(map(make_variable, SHAPES, VALUES)))
    before = optimizer.get_config(), training.values(optimizer.variables)
    for error, attempts in zip((ValueError, TypeError), refused, strict=True):
        for name, value in attempts:
            with pytest.raises(error, match=rf"^`{name}` .*Received: .*\. "):
                setattr(optimizer, name, value)
    assert optimizer.get_config() == before[0]
    assert all(map(np.array_equal, training.values(optimizer.variables), before[1]))


@pytest.mark.parametrize(
    ("cls", "name", "schedule"),
    [
        (AdamW, "beta_1", PolynomialDecay(1.0, 10, 0.5)),
        (AdamW, "beta_1", PolynomialDecay(0.5, 10_000, 1.0)),
        (AdamW, "epsilon", PolynomialDecay(1e-7, 10, -1.0)),
        (Lion, "beta_2", PolynomialDecay(0.5, 1000, 1.5)),
        (RMSprop, "momentum", A_SCHEDULE),
        (Adagrad, "initial_accumulator_value", A_SCHEDULE),
        (Muon, "ns_steps", A_SCHEDULE),
    ],
)
def test_what_cannot_be_a_schedule(cls, name, schedule):
    with pytest.raises((ValueError, TypeError), match=rf"`{name}` (at update \d+)? ?(must|cannot)"):
        cls(ALPHA, weight_decay=0.01, **{name: schedule})


def test_before_the_build_all_can_be_set():
    optimizer, expected = SGDW(ALPHA, weight_decay=0.01), SGDW(ALPHA, 0.5, True, weight_decay=0.01)
    optimizer.momentum, optimizer.nesterov = 0.5, True
    both = []
    for one in (optimizer, expected):
        variables = list(map(make_variable, SHAPES, VALUES))
        for grads in gradients(3, list(SHAPES.values())):
            eager(one, variables)(grads)
        both.append(list(map(numpy, variables)))
    np.testing.assert_array_equal(both[0][0], both[1][0])


def test_a_momentum_that_rises_from_0():
    """As a schedule it has its buffer from the first update on."""
    rising, values = PiecewiseConstantDecay([1, 3], [0.0, 0.5, 0.75]), (0.0, 0.5, 0.75)
    optimizer = SGDW(ALPHA, weight_decay=2.0**-5, momentum=rising)
    variables = list(map(make_variable, SHAPES, VALUES))
    step = RUNNERS[FIRST_RUNNER](optimizer, variables)
    sgdw = oracle.sgdw
    follow(step, variables, lambda *args: sgdw(*args, momentum=at(values, args[2])), lambda k: None)


@pytest.mark.parametrize("cls", [AdamW, Lion])
def test_what_is_keras_own_is_no_setting(cls):
    """It is an attribute as in Keras, set at any time, and neither a variable nor a schedule."""
    moves = {"clipnorm": 0.5, "clipvalue": 0.5, "global_clipnorm": 0.5, "loss_scale_factor": 2.0}
    moves |= {"use_ema": True, "ema_momentum": 0.5}
    for name in moves:
        with pytest.raises(TypeError, match=f"`{name}` must be"):
            cls(ALPHA, weight_decay=0.01, **{name: A_SCHEDULE})
    optimizer = cls(ALPHA, weight_decay=0.01, use_ema=True)
    optimizer.build(list(map(make_variable, SHAPES, VALUES)))
    for name, value in moves.items():
        setattr(optimizer, name, value)
        assert optimizer.get_config()[name] == getattr(optimizer, name) == value
    assert moves.keys().isdisjoint({variable.name for variable in optimizer.variables})


# --- configs (files: test_saved_numbers.py) ---


@pytest.mark.parametrize("case", ["NadamW, ψ", "RMSprop"])
def test_a_config_has_what_is_now(case):
    moves = MOVES[case][1]
    optimizer, scheduled = make(case, **first_values(moves)), make(case, **as_schedules(moves))
    for name, values in moves.items():
        setattr(optimizer, name, values[1])
    copied = again(optimizer)
    assert {n: getattr(copied, n) for n in moves} == {n: v[1] for n, v in moves.items()}
    copied = again(scheduled)
    for name in moves:
        assert getattr(copied, name).get_config() == getattr(scheduled, name).get_config()
    assert copied.get_config() == scheduled.get_config()


def test_digits_stay_as_they_are_written():
    optimizer = AdamW(ALPHA, weight_decay=0.01, beta_2=0.99999999)
    assert optimizer.beta_2 == 0.99999999
    optimizer.beta_1 = 0.85
    assert optimizer.get_config()["beta_1"] == optimizer.beta_1 == 0.85


# --- a user's class ---


class Heavy(keras.optimizers.Optimizer):
    """Heavy ball. `momentum` is used in tensors alone, `floor` in Python, `scale` in the constructor."""

    def __init__(self, learning_rate=0.1, momentum=0.5, floor=0.0, scale=1.0, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum, self.floor, self.scale = momentum, floor, scale
        self.twice = 2 * scale

    def build(self, variables):
        super().build(variables)
        self.buffers = self.add_optimizer_variables(variables, "buffer")

    def update_step(self, gradient, variable, learning_rate):
        buffer = self.buffers[self._get_variable_index(variable)]
        new = self.momentum * buffer + self.twice * gradient
        if self.floor > 0:
            new = ops.where(ops.abs(new) < self.floor, 0.0, new)
        self.assign(buffer, new)
        self.assign_sub(variable, learning_rate * new)


@pytest.mark.parametrize("way", ["set", "a schedule"])
def test_a_float_of_a_users_class(way):
    values = (0.875, 0.5, 0.75)
    own = as_schedules({"momentum": values}) if way == "a schedule" else {"momentum": values[0]}
    variables = list(map(make_variable, SHAPES, VALUES))
    optimizer = decouple(Heavy)(ALPHA, weight_decay=2.0**-5, **own)
    step = RUNNERS[FIRST_RUNNER](optimizer, variables)

    def heavy(g, state, k, rate):
        state["buf"] = at(values, k) * state.get("buf", 0.0) + 2 * g
        return rate * state["buf"]

    def move(k):
        if way == "set":
            optimizer.momentum = at(values, k)

    follow(step, variables, heavy, move)


def test_what_a_users_class_cannot_obey():
    """What it uses in Python a compiled step does not see; what it read in its constructor no step sees."""
    optimizer = decouple(Heavy)(ALPHA, weight_decay=0.01, floor=0.25, scale=0.5)
    optimizer.floor = 0.125  # before the build it may
    optimizer.build(list(map(make_variable, SHAPES, VALUES)))
    refused = ["scale"] if BACKEND == "torch" else ["floor", "scale"]
    for name in refused:
        with pytest.raises(ValueError, match=rf"`{name}` cannot be set after build: `update_step`"):
            setattr(optimizer, name, 0.75)
        optimizer_with = decouple(Heavy)(ALPHA, weight_decay=0.01, **{name: A_SCHEDULE})
        with pytest.raises(ValueError, match=rf"`{name}` cannot be a schedule: `update_step`"):
            optimizer_with.build(list(map(make_variable, SHAPES, VALUES)))
    assert (optimizer.floor, optimizer.scale) == (0.125, 0.5)
    optimizer.momentum = 0.25
    assert optimizer.momentum == 0.25
    made = {v.path.rpartition("/")[2] for v in optimizer.variables}
    assert made & {"momentum", "floor", "scale"} == {"momentum", "floor", "scale"} - {*refused}
