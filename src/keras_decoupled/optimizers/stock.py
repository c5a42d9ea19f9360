"""`Stock`: a stock optimizer's step with this package's decay.

The mathematics stays in the stock class. When its `update_step` assigns to the variable, the
assignment is caught: it is the step u. The decay is added to u before both meet θ.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.arguments import KERAS_ARGUMENTS, Real
from keras_decoupled.core.from_keras import paired
from keras_decoupled.core.gradients import LOW_PRECISION
from keras_decoupled.core.numbers import Numbers
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.core.registry import Record, name_of_user
from keras_decoupled.core.settings import as_number, check_own, plain
from keras_decoupled.decay.kinds import number_to_config
from keras_decoupled.optimizers.stock_settings import OWN_DECAYS, add_attributes, fix
from keras_decoupled.paths.match import path_of
from keras_decoupled.saving.state import SCALARS

DECOUPLED: dict[type, type[Decoupled]] = {}  # by stock class
_A_NUMBER = Real("See help() of the class.")


class Stock(Decoupled):
    """The base of the classes that take their step from a class of Keras or of a user."""

    _kd_algorithm = Algorithm()  # the stock class has the mathematics
    _kd_stock: ClassVar[type[Any]]  # that class
    _kd_keras_own: ClassVar[bool]  # whether it is Keras' own

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Find the stock class among the bases. A class derived from ours inherits it."""
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, keras.optimizers.Optimizer) and not issubclass(base, Decoupled):
                cls._kd_stock, cls._kd_twins = base, (base,)
                cls._kd_keras_own = base is getattr(keras.optimizers, base.__name__, None)
                DECOUPLED[base] = cls
                add_attributes(cls)

    def __init__(
        self,
        learning_rate: Any,
        own: Mapping[str, Any] | None = None,
        *,
        name: str | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(learning_rate, own, name=name, **shared)
        if name is not None:
            self.name = name  # a user's constructor may not take it

    def _kd_arguments(
        self, own: Mapping[str, Any], shared: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the stock class's own arguments, and all arguments for its constructor.

        The ranges of numbers are checked only by the stock class, if at all.
        """
        own = {name: plain(value) for name, value in own.items()}
        numbers = dict(own)
        for argument, check in self._kd_own.items():
            value = own.get(argument)
            if isinstance(value, LearningRateSchedule):
                check_own(argument, value, check)
                numbers[argument] = checks.values_of(value, [0])[0]  # for its constructor
            elif value is not None and isinstance(check, Real) and self._kd_keras_own:
                # Not `check`: Keras accepts a β1 of 1, for example, and can compute with it. NaN is
                # refused.
                own[argument] = numbers[argument] = _A_NUMBER(argument, value)
        taken = inspect.signature(self._kd_stock.__init__).parameters
        # 0, because Keras' AdamW refuses None.
        given = shared | numbers | {name: 0.0 for name in OWN_DECAYS if name in taken}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            return own, given
        # A user's class may take few of Keras' arguments, but a config has them all.
        unused = {name for name, value in shared.items() if value is None or value is False}
        unused |= {"name"} | ({"ema_momentum"} if not shared.get("use_ema") else set())
        return own, {k: v for k, v in given.items() if k in taken or k not in unused}

    def _kd_own_config(self) -> dict[str, Any]:
        """Return the stock class's own arguments as they are now."""
        shared = {*KERAS_ARGUMENTS, *OWN_DECAYS, "learning_rate"}
        config = self._kd.inside.config_of(self._kd_stock)
        own = {name: plain(value) for name, value in config.items() if name not in shared}
        return {name: number_to_config(value) for name, value in own.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the stock class: no module has a name for what `decouple` makes."""
        if type(self) is not DECOUPLED.get(self._kd_stock):
            return super().__reduce__()
        from keras_decoupled.optimizers import decouple  # which imports this file

        return decouple.from_config, (self._kd_stock, self.get_config())

    def _kd_twin_state(self, stock: Any) -> list[tuple[Any, Any]]:
        """Return pairs of the optimizer variables that the stock class has made, by attribute."""
        of_every_optimizer = vars(keras.optimizers.Optimizer(learning_rate=0.0))
        pairs = []
        for attribute in vars(stock).keys() - of_every_optimizer.keys():
            own, theirs = getattr(self, attribute, None), getattr(stock, attribute)
            if isinstance(theirs, keras.Variable) or isinstance(own, list):
                pairs += paired(own, theirs)
        return [(a, b) for a, b in pairs if isinstance(a, keras.Variable)]

    # The step.

    def _kd_step(
        self,
        record: Record,
        variable: Any,
        theta: Any,
        gradient: Any,
        rate: Any,
        numbers: Numbers,
    ) -> Any:
        """Return what the stock `update_step` subtracts from the variable."""
        kd, target, change = self._kd, variable, self._kd.change
        if record.master is not None:  # stock classes compute in the variable's precision
            target = record.master
            self.assign(target, theta)
            kd.stands_for = {id(target): record.variable}
        change.target, change.record, change.step = target, record, None
        change.theta = theta if self._kd_keras_own else ops.copy(theta)
        try:
            with kd.update.at_rate(rate, numbers, theta.dtype):
                self._kd_stock.update_step(self, gradient, target, rate)
        finally:
            change.target = None
            kd.stands_for = {}
        if change.step is None:
            checks.refuse(
                f"{self._kd_stock.__name__}.update_step",
                checks.Seen(f"an update of {path_of(record.variable)} without any of them"),
                "must change the variable through `self.assign`, `self.assign_add` or "
                "`self.assign_sub`, where the step is added to the weight decay",
                "Write self.assign_sub(variable, step) instead of variable.assign(...).",
            )
        if not self._kd_keras_own:
            self.assign(target, change.theta)
        return change.step

    def _kd_is_target(self, variable: Any) -> bool:
        """Tell whether this is the variable whose change is caught."""
        change = self._kd.change
        if variable is not change.target:
            return False
        if not self._kd_keras_own and _inside_cond():  # slow: it walks through the frames
            checks.refuse(
                f"{self._kd_stock.__name__}.update_step",
                checks.Seen(f"an update of {path_of(change.record.variable)} there"),
                "must not change the variable inside `ops.cond`: a compiled step traces both "
                "branches, and the change cannot be caught",
                "Compute the step with `ops.where`, and call self.assign_sub(variable, step) once.",
            )
        return True

    def _kd_catch(self, step: Any) -> None:
        """Save the total that the class has subtracted so far.

        No class of Keras reads the variable after its step. A user's class may read it, so there
        the variable gets the new value.
        """
        change = self._kd.change
        change.step = step
        if not self._kd_keras_own:
            super().assign(change.target, change.theta - step)

    def _kd_subtracted(self) -> Any:
        """Return all that the class has subtracted so far."""
        step = self._kd.change.step
        return 0.0 if step is None else step

    def assign(self, variable: Any, value: Any) -> None:
        """Assign, as in Keras; if the variable is being updated, note the step instead."""
        if self._kd_is_target(variable):
            self._kd_catch(self._kd.change.theta - value)
        else:
            super().assign(variable, value)

    def assign_add(self, variable: Any, value: Any) -> None:
        """Add, as in Keras; if the variable is being updated, note the step instead."""
        if self._kd_is_target(variable):
            self._kd_catch(self._kd_subtracted() - ops.convert_to_tensor(value))
        else:
            super().assign_add(variable, value)

    def assign_sub(self, variable: Any, value: Any) -> None:
        """Subtract, as in Keras; if the variable is being updated, note the step instead."""
        if not self._kd_is_target(variable):
            super().assign_sub(variable, value)
            return
        first = self._kd_keras_own and self._kd.change.step is None
        if first and not isinstance(value, keras.Variable):
            self._kd_catch(value)  # Keras' own classes subtract a tensor
        else:  # a new tensor: a slot may be changed before the step is used
            self._kd_catch(self._kd_subtracted() + ops.convert_to_tensor(value))

    # The state.

    def _kd_build_keras(self, variables: list[Any]) -> None:
        """Have the stock class make its state, and recognize what is in it."""
        registry = self._kd.registry
        before = set(map(id, self.variables))
        super()._kd_build_keras(variables)
        known = before | registry.known_ids()
        made = {id(v): v for v in self.variables if id(v) not in known}
        if made:
            self._kd_adopt(variables, made)
        if not self._kd_keras_own and registry.builds == 1:
            fix(self)

    def _kd_adopt(self, variables: Sequence[Any], made: Mapping[int, Any]) -> None:
        """Recognize what the class made without `add_variable_from_reference`.

        An attribute that is a list with one entry per variable holds slots. An attribute that is a
        variable is a scalar. A second build makes them all anew, so the earlier ones are put back.
        """
        registry, found = self._kd.registry, set()
        for attribute, value in list(self.__dict__.items()):
            if id(value) in made:
                found.add(id(value))
                setattr(self, attribute, self._kd_adopt_scalar(attribute, value))
            elif (
                _is_slots(value, len(variables), made)
                and registry.scalars["iteration"] is not value[0]
            ):
                found.update(map(id, value))
                name = name_of_user(attribute)
                slots = [
                    record.slots.setdefault(name, slot) if id(slot) in made else slot
                    for record, slot in zip(registry.built, value, strict=True)
                ]
                setattr(self, attribute, slots)
        kept = registry.known_ids()
        self._kd.inside.order((), [made[i] for i in made.keys() & found - kept])
        rest = [variable for variable in made.values() if id(variable) not in found]
        if rest and registry.builds > 1:
            checks.refuse(
                self._kd_stock.__name__,
                checks.Seen(f"{rest}"),
                "cannot be built again on other variables: none of its attributes holds these "
                "optimizer variables",
                "Make them by `self.add_variable_from_reference`, or keep each kind in a list of "
                "its own, with one entry per variable.",
            )
        for i, variable in enumerate(rest):
            registry.adopted[f"variable_{i}"] = variable

    def _kd_adopt_scalar(self, attribute: str, new: Any) -> Any:
        adopted, name = self._kd.registry.adopted, name_of_user(attribute, SCALARS)
        if name not in adopted:
            low = keras.backend.standardize_dtype(new.dtype) in LOW_PRECISION
            adopted[name] = self._kd.make_scalar(name, as_number(new), "float32") if low else new
        return adopted[name]


def _is_slots(value: Any, count: int, made: Mapping[int, Any]) -> bool:
    listed = isinstance(value, list | tuple) and len(value) == count
    return listed and any(id(slot) in made for slot in value)


def _inside_cond() -> bool:
    """Tell whether the stock `update_step` calls this from a branch of `cond`."""
    frame = sys._getframe(2)
    while frame is not None and not frame.f_code.co_name.endswith("_kd_step"):
        if frame.f_code.co_name == "cond":
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
