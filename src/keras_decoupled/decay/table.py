"""The table of what each variable gets: its decay and its learning-rate multiplier."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.decay import amount_checks
from keras_decoupled.decay.amount_checks import Number
from keras_decoupled.decay.kinds import Decay

# In a file of 0.1 a row has these fields. Later ones may be missing: see `_row`.
_FIRST_FIELDS = ("path", "shape", "l1", "l2", "multiplier", "taken")


@dataclasses.dataclass(frozen=True)
class Row:
    """What one variable gets. The decay is the one before normalization."""

    path: str
    shape: tuple[int, ...]
    decay: Decay
    multiplier: float = 1.0
    uniform: bool = False  # no key and no regularizer decides: it gets `weight_decay`
    removed_penalty: tuple[float, float] | None = None  # of the loss, by `model=`
    part: str = ""  # of Muon: "muon" or "adam"
    rule: str = ""  # the key that decided, "model", "excluded" or "decay_vectors"

    def get_config(self) -> dict[str, Any]:
        """Return the row as JSON."""
        return {
            "path": self.path,
            "shape": list(self.shape),
            **self.decay.get_config(),
            "multiplier": self.multiplier,
            "uniform": self.uniform,
            "taken": self.removed_penalty and list(self.removed_penalty),
            **({"part": self.part} if self.part else {}),
            "rule": self.rule,
        }


class Amount(NamedTuple):
    """A number that an update scales by η^power·√(1/T); the number None is the optimizer's λ."""

    number: Number | None
    power: float


class Places(NamedTuple):
    """Where the numbers of a row stand in the table's `multipliers` and `amounts`."""

    rate: int
    l2: int | None
    l1: int | None


class Table:
    """The rows, and the distinct numbers in them, so that an update computes each number once.

    Args:
        rows: one row for each variable.
        settable: whether λ is an optimizer variable, which uniform rows then follow.
    """

    def __init__(self, rows: Sequence[Row] = (), settable: bool = False) -> None:
        self.rows = tuple(rows)
        multipliers, amounts = _Distinct(), _Distinct()

        def amount(number: Number | None, power: float) -> int | None:
            return None if number == 0 else amounts.place(Amount(number, power))

        self.places = tuple(
            Places(
                multipliers.place(row.multiplier),
                amount(None if settable and row.uniform else row.decay.l2, row.decay.eta_power),
                amount(row.decay.l1, row.decay.eta_power),
            )
            for row in self.rows
        )
        self.multipliers: tuple[float, ...] = tuple(multipliers.values)
        self.amounts: tuple[Amount, ...] = tuple(amounts.values)

    def get_config(self) -> list[dict[str, Any]]:
        """Return the rows as JSON."""
        return [row.get_config() for row in self.rows]


class _Distinct:
    """Values without repetition. Schedules are told apart by identity: they may have no hash."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Hashable, int] = {}

    def place(self, value: Any) -> int:
        """Return where the value stands, which is at the end if it is new."""
        key: Hashable = value
        if isinstance(value, Amount) and isinstance(value.number, LearningRateSchedule):
            key = ("schedule", id(value.number), value.power)
        place = self._places.setdefault(key, len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def read_rows(
    config: Any, read: Callable[[Any], Any], uniform: Decay | None, *, name: str
) -> list[Row]:
    """Read the rows of a config, which may hold anything.

    Args:
        config: the list of rows.
        read: reads a number or schedule.
        uniform: the uniform decay. A file of 0.1 does not say which rows follow it: those with
            the same decay.
        name: what to call the list in a message.
    """
    made: dict[str, Decay] = {}  # rows share their decays, so that a schedule is checked once
    rows = checks.listed(name, config)
    return [_row(f"{name}[{i}]", row, read, uniform, made) for i, row in enumerate(rows)]


def _row(
    name: str,
    config: Any,
    read: Callable[[Any], Any],
    uniform: Decay | None,
    made: dict[str, Decay],
) -> Row:
    path, shape, _, _, multiplier, penalty = checks.fields(name, config, _FIRST_FIELDS)
    fields = {f.name: config[f.name] for f in dataclasses.fields(Decay) if f.name in config}
    text = json.dumps(fields, sort_keys=True, default=repr)
    if text not in made:
        made[text] = Decay(
            amount_checks.checked_l2(f"{name}['l2']", read(fields.pop("l2"))),
            amount_checks.checked_l1(f"{name}['l1']", fields.pop("l1")),
            **fields,
        )
    if penalty is not None:
        parts = checks.listed(f"{name}['taken']", penalty, length=2)
        l1, l2 = (
            amount_checks.checked_l1(f"{name}['taken'][{i}]", part) for i, part in enumerate(parts)
        )
        penalty = (l1, l2)
    return Row(
        path=checks.text(f"{name}['path']", path),
        shape=checks.shape(f"{name}['shape']", shape),
        decay=made[text],
        multiplier=checks.real(
            f"{name}['multiplier']",
            multiplier,
            minimum=0.0,
            below=checks.FLOAT32,
            cure=checks.OF_A_FILE,
        ),
        uniform=checks.flag(
            f"{name}['uniform']",
            config.get("uniform", made[text] == uniform),
            cure=checks.OF_A_FILE,
        ),
        removed_penalty=penalty,
        part=checks.text(f"{name}['part']", config.get("part", "")),
        rule=checks.text(f"{name}['rule']", config.get("rule", "")),
    )
