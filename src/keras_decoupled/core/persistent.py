"""Optimizer variables that go by variable, not by position: through builds, saves and loads.

Keras makes the moving averages, the gradient accumulators and a subclass's slots all by
`add_variable_from_reference`, so what is said of slots here holds for each of them.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_decoupled.core.entry import AVERAGE, MASTER, REFERENCE, Entry, Slots, name_of_user
from keras_decoupled.core.gradients import LOW_PRECISION, GradientSpec
from keras_decoupled.core.scheduled import Scheduled
from keras_decoupled.saving import state


class Persistent(Scheduled):
    """An optimizer that can be built again, and that keeps what it knows of each variable."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._slots = Slots()

    # Making optimizer variables.

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Add a variable's slot of that name, or return the one that an earlier build made."""
        key = self.key_of(reference_variable)
        known_as = self._slots.name_of_request(key, name or "var")  # as Keras calls it without one
        if known_as == AVERAGE and self.use_ema:  # Keras' own request comes first
            return self._add_own_slot(reference_variable, AVERAGE)
        known_as = name_of_user(known_as)
        slot = self._slots.get(key, known_as)
        if slot is None:
            slot = super().add_variable_from_reference(reference_variable, name, initializer)
            self._slots.add(reference_variable, key, known_as, slot)
        return slot

    def _add_own_slot(self, variable: Any, name: str) -> Any:
        """Add an average, a master copy or a reference, or return the one of an earlier build."""
        key = self.key_of(variable)
        slot = self._slots.get(key, name)
        if slot is None:
            scope: Any = contextlib.nullcontext()
            initializer: Any = "zeros"
            if name != MASTER:  # whose value counts only while it rounds to the variable
                # Keras sets an average to its variable in update 0 only; one made later would stay
                # at 0. A traced TensorFlow step cannot read the variable, but what is made in a
                # StatelessScope gets its value when the scope ends, outside the trace.
                initializer = lambda shape, dtype=None: copied(variable, dtype)  # noqa: E731
                scope = keras.StatelessScope()
            with scope:
                slot = super().add_variable_from_reference(variable, name, initializer)
            self._slots.add(variable, key, name, slot)
        return slot

    def add_variable(
        self,
        shape: Any,
        initializer: Any = "zeros",
        dtype: Any = None,
        aggregation: str = "none",
        layout: Any = None,
        name: str | None = None,
    ) -> Any:
        """Add an optimizer variable, in float32 where the model's variable has less.

        A moment in bfloat16 stands still: adding a thousandth of a number does not change it.
        """
        dtype = "float32" if dtype in LOW_PRECISION else dtype
        return super().add_variable(shape, initializer, dtype, aggregation, layout, name)

    def _add_slots(self, variables: Sequence[Any], decays: Sequence[Any]) -> None:
        """Add what each variable needs: the optimizer's own slots, a master copy, a reference."""
        self.add_optimizer_variables(variables, list(self.slot_names))
        for variable, decay in zip(variables, decays, strict=True):
            if keras.backend.standardize_dtype(variable.dtype) in LOW_PRECISION:
                self._add_own_slot(variable, MASTER)
            if decay.towards == "initial":
                self._add_own_slot(variable, REFERENCE)

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the optimizer variables per variable that `step` takes and returns."""
        return ()

    def reset_reference(self) -> None:
        """Take the present weights as the reference of `Decay(towards="initial")`."""
        for entry in self._slots.entries:
            if entry.reference is not None:
                entry.reference.assign(copied(entry.variable, entry.reference.dtype))

    # Which variables there are.

    def _is_built_on(self, variables: Sequence[Any]) -> bool:
        """Tell whether these are the optimizer's variables, in its order."""
        built = self.built_on
        return len(variables) == len(built) and all(map(operator.is_, variables, built))

    def _build_on_new(self, variables: list[Any]) -> None:
        """Build again where unknown variables came in; those that are known stay."""
        if not self.built or self._is_built_on(variables):
            return
        keys = {self.key_of(variable) for variable in variables}
        if all(map(self.knows, keys)):
            return
        kept = [v for v in self.built_on if self.key_of(v) not in keys]
        self.build([*kept, *variables])

    def _gradient_specs(self, variables: Sequence[Any]) -> Sequence[GradientSpec]:
        """Return what the gradient of each variable has to be."""
        entries = self._slots.entries
        if self._is_built_on(variables):
            return [entry.gradient for entry in entries]
        return [
            entries[self.index_of(v)].gradient if self.knows(self.key_of(v)) else GradientSpec(v)
            for v in variables
        ]

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> tuple[list[Any], list[Any]]:
        """Return the updated variables and optimizer variables, as in Keras."""
        if self.built:
            self._check_values(trainable_variables)
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    def _check_values(self, values: Sequence[Any]) -> None:
        """Check count and shapes: `stateless_apply` gets values, without their variables."""
        entries = self._slots.entries
        same = len(values) == len(entries) and all(
            tuple(value.shape) == tuple(entry.variable.shape)
            for value, entry in zip(values, entries, strict=True)
        )
        frozen = [e for e in entries if e.trainable and not e.variable.trainable]
        if not same or frozen:
            raise ValueError(
                f"The optimizer was built on other variables. Received: {len(values)} trainable "
                f"variables for {len(entries)} built on, of which {len(frozen)} are frozen by now. "
                "If layers were frozen or unfrozen, call "
                "`optimizer.build(model.trainable_variables)` after `model.compile`: variables "
                "that it knows keep their state. If the model comes from an .h5 file, save it as "
                ".keras: Keras builds the optimizer on nothing there."
            )

    # Moving averages.

    def update_averages(self, variables: Sequence[Any]) -> None:
        """Average in float32 what has less precision, from its master copy."""
        each = zip(self._slots.entries, variables, self.averages, strict=True)
        self._average([(e, v, average) for e, v, average in each if average is not None])

    def _average(self, each: Sequence[tuple[Entry, Any, Any]]) -> None:
        momentum = self.ema_momentum * ops.cast(self.iterations != 0, self._on_tensors.dtype)
        for entry, variable, average in each:
            theta = read(variable, entry.master)
            kept = ops.cast(momentum, theta.dtype)
            # Not `average` itself: the + of Keras' variables fails on TensorFlow on shape (0, 3).
            old = ops.stop_gradient(ops.convert_to_tensor(average))
            self.assign(average, kept * old + (1 - kept) * theta)

    def overwrite_with_averages(self, variables: Sequence[Any]) -> None:
        """Set each variable to its own average, cast to the variable's precision."""
        for variable in variables:
            if not self.knows(self.key_of(variable)):  # unfrozen after the last update
                continue
            average = self.averages[self.index_of(variable)]
            if average is not None:
                # A copy: JAX cannot donate one buffer to two variables in the next step.
                self.assign(variable, ops.cast(ops.copy(average), variable.dtype))

    # Saving.

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all optimizer variables, in the order of `variables`; all are checked first."""
        weights, variables = list(weights), self.variables
        expected = [tuple(variable.shape) for variable in variables]
        received = [tuple(ops.shape(weight)) for weight in weights]
        if received != expected:
            place = next(
                (i for i, (a, b) in enumerate(zip(received, expected, strict=False)) if a != b),
                min(len(received), len(expected)),
            )
            what = variables[place].path if place < len(variables) else "nothing more"
            raise ValueError(
                f"`set_weights` needs {len(expected)} values with the shapes of "
                f"`optimizer.variables`. Received: {len(received)} values; the first that does not "
                f"fit is number {place}, where {what} is expected. Values of another optimizer, or "
                "of this one built on other variables, do not fit."
            )
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        """Write the state, each slot with its variable's path."""
        state.save(store, self.variables, self._layout())

    def load_own_variables(self, store: Any) -> None:
        """Read the state, each slot into the variable that it belongs to."""
        loaded = state.load(store, self.variables, self._layout(), self.name, self.built)
        if loaded is None:
            return
        self._take_settings(loaded.settings)
        copies = [(v, label) for v, name, label in loaded.fresh if name in (AVERAGE, REFERENCE)]
        owners = self._slots.by_label() if copies else {}
        for variable, label in copies:
            variable.assign(copied(owners[label], variable.dtype))

    def _layout(self) -> dict[str, Any]:
        return self._slots.layout(self.variables) | {"given": self._given_settings()}

    def _given_settings(self) -> dict[str, float | None]:
        """Return what the settable numbers were made with."""
        return {"learning_rate": self._timing.rate.base if self._constant_rate else None}

    def _take_settings(self, settings: dict[str, Any]) -> None:
        """Set the settable numbers of a file."""
        if settings["learning_rate_factor"] is not None:
            self._set_factor(settings["learning_rate_factor"])


def copied(variable: Any, dtype: Any) -> Any:
    """Return a variable's value in a buffer of its own: JAX donates a buffer once."""
    return ops.copy(ops.cast(ops.convert_to_tensor(variable), dtype))


def read(variable: Any, master: Any) -> Any:
    """Return θ, outside any gradient tape.

    A variable below float32 has a master copy, which is valid while its cast is the variable:
    whoever assigns to the variable (a load, a constraint) is obeyed.
    """
    theta = ops.stop_gradient(variable)
    if master is None:
        return theta
    master = ops.convert_to_tensor(master)
    return ops.where(
        ops.equal(ops.cast(master, theta.dtype), theta), master, ops.cast(theta, master.dtype)
    )
