"""Optimizer variables: one set per variable, kept through builds, in float32 at least, by name.

Keras has the moving average, the gradient accumulators and a subclass's slots all made by
`add_variable_from_reference`; so what is said of slots here holds for each of them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_decoupled.saving import state
from keras_decoupled.schedule.timing import Timing

from .gradients import LOW_PRECISION
from .scheduled import Clocked


class Stateful(Clocked):
    """An optimizer that can be built again, and whose state goes by variable, not by position."""

    def __init__(self, timing: Timing, **kwargs: Any) -> None:
        super().__init__(timing, **kwargs)
        self._slots = state.Slots()

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Add a variable's slot of that name, or return the one that an earlier build made."""
        key = self._var_key(reference_variable)
        slot = self._slots.get(key, name)
        if slot is None:
            if name == state.AVERAGE and (self.built or _eager()):
                # Keras starts an average at its variable in update 0 alone: too late for one that
                # is new after it, or that was frozen before it and comes back.
                initializer = lambda shape, dtype=None: ops.copy(  # noqa: E731
                    ops.cast(reference_variable, dtype)
                )
            slot = super().add_variable_from_reference(reference_variable, name, initializer)
            self._slots.add(key, name, slot)
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

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> tuple[list[Any], list[Any]]:
        """Return the updated variables and optimizer variables, as in Keras."""
        if self.built:
            self._check_same_variables(trainable_variables)
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    def _check_same_variables(self, values: Sequence[Any]) -> None:
        """Refuse values of other variables: here they come without their names."""
        built = self._trainable_variables
        same = len(values) == len(built) and all(
            tuple(value.shape) == tuple(variable.shape)
            for value, variable in zip(values, built, strict=True)
        )
        frozen = [v for v, trained in zip(built, self._slots.trainable, strict=True) if trained]
        frozen = [v for v in frozen if not v.trainable]
        if not same or frozen:
            raise ValueError(
                f"The optimizer was built on other variables. Received: {len(values)} trainable "
                f"variables for {len(built)} built on, of which {len(frozen)} are frozen by now. If layers were "
                "frozen or unfrozen, call `optimizer.build(model.trainable_variables)` after "
                "`model.compile`: variables that it knows keep their state. If the model comes "
                "from an .h5 file, save it as .keras: Keras builds the optimizer on nothing there."
            )

    def _built_on(self, variables: Sequence[Any]) -> bool:
        """Tell whether these are the optimizer's variables, in its order."""
        built = self._trainable_variables
        return len(variables) == len(built) and all(map(operator.is_, variables, built))

    def _build_on_new(self, variables: list[Any], grads: Sequence[Any]) -> None:
        """Build again where unknown variables came in; those that are known stay."""
        if not self.built or self._built_on(variables):
            return
        keys = {self._var_key(variable) for variable in variables}
        if keys <= self._trainable_variables_indices.keys():
            return
        symbolic = any(g is not None and not hasattr(g, "numpy") for g in grads)
        if self.use_ema and keras.backend.backend() == "tensorflow" and symbolic:
            raise ValueError(
                "With `use_ema`, variables that are new to the optimizer need an average that "
                "starts at their value, which a traced TensorFlow step cannot read. Received: new "
                "variables in a traced step. Call `optimizer.build(model.trainable_variables)` "
                "after `model.compile`: variables that it knows keep their state."
            )
        kept = [v for v in self._trainable_variables if self._var_key(v) not in keys]
        self.build([*kept, *variables])

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Average in float32 what has less, from its master copy.

        Keras computes in the variable's precision, where a momentum of 0.999 is 1, and with the +
        of its variables, which fails on TensorFlow on the shape (0, 3). Two hooks, as there a
        float32 average cannot be assigned to a variable below that as it is.
        """
        momentum = self.ema_momentum * ops.cast(self.iterations != 0, self._scalar_dtype)
        averages = self._model_variables_moving_average
        for (_, master), variable, average in zip(
            self._slots.rows, trainable_variables, averages, strict=True
        ):
            if average is not None:
                theta = read(variable, master)
                kept = ops.cast(momentum, theta.dtype)
                self.assign(
                    average,
                    kept * ops.stop_gradient(ops.convert_to_tensor(average)) + (1 - kept) * theta,
                )

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[Any]
    ) -> None:
        """Set each variable to its own average; Keras pairs them by position.

        After layers were frozen, the model's list is not the optimizer's. A copy, as JAX could not
        donate one buffer to two variables in the next step.
        """
        for variable in trainable_variables:
            average = self._model_variables_moving_average[self._get_variable_index(variable)]
            if average is not None:
                self.assign(variable, ops.cast(ops.copy(average), variable.dtype))

    def save_own_variables(self, store: Any) -> None:
        """Write the state, each slot with its variable's path."""
        state.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Read the state, each slot into the variable that it belongs to."""
        state.load(self, store)


def _eager() -> bool:
    """Tell whether variables have values here: a traced TensorFlow step builds without any."""
    return keras.backend.backend() != "tensorflow" or hasattr(ops.zeros(()), "numpy")


def read(variable: Any, master: Any) -> Any:
    """Return θ, outside any gradient tape.

    A variable below float32 has a master copy, which is valid while its cast is the variable:
    whoever assigns to the variable (a load, a constraint) is obeyed.
    """
    theta = ops.stop_gradient(ops.convert_to_tensor(variable))
    if master is None:
        return theta
    master = ops.convert_to_tensor(master)
    return ops.where(
        ops.equal(ops.cast(master, theta.dtype), theta), master, ops.cast(theta, master.dtype)
    )
