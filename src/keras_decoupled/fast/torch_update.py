"""PyTorch's fused kernels for all variables of an update together.

Eager PyTorch makes one pass over memory for each operation of `update_step`, and Keras runs it
variable by variable. Here an update is one or two kernels over many tensors. They compute the same
as `update_step`, which is the reference. `update_step` also updates the variables that do not fit
here.

The numbers of an update are floats on the host. Each is read from its variable only when someone
else has written to the variable, so no update waits for a GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from keras_decoupled.decay.kinds import Decay
from keras_decoupled.fast.torch_host_copy import in_stateless_scope, version_of
from keras_decoupled.fast.torch_kernels import KERNELS, TINY, Kernel, Tensors
from keras_decoupled.fast.torch_low_precision import LowPrecision
from keras_decoupled.fast.torch_pieces import Pieces

_PLAIN = {torch.Tensor, torch.nn.Parameter}  # a subclass may give operations another meaning
_signature = operator.attrgetter("__class__", "layout", "dtype", "device", "shape")
_DEVICES = ("cpu", "cuda")
# A fused kernel wakes all threads for each tensor. Up to this many elements, one thread is faster.
_SMALL = 2**12
# Only with OpenMP may the number of threads change.
_OPENMP = "ATen parallel backend: OpenMP" in torch.__config__.parallel_info()
_PLANS = 8  # at most. If gradients are missing, an update has another list of variables


class Group:
    """Variables that one kernel call updates: they share multiplier, decay, type and device."""

    def __init__(
        self,
        members: list[tuple[int, Any, Tensors]],
        multiplier: Any,
        schedule: int | None,
        l2: int | None,
        l1: int | None,
        decay: Decay,
        axes: str,
    ) -> None:
        # l2 and l1 are positions in `Numbers.decays`, None where there is no such decay. If the
        # multiplier is a schedule, it has a position in `Numbers.multipliers`.
        self.multiplier, self.schedule = multiplier, schedule
        self.l2, self.l1, self.decay = l2, l1, decay
        self.axes = axes  # of matrices that Muon steps, else ""
        self.positions = [position for position, _, _ in members]  # of their gradients
        self.variables = [variable for _, variable, _ in members]
        theta, *slots = map(list, zip(*(tensors for _, _, tensors in members), strict=True))
        self.reference = slots.pop() if decay.towards == "initial" else None
        self.theta, self.slots = theta, tuple(slots)
        self.small = all(map(_small, theta))
        self._pieces: Pieces | None = None
        self._memory: list[int] = []  # the addresses of θ when it was cut

    @property
    def pieces(self) -> Pieces:
        """The tensors cut into pieces, for decays that the kernels do not know."""
        memory = [tensor.data_ptr() for tensor in self.theta]
        if self._pieces is None or memory != self._memory:  # `p.data = x` changes the address
            self._pieces = Pieces(self.theta, self.slots, self.reference)
            self._memory = memory
        return self._pieces

    def update(self, kernel: Kernel, gradients: Tensors, rate: float, l2: Any, l1: Any) -> None:
        """Update these variables; l2 or l1 is None where there is no such decay."""
        # The kernels divide the decay by the rate.
        if l1 is None and self.decay.linear and (rate > TINY or not l2):
            kernel.step(self.theta, gradients, self.slots, rate, l2 or 0.0)
        else:
            self.pieces.update(kernel, gradients, rate, self.decay, l2, l1)

    def update_slots(self, kernel: Any, gradients: Tensors, *_: Any) -> None:
        """Update the slots alone: the multiplier is 0 now."""
        kernel.step([theta.clone() for theta in self.theta], gradients, self.slots, 0.0, 0.0)


class Plan:
    """What is known of a list of variables before their gradients are there."""

    def __init__(
        self, optimizer: Any, variables: Sequence[Any], make_group: type[Group] = Group
    ) -> None:
        self._holders: list[Any] = []  # variables and slots
        self._tensors: Tensors = []  # what they hold
        # One entry for each variable, None if no kernel can update the variable:
        self._expected: list[Any] = [None] * len(variables)  # the signature of its gradient
        self._thetas: list[Any] = [None] * len(variables)
        low: defaultdict[Any, LowPrecision] = defaultdict(LowPrecision)
        groups: defaultdict[Any, list[tuple[int, Any, Tensors]]] = defaultdict(list)
        seen = set()
        for position, variable in enumerate(variables):
            record = optimizer._kd.registry.find(variable)
            if record.key in seen:  # `update_step` takes a second gradient of a variable
                continue
            seen.add(record.key)
            row, copied = record.row, record.master is not None
            holders = [variable, *([record.master] if copied else ()), *record.own]
            if row.decay.towards == "initial":
                holders.append(record.reference)
            # The attribute and not `.value`, which costs a microsecond per variable. The two differ
            # only in a stateless scope, which `usable` refuses, and in an autocast scope, in which
            # no update runs.
            tensors = [holder._value for holder in holders]
            self._holders += holders
            self._tensors += tensors
            own, tensors = tensors[0], tensors[copied:]
            theta = tensors[0]
            kind = (theta.dtype, theta.device)
            fused = theta.device.type in _DEVICES and theta.dtype in (torch.float32, torch.float64)
            fused = fused and _plain(own) and own.device == theta.device
            if not (fused and all(_plain(t) and (t.dtype, t.device) == kind for t in tensors)):
                continue
            self._expected[position] = (torch.Tensor, torch.strided, *kind, theta.shape)
            self._thetas[position] = theta
            if row.multiplier != 0:
                if copied:
                    low[own.dtype, own.device].add(own, theta)
                constant = row.multiplier if record.schedule is None else None
                decays = record.l2, record.l1, row.decay.kind
                alike = constant, record.schedule, *decays, row.axes
                groups[alike, kind, _small(theta)].append((position, variable, tensors))
        self.low = list(low.values())
        self.groups = [make_group(members, *alike) for (alike, *_), members in groups.items()]

    def valid(self) -> bool:
        """Tell whether all variables and slots still hold the same tensors."""
        return all(map(operator.is_, [h._value for h in self._holders], self._tensors))

    def misfits(self, grads: Sequence[Any]) -> list[int]:
        """Return the positions where a kernel cannot take the gradient or the variable."""
        return [
            position
            for position, (g, expected, theta) in enumerate(
                zip(grads, self._expected, self._thetas, strict=True)
            )
            if _signature(g) != expected
            or not g.is_contiguous()
            or g.is_neg()
            or g.data_ptr() == theta.data_ptr()  # the gradient would change while it is read
        ]


class FastUpdate:
    """The fast update of one optimizer, as of its last build."""

    def __init__(self, optimizer: Any, kernel: Kernel, make_group: type[Group] = Group) -> None:
        self._optimizer = optimizer
        self._kernel = kernel
        self._make_group = make_group
        self.on = optimizer._kd.update.host
        self._plans: dict[tuple[int, ...], Plan] = {}

    def usable(self) -> bool:
        """Tell whether this runs eagerly and assignments reach the variables' tensors."""
        return not (in_stateless_scope() or torch.compiler.is_compiling())

    @torch.no_grad()
    def update(self, grads: Sequence[Any], variables: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Update what fits, and return the (gradient, variable) pairs that do not fit."""
        plan = self._plan(variables)
        rest = []
        if misfits := set(plan.misfits(grads)):
            pairs = list(zip(grads, variables, strict=True))
            rest = [pair for position, pair in enumerate(pairs) if position in misfits]
            pairs = [pair for position, pair in enumerate(pairs) if position not in misfits]
            grads, variables = [g for g, _ in pairs], [v for _, v in pairs]
            plan = self._plan(variables)
        kd = self._optimizer._kd
        numbers = kd.update.begin(self.on)
        k, _ = kd.clock.counts(self.on)
        for low in plan.low:
            low.read()
        self._kernel.begin(k + 1, numbers.own, numbers.scalars)
        for group in plan.groups:
            multiplier = group.multiplier
            if group.schedule is not None:
                multiplier = numbers.multipliers[group.schedule]
            update = group.update if multiplier else group.update_slots
            with _one_thread if group.small else contextlib.nullcontext():
                update(
                    self._kernel,
                    [grads[position] for position in group.positions],
                    numbers.rate * multiplier,
                    None if group.l2 is None else numbers.decays[group.l2],
                    None if group.l1 is None else numbers.decays[group.l1],
                )
        self._kernel.end(complete=not rest)
        for low in plan.low:
            low.write()
        if not rest:
            kd.update.keep(numbers, self.on)
        return rest

    @torch.no_grad()
    def average(self, records: Sequence[Any]) -> list[Any]:
        """Update the averages of these variables, and return the records that do not fit."""
        pairs = [(r.slots["average"]._value, r.variable._value) for r in records]
        fits = [
            r.master is None and _plain(theta) and _signature(theta)[1:] == _signature(average)[1:]
            for r, (average, theta) in zip(records, pairs, strict=True)
        ]
        if any(fits):
            k, _ = self._optimizer._kd.clock.counts(self.on)
            share = 1 - self._optimizer.ema_momentum if k else 1.0
            averages, thetas = zip(*itertools.compress(pairs, fits), strict=True)
            torch._foreach_lerp_(averages, thetas, share)
        return [record for record, fit in zip(records, fits, strict=True) if not fit]

    @torch.no_grad()
    def accumulate(self, grads: Sequence[Any], accumulators: Sequence[Any]) -> None:
        """Add each gradient to its accumulator."""
        torch._foreach_add_([a._value for a in accumulators], list(grads))

    @torch.no_grad()
    def empty(self, accumulators: Sequence[Any]) -> None:
        """Set the accumulators to 0."""
        torch._foreach_zero_([a._value for a in accumulators])

    def _plan(self, variables: Sequence[Any]) -> Plan:
        key = tuple(map(id, variables))  # the ids stay valid: the optimizer keeps the variables
        plan = self._plans.get(key)
        if plan is None or not plan.valid():
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            plan = self._plans[key] = Plan(self._optimizer, variables, self._make_group)
        return plan

    def version(self) -> int | None:
        """Return how often the iteration counter was written to, for `note_increment`."""
        return version_of(self._optimizer._kd.clock.counter._value)

    def note_increment(self, before: int | None) -> None:
        """Note that Keras has counted the iteration, so the counter need not be read again."""
        self.on.copy_of(self._optimizer._kd.clock.counter).note_increment(before)


def make(optimizer: Any, kernel: str | None, stock: Any) -> FastUpdate | None:
    """Return the fast update of a built optimizer, None if it has none.

    Args:
        optimizer: the optimizer.
        kernel: the name of its kernel, or None.
        stock: the stock class whose step it takes, or None.
    """
    if kernel == "muon":
        from keras_decoupled.fast.torch_muon import Muon, MuonGroup  # they import Group

        return FastUpdate(optimizer, Muon(), MuonGroup)
    if kernel:
        return FastUpdate(optimizer, KERNELS[kernel]())
    if step := stock and optimizer._kd.inside.foreach_step(stock):
        from keras_decoupled.fast.torch_foreach import Foreach, ForeachGroup  # they import Group

        return FastUpdate(optimizer, Foreach(optimizer, step), ForeachGroup)
    return None


def _small(tensor: torch.Tensor) -> bool:
    return _OPENMP and tensor.device.type == "cpu" and tensor.numel() <= _SMALL


class _OneThread:
    """A context in which torch uses one thread.

    Several Python threads may train at the same time. A Python thread that begins to use torch
    starts with the process's number of torch threads, which another one may have set to 1. So the
    first Python thread to enter saves the usual number, and every one restores that number.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._usual = threading.Lock(), 0, 1

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._usual = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            torch.set_num_threads(self._usual)


_one_thread = _OneThread()


def _plain(tensor: torch.Tensor) -> bool:
    """Tell whether a kernel may read this tensor's memory as it lies: dense and in order."""
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )
