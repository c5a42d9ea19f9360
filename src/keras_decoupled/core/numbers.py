"""The numbers of one update that all variables share, and how they are computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops


class Numbers(NamedTuple):
    """What an update computes once; see `Update.numbers`."""

    rate: Any  # η·α, before multipliers
    decays: tuple[Any, ...]  # η^power·√(1/T)·l for each distinct amount l of decay
    own: Any  # the optimizer's own arguments as they are now, by name
    scalars: tuple[Any, ...]  # what its mathematics asks for


class OnTensors:
    """Computes them with tensors, inside a compiled step too.

    `fast/torch_host_copy.py` has the same methods for floats of the host.
    """

    math = ops  # exp and expm1

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype  # float32 at least: in bfloat16 0.999 is 1

    def count(self, variable: Any) -> Any:
        """Return the value of a variable that counts."""
        return ops.convert_to_tensor(variable)

    def read(self, variable: Any) -> Any:
        """Return the value of a scalar variable."""
        return ops.cast(variable, self.dtype)

    def evaluate(self, function: Callable[[Any], Any], count: Any) -> Any:
        """Return a schedule's value at a count."""
        return self.number(function(count))

    def evaluate_all(self, function: Callable[[Any], Any], count: Any) -> tuple[Any, ...]:
        """Return the values that a function has at a count."""
        return tuple(map(self.number, function(count)))

    def number(self, value: Any) -> Any:
        """Return a tensor of the step's precision. A Python float stays one: it is exact in any."""
        # TensorFlow's cast of a Python number to float64 goes through float32.
        return value if isinstance(value, float) else ops.cast(value, self.dtype)

    def where(self, condition: Any, value: float, otherwise: Any) -> Any:
        """Return the value where the condition holds."""
        return ops.where(condition, ops.convert_to_tensor(np.array(value, self.dtype)), otherwise)

    def write(self, variable: Any, value: Any) -> None:
        """Assign a scalar variable."""
        variable.assign(value)


def cast(x: Any, dtype: Any) -> Any:
    """Return x in this type. Keras' own cast takes its time where there is nothing to do."""
    return x if getattr(x, "dtype", None) == dtype else ops.cast(x, dtype)


def has_value(variable: Any) -> bool:
    """Tell whether a variable holds a value: in `fit`, JAX keeps many outside of them."""
    try:
        ops.convert_to_tensor(variable)
    except (TypeError, AttributeError):
        return False
    return True


def copied(variable: Any, dtype: Any) -> Any:
    """Return a variable's value in a buffer of its own: JAX donates a buffer once."""
    return ops.copy(ops.cast(ops.convert_to_tensor(variable), dtype))
