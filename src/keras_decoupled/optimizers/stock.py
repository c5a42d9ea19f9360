"""Keras' own optimizers, and those of users, with independent weight decay: `decouple`.

The mathematics stays where it is, in the stock class. What its `update_step` does to the variable
is caught on the way there, as the step u, and the decay is added to it before both meet θ.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_decoupled.core.arguments import KERAS_ARGUMENTS, Shared
from keras_decoupled.core.decoupled import Decoupled
from keras_decoupled.core.entry import Entry
from keras_decoupled.core.gradients import LOW_PRECISION
from keras_decoupled.core.scheduled import as_number
from keras_decoupled.optimizers.adamw import AdamW
from keras_decoupled.optimizers.sgdw import SGDW
from keras_decoupled.paths.match import path_of

_OWN_DECAYS = ("weight_decay", "adam_weight_decay")  # of the stock classes: these are ours
_ACCUMULATES = (
    "it computes the weight anew from its accumulators at every update, so that a decay would be "
    "lost or counted twice"
)
_WRAPS = "it wraps another optimizer. Wrap a decoupled one in it"
_REFUSED = {
    "Ftrl": _ACCUMULATES,
    "ScheduleFreeAdamW": _ACCUMULATES,
    "LossScaleOptimizer": _WRAPS,
    "MultiOptimizer": _WRAPS,
}
# By stock class. The ready-made ones enter themselves: see `Stock.__init_subclass__`.
_DECOUPLED: dict[type, type[Decoupled]] = {
    keras.optimizers.Adam: AdamW,
    keras.optimizers.AdamW: AdamW,
    keras.optimizers.SGD: SGDW,
}


class Stock(Decoupled):
    """A stock optimizer's step with this package's decay: the base of what `decouple` returns."""

    stock: ClassVar[type[Any]]  # the class whose step it is

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the stock class among the bases for `stock`; a class derived from ours has none."""
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if not issubclass(base, Decoupled):
                cls.stock = base
                _DECOUPLED[base] = cls

    def __init__(
        self,
        learning_rate: Any,
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        **shared: Any,
    ) -> None:
        self.__dict__["_change"] = _Change()
        super().__init__(learning_rate, hyperparameters, name=name, **shared)
        self.name = name or self.name  # a user's class may take no name

    def _checked(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return them for a config; the stock class checks them itself."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in hyperparameters.items()
        }

    def _for_keras(self, own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
        taken = inspect.signature(self.stock.__init__).parameters
        given = shared | own | {name: None for name in _OWN_DECAYS if name in taken}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            return given
        # A user's class may take few of Keras' arguments: a config has them all.
        defaults = inspect.signature(keras.optimizers.Optimizer.__init__).parameters
        return {
            name: value
            for name, value in given.items()
            if name in taken or (name != "name" and value != defaults[name].default)
        }

    def _own_config(self) -> dict[str, Any]:
        shared = {*KERAS_ARGUMENTS, *_OWN_DECAYS, "learning_rate"}
        config = self.config_of(self.stock)
        return {name: value for name, value in config.items() if name not in shared}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the stock class: what `decouple` makes is no name of a module."""
        if type(self) is not _DECOUPLED.get(self.stock):
            return super().__reduce__()
        return _from_config, (self.stock, self.get_config())

    # The step.

    def _take_step(
        self,
        entry: Entry,
        variable: Any,
        theta: Any,
        gradient: Any,
        rate: Any,
        scalars: tuple[Any, ...],
    ) -> Any:
        """Return what the stock `update_step` subtracts from the variable."""
        if entry.master is not None:  # stock classes compute in the variable's precision
            self.assign(entry.master, theta)
        change = self._change
        change.target, change.entry = variable if entry.master is None else entry.master, entry
        change.theta, change.step, change.written = theta, None, False
        target = change.target
        try:
            self.stock.update_step(self, gradient, target, rate)
        finally:
            change.target = None
        if change.written:
            return change.theta - ops.convert_to_tensor(target)
        if change.step is None:
            raise ValueError(
                f"`{self.stock.__name__}.update_step` must change the variable through "
                "`self.assign`, `self.assign_add` or `self.assign_sub`, where the step is added to "
                f"the weight decay. Received: an update of {path_of(entry.variable)} without any "
                "of them. Write self.assign_sub(variable, step) in place of variable.assign(...)."
            )
        return ops.cast(change.step, theta.dtype)

    def _catch(self, variable: Any) -> bool:
        """Tell whether this is the one change of the variable that is to be caught."""
        change = self._change
        if variable is not change.target:
            return False
        if _inside_cond():
            raise ValueError(
                f"`{self.stock.__name__}.update_step` must not change the variable inside "
                "`ops.cond`: a compiled step traces both branches, and the change cannot be "
                f"caught. Received: an update of {path_of(change.entry.variable)} there. Compute "
                "the step with `ops.where`, and call self.assign_sub(variable, step) once."
            )
        if change.step is not None:  # a second change may read what the first one wrote
            change.theta = ops.copy(change.theta)
            super().assign(variable, change.theta - change.step)
            change.step, change.written = None, True
        return not change.written

    def assign(self, variable: Any, value: Any) -> None:
        """Assign, as in Keras; for the variable that is being updated, take note of the step."""
        if self._catch(variable):
            self._change.step = self._change.theta - value
        else:
            super().assign(variable, value)

    def assign_add(self, variable: Any, value: Any) -> None:
        """Add, as in Keras; for the variable that is being updated, take note of the step."""
        if self._catch(variable):
            self._change.step = -ops.convert_to_tensor(value)
        else:
            super().assign_add(variable, value)

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtract, as in Keras; for the variable that is being updated, take note of the step."""
        if self._catch(variable):
            # A copy of a slot: it may be changed before the step is used.
            slot = isinstance(value, keras.Variable)
            self._change.step = ops.copy(value) if slot else ops.convert_to_tensor(value)
        else:
            super().assign_sub(variable, value)

    def index_of(self, variable: Any) -> int:
        """Return a variable's position in the last build; a master copy stands for its variable."""
        change = self._change
        if change.target is not None and variable is change.entry.master:
            return super().index_of(change.entry.variable)
        return super().index_of(variable)

    # The state.

    def build_keras(self, variables: Sequence[Any]) -> None:
        """Have the stock class make its state, and know again what is in it."""
        before = set(map(id, self.variables))
        super().build_keras(variables)
        known = before | self._slots.ids()
        made = {id(v): v for v in self.variables if id(v) not in known}
        if made:
            self._adopt(variables, made)

    def _adopt(self, variables: Sequence[Any], made: Mapping[int, Any]) -> None:
        """Take for slots what the class made without `add_variable_from_reference`.

        An attribute that is a list with one entry per variable has slots, one that is a variable
        is a scalar. A second build makes them all anew: the earlier ones are put back.
        """
        keys = list(map(self.key_of, variables))
        found = set()
        for attribute, value in list(vars(self).items()):
            if id(value) in made:
                found.add(id(value))
                setattr(self, attribute, self._scalar(attribute, value))
            elif _is_slots(value, len(keys), made) and self.update_counter is not value[0]:
                found.update(map(id, value))
                slots = [
                    self._slot(attribute, variable, key, slot) if id(slot) in made else slot
                    for variable, key, slot in zip(variables, keys, value, strict=True)
                ]
                setattr(self, attribute, slots)
        rest = [variable for variable in made.values() if id(variable) not in found]
        if rest and self._slots.entries:
            raise ValueError(
                f"`{self.stock.__name__}` cannot be built again on other variables: it has "
                f"optimizer variables that cannot be found in its attributes. Received: {rest}. "
                "Make them by `self.add_variable_from_reference`, or keep each kind in a list of "
                "its own, with one entry per variable."
            )
        for i, variable in enumerate(rest):
            self._slots.scalars[f"variable_{i}"] = variable

    def _scalar(self, name: str, new: Any) -> Any:
        old = self._slots.scalars.get(name)
        if old is None and keras.backend.standardize_dtype(new.dtype) in LOW_PRECISION:
            old = self._add_scalar(name, as_number(new), "float32")
        if old is not None:
            self.forget(new)
        self._slots.scalars[name] = new if old is None else old
        return self._slots.scalars[name]

    def _slot(self, name: str, variable: Any, key: Any, new: Any) -> Any:
        old = self._slots.get(key, name)
        if old is None:
            self._slots.add(variable, key, name, new)
            return new
        self.forget(new)
        return old


class _Change:
    """The change of a variable, on its way to it. Keras would track what is set on the optimizer."""

    target: Any = None  # the variable as the stock class has it
    entry: Entry
    theta: Any  # its value before the update
    step: Any  # what is subtracted from it
    written: bool  # the class changes it more than once, so that it was written to


def decouple(optimizer_class: type[Any]) -> type[Any]:
    r"""Return a Keras optimizer class with independent weight decay.

        θ ← θ − u − η·(l2·θ + l1·sign θ),   u = θ − stock(θ; g, rate η·α·m_v)

    with θ on the right the value before the update, g the gradient, η = (learning rate now)/α and
    m_v the variable's learning-rate multiplier. The class takes the stock one's arguments, in its
    order, and by keyword those that all optimizers of this package share.

    `Adam` and `AdamW` give `keras_decoupled.AdamW`, `SGD` gives `SGDW`, with their own signatures.
    `Nadam` gives the step of Keras' Nadam, which is `NadamW(momentum_decay=1.0)`. An optimizer of
    your own works alike if its `update_step` changes the variable through `self.assign`,
    `self.assign_add` or `self.assign_sub`. A model file that was saved with it can be loaded once
    `decouple` was called on it.

    Args:
        optimizer_class: a class of `keras.optimizers`, or one that is derived from
            `keras.optimizers.Optimizer`.

    Returns:
        A class derived from it, the same one at every call.

    Raises:
        TypeError: it is no such class.
        ValueError: it is a class that cannot be decoupled: `Ftrl` and `ScheduleFreeAdamW`, which
            recompute the weight from their accumulators; `LossScaleOptimizer` and
            `MultiOptimizer`, which wrap another one.

    Example:
    >>> import keras
    >>> from keras_decoupled import decouple
    >>> Nadam = decouple(keras.optimizers.Nadam)
    >>> optimizer = Nadam(1e-3, weight_decay=1e-4, weight_decays={"bias": 0})

    Source: Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101.
    """
    is_class = inspect.isclass(optimizer_class)
    if not is_class or not issubclass(optimizer_class, keras.optimizers.Optimizer):
        raise TypeError(
            "`decouple` needs a class derived from `keras.optimizers.Optimizer`. Received: "
            f"{optimizer_class!r}. Give the class, decouple(keras.optimizers.Lion), and its "
            "arguments to what comes back."
        )
    if issubclass(optimizer_class, Decoupled):
        return optimizer_class
    public = getattr(keras.optimizers, optimizer_class.__name__, None)
    if public is not None and optimizer_class is type(public.__new__(public)):
        optimizer_class = public  # on torch an object of a stock class is of another class
    for name, reason in _REFUSED.items():
        if issubclass(optimizer_class, getattr(keras.optimizers, name, ())):
            raise ValueError(
                f"`{name}` cannot have an independent weight decay: {reason}. Received: "
                f"{optimizer_class!r}. Other stock optimizers can."
            )
    if optimizer_class not in _DECOUPLED:
        _make(optimizer_class, stock=optimizer_class is public)
    return _DECOUPLED[optimizer_class]


def _make(base: type[Any], stock: bool) -> None:
    """Make the decoupled class; Keras' error for a file of an unknown class shows its name."""
    registered = keras.saving.get_registered_name(base).replace(">", ".")
    if not stock and hasattr(sys.modules["keras_decoupled"], registered):
        raise ValueError(
            f"`{registered}` is the name of an optimizer of this package, and files go by names. "
            f"Received: {base!r}. Register your class under a package of your own: "
            '@keras.saving.register_keras_serializable(package="mine").'
        )
    signature = _signature(base)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        own = bound.arguments
        own.pop("self")
        learning_rate, decay = own.pop("learning_rate"), own.pop("weight_decay")
        super(made, self).__init__(  # type: ignore[misc]
            learning_rate, weight_decay=decay, **own.pop("shared"), hyperparameters=own
        )

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    name = base.__name__ if stock else f"decouple({base.__name__})"
    text = f"""`{base.__name__}` with independent weight decay: the learning rate never multiplies it.

        θ ← θ − u − η·(l2·θ + l1·sign θ),   u = θ − {base.__name__}(θ; g, rate η·α·m_v)

    with θ on the right the value before the update, g the gradient, η = (learning rate now)/α and
    m_v the variable's learning-rate multiplier. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.
        The others are those of `{base.__name__}`:

    {inspect.getdoc(base) or "(it has no docstring)"}
    """
    namespace = {"__init__": __init__, "__doc__": text, "__module__": __name__}
    made = type(name, (Stock, base), namespace)
    keras.saving.register_keras_serializable(package="keras_decoupled", name=registered)(made)


def _signature(base: type[Any]) -> inspect.Signature:
    """Return the stock arguments, in their order, less those that all optimizers share."""
    kinds = inspect.Parameter
    given = list(inspect.signature(base.__init__).parameters.values())
    parameters: list[inspect.Parameter] = []
    positional = True
    for parameter in given:
        if parameter.kind in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            continue
        if parameter.name in KERAS_ARGUMENTS or parameter.name == "adam_weight_decay":
            positional = False  # what follows has another place than in the stock class
            continue
        if parameter.name in Shared.__annotations__:
            raise ValueError(
                f"An argument of `{base.__name__}` has the name of one that all optimizers of this "
                f"package share. Received: {parameter.name}. Give it another name."
            )
        kind = parameter.kind if positional else kinds.KEYWORD_ONLY
        if parameter.name == "weight_decay":
            parameter = parameter.replace(default=None)
        parameters.append(parameter.replace(kind=kind))
    names = [parameter.name for parameter in parameters]
    if "learning_rate" not in names:
        raise ValueError(
            f"`{base.__name__}` must take a `learning_rate`, which is handed to it. "
            f"Received: a class that takes {names[1:]}. Add the argument to its __init__."
        )
    if "weight_decay" not in names:
        parameters.append(kinds("weight_decay", kinds.KEYWORD_ONLY, default=None))
    return inspect.Signature([*parameters, kinds("shared", kinds.VAR_KEYWORD)])


def _is_slots(value: Any, count: int, made: Mapping[int, Any]) -> bool:
    listed = isinstance(value, list | tuple) and len(value) == count
    return listed and any(id(slot) in made for slot in value)


def _inside_cond() -> bool:
    """Tell whether a branch of `cond` is between the stock `update_step` and this question."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_name.endswith("_take_step"):
        if frame.f_code.co_name == "cond":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _from_config(stock: type[Any], config: Mapping[str, Any]) -> Any:
    return decouple(stock).from_config(config)
