"""PyTorch's fused kernels for all variables of an update together.

Eager PyTorch makes one pass over memory for each operation of `update_step`, and Keras runs it
variable by variable. Here an update is one or two kernels over many tensors. What they compute is
what `update_step` computes, which is the reference and does what does not fit here.

The scalars are floats of the host, from k, s and r; these are read from their variables only when
someone else has written to them, so that on a GPU no update waits for the device.
"""

from __future__ import annotations

import math
import operator
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import torch

from ._rates import CallableRate

Tensors = list[torch.Tensor]

# Elements of which an L1 decay takes the sign at a time: in float32, 512 KB on the CPU.
_PIECE = {"cpu": 2**17, "cuda": 2**22}
# Keras exports the scope but not this question, and what is written in a scope is not written to
# the tensors.
_in_stateless_scope = sys.modules[keras.StatelessScope.__module__].in_stateless_scope
_TINY = 1e-20  # below such a rate, a decay divided by it may not be a float32
_PLAIN = {torch.Tensor, torch.nn.Parameter}  # a subclass may give operations another meaning
_signature = operator.attrgetter("__class__", "layout", "dtype", "device", "shape")
_PLANS = 8  # kept: a model whose gradients are missing here and there has some lists of variables


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


class Group(NamedTuple):
    """Variables that one kernel call updates: of one multiplier, decay, type and device."""

    decays: tuple[int, int | None, int | None]  # rate, l1, l2: see `Table.indices`
    members: list[int]  # positions of their gradients
    theta: Tensors
    slots: tuple[Tensors, ...]


class Plan:
    """What can be said of a list of variables before their gradients are there."""

    def __init__(self, optimizer: Any, variables: Sequence[Any]) -> None:
        self._holders: list[Any] = []
        self._tensors: Tensors = []  # which they hold
        self._wanted: list[Any] = []  # signature of each gradient; None: not to be fused
        self._thetas: list[Any] = []
        groups: defaultdict[Any, list[tuple[int, Tensors]]] = defaultdict(list)
        seen = set()
        for position, variable in enumerate(variables):
            index = optimizer._get_variable_index(variable)
            slots, master = optimizer._slots.rows[index]
            holders = [variable, *slots]
            self._wanted.append(None)
            self._thetas.append(None)
            if index in seen or master is not None or None in slots:
                continue
            seen.add(index)
            # The attribute and not `.value`, which costs a microsecond per variable: what that
            # adds (stateless scopes, autocast) `usable` asks once per update.
            tensors = [holder._value for holder in holders]
            self._holders += holders
            self._tensors += tensors
            theta = tensors[0]
            kind = (theta.dtype, theta.device)
            fused = theta.device.type in _PIECE and theta.dtype in (torch.float32, torch.float64)
            if not (fused and all(_plain(t) and (t.dtype, t.device) == kind for t in tensors)):
                continue
            self._wanted[-1] = (torch.Tensor, torch.strided, *kind, theta.shape)
            self._thetas[-1] = theta
            groups[optimizer._table.indices[index], kind].append((position, tensors))
        self.groups = []
        for (decays, _), members in groups.items():
            theta, *slots = map(list, zip(*(tensors for _, tensors in members), strict=True))
            self.groups.append(Group(decays, [p for p, _ in members], theta, tuple(slots)))

    def valid(self) -> bool:
        """Tell whether all variables still hold the tensors that they held."""
        return all(map(operator.is_, [h._value for h in self._holders], self._tensors))

    def misfits(self, grads: Sequence[Any]) -> list[int]:
        """Positions of the gradients that a kernel cannot take, or whose variable it cannot."""
        return [
            position
            for position, (g, wanted, theta) in enumerate(
                zip(grads, self._wanted, self._thetas, strict=True)
            )
            if _signature(g) != wanted
            or not g.is_contiguous()
            or g.is_neg()
            or g.data_ptr() == theta.data_ptr()  # it would change while it is read
        ]


class Fused:
    """The accelerated update of one optimizer, as it is built."""

    def __init__(self, optimizer: Any, kernel: type[_Kernel]) -> None:
        self._optimizer = optimizer
        self._kernel = kernel(optimizer)
        self._iterations = _Mirror(optimizer._iterations)
        self._cycle_start = _Mirror(optimizer._cycle_start)
        self._factor = _Mirror(optimizer._factor)
        self._plans: dict[tuple[int, ...], Plan] = {}

    def usable(self) -> bool:
        """Tell whether variables hold their own tensors here, and run eagerly."""
        return not (_in_stateless_scope() or torch.compiler.is_compiling())

    @torch.no_grad()
    def update(
        self, grads: Sequence[Any], variables: Sequence[Any], learning_rate: Any
    ) -> list[tuple[Any, Any]]:
        """Update what fits and return the (gradient, variable) pairs that do not."""
        plan = self._plan(variables)
        rest = []
        if misfits := set(plan.misfits(grads)):
            pairs = list(zip(grads, variables, strict=True))
            rest = [pair for position, pair in enumerate(pairs) if position in misfits]
            pairs = [pair for position, pair in enumerate(pairs) if position not in misfits]
            grads, variables = [g for g, _ in pairs], [v for _, v in pairs]
            plan = self._plan(variables)
        table = self._optimizer._table
        scalars = self._scalars(learning_rate)
        self._kernel.begin(scalars.updates)
        for (rate, l1, l2), members, theta, slots in plan.groups:
            if table.multipliers[rate] == 0:  # frozen
                continue
            decays = (0.0 if decay is None else scalars.decays[decay] for decay in (l1, l2))
            part = _take_l1(theta, Part(scalars.rates[rate], *decays))
            self._kernel.update(theta, [grads[position] for position in members], slots, part)
        if not rest:
            self._kernel.end()
        return rest

    def _plan(self, variables: Sequence[Any]) -> Plan:
        key = tuple(map(id, variables))  # the optimizer keeps them, and their ids
        plan = self._plans.get(key)
        if plan is None or not plan.valid():
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(self._optimizer, variables)
        return plan

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

    def update(
        self, theta: Tensors, gradients: Tensors, slots: tuple[Tensors, ...], part: Part
    ) -> None:
        """Update variables of one multiplier and decay."""
        raise NotImplementedError

    def end(self) -> None:
        """Keep what the next update needs."""


class _Adam(_Kernel):
    """torch's fused AdamW: θ ← θ·(1 − lr·wd), then Adam's step, ε added to the corrected √v."""

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
            weight_decay=l2 / part.rate if part.rate > 0 else 0.0,  # both are 0 at η = 0
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
        self._product = _Mirror(optimizer._product)

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


class _SGDW(_Kernel):
    """torch's fused SGD, θ ← θ − lr·(g + wd·θ), once for the buffer and once for θ.

    Its own momentum is not SGDW's: it keeps the learning rate out of the buffer and lets the
    decay in.
    """

    def update(
        self, theta: Tensors, gradients: Tensors, slots: tuple[Tensors, ...], part: Part
    ) -> None:
        momentum, nesterov = self.optimizer.momentum, self.optimizer.nesterov
        if not slots:
            _sgd(theta, gradients, part.rate, part.l2 / part.rate if part.rate > 0 else 0.0)
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
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


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


def _take_l1(theta: Tensors, part: Part) -> Part:
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
    if factor < 0.5:
        return factor
    return math.floor(factor * 2**24 + updates * 0.6180339887498949 % 1) / 2**24


def _one_minus_power(beta: float, updates: int) -> float:
    return 1.0 if beta == 0 else -math.expm1(updates * math.log(beta))
