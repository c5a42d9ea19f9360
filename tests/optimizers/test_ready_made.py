"""The ready-made classes and `decouple(keras.optimizers.Nadam)`: updates, arguments, configs, help.

The stock signatures and defaults are read from Keras itself.
"""

import ast
import copy
import inspect
import itertools
import json
import pickle
import re
from functools import partial

import keras
import numpy as np
import pytest

import keras_decoupled
import oracle
from cases import ALPHA, eager
from keras_decoupled import SGDW, AdamW, Muon, NadamW, decouple
from keras_decoupled.core.arguments import Shared
from stock import FAST, PATHS, assert_follows, initial_values, make_variables, micro_batches

# By name: the class's own arguments, each away from its default and exact in float32.
OWN = {
    "Adadelta": {"rho": 0.5, "epsilon": 0.25},
    "Adafactor": {"beta_2_decay": -0.5, "epsilon_1": 0.125, "epsilon_2": 0.25}
    | {"clip_threshold": 0.5, "relative_step": False},
    "Adagrad": {"initial_accumulator_value": 0.5, "epsilon": 0.25},
    "Adamax": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25},
    "Lamb": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25},
    "Lion": {"beta_1": 0.5, "beta_2": 0.75},
    "RMSprop": {"rho": 0.5, "momentum": 0.25, "epsilon": 0.125, "centered": True},
    "Nadam": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25},
}
READY_MADE = [name for name in OWN if name != "Nadam"]
ALGORITHMS = {name: getattr(oracle, name.lower()) for name in READY_MADE}
ALGORITHMS["Nadam"] = partial(oracle.nadamw, momentum_decay=1.0)  # not NadamW's default
REASONS = {
    "Ftrl": "anew from its accumulators",
    "ScheduleFreeAdamW": "anew from its accumulators",
    "LossScaleOptimizer": "wraps another optimizer",
    "MultiOptimizer": "wraps another optimizer",
}
# What stock classes take and ours have among the shared arguments, or not at all.
REMOVED = set(Shared.__annotations__)
every_class = pytest.mark.parametrize("name", OWN)


def stock_of(name):
    return getattr(keras.optimizers, name)


def ours(name):
    return getattr(keras_decoupled, name) if name in READY_MADE else decouple(stock_of(name))


def of_type(real, given):
    """The same arguments, with NumPy's numbers of this type."""
    types = {float: real, int: np.int64, bool: np.bool_}
    return {n: types.get(type(value), lambda same: same)(value) for n, value in given.items()}


