"""Each optimizer's update of many tensors, by PyTorch's fused kernels.

`torch_update.py` decides which tensors they get.
"""

from __future__ import annotations

import math
from typing import Any

import torch

Tensors = list[torch.Tensor]
Slots = tuple[Tensors, ...]
TINY = 1e-20  # below this rate, decay / rate may overflow float32
_FOR_DAMPENING = 1e-6  # the kernel computes 1 − (1 + rate): at smaller rates, that loses digits


class Kernel:
    """One optimizer's update of many tensors."""

    def begin(self, i: int, h: Any, scalars: tuple[float, ...]) -> None:
        """Note what the whole update shares: i = k + 1, the optimizer's arguments, its scalars."""
        self.i, self.h, self.scalars = i, h, scalars

    def end(self, complete: bool) -> None:
        """Finish the update; `complete` means that it had all variables."""

    def step(
        self, theta: Tensors, g: Tensors, slots: Slots, rate: float, l2: float, sign: float = 1.0
    ) -> None:
        """θ ← θ − l2·θ − sign·step; `l2` is 0 if the rate is 0 or the sign is −1."""
        raise NotImplementedError


class Adam(Kernel):
    """torch's fused AdamW: θ ← θ·(1 − lr·wd), then Adam's step, ε added to the corrected √v.

    On a CPU it rounds both β2 and 1 − β2 to float32. For 0.999 they add up to 1 + 1.3e-8. After
    some thousand updates v is 1.3e-5 too large and a step 6.5e-6 too small, as in torch.optim.
    """

    def adam(
        self,
        theta: Tensors,
        g: Tensors,
        slots: Slots,
        rate: float,
        l2: float,
        sign: float,
        beta_1: float,
        beta_2: float,
        epsilon: float,
    ) -> None:
        """θ ← θ − l2·θ − sign·step of Adam."""
        m, v, *v_max = slots
        device = theta[0].device
        count = torch.full((), float(self.i), dtype=torch.float32, device=device)
        if device.type == "cpu" and theta[0].dtype == torch.float32:
            l2 = 1 - as_float32(1 - l2, self.i)
        torch._fused_adamw_(
            theta,
            g,
            m,
            v,
            v_max[0] if v_max else [],
            [count] * len(theta),
            lr=sign * rate,
            beta1=beta_1,
            beta2=beta_2,
            weight_decay=l2 / rate if rate != 0 else 0.0,
            eps=epsilon,
            amsgrad=bool(v_max),
            maximize=False,
        )


class _AdamW(Adam):
    """Keras adds ε to √v before the bias correction."""

    def step(
        self, theta: Tensors, g: Tensors, slots: Slots, rate: float, l2: float, sign: float = 1.0
    ) -> None:
        _, root, *_ = self.scalars
        h, epsilon = self.h, self.h.epsilon / root
        self.adam(theta, g, slots, rate, l2, sign, h.beta_1, h.beta_2, epsilon)


class _NadamW(Adam):
    """Nadam's step, a·m + b·g with the new m, is linear in g. So it is Adam's with another β1.

    With β1 replaced by a·β1/(a+b), Adam's kernel leaves n = (a·m + b·g)/(a+b) in m's place. A
    second kernel computes m = n + (b/a)·(n − g).
    """

    def step(
        self, theta: Tensors, g: Tensors, slots: Slots, rate: float, l2: float, sign: float = 1.0
    ) -> None:
        a, b, *_ = self.scalars
        beta_1 = a * self.h.beta_1 / (a + b)
        # Undo Adam's bias correction: a and b have Nadam's own.
        rate = rate * (a + b) * (1.0 if beta_1 == 0 else -math.expm1(self.i * math.log(beta_1)))
        self.adam(theta, g, slots, rate, l2, sign, beta_1, self.h.beta_2, self.h.epsilon)
        # If β1 ≈ 0, n and m differ by less than 2⁻¹²: skip the second pass.
        if beta_1 > 2**-12:
            _sgd(slots[0], g, b / a, -1.0)


class _SGDW(Kernel):
    """torch's fused SGD, θ ← θ − lr·(g + wd·θ), once for the buffer and once for θ.

    The kernel's own momentum is not SGDW's: its buffer has the decay, and not the learning rate.
    """

    def step(
        self, theta: Tensors, g: Tensors, slots: Slots, rate: float, l2: float, sign: float = 1.0
    ) -> None:
        momentum, nesterov = self.h.momentum, self.h.nesterov
        if not slots:
            _sgd(theta, g, sign * rate, l2 / rate if rate != 0 else 0.0)
            return
        (buf,) = slots
        if (
            l2 == 0
            and momentum
            and not nesterov
            and rate > _FOR_DAMPENING
            and theta[0].dtype == torch.float32
        ):
            # One pass, by the kernel's own momentum: buf ← momentum·buf + (1 − dampening)·g
            _sgd(theta, g, -sign, 0.0, buf, momentum, 1 + rate)
            return
        if rate > TINY:  # buf ← momentum·buf − rate·g
            _sgd(buf, g, rate, (1 - momentum) / rate)
        else:
            torch._foreach_mul_(buf, momentum)
            torch._foreach_add_(buf, g, alpha=-rate)
        if not (nesterov and momentum):  # θ ← θ − l2·θ + buf
            _sgd(theta, buf, -sign, -l2)
        else:  # θ ← θ − l2·θ + momentum·buf − rate·g
            _sgd(theta, buf, -sign * momentum, -l2 / momentum)
            _sgd(theta, g, sign * rate, 0.0)


KERNELS = {"adamw": _AdamW, "nadamw": _NadamW, "sgdw": _SGDW}


def _sgd(
    theta: Tensors,
    by: Tensors,
    lr: float,
    weight_decay: float,
    buf: Tensors | None = None,
    momentum: float = 0.0,
    dampening: float = 0.0,
) -> None:
    """θ ← θ − lr·(by + weight_decay·θ) in one pass; with a buffer, θ ← θ − lr·(new buffer)."""
    torch._fused_sgd_(
        theta,
        by,
        buf or [],
        weight_decay=weight_decay,
        momentum=momentum,
        lr=lr,
        dampening=dampening,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def as_float32(factor: float, i: int) -> float:
    """Round a factor in [½, 1] to a float32 below or above it, so that the mean is right.

    The nearest float32 to 1 − 1e-6 is 1 − 1.013e-6, in every update. Here the number of the update
    decides whether to round down or up: multiples of the golden ratio are spread evenly. So a
    resumed run rounds as the run would have without the break.
    """
    if not 0.5 <= factor <= 1.0:  # or NaN
        return factor
    return math.floor(factor * 2**24 + i * 0.6180339887498949 % 1) / 2**24
