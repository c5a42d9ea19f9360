"""Which arguments of a stock class are settings: numbers that may move while a step is compiled."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_decoupled import checks, fast
from keras_decoupled.core.arguments import (
    KERAS_ARGUMENTS,
    OURS,
    Check,
    Real,
    at_least_0,
    fraction,
)
from keras_decoupled.core.attributes import Attribute
from keras_decoupled.core.settings import FIXED

OWN_DECAYS = ("weight_decay", "adam_weight_decay")  # of stock classes; our `weight_decay` acts here
_SEE_HELP = "See help() of the class."
# The ranges of the settings of Keras' own classes.
_RANGES: dict[str, Real] = {
    **dict.fromkeys(("beta_1", "beta_2", "rho", "momentum"), fraction(_SEE_HELP)),
    **dict.fromkeys(("epsilon", "epsilon_1", "epsilon_2"), at_least_0(_SEE_HELP)),
    "clip_threshold": Real(_SEE_HELP, minimum=1e-30),
    "beta_2_decay": Real(_SEE_HELP, below=0.0),
}
# Keras uses these numbers at build, or in Python: `if self.momentum > 0`.
_IN_PYTHON = {"initial_accumulator_value", ("RMSprop", "momentum")}


def parameters_of(stock: type[Any]) -> tuple[list[inspect.Parameter], set[str]]:
    """Return the parameters of a constructor and of those that it passes on to by `**kwargs`.

    Also return the names that only the latter have, beside an own `learning_rate`.
    """
    found: dict[str, inspect.Parameter] = {}
    inherited: set[str] = set()
    for cls in stock.__mro__:
        constructor = vars(cls).get("__init__")
        of_all = cls in keras.optimizers.Optimizer.__mro__  # what all take, ours declare themselves
        if constructor is None or ("learning_rate" in found and of_all):
            continue
        arguments = inspect.signature(constructor).parameters
        named = [p for p in arguments.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        own = found.keys() - {"self"}
        if "learning_rate" in found:
            inherited |= {p.name for p in named} - found.keys()
        for parameter in named:
            kind = parameter.KEYWORD_ONLY if own else parameter.kind
            found.setdefault(parameter.name, parameter.replace(kind=kind))
        if len(named) == len(arguments):
            break
    return list(found.values()), inherited.difference(OWN_DECAYS)


def own_arguments(stock: type[Any], keras_own: bool) -> dict[str, Check]:
    """Return the stock class's own arguments that become attributes of ours, and their checks.

    For a user's class, only the numbers that may be settings are returned.
    """
    own: dict[str, Check] = {}
    shared = {*KERAS_ARGUMENTS, *OWN_DECAYS, *OURS, "learning_rate", "self"}
    for parameter in parameters_of(stock)[0]:
        name = parameter.name
        if name in shared or hasattr(stock, name):  # a property, say
            continue
        if not keras_own:
            if parameter.default is parameter.empty or isinstance(parameter.default, float):
                own[name] = Real(_SEE_HELP)
        elif name in _RANGES and not _IN_PYTHON & {name, (stock.__name__, name)}:
            own[name] = _RANGES[name]
        else:
            own[name] = lambda _, value: value  # the stock class checks it itself
    return own


def fix(optimizer: Any) -> None:
    """Fix the settings that a user's class does not read in `update_step`, or uses in Python there.

    Such a number cannot be changed later. A value that the constructor computed from it would stay
    as it was. A compiled step has decided `if self.momentum > 0` for good. (On torch, nothing is
    compiled.)
    """
    kd = optimizer._kd
    if _moves(optimizer, list(kd.settings)):
        return
    for name, setting in kd.settings.items():
        if _moves(optimizer, [name]):
            continue
        if setting.scheduled:
            cure = f"Give a number, or use self.{name} in `update_step` by `keras.ops` alone."
            checks.refuse(name, setting.given, f"cannot be a schedule: {FIXED}", cure)
        kd.inside.order((), [setting.fix()])


def _moves(optimizer: Any, names: Sequence[str]) -> bool:
    """Tell whether `update_step` reads these settings and computes with them as tensors."""
    kd, read = optimizer._kd, set[str]()
    with fast.eager():
        numbers = {name: setting.at_start for name, setting in kd.settings.items()}
    variables = {len(record.variable.shape): record for record in kd.registry.built}

    def update(*tensors: Any) -> None:
        values = numbers | dict(zip(names, tensors, strict=True))
        rate = ops.convert_to_tensor(0.5, "float32")
        with keras.StatelessScope(), kd.update.trial(values) as shared:
            for record in variables.values():  # one of each number of dimensions
                theta = ops.stop_gradient(record.variable)
                gradient = ops.zeros_like(theta)
                optimizer._kd_step(record, record.variable, theta, gradient, rate, shared)
            read.update(shared.own.names)

    return fast.traces(update, [numbers[name] for name in names]) and read >= set(names)


def add_attributes(cls: type[Any]) -> None:
    """Give a class made by `decouple` the attributes of its own arguments."""
    cls._kd_kind = cls._kd_stock.__name__
    cls._kd_own = own_arguments(cls._kd_stock, cls._kd_keras_own)
    for name in cls._kd_own:
        setattr(cls, name, Attribute(name, strict=cls._kd_keras_own))
