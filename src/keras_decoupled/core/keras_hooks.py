"""The border to Keras: every underscore name of its optimizer that this package uses, and why.

Keras has no public way for these. When Keras moves one, this is the file to change. (fast/ also
reads a variable's `_value`, for speed, and says so there.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_decoupled.fast import StandIn


class KerasHooks(keras.optimizers.Optimizer):
    """The hooks that Keras calls; `self._kd.update` does the work."""

    _kd: Any

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Keras has no other hook that runs once per update, after clipping and accumulation."""
        self._kd.update.run(grads, trainable_variables, super()._backend_update_step)

    def _apply_weight_decay(self, trainable_variables: Sequence[Any]) -> None:
        """Keras' own decay is multiplied by the learning rate. There is none here."""

    def _backend_increment_gradient_accumulators(
        self, grads: Sequence[Any], acc_grads: Sequence[Any]
    ) -> None:
        """On torch, Keras adds many tensors at once only in its own classes."""
        fast = self._kd.update.usable()
        if fast:
            fast.accumulate(grads, acc_grads)
        else:
            super()._backend_increment_gradient_accumulators(grads, acc_grads)

    def _backend_reset_gradient_accumulators(self) -> None:
        """On torch, Keras sets many tensors to 0 at once only in its own classes."""
        fast = self._kd.update.usable()
        if fast:
            fast.empty(self._accumulated_gradients)
        else:
            super()._backend_reset_gradient_accumulators()

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        """Keras averages in the variable's precision, where a momentum of 0.999 can be 1."""
        self._kd.update.average()

    def _overwrite_model_variables_with_average_value(
        self, trainable_variables: Sequence[Any]
    ) -> None:
        """Keras pairs variables and averages by position, which freezing a layer changes."""
        self._kd.update.overwrite_with_averages(trainable_variables)

    def _get_variable_index(self, variable: Any) -> int:
        """Stock classes ask for a variable's position. A stand-in knows that of its variable."""
        if isinstance(variable, StandIn):
            return variable.position
        return super()._get_variable_index(self._kd.stands_for.get(id(variable), variable))

    def _should_use_adamw(self, variable: Any) -> bool:
        """Muon asks at every build, by a path that a load changes. The first answer stays."""
        record = self._kd.registry.find(variable)
        part = record.row.part if record and record.row else ""
        return (part or part_of(self, variable)) == "adam"


class Inside:
    """What is read and set inside a Keras optimizer: one of ours, or a stock one."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.key_of = optimizer._var_key  # Keras' identity of a variable; replicas share it

    @property
    def variables(self) -> list[Any]:
        """The variables of the last build."""
        return list(self.optimizer._trainable_variables)

    @property
    def rate(self) -> Any:
        """The learning rate as it was given: a variable, a schedule or a callable."""
        return self.optimizer._learning_rate

    @rate.setter
    def rate(self, variable: Any) -> None:
        self.optimizer._learning_rate = variable

    @property
    def counter(self) -> Any:
        """The variable that counts calls of `apply`: micro-batches, under accumulation."""
        return self.optimizer._iterations

    @property
    def averages(self) -> list[Any]:
        """The moving average of each variable, None where it has none."""
        return list(getattr(self.optimizer, "_model_variables_moving_average", ()))

    @property
    def accumulators(self) -> list[Any]:
        """The gradient accumulator of each variable."""
        return list(getattr(self.optimizer, "_accumulated_gradients", ()))

    @property
    def has_exclusions(self) -> bool:
        """Whether a stock `exclude_from_weight_decay` was told anything."""
        names = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
        return any(getattr(self.optimizer, name, None) for name in names)

    def decays(self, variable: Any) -> bool:
        """Tell whether a stock optimizer decays a variable: nobody has excluded it."""
        # On TensorFlow, Keras asks with the tf.Variable, whose name is the path, and caches it.
        asked = variable.value if keras.backend.backend() == "tensorflow" else variable
        return bool(self.optimizer._use_weight_decay(asked))

    def part(self, variable: Any) -> str:
        """Return which part of a stock Muon steps a variable, "adam" or "muon"; else ""."""
        return _part(getattr(self.optimizer, "_should_use_adamw", None), variable)

    # What a second build needs.

    def begin_build(self) -> None:
        """Have Keras build again.

        Its `build` only adds to its index, and stock classes return at once where `built` is True.
        """
        self.optimizer._trainable_variables_indices = {}
        self.optimizer.built = False

    def order(self, last: Sequence[Any], forgotten: Sequence[Any] = ()) -> None:
        """Put these optimizer variables last, in this order, and leave out the forgotten ones.

        `variables`, `set_weights` and `tf.train.Checkpoint` go by position. TensorFlow refuses to
        save a list from which something was removed, so the list is made anew, as Keras' own
        constructor makes it: without Keras' tracker, which is told afterwards. Keras' own way to
        forget variables searches the whole list for each of them.
        """
        optimizer, before = self.optimizer, self.optimizer.variables
        out = set(map(id, forgotten))
        moved = out | set(map(id, last))
        after = [*(v for v in before if id(v) not in moved), *last]
        if list(map(id, after)) == list(map(id, before)):
            return
        tracker = optimizer.__dict__.pop("_tracker")
        optimizer._variables = after
        optimizer.__dict__["_tracker"] = tracker
        is_variable, _ = tracker.config["variables"]
        tracker.config["variables"] = (is_variable, optimizer._variables)
        tracker.stored_ids["variables"] -= out

    def config_of(self, stock: type[Any]) -> dict[str, Any]:
        """Return a stock class's config, without our rate: writing that rate would be slow."""
        attributes = self.optimizer.__dict__
        rate, attributes["_learning_rate"] = attributes["_learning_rate"], 0.0
        try:
            return dict(stock.get_config(self.optimizer))
        finally:
            attributes["_learning_rate"] = rate

    @staticmethod
    def foreach_step(stock: Any) -> Any:
        """Return Keras' torch code for many variables at once, None if a class has none.

        The code is in another class, of which Keras makes the objects in place of the stock class.
        """
        return getattr(type(stock.__new__(stock)), "_parallel_update_step", None)


def part_of(optimizer: Any, variable: Any) -> str:
    """Return "adam" or "muon" for Muon, as Keras decides; "" for an optimizer of one part."""
    return _part(getattr(super(KerasHooks, optimizer), "_should_use_adamw", None), variable)


def _part(decide: Any, variable: Any) -> str:
    return "" if decide is None else "adam" if decide(variable) else "muon"
