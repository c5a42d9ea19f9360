"""Variables below float32 on torch: the kernels update their float32 copies.

A copy is valid while it rounds to its variable. Almost always all of them are valid, so their bits
are compared first, in batches of short variables: a call per variable would cost more.
"""

from __future__ import annotations

import torch
from torch._utils import _flatten_dense_tensors

from keras_decoupled.fast.torch_kernels import Tensors

_ELEMENTS = 2**16  # of a batch, unless a single variable has more


class LowPrecision:
    """Variables of one type and device, and their copies."""

    def __init__(self) -> None:
        self.thetas: Tensors = []
        self.copies: Tensors = []
        self._batches: list[tuple[Tensors, Tensors]] = []  # the same tensors
        self._room = 0  # how many elements the last batch can still take

    def add(self, theta: torch.Tensor, copy: torch.Tensor) -> None:
        """Take a variable's tensor and its copy's tensor."""
        self._room -= theta.numel()
        if self._room < 0 or not self._batches:
            self._batches.append(([], []))
            self._room = _ELEMENTS - theta.numel()
        for tensors, tensor in zip(self._batches[-1], (theta, copy), strict=True):
            tensors.append(tensor)
        self.thetas.append(theta)
        self.copies.append(copy)

    def read(self) -> None:
        """Bring the copies up to date: a value that was assigned to a variable counts."""
        for thetas, copies in self._batches:
            # On a GPU, the host would have to wait for the comparison.
            if thetas[0].device.type == "cpu" and _same_bits(thetas, copies):
                continue
            for theta, copy in zip(thetas, copies, strict=True):
                valid = copy.to(theta.dtype) == theta
                torch.where(valid, copy, theta.to(copy.dtype), out=copy)

    def write(self) -> None:
        """Round the copies to their variables."""
        torch._foreach_copy_(self.thetas, self.copies)


def _same_bits(thetas: Tensors, copies: Tensors) -> bool:
    """Tell whether all copies round to their variables; bits are compared faster than numbers."""
    flat = _flatten_dense_tensors(thetas)
    rounded = _flatten_dense_tensors(copies).to(flat.dtype)
    return torch.equal(rounded.view(torch.int16), flat.view(torch.int16))
