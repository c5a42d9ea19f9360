"""PyTorch's fused and multi-tensor kernels for all variables of an update together.

Eager PyTorch makes one pass over memory for each operation of `update_step`, and Keras runs it
variable by variable. Here an update is one kernel over many tensors (AdamW), or some kernels over
pieces that stay in the processor's cache from the first to the last (SGDW, NadamW). What they
compute is what `update_step` computes, which is the reference and does what does not fit here.

The scalars are floats of the host, from k, s and r; these are read from their variables only when
someone else has written to them, so that on a GPU no update waits for the device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import torch

from ._adamw import AdamW
from ._nadamw import NadamW
from ._sgdw import SGDW

Tensors = tuple[torch.Tensor, ...]  # of one variable: θ, its gradient, its slots
Lists = tuple[list[torch.Tensor], ...]  # of several: all θ, all gradients, …

# Elements of one piece: θ, gradient and two moments of it, in float32, are 1 MB. On a GPU a piece
# only bounds the temporaries.
_PIECE = {"cpu": 2**16, "cuda": 2**22}
_PLAIN = (torch.Tensor, torch.nn.Parameter)  # a subclass may give operations another meaning


class Scalars(NamedTuple):
    """The numbers of one update; see `_decoupled.Step`."""

    updates: int  # k + 1
    rates: tuple[float, ...]
    decays: tuple[float, ...]


class Part(NamedTuple):
    """The numbers for variables of one multiplier and decay."""

    rate: float  # η·α·m
    l1: float  # η·√(1/T)·l1
    l2: float


class Fused:
    """The accelerated update of one optimizer, as it is built."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._kernel = _KERNELS[type(optimizer)](optimizer)
        self._iterations = _Mirror(optimizer._iterations)
        self._cycle_start = _Mirror(optimizer._cycle_start)
        self._factor = _Mirror(optimizer._factor)
        self._entries = [
            self._entry(variable, *row)
            for variable, row in zip(
                optimizer._trainable_variables, optimizer._slots.rows, strict=True
            )
        ]

    @staticmethod
    def _entry(variable: Any, slots: tuple[Any, ...], master: Any) -> tuple[Tensors, Any] | None:
        """Return θ and slots, and what must agree within one kernel; None: not to be fused."""
        if master is not None or None in slots:
            return None
        # The attribute and not `.value`, which costs a microsecond per variable: what that adds
        # (stateless scopes, autocast) `usable` asks once per update.
        tensors = tuple(holder._value for holder in (variable, *slots))
        theta = tensors[0]
        kind = (theta.dtype, theta.device)
        if theta.dtype not in (torch.float32, torch.float64) or theta.device.type not in _PIECE:
            return None
        if not all(_plain(t) and (t.dtype, t.device) == kind for t in tensors):
            return None
        return tensors, kind

    def usable(self) -> bool:
        """Tell whether variables hold their own tensors here, and run eagerly."""
        iterations = self._optimizer._iterations
        return iterations.value is iterations._value and not torch.compiler.is_compiling()

    @torch.no_grad()
    def update(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Update what fits and return the (gradient, variable) pairs that do not."""
        optimizer = self._optimizer
        indices = optimizer._table.indices
        groups: defaultdict[Any, list[Tensors]] = defaultdict(list)
        rest = []
        for gradient, variable in zip(grads, variables, strict=True):
            index = optimizer._get_variable_index(variable)
            entry = self._entries[index]
            if entry is None or not _fits(gradient, variable, entry[0]):
                rest.append((gradient, variable))
                continue
            (theta, *slots), kind = entry
            groups[indices[index], kind].append((theta, gradient, *slots))
        scalars = self._scalars()
        self._kernel.begin(scalars.updates)
        for ((rate, l1, l2), _), tensors in groups.items():
            if optimizer._table.multipliers[rate] == 0:  # frozen
                continue
            decays = (0.0 if decay is None else scalars.decays[decay] for decay in (l1, l2))
            self._kernel.update(tensors, Part(scalars.rates[rate], *decays))
        if not rest:
            self._kernel.end()
        return rest

    def committed(self) -> None:
        """Note that Keras has counted the iteration: its write to the counter is no news."""
        self._iterations.advance()

    def _scalars(self) -> Scalars:
        """Do `Decoupled._begin_step` on the host."""
        optimizer, timing = self._optimizer, self._optimizer._timing
        updates = int(self._iterations.read()) // (optimizer.gradient_accumulation_steps or 1)
        factor = self._factor.read()
        step = updates - int(self._cycle_start.read())
        with keras.device(
            "cpu"
        ):  # schedules compute with tensors: not on the GPU, to be waited for
            eta = factor * float(timing.rate.multiplier(step))
            shrink = eta * float(timing.normalization(step))
            return Scalars(
                updates=updates + 1,
                rates=tuple(
                    factor * float(timing.rate(step)) * m for m in optimizer._table.multipliers
                ),
                decays=tuple(
                    shrink * (decay if isinstance(decay, float) else float(decay(updates)))
                    for decay in optimizer._table.decays
                ),
            )


class _Mirror:
    """A scalar variable's value on the host, read again only when someone wrote to it."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self._tensor: Any = None
        self._version = -1
        self._number = math.nan

    def read(self) -> float:
        tensor = self._variable._value
        if tensor is not self._tensor or tensor._version != self._version:
            self.know(tensor.item())
        return self._number

    def know(self, number: float) -> None:
        """Take the number as what the variable holds now."""
        self._tensor = self._variable._value
        self._version, self._number = self._tensor._version, number

    def advance(self) -> None:
        """Take the last write for an increment by 1, if it was the only one."""
        tensor = self._variable._value
        if tensor is self._tensor and tensor._version == self._version + 1:
            self.know(self._number + 1)


class _Kernel:
    """One optimizer's update of many tensors."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def begin(self, updates: int) -> None:
        """Compute what the whole update shares; `updates` is k + 1."""

    def update(self, tensors: list[Tensors], part: Part) -> None:
        """Update variables of one multiplier and decay."""
        raise NotImplementedError

    def end(self) -> None:
        """Keep what the next update needs."""


class _AdamW(_Kernel):
    """torch's fused AdamW: θ ← θ·(1 − lr·wd), then Adam's step with ε inside the correction."""

    def begin(self, updates: int) -> None:
        optimizer = self.optimizer
        self.updates = updates
        # Keras' ε is added to √v before the correction, torch's after it.
        self.eps = optimizer.epsilon / math.sqrt(_one_minus_power(optimizer.beta_2, updates))
        self.counters: dict[torch.device, torch.Tensor] = {}

    def update(self, tensors: list[Tensors], part: Part) -> None:
        optimizer = self.optimizer
        device = tensors[0][0].device
        if device not in self.counters:
            self.counters[device] = torch.full((), float(self.updates), device=device)
        part = _take_l1(tensors, part)
        theta, gradients, m, v, *v_hat = map(list, zip(*tensors, strict=True))
        torch._fused_adamw_(
            theta,
            gradients,
            m,
            v,
            v_hat[0] if v_hat else [],
            [self.counters[device]] * len(theta),
            lr=part.rate,
            beta1=optimizer.beta_1,
            beta2=optimizer.beta_2,
            weight_decay=_per_rate(part),
            eps=self.eps,
            amsgrad=optimizer.amsgrad,
            maximize=False,
        )


class _SGDW(_Kernel):
    """torch's fused SGD, θ ← θ − lr·(g + wd·θ), once for the buffer and once for θ.

    Its own momentum is not SGDW's: it keeps the learning rate out of the buffer and lets the
    decay in.
    """

    def update(self, tensors: list[Tensors], part: Part) -> None:
        momentum, nesterov = self.optimizer.momentum, self.optimizer.nesterov
        part = _take_l1(tensors, part)
        for theta, gradients, *slots in _batches(tensors):
            if not slots:
                _sgd(theta, gradients, part.rate, _per_rate(part))
                continue
            buf = slots[0]
            if part.rate == 0:
                torch._foreach_mul_(buf, momentum)
            else:  # buf ← momentum·buf − rate·g
                _sgd(buf, gradients, part.rate, (1 - momentum) / part.rate)
            if not nesterov:  # θ ← θ − l2·θ + buf
                _sgd(theta, buf, -1.0, -part.l2)
            else:  # θ ← θ − l2·θ + momentum·buf − rate·g
                _sgd(theta, buf, -momentum, -part.l2 / momentum)
                _sgd(theta, gradients, part.rate, 0.0)


class _NadamW(_Kernel):
    """Nadam has no fused kernel: multi-tensor operations on pieces that stay in the cache."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._product = _Mirror(optimizer._product)

    def begin(self, updates: int) -> None:
        optimizer = self.optimizer
        mu, mu_next = (
            optimizer.beta_1 * (1 - 0.5 * 0.96 ** (i * optimizer.momentum_decay))
            for i in (updates, updates + 1)
        )
        self.product = self._product.read() * mu
        self.share_m = mu_next / (1 - self.product * mu_next)
        self.share_g = (1 - mu) / (1 - self.product)
        # √(v/c) + ε = (√v + ε·√c)/√c: the correction goes into the rate, and costs no pass.
        self.root = math.sqrt(_one_minus_power(optimizer.beta_2, updates))

    def update(self, tensors: list[Tensors], part: Part) -> None:
        optimizer = self.optimizer
        part = _take_l1(tensors, part)
        for theta, g, m, v in _batches(tensors):
            torch._foreach_lerp_(m, g, 1 - optimizer.beta_1)
            torch._foreach_mul_(v, optimizer.beta_2)
            torch._foreach_addcmul_(v, g, g, 1 - optimizer.beta_2)
            denominator = torch._foreach_sqrt(v)
            torch._foreach_add_(denominator, optimizer.epsilon * self.root)
            step = torch._foreach_mul(m, part.rate * self.root * self.share_m)
            torch._foreach_add_(step, g, alpha=part.rate * self.root * self.share_g)
            if part.l2:
                torch._foreach_mul_(theta, 1 - part.l2)
            torch._foreach_addcdiv_(theta, step, denominator, -1.0)

    def end(self) -> None:
        kept = self.optimizer._product._value.fill_(self.product)
        # What a run that is loaded will read: rounded, where the variable is float32.
        single = kept.dtype == torch.float32
        self._product.know(float(np.float32(self.product)) if single else self.product)


_KERNELS: dict[type, type[_Kernel]] = {AdamW: _AdamW, NadamW: _NadamW, SGDW: _SGDW}


def make(optimizer: Any) -> Fused | None:
    """Return the accelerated update of a built optimizer, None for a class of the user's own."""
    return Fused(optimizer) if type(optimizer) in _KERNELS else None


def _plain(tensor: torch.Tensor) -> bool:
    # The kernels walk memory: a strided tensor without gaps, and nothing that only poses as one.
    return type(tensor) in _PLAIN and tensor.layout == torch.strided and tensor.is_contiguous()


def _fits(gradient: Any, variable: Any, tensors: Tensors) -> bool:
    theta = tensors[0]
    return (
        variable._value is theta
        and _plain(gradient)
        and gradient.dtype == theta.dtype
        and gradient.device == theta.device
        and gradient.shape == theta.shape
    )


def _batches(tensors: list[Tensors]) -> Iterator[Lists]:
    """Cut long tensors into pieces and collect short ones, to about one piece at a time."""
    limit = _PIECE[tensors[0][0].device.type]
    batch: list[Tensors] = []
    size = 0
    for entry in tensors:
        if entry[0].numel() > limit:
            for piece in zip(*(t.view(-1).split(limit) for t in entry), strict=True):
                yield tuple([t] for t in piece)
            continue
        batch.append(entry)
        size += entry[0].numel()
        if size >= limit:
            yield tuple(map(list, zip(*batch, strict=True)))
            batch, size = [], 0
    if batch:
        yield tuple(map(list, zip(*batch, strict=True)))


def _take_l1(tensors: list[Tensors], part: Part) -> Part:
    """Do both decays here where there is an L1 one, and return the part without them."""
    if not part.l1:
        return part
    for theta, *_ in _batches(tensors):
        signs = torch._foreach_sign(theta)
        torch._foreach_mul_(theta, 1 - part.l2)
        torch._foreach_add_(theta, signs, alpha=-part.l1)
    return part._replace(l1=0.0, l2=0.0)


def _sgd(theta: list[torch.Tensor], by: list[torch.Tensor], lr: float, weight_decay: float) -> None:
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


def _per_rate(part: Part) -> float:
    """The weight decay that a kernel multiplies by the rate; both are 0 together, at η = 0."""
    return part.l2 / part.rate if part.rate else 0.0


def _one_minus_power(beta: float, updates: int) -> float:
    return 1.0 if beta == 0 else -math.expm1(updates * math.log(beta))