def arguments(cls):
    """The arguments of a class, without what takes the rest."""
    given = inspect.signature(cls).parameters.values()
    return [p for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


# --- updates ---


def whole(name):
    """Integers with which an update has a meaning."""
    zero = {"rho", "momentum", "beta_1", "beta_2", "beta_2_decay"}
    numbers = [n for n, value in OWN[name].items() if type(value) in (int, float)]
    given = {n: 0 if n in zero else 1 for n in numbers}
    return given | ({"beta_1": 1} if name == "Lion" else {})  # Keras refuses a 0


RATE_3 = keras.optimizers.schedules.PolynomialDecay(3.0, 10, 3.0)
# NumPy's numbers are taken as Python's.
TYPES = itertools.cycle([np.float64, np.float32, float])
GIVEN = [(name, of_type(next(TYPES), own)) for name, own in OWN.items()]
GIVEN += [(name, {"learning_rate": 1, "weight_decay": 0, **whole(name)}) for name in OWN]
# Adafactor bounds the rate with either relative_step, and under a schedule.
GIVEN += [("Adafactor", {"learning_rate": 3.0, "relative_step": False})]
GIVEN += [("Adafactor", {"learning_rate": RATE_3, "relative_step": True})]


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize(("name", "given"), GIVEN)
def test_every_update_is_that_of_numpy(name, given, fast):
    """With the class's own arguments, a decay, multipliers and a rate that is set."""
    given = {"learning_rate": ALPHA, "weight_decay": 2.0**-5, **given}
    optimizer = ours(name)(**given, lr_multipliers={"encoder": 0.5, "head": 2})
    optimizer.fast = fast
    given = {n: value.item() if hasattr(value, "item") else value for n, value in given.items()}
    rate, decay = given.pop("learning_rate"), given.pop("weight_decay")
    run = oracle.Run(
        partial(ALGORITHMS[name], **given),
        initial_values(),
        3.0 if rate is RATE_3 else rate,
        [(0.0, decay)] * len(PATHS),
        [{"encoder": 0.5, "head": 2.0}.get(path.split("/")[0], 1.0) for path in PATHS],
    )
    variables = make_variables()
    step = eager(optimizer, variables)
    for k, grads in enumerate(micro_batches(3)):
        if k == 1:
            optimizer.learning_rate = run.learning_rate = 0.5 * run.learning_rate
        for state, theta in zip(run.states, run.values, strict=True):
            state["theta"] = theta
        step(grads)
        run.step(grads)
        assert_follows(variables, run, PATHS)


# --- arguments ---


@every_class
def test_the_arguments_are_the_stock_ones(name):
    """In Keras' order. What follows a removed one has another place than in Keras: it goes by name."""
    stock, defaults = arguments(stock_of(name)), {p.name: p.default for p in arguments(ours(name))}
    before = [p.name for p in itertools.takewhile(lambda p: p.name not in REMOVED, stock)]
    assert [(p.name, p.default, p.kind) for p in arguments(ours(name))] == [
        (
            p.name,
            p.default,
            p.POSITIONAL_OR_KEYWORD if p.name in before else p.KEYWORD_ONLY,
        )
        for p in stock
        if p.name not in REMOVED
    ]
    # The tests of updates and configs give every argument, and another value than its default.
    assert OWN[name].keys() == defaults.keys() - {"learning_rate", "weight_decay"}
    assert all(value != defaults[argument] for argument, value in OWN[name].items())
    values = [{"learning_rate": 0.5, "weight_decay": 0.125, **OWN[name]}[n] for n in before]
    by_name = ours(name)(**dict(zip(before, values, strict=True)), name="one")
    assert ours(name)(*values, name="one").get_config() == by_name.get_config()
    words = "too many" if name == "Nadam" else rf"^{name}\.__init__\(\) takes .* positional"
    with pytest.raises(TypeError, match=words):
        ours(name)(*values, None)
    with pytest.raises(ValueError, match=r"`beta_7` is not recognized.*Received: beta_7=0\.5"):
        ours(name)(beta_7=0.5)


def test_no_decay_in_a_class_that_decays_by_default():
    class DecaysByDefault(keras.optimizers.Lion):
        def __init__(self, learning_rate=0.001, weight_decay=0.1, **kwargs):
            super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)

    assert decouple(DecaysByDefault)().get_config()["weight_decay"] is None
    assert decouple(DecaysByDefault)(0.5, 0.25).get_config()["weight_decay"] == 0.25


class PassesOn(keras.optimizers.Lion):
    """Takes arguments of its own, and all of Lion's."""

    def __init__(self, learning_rate=0.001, scale=2.0, **kwargs):
        super().__init__(learning_rate, **{"beta_2": 0.5} | kwargs)
        self.scale = scale

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, self.scale * learning_rate)

    def get_config(self):
        return super().get_config() | {"scale": self.scale}


def test_arguments_that_a_class_passes_on():
    """Those that are not given keep what the class itself gives its base."""
    cls = decouple(PassesOn)
    assert [cls(0.5).beta_1, cls(0.5).beta_2, cls(0.5, 3.0).scale] == [0.9, 0.5, 3.0]
    one = cls(0.5, beta_1=0.75, weight_decay=0.125, clipnorm=2.0)
    for copied in (cls.from_config(one.get_config()), pickle.loads(pickle.dumps(one))):
        config = copied.get_config()
        assert {n: config[n] for n in ("beta_1", "beta_2", "scale", "clipnorm")} == {
            "beta_1": 0.75,
            "beta_2": 0.5,
            "scale": 2.0,
            "clipnorm": 2.0,
        }
    with pytest.raises(ValueError, match="`beta_3` is not recognized"):
        cls(beta_3=0.5)


# --- configs ---


def as_json(config):
    return json.loads(json.dumps(config))


COPIES = [
    lambda one: type(one).from_config(as_json(one.get_config())),
    lambda one: keras.optimizers.deserialize(as_json(keras.optimizers.serialize(one))),
    lambda one: pickle.loads(pickle.dumps(one)),
    copy.deepcopy,
]


@pytest.mark.parametrize("real", [np.float32, np.float64])
@every_class
def test_copies(name, real):
    """They have every argument. A stock class has the same name: the package's, before it, tells them apart."""
    own = {"learning_rate": 0.5, "weight_decay": 0.125, **OWN[name]}
    one = ours(name)(**of_type(real, own), clipnorm=2.0, name="one")
    config = one.get_config()
    assert {n: config[n] for n in own} == own
    assert config["clipnorm"] == 2.0
    assert as_json(config) == config
    assert keras.saving.get_registered_name(type(one)) == f"keras_decoupled>{name}"
    for make_copy in COPIES:
        again = make_copy(one)
        assert type(again) is ours(name)
        assert again.get_config() == config


