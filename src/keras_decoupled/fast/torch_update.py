"""PyTorch's fused kernels for all variables of an update together.

Eager PyTorch makes one pass over memory for each operation of `update_step`, and Keras runs it
variable by variable. Here an update is one or two kernels over many tensors. What they compute is
what `update_step` computes, which is the reference and does what does not fit here.

The scalars are floats of the host, from k, s and r; these are read from their variables only when
someone else has written to them, so that on a GPU no update waits for the device.
"""

from __future__ import annotations

import operator
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import torch

from keras_decoupled.schedule.rates import CallableRate

from .torch_host_copy import Mirror, writes
from .torch_kernels import KERNELS, Kernel, Part, Tensors, take_l1

# Keras exports the scope but not this question, and what is written in a scope is not written to
# the tensors.
_in_stateless_scope = sys.modules[keras.StatelessScope.__module__].in_stateless_scope
_PLAIN = {torch.Tensor, torch.nn.Parameter}  # a subclass may give operations another meaning
_signature = operator.attrgetter("__class__", "layout", "dtype", "device", "shape")
_DEVICES = ("cpu", "cuda")
_PLANS = 8  # kept: a model whose gradients are missing here and there has some lists of variables


class Scalars(NamedTuple):
    """The numbers of one update; see `_decoupled.Step`."""

    updates: int  # k + 1
    rates: tuple[float, ...]
    decays: tuple[float, ...]


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
            fused = theta.device.type in _DEVICES and theta.dtype in (torch.float32, torch.float64)
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

    def __init__(self, optimizer: Any, kernel: type[Kernel]) -> None:
        self._optimizer = optimizer
        self._kernel = kernel(optimizer)
        self._iterations = Mirror(optimizer._iterations)
        self._cycle_start = Mirror(optimizer._cycle_start)
        self._factor = Mirror(optimizer._factor)
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
            part = take_l1(theta, Part(scalars.rates[rate], *decays))
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

    def count_writes(self) -> int | None:
        """Return how often the iteration counter was written to, for `counted`."""
        return writes(self._optimizer._iterations._value)

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


def make(optimizer: Any) -> Fused | None:
    """Return the accelerated update of a built optimizer, None for a class without a kernel.

    The class itself names it: one derived from it, by a user, may compute something else.
    """
    kernel = vars(type(optimizer)).get("_fused_kernel")
    return Fused(optimizer, KERNELS[kernel]) if kernel else None


def _plain(tensor: torch.Tensor) -> bool:
    # The kernels walk memory: a strided tensor without gaps, and nothing that only poses as one.
    return (
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )
