"""Scalar variables' values on the host, so that no update waits for a GPU."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import keras
import torch

# Keras exports the scope, but not the function that tells whether code runs in one. In a scope, an
# assignment does not reach the tensor.
in_stateless_scope = sys.modules[keras.StatelessScope.__module__].in_stateless_scope


class HostCopy:
    """A scalar variable's value on the host. It is read again only if someone wrote to it."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self._tensor: Any = None
        self._version: int | None = None
        self._number = math.nan

    def read(self) -> float:
        """Return the value."""
        if in_stateless_scope():  # the scope holds the value
            return float(self._variable.value.item())
        tensor = self._variable._value
        version = version_of(tensor)
        if version is None or tensor is not self._tensor or version != self._version:
            self.set(tensor.item())
        return self._number

    def set(self, number: float) -> None:
        """Note that the variable holds this number now."""
        self._tensor = self._variable._value
        self._version, self._number = version_of(self._tensor), number

    def note_increment(self, before: int | None) -> None:
        """If the variable was written exactly once since version `before`, add 1, as Keras did."""
        tensor = self._variable._value
        if before is None or tensor is not self._tensor or before != self._version:
            return
        if version_of(tensor) == before + 1:
            self.set(self._number + 1)


class OnHost:
    """Computes the numbers of an update with floats. It has the methods of `OnTensors`."""

    dtype = "float64"
    math = math  # for exp and expm1

    def __init__(self) -> None:
        self._copies: dict[int, HostCopy] = {}

    def copy_of(self, variable: Any) -> HostCopy:
        """Return a variable's copy."""
        if id(variable) not in self._copies:
            self._copies[id(variable)] = HostCopy(variable)
        return self._copies[id(variable)]

    def count(self, variable: Any) -> int:
        """Return the value of a variable that counts."""
        return int(self.copy_of(variable).read())

    def read(self, variable: Any) -> float:
        """Return the value of a scalar variable."""
        return self.copy_of(variable).read()

    def evaluate(self, function: Callable[[Any], Any], count: int) -> float:
        """Return a schedule's value at a count; schedules compute with tensors."""
        with keras.device("cpu"):  # on a GPU, the update would wait for the value
            return float(function(torch.as_tensor(count)))

    def evaluate_all(self, function: Callable[[Any], Any], count: int) -> tuple[float, ...]:
        """Return the values that a function has at a count."""
        with keras.device("cpu"):
            return tuple(map(float, function(torch.tensor(count))))

    def number(self, value: Any) -> float:
        """Return a number or tensor as a float."""
        return float(value)

    def tensor(self, value: float) -> float:
        """Return the number: torch's kernels take floats."""
        return value

    def where(self, condition: bool, value: float, otherwise: float) -> float:
        """Return the value where the condition holds."""
        return value if condition else otherwise

    def write(self, variable: Any, value: float) -> None:
        """Assign a scalar variable, and note what it holds."""
        tensor = variable._value.fill_(value)
        # A float32 variable rounds, and a run that is loaded reads the rounded number.
        rounded = torch.tensor(value, dtype=tensor.dtype).item()
        self.copy_of(variable).set(rounded)


def version_of(tensor: torch.Tensor) -> int | None:
    """Return how often the tensor was written to, None if torch does not count (inference mode)."""
    return None if tensor.is_inference() else tensor._version
