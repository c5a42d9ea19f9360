"""The ready-made classes, and one that `decouple` makes: arguments, configs, help, and who gives which class.

What they compute is compared elsewhere; the stock signatures and defaults are read from Keras itself.
"""

import ast
import copy
import inspect
import itertools
import json
import pickle
import re

import keras
import numpy as np
import pytest

import keras_decoupled
from cases import eager, gradients, initial_values, make_variable, numpy
from keras_decoupled import SGDW, AdamW, NadamW, decouple

# By name: the class's own arguments, each away from its default, and exact in float32.
OWN = {
    "Adadelta": {"rho": 0.5, "epsilon": 0.25},
    "Adafactor": {
        "beta_2_decay": -0.5,
        "epsilon_1": 0.125,
        "epsilon_2": 0.25,
        "clip_threshold": 2.0,
        "relative_step": False,
    },
    "Adagrad": {"initial_accumulator_value": 0.5, "epsilon": 0.25},
    "Adamax": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25},
    "Lamb": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25},
    "Lion": {"beta_1": 0.5, "beta_2": 0.75},
    "Muon": {
        "adam_beta_1": 0.5,
        "adam_beta_2": 0.75,
        "epsilon": 0.25,
        "exclude_layers": ["head", "out.*"],
        "exclude_embeddings": False,
        "muon_a": 3.5,
        "muon_b": -4.5,
        "muon_c": 1.5,
        "adam_lr_ratio": 0.5,
        "momentum": 0.75,
        "ns_steps": 3,
        "nesterov": False,
        "rms_rate": 0.25,
    },
    "RMSprop": {"rho": 0.5, "momentum": 0.25, "epsilon": 0.125, "centered": True},
    "Nadam": {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.25},
}
READY_MADE = [name for name in OWN if name != "Nadam"]
# Whole numbers with which an update has a meaning.
WHOLE = {
    "Adadelta": {"rho": 0, "epsilon": 1},
    "Adafactor": {"beta_2_decay": -1, "epsilon_1": 1, "epsilon_2": 1, "clip_threshold": 2},
    "Adagrad": {"initial_accumulator_value": 1, "epsilon": 1},
    "Adamax": {"beta_1": 0, "beta_2": 0, "epsilon": 1},
    "Lamb": {"beta_1": 0, "beta_2": 0, "epsilon": 1},
    "Lion": {"beta_1": 1, "beta_2": 0},
    "Muon": {
        "adam_beta_1": 0,
        "adam_beta_2": 0,
        "epsilon": 1,
        "muon_a": 2,
        "muon_b": -1,
        "muon_c": 1,
        "adam_lr_ratio": 2,
        "momentum": 0,
        "ns_steps": 2,
        "rms_rate": 1,
    },
    "RMSprop": {"rho": 0, "momentum": 1, "epsilon": 1},
    "Nadam": {"beta_1": 0, "beta_2": 0, "epsilon": 1},
}
NUMPY = [np.float32, np.float64]

REASONS = {
    "Ftrl": "anew from its accumulators",
    "ScheduleFreeAdamW": "anew from its accumulators",
    "LossScaleOptimizer": "wraps another optimizer",
    "MultiOptimizer": "wraps another optimizer",
}
REFUSED = [name for name in REASONS if hasattr(keras.optimizers, name)]  # an older Keras has fewer
# What stock classes take and ours have among the shared arguments, or not at all.
REMOVED = {
    "name",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
    "adam_weight_decay",
}
# Classes of `keras.optimizers` that are no optimizer of their own.
NO_OPTIMIZER = {"Optimizer", "OptimizerMap"}

every_class = pytest.mark.parametrize("name", OWN)
every_ready_made = pytest.mark.parametrize("name", READY_MADE)


def stock_of(name):
    return getattr(keras.optimizers, name)


def ours(name):
    return getattr(keras_decoupled, name) if name in READY_MADE else decouple(stock_of(name))


def parameters(cls):
    """The arguments of a class, without `self` and what takes the rest."""
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    given = inspect.signature(cls.__init__).parameters.values()
    return [p for p in given if p.name != "self" and p.kind not in rest]


def named(text):
    """The names that begin a line with a colon, as those of arguments do."""
    lines = re.findall(r"^ *((?:\*\*)?\w+(?:,\s+\w+)*):", text, re.MULTILINE)
    return {name for line in lines for name in re.split(r",\s+", line)}


# --- the class ---


@every_class
def test_decouple_gives_the_class(name):
    assert decouple(stock_of(name)) is ours(name)
    # On torch an object of a stock class is of another class.
    assert decouple(type(stock_of(name)())) is ours(name)
    assert decouple(ours(name)) is ours(name)


@every_ready_made
def test_a_ready_made_class_is_public(name):
    assert name in keras_decoupled.__all__
    assert ours(name).__module__ == f"keras_decoupled.optimizers.{name.lower()}"
    assert ours(name).__name__ == name


