"""The arguments that say what each variable gets, as given; `Rules.resolve` makes the table.

Beside the user's own rules there is what a model's regularizers or a saved file add to them.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_decoupled import checks
from keras_decoupled.paths import match
from keras_decoupled.paths.align import align
from keras_decoupled.paths.match import path_of

from . import kinds, regularizers
from .exclusions import Exclusions
from .kinds import Decay, Pair
from .table import Row, Table


class Rules:
    """The arguments that say what each variable gets, as given and checked."""

    def __init__(
        self,
        weight_decay: Any,
        weight_decays: Any,
        lr_multipliers: Any,
        key_of: Callable[[Any], Any],
    ) -> None:
        self.weight_decay = (
            None if weight_decay is None else kinds.checked("weight_decay", weight_decay)
        )
        self.weight_decays = _mapping("weight_decays", weight_decays, _l2_or_pair)
        self.lr_multipliers = _mapping(
            "lr_multipliers",
            lr_multipliers,
            lambda name, value: checks.real(
                name,
                value,
                minimum=0.0,
                below=checks.FLOAT32,
                cure="0 freezes the variable, 1 leaves it alone.",
            ),
        )
        self.exclusions = Exclusions()
        self._key_of = key_of  # Keras' identity of a variable
        # From a model: its variables (trainable ones first), and their regularizers' decays.
        self._model: tuple[Any, ...] = ()
        self._trainable = 0
        self._extracted: dict[Any, Pair] = {}
        self._taken = False
        # By key: the row of each variable that was built on, also of those that left (frozen, say).
        self.known: dict[Any, Row] = {}
        self._inherited: dict[Any, None] = {}  # of these, the keys of those that a file had
        # From a file: the table of the optimizer that was saved, and loose rows (of frozen
        # variables, say) that wait for a build on theirs.
        self.saved = Table()
        self.waiting = Table()
        self._paths: set[str] = set()  # of variables that had left by then: see `_read_rules`
        self.from_file = False

    def extract(self, model: keras.Model, take: bool, shrink: float) -> None:
        """Read a model's regularizers and check every key against its variables.

        Frozen variables are read too: their keys and decays wait for a later build. `shrink` is
        the √(1/T) of the first cycle.
        """
        regularizers.get_weight_decays(model)  # checks the model, warns of other regularizers
        variables = (*model.trainable_variables, *model.non_trainable_variables)
        names = match.labels([v.path for v in variables])
        decays, _ = (
            match.resolve(rules, names, argument=argument) for argument, rules in self._keyed()
        )
        penalties = [regularizers.read_penalty(v) or (0.0, 0.0) for v in variables]
        self._trainable = len(model.trainable_variables)
        self._model = variables
        self._taken = take
        self._extracted = {
            self._key_of(v): pair for v, pair in zip(variables, penalties, strict=True) if any(pair)
        }
        self._warn_of_strong(
            [
                (name, pair)
                for name, pair, decay in zip(names, penalties, decays, strict=True)
                if decay is None
            ],
            shrink,
        )

    def _warn_of_strong(
        self, extracted: Sequence[tuple[str, tuple[float, float]]], shrink: float
    ) -> None:
        name, (l1, l2) = max(extracted, key=lambda e: max(e[1]), default=("", (0.0, 0.0)))
        if max(l1, l2) * shrink <= 1e-3:
            return
        if l2 >= l1:
            meaning = (
                f"the weight halves every {kinds.half_life(l2 * shrink):.0f} updates"
                if kinds.half_life(l2 * shrink) > 2
                else "most of the weight is gone at once"
            )
        else:
            meaning = f"the weight moves {l1 * shrink:g} towards 0 at every update"
        warnings.warn(
            f"The regularizer of {name} becomes a weight decay of "
            f"{max(l1, l2) * shrink:g} per update (at η = 1): {meaning} when no gradient acts. A "
            "penalty's factor is multiplied by the learning rate, a decoupled decay is not. If "
            "that is not meant, name the variable in `weight_decays` (learning rate × factor is "
            "a start), or give `total_iterations`.",
            UserWarning,
            stacklevel=5,
        )

    def resolve(self, variables: Sequence[Any], strict: bool = True) -> tuple[Table, Table]:
        """Return the table for these variables, and the saved rows that none of them took.

        Keys are resolved once: a variable that was built on before keeps its row, one that a
        saved table has a row for takes that, and the rules are read for the rest. In the first
        build, and of no file that was built, a key that hits nothing is an error.
        """
        names = match.labels([path_of(v) for v in variables])
        keys = [self._key_of(v) for v in variables]
        rows: list[Row | None] = [
            dataclasses.replace(self.known[key], path=name) if key in self.known else None
            for key, name in zip(keys, names, strict=True)
        ]
        new = [(name, tuple(v.shape)) for name, v in zip(names, variables, strict=True)]
        # A whole saved table may be lined up by order, loose rows only by their names.
        left = [
            *_take_over(self.saved, rows, new, by_order=True),
            *_take_over(self.waiting, rows, new, by_order=False),
        ]
        rest = [i for i, row in enumerate(rows) if row is None]
        first = not (self.known or self.saved.rows or self.waiting.rows)
        if rest:
            self._check_origin(keys)
            self.exclusions.check(names)
            found = self._read_rules([names[i] for i in rest], names, strict and first)
            for i, pair, multiplier in zip(rest, *found, strict=True):
                rows[i] = self._row(variables[i], names[i], pair, multiplier)
        return Table(tuple(row for row in rows if row is not None)), Table(tuple(left))

    def remember(self, keys: Sequence[Any], table: Table, left: Table) -> None:
        """Take note of a build on what `resolve` returned."""
        if self.saved.rows or self.waiting.rows:
            self._inherited.update(dict.fromkeys(key for key in keys if key not in self.known))
        self.known.update(zip(keys, table.rows, strict=True))
        if keys:  # each saved row is given once; what is left waits for its variable
            self.saved, self.waiting = Table(), left

    def preview(self) -> tuple[Table, Table]:
        """Return what `resolve` would for an optimizer that is not built: its model's table."""
        if not self._model:
            return self.saved, self.waiting
        return self.resolve(self._model[: self._trainable])

    def frozen(self, built: Iterable[Any] | None) -> Table:
        """Return rows for what is not built on now but was, or is the model's; `built` has the keys.

        Only where a regularizer, a file or, of a model, a rule says something of them: a later
        build needs that, also after a load, when paths have changed.
        """
        trainable = self._model[: self._trainable]
        keys = set(map(self._key_of, trainable) if built is None else built)
        of_model = {self._key_of(v): v for v in self._model if self._key_of(v) not in keys}
        table, _ = self.resolve(list(of_model.values()), strict=False)
        nothing = Row("", (), l2=0.0 if self.weight_decay is None else self.weight_decay)
        rows = [r for r in table.rows if dataclasses.replace(r, path="", shape=()) != nothing]
        # Of those that left only what a file gave them: the rules are in the config as well.
        left = [key for key in self._inherited if key not in {*keys, *of_model}]
        return Table((*rows, *(self.known[key] for key in left)))

    def _keyed(self) -> list[tuple[str, dict[str, Any]]]:
        pairs = {k: v if isinstance(v, tuple) else (0.0, v) for k, v in self.weight_decays.items()}
        return [("weight_decays", pairs), ("lr_multipliers", self.lr_multipliers)]

    def _check_origin(self, keys: Sequence[Any]) -> None:
        """Refuse to drop what was extracted: its model's penalties may be gone by now."""
        if self._extracted and not {self._key_of(v) for v in self._model} & set(keys):
            raise ValueError(
                "The optimizer took its decays from `model`, and is built on variables of which "
                f"none is that model's. Received: {len(keys)} variables. Make it with the model "
                "that it trains."
            )

    def _read_rules(
        self, targets: Sequence[str], names: Sequence[str], strict: bool
    ) -> tuple[list[Pair | None], list[float | None]]:
        elsewhere = match.labels([path_of(v) for v in self._model])
        # A key that names a layer means it, wherever that is: "b" no part of "bias".
        others = sorted({*names, *elsewhere, *self.paths()} - set(targets))
        decays, multipliers = (
            match.resolve(
                self._as_loaded(rules, targets),
                targets,
                argument=name,
                others=others,
                strict=strict,
            )
            for name, rules in self._keyed()
        )
        return decays, multipliers

    def _as_loaded(self, rules: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Return the rules with whole paths as they are after a load, without leading components.

        Only a file of an optimizer that was never built has its rules and no table.
        """
        if not self.from_file:
            return rules

        def shortened(key: Any) -> Any:
            tails = [key.split("/", i)[-1] for i in range(1, key.count("/") + 1)]
            return next((tail for tail in (key, *tails) if tail in names), key)

        return {shortened(key): value for key, value in rules.items()}

    def _row(self, variable: Any, name: str, pair: Pair | None, multiplier: float | None) -> Row:
        key = self._key_of(variable)
        extracted = self._extracted.get(key)
        # Keras itself overwrites such a variable with its "gradient" (float8 scales, say).
        overwritten = getattr(variable, "overwrite_with_gradient", False)
        if overwritten or self.exclusions.hits(name, key, self._key_of):
            pair = (0.0, 0.0)
        elif pair is None:
            pair = extracted or (0.0, 0.0 if self.weight_decay is None else self.weight_decay)
        return Row(
            path=name,
            shape=tuple(variable.shape),
            l1=pair[0],
            l2=pair[1],
            multiplier=1.0 if multiplier is None else multiplier,
            taken=extracted if self._taken else None,
        )

    def paths(self) -> set[str]:
        """Return the paths of all variables that were built on, here or before the file."""
        return self._paths | {row.path for row in self.known.values()}

    def restore(
        self, exclusions: Exclusions, table: Table, waiting: Table, paths: Iterable[str]
    ) -> None:
        """Take over what a saved config says that these rules had come to."""
        self.exclusions, self.saved, self.waiting = exclusions, table, waiting
        self._paths = set(paths)
        self.from_file = True

    def get_config(self) -> dict[str, Any]:
        """Return the rules as given, as JSON."""
        return {
            "weight_decay": None
            if self.weight_decay is None
            else kinds.to_config(self.weight_decay),
            "weight_decays": {
                key: [kinds.to_config(part) for part in given]
                if isinstance(given, tuple)
                else kinds.to_config(given)
                for key, given in self.weight_decays.items()
            },
            "lr_multipliers": dict(self.lr_multipliers),
        }


def _take_over(
    source: Table,
    rows: list[Row | None],
    new: Sequence[tuple[str, tuple[int, ...]]],
    by_order: bool,
) -> list[Row]:
    """Fill the open rows with those that the source has for their variables; return the others."""
    places = [i for i, row in enumerate(rows) if row is None]
    saved = [(row.path, row.shape) for row in source.rows]
    found = align(
        saved, [new[i] for i in places], what="the saved weight decay table", by_order=by_order
    )
    for i, j in zip(places, found, strict=True):
        if j is not None:
            path, shape = new[i]
            rows[i] = dataclasses.replace(source.rows[j], path=path, shape=shape)
    return [row for j, row in enumerate(source.rows) if j not in found]


def _l2_or_pair(name: str, value: Any) -> Decay | Pair:
    if not isinstance(value, tuple | list):
        return kinds.checked(name, value)
    if len(value) != 2:
        raise ValueError(
            f"`{name}` must be a number l2 or a pair (l1, l2). Received: {value!r}. Write (l1, 0) for l1."
        )
    l1, l2 = value
    return kinds.checked_l1(name, l1), kinds.checked(name, l2)


def _mapping(name: str, value: Any, check: Callable[[str, Any], Any]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`{name}` must be a dict from keys (parts of a variable's path) to numbers. "
            f"Received: {name}={value!r} of type {type(value).__name__}. "
            f"Write {name}={{'kernel': 1e-4}}, say."
        )
    for key in value:
        if not isinstance(key, str):
            raise TypeError(
                f"Each key of `{name}` must be a string, a variable's path or a part of it. "
                f"Received: {key!r}. Take `variable.path`."
            )
    return {key: check(f"{name}[{key!r}]", entry) for key, entry in value.items()}
