"""The config: the arguments as they are now, and what they came to; also from Keras' optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import keras

from keras_decoupled.core import from_keras
from keras_decoupled.core.arguments import KERAS_ARGUMENTS, Check, shared_docstring
from keras_decoupled.core.decaying import Decaying
from keras_decoupled.saving.read_config import read_config


class Configured(Decaying):
    """An optimizer that comes back from its config with everything it had resolved."""

    HYPERPARAMETERS: ClassVar[Mapping[str, Check]] = {}  # the class's own arguments, and checks
    twins: ClassVar[tuple[type[Any], ...]] = ()  # the stock classes whose step is this one
    twin_arguments: ClassVar[Mapping[str, Any]] = {}  # what makes it theirs
    twin_names: ClassVar[Mapping[str, str]] = {}  # slot or attribute: the stock class's attribute
    init_verbose: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class's help all of its arguments."""
        super().__init_subclass__(**kwargs)
        if cls.__doc__ and "**shared" in cls.__doc__:
            cls.__doc__ = shared_docstring(cls.__doc__, cls.__name__)

    def _checked(self, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: check(name, hyperparameters[name]) for name, check in self.HYPERPARAMETERS.items()
        }

    def get_config(self) -> dict[str, Any]:
        """Return the config as JSON: the arguments as they are now, and what they came to."""
        self._check_state()
        return {
            **{name: getattr(self, name) for name in KERAS_ARGUMENTS},
            **self._timing.get_config(),
            "learning_rate": self._learning_rate_to_config(),
            "base_learning_rate": self._timing.rate.known_base,
            **self._decay_config(),
            **self._own_config(),
            "init_verbose": self.init_verbose,
        }

    def _own_config(self) -> dict[str, Any]:
        """Return the class's own arguments as they are now."""
        return {name: getattr(self, name) for name in self.HYPERPARAMETERS}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Make the optimizer of a config."""
        arguments, resolved = read_config(config, custom_objects)
        optimizer = cls(**arguments)
        if resolved is not None:
            optimizer._rules.restore(
                resolved.exclusions, resolved.table, resolved.waiting, resolved.paths
            )
            if resolved.factor is not None:
                optimizer._set_factor(resolved.factor)
        return optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and deepcopy carry the config, as Keras' do; state goes with the model's file."""
        return type(self).from_config, (self.get_config(),)

    # Coming from Keras.

    @classmethod
    def from_keras(cls, optimizer: Any, **changes: Any) -> Any:
        """Return an optimizer that goes on where one of `keras.optimizers` stands.

        Arguments, moments, averages, the number of updates and the position in a schedule are
        carried over, so that training goes on along the same way, to rounding. The decay is
        λ = α·w, for the same variables, with α the rate now, or the base rate of a schedule. The
        step of Lamb and of Adafactor reads the weight, which Keras decays before it: there the
        two differ by about a thousandth of a step.

        Args:
            optimizer: an optimizer of the class that this one stands for, or a
                `LossScaleOptimizer` around one. If it is not built, only its arguments are taken.
            **changes: arguments of this class that take the place of those carried over.

        Returns:
            An optimizer of this class; for a `LossScaleOptimizer`, one around it.

        Raises:
            TypeError: it is of another class.
            ValueError: it cannot be continued: it has a schedule and gradient accumulation
                (Keras counts micro-batches there), or it has exclusions and is not built.

        Example:
        >>> import keras
        >>> from keras_decoupled import AdamW
        >>> stock = keras.optimizers.AdamW(1e-3, weight_decay=0.004)
        >>> AdamW.from_keras(stock).get_config()["weight_decay"]
        4e-06
        """
        return from_keras.continued(cls, optimizer, changes)

    def twin_state(self, stock: Any) -> list[tuple[Any, Any]]:
        """Return pairs of an optimizer variable of this optimizer and of its stock twin."""
        pairs = []
        for name, attribute in self.twin_names.items():
            own = getattr(self, name, None)
            if name in self.slot_names:
                own = [self._slots.get(key, name) for key in self._slots.keys]
            if isinstance(own, list | keras.Variable):  # without momentum, SGD has none
                pairs += from_keras.paired(own, getattr(stock, attribute, ()))
        return pairs
