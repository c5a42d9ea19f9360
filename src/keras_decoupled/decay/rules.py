"""The table that the rules come to: through builds, saves and loads.

A variable's row comes from the first of these that has one: an earlier build, a saved file, the
user's rules together with the model's regularizers. Once made, a row stays with its variable.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_decoupled.decay import amount_checks, regularizers
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.regularizers import Penalty
from keras_decoupled.decay.table import Row
from keras_decoupled.decay.user_rules import UserRules
from keras_decoupled.paths import match
from keras_decoupled.paths.align import align


class Rules:
    """Who gets which decay and multiplier: as given, from a model, from a file, as built."""

    def __init__(
        self,
        weight_decay: Any,
        weight_decays: Any,
        lr_multipliers: Any,
        key_of: Callable[[Any], Any],
        part_of: Callable[[Any], str] = lambda _: "",
        decay_vectors: bool = True,
    ) -> None:
        self.given = UserRules(
            weight_decay, weight_decays, lr_multipliers, decay_vectors, key_of, part_of
        )
        self._key_of = key_of  # Keras' identity of a variable
        # From `model=`: its variables (trainable ones first), and their regularizers' decays.
        self._model: tuple[Any, ...] = ()
        self._trainable = 0
        # The row of each variable that was built on, also of those that left (frozen by now, say).
        self._known: dict[Any, Row] = {}
        self._inherited: set[Any] = set()  # those of them that came in when a file's rows did
        # From a file: rows that no variable has claimed yet. Those of the saved table can be
        # lined up by order; loose ones (of variables that were frozen, say) only by their paths.
        self.saved: tuple[Row, ...] = ()
        self.waiting: tuple[Row, ...] = ()
        # Paths of variables that are not built on now: of a file, or of the model of `no_decay`.
        self._elsewhere = {
            path
            for given in (weight_decays, lr_multipliers)
            for path in getattr(given, "paths", ())
        }

    # From a model.

    def extract(self, model: keras.Model, remove: bool, normalization: float) -> None:
        """Read a model's regularizers, and check every key against the model's variables.

        Frozen variables are read too: their keys and decays wait for a later build.
        `normalization` is the √(1/T) of the first cycle.
        """
        regularizers.get_weight_decays(model)  # checks the model, warns of other regularizers
        variables = (*model.trainable_variables, *model.non_trainable_variables)
        names = match.labels([v.path for v in variables])
        with_key = self.given.check_keys(variables, names)
        penalties = [regularizers.read_penalty(v) or (0.0, 0.0) for v in variables]
        self._trainable = len(model.trainable_variables)
        self._model = variables
        found = {
            self._key_of(v): pair for v, pair in zip(variables, penalties, strict=True) if any(pair)
        }
        self.given.of_model = {key: Decay(l2, l1) for key, (l1, l2) in found.items()}
        self.given.removed = found if remove else {}
        _warn_of_strong(
            [
                (name, pair)
                for name, pair, has_key in zip(names, penalties, with_key, strict=True)
                if not has_key
            ],
            normalization,
        )

    # The table.

    def resolve(
        self, variables: Sequence[Any], strict: bool = True
    ) -> tuple[list[Row], tuple[Row, ...]]:
        """Return a row for each variable, and the saved rows that none of them claims.

        In a first build that no file preceded, a key that hits nothing is an error.
        """
        names = match.labels([match.path_of(v) for v in variables])
        known = [self._known.get(self._key_of(v)) for v in variables]
        rows = [
            row and dataclasses.replace(row, path=name)
            for row, name in zip(known, names, strict=True)
        ]
        new = [(name, tuple(v.shape)) for name, v in zip(names, variables, strict=True)]
        unclaimed = (
            *_claim(self.saved, rows, new, by_order=True),
            *_claim(self.waiting, rows, new, by_order=False),
        )
        rest = [i for i, row in enumerate(rows) if row is None]
        if rest:
            first = strict and not (self._known or self.saved or self.waiting)
            self._read_rules(rest, rows, variables, names, first)
        return [row for row in rows if row is not None], unclaimed

    def remember(
        self, built: Sequence[Any], rows: Iterable[Row], unclaimed: tuple[Row, ...]
    ) -> None:
        """Take note of a build on what `resolve` returned; `built` has the variables' keys."""
        if self.saved or self.waiting:
            self._inherited.update(key for key in built if key not in self._known)
        self._known.update(zip(built, rows, strict=True))
        if built:
            self.saved, self.waiting = (), unclaimed

    def _read_rules(
        self,
        rest: Sequence[int],
        rows: list[Row | None],
        variables: Sequence[Any],
        names: Sequence[str],
        first: bool,
    ) -> None:
        """Fill in the rows of these variables from the rules."""
        known = set(map(self._key_of, variables))
        if self.given.of_model and not any(self._key_of(v) in known for v in self._model):
            raise ValueError(
                "The optimizer took its decays from `model`, and is built on variables of which "
                f"none is that model's. Received: {len(names)} variables. Make it with the model "
                "that it trains."
            )
        if (
            first
            and self._elsewhere.isdisjoint(names)
            and self._elsewhere
            and not self.given.from_file
        ):
            raise ValueError(
                "`no_decay` and the layerwise rules must be made from the model that is trained: "
                f"they know its variables by path. Received: rules of a model with "
                f"{match.listed(sorted(self._elsewhere))}, for {match.listed(names)}. Make them "
                "from this model."
            )
        # A key that names a layer means that layer wherever it is, and no part of another path.
        elsewhere = match.labels([match.path_of(v) for v in self._model])
        exclusions = self.given.exclusions
        exclusions.check(names)
        if first:
            exclusions.warn_of_missed([*names, *elsewhere])
        others = {*names, *elsewhere, *self._paths_that_left(names)} - {names[i] for i in rest}
        made = self.given.rows(rest, variables, names, sorted(others), strict=first)
        for i, row in zip(rest, made, strict=True):
            rows[i] = row

    def _paths_that_left(self, names: Sequence[str]) -> set[str]:
        return (self._elsewhere | {row.path for row in self._known.values()}) - set(names)

    # Config.

    def resolved_config(self, built: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """Return what the rules came to; `built` has the keys of the last build, `rows` its rows."""
        waiting = self.waiting
        if not built:  # not built, or on nothing: all layers frozen
            rows = self.saved
            if self._model:
                built = [self._key_of(v) for v in self._model[: self._trainable]]
                rows, waiting = self.resolve(self._model[: self._trainable])
        waiting = (*waiting, *self._rows_elsewhere(set(built)))
        return {
            "exclusions": self.given.exclusions.get_config(),
            "table": [row.get_config() for row in rows],
            "waiting": [row.get_config() for row in waiting],
            "paths": sorted(self._paths_that_left([row.path for row in rows])),
        }

    def _rows_elsewhere(self, built: set[Any]) -> list[Row]:
        """Return the rows, of variables not built on now, that the rules alone would not give.

        A later build needs them, also after a load, when paths have changed.
        """
        others = {self._key_of(v): v for v in self._model if self._key_of(v) not in built}
        of_model, _ = self.resolve(list(others.values()), strict=False)
        uniform = Row("", (), decay=self.given.weight_decay or Decay(), uniform=True)
        left = self._inherited - built - others.keys()
        return [
            *(
                row
                for row in of_model
                if dataclasses.replace(row, path="", shape=(), part="", rule="") != uniform
            ),
            *(row for key, row in self._known.items() if key in left),
        ]

    def restore(
        self,
        exclusions: Exclusions,
        saved: Sequence[Row],
        waiting: Sequence[Row],
        paths: Iterable[str],
    ) -> None:
        """Take over what a saved config says that the rules came to."""
        self.given.exclusions, self.given.from_file = exclusions, True
        self.saved, self.waiting = tuple(saved), tuple(waiting)
        self._elsewhere |= set(paths)


def _claim(
    source: Sequence[Row],
    rows: list[Row | None],
    new: Sequence[tuple[str, tuple[int, ...]]],
    by_order: bool,
) -> list[Row]:
    """Fill the open rows with the source's rows of their variables; return those left over."""
    places = [i for i, row in enumerate(rows) if row is None]
    saved = [(row.path, row.shape) for row in source]
    found = align(
        saved, [new[i] for i in places], what="the saved weight decay table", by_order=by_order
    )
    for i, j in zip(places, found, strict=True):
        if j is not None:
            path, shape = new[i]
            rows[i] = dataclasses.replace(source[j], path=path, shape=shape)
    claimed = set(found)
    return [row for j, row in enumerate(source) if j not in claimed]


def _warn_of_strong(extracted: Sequence[tuple[str, Penalty]], normalization: float) -> None:
    name, (l1, l2) = max(extracted, key=lambda e: max(e[1]), default=("", (0.0, 0.0)))
    strongest = max(l1, l2) * normalization
    if strongest <= 1e-3:
        return
    if l2 < l1:
        meaning = f"the weight moves {strongest:g} towards 0 at every update"
    elif amount_checks.half_life(strongest) > 2:
        meaning = f"the weight halves every {amount_checks.half_life(strongest):.0f} updates"
    else:
        meaning = "most of the weight is gone at once"
    warnings.warn(
        f"The regularizer of {name} becomes a weight decay of {strongest:g} per update (at η = 1): "
        f"{meaning} when no gradient acts. A penalty's factor is multiplied by the learning rate, "
        "a decoupled decay is not. If that is not meant, name the variable in `weight_decays` "
        "(learning rate × factor is a start), or give `total_iterations`.",
        UserWarning,
        stacklevel=5,
    )
