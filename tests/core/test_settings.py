"""Settings: β1, ε, momentum and so on may be schedules, and may be set at any time.

All are compared with the float64 NumPy version at every update, compiled and eagerly.
"""

import json
import math
import warnings
from functools import partial
from itertools import product

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PiecewiseConstantDecay, PolynomialDecay

import keras_decoupled
import oracle
import training
from cases import ALPHA, BACKEND, COMPILED, assert_follows, eager, gradients, make_variable, numpy
from keras_decoupled import SGDW, AdamW, Lion, NadamW, RMSprop, decouple
from keras_decoupled.callbacks import LogRates

FIRST, SECOND, UPDATES = 2, 4, 7  # the updates before which a setting moves
# name: (class, what it is made with, {setting: its three values}). All are exact in float32: what rounds is tested
# apart.
MOVES = {
    "AdamW": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.875)}),
    "AdamW, ε": ({"amsgrad": True}, {"epsilon": (0.125, 1.0, 0.0)}),
    "NadamW": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.875, 0.5)}),
    "NadamW, ψ": ({}, {"momentum_decay": (0.0, 1.0, 0.5), "epsilon": (0.125, 1.0, 0.25)}),
    "SGDW": ({}, {"momentum": (0.875, 0.0, 0.5)}),
    "SGDW, nesterov": ({"nesterov": True}, {"momentum": (0.875, 0.0, 0.5)}),
    "Adadelta": ({}, {"rho": (0.75, 0.5, 0.875), "epsilon": (0.25, 0.5, 1.0)}),
    "Adafactor": ({}, {"beta_2_decay": (-0.5, -1.0, -0.25), "clip_threshold": (1.0, 0.5, 2.0)}),
    "Adafactor, ε": ({}, {"epsilon_1": (0.125, 1.0, 0.5), "epsilon_2": (0.25, 0.5, 0.125)}),
    "Adagrad": ({}, {"epsilon": (0.25, 1.0, 0.125)}),
    "Adamax": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.25)}),
    "Adamax, ε": ({}, {"epsilon": (0.125, 1.0, 0.5)}),
    "Lamb": ({}, {"beta_1": (0.875, 0.5, 0.75), "beta_2": (0.75, 0.5, 0.875)}),
    "Lamb, ε": ({}, {"epsilon": (0.125, 1.0, 0.5)}),
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
FIRST_RUNNER = next(iter(RUNNERS))
# Each case in the first way to run an update, and some in all of them. (case, way, runner, gradients accumulated)
TRIED = [(case, way, FIRST_RUNNER, 1) for case in MOVES for way in ("set", "a schedule")]
TRIED += [
    (case, way, runner, accumulate)
    for case, way, runner, accumulate in product(
        ["AdamW", "NadamW, ψ", "SGDW", "Lion", "RMSprop", "Lamb"],
        ["set", "a schedule"],
        RUNNERS,
        [1, 2],
    )
    if (runner, accumulate) in ((FIRST_RUNNER, 2), *((other, 1) for other in [*RUNNERS][1:]))
]
SHAPES = {"net/kernel": (3, 2), "net/bias": (2,)}  # for Muon one of each part
VALUES = [np.linspace(0.2, 0.7, math.prod(s)).reshape(s).astype("float32") for s in SHAPES.values()]


def at(values, k):
    return values[(k >= FIRST) + (k >= SECOND)]


def make(case, **arguments):
    given, _ = MOVES[case]
    cls = getattr(keras_decoupled, case.partition(",")[0])
    return cls(**{"learning_rate": ALPHA, "weight_decay": 2.0**-5, **given, **arguments})


def first_values(case):
    return {setting: values[0] for setting, values in MOVES[case][1].items()}


def as_schedules(case):
    return {
        setting: PiecewiseConstantDecay([FIRST - 1, SECOND - 1], list(values))
        for setting, values in MOVES[case][1].items()
    }


