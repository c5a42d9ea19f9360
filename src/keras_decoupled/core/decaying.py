"""Who is decayed and by how much: the rules, the uniform decay λ that can be set, what came out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_decoupled import checks
from keras_decoupled.core.gradients import check_variables
from keras_decoupled.core.persistent import Persistent
from keras_decoupled.core.scheduled import as_given, as_number
from keras_decoupled.decay import explain as explanation
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.explain import Explanation
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.rules import Rules
from keras_decoupled.decay.table import Row, Table


class Decaying(Persistent):
    """An optimizer that knows the decay and the multiplier of each variable."""

    def __init__(self, timing: Any, rules: Rules, **kwargs: Any) -> None:
        super().__init__(timing, **kwargs)
        self._rules = rules
        self._table = Table()
        given = rules.given.weight_decay and rules.given.weight_decay.l2
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
        self._rules.given.exclusions = Exclusions(var_list or (), var_names or ())

    @property
    def weight_decay(self) -> Any:
        """The uniform decay λ: a `keras.Variable` where a number was given, else as given.

        Setting it moves the decay of the variables that it reaches, and of no others.
        """
        if not hasattr(self, "_rules"):  # Keras' constructor asks
            return None
        if self._given_decay is None:
            return self._rules.given.weight_decay and self._rules.given.weight_decay.l2
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
                f"{self._rules.given.weight_decay}. Make it with weight_decay=0, say, and set it then."
            )
        self._check_state()
        self._decay.assign(value)

    @property
    def weight_decays(self) -> dict[Any, Any]:
        """As given; after build `{variable.path: (l1, l2)}` of all that are not (0, 0).

        The numbers are those before normalization; `explain()` has what an update removes. A decay
        that is more than (l1, l2) is there as a `Decay`.
        """
        if not self.built:
            return dict(self._rules.given.weight_decays_as_given)
        decays = {row.path: row.decay for row in self._rows_now() if not row.decay.zero}
        return {path: (d.l1, d.l2) if d.plain else d for path, d in decays.items()}

    def _uniform_now(self) -> Decay | None:
        """Return the uniform decay with λ as it is now."""
        uniform = self._rules.given.weight_decay
        if uniform is None or self._given_decay is None:
            return uniform
        now = as_given(self._given_decay, self._decay)
        return uniform if now == uniform.l2 else uniform.with_amounts(now)

    def _rows_now(self, rows: Sequence[Row] | None = None) -> list[Row]:
        """Return these rows, or else those of the last build, with λ as it is now."""
        uniform = self._uniform_now()
        return [
            replace(row, decay=uniform) if row.uniform and uniform not in (None, row.decay) else row
            for row in (self._table.rows if rows is None else rows)
        ]

    def explain(
        self, model_or_variables: Any = None, steps_per_epoch: int | None = None
    ) -> Explanation:
        """Return a table of who is decayed by how much, by which rule, and warnings; builds nothing.

        `print` it, or let a notebook show it; `rows` has it as dicts.

        Args:
            model_or_variables: a built model, whose trainable variables are explained, or a list
                of variables. Defaults to `None`: those that the optimizer is built on.
            steps_per_epoch: batches per epoch, for half-lives in epochs. Defaults to `None`.

        Raises:
            ValueError: the optimizer is not built and nothing is given, or the model has no
                variables yet; a rule that the build would refuse.
            TypeError: what is given is no model and no list of variables.

        Example:
        >>> import keras
        >>> from keras_decoupled import AdamW
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> optimizer = AdamW(1e-3, weight_decay=1e-3, weight_decays={"bias": 0})
        >>> explanation = optimizer.explain(model, steps_per_epoch=100)
        >>> [(row["path"], row["rule"], row["half_life_epochs"]) for row in explanation.rows]
        [('sequential/head/kernel', 'weight_decay', 6.928...), ('sequential/head/bias', 'bias', None)]
        """
        if steps_per_epoch is not None:
            steps_per_epoch = checks.integer(
                "steps_per_epoch", steps_per_epoch, minimum=1, cure="It counts batches, as in fit."
            )
        variables = self._variables_of(model_or_variables)
        self._check_state()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows, _ = self._rules.resolve(variables)
        found = explanation.explain(
            f"{self.name} ({type(self).__name__}): each variable's decay at η = 1",
            variables,
            self._rows_now(rows),
            self._uniform_now(),
            self._timing.first_normalization(),
            steps_per_epoch and steps_per_epoch / (self.gradient_accumulation_steps or 1),
            self._rules.given.overridden(variables),
        )
        found.warnings.extend(str(warning.message) for warning in caught)
        return found

    def _variables_of(self, given: Any) -> list[Any]:
        if given is None:
            if not self.built:
                raise ValueError(
                    "`explain()` needs a model or variables before the optimizer is built. "
                    "Received: nothing. Call optimizer.explain(model)."
                )
            return list(self.built_on)
        if isinstance(given, keras.Layer):
            if not given.weights:
                raise ValueError(
                    "`explain()` needs a built model, with weights. Received: "
                    f"{given.name!r}, which has none. Call model.build(input_shape) first."
                )
            return list(given.trainable_variables)
        if not isinstance(given, list | tuple):
            raise TypeError(
                "`explain()` takes a model or a list of variables. Received: "
                f"{given!r} of type {type(given).__name__}. Call optimizer.explain(model)."
            )
        check_variables(list(given), self.key_of)
        return list(given)

    @property
    def lr_multipliers(self) -> dict[Any, float]:
        """As given; after build `{variable.path: multiplier}` of all that are not 1."""
        if not self.built:
            return dict(self._rules.given.lr_multipliers)
        return {row.path: row.multiplier for row in self._table.rows if row.multiplier != 1}

    # Saving.

    def _decay_config(self) -> dict[str, Any]:
        uniform = self._uniform_now()
        resolved = self._rules.resolved_config(self._slots.keys, self._rows_now())
        resolved["learning_rate_factor"] = as_number(self._factor(self._on_tensors))
        config = self._rules.given.get_config() | {"weight_decay": uniform and uniform.to_config()}
        return config | {"resolved": resolved}

    def _given_settings(self) -> dict[str, float | None]:
        return super()._given_settings() | {"weight_decay": self._given_decay}

    def _take_settings(self, settings: dict[str, Any]) -> None:
        super()._take_settings(settings)
        given, now = settings["weight_decay"] or (None, None)
        if given is not None and given == self._given_decay:
            self._decay.assign(now)
