"""What an optimizer of this package is made of, beside what Keras gives it."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from keras_decoupled import checks
from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.clock import Clock
from keras_decoupled.core.keras_hooks import Inside, part_of
from keras_decoupled.core.registry import Registry
from keras_decoupled.core.settings import Setting
from keras_decoupled.core.update import Update
from keras_decoupled.decay import regularizers
from keras_decoupled.decay.rules import Rules
from keras_decoupled.schedule import timing
from keras_decoupled.schedule.timing import Timing


class Parts:
    """The parts of one optimizer. Keras' tracking of attributes does not look into a plain object.

    They are made before Keras' constructor runs, and completed after it.

    Args:
        optimizer: the optimizer that they are parts of.
        algorithm: its mathematics.
        learning_rate: as the user gave it.
        arguments: the shared arguments, less those of Keras. Those about time are taken out.
    """

    # These need optimizer variables, which Keras' constructor makes possible.
    clock: Clock | None = None  # when: k, s, rate, η
    update: Update  # what runs at an update

    def __init__(
        self, optimizer: Any, algorithm: Algorithm, learning_rate: Any, arguments: dict[str, Any]
    ) -> None:
        self._optimizer, self.algorithm = optimizer, algorithm
        self.inside = Inside(optimizer)  # the private side of Keras
        self.fast = True
        self.init_verbose = _flag("init_verbose", arguments, False, "True prints `explain()`.")
        cure = "False leaves the penalties in the loss, too."
        zero_penalties = _flag("zero_penalties", arguments, True, cure)
        cure = "False leaves biases and scales undecayed."
        rules = Rules(
            arguments.get("weight_decay"),
            arguments.get("weight_decays"),
            arguments.get("lr_multipliers"),
            _flag("decay_vectors", arguments, True, cure),
            self.inside.key_of,
            lambda variable: part_of(optimizer, variable),
        )
        about_time = {name: arguments[name] for name in timing.ARGUMENTS if name in arguments}
        self.timing = Timing.read(learning_rate, **about_time)
        model = arguments.get("model")
        if model is not None:
            rules.extract(model, zero_penalties, self.timing.first_normalization())
        self._penalized = model if zero_penalties else None
        self.registry = Registry(rules)  # what is known of each variable
        # For `optimizers/stock.py`: what it has caught of the step that runs, and the variable that
        # a float32 copy stands for.
        self.change: Any = SimpleNamespace(target=None)
        self.stands_for: dict[int, Any] = {}

    def complete(self) -> None:
        """Make what needs optimizer variables. Every error was raised by now."""
        dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        counter = self.registry.scalars["iteration"] = self.inside.counter
        self.update = Update(self._optimizer, dtype)
        optimizer = self._optimizer
        self.clock = Clock(
            self.timing,
            counter,
            lambda: optimizer.gradient_accumulation_steps or 1,
            self.add_scalar,
            dtype,
        )
        if self.clock.constant:
            self.inside.rate = self.clock.rate.variable
        uniform = self.registry.rules.weight_decay
        if uniform is not None and isinstance(uniform.l2, float):
            variable = self.add_scalar("weight_decay", uniform.l2, dtype)
            self.registry.decay = Setting("weight_decay", uniform.l2, variable)
        if self._penalized is not None:
            regularizers.remove_penalties(self._penalized)
            self._penalized = None

    def add_scalar(self, name: str, value: float, dtype: str) -> Any:
        """Add a scalar of ours."""
        scalar = self.registry.scalars[name] = self.make_scalar(name, value, dtype)
        return scalar

    def make_scalar(self, name: str, value: float, dtype: str) -> Any:
        """Make a scalar. Under tf.distribute every replica computes the same, as `iterations`."""
        # An array: TensorFlow's cast of a Python number to float64 goes through float32.
        initializer = keras.initializers.Constant(np.array(value))
        return self._optimizer.add_variable(
            (), initializer, dtype, aggregation="only_first_replica", name=name
        )


def _flag(name: str, arguments: Mapping[str, Any], default: bool, cure: str) -> bool:
    return checks.flag(name, arguments.get(name, default), cure=cure)


def refuse_names(cls: type[Any], names: set[str]) -> None:
    """Refuse a user's class that uses names of ours."""
    shown = ", ".join(f"`{name}`" for name in sorted(names))
    checks.refuse(
        cls.__name__,
        checks.Seen(f"a class that defines {shown}"),
        "must not define what keras_decoupled optimizers already define",
        "Rename it.",
    )
