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
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import torch

from ._rates import CallableRate

Tensors = tuple[torch.Tensor, ...]  # of one variable: θ, its gradient, its slots
Lists = tuple[list[torch.Tensor], ...]  # of several: all θ, all gradients, …

# Elements of one piece: θ, gradient and two moments of it, in float32, are 2 MB. On a GPU a piece
# only bounds the temporaries.
_PIECE = {"cpu": 2**17, "cuda": 2**22}
# Keras exports the scope but not this question, and what is written in a scope is not written to
# the tensors.
_in_stateless_scope = sys.modules[keras.StatelessScope.__module__].in_stateless_scope
_TINY = 1e-20  # below such a rate, a decay divided by it may not be a float32
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

    def __init__(self, optimizer: Any, kernel: type[_Kernel]) -> None:
        self._optimizer = optimizer
        self._kernel = kernel(optimizer)
        self._iterations = _Mirror(optimizer._iterations)
        self._cycle_start = _Mirror(optimizer._cycle_start)
        self._factor = _Mirror(optimizer._factor)
        self._entries = [
            self._entry(variable, *row)
            for variable, row in zip(
                optimizer._trainable_variables, optimizer._slots.rows, strict=True
            )
        ]

    def _entry(self, variable: Any, slots: tuple[Any, ...], master: Any) -> Any:
        """Return θ and slots, with their holders, and what must agree within one kernel.

        None: not to be fused.
        """
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
        return tensors, kind, tuple(zip((variable, *slots), tensors, strict=True))

    def usable(self) -> bool:
        """Tell whether variables hold their own tensors here, and run eagerly."""
        return not (_in_stateless_scope() or torch.compiler.is_compiling())

    @torch.no_grad()
    def update(
        self, grads: Sequence[Any], variables: Sequence[Any], learning_rate: Any
    ) -> list[tuple[Any, Any]]:
        """Update what fits and return the (gradient, variable) pairs that do not."""
        optimizer = self._optimizer
        indices = optimizer._table.indices
        groups: defaultdict[Any, list[Tensors]] = defaultdict(list)
        rest = []
        for gradient, variable in zip(grads, variables, strict=True):
            index = optimizer._get_variable_index(variable)
            entry = self._entries[index]
            if entry is None or not _fits(gradient, *entry):
                rest.append((gradient, variable))
                continue
            (theta, *slots), kind, _ = entry
            groups[indices[index], kind].append((theta, gradient, *slots))
        scalars = self._scalars(learning_rate)
        self._kernel.begin(scalars.updates)
        for ((rate, l1, l2), _), tensors in groups.items():
            if optimizer._table.multipliers[rate] == 0:  # frozen
                continue
            decays = (0.0 if decay is None else scalars.decays[decay] for decay in (l1, l2))
            self._kernel.update(tensors, Part(scalars.rates[rate], *decays))
        if not rest:
            self._kernel.end()
        return rest

    def counted(self, before: int | None) -> None:
        """Note that Keras has counted the iteration: that write to the counter is no news."""
        self._iterations.advance(before)

    def count_version(self) -> int | None:
        """Return the version of the iteration counter, for `counted`."""
        return _version(self._optimizer._iterations._value)

    def _scalars(self, learning_rate: Any) -> Scalars:
        """Do `Decoupled._begin_step` on the host."""
        optimizer, timing = self._optimizer, self._optimizer._timing
        updates = int(self._iterations.read()) // (optimizer.gradient_accumulation_steps or 1)
        factor = self._factor.read()
        step = updates - int(self._cycle_start.read())
        # Schedules compute with tensors: not on the GPU, which would have to be waited for.
        with keras.device("cpu"):
            count, position = torch.tensor(updates), torch.tensor(step)
            if isinstance(timing.rate, CallableRate):  # called once per update, by Keras
                rate = torch.as_tensor(learning_rate).item()
                eta = rate / timing.rate.base
            else:
                rate = factor * float(timing.rate(position))
                eta = factor * float(timing.rate.multiplier(position))
            shrink = eta * float(timing.normalization(position))
            return Scalars(
                updates=updates + 1,
                rates=tuple(rate * m for m in optimizer._table.multipliers),
                decays=tuple(
                    shrink * (decay if isinstance(decay, float) else float(decay(count)))
                    for decay in optimizer._table.decays
                ),
            )


class _Mirror:
    """A scalar variable's value on the host, read again only when someone wrote to it."""

    def __init__(self, variable: Any) -> None:
        self._variable = variable
        self._tensor: Any = None
        self._version: int | None = None
        self._number = math.nan

    def read(self) -> float:
        tensor = self._variable._value
        version = _version(tensor)
        if version is None or tensor is not self._tensor or version != self._version:
            self.know(tensor.item())
        return self._number

    def know(self, number: float) -> None:
        """Take the number as what the variable holds now."""
        self._tensor = self._variable._value
        self._version, self._number = _version(self._tensor), number

    def advance(self, before: int | None) -> None:
        """Take the one write since version `before` for an increment by 1."""
        tensor = self._variable._value
        if before is None or tensor is not self._tensor or before != self._version:
            return
        if _version(tensor) == before + 1:
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
            self.counters[device] = torch.full(
                (), float(self.updates), dtype=torch.float32, device=device
            )
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
            amsgrad=bool(v_hat),
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
                torch._foreach_add_(theta, theta, alpha=-part.l2)  # 1 − l2 would be rounded
            torch._foreach_addcdiv_(theta, step, denominator, -1.0)

    def end(self) -> None:
        kept = self.optimizer._product._value.fill_(self.product)
        # What a run that is loaded will read: rounded, where the variable is float32.
        single = kept.dtype == torch.float32
        self._product.know(float(np.float32(self.product)) if single else self.product)


_KERNELS = {"adamw": _AdamW, "nadamw": _NadamW, "sgdw": _SGDW}


def make(optimizer: Any) -> Fused | None:
    """Return the accelerated update of a built optimizer, None for a class without a kernel.

    The class itself names it: one derived from it, by a user, may compute something else.
    """
    kernel = vars(type(optimizer)).get("_fused_kernel")
    return Fused(optimizer, _KERNELS[kernel]) if kernel else None


def _version(tensor: torch.Tensor) -> int | None:
    # torch counts the writes to a tensor, but not to one made in inference mode.
    return None if tensor.is_inference() else tensor._version


def _plain(tensor: torch.Tensor) -> bool:
    # The kernels walk memory: a strided tensor without gaps, and nothing that only poses as one.
    return (
        type(tensor) in _PLAIN
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


def _fits(gradient: Any, tensors: Tensors, kind: Any, held: tuple[tuple[Any, Any], ...]) -> bool:
    for holder, tensor in held:
        if holder._value is not tensor:
            return False
    theta = tensors[0]
    return (
        _plain(gradient)
        and (gradient.dtype, gradient.device) == kind
        and gradient.shape == theta.shape
        # A gradient that is the variable itself would change while it is read.
        and (gradient.data_ptr() != theta.data_ptr() or theta.numel() == 0)
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
        torch._foreach_add_(theta, theta, alpha=-part.l2)
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
    return part.l2 / part.rate if part.rate > 0 else 0.0


def _one_minus_power(beta: float, updates: int) -> float:
    return 1.0 if beta == 0 else -math.expm1(updates * math.log(beta))