@every_class
def test_an_optimizer_is_of_the_stock_class_too(name):
    assert issubclass(ours(name), stock_of(name))
    assert isinstance(ours(name)(), stock_of(name))
    assert isinstance(ours(name)(), keras.optimizers.Optimizer)


# --- arguments ---


@every_class
def test_the_arguments_are_the_stock_ones(name):
    expected = [(p.name, p.default) for p in parameters(stock_of(name)) if p.name not in REMOVED]
    expected = [(n, None if n == "weight_decay" else default) for n, default in expected]
    assert [(p.name, p.default) for p in parameters(ours(name))] == expected


@every_class
def test_those_before_a_removed_one_are_positional(name):
    """What follows a removed argument has another place than in the stock class: it goes by name."""
    stock = [parameter.name for parameter in parameters(stock_of(name))]
    before = list(itertools.takewhile(lambda argument: argument not in REMOVED, stock))
    keyword = inspect.Parameter.KEYWORD_ONLY
    assert [p.name for p in parameters(ours(name)) if p.kind is not keyword] == before
    values = {"learning_rate": 0.5, "weight_decay": 0.125, **OWN[name]}
    by_place = ours(name)(*(values[n] for n in before), name="one")
    by_name = ours(name)(**{n: values[n] for n in before}, name="one")
    assert by_place.get_config() == by_name.get_config()
    # One more is no shared argument: those go by name.
    with pytest.raises(TypeError, match="positional argument"):
        ours(name)(*(values[n] for n in before), None)


@every_class
def test_the_cases_have_every_argument(name):
    """Or the tests of configs would pass without an argument that was forgotten."""
    own = {p.name for p in parameters(ours(name))} - {"learning_rate", "weight_decay"}
    assert own == set(OWN[name])
    defaults = {p.name: p.default for p in parameters(ours(name))}
    assert all(value != defaults[argument] for argument, value in OWN[name].items())


@every_class
def test_no_decay_unless_asked(name):
    """Stock Muon decays though nobody asked it to."""
    assert ours(name)().get_config()["weight_decay"] is None


def test_no_decay_in_a_class_that_decays_by_default():
    class DecaysByDefault(keras.optimizers.Lion):
        def __init__(self, learning_rate=0.001, weight_decay=0.1, **kwargs):
            super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)

    assert decouple(DecaysByDefault)().get_config()["weight_decay"] is None
    assert decouple(DecaysByDefault)(0.5, 0.25).get_config()["weight_decay"] == 0.25


def test_muon_has_one_decay():
    with pytest.raises(ValueError, match=r"adam_weight_decay=0\.1.*`weight_decays` has more"):
        keras_decoupled.Muon(adam_weight_decay=0.1)


@every_class
def test_an_unknown_argument(name):
    with pytest.raises(ValueError, match=r"not recognized: `beta_7`.*Received: beta_7=0\.5"):
        ours(name)(beta_7=0.5)


@every_class
@pytest.mark.parametrize("scalar", NUMPY, ids=lambda scalar: scalar.__name__)
def test_numpy_scalars(name, scalar):
    def as_numpy(value):
        if isinstance(value, bool):
            return np.bool_(value)
        if isinstance(value, int):
            return np.int64(value)
        return scalar(value) if isinstance(value, float) else value

    arguments = {"learning_rate": 0.5, "weight_decay": 0.125, **OWN[name]}
    given = ours(name)(**{n: as_numpy(value) for n, value in arguments.items()}, name="one")
    config = given.get_config()
    assert json.loads(json.dumps(config)) == config
    assert config == ours(name)(**arguments, name="one").get_config()
    updated(given)


