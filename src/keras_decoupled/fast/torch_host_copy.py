"""Scalar variables' values on the host, so that on a GPU no update waits for the device."""

from __future__ import annotations

import math
from typing import Any

import torch


class Mirror:
    """A scalar variable's value on the host, read again only when someone wrote to it."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self._tensor: Any = None
        self._written: int | None = None
        self._number = math.nan

    def read(self) -> float:
        tensor = self._variable._value
        written = writes(tensor)
        if written is None or tensor is not self._tensor or written != self._written:
            self.know(tensor.item())
        return self._number

    def know(self, number: float) -> None:
        """Take the number as what the variable holds now."""
        self._tensor = self._variable._value
        self._written, self._number = writes(self._tensor), number

    def advance(self, before: int | None) -> None:
        """Take the one write since there were `before` for an increment by 1."""
        tensor = self._variable._value
        if before is None or tensor is not self._tensor or before != self._written:
            return
        if writes(tensor) == before + 1:
            self.know(self._number + 1)


def writes(tensor: torch.Tensor) -> int | None:
    """Return how often the tensor was written to; None: made in inference mode, torch did not count."""
    return None if tensor.is_inference() else tensor._version
