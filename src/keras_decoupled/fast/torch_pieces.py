"""Decays that torch's kernels do not know: the kernel computes the step, `decayed` the rest.

The kernel writes the step to a buffer of zeros, one piece at a time. A piece stays in the cache,
and no temporary has the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from keras_decoupled import checks
from keras_decoupled.decay.kinds import Decay, Operations, decayed
from keras_decoupled.fast.torch_kernels import Kernel, Tensors

_ELEMENTS = {"cpu": 2**17, "cuda": 2**22}  # of a piece; on a CPU, that is 512 KB of float32


class _Piece:
    """A part of a long tensor, or several short ones."""

    def __init__(
        self,
        members: list[int],
        part: slice | None,
        lists: list[Tensors],
        buffer: torch.Tensor,
        has_reference: bool,
    ) -> None:
        def cut(tensors: Tensors) -> Tensors:
            if part is not None:
                return [tensors[members[0]].view(-1)[part]]
            return [tensors[member] for member in members]

        self.members, self.part = members, part
        self.theta, *others = map(cut, lists)
        # Flat views: `decayed` gets them joined into one tensor.
        self.flat = [tensor.view(-1) for tensor in self.theta]
        self.reference = [t.view(-1) for t in others.pop()] if has_reference else None
        self.slots = tuple(others)
        sizes = [tensor.numel() for tensor in self.theta]
        self.whole = buffer[: sum(sizes)]
        self.steps = [
            part.view_as(tensor)
            for part, tensor in zip(self.whole.split(sizes), self.theta, strict=True)
        ]

    def update(
        self, kernel: Kernel, gradients: Tensors, rate: float, decay: Decay, l2: Any, l1: Any
    ) -> None:
        own = [gradients[member] for member in self.members]
        if self.part is not None:
            own = [own[0].view(-1)[self.part]]
        self.whole.zero_()
        kernel.step(self.steps, own, self.slots, rate, 0.0, sign=-1.0)
        reference = self.reference and _joined(self.reference)
        theta = _joined(self.flat)
        decay_and_step(theta, self.whole, decay, l2, l1, reference)
        if len(self.flat) > 1:
            self.whole.copy_(theta)
            torch._foreach_copy_(self.theta, self.steps)


class Pieces:
    """Variables' tensors: long ones are cut into pieces, short ones are collected into pieces."""

    def __init__(
        self, theta: Tensors, slots: tuple[Tensors, ...], reference: Tensors | None
    ) -> None:
        limit = _ELEMENTS[theta[0].device.type]
        # Short tensors are collected until they pass the limit. The last one adds at most `limit`
        # elements, so a piece has less than twice the limit.
        buffer = theta[0].new_zeros(min(sum(map(torch.numel, theta)), 2 * limit))
        lists = [theta, *slots, *([] if reference is None else [reference])]
        self._pieces = [
            _Piece(members, part, lists, buffer, reference is not None)
            for members, part in cuts(theta, limit)
        ]

    def update(
        self, kernel: Kernel, gradients: Tensors, rate: float, decay: Decay, l2: Any, l1: Any
    ) -> None:
        """Update the variables by the kernel's step and the decay."""
        for piece in self._pieces:
            piece.update(kernel, gradients, rate, decay, l2, l1)


def cuts(tensors: Tensors, limit: int) -> Iterator[tuple[list[int], slice | None]]:
    """Yield, for each piece, the positions of its tensors, and the part if it is cut from one."""
    batch: list[int] = []
    size = 0
    for position, tensor in enumerate(tensors):
        count = tensor.numel()
        if count > limit:
            for start in range(0, count, limit):
                yield [position], slice(start, min(start + limit, count))
            continue
        batch.append(position)
        size += count
        if size >= limit:
            yield batch, None
            batch, size = [], 0
    if batch:
        yield batch, None


def decay_and_step(
    theta: torch.Tensor, step: torch.Tensor, decay: Decay, l2: Any, l1: Any, reference: Any
) -> None:
    """θ ← decayed(θ, step), with l2 and l1 as floats of the host; `step` is overwritten."""
    new = decayed(theta, step, decay, l2, l1, reference, using=_InPlace)
    if new is not theta:
        theta.copy_(new)


def _joined(flat: Tensors) -> torch.Tensor:
    return flat[0] if len(flat) == 1 else torch.cat(flat)


class _InPlace(Operations):
    """The operations in few passes. In torch, a comparison costs as much as ten passes."""

    @staticmethod
    def add(x: torch.Tensor, y: torch.Tensor, factor: float) -> torch.Tensor:
        return x.add_(y, alpha=factor)

    @staticmethod
    def subtract(theta: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        return theta.sub_(change)

    @staticmethod
    def agreeing(d: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        # d − d where the signs are opposite, else d + 0.
        opposite = torch.sign(step).mul_(torch.sign(d)).clamp_(max=0.0)
        return torch.addcmul(d, opposite, d)

    @staticmethod
    def shrink(x: torch.Tensor, amount: float) -> torch.Tensor:
        # `softshrink` raises for an amount below 0 (from a callable rate), and for NaN.
        if not 0 <= amount < checks.FLOAT32:
            return Operations.shrink(x, amount)
        return torch.nn.functional.softshrink(x, amount)
