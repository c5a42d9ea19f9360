"""`Algorithm`: an optimizer's mathematics, apart from Keras, decay, schedules and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

from keras_decoupled.core.arguments import Check

Described: TypeAlias = Sequence[tuple[str, tuple[int, ...]]]  # variables: (label, shape)


class Algorithm:
    """How a gradient becomes a step.

    In each method `h` has the optimizer's own arguments as they are now (`h.beta_1`), `on` computes
    scalars (`core/numbers.py`), and i = k + 1 is the number of this update, from 1. In a compiled
    step, numbers are tensors: do not use them in an `if`. A value that loses digits if its number
    is rounded first, such as 1 − β, is computed in `scalars`, by `h.exactly`.
    """

    # The optimizer's own arguments, and their checks. If the check is a `Real`, the argument is a
    # setting.
    arguments: ClassVar[Mapping[str, Check]] = {}
    kernel: ClassVar[str | None] = None  # name of the fused kernels in fast/ that do `step`
    part_slot: ClassVar[str] = ""  # the slot that only some of its parts have
    # Optimizer variables that belong to no variable of the model: name and first value.
    state: ClassVar[Mapping[str, float]] = {}
    # For `from_keras`. The twin is the class of keras.optimizers that has the same step:
    twin_arguments: ClassVar[Mapping[str, Any]] = {}  # our arguments that make it the twin's
    twin_names: ClassVar[Mapping[str, str]] = {}  # slot or state: attribute of the twin

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """Return the names of the slots that variables may have, in any part."""
        return ()

    def parts(
        self, h: Any, asked: Described, axes: Sequence[str], every: Described
    ) -> list[tuple[str, str]]:
        """Return (part, axes) of each variable asked for; nothing if there is one part.

        `axes` has the user's letters for each, or ""; `every` has all variables of the build.
        """
        return []

    def fits(self, row: Any) -> bool:
        """Tell whether a row, from a file say, has a part that its variable can have."""
        return True

    def part(self, row: Any) -> Algorithm:
        """Return the part that steps a variable with this row. It has its own slots and step."""
        return self

    def scalars(self, h: Any, i: Any, on: Any, state: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the numbers for `step` that all variables share, computed once per update."""
        return ()

    def new_state(self, scalars: tuple[Any, ...]) -> dict[str, Any]:
        """Return the new values of `state`, from the scalars of the update."""
        return {}

    def step(
        self, h: Any, g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return what is subtracted from the variable, and its new slots."""
        raise NotImplementedError
