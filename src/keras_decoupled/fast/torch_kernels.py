"""What torch computes in an update of many tensors: PyTorch's fused kernels, put to the use of each optimizer.

Which tensors they are given, `_torch_fused.py` decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from .torch_host_copy import Mirror

Tensors = list[torch.Tensor]

# Elements of which an L1 decay takes the sign at a time: in float32, 512 KB on the CPU.
_PIECE = {"cpu": 2**17, "cuda": 2**22}
_TINY = 1e-20  # below such a rate, a decay divided by it may not be a float32


class Part(NamedTuple):
    """The numbers for variables of one multiplier and decay."""

    rate: float  # η·α·m
    l1: float  # η·√(1/T)·l1
    l2: float


class Kernel:
    """One optimizer's update of many tensors."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def begin(self, updates: int) -> None:
        """Compute what the whole update shares; `updates` is k + 1."""

    def update(
        self, theta: Tensors, gradients: Tensors, slots: tuple[Tensors, ...], part: Part
    ) -> None:
        """Update variables of one multiplier and decay."""
        raise NotImplementedError

    def end(self) -> None:
        """Keep what the next update needs."""


class _Adam(Kernel):
    """torch's fused AdamW: θ ← θ·(1 − lr·wd), then Adam's step, ε added to the corrected √v.

    On a CPU it rounds β2 and 1 − β2 each to float32. Of 0.999 they add up to 1 + 1.3e-8, so that
    after some thousand updates v is 1.3e-5 too large and a step 6.5e-6 too small, as in torch.optim.
    """

    def begin(self, updates: int) -> None:
        self.updates = updates
        self.counters: dict[torch.device, torch.Tensor] = {}

    def adam(
        self,
        theta: Tensors,
        gradients: Tensors,
        slots: tuple[Tensors, ...],
        part: Part,
        beta_1: float,
        epsilon: float,
    ) -> None:
        m, v, *v_hat = slots
        device = theta[0].device
        if device not in self.counters:
            count = float(self.updates)
            self.counters[device] = torch.full((), count, dtype=torch.float32, device=device)
        l2 = part.l2
        if device.type == "cpu" and theta[0].dtype == torch.float32:
            l2 = 1 - _as_float32(1 - l2, self.updates)
        torch._fused_adamw_(
            theta,
            gradients,
            m,
            v,
            v_hat[0] if v_hat else [],
            [self.counters[device]] * len(theta),
            lr=part.rate,
            beta1=beta_1,
            beta2=self.optimizer.beta_2,
            weight_decay=l2 / part.rate if part.rate != 0 else 0.0,  # both are 0 at η = 0
            eps=epsilon,
            amsgrad=bool(v_hat),
            maximize=False,
        )


class _AdamW(_Adam):
    """Keras' ε is added to √v before the correction."""

    def update(
        self, theta: Tensors, gradients: Tensors, slots: tuple[Tensors, ...], part: Part
    ) -> None:
        optimizer = self.optimizer
        epsilon = optimizer.epsilon / math.sqrt(_one_minus_power(optimizer.beta_2, self.updates))
        self.adam(theta, gradients, slots, part, optimizer.beta_1, epsilon)


class _NadamW(_Adam):
    """Nadam's step, a·m + b·g with the new m, is Adam's with another β1, for it is linear in g.

    With a β1 of a·β1/(a+b), what Adam's kernel leaves in m is n = (a·m + b·g)/(a+b). A second
    kernel makes m of it: m = n + (b/a)·(n − g).
    """

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._product = Mirror(optimizer._product)

    def begin(self, updates: int) -> None:
        super().begin(updates)
        optimizer = self.optimizer
        mu, mu_next = (
            optimizer.beta_1 * (1 - 0.5 * 0.96 ** (i * optimizer.momentum_decay))
            for i in (updates, updates + 1)
        )
        self.product = self._product.read() * mu
        self.a = mu_next / (1 - self.product * mu_next)
        self.b = (1 - mu) / (1 - self.product)

    def update(
        self, theta: Tensors, gradients: Tensors, slots: tuple[Tensors, ...], part: Part
    ) -> None:
        optimizer, whole = self.optimizer, self.a + self.b
        beta_1 = self.a * optimizer.beta_1 / whole
        correction = _one_minus_power(beta_1, self.updates)  # Adam's; Nadam has its own, in a and b
        part = part._replace(rate=part.rate * whole * correction)
        self.adam(theta, gradients, slots, part, beta_1, optimizer.epsilon)
        # With next to no momentum n is m, but for this share, of which a step takes this share.
        if beta_1 > 2**-12:
            _sgd(slots[0], gradients, self.b / self.a, -1.0)

    def end(self) -> None:
        kept = self.optimizer._product._value.fill_(self.product)
        # What a run that is loaded will read: rounded, where the variable is float32.
        single = kept.dtype == torch.float32
        self._product.know(float(np.float32(self.product)) if single else self.product)


