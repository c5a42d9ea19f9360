"""What an optimizer of this package is made of, beside what Keras gives it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Real as RealNumber
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.arguments import Real, at_least_0
from keras_decoupled.core.attributes import Attribute
from keras_decoupled.core.clock import Clock
from keras_decoupled.core.keras_hooks import Inside
from keras_decoupled.core.registry import Registry
from keras_decoupled.core.settings import Setting
from keras_decoupled.core.split import ARGUMENTS as OF_SPLIT
from keras_decoupled.core.split import Split
from keras_decoupled.core.update import Update
from keras_decoupled.decay import regularizers
from keras_decoupled.decay.rules import Rules
from keras_decoupled.fast import eager
from keras_decoupled.saving import state
from keras_decoupled.schedule import timing
from keras_decoupled.schedule.timing import Timing


class Parts:
    """The parts of one optimizer. Keras' tracking of attributes does not look into a plain object.

    They are made before Keras' constructor runs, and completed after it.

    Args:
        optimizer: the optimizer that they are parts of.
        algorithm: its mathematics.
        learning_rate: as the user gave it.
        arguments: the shared arguments without those of Keras. Some of them make `timing`.
    """

    # These need optimizer variables, which Keras' constructor makes possible.
    clock: Any = None  # when: k, s, rate, η
    update: Update  # what runs at an update

    def __init__(
        self, optimizer: Any, algorithm: Algorithm, learning_rate: Any, arguments: dict[str, Any]
    ) -> None:
        self._optimizer, self.algorithm = optimizer, algorithm
        self.inside = Inside(optimizer)  # the private side of Keras
        self.settings: dict[str, Setting] = {}  # the optimizer's own, by name
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
            Split(optimizer, algorithm),
        )
        about_time = {name: arguments[name] for name in timing.ARGUMENTS if name in arguments}
        self.timing = Timing.read(learning_rate, **about_time)
        model = arguments.get("model")
        if model is not None:
            rules.extract(model, zero_penalties, self.timing.first_normalization())
        self._penalized = model if zero_penalties else None
        self.registry = Registry(rules)  # what is known of each variable
        # For `optimizers/stock.py`: what it has caught of the step that runs; and, by the id of a
        # float32 copy, the variable that the copy stands for.
        self.change: Any = SimpleNamespace(target=None)
        self.stands_for: dict[int, Any] = {}

    def complete(self) -> None:
        """Make the parts that need optimizer variables. All arguments have been checked by now.

        The optimizer's own arguments lie among its attributes; numbers and schedules become
        settings.
        """
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
            check = at_least_0("0 is no decay. A `Decay` is given to the constructor.")
            self.registry.decay = Setting("weight_decay", uniform.l2, variable, check)
        self._make_settings(dtype)
        if self._penalized is not None:
            regularizers.remove_penalties(self._penalized)
            self._penalized = None

    def _make_settings(self, dtype: str) -> None:
        cls, attributes = type(self._optimizer), vars(self._optimizer)
        for name, check in cls._kd_own.items():
            given = attributes.get(name)
            # A user's class may have something of its own under this name.
            ours = isinstance(inspect.getattr_static(cls, name, None), Attribute)
            if not ours or not isinstance(check, Real):
                continue
            if isinstance(given, LearningRateSchedule):
                self.settings[name] = Setting(name, attributes.pop(name), None, check)
            elif isinstance(given, RealNumber) and not isinstance(given, bool):
                given = float(attributes.pop(name))
                variable = self.make_scalar(name, given, dtype)
                self.settings[name] = Setting(name, given, variable, check)

    @property
    def movable(self) -> dict[str, Setting]:
        """The numbers that a user may set and that a file has, except the rate."""
        own = {name: s for name, s in self.settings.items() if s.variable is not None}
        decay = self.registry.decay
        return own if decay is None else own | {"weight_decay": decay}

    def layout(self) -> dict[str, Any]:
        """Return what the optimizer's variables are, and what it was made with; for a file."""
        base = self.timing.rate.base if self.clock.constant else None
        given = {"learning_rate": base, "weight_decay": None}
        given |= {name: setting.given for name, setting in self.movable.items()}
        layout = self.registry.layout(self._optimizer.variables, self.settings)
        return layout | {
            "class": type(self._optimizer)._kd_kind,
            "accumulation": self._optimizer.gradient_accumulation_steps or 1,
            "given": given,
        }

    def load(self, store: Any) -> None:
        """Read the state of a file."""
        optimizer = self._optimizer
        loaded = state.load(
            store,
            optimizer.variables,
            self.layout(),
            self.movable,
            optimizer.name,
            optimizer.built,
            self.algorithm.part_slot,
        )
        if loaded is None:
            return
        if loaded.factor is not None:
            self.clock.set_factor(loaded.factor)
        self.registry.begin_anew(loaded.fresh)

    def set_own(self, name: str, value: Any) -> None:
        """Set an argument of the optimizer's own, by its attribute."""
        optimizer, setting = self._optimizer, self.settings.get(name)
        if self.registry.table and name in OF_SPLIT:
            rule = "cannot be set on an optimizer from a file: the file has each variable's part"
            checks.refuse(name, value, rule, f"Make a new optimizer with {name}={value!r}.")
        if setting is None and optimizer.built:
            rule = "can be set only before the optimizer is built"
            checks.refuse(name, value, rule, f"Make a new optimizer with {name}={value!r}.")
        if setting is None:
            vars(optimizer)[name] = type(optimizer)._kd_own[name](name, value)
            return
        self.clock.check_state()
        number = setting.checked(value)
        if optimizer.built and self._needs_slots(name, number):
            rule = "needs optimizer variables that this optimizer, made with "
            rule += f"{name}={setting.given}, does not have"
            cure = f"Make it with a {name} above 0, or set it before the optimizer is built."
            checks.refuse(name, value, rule, cure)
        with eager():  # a user's class may set it in its own `build`
            setting.assign(number)

    def _needs_slots(self, name: str, value: Any) -> bool:
        """Tell whether the algorithm, with this value, needs slots that the build did not make."""
        own = {name: getattr(self._optimizer, name) for name in self.algorithm.arguments}
        h = SimpleNamespace(**own | {name: value})
        built = self.registry.built
        return any(not set(r.algorithm.slot_names(h)) <= set(r.own_names) for r in built)

    def add_scalar(self, name: str, value: float, dtype: str) -> Any:
        """Make a scalar optimizer variable, and keep it in the registry."""
        scalar = self.registry.scalars[name] = self.make_scalar(name, value, dtype)
        return scalar

    def make_scalar(self, name: str, value: float, dtype: str) -> Any:
        """Make a scalar. Under tf.distribute all replicas compute it alike, as `iterations`."""
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
