"""Every underscore name of Keras' optimizer that this package uses, each with its reason.

Keras has no public hook for these (fast/ reads a variable's `_value` besides, for speed, and says
so there). When Keras moves one, this is the file to change. Keras' plan for backends in packages of
their own (keras#23523, first tried in keras#23397) moves none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


class KerasHooks(keras.optimizers.Optimizer):
    """A Keras optimizer whose hooks have public names."""

    # What Keras calls, and the methods that stand behind it here.

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Keras has no other hook that runs once per update, after clipping and accumulation."""
        self.update_all(grads, trainable_variables, learning_rate)

    def update_all(self, grads: Sequence[Any], variables: Sequence[Any], rate: Any) -> None:
        """Update these variables, once per update."""
        self.update_each(grads, variables, rate)

    def update_each(self, grads: Sequence[Any], variables: Sequence[Any], rate: Any) -> None:
        """Have Keras call `update_step` for each variable; tf.distribute: on each replica.

        `rate` comes to `update_step` as it is, whatever it is.
        """
        super()._backend_update_step(grads, variables, rate)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Do nothing: Keras' own decay is multiplied by the learning rate."""

    def _backend_increment_gradient_accumulators(
        self, grads: Sequence[Any], acc_grads: Sequence[Any]
    ) -> None:
        """Keras has code for many torch tensors at once in its own classes alone."""
        self.accumulate(grads, acc_grads)

    def accumulate(self, grads: Sequence[Any], accumulators: Sequence[Any]) -> None:
        """Add the gradients of a micro-batch."""
        super()._backend_increment_gradient_accumulators(grads, accumulators)

    def _backend_reset_gradient_accumulators(self) -> None:
        """As above."""
        self.empty(self._accumulated_gradients)

    def empty(self, accumulators: Sequence[Any]) -> None:
        """Set all gradient accumulators to 0."""
        super()._backend_reset_gradient_accumulators()

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Keras averages in the variable's precision, where a momentum of 0.999 can be 1."""
        self.update_averages(trainable_variables)

    def update_averages(self, variables: Sequence[Any]) -> None:
        """Update the moving averages (`use_ema`)."""
        super()._update_model_variables_moving_average(variables)

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[Any]
    ) -> None:
        """Keras pairs variables and averages by position, which freezing a layer changes."""
        self.overwrite_with_averages(trainable_variables)

    def overwrite_with_averages(self, variables: Sequence[Any]) -> None:
        """Set each variable to its moving average."""
        super()._overwrite_model_variables_with_average_value(variables)

    # What is read and called of Keras.

    def key_of(self, variable: Any) -> Any:
        """Return Keras' identity of a variable; replicas and their container have one."""
        return self._var_key(variable)

    def _get_variable_index(self, variable: Any) -> int:
        """Stock classes ask by this name where their state of a variable stands."""
        return self.index_of(variable)

    def index_of(self, variable: Any) -> int:
        """Return a variable's position in the last build; on TensorFlow it has no path here."""
        return super()._get_variable_index(variable)

    def knows(self, key: Any) -> bool:
        """Tell whether the last build had the variable of this key."""
        return key in self._trainable_variables_indices

    def build_keras(self, variables: Sequence[Any]) -> None:
        """Have Keras build, also a second time.

        Its `build` only adds to its index, and stock classes return at once where `built` is True.
        """
        self._trainable_variables_indices: dict[Any, int] = {}
        self.built = False
        super().build(variables)

    @property
    def built_on(self) -> Sequence[Any]:
        """The variables of the last build."""
        return self._trainable_variables

    @property
    def averages(self) -> Sequence[Any]:
        """The moving average of each variable of the last build, None where it has none."""
        return self._model_variables_moving_average

    @property
    def update_counter(self) -> Any:
        """The variable that counts calls of `apply`: micro-batches, under accumulation."""
        return self._iterations

    def forget(self, variables: Sequence[Any]) -> None:
        """Leave these out of `variables`. Keras' own way looks through all for each of them."""
        ids = set(map(id, variables))
        self._tracker.stored_ids["variables"] -= ids
        self.set_order([variable for variable in self.variables if id(variable) not in ids])

    def use_rate_variable(self, variable: Any) -> None:
        """Have this variable where Keras keeps a constant learning rate."""
        self._learning_rate = variable

    def config_of(self, stock: type[Any]) -> dict[str, Any]:
        """Return the config that a stock class writes; its way with our rate would be slow."""
        attributes = self.__dict__
        rate = attributes["_learning_rate"]
        attributes["_learning_rate"] = 0.0
        try:
            return dict(stock.get_config(self))
        finally:
            attributes["_learning_rate"] = rate

    # Muon decides at every build which of its parts steps a variable, by a path that a load changes.

    def _should_use_adamw(self, variable: Any) -> bool:
        return self.part_of(variable) == "adam"

    def part_of(self, variable: Any) -> str:
        """Return the part of the optimizer that steps a variable, as it was decided once."""
        return self.decide_part(variable)

    def decide_part(self, variable: Any) -> str:
        """Return "adam" or "muon" for Muon, and "" for an optimizer of one part."""
        decide = getattr(super(), "_should_use_adamw", None)
        return "" if decide is None else "adam" if decide(variable) else "muon"

    @staticmethod
    def foreach_step(stock: Any) -> Any:
        """Return Keras' torch code for many variables at once, None: a class has none.

        Keras has it in a class of its own, which stands in for the stock one, and for no other.
        """
        return getattr(type(stock.__new__(stock)), "_parallel_update_step", None)

    def set_order(self, variables: Sequence[Any]) -> None:
        """Put the optimizer variables into this order.

        `variables`, `set_weights` and `tf.train.Checkpoint` go by position. TensorFlow refuses to
        save a list from which something was removed, so the list is made anew, as Keras' own
        constructor makes it: without Keras' tracker, which is told afterwards.
        """
        tracker = self.__dict__.pop("_tracker")
        self._variables = list(variables)
        self.__dict__["_tracker"] = tracker
        is_variable, _ = tracker.config["variables"]
        tracker.config["variables"] = (is_variable, self._variables)


class StockHooks:
    """What is read of an optimizer of Keras itself, where Keras has no public name."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.variables: list[Any] = list(optimizer._trainable_variables)
        self.rate = optimizer._learning_rate  # a variable, a schedule or a callable
        self.counter = optimizer._iterations  # counts micro-batches
        self.averages: list[Any] = list(getattr(optimizer, "_model_variables_moving_average", ()))
        self.accumulators: list[Any] = list(getattr(optimizer, "_accumulated_gradients", ()))

    @property
    def has_exclusions(self) -> bool:
        """Whether `exclude_from_weight_decay` was told anything."""
        return bool(
            getattr(self.optimizer, "_exclude_from_weight_decay", None)
            or getattr(self.optimizer, "_exclude_from_weight_decay_pattern", None)
        )

    def decays(self, variable: Any) -> bool:
        """Tell whether a variable is not excluded."""
        return bool(self.optimizer._use_weight_decay(variable))

    def part(self, variable: Any) -> str:
        """Return which part of Muon steps a variable: "adam" or "muon"."""
        return "adam" if self.optimizer._should_use_adamw(variable) else "muon"
