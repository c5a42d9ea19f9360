"""The arguments that say what each variable gets, as given; `Rules.resolve` makes the table.

Beside the user's own rules there is what a model's regularizers or a saved file add to them.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from . import _checks, _regularizers, _rules
from ._align import align
from ._table import Decay, Pair, Row, Table, decay_config, half_life, path_of


class Exclusions:
    """What `exclude_from_weight_decay` was last told: variables, and patterns of their paths."""

    def __init__(
        self,
        variables: Iterable[Any] = (),
        patterns: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> None:
        self.variables = list(variables)
        self.patterns = list(patterns)
        self.paths = list(paths)  # of variables, from a config
        for pattern in self.patterns:
            if not isinstance(pattern, str):
                raise TypeError(
                    "`var_names` must be a list of regular expressions. "
                    f"Received: {pattern!r}. Variables go into `var_list`."
                )
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    "`var_names` must be regular expressions, searched in each variable's path. "
                    f"Received: {pattern!r} ({error}). Escape what is meant literally: re.escape()."
                ) from error
        for variable in self.variables:
            if not hasattr(variable, "assign"):
                raise TypeError(
                    "`var_list` must be a list of variables. "
                    f"Received: {variable!r}. Patterns of paths go into `var_names`."
                )

    def hits(self, name: str, key: Any, key_of: Callable[[Any], Any]) -> bool:
        """Tell whether the variable of that name and key is excluded."""
        return (
            name in self.paths
            or any(re.search(pattern, name) for pattern in self.patterns)
            or any(key_of(variable) == key for variable in self.variables)
        )

    def check(self, names: Sequence[str]) -> None:
        """Refuse a path from a config that several variables have: it meant one of them."""
        for entry in self.paths:
            if f"{entry}#2" in names:
                raise ValueError(
                    "A variable in `exclude_from_weight_decay(var_list=...)` was saved by its "
                    f"path before the optimizer was built, and several have it. Received: {entry}. "
                    "Call exclude_from_weight_decay() again with the variable."
                )

    def get_config(self) -> dict[str, list[str]]:
        """Return the exclusions as JSON; variables by their paths."""
        paths = [*self.paths, *map(path_of, self.variables)]
        return {"var_list": paths, "var_names": self.patterns}


class Rules:
    """The arguments that say what each variable gets, as given and checked."""

    def __init__(self, weight_decay: Any, weight_decays: Any, lr_multipliers: Any) -> None:
        self.weight_decay = None if weight_decay is None else _decay("weight_decay", weight_decay)
        self.weight_decays = _mapping("weight_decays", weight_decays, _l2_or_pair)
        self.lr_multipliers = _mapping(
            "lr_multipliers",
            lr_multipliers,
            lambda name, value: _checks.real(
                name, value, minimum=0.0, cure="0 freezes the variable, 1 leaves it alone."
            ),
        )
        self.exclusions = Exclusions()
        # From a model: its variables (trainable ones first), and their regularizers' decays.
        self.model_variables: tuple[Any, ...] = ()
        self.trainable = 0
        self.extracted: list[tuple[Any, Pair]] = []
        self.taken = False
        # From a file: the table of the optimizer that was saved, and rows of frozen variables.
        self.saved = Table()
        self.waiting = Table()

    def resolve(
        self,
        variables: Sequence[Any],
        key_of: Callable[[Any], Any],
        known: Mapping[Any, Row],
        strict: bool = True,
    ) -> Table:
        """Return the table for these variables.

        Keys are resolved once: a variable that was built on before keeps its row, one that a
        saved table has a row for takes that, and the rules are read for the rest. If that is all
        of them, a key that hits nothing is an error.
        """
        names = _rules.labels([path_of(v) for v in variables])
        shapes = [tuple(v.shape) for v in variables]
        keys = [key_of(v) for v in variables]
        rows: list[Row | None] = [
            dataclasses.replace(known[key], path=name) if key in known else None
            for key, name in zip(keys, names, strict=True)
        ]
        new = list(zip(names, shapes, strict=True))
        for source in (self.saved, self.waiting):
            _take_over(source, rows, new, by_order=source is self.saved)
        rest = [i for i, row in enumerate(rows) if row is None]
        if rest:
            self.exclusions.check(names)
        strict = strict and len(rest) == len(rows)
        for i, row in zip(rest, self._resolve_rest(rest, names, strict), strict=True):
            rows[i] = self._finish(row, variables[i], shapes[i], keys[i], key_of)
        return Table(tuple(row for row in rows if row is not None))

    def extract(self, model: keras.Model, take: bool, shrink: float) -> None:
        """Read a model's regularizers and check every key against its variables.

        Frozen variables are read too: their keys and decays wait for a later build. `shrink` is
        the √(1/T) of the first cycle.
        """
        _regularizers.get_weight_decays(model)  # checks the model, warns of other regularizers
        variables = (*model.trainable_variables, *model.non_trainable_variables)
        names = _rules.labels([v.path for v in variables])
        decays, _ = (
            _rules.resolve(rules, names, argument=argument) for argument, rules in self._keyed()
        )
        self.trainable = len(model.trainable_variables)
        self.model_variables = variables
        self.taken = take
        self.extracted = [
            (variable, pair)
            for variable in variables
            if any(pair := _regularizers.read_penalty(variable) or (0.0, 0.0))
        ]
        named = {id(v) for v, d in zip(variables, decays, strict=True) if d}
        self._warn_of_strong([e for e in self.extracted if id(e[0]) not in named], shrink)

    def _warn_of_strong(self, extracted: Sequence[tuple[Any, Pair]], shrink: float) -> None:
        variable, (l1, l2) = max(extracted, key=lambda e: max(e[1]), default=(None, (0.0, 0.0)))
        if max(l1, l2) * shrink <= 1e-3:
            return
        if l2 >= l1:
            meaning = (
                f"the weight halves every {half_life(l2 * shrink):.0f} updates"
                if half_life(l2 * shrink) > 2
                else "most of the weight is gone at once"
            )
        else:
            meaning = f"the weight moves {l1 * shrink:g} towards 0 at every update"
        warnings.warn(
            f"The regularizer of {path_of(variable)} becomes a weight decay of "
            f"{max(l1, l2) * shrink:g} per update (at η = 1): {meaning} when no gradient acts. A "
            "penalty's factor is multiplied by the learning rate, a decoupled decay is not. If "
            "that is not meant, name the variable in `weight_decays` (learning rate × factor is "
            "a start), or give `total_iterations`.",
            UserWarning,
            stacklevel=5,
        )

    def _keyed(self) -> list[tuple[str, dict[str, Any]]]:
        pairs = {k: v if isinstance(v, tuple) else (0.0, v) for k, v in self.weight_decays.items()}
        return [("weight_decays", pairs), ("lr_multipliers", self.lr_multipliers)]

    def _resolve_rest(
        self, rest: Sequence[int], names: Sequence[str], strict: bool
    ) -> list[tuple[str, Pair | None, float | None]]:
        targets = [names[i] for i in rest]
        elsewhere = _rules.labels([path_of(v) for v in self.model_variables])
        others = sorted({*names, *elsewhere} - set(targets))
        decays, multipliers = (
            _rules.resolve(rules, targets, argument=argument, others=others, strict=strict)
            if targets
            else []
            for argument, rules in self._keyed()
        )
        return list(zip(targets, decays, multipliers, strict=True))

    def _finish(
        self,
        found: tuple[str, Pair | None, float | None],
        variable: Any,
        shape: tuple[int, ...],
        key: Any,
        key_of: Callable[[Any], Any],
    ) -> Row:
        name, pair, multiplier = found
        extracted = self._extracted_for(name, key, key_of)
        # Keras itself overwrites such a variable with its "gradient" (float8 scales, say).
        overwritten = getattr(variable, "overwrite_with_gradient", False)
        if overwritten or self.exclusions.hits(name, key, key_of):
            pair = (0.0, 0.0)
        elif pair is None:
            pair = extracted or (0.0, 0.0 if self.weight_decay is None else self.weight_decay)
        return Row(
            path=name,
            shape=shape,
            l1=pair[0],
            l2=pair[1],
            multiplier=1.0 if multiplier is None else multiplier,
            taken=self.taken and extracted is not None,
        )

    def _extracted_for(self, name: str, key: Any, key_of: Callable[[Any], Any]) -> Pair | None:
        return next((pair for source, pair in self.extracted if key_of(source) == key), None)

    def trainable_keys(self, key_of: Callable[[Any], Any]) -> list[Any]:
        """Return the keys of the variables that `preview` has rows for."""
        return [key_of(v) for v in self.model_variables[: self.trainable]]

    def preview(self, key_of: Callable[[Any], Any]) -> Table:
        """Return the table of an optimizer that is not built: its model's, or the file's."""
        if not self.model_variables:
            return self.saved
        return self.resolve(self.model_variables[: self.trainable], key_of, {})

    def waiting_for(self, keys: Iterable[Any], key_of: Callable[[Any], Any]) -> Table:
        """Return rows for variables of the model beside those with these keys: frozen ones.

        Only where a rule or a regularizer says something of them; a later build may need that,
        also after a load, when paths have changed.
        """
        keys = set(keys)
        left = [v for v in self.model_variables if key_of(v) not in keys]
        table = self.resolve(left, key_of, {}, strict=False) if left else Table()
        nothing = Row("", ()) if self.weight_decay is None else Row("", (), l2=self.weight_decay)
        rows = (row for row in table.rows if dataclasses.replace(row, path="", shape=()) != nothing)
        return Table((*self.waiting.rows, *rows))

    def get_config(self) -> dict[str, Any]:
        """Return the rules as given, as JSON."""
        return {
            "weight_decay": None if self.weight_decay is None else decay_config(self.weight_decay),
            "weight_decays": {
                key: [decay_config(part) for part in given]
                if isinstance(given, tuple)
                else decay_config(given)
                for key, given in self.weight_decays.items()
            },
            "lr_multipliers": dict(self.lr_multipliers),
        }


def _take_over(
    source: Table,
    rows: list[Row | None],
    new: Sequence[tuple[str, tuple[int, ...]]],
    by_order: bool,
) -> None:
    """Fill the rows that are still open with those that the source has for their variables."""
    # A whole saved table is compared with the whole list; loose rows with what is open.
    places = [i for i, row in enumerate(rows) if by_order or row is None]
    if not source.rows or not places:
        return
    saved = [(row.path, row.shape) for row in source.rows]
    found = align(
        saved, [new[i] for i in places], what="the saved weight decay table", by_order=by_order
    )
    for i, j in zip(places, found, strict=True):
        if rows[i] is None and j is not None:
            path, shape = new[i]
            rows[i] = dataclasses.replace(source.rows[j], path=path, shape=shape)


def _decay(name: str, value: Any) -> Decay:
    if isinstance(value, LearningRateSchedule):
        return value
    return _checks.real(
        name,
        value,
        minimum=0.0,
        cure="It is the fraction of the weight removed per update at η = 1: a number or a "
        "`LearningRateSchedule`. Decays per variable go into `weight_decays`.",
    )


def _l2_or_pair(name: str, value: Any) -> Decay | Pair:
    if not isinstance(value, tuple | list):
        return _decay(name, value)
    if len(value) != 2:
        raise ValueError(
            f"`{name}` must be a number l2 or a pair (l1, l2). Received: {value!r}. Write (l1, 0) for l1."
        )
    l1, l2 = value
    return float(
        _checks.real(name, l1, minimum=0.0, cure="It is the pair's l1, a number.")
    ), _decay(name, l2)


def _mapping(name: str, value: Any, check: Callable[[str, Any], Any]) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`{name}` must be a dict from keys (parts of a variable's path) to numbers. "
            f"Received: {name}={value!r} of type {type(value).__name__}."
        )
    return {key: check(f"{name}[{key!r}]", entry) for key, entry in value.items()}
