"""One record per variable: what it gets, and the optimizer variables that belong to it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from keras_decoupled.core.gradients import GradientSpec
from keras_decoupled.decay.table import Places, Row, Table
from keras_decoupled.paths.match import labels, path_of
from keras_decoupled.saving.state import ACCUMULATOR

AVERAGE = "average"  # Keras' name of its moving averages
MASTER = "master"  # the float32 copy of a variable that has less precision
REFERENCE = "reference"  # the initial value, which some decays go towards


def name_of_user(name: str) -> str:
    """Return the name under which a slot is known that a user's class makes: none of ours."""
    return f"{name}#0" if name in (AVERAGE, MASTER, REFERENCE) else name


@dataclasses.dataclass
class Entry:
    """A variable of the last build."""

    key: Any
    variable: Any
    row: Row
    places: Places
    trainable: bool  # at the build
    gradient: GradientSpec
    slots: tuple[Any, ...]
    master: Any
    reference: Any


class Slots:
    """The optimizer variables of each variable, by the variable's key and the slot's name.

    One plain object, so that Keras' tracking of lists and dicts does not copy what is in it.
    Variables that left (frozen by now, say) keep their slots: they may come back.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._slots: dict[tuple[Any, str], Any] = {}
        self._requests: Counter[tuple[Any, str]] = Counter()  # in this build
        self.scalars: dict[str, Any] = {}  # a stock class's own variables that are of no variable
        self._owners: dict[Any, Any] = {}  # by key, which may be an id: so hold on to the variable

    @property
    def keys(self) -> list[Any]:
        """The keys of the last build's variables."""
        return [entry.key for entry in self.entries]

    def begin_build(self) -> None:
        """Count the requests for slots anew."""
        self._requests.clear()

    def name_of_request(self, key: Any, name: str) -> str:
        """Return the name of the slot that is asked for: of two "velocity", "velocity#1" is the second."""
        place = self._requests[key, name]
        self._requests[key, name] += 1
        return f"{name}#{place}" if place else name

    def get(self, key: Any, name: str) -> Any:
        """Return a slot that was made already, or None."""
        return self._slots.get((key, name))

    def ids(self) -> set[int]:
        """Return the ids of all that is known here."""
        return set(map(id, (*self._slots.values(), *self.scalars.values())))

    def add(self, variable: Any, key: Any, name: str, slot: Any) -> None:
        """Remember a slot."""
        self._slots[key, name] = slot
        self._owners[key] = variable

    def line_up(
        self, keys: Sequence[Any], variables: Sequence[Any], table: Table, names: Sequence[str]
    ) -> None:
        """Make the entries of a build; `names` are those of the optimizer's own slots."""
        self._owners.update(zip(keys, variables, strict=True))
        self.entries = [
            Entry(
                key=key,
                variable=variable,
                row=row,
                places=places,
                trainable=bool(variable.trainable),
                gradient=GradientSpec(variable),
                slots=tuple(self.get(key, name) for name in names),
                master=self.get(key, MASTER),
                reference=self.get(key, REFERENCE),
            )
            for key, variable, row, places in zip(
                keys, variables, table.rows, table.places, strict=True
            )
        ]

    def note_what_is_frozen(self) -> None:
        """Note which variables are frozen where a build is asked for and nothing new is there."""
        for entry in self.entries:
            entry.trainable = bool(entry.variable.trainable)

    def in_order(self, names: Sequence[str]) -> list[Any]:
        """Return all slots in an order that depends on the last build's variables alone.

        By name, then by variable; those of departed variables come last. `names` are those of the
        optimizer's own slots.
        """
        fixed = {AVERAGE, ACCUMULATOR, *names, MASTER, REFERENCE}
        others = {name for _, name in self._slots} - fixed
        names = [AVERAGE, ACCUMULATOR, *names, *sorted(others), MASTER, REFERENCE]
        built = dict.fromkeys(self.keys)
        left = [key for key in self._owners if key not in built]
        found = [
            self._slots.get((key, name)) for keys in (built, left) for name in names for key in keys
        ]
        return [slot for slot in found if slot is not None]

    def by_label(self) -> dict[str, Any]:
        """Return the model's variables by their labels in `layout`, those that left too."""
        return {label: self._owners[key] for key, label in self._labels().items()}

    def _labels(self) -> dict[Any, str]:
        keys = [*dict.fromkeys([*self.keys, *self._owners])]  # those of the last build first
        return dict(zip(keys, labels([path_of(self._owners[key]) for key in keys]), strict=True))

    def layout(self, variables: Sequence[Any]) -> dict[str, Any]:
        """Return what the optimizer's variables are.

        `built` and `left` are [label, shape] of the model's variables, in the order of the last
        build; `variables` is [name, label or None] of each optimizer variable.
        """
        built = self.keys
        label_of = self._labels()
        entries = [[name, list(self._owners[key].shape)] for key, name in label_of.items()]
        slots: dict[int, list[Any]] = {
            id(slot): [name, label_of[key]] for (key, name), slot in self._slots.items()
        }
        slots |= {id(scalar): [name, None] for name, scalar in self.scalars.items()}
        return {
            "built": entries[: len(built)],
            "left": entries[len(built) :],
            "variables": [slots.get(id(v), [v.name, None]) for v in variables],
        }
