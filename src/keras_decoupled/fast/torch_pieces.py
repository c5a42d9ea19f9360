"""Decays that torch's kernels do not know: the step from the kernel, the rule from `decayed`.

The kernel writes the step to a buffer of zeros in the variable's place, piece by piece, so that
all of a piece stays in the cache and no temporary has the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from keras_decoupled.decay.kinds import Decay, decayed
from keras_decoupled.fast.torch_kernels import Kernel, Tensors

_ELEMENTS = {"cpu": 2**16, "cuda": 2**22}  # of a piece: in float32, 256 KB on the CPU


class _Piece(NamedTuple):
    """A part of a long tensor, or several short ones."""

    members: list[int]  # positions of the tensors in their lists
    part: slice | None  # of the one long tensor
    theta: Tensors
    slots: tuple[Tensors, ...]
    reference: Tensors | None
    step: Tensors  # views of the buffer, one for each tensor
    whole: torch.Tensor  # and all of it, flat


class Pieces:
    """Tensors of several variables, cut and collected to about one piece at a time."""

    def __init__(
        self, theta: Tensors, slots: tuple[Tensors, ...], reference: Tensors | None
    ) -> None:
        self._limit = _ELEMENTS[theta[0].device.type]
        # Short ones are collected until they pass the limit, which the last one may do by far.
        self._buffer = theta[0].new_zeros(min(sum(map(torch.numel, theta)), 2 * self._limit))
        self._pieces = [
            self._piece(members, part, theta, slots, reference)
            for members, part in self._cuts(theta)
        ]

    def _cuts(self, tensors: Tensors) -> Iterator[tuple[list[int], slice | None]]:
        batch: list[int] = []
        size = 0
        for member, tensor in enumerate(tensors):
            count = tensor.numel()
            if count > self._limit:
                for start in range(0, count, self._limit):
                    yield [member], slice(start, min(start + self._limit, count))
                continue
            batch.append(member)
            size += count
            if size >= self._limit:
                yield batch, None
                batch, size = [], 0
        if batch:
            yield batch, None

    def _piece(
        self,
        members: list[int],
        part: slice | None,
        theta: Tensors,
        slots: tuple[Tensors, ...],
        reference: Tensors | None,
    ) -> _Piece:
        def cut(tensors: Tensors) -> Tensors:
            if part is not None:
                return [tensors[members[0]].view(-1)[part]]
            return [tensors[member] for member in members]

        mine = cut(theta)
        sizes = [tensor.numel() for tensor in mine]
        whole = self._buffer[: sum(sizes)]
        step = [v.view_as(t) for v, t in zip(whole.split(sizes), mine, strict=True)]
        return _Piece(
            members,
            part,
            mine,
            tuple(map(cut, slots)),
            None if reference is None else cut(reference),
            step,
            whole,
        )

    def update(
        self, kernel: Kernel, gradients: Tensors, rate: float, decay: Decay, l2: Any, l1: Any
    ) -> None:
        """Update the variables by the kernel's step and the decay."""
        for piece in self._pieces:
            own = [gradients[member] for member in piece.members]
            if piece.part is not None:
                own = [own[0].view(-1)[piece.part]]
            piece.whole.zero_()
            kernel.step(piece.step, own, piece.slots, rate, 0.0)
            reference = None if piece.reference is None else _joined(piece.reference)
            new = decayed(_joined(piece.theta), piece.whole.neg_(), decay, l2, l1, reference)
            sizes = [tensor.numel() for tensor in piece.theta]
            parts = [v.view_as(t) for v, t in zip(new.split(sizes), piece.theta, strict=True)]
            torch._foreach_copy_(piece.theta, parts)


def _joined(tensors: Tensors) -> torch.Tensor:
    if len(tensors) == 1:
        return tensors[0].view(-1)
    return torch.cat([tensor.view(-1) for tensor in tensors])