# --- help ---


@pytest.mark.parametrize("cls", [*map(ours, OWN), AdamW, NadamW, SGDW, Muon])
def test_the_help_names_every_argument(cls):
    lines = re.findall(r"^ *(\w+(?:,\s+\w+)*):", cls.__doc__, re.M)
    named = {name for line in lines for name in re.split(r",\s+", line)}
    assert {p.name for p in arguments(cls)} | Shared.__annotations__.keys() <= named
    assert cls.__doc__.count("Shared arguments, by keyword:") == 1


DECAY = "θ ← θ − η·(l2·θ + l1·sign θ) − u"


@pytest.mark.parametrize("name", READY_MADE)
def test_the_help_is_complete(name):
    """The formula, then every section once and in order; every argument's entry ends with its default."""
    text = ours(name).__doc__
    parts = [f"{name} with independent weight decay: ", "    u = ", f"    {DECAY}"]
    parts += ["Args:", "Shared arguments, by keyword:", "Raises:", "Example:", "Source: "]
    found = re.findall("|".join(f"^{re.escape(part)}" for part in parts), text, re.M)
    assert found == parts
    assert f"`keras.optimizers.{name}(α, weight_decay=w)`" in text
    for argument in arguments(ours(name)):
        entry = re.search(rf"^    {argument.name}: (.*?)(?=^    \S|^$)", text, re.M | re.S)[1]
        default = re.search(r"Defaults\s+to\s+`([^`]*)`", entry)[1]
        assert ast.literal_eval(default) == argument.default, argument.name


# --- which class gives which ---


@pytest.mark.parametrize("name", [*OWN, "Adam", "AdamW", "SGD", "Muon"])
def test_decouple_gives_the_class(name):
    """One of the same name, but for those that this package writes itself."""
    written = {"Adam": AdamW, "AdamW": AdamW, "SGD": SGDW, "Muon": Muon}
    expected = written.get(name) or ours(name)
    assert decouple(stock_of(name)) is expected
    # On torch an object of a stock class is of another class.
    assert decouple(type(stock_of(name)())) is expected
    assert decouple(expected) is expected
    derived = type("Mine", (expected,), {})
    assert decouple(derived) is derived
    if name in OWN:
        assert expected.__name__ == name
        assert isinstance(expected(), stock_of(name))
        assert (name in keras_decoupled.__all__) is (name in READY_MADE)
    if name in READY_MADE:
        assert pickle.loads(pickle.dumps(expected)) is expected


def test_nadamw_is_not_nadam():
    """Its momentum decays by another number than Keras'."""
    assert decouple(NadamW) is NadamW
    assert not issubclass(decouple(keras.optimizers.Nadam), NadamW)


@pytest.mark.parametrize("value", [int, None, "lion", keras.layers.Dense, keras.optimizers.Lion()])
def test_what_is_no_optimizer_class(value):
    cure = r"`decouple` needs a class.*Received: .*Give the class, decouple\(keras\.optim.*Lion\)"
    with pytest.raises(TypeError, match=cure):
        decouple(value)


@pytest.mark.parametrize("name", [n for n in REASONS if hasattr(keras.optimizers, n)])
def test_stock_classes_that_cannot_be_decoupled(name):
    with pytest.raises(ValueError, match=rf"`{name}` cannot .*{REASONS[name]}.*Received: "):
        decouple(stock_of(name))
    with pytest.raises(ValueError, match=REASONS[name]):
        decouple(type("Mine", (stock_of(name),), {}))


def test_every_stock_class_is_known():
    """A later Keras may bring one that nobody has looked at: whether it assigns its step, and what it reads."""
    classes = {name for name, cls in vars(keras.optimizers).items() if inspect.isclass(cls)}
    decoupled = {*OWN, "Adam", "AdamW", "SGD", "Muon"}
    unknown = classes - decoupled - REASONS.keys() - {"Optimizer", "OptimizerMap"}
    assert not unknown, (
        f"{sorted(unknown)} of keras.optimizers must be decoupled and tested, or refused with the reason."
    )
    assert decoupled | {"Ftrl", "LossScaleOptimizer"} <= classes
