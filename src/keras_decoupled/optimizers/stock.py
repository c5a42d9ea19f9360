"""What a stock optimizer's step needs to get this package's decay.

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

from keras_decoupled.core.arguments import KERAS_ARGUMENTS
from keras_decoupled.core.decoupled import Decoupled
from keras_decoupled.core.entry import Entry, name_of_user
from keras_decoupled.core.from_keras import paired
from keras_decoupled.core.gradients import LOW_PRECISION
from keras_decoupled.core.scheduled import as_number
from keras_decoupled.fast import StandIn
from keras_decoupled.paths.match import path_of

OWN_DECAYS = ("weight_decay", "adam_weight_decay")  # of the stock classes: these are ours
DECOUPLED: dict[type, type[Decoupled]] = {}  # by stock class


class Stock(Decoupled):
    """A stock optimizer's step with this package's decay: the base of what `decouple` returns."""

    stock: ClassVar[type[Any]]  # the class whose step it is
    _keras_own: ClassVar[bool]  # whether that is Keras' own

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take the stock class among the bases for `stock`; a class derived from ours has none."""
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, keras.optimizers.Optimizer) and not issubclass(base, Decoupled):
                cls.stock, cls.twins = base, (base,)
                cls._keras_own = base is getattr(keras.optimizers, base.__name__, None)
                DECOUPLED[base] = cls

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
        if name is not None:
            self.name = name  # a user's class may take none

    def _checked(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return them for a config; the stock class checks them itself."""
        return {name: _plain(value) for name, value in hyperparameters.items()}

    def _for_keras(self, own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
        taken = inspect.signature(self.stock.__init__).parameters
        # 0 and not None, which Keras' AdamW refuses.
        given = shared | own | {name: 0.0 for name in OWN_DECAYS if name in taken}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            return given
        # A user's class may take few of Keras' arguments, and a config has them all.
        unused = {name for name, value in shared.items() if value is None or value is False}
        unused |= {"name"} | ({"ema_momentum"} if not shared.get("use_ema") else set())
        return {name: value for name, value in given.items() if name in taken or name not in unused}

    def _own_config(self) -> dict[str, Any]:
        shared = {*KERAS_ARGUMENTS, *OWN_DECAYS, "learning_rate"}
        config = self.config_of(self.stock)
        return {name: _plain(value) for name, value in config.items() if name not in shared}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the stock class: what `decouple` makes is no name of a module."""
        if type(self) is not DECOUPLED.get(self.stock):
            return super().__reduce__()
        from keras_decoupled.optimizers import decouple  # which imports this file

        return decouple.from_config, (self.stock, self.get_config())

    def twin_state(self, stock: Any) -> list[tuple[Any, Any]]:
        """Return the pairs of what the stock class itself has made, by attribute."""
        of_every_optimizer = vars(keras.optimizers.Optimizer(learning_rate=0.0))
        pairs = []
        for attribute in vars(stock).keys() - of_every_optimizer.keys():
            own, theirs = getattr(self, attribute, None), getattr(stock, attribute)
            if isinstance(theirs, keras.Variable) or isinstance(own, list):
                pairs += paired(own, theirs)
        return [(a, b) for a, b in pairs if isinstance(a, keras.Variable)]

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
        change.target = target = variable if entry.master is None else entry.master
        change.entry, change.step = entry, None
        change.theta = theta if self._keras_own else ops.copy(theta)
        try:
            self.stock.update_step(self, gradient, target, rate)
        finally:
            change.target = None
        if change.step is None:
            raise ValueError(
                f"`{self.stock.__name__}.update_step` must change the variable through "
                "`self.assign`, `self.assign_add` or `self.assign_sub`, where the step is added to "
                f"the weight decay. Received: an update of {path_of(entry.variable)} without any "
                "of them. Write self.assign_sub(variable, step) in place of variable.assign(...)."
            )
        if not self._keras_own:
            self.assign(target, change.theta)
        return change.step

    def _is_target(self, variable: Any) -> bool:
        """Tell whether this is the variable whose change is to be caught."""
        change = self._change
        if variable is not change.target:
            return False
        if not self._keras_own and _inside_cond():  # the walk through the frames takes its time
            raise ValueError(
                f"`{self.stock.__name__}.update_step` must not change the variable inside "
                "`ops.cond`: a compiled step traces both branches, and the change cannot be "
                f"caught. Received: an update of {path_of(change.entry.variable)} there. Compute "
                "the step with `ops.where`, and call self.assign_sub(variable, step) once."
            )
        return True

    def _catch(self, step: Any) -> None:
        """Take note of all that the class has subtracted so far.

        No class of Keras reads the variable again after its step, but a user's may: it finds what
        it wrote.
        """
        self._change.step = step
        if not self._keras_own:
            super().assign(self._change.target, self._change.theta - step)

    def assign(self, variable: Any, value: Any) -> None:
        """Assign, as in Keras; for the variable that is being updated, take note of the step."""
        if self._is_target(variable):
            self._catch(self._change.theta - value)
        else:
            super().assign(variable, value)

    def assign_add(self, variable: Any, value: Any) -> None:
        """Add, as in Keras; for the variable that is being updated, take note of the step."""
        if self._is_target(variable):
            self._catch(self._change.subtracted - ops.convert_to_tensor(value))
        else:
            super().assign_add(variable, value)

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtract, as in Keras; for the variable that is being updated, take note of the step."""
        if not self._is_target(variable):
            super().assign_sub(variable, value)
        elif (
            self._change.step is None and self._keras_own and not isinstance(value, keras.Variable)
        ):
            self._catch(value)  # Keras' own classes subtract a tensor
        else:  # a new tensor: a slot may be changed before the step is used
            self._catch(self._change.subtracted + ops.convert_to_tensor(value))

    def index_of(self, variable: Any) -> int:
        """Return a variable's position in the last build, also of what stands for a variable."""
        if isinstance(variable, StandIn):
            return variable.position
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
        for attribute, value in list(self.__dict__.items()):
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
        kept = self._slots.ids()
        self.forget([made[i] for i in made.keys() & found - kept])
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
        self._slots.scalars[name] = new if old is None else old
        return self._slots.scalars[name]

    def _slot(self, name: str, variable: Any, key: Any, new: Any) -> Any:
        name = name_of_user(name)
        old = self._slots.get(key, name)
        if old is None:
            self._slots.add(variable, key, name, new)
            return new
        return old


class _Change:
    """The change of a variable, on its way to it. Keras would track what is set on the optimizer."""

    target: Any = None  # the variable as the stock class has it
    entry: Entry
    theta: Any  # its value before the update
    step: Any  # what was subtracted from it so far; None: it was not changed

    @property
    def subtracted(self) -> Any:
        """What was subtracted so far, 0 before that."""
        return 0.0 if self.step is None else self.step


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's, and a list or dict without Keras' tracking."""
    if isinstance(value, np.generic):
        return value.item()
    kind = next((kind for kind in (list, dict) if isinstance(value, kind)), None)
    return value if kind is None else kind(value)


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
