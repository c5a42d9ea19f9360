"""`Setting`: a number with a name that a user may set at any time, and that a file keeps."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_decoupled import checks


class Setting:
    """A number that is exactly what was given until somebody moves it.

    Args:
        name: the attribute's name, also in a file.
        given: the number that the optimizer was made with.
        variable: an optimizer variable that holds the number as it is now. It rounds.
    """

    def __init__(self, name: str, given: float, variable: Any) -> None:
        self.name, self.given, self.variable = name, given, variable
        self._unmoved = float(np.asarray(given, variable.dtype))

    def read(self, on: Any) -> Any:
        """Return the number for an update; `on` computes with tensors or with floats."""
        now = on.read(self.variable)
        return on.where(now == self._unmoved, self.given, now)

    def now(self) -> float:
        """Return the number for a config: to the digit as it was given, where nobody moved it."""
        now = as_number(self.variable)
        if now == self.given or np.float32(now) == np.float32(self.given):
            return self.given
        return float(str(np.float32(now))) if self.variable.dtype == "float32" else now

    def load(self, given: float, now: float) -> None:
        """Take a file's number, if that run was made with the same one as this optimizer."""
        if given == self.given:
            self.variable.assign(now)


def checked_number(name: str, value: Any, cure: str) -> float:
    """Return a number ≥ 0 that a user sets, as a float."""
    return checks.real(name, as_number(value), minimum=0.0, below=checks.FLOAT32, cure=cure)


def as_number(value: Any) -> Any:
    """Return a scalar array, tensor or variable as a float; anything else as it is."""
    if isinstance(value, keras.Variable) or ops.is_tensor(value):
        low = keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16")
        value = ops.convert_to_numpy(ops.convert_to_tensor(value, "float32" if low else None))
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
