"""Keras' own torch code for many tensors at once, for the stock optimizers that have it.

That code changes the weights in place, with one learning rate for all. So the decay is a separate
pass before the step, and Keras' code is called once for each learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from keras_decoupled.fast import StandIn, torch_pieces
from keras_decoupled.fast.torch_kernels import Kernel, Tensors, as_float32
from keras_decoupled.fast.torch_update import Group


class Foreach(Kernel):
    """The stock step of all variables of an update. It runs at the end, when all are known."""

    def __init__(self, optimizer: Any, step: Callable[..., None]) -> None:
        self._optimizer, self._step = optimizer, step
        registry = optimizer._kd.registry
        self._positions = {record.key: i for i, record in enumerate(registry.built)}
        self._own = list(registry.adopted.values())

    def begin(self, i: int, h: Any, scalars: tuple[float, ...]) -> None:
        """Note what the whole update shares."""
        super().begin(i, h, scalars)
        self._scalars = [(variable._value, variable._value.clone()) for variable in self._own]
        self._waiting: defaultdict[Any, list[tuple[StandIn, torch.Tensor]]] = defaultdict(list)
        self._afterwards: list[Callable[[], None]] = []

    def add(
        self,
        variables: list[StandIn],
        gradients: Tensors,
        rate: float,
        afterwards: Callable[[], None] | None = None,
    ) -> None:
        """Step these variables at the end, then call `afterwards`."""
        kind = (rate, gradients[0].dtype, gradients[0].device)
        self._waiting[kind] += zip(variables, gradients, strict=True)
        if afterwards is not None:
            self._afterwards.append(afterwards)

    def stand_ins(self, variables: Sequence[Any], tensors: Sequence[torch.Tensor]) -> list[StandIn]:
        """Return these tensors as stand-ins for the variables."""
        key_of = self._optimizer._kd.inside.key_of
        positions = (self._positions[key_of(variable)] for variable in variables)
        return [StandIn(*pair) for pair in zip(tensors, positions, strict=True)]

    def end(self, complete: bool) -> None:
        """Step all that was added; `complete` means that this is the whole update."""
        for (rate, *_), pairs in self._waiting.items():
            self._restore_scalars()
            variables, gradients = map(list, zip(*pairs, strict=True))
            self._step(self._optimizer, gradients, variables, rate)
        for afterwards in self._afterwards:
            afterwards()
        if not complete:
            self._restore_scalars()
        self._waiting.clear()
        self._afterwards.clear()

    def _restore_scalars(self) -> None:
        """Undo one call's change of the scalars: Nadam's product changes only once per update."""
        for tensor, before in self._scalars:
            tensor.copy_(before)


class ForeachGroup(Group):
    """Variables that share multiplier, decay, type and device."""

    _stand_ins: list[StandIn] | None = None

    def update(self, kernel: Any, gradients: Tensors, rate: float, l2: Any, l1: Any) -> None:
        """Decay these variables, and have the kernel step them."""
        if self.decay.linear and l1 is None:
            if l2 is not None:
                single = self.theta[0].dtype == torch.float32
                factor = as_float32(1 - l2, kernel.i) if single else 1 - l2
                torch._foreach_mul_(self.theta, factor)
            if self._stand_ins is None:  # faster to read than variables
                self._stand_ins = kernel.stand_ins(self.variables, self.theta)
            kernel.add(self._stand_ins, gradients, rate)
            return
        # These decays need the step, and a small l1 alone would be lost beside a large weight. So
        # the step goes to buffers of zeros.
        negative = torch._foreach_mul(self.theta, 0.0)
        references = self.reference or [None] * len(self.theta)

        def afterwards() -> None:
            for theta, step, reference in zip(self.theta, negative, references, strict=True):
                torch_pieces.decay_and_step(theta, step.neg_(), self.decay, l2, l1, reference)

        kernel.add(kernel.stand_ins(self.variables, negative), gradients, rate, afterwards)

    def update_slots(self, kernel: Any, gradients: Tensors, *_: Any) -> None:
        """Update the slots alone: the multiplier is 0 now."""
        copies = [theta.clone() for theta in self.theta]
        kernel.add(kernel.stand_ins(self.variables, copies), gradients, 0.0)
