"""The table of what each variable gets: decays and learning-rate multiplier."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
from keras.optimizers.schedules import LearningRateSchedule

Decay: TypeAlias = float | LearningRateSchedule
Pair: TypeAlias = tuple[float, Decay]


@dataclasses.dataclass(frozen=True)
class Row:
    """What one variable gets: (l1, l2) before normalization, and its multiplier."""

    path: str
    shape: tuple[int, ...]
    l1: float = 0.0
    l2: Decay = 0.0
    multiplier: float = 1.0
    taken: tuple[float, float] | None = None  # the penalty that was taken out of the loss

    @property
    def decays(self) -> bool:
        """Whether this variable is decayed at all."""
        return self.l1 != 0 or not is_zero(self.l2)


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows, and the distinct numbers in them, so that a step scales each number once."""

    rows: tuple[Row, ...] = ()
    multipliers: tuple[float, ...] = dataclasses.field(init=False)
    decays: tuple[Decay, ...] = dataclasses.field(init=False)
    # Per row: where its multiplier, l1 and l2 stand in those two; None where there is no decay.
    indices: tuple[tuple[int, int | None, int | None], ...] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", _distinct(row.multiplier for row in self.rows))
        found = _distinct(decay for row in self.rows for decay in (row.l1, row.l2))
        object.__setattr__(self, "decays", tuple(d for d in found if not is_zero(d)))
        indices = tuple(
            (
                self.multipliers.index(row.multiplier),
                None if row.l1 == 0 else self.decays.index(row.l1),
                None if is_zero(row.l2) else self.decays.index(row.l2),
            )
            for row in self.rows
        )
        object.__setattr__(self, "indices", indices)

    def get_config(self) -> list[dict[str, Any]]:
        """Return the rows as JSON."""
        return [
            dataclasses.asdict(dataclasses.replace(row, l2=0.0))
            | {
                "shape": list(row.shape),
                "l2": decay_config(row.l2),
                "taken": row.taken and list(row.taken),
            }
            for row in self.rows
        ]

    @classmethod
    def from_config(cls, config: Sequence[Mapping[str, Any]], read: Callable[[Any], Any]) -> Table:
        """Read `get_config`'s list; `read` turns a saved decay into a number or a schedule."""
        return cls(
            tuple(
                Row(
                    path=row["path"],
                    shape=tuple(row["shape"]),
                    l1=row["l1"],
                    l2=read(row["l2"]),
                    multiplier=row["multiplier"],
                    taken=row["taken"] and tuple(row["taken"]),
                )
                for row in config
            )
        )

    def __str__(self) -> str:
        """Return the table as `init_verbose` prints it."""
        head = ("variable", "shape", "l1", "l2", "lr multiplier")
        cells = [
            (
                row.path,
                str(row.shape),
                f"{row.l1:g}",
                f"{row.l2:g}" if isinstance(row.l2, float) else type(row.l2).__name__,
                f"{row.multiplier:g}",
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (head, *cells)
        )


def path_of(variable: Any) -> str:
    """Return a variable's path; a raw `tf.Variable` has a name only."""
    return getattr(variable, "path", None) or str(variable.name).removesuffix(":0")


def decay_config(decay: Decay) -> Any:
    """Return a decay as JSON."""
    return decay if isinstance(decay, float) else keras.saving.serialize_keras_object(decay)


def decay_reader(custom_objects: Any) -> Callable[[Any], Any]:
    """Return the reverse of `decay_config`; equal schedules come back as one object.

    So a schedule that a hundred variables share is evaluated once per step after a load, too.
    """
    read: dict[str, Any] = {}

    def reader(saved: Any) -> Any:
        if not isinstance(saved, dict):
            return saved
        text = json.dumps(saved, sort_keys=True)
        if text not in read:
            read[text] = keras.saving.deserialize_keras_object(saved, custom_objects)
        return read[text]

    return reader


def is_zero(decay: Decay) -> bool:
    return isinstance(decay, float) and decay == 0


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return tuple(found)


def half_life(decay: float) -> float:
    """Return the number of updates at η = 1 in which a weight loses half of its value."""
    return math.log(0.5) / math.log1p(-decay) if decay < 1 else 0.0
