"""All that is known of each variable: one record, through builds, saves and loads.

A variable's row comes from the first of these that has one: an earlier build, a saved file, the
user's rules. Once made, a row stays with its variable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import warnings
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.gradients import GradientSpec
from keras_decoupled.core.numbers import copied
from keras_decoupled.core.settings import Setting
from keras_decoupled.decay.kinds import Decay, Number
from keras_decoupled.decay.rows import Row
from keras_decoupled.decay.rules import Rules
from keras_decoupled.paths.align import align
from keras_decoupled.paths.match import labels, path_of
from keras_decoupled.saving.state import ACCUMULATOR as ACCUMULATOR
from keras_decoupled.saving.state import SCALARS

AVERAGE = "average"  # Keras' name of its moving averages
MASTER = "master"  # the float32 copy of a variable that has less precision
REFERENCE = "reference"  # the initial value, which some decays go towards


@dataclasses.dataclass(eq=False)
class Record:
    """All that the optimizer knows of one variable."""

    key: Any  # Keras' identity of the variable
    variable: Any
    row: Row | None = None  # None before the first build
    inherited: bool = False  # whether its first build followed a load or `from_keras`
    slots: dict[str, Any] = dataclasses.field(default_factory=dict)  # optimizer variables, by name
    # As of the last build:
    algorithm: Any = None  # the `Algorithm` that steps the variable
    own_names: tuple[str, ...] = ()  # the slots that its `step` takes, by name
    own: tuple[Any, ...] = ()
    master: Any = None  # the float32 copy, where the variable has less precision
    reference: Any = None  # the value that the decay goes towards, where that is not 0
    l2: int | None = None  # where its decays stand in `Registry.amounts`; None: it has none
    l1: int | None = None
    schedule: int | None = None  # its multiplier's place in `Registry.multipliers`; None: a number
    trainable: bool = True
    late: bool = False  # whether the variable had no value yet when its reference was made

    def __post_init__(self) -> None:
        """Find out what the variable's gradient has to be."""
        self.gradient = GradientSpec(self.variable)

    def first_value(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Return what an average or a reference is initialized to: the variable's value."""
        value = copied(self.variable, dtype)
        if tuple(value.shape) == tuple(shape):
            return value
        # On TensorFlow, a trace that builds has just made the variable, so it has no value yet. The
        # first update sets an average in any case. If the record is `late`, it sets the reference.
        self.late = True
        return ops.zeros(shape, dtype)

    def start(self, name: str) -> None:
        """Set the variable's average or reference to its value."""
        slot = self.slots[name]
        slot.assign(copied(self.variable, slot.dtype))


OUR_SLOTS = (AVERAGE, ACCUMULATOR, MASTER, REFERENCE)  # the first two are Keras'


def name_of_user(name: str, ours: Sequence[str] = OUR_SLOTS) -> str:
    """Return the name for a variable that a user's class makes: never one of our names."""
    return f"{name}#0" if name in ours else name


class Amount(NamedTuple):
    """A decay's number, which an update multiplies by η^power·√(1/T). None stands for λ."""

    number: Number | None
    power: float


class Registry:
    """The records, in the order of the last build.

    Args:
        rules: who gets which decay and multiplier, for variables that no file and no build knows.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.decay: Setting | None = None  # λ, if it was given as a number; uniform rows use it
        self._records: dict[Any, Record] = {}  # by key; of variables that left too
        self.builds = 0
        self.built: list[Record] = []  # of the last build, in its order
        self.variables: list[Any] = []  # the same variables
        self.amounts: tuple[Amount, ...] = ()  # the distinct decays of the last build
        self.multipliers: tuple[Any, ...] = ()  # the distinct schedules among its multipliers
        self.scalars: dict[str, Any] = {}  # our optimizer variables that all variables share
        self.adopted: dict[str, Any] = {}  # those of a stock class, by name
        # From a file: rows that no variable has claimed yet. Those of `table` are lined up by
        # order; those of `waiting` (of variables that were frozen, say) by their paths alone.
        self.table: tuple[Row, ...] = ()
        self.waiting: tuple[Row, ...] = ()
        self._requests: Counter[tuple[Any, str]] = Counter()  # for slots, in this build

    # Which variables there are.

    def record(self, variable: Any) -> Record:
        """Return the variable's record, a new one where there is none."""
        key = self.rules.key_of(variable)
        if key not in self._records:
            self._records[key] = Record(key, variable)
        return self._records[key]

    def find(self, variable: Any) -> Record | None:
        """Return the record of a variable that a build had, else None."""
        return self._records.get(self.rules.key_of(variable))

    def is_built_on(self, variables: Sequence[Any]) -> bool:
        """Tell whether these are the variables of the last build, in its order."""
        mine = self.variables
        return len(variables) == len(mine) and all(map(operator.is_, variables, mine))

    def check_values(self, values: Sequence[Any]) -> None:
        """Refuse values of other variables than those built on. Only count and shapes can tell."""
        same = len(values) == len(self.built) and all(
            tuple(value.shape) == tuple(variable.shape)
            for value, variable in zip(values, self.variables, strict=True)
        )
        frozen = [r for r in self.built if r.trainable and not r.variable.trainable]
        if frozen or not same:
            refuse(
                "stateless_apply",
                Seen(
                    f"{len(values)} trainable variables for {len(self.built)} built on, of which "
                    f"{len(frozen)} are frozen by now"
                ),
                "was given other variables than the optimizer was built on",
                "If layers were frozen or unfrozen, call "
                "`optimizer.build(model.trainable_variables)` after `model.compile`: variables "
                "that it knows keep their state. If the model comes from an .h5 file, save it as "
                ".keras: Keras builds the optimizer on nothing there.",
            )

    @property
    def left(self) -> list[Record]:
        """The records of variables that an earlier build had, and the last one had not."""
        built = set(map(id, self.built))
        return [r for r in self._records.values() if r.row is not None and id(r) not in built]

    # What each variable gets.

    def resolve(
        self, variables: Sequence[Any], strict: bool = True
    ) -> tuple[list[Row], tuple[Row, ...]]:
        """Return a row for each variable, and the saved rows that none of them claims.

        Nothing is changed. In a first build that no file preceded, a key that hits nothing is an
        error if `strict`.
        """
        names = labels([path_of(v) for v in variables])
        records = list(map(self.find, variables))
        rows = [
            dataclasses.replace(r.row, path=name) if r and r.row else None
            for r, name in zip(records, names, strict=True)
        ]
        new = [(name, tuple(v.shape)) for name, v in zip(names, variables, strict=True)]
        unclaimed = (
            *_claim(self.table, rows, new, by_order=True),
            *_claim(self.waiting, rows, new, by_order=False),
        )
        fits = self.rules.split.fits
        rest = [i for i, row in enumerate(rows) if row is None or not fits(row)]
        if rest:
            left = [r.row.path for r in self._records.values() if r.row]
            first = strict and not (left or self.table or self.waiting)
            made, _ = self.rules.read(rest, variables, names, left, first)
            for i, asked in zip(rest, made, strict=True):
                known = rows[i] or asked
                rows[i] = dataclasses.replace(known, part=asked.part, axes=asked.axes)
        return [row for row in rows if row is not None], unclaimed

    def build(
        self, variables: Sequence[Any], rows: Sequence[Row], unclaimed: Sequence[Row]
    ) -> None:
        """Save the rows that `resolve` returned, for a build on these variables."""
        amounts, multipliers = _Distinct(), _Distinct()
        self.builds += 1
        self.built = list(map(self.record, variables))
        self.variables = list(variables)
        for record, variable, row in zip(self.built, variables, rows, strict=True):
            power = row.decay.eta_power
            l2 = None if self.decay and row.uniform else row.decay.l2
            before = self.table or self.waiting or self.rules.before
            record.inherited |= record.row is None and bool(before)
            record.variable, record.row = variable, row
            record.l2, record.l1 = amounts.place(l2, power), amounts.place(row.decay.l1, power)
            scheduled = isinstance(row.multiplier, LearningRateSchedule)
            record.schedule = multipliers.place(row.multiplier, 0) if scheduled else None
            record.trainable = bool(variable.trainable)
        self.amounts = tuple(amounts.values)
        self.multipliers = tuple(amount.number for amount in multipliers.values)
        if variables:
            self.table, self.waiting = (), tuple(unclaimed)

    def uniform_now(self) -> Decay | None:
        """Return the uniform decay with λ as it is now."""
        uniform = self.rules.weight_decay
        if uniform is None or self.decay is None:
            return uniform
        now = self.decay.now()
        return uniform if now == uniform.l2 else uniform.with_amounts(now)

    def rows_now(self, rows: Sequence[Row] | None = None) -> list[Row]:
        """Return these rows, or those of the last build, with λ as it is now."""
        uniform = self.uniform_now()
        if rows is None:
            rows = [r.row for r in self.built if r.row]
        if uniform is None:
            return list(rows)
        return [
            dataclasses.replace(row, decay=uniform) if row.uniform and row.decay != uniform else row
            for row in rows
        ]

    def set_uniform(self, value: Any) -> None:
        """Set λ, of the rows that no key and no regularizer decides."""
        if self.decay is None:
            made_with = (
                f"{value}, for an optimizer made with weight_decay={self.rules.weight_decay}"
            )
            rule = "can be set only where the optimizer was made with a number"
            cure = "Make it with weight_decay=0, say, and set it then."
            refuse("weight_decay", Seen(made_with), rule, cure)
        self.decay.assign(self.decay.checked(value))

    def foreseen(
        self, variables: Sequence[Any]
    ) -> tuple[list[Row], list[tuple[str, str]], list[str]]:
        """Return what a build on these would give: rows, overridden keys, and warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows, _ = self.resolve(variables)
            names = labels([path_of(v) for v in variables])
            overridden: list[tuple[str, str]] = []
            # A key that two builds accepted one by one may be refused for all variables at once.
            with contextlib.suppress(ValueError):
                _, overridden = self.rules.read(range(len(names)), variables, names, first=False)
        return self.rows_now(rows), overridden, [str(warning.message) for warning in caught]

    # Slots.

    def line_up(self, slot_names: Sequence[str]) -> list[Any]:
        """Give each record its own slots; return all slots in their order.

        The order depends on the last build's variables alone: by name, then by variable. Slots of
        variables that left come last.
        """
        for record in self.built:
            record.own = tuple(map(record.slots.get, record.own_names))
            record.master, record.reference = map(record.slots.get, (MASTER, REFERENCE))
        records = list(self._records.values())
        fixed = {AVERAGE, ACCUMULATOR, *slot_names, MASTER, REFERENCE}
        others = sorted({name for r in records for name in r.slots} - fixed)
        names = [AVERAGE, ACCUMULATOR, *slot_names, *others, MASTER, REFERENCE]
        built = set(map(id, self.built))
        left = [r for r in records if id(r) not in built]
        found = [r.slots.get(name) for some in (self.built, left) for name in names for r in some]
        return [slot for slot in found if slot is not None]

    def begin_requests(self) -> None:
        """Count the requests for slots anew: a build begins."""
        self._requests.clear()

    def name_of_request(self, record: Record, name: str) -> str:
        """Return the name of a requested slot: "velocity#1" if it is the second "velocity"."""
        key = record.key, name
        place = self._requests[key]
        self._requests[key] += 1
        return f"{name}#{place}" if place else name

    def known_ids(self) -> set[int]:
        """Return the ids of all optimizer variables that are known here."""
        slots = (slot for r in self._records.values() for slot in r.slots.values())
        return set(map(id, (*slots, *self.scalars.values(), *self.adopted.values())))

    # Files.

    def layout(
        self, optimizer_variables: Sequence[Any], settings: Mapping[str, Setting]
    ) -> dict[str, Any]:
        """Return what the optimizer's variables are.

        `built` and `left` are [label, shape] of the model's variables; `variables` is
        [name, label or None] of each optimizer variable.
        """
        records = self._labeled()
        entries = [[label, list(r.variable.shape)] for label, r in records.items()]
        known: dict[int, list[Any]] = {
            id(slot): [name, label]
            for label, r in records.items()
            for name, slot in r.slots.items()
        }
        moving = {n: s.variable for n, s in settings.items() if s.variable is not None}
        scalars = self.scalars | self.adopted | moving
        known |= {id(scalar): [name, None] for name, scalar in scalars.items()}
        taken = Counter({*SCALARS, *scalars})
        variables = []
        for v in optimizer_variables:
            if id(v) not in known:  # a user's class made it by `add_variable`
                taken[v.name] += 1
                place = taken[v.name] - 1
                known[id(v)] = [f"{v.name}#{place}" if place else v.name, None]
            variables.append(known[id(v)])
        count = len(self.built)
        return {"built": entries[:count], "left": entries[count:], "variables": variables}

    def begin_anew(self, slots: Sequence[tuple[Any, str, Any]]) -> None:
        """Set the averages and references among these slots to their variables: the file has none.

        `slots` are (optimizer variable, name, label in `layout`).
        """
        starting = [(label, name) for _, name, label in slots if name in (AVERAGE, REFERENCE)]
        records = self._labeled() if starting else {}
        for label, name in starting:
            records[label].start(name)

    def _labeled(self) -> dict[str, Record]:
        records = list(dict.fromkeys([*self.built, *self._records.values()]))
        return dict(zip(labels([path_of(r.variable) for r in records]), records, strict=True))

    def get_config(self) -> dict[str, Any]:
        """Return the rows of all variables, and the exclusions, as JSON."""
        rules, key_of = self.rules, self.rules.key_of
        rows, waiting = [r.row for r in self.built if r.row], self.waiting
        built = {r.key for r in self.built}
        if not self.built:  # not built, or on nothing: all layers frozen
            rows, trainable = list(self.table), rules.model[: rules.trainable]
            if rules.model:
                rows, waiting = self.resolve(trainable)
            built = set(map(key_of, trainable))
        frozen = [v for v in rules.model if key_of(v) not in built]
        of_frozen = set(map(key_of, frozen))
        of_model, _ = self.resolve(frozen, strict=False)
        uniform = (rules.weight_decay or Decay(), 1.0, True, None)
        # Rows of other variables, if a load could not make them from the rules again.
        elsewhere = [
            *waiting,
            *(
                row
                for row in of_model
                if (row.decay, row.multiplier, row.uniform, row.removed_penalty) != uniform
            ),
            *(r.row for r in self.left if r.row and r.inherited and r.key not in of_frozen),
        ]
        table = self.rows_now(rows)
        left = {r.row.path for r in self._records.values() if r.row}
        exclusions = rules.exclusions.get_config()
        more = {
            "waiting": [row.get_config() for row in elsewhere],
            "paths": sorted((rules.paths | left) - {row.path for row in table}),
            "exclusions": exclusions if any(exclusions.values()) else None,
        }
        config = {"table": [row.get_config() for row in table]}
        return config | {name: part for name, part in more.items() if part}


class _Distinct:
    """Amounts without repetition. Schedules are told apart by identity: they may have no hash."""

    def __init__(self) -> None:
        self.values: list[Amount] = []
        self._places: dict[Hashable, int] = {}

    def place(self, number: Number | None, power: float) -> int | None:
        """Return where the amount stands, at the end if it is new; None for 0."""
        if isinstance(number, float) and number == 0:
            return None
        is_schedule = isinstance(number, LearningRateSchedule)
        key = ("schedule", id(number), power) if is_schedule else (number, power)
        place = self._places.setdefault(key, len(self.values))
        if place == len(self.values):
            self.values.append(Amount(number, power))
        return place


def _claim(
    source: Sequence[Row],
    rows: list[Row | None],
    new: Sequence[tuple[str, tuple[int, ...]]],
    by_order: bool,
) -> list[Row]:
    """Fill each missing row with the source's row of its variable; return the unused ones."""
    places = [i for i, row in enumerate(rows) if row is None]
    saved = [(row.path, row.shape) for row in source]
    what = "the saved weight decay table"
    found = align(saved, [new[i] for i in places], what=what, by_order=by_order)
    for i, j in zip(places, found, strict=True):
        if j is not None:
            path, shape = new[i]
            rows[i] = dataclasses.replace(source[j], path=path, shape=shape)
    claimed = set(found)
    return [row for j, row in enumerate(source) if j not in claimed]
