"""Who is decayed and by how much: the rules, the uniform decay λ that can be set, what came out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keras_decoupled import checks
from keras_decoupled.core.persistent import Persistent
from keras_decoupled.core.scheduled import as_given, as_number
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.rules import Rules
from keras_decoupled.decay.table import Row, Table


class Decaying(Persistent):
    """An optimizer that knows the decay and the multiplier of each variable."""

    def __init__(self, timing: Any, rules: Rules, **kwargs: Any) -> None:
        super().__init__(timing, **kwargs)
        self._rules = rules
        self._table = Table()
        given = rules.weight_decay and rules.weight_decay.l2
        self._given_decay = given if isinstance(given, float) else None
        if self._given_decay is not None:
            self._decay = self._add_scalar(
                "weight_decay", self._given_decay, self._on_tensors.dtype
            )

    def _warn_of_no_decay(self, table: Table) -> None:
        silent = self._given_decay == 0 or self._rules.saved or self.built
        if table.rows and not silent and all(row.decay.zero for row in table.rows):
            warnings.warn(
                f"{type(self).__name__} decays no variable: its weight_decay, weight_decays and "
                "model give no decay above 0, or exclude_from_weight_decay() excludes what they "
                "hit. Give `weight_decay` (1e-4 is a start), or weight_decay=0 if no decay is "
                "what you want.",
                UserWarning,
                stacklevel=3,
            )

    def part_of(self, variable: Any) -> str:
        """Return the part of Muon that steps a variable: where the first build had it."""
        return self._table.rows[self.index_of(variable)].part

    def _amount(self, on: Any, number: Any, updates: Any) -> Any:
        if isinstance(number, float):
            return number
        if number is not None:
            return on.evaluate(number, updates)
        # λ, a variable: exactly what was given where nobody has set it.
        given, now = self._given_decay, on.read(self._decay)
        unmoved = float(np.asarray(given, self._decay.dtype))
        return on.where(now == unmoved, given, now)

    # Rules.

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Exclude variables from every weight decay; replaces what an earlier call said.

        Args:
            var_list: variables.
            var_names: regular expressions, searched in each variable's path.

        Raises:
            ValueError: the optimizer is built already, or a pattern is no regular expression.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer is built: its "
                "rules are resolved then. Received: a call after build. Call it right after making "
                "the optimizer, before `model.compile` or the first update."
            )
        for name, value in (("var_list", var_list), ("var_names", var_names)):
            if value is not None and not isinstance(value, list | tuple | set):
                raise TypeError(
                    f"`{name}` must be a list. Received: {name}={value!r}. Write {name}=[...]."
                )
        self._rules.exclusions = Exclusions(var_list or (), var_names or ())

    @property
    def weight_decay(self) -> Any:
        """The uniform decay λ: a `keras.Variable` where a number was given, else as given.

        Setting it moves the decay of the variables that it reaches, and of no others.
        """
        if not hasattr(self, "_rules"):  # Keras' constructor asks
            return None
        if self._given_decay is None:
            return self._rules.weight_decay and self._rules.weight_decay.l2
        self._check_state()
        return self._decay

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        if not hasattr(self, "_rules"):
            return  # Keras' constructor sets its own, None
        value = checks.real(
            "weight_decay",
            as_number(value),
            minimum=0.0,
            below=checks.FLOAT32,
            cure="A schedule or a `Decay` is given to the constructor; 0 is no decay.",
        )
        if self._given_decay is None:
            raise ValueError(
                "`weight_decay` can be set only where the optimizer was made with a number. "
                f"Received: {value}, for an optimizer made with weight_decay="
                f"{self._rules.weight_decay}. Make it with weight_decay=0, say, and set it then."
            )
        self._check_state()
        self._decay.assign(value)

    @property
    def weight_decays(self) -> dict[Any, Any]:
        """As given; after build `{variable.path: (l1, l2)}` of all that are not (0, 0).

        A decay that is more than (l1, l2) is there as a `Decay`.
        """
        if not self.built:
            return dict(self._rules.weight_decays_as_given)
        decays = {row.path: row.decay for row in self._rows_now() if not row.decay.zero}
        return {path: (d.l1, d.l2) if d.plain else d for path, d in decays.items()}

    def _uniform_now(self) -> Decay | None:
        """Return the uniform decay with λ as it is now."""
        uniform = self._rules.weight_decay
        if uniform is None or self._given_decay is None:
            return uniform
        now = as_given(self._given_decay, self._decay)
        return uniform if now == uniform.l2 else uniform.with_amounts(now)

    def _rows_now(self) -> list[Row]:
        uniform = self._uniform_now()
        return [
            replace(row, decay=uniform) if row.uniform and uniform not in (None, row.decay) else row
            for row in self._table.rows
        ]

    @property
    def lr_multipliers(self) -> dict[Any, float]:
        """As given; after build `{variable.path: multiplier}` of all that are not 1."""
        if not self.built:
            return dict(self._rules.lr_multipliers)
        return {row.path: row.multiplier for row in self._table.rows if row.multiplier != 1}

    # Saving.

    def _decay_config(self) -> dict[str, Any]:
        uniform = self._uniform_now()
        resolved = self._rules.resolved_config(self._slots.keys, self._rows_now())
        resolved["learning_rate_factor"] = as_number(self._factor(self._on_tensors))
        config = self._rules.get_config() | {"weight_decay": uniform and uniform.to_config()}
        return config | {"resolved": resolved}

    def _given_settings(self) -> dict[str, float | None]:
        return super()._given_settings() | {"weight_decay": self._given_decay}

    def _take_settings(self, settings: dict[str, Any]) -> None:
        super()._take_settings(settings)
        given, now = settings["weight_decay"] or (None, None)
        if given is not None and given == self._given_decay:
            self._decay.assign(now)