def follow(case, optimizer, step, variables, accumulate=1, move=True):
    """Updates beside NumPy's in float64; `step` makes one. At each, the weights have to agree."""
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

    run = oracle.Run(algorithm, VALUES, ALPHA, [(0.0, 2.0**-5)] * len(VALUES))
    for k, grads in enumerate(gradients(UPDATES, list(SHAPES.values()))):
        for state, theta in zip(run.states, run.values, strict=True):
            state |= {"theta": theta, "adam": theta.ndim < 2}
        for setting, values in moves.items():
            if move and k in (FIRST, SECOND):
                setattr(optimizer, setting, at(values, k))
            if move:
                assert getattr(optimizer, setting) == at(values, k)
        for _ in range(accumulate):
            step(grads)
        run.step(grads)
        assert_follows(variables, run, list(SHAPES))


@pytest.mark.parametrize(("case", "way", "runner", "accumulate"), TRIED)
def test_every_update_is_that_of_numpy(case, way, runner, accumulate):
    """Set between updates, or given as a schedule of k: both are the same numbers."""
    scheduled = way == "a schedule"
    own = as_schedules(case) if scheduled else first_values(case)
    own |= {"gradient_accumulation_steps": accumulate} if accumulate > 1 else {}
    optimizer = make(case, **own)
    variables = list(map(make_variable, SHAPES, VALUES))
    step = RUNNERS[runner](optimizer, variables)
    follow(case, optimizer, step, variables, accumulate, move=not scheduled)
    if scheduled:
        assert all(getattr(optimizer, name) is own[name] for name in MOVES[case][1])


THAWING = PiecewiseConstantDecay([1, 4], [0.0, 1.0, 0.5])


@pytest.mark.parametrize("runner", [FIRST_RUNNER] if BACKEND != "torch" else RUNNERS)
@pytest.mark.parametrize("cls", ["Adafactor", "Adamax", "Lamb", "Lion", "Muon", "RMSprop"])
def test_a_multiplier_over_time_of_a_stock_class(cls, runner):
    """At 0 the weight waits, and its moments go on. (Of our own classes, `CASES` has some.)"""
    exact = {"Muon": {"adam_beta_1": 0.875, "adam_beta_2": 0.75}, "RMSprop": {"rho": 0.875}}
    own = exact.get(cls, {"beta_1": 0.875, "beta_2": 0.75} if cls != "Adafactor" else {})
    optimizer = getattr(keras_decoupled, cls)(
        ALPHA, weight_decay=2.0**-5, lr_multipliers={"kernel": THAWING}, **own
    )
    variables = list(map(make_variable, SHAPES, VALUES))
    step = RUNNERS[runner](optimizer, variables)
    algorithm, decays = partial(getattr(oracle, cls.lower()), **own), [(0.0, 2.0**-5)] * len(VALUES)
    thawing = [lambda k: [0.0, 1.0, 0.5][(k > 1) + (k > 4)], 1.0]
    run = oracle.Run(algorithm, VALUES, ALPHA, decays, thawing)
    for k, grads in enumerate(gradients(UPDATES, list(SHAPES.values()))):
        for state, theta in zip(run.states, run.values, strict=True):
            state |= {"theta": theta, "adam": theta.ndim < 2}
        step(grads)
        run.step(grads)
        assert_follows(variables, run, list(SHAPES))
        if k < 2:
            np.testing.assert_array_equal(numpy(variables[0]), VALUES[0])


# --- in training ---


def model_of(optimizer, **arguments):
    model = training.linear()
    model.compile(optimizer, loss="mse", **arguments)
    return model


def fit(model, epochs=4, **arguments):
    x, y = training.X, training.Y
    first = {"batch_size": 8, "shuffle": False, "verbose": 0}
    return model.fit(x, y, epochs=epochs, **first, **arguments).history


class Moves(keras.callbacks.Callback):
    """Sets β1 at the beginning of each epoch; `get` finds the optimizer."""

    def __init__(self, get=lambda model: model.optimizer):
        super().__init__()
        self.get, self.read = get, []

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.get(self.model)
        optimizer.beta_1 = 0.5 + 0.125 * epoch
        self.read.append(optimizer.beta_1)


