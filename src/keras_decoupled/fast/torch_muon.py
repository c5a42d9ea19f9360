"""Muon's update of many tensors: matrices in place and in few passes, the rest by Adam's kernel."""

from __future__ import annotations

import math
from typing import Any

import torch

from keras_decoupled.fast import torch_pieces
from keras_decoupled.fast.torch_kernels import Adam, Slots, Tensors, as_float32
from keras_decoupled.fast.torch_update import Group
from keras_decoupled.paths.matrices import Layout, layout, newton_schulz


class Muon(Adam):
    """The kernel of Adam's part, and the momentum and the step of a matrix."""

    def step(
        self, theta: Tensors, g: Tensors, slots: Slots, rate: float, l2: float, sign: float = 1.0
    ) -> None:
        """Adam's step; the rate already includes adam_lr_ratio."""
        h, (_, root, *_) = self.h, self.scalars
        betas = h.adam_beta_1, h.adam_beta_2
        self.adam(theta, g, slots, rate, l2, sign, *betas, h.epsilon / root)

    def add_gradient(self, m: torch.Tensor, g: torch.Tensor) -> None:
        """m ← momentum·m + g."""
        m.mul_(self.h.momentum).add_(g)

    def of_matrix(self, m: torch.Tensor, g: torch.Tensor, how: Layout) -> torch.Tensor:
        """Return the orthogonalized matrices, in the shape of m."""
        h = self.h
        x = torch.add(g, m, alpha=h.momentum) if h.nesterov else m
        x = x.permute(how.order).reshape(how.stack)
        x = orthogonalized(x, (h.muon_a, h.muon_b, h.muon_c), h.ns_steps, h.ns_dtype)
        return x.view(how.ordered).permute(how.back)


class MuonGroup(Group):
    """Variables that share multiplier, decay, type, device and the letters of their axes."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        if self.axes:
            self._layouts = [layout(self.axes, tuple(theta.shape)) for theta in self.theta]

    def update(self, kernel: Any, gradients: Tensors, rate: float, l2: Any, l1: Any) -> None:
        """Update these variables."""
        if not self.axes:
            super().update(kernel, gradients, rate * kernel.h.adam_lr_ratio, l2, l1)
            return
        references = self.reference or [None] * len(self.theta)
        each = zip(self.theta, gradients, *self.slots, references, self._layouts, strict=True)
        for theta, g, m, reference, how in each:
            kernel.add_gradient(m, g)
            x = kernel.of_matrix(m, g, how)
            size = math.sqrt(max(how.stack[-2:]))
            by = rate if kernel.h.rms_rate is None else rate * kernel.h.rms_rate * size
            if self.decay.linear and l1 is None:
                if l2 is not None:
                    single = theta.dtype == torch.float32
                    theta.mul_(as_float32(1 - l2, kernel.i) if single else 1 - l2)
                theta.sub_(x, alpha=by)
            else:
                step = x.to(theta.dtype) * by
                torch_pieces.decay_and_step(theta, step, self.decay, l2, l1, reference)

    def update_slots(self, kernel: Any, gradients: Tensors, *numbers: Any) -> None:
        """Update the slots alone: the multiplier is 0 now."""
        if not self.axes:
            super().update_slots(kernel, gradients, *numbers)
            return
        for m, g in zip(*self.slots, gradients, strict=True):
            kernel.add_gradient(m, g)


def orthogonalized(
    x: torch.Tensor, coefficients: tuple[float, float, float], steps: int, dtype: str | None
) -> torch.Tensor:
    """Return the same as `orthogonalized` of `muon.py`, but in the type of the products."""
    a, b, c = coefficients
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    if dtype is not None:
        x = x.to(getattr(torch, dtype))
    add_product = torch.addmm if x.dim() == 2 else torch.baddbmm

    def polynomial(r: torch.Tensor) -> torch.Tensor:
        p = add_product(r, r, r, beta=b, alpha=c)
        p.diagonal(dim1=-2, dim2=-1).add_(a)
        return p

    return newton_schulz(x, steps, dtype, polynomial, lambda x: x.mT)
