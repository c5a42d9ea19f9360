"""What our schedules share: integer steps, a warm-up, and η in float32 or float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_decoupled.calls import call
from keras_decoupled.checks import integer, real, refuse

INT32_MAX = 2**31 - 1  # JAX counts in int32, so every backend does: steps 0 … 2³¹ − 2


class ExactSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the learning rate initial_learning_rate·η."""

    eta_max = 1.0  # η at the end of the warm-up

    def __init__(self, initial_learning_rate: float, warmup_steps: int, name: str | None) -> None:
        self.initial_learning_rate = real(
            "initial_learning_rate",
            initial_learning_rate,
            minimum=0,
            cure="It is the rate at η = 1.",
        )
        self.warmup_steps = length("warmup_steps", warmup_steps, minimum=0, cure="0 means none.")
        if not (name is None or isinstance(name, str)):
            refuse("name", name, "must be a string or None", "Leave it out.", TypeError)
        self.name = name

    def __call__(self, step: Any) -> Any:
        """The learning rate at `step`: initial_learning_rate · η."""
        return self.initial_learning_rate * self.multiplier(step)

    def multiplier(self, step: Any) -> Any:
        """η at `step`: the learning rate over `initial_learning_rate`."""
        k = int32(step)
        if not self.warmup_steps:
            return self._eta(k)
        eta = self._eta(ops.maximum(k - self.warmup_steps, ops.zeros_like(k)))
        ramp = self.eta_max / (self.warmup_steps + 1) * ops.cast(k + 1, eta.dtype)
        return ops.where(k < self.warmup_steps, ramp, eta)

    def __repr__(self) -> str:
        """Return the call that makes this schedule, without defaults."""
        return call(type(self), self.get_config())

    def position(self, step: Any) -> Any:
        """The position at `step`, counted from the end of the warm-up; 0 in the warm-up."""
        k = int32(step)
        # Not a Python 0: with floatx bfloat16, JAX would return bfloat16.
        return ops.maximum(k - self.warmup_steps, ops.zeros_like(k))

    def _eta(self, s: Any) -> Any:
        """η at an int32 step that is counted from the end of the warm-up."""
        raise NotImplementedError


def length(name: str, value: Any, *, minimum: int, cure: str) -> int:
    """Return `value`, a number of updates that int32 can hold, as an int."""
    steps = integer(name, value, minimum=minimum, cure=cure)
    if steps > INT32_MAX:
        rule = "must be at most 2**31 - 1, as updates are counted in int32"
        refuse(name, value, rule, f"No run is longer. {cure}")
    return steps


def int32(step: Any) -> Any:
    """Return `step` as an int32 tensor. Numbers and arrays are checked, and not rounded first."""
    if isinstance(step, (int, float, np.number, np.ndarray, list, tuple)):
        value = np.asarray(step)
        exact = value.astype("float64") if value.dtype.kind in "iuf" else np.array(np.nan)
        if not np.all((exact >= 0) & (exact < INT32_MAX) & (exact == np.floor(exact))):
            rule = "must be an integer from 0 to 2**31 - 2, or an array of them"
            refuse("step", step, rule, "Pass the number of updates done so far.")
        return tensor(value.astype("int32"))
    return ops.cast(ops.convert_to_tensor(step), "int32")


def real_tensor(number: float) -> Any:
    """Return a number as a tensor of η's dtype: float32, or float64 if floatx is float64."""
    # Through NumPy: JAX without x64 has no float64, and warns if it is asked for it by name.
    floatx = "float64" if keras.config.floatx() == "float64" else "float32"
    return ops.convert_to_tensor(np.array(number, floatx))


def tensor(array: np.ndarray) -> Any:
    """Return `array` as a tensor of its dtype, which JAX would change if floatx is bfloat16."""
    return ops.convert_to_tensor(array, str(array.dtype))