@every_class
def test_whole_numbers(name):
    """An integer is the number it says, in the update too."""
    numbers = {"learning_rate": 1, "weight_decay": 0, **WHOLE[name]}
    whole = ours(name)(**numbers)
    config = whole.get_config()
    assert json.loads(json.dumps(config)) == config
    counts = {"ns_steps"}
    floats = {n: value if n in counts else float(value) for n, value in numbers.items()}
    for a, b in zip(updated(whole), updated(ours(name)(**floats)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def updated(optimizer):
    """The weights after three updates."""
    before = initial_values()
    variables = [make_variable(f"w{i}", value) for i, value in enumerate(before)]
    step = eager(optimizer, variables)
    for grads in gradients(3):
        step(grads)
    after = [numpy(variable) for variable in variables]
    assert all(np.isfinite(value).all() for value in after)
    assert any(np.any(a != b) for a, b in zip(after, before, strict=True))
    return after


# --- configs ---


def with_all(name):
    return ours(name)(0.5, weight_decay=0.125, **OWN[name], clipnorm=2.0, name="one")


@every_class
def test_a_config_has_every_argument(name):
    config = with_all(name).get_config()
    assert {n: config[n] for n in OWN[name]} == OWN[name]
    assert (config["learning_rate"], config["weight_decay"]) == (0.5, 0.125)
    assert "adam_weight_decay" not in config
    again = ours(name).from_config(json.loads(json.dumps(config)))
    assert type(again) is ours(name)
    assert again.get_config() == config


@every_class
def test_keras_saves_and_loads_it(name):
    """A stock class has the same name: the package's, before it, tells them apart."""
    saved = json.loads(json.dumps(keras.optimizers.serialize(with_all(name))))
    assert saved["registered_name"] == f"keras_decoupled>{name}"
    loaded = keras.optimizers.deserialize(saved)
    assert type(loaded) is ours(name)
    assert loaded.get_config() == with_all(name).get_config()


@every_class
@pytest.mark.parametrize(
    "copied",
    [lambda optimizer: pickle.loads(pickle.dumps(optimizer)), copy.deepcopy],
    ids=["pickle", "deepcopy"],
)
def test_copies(name, copied):
    again = copied(with_all(name))
    assert type(again) is ours(name)
    assert again.get_config() == with_all(name).get_config()


# --- help ---


@every_class
def test_the_help_names_every_argument(name):
    in_help = named(ours(name).__doc__)
    shared = set(keras_decoupled.core.arguments.Shared.__annotations__)
    assert {p.name for p in parameters(ours(name))} <= in_help
    assert shared | {"**shared"} <= in_help
    assert ours(name).__doc__.count("Shared arguments, by keyword:") == 1


@every_ready_made
def test_the_help_has_the_defaults(name):
    """As `Defaults to ...` in the argument's entry, before the next one begins."""
    text = ours(name).__doc__
    for parameter in parameters(ours(name)):
        entry = re.search(rf"^        {parameter.name}: (.*?)(?=^        \S|^$)", text, re.M | re.S)
        default = re.search(r"Defaults\s+to\s+`([^`]*)`", entry[1])
        assert default is not None, parameter.name
        assert ast.literal_eval(default[1]) == parameter.default, parameter.name


def test_adafactor_has_its_bound_with_either_relative_step():
    """The help says so: at a rate above the bound, neither value and no schedule lifts it."""
    constant = keras.optimizers.schedules.PolynomialDecay(3.0, 10, 3.0)
    weights = [
        updated(keras_decoupled.Adafactor(rate, relative_step=relative, weight_decay=0.01))
        for rate in (3.0, constant)
        for relative in (True, False)
    ]
    for others in weights[1:]:
        for a, b in zip(weights[0], others, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


# --- which class gives which ---


@pytest.mark.parametrize(
    ("stock", "expected"), [("Adam", AdamW), ("AdamW", AdamW), ("SGD", SGDW)], ids=str
)
def test_stock_classes_that_this_package_writes_itself(stock, expected):
    assert decouple(stock_of(stock)) is expected
    assert decouple(type(stock_of(stock)())) is expected


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
def test_our_own_class_is_decoupled(cls):
    class Mine(cls):
        pass

    assert decouple(cls) is cls
    assert decouple(Mine) is Mine


def test_nadam_is_not_nadamw():
    """Its momentum decays as Keras has it; NadamW's default is another."""
    assert not issubclass(decouple(keras.optimizers.Nadam), NadamW)


@pytest.mark.parametrize(
    "value",
    [5, int, None, "lion", keras.optimizers.schedules.CosineDecay, keras.layers.Dense],
    ids=str,
)
def test_what_is_no_optimizer_class(value):
    with pytest.raises(TypeError, match=r"`decouple` needs a class.*Received: "):
        decouple(value)


def test_an_optimizer_in_the_place_of_its_class():
    with pytest.raises(TypeError, match=r"Give the class, decouple\(keras\.optimizers\.Lion\)"):
        decouple(keras.optimizers.Lion())


@pytest.mark.parametrize("name", REFUSED)
def test_stock_classes_that_cannot_be_decoupled(name):
    with pytest.raises(ValueError, match=rf"`{name}` cannot .*{REASONS[name]}.*Received: "):
        decouple(stock_of(name))
    with pytest.raises(ValueError, match=REASONS[name]):
        decouple(type("Mine", (stock_of(name),), {}))


def test_every_stock_class_is_known():
    """A later Keras may bring one that nobody has looked at: whether it assigns its step, and what it reads."""
    classes = {name: cls for name, cls in vars(keras.optimizers).items() if inspect.isclass(cls)}
    looked_at = {*OWN, *REASONS, *NO_OPTIMIZER, "Adam", "AdamW", "SGD"}
    unknown = classes.keys() - looked_at
    assert not unknown, (
        f"{sorted(unknown)} of keras.optimizers must be decoupled and tested, or refused with the reason."
    )
    assert {*OWN, "Adam", "AdamW", "SGD", "Ftrl", "LossScaleOptimizer"} <= classes.keys()