class _SGDW(Kernel):
    """torch's fused SGD, θ ← θ − lr·(g + wd·θ), once for the buffer and once for θ.

    Its own momentum is not SGDW's: it keeps the learning rate out of the buffer and lets the
    decay in.
    """

    def update(
        self, theta: Tensors, gradients: Tensors, slots: tuple[Tensors, ...], part: Part
    ) -> None:
        momentum, nesterov = self.optimizer.momentum, self.optimizer.nesterov
        if not slots:
            _sgd(theta, gradients, part.rate, part.l2 / part.rate if part.rate != 0 else 0.0)
            return
        (buf,) = slots
        if part.rate > _TINY:  # buf ← momentum·buf − rate·g
            _sgd(buf, gradients, part.rate, (1 - momentum) / part.rate)
        else:
            torch._foreach_mul_(buf, momentum)
            torch._foreach_add_(buf, gradients, alpha=-part.rate)
        if not (nesterov and momentum):  # θ ← θ − l2·θ + buf
            _sgd(theta, buf, -1.0, -part.l2)
        else:  # θ ← θ − l2·θ + momentum·buf − rate·g
            _sgd(theta, buf, -momentum, -part.l2 / momentum)
            _sgd(theta, gradients, part.rate, 0.0)


KERNELS = {"adamw": _AdamW, "nadamw": _NadamW, "sgdw": _SGDW}


def _pieces(tensors: Tensors) -> Iterator[Tensors]:
    """Cut long tensors into pieces and collect short ones, to about one piece at a time."""
    limit = _PIECE[tensors[0].device.type]
    batch: Tensors = []
    size = 0
    for tensor in tensors:
        if tensor.numel() > limit:
            yield from ([piece] for piece in tensor.view(-1).split(limit))
            continue
        batch.append(tensor)
        size += tensor.numel()
        if size >= limit:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def take_l1(theta: Tensors, part: Part) -> Part:
    """Do both decays here where there is an L1 one, and return the part without them."""
    if not part.l1:
        return part
    for piece in _pieces(theta):
        signs = torch._foreach_sign(piece)
        torch._foreach_add_(piece, piece, alpha=-part.l2)
        torch._foreach_add_(piece, signs, alpha=-part.l1)
    return part._replace(l1=0.0, l2=0.0)


def _sgd(theta: Tensors, by: Tensors, lr: float, weight_decay: float) -> None:
    """θ ← θ − lr·(by + weight_decay·θ), one pass."""
    torch._fused_sgd_(
        theta,
        by,
        [],
        weight_decay=weight_decay,
        momentum=0.0,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _as_float32(factor: float, updates: int) -> float:
    """Round a factor in (½, 1] to one of the float32 beside it, so that the mean is right.

    To the nearest, the same in each update, 1 − 1e-6 is 1 − 0.954e-6 for good. Which one: a
    function of the update, evenly spread (multiples of the golden ratio), so that a run that is
    resumed rounds as it would have.
    """
    if not 0.5 <= factor <= 1.0:  # NaN, too
        return factor
    return math.floor(factor * 2**24 + updates * 0.6180339887498949 % 1) / 2**24


def _one_minus_power(beta: float, updates: int) -> float:
    return 1.0 if beta == 0 else -math.expm1(updates * math.log(beta))
