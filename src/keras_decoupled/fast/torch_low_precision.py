"""Variables below float32 on torch: the kernels update their float32 copies.

A copy is valid while it rounds to its variable. That is seen piece by piece, in the cache, since
almost always there is nothing to do.
"""

from __future__ import annotations

import torch

from keras_decoupled.fast.torch_kernels import Tensors
from keras_decoupled.fast.torch_pieces import cuts

_ELEMENTS = 2**16  # of a piece


class LowPrecision:
    """Variables of one type and device, and their copies."""

    def __init__(self) -> None:
        self.thetas: Tensors = []
        self.copies: Tensors = []
        self._pieces: list[_Piece] | None = None

    def add(self, theta: torch.Tensor, copy: torch.Tensor) -> None:
        """Take a variable's tensor and that of its copy."""
        self.thetas.append(theta)
        self.copies.append(copy)

    def read(self) -> None:
        """Bring the copies up to date: whoever assigns to a variable is obeyed."""
        if self.thetas[0].device.type != "cpu":  # to ask a GPU would be to wait for it
            for pair in zip(self.thetas, self.copies, strict=True):
                _obey(*pair)
            return
        if self._pieces is None:
            both = torch.empty((2, 2 * _ELEMENTS), dtype=self.thetas[0].dtype)
            self._pieces = [_Piece(*cut, self.thetas, both) for cut in cuts(self.thetas, _ELEMENTS)]
        for piece in self._pieces:
            piece.read(self.thetas, self.copies)

    def write(self) -> None:
        """Round the copies to their variables."""
        torch._foreach_copy_(self.thetas, self.copies)


class _Piece:
    """A part of a long variable, or several short ones."""

    def __init__(
        self, members: list[int], part: slice | None, thetas: Tensors, both: torch.Tensor
    ) -> None:
        self._members, self._part = members, part
        shapes = [thetas[i].shape for i in members] if part is None else [_flat_shape(part)]
        sizes = [shape.numel() for shape in shapes]
        flat = both[:, : sum(sizes)]
        self._rounded, self._thetas = (
            [p.view(shape) for p, shape in zip(row.split(sizes), shapes, strict=True)]
            for row in flat
        )
        # Bits, which are compared faster than numbers.
        self._bits = flat.view(torch.int16)

    def read(self, thetas: Tensors, copies: Tensors) -> None:
        """Set the copies where they do not round to their variables."""
        # Cut anew: `p.data = x` puts other memory in a tensor's place.
        thetas, copies = ([tensors[i] for i in self._members] for tensors in (thetas, copies))
        if self._part is not None:
            thetas, copies = ([t.view(-1)[self._part] for t in ts] for ts in (thetas, copies))
        torch._foreach_copy_(self._rounded, copies)
        torch._foreach_copy_(self._thetas, thetas)
        if not torch.equal(*self._bits):
            for pair in zip(thetas, copies, strict=True):
                _obey(*pair)


def _flat_shape(part: slice) -> torch.Size:
    return torch.Size([part.stop - part.start])


def _obey(theta: torch.Tensor, copy: torch.Tensor) -> None:
    valid = copy.to(theta.dtype) == theta
    torch.where(valid, copy, theta.to(copy.dtype), out=copy)
