"""The config: the arguments as they are now, and what they came to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from keras_decoupled.core.arguments import KERAS_ARGUMENTS, SHARED_ARGUMENTS, Check
from keras_decoupled.core.decaying import Decaying
from keras_decoupled.saving.read_config import read_config


class Configured(Decaying):
    """An optimizer that comes back from its config with everything it had resolved."""

    HYPERPARAMETERS: ClassVar[Mapping[str, Check]] = {}  # the class's own arguments, and checks
    init_verbose: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class's help all of its arguments."""
        super().__init_subclass__(**kwargs)
        if "**shared" in (cls.__doc__ or ""):
            cls.__doc__ = f"{cls.__doc__}{SHARED_ARGUMENTS}"

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
