"""The numbers of one update that all variables share, and how they are computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from keras import ops


class Own:
    """The optimizer's own arguments as they are now: `h.beta_1`.

    Args:
        values: the arguments by name.
        exactly: computes a function of an argument before the argument is rounded.
    """

    def __init__(self, values: Mapping[str, Any], exactly: Callable[..., Any]) -> None:
        self.__dict__.update(values)
        self._exactly = exactly

    def exactly(self, function: Callable[[Any], Any], name: str) -> Any:
        """Return the function of an argument before it is rounded; see `Setting.exactly`."""
        return self._exactly(function, name)

    def cast(self, dtype: Any) -> Own:
        """Return the same with its tensors in this type."""
        tensors = {name: x for name, x in vars(self).items() if ops.is_tensor(x)}
        values = {name: cast(x, dtype) for name, x in tensors.items()}
        return Own(vars(self) | values, self._exactly)


class Watched(Own):
    """Arguments that take note of which of them are read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values, self.names = values, set[str]()

    def cast(self, dtype: Any) -> Own:
        """Return the same: in a trial, types do not matter."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Return an argument."""
        self.names.add(name)
        return self._values[name]


class Numbers(NamedTuple):
    """What an update computes once; see `Update.begin`."""

    dtype: Any  # of the numbers below
    rate: Any  # η·α, before multipliers
    decays: tuple[Any, ...]  # η^power·√(1/T)·l for each distinct amount l of decay
    multipliers: tuple[Any, ...]  # the value of each distinct schedule in `lr_multipliers`
    own: Own
    scalars: tuple[Any, ...]  # what the optimizer's mathematics asks for

    def of(self, dtype: Any) -> tuple[Own, tuple[Any, ...]]:
        """Return the arguments and the scalars in a variable's type."""
        if dtype == self.dtype:
            return self.own, self.scalars
        return self.own.cast(dtype), tuple(cast(scalar, dtype) for scalar in self.scalars)


class OnTensors:
    """Computes the numbers of an update with tensors, inside a compiled step too.

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
        """Return a tensor of the step's precision. A Python float stays a float, which is exact."""
        # TensorFlow's cast of a Python number to float64 goes through float32.
        return value if isinstance(value, float) else ops.cast(value, self.dtype)

    def tensor(self, value: Any) -> Any:
        """Return a number or tensor as a tensor of the step's precision."""
        exact = isinstance(value, float)
        return ops.convert_to_tensor(np.array(value, self.dtype)) if exact else self.number(value)

    def where(self, condition: Any, value: float, otherwise: Any) -> Any:
        """Return the value where the condition holds."""
        return ops.where(condition, self.tensor(value), otherwise)

    def write(self, variable: Any, value: Any) -> None:
        """Assign a scalar variable."""
        variable.assign(value)


def one_minus(x: Any) -> Any:
    """Return 1 − x."""
    return 1 - x


def log(x: Any) -> Any:
    """Return the natural logarithm of a tensor, or of a float; of 0, −∞."""
    if isinstance(x, float):
        return math.log(x) if x else -math.inf
    return ops.log(x)


def cast(x: Any, dtype: Any) -> Any:
    """Return x in this type. Keras' own cast is slow even if there is nothing to do."""
    return x if getattr(x, "dtype", None) == dtype else ops.cast(x, dtype)


def has_value(variable: Any) -> bool:
    """Tell whether a variable holds a value: `fit` on JAX keeps most values elsewhere."""
    try:
        ops.convert_to_tensor(variable)
    except (TypeError, AttributeError):
        return False
    return True


def copied(variable: Any, dtype: Any) -> Any:
    """Return a variable's value in a buffer of its own: JAX donates a buffer once."""
    return ops.copy(ops.cast(ops.convert_to_tensor(variable), dtype))
