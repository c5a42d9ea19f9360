"""Settings: numbers with a name that a user may set at any time, and that a file keeps.

The rate's factor r, the decay λ, and an optimizer's own real arguments: β1, ε, momentum and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.core.arguments import Check, Real
from keras_decoupled.fast import eager

FIXED = (
    "`update_step` does not read it, or uses it in Python, where a compiled step does not see it "
    "move"
)


class Setting:
    """A number that is exactly what was given until somebody moves it.

    It may also be a schedule, or a fixed number.

    Args:
        name: the attribute's name, also in a file.
        given: what the optimizer was made with, a number or a schedule of k.
        variable: an optimizer variable that holds the number as it is now, rounded to its type.
            None if the setting cannot be changed.
        check: refuses a number that is out of its range.
    """

    def __init__(self, name: str, given: Any, variable: Any, check: Real) -> None:
        self.name, self.given, self.variable, self._check = name, given, variable, check
        self.scheduled = isinstance(given, LearningRateSchedule)
        self._unmoved: Any = None if variable is None else self._rounded(given)
        self._set: Any = self._unmoved  # what a user has set

    def _rounded(self, number: float) -> float:
        with np.errstate(over="ignore"):  # an infinite number is refused later, or was given
            return float(np.asarray(number, self.variable.dtype))

    def read(self, on: Any, k: Any = None) -> Any:
        """Return the number for update k; `on` computes with tensors or with floats."""
        if self.variable is not None:
            return self.exactly(lambda number: number, on)
        return on.evaluate(self.given, k) if self.scheduled else self.given

    def exactly(self, function: Callable[[Any], Any], on: Any) -> Any:
        """Return function(number), with the number before it is rounded.

        Example: 1 − β2. With 0.999 rounded to float32, it has a relative error of 1.3e-5.
        """
        now = on.read(self.variable)
        return on.where(now == self._unmoved, function(self.given), function(now))

    @property
    def moved(self) -> bool:
        """Whether somebody has set it to another number."""
        return self.variable is not None and as_number(self.variable) != self._unmoved

    @property
    def at_start(self) -> float:
        """The number of the first update."""
        return checks.values_of(self.given, [0])[0] if self.scheduled else self.now()

    def fix(self) -> Any:
        """Keep the number as it is, for good. Return the variable, which nobody needs any more."""
        self.given, variable, self.variable = self.now(), self.variable, None
        return variable

    def now(self) -> Any:
        """Return the schedule, or the number: exactly as given if nobody moved it."""
        if self.variable is None:
            return self.given
        with eager():  # TensorFlow builds an optimizer in a traced step
            now = as_number(self.variable)
        if now == self._unmoved or now == float(np.float32(self.given)):
            return self.given
        return float(str(np.float32(now))) if self.variable.dtype == "float32" else now

    def checked(self, value: Any) -> float:
        """Return a number that a user sets, as the variable will hold it."""
        if isinstance(value, LearningRateSchedule):
            cure = f"Give the schedule to the constructor: {self.name}=..."
            rule = "can be set to a number only"
            checks.refuse(self.name, value, rule, cure, TypeError)
        if self.scheduled:
            rule = f"was given as a schedule, {type(self.given).__name__}, and cannot be set"
            checks.refuse(self.name, value, rule, "Make a new optimizer with another schedule.")
        if self.variable is None:
            cure = f"Make a new optimizer with {self.name}={value!r}."
            checks.refuse(self.name, value, f"cannot be set after build: {FIXED}", cure)
        number = self._check(self.name, as_number(value))
        return self._check(self.name, self._rounded(number))

    def assign(self, number: float) -> None:
        """Set the number, which was checked."""
        self._set = number
        self.variable.assign(number)

    def loaded(self, given: float, now: float) -> float:
        """Return the number to continue with after a load.

        It is the number of the file, if the saved optimizer was made with the same number as this
        one. Otherwise this optimizer's number stays. A `LossScaleOptimizer` has overwritten it
        already: it loads by position, before us.
        """
        if given != self.given:
            here = as_number(self.variable)
            return self._set if here == now else here
        check = dataclasses.replace(self._check, cure=checks.OF_A_FILE)
        return now if now == self._unmoved else check(f"the saved {self.name}", now)


def check_own(name: str, value: Any, check: Check) -> Any:
    """Return an optimizer's own argument, checked. Many values of a schedule are checked."""
    if value is None and isinstance(check, Real) and check.or_none:
        return None
    if not isinstance(value, LearningRateSchedule):
        return check(name, value)
    if not isinstance(check, Real):
        checks.refuse(name, value, "cannot be a schedule", "Give a single value.")
    return checks.schedule(name, value, check)


def as_number(value: Any) -> Any:
    """Return a scalar array, tensor or variable as a float; anything else as it is."""
    if isinstance(value, keras.Variable) or ops.is_tensor(value):
        low = keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16")
        value = ops.convert_to_numpy(ops.convert_to_tensor(value, "float32" if low else None))
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, and a list or dict without Keras' tracking."""
    if isinstance(value, np.generic):
        return value.item()
    kind = next((kind for kind in (list, dict) if isinstance(value, kind)), None)
    return value if kind is None else kind(value)
