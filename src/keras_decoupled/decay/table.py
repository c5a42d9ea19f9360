"""The table of what each variable gets: decays and learning-rate multiplier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks

from . import kinds
from .kinds import Decay, is_zero


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
        multipliers, decays = _Distinct(), _Distinct()
        indices = tuple(
            (
                multipliers.place(row.multiplier),
                None if row.l1 == 0 else decays.place(row.l1),
                None if is_zero(row.l2) else decays.place(row.l2),
            )
            for row in self.rows
        )
        object.__setattr__(self, "multipliers", tuple(multipliers.values))
        object.__setattr__(self, "decays", tuple(decays.values))
        object.__setattr__(self, "indices", indices)

    def get_config(self) -> list[dict[str, Any]]:
        """Return the rows as JSON."""
        return [
            dataclasses.asdict(dataclasses.replace(row, l2=0.0))
            | {
                "shape": list(row.shape),
                "l2": kinds.to_config(row.l2),
                "taken": row.taken and list(row.taken),
            }
            for row in self.rows
        ]

    @classmethod
    def from_config(cls, config: Any, read: Callable[[Any], Any], *, name: str) -> Table:
        """Read `get_config`'s list, of a file; `read` is a `_decays.reader`, `name` for messages."""
        rows = checks.listed(name, config)
        return cls(tuple(_row(f"{name}[{i}]", row, read) for i, row in enumerate(rows)))

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


class _Distinct:
    """Values without repetition; a schedule is one thing and no other."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        """Return where the value stands, which is at the end if it is new."""
        key = value if isinstance(value, float) else (id(value),)  # a schedule may have no hash
        place = self._places.setdefault(key, len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def _row(name: str, config: Any, read: Callable[[Any], Any]) -> Row:
    keys = [field.name for field in dataclasses.fields(Row)]
    path, shape, l1, l2, multiplier, taken = checks.fields(name, config, keys)
    if taken is not None:
        l1_taken, l2_taken = checks.listed(f"{name}['taken']", taken, length=2)
        taken = (
            kinds.checked_l1(f"{name}['taken'][0]", l1_taken),
            kinds.checked_l1(f"{name}['taken'][1]", l2_taken),
        )
    l2 = read(l2)  # which has looked at a schedule, once for all rows that share it
    return Row(
        path=checks.text(f"{name}['path']", path),
        shape=checks.shape(f"{name}['shape']", shape),
        l1=kinds.checked_l1(f"{name}['l1']", l1),
        l2=l2 if isinstance(l2, LearningRateSchedule) else kinds.checked(f"{name}['l2']", l2),
        multiplier=checks.real(
            f"{name}['multiplier']",
            multiplier,
            minimum=0.0,
            below=checks.FLOAT32,
            cure=checks.OF_A_FILE,
        ),
        taken=taken,
    )