SCHEDULED = PiecewiseConstantDecay([1, 3, 5], [0.5, 0.625, 0.75, 0.875])  # two updates an epoch
WRAPPERS = {
    "alone": (lambda one: one, lambda model: model.optimizer),
    "LossScaleOptimizer": (
        partial(keras.optimizers.LossScaleOptimizer, initial_scale=1.0),
        lambda model: model.optimizer.inner_optimizer,
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("cls", [AdamW, NadamW, Lion])
def test_a_callback_sets_it(cls, wrapper):
    """As a schedule of the same numbers; a compiled step is not compiled again."""
    wrap, get = WRAPPERS[wrapper]
    found = []
    for beta_1 in (0.5, SCHEDULED):
        model = model_of(wrap(cls(ALPHA, weight_decay=0.01, beta_1=beta_1)))
        callbacks = [Moves(get)] if beta_1 == 0.5 else []
        fit(model, callbacks=callbacks)
        found.append(np.concatenate([w.ravel() for w in model.get_weights()]))
    np.testing.assert_allclose(*found, rtol=2e-6)
    assert isinstance(get(model).beta_1, PiecewiseConstantDecay)


def test_inside_an_epoch_on_jax():
    optimizer = AdamW(ALPHA, weight_decay=0.01)

    class Closure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer.beta_1 = 0.5

    if BACKEND != "jax":
        fit(model_of(optimizer), callbacks=[Closure()])
        assert optimizer.beta_1 == 0.5
        return
    with pytest.raises(RuntimeError, match=r"go through `self\.model\.optimizer`"):
        fit(model_of(optimizer), callbacks=[Closure()])


def test_in_a_multi_optimizer():
    keras.utils.set_random_seed(1)
    found = []
    for moved in (False, True):
        model = training.linear()
        first = AdamW(ALPHA, weight_decay=0.01, beta_1=0.875 if moved else 0.5)
        rest = SGDW(ALPHA, weight_decay=0.01)
        parts = keras.optimizers.OptimizerMap(rest, {".*kernel": first})
        both = keras.optimizers.MultiOptimizer(parts)
        model.compile(both, loss="mse")
        if moved:
            first.beta_1 = 0.5
        fit(model)
        found.append(model.get_weights()[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW, Lion, RMSprop])
def test_a_derived_class_reads_the_value_of_the_update(cls):
    """In `update_step`, also where it is compiled; outside, a float."""
    name = {SGDW: "momentum", RMSprop: "rho"}.get(cls, "beta_1")
    read = []

    class Mine(cls):
        def update_step(self, gradient, variable, learning_rate):
            read.append(getattr(self, name))
            super().update_step(gradient * getattr(self, name), variable, learning_rate)

    ours = list(map(make_variable, SHAPES, VALUES))
    optimizer = Mine(ALPHA, weight_decay=0.01, **{name: 0.5})
    step = next(iter(RUNNERS.values()))(optimizer, ours)
    grads = gradients(3, list(SHAPES.values()))
    step(grads[0])
    setattr(optimizer, name, 0.25)
    step(grads[1])
    by_hand = list(map(make_variable, SHAPES, VALUES))
    plain = cls(ALPHA, weight_decay=0.01, **{name: 0.5})
    eager(plain, by_hand)([0.5 * g for g in grads[0]])
    setattr(plain, name, 0.25)
    eager(plain, by_hand)([0.25 * g for g in grads[1]])
    for a, b in zip(ours, by_hand, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-6)
    assert getattr(optimizer, name) == 0.25
    assert isinstance(getattr(optimizer, name), float)
    assert BACKEND != "torch" or {type(value) for value in read} == {float}


# --- what an optimizer refuses ---

A_SCHEDULE = PolynomialDecay(0.9, 10, 0.5)
# (class, what it is made with, the set, error). Each is refused after build.
REFUSED = [
    *[
        (cls, {}, ("beta_1", bad), ValueError)
        for cls in (AdamW, NadamW, Lion)
        for bad in (1.0, -0.1)
    ],
    (AdamW, {}, ("beta_1", math.nan), ValueError),
    (AdamW, {}, ("beta_2", 0.99999999), ValueError),  # 1 in float32
    (AdamW, {}, ("epsilon", -1e-8), ValueError),
    (AdamW, {}, ("epsilon", math.inf), ValueError),
    (AdamW, {}, ("epsilon", 1e300), ValueError),
    (AdamW, {}, ("beta_1", "0.9"), TypeError),
    (AdamW, {}, ("beta_1", True), TypeError),
    (AdamW, {}, ("beta_1", None), TypeError),
    (AdamW, {}, ("beta_1", A_SCHEDULE), TypeError),
    (AdamW, {"beta_1": A_SCHEDULE}, ("beta_1", 0.5), ValueError),
    (AdamW, {}, ("amsgrad", True), ValueError),
    (NadamW, {}, ("momentum_decay", -1.0), ValueError),
    (SGDW, {}, ("momentum", 0.9), ValueError),
    (SGDW, {"momentum": 0.9}, ("momentum", 1.0), ValueError),
    (SGDW, {"momentum": 0.9}, ("nesterov", True), ValueError),
    (RMSprop, {"momentum": 0.5}, ("momentum", 0.9), ValueError),
    (RMSprop, {}, ("centered", True), ValueError),
    (RMSprop, {}, ("rho", 1.0), ValueError),
    (keras_decoupled.Adagrad, {}, ("initial_accumulator_value", 0.5), ValueError),
    (keras_decoupled.Adafactor, {}, ("clip_threshold", 0.0), ValueError),
    (keras_decoupled.Adafactor, {}, ("beta_2_decay", 0.0), ValueError),
    (keras_decoupled.Adafactor, {}, ("relative_step", False), ValueError),
    (keras_decoupled.Muon, {}, ("ns_steps", 3), ValueError),
    (keras_decoupled.Muon, {"rms_rate": None}, ("rms_rate", 0.2), ValueError),
    (keras_decoupled.Muon, {}, ("rms_rate", None), TypeError),
]


@pytest.mark.parametrize(
    ("cls", "given", "moved", "error"),
    REFUSED,
    ids=[f"{cls.__name__}.{name}={value!r:.11}" for cls, _, (name, value), _ in REFUSED],
)
def test_what_cannot_be_set(cls, given, moved, error):
    """The error names the setting and what it got; nothing has changed."""
    name, value = moved
    optimizer = cls(ALPHA, weight_decay=0.01, **given)
    optimizer.build(list(map(make_variable, SHAPES, VALUES)))
    before = getattr(optimizer, name), training.values(optimizer.variables)
    with pytest.raises(error, match=rf"^`{name}` .*Received: .*\. "):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) is before[0] or getattr(optimizer, name) == before[0]
    after = training.values(optimizer.variables)
    assert all(map(np.array_equal, after, before[1]))


@pytest.mark.parametrize(
    ("cls", "name", "schedule"),
    [
        (AdamW, "beta_1", PolynomialDecay(1.0, 10, 0.5)),
        (AdamW, "beta_1", PolynomialDecay(0.5, 10_000, 1.0)),
        (AdamW, "epsilon", PolynomialDecay(1e-7, 10, -1.0)),
        (AdamW, "amsgrad", A_SCHEDULE),
        (Lion, "beta_2", PolynomialDecay(0.5, 1000, 1.5)),
        (RMSprop, "momentum", A_SCHEDULE),
        (keras_decoupled.Adagrad, "initial_accumulator_value", A_SCHEDULE),
        (keras_decoupled.Muon, "ns_steps", A_SCHEDULE),
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


# --- files and configs ---


@pytest.mark.parametrize("case", ["AdamW", "NadamW, ψ", "SGDW", "Lion", "RMSprop", "Lamb"])
def test_a_config_has_what_is_now(case):
    moves = MOVES[case][1]
    optimizer = make(case, **first_values(case))
    for name, values in moves.items():
        setattr(optimizer, name, values[1])
    again = type(optimizer).from_config(json.loads(json.dumps(optimizer.get_config())))
    assert {n: getattr(again, n) for n in moves} == {n: v[1] for n, v in moves.items()}
    scheduled = make(case, **as_schedules(case))
    config = json.loads(json.dumps(scheduled.get_config()))
    again = type(optimizer).from_config(config)
    for name in moves:
        assert getattr(again, name).get_config() == getattr(scheduled, name).get_config()
    assert json.loads(json.dumps(again.get_config())) == config


def test_digits_stay_as_they_are_written():
    optimizer = AdamW(ALPHA, weight_decay=0.01, beta_2=0.99999999)
    assert optimizer.beta_2 == 0.99999999
    optimizer.beta_1 = 0.85
    assert optimizer.get_config()["beta_1"] == optimizer.beta_1 == 0.85


@pytest.mark.parametrize("cls", [AdamW, Lion])
def test_a_state_has_both_numbers(cls):
    """A load takes what was set there if this run was made with the same number; else it keeps its own."""

    def built(**arguments):
        optimizer = cls(ALPHA, weight_decay=0.01, **arguments)
        optimizer.build(list(map(make_variable, SHAPES, VALUES)))
        return optimizer

    saved, store = built(), {}
    saved.beta_1 = 0.5
    saved.save_own_variables(store)
    for other, expected in ((built(), 0.5), (built(beta_1=0.75), 0.75), (built(beta_1=0.5), 0.5)):
        with warnings.catch_warnings(action="error", category=UserWarning):
            other.load_own_variables(store)
        assert other.beta_1 == expected
    scheduled = built(beta_1=A_SCHEDULE)
    scheduled.load_own_variables(store)
    assert scheduled.beta_1 is A_SCHEDULE
    layout = json.loads(store["layout"].tobytes())
    place = [name for name, _ in layout["variables"]].index("beta_1")
    damaged = store | {str(place): np.array(1.5, "float32")}
    other = built()
    with pytest.raises(ValueError, match=r"The saved beta_1 must.*1\.5"):
        other.load_own_variables(damaged)
    assert other.beta_1 == 0.9


@pytest.mark.parametrize("cls", [AdamW, SGDW, Lion])
def test_a_model_goes_on(cls, tmp_path):
    """Saved after a set, it trains on as it would have."""
    name = "momentum" if cls is SGDW else "beta_1"
    model = model_of(cls(ALPHA, weight_decay=0.01, **{name: 0.75}))
    fit(model, 1)
    setattr(model.optimizer, name, 0.25)
    fit(model, 1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert getattr(again.optimizer, name) == 0.25
    fit(model, 2)
    fit(again, 2)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


# --- seen ---


def test_log_rates_and_explain_show_what_moves():
    model = model_of(AdamW(ALPHA, weight_decay=0.01, beta_2=PolynomialDecay(0.9, 8, 0.5)))
    history = fit(model, callbacks=[LogRates(), Moves()])
    assert history["beta_1"] == [0.5, 0.625, 0.75, 0.875]
    np.testing.assert_allclose(history["beta_2"], [0.8, 0.7, 0.6, 0.5], rtol=1e-6)
    assert "epsilon" not in history
    text = str(model.optimizer.explain())
    assert "beta_1 is 0.875 now; the optimizer was made with 0.9." in text
    assert "beta_2 follows a PolynomialDecay; the next update uses 0.5." in text
    assert "epsilon" not in text


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
    schedule = PiecewiseConstantDecay([FIRST - 1, SECOND - 1], list(values))
    variables = list(map(make_variable, SHAPES, VALUES))
    own = schedule if way == "a schedule" else values[0]
    optimizer = decouple(Heavy)(ALPHA, weight_decay=2.0**-5, momentum=own)
    step = RUNNERS[FIRST_RUNNER](optimizer, variables)

    def heavy(g, state, k, rate):
        state["buf"] = at(values, k) * state.get("buf", 0.0) + 2 * g
        return rate * state["buf"]

    run = oracle.Run(heavy, VALUES, ALPHA, [(0.0, 2.0**-5)] * len(VALUES))
    for k, grads in enumerate(gradients(UPDATES, list(SHAPES.values()))):
        if way == "set":
            optimizer.momentum = at(values, k)
        step(grads)
        run.step(grads)
        assert_follows(variables, run, list(SHAPES))


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
