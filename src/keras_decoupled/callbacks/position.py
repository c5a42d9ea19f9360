"""What the callbacks read from our optimizers. No other file in this folder looks inside one."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.core.settings import as_number as as_number
from keras_decoupled.core.update import read
from keras_decoupled.decay import arguments
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.paths import match
from keras_decoupled.schedule.rates import CosineRate


def optimizer_of(model: Any) -> Any:
    """Return the model's optimizer, without the `LossScaleOptimizer` of mixed_float16."""
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def is_ours(optimizer: Any) -> bool:
    """Tell whether an optimizer is of this package."""
    return isinstance(optimizer, Decoupled)


def moving_settings(optimizer: Any, names: Collection[str] = ()) -> dict[str, float]:
    """Return the settings that are scheduled or were set, and the settings with these names."""
    return optimizer._kd.update.moving(names)


def check_schedule(optimizer: Any) -> None:
    """Refuse an optimizer that has no schedule to restart."""
    if not is_ours(optimizer):
        rule = "needs an optimizer of keras_decoupled with a schedule"
        cure = "Compile the model with AdamW(CosineWarmRestarts(...)), say."
        refuse("RestartOnPlateau", Seen(f"optimizer={optimizer!r}"), rule, cure)
    optimizer._kd.timing.step_at(0)  # raises the error of restart(), which says what is missing


def check_cosine(optimizer: Any) -> None:
    """Refuse an optimizer that has no cosine cycles."""
    if not is_ours(optimizer) or not isinstance(optimizer._kd.timing.rate, CosineRate):
        rule = "needs an optimizer of keras_decoupled with cosine cycles"
        cure = (
            "Compile the model with AdamW(CosineWarmRestarts(...)), say, or with "
            "use_cosine_annealing=True and total_iterations."
        )
        refuse("SnapshotEnsemble", Seen(f"optimizer={optimizer!r}"), rule, cure)


def batches_seen(optimizer: Any) -> int:
    """Return how many batches the optimizer has had, also if gradients accumulate."""
    return int(as_number(optimizer._kd.clock.counter))


def batches_at_end(optimizer: Any) -> float:
    """Return `batches_seen` as it will be when the cycle is over; inf after the only cycle."""
    each = optimizer.gradient_accumulation_steps or 1
    return (batches_seen(optimizer) // each + _updates_left(optimizer)) * each


def cycle_is_over(optimizer: Any) -> bool:
    """Tell whether the next update begins a cycle, or comes after the only one."""
    return _updates_left(optimizer) == math.inf or int(optimizer.t_cur) == 0


def _updates_left(optimizer: Any) -> float:
    """Return the number of updates to the end of the cycle; inf after the only cycle."""
    schedule = optimizer._kd.timing.rate.schedule
    s = int(optimizer._kd.clock.counts(optimizer._kd.update.on)[1])
    first = max(s, schedule.warmup_steps)  # the warm-up is part of the first cycle
    if not schedule.autorestart and first - schedule.warmup_steps >= schedule.first_decay_steps:
        return math.inf
    return first - s + int(schedule.cycle_steps(first)) - int(schedule.position(first))


class Ahead(NamedTuple):
    """What the next update uses for one variable: numbers, and arrays of the variable's shape."""

    path: str
    theta: np.ndarray  # before the update; the value of the float32 copy if there is one
    reference: np.ndarray | None  # the value that the decay goes towards; None for 0
    decay: Decay  # only its kind is used: l2 and l1 below are the amounts
    l2: float  # h·l2, with h as in `Decay`: the fraction of the weight that is removed
    l1: float
    rate: float  # with the multiplier


def updates_seen(optimizer: Any) -> int:
    """Return how many updates the optimizer has made."""
    return batches_seen(optimizer) // (optimizer.gradient_accumulation_steps or 1)


def batches_until(optimizer: Any, update: int) -> int:
    """Return how many batches come before the first batch of this update."""
    return update * (optimizer.gradient_accumulation_steps or 1) - batches_seen(optimizer)


def knows(optimizer: Any, variables: Sequence[Any]) -> bool:
    """Tell whether an optimizer is built on all of these variables, or is not of this package."""
    built = set(map(id, optimizer._kd.registry.variables)) if is_ours(optimizer) else None
    return built is None or built.issuperset(map(id, variables))


def trained(optimizer: Any, keys: Sequence[Any] | None) -> list[Any]:
    """Return the records of the trainable variables that these keys hit; None hits all."""
    registry = optimizer._kd.registry
    records = [r for r in registry.built if r.variable.trainable]
    if keys is None:
        return records
    key_of = registry.rules.key_of
    labels = [record.row.path for record in registry.built]
    given = arguments.mapping("variables", dict.fromkeys(keys), lambda name, value: value)
    of_key = {record.key: record.row.path for record in registry.built}
    named = arguments.as_labels(given, of_key, key_of, "variables")
    hit, _ = match.decide(named, labels, argument="variables")
    chosen = {label for label, key in zip(labels, hit, strict=True) if key is not None}
    records = [record for record in records if record.row.path in chosen]
    if not records:
        rule, cure = "must hit a variable that is trained", "Leave it out to watch all of them."
        refuse("variables", Seen(f"{list(keys)!r}, which hit only frozen variables"), rule, cure)
    return records


def value_of(record: Any) -> np.ndarray:
    """Return the value of a variable or of its float32 copy. An update may overwrite the array."""
    return np.asarray(ops.convert_to_numpy(read(record.variable, record.master)))


def ahead(optimizer: Any, records: Sequence[Any]) -> list[Ahead]:
    """Return what the next update uses for these variables."""
    numbers = optimizer._kd.update.ahead()
    decays, schedules = (list(map(as_number, x)) for x in (numbers.decays, numbers.multipliers))
    rate, found = as_number(numbers.rate), []
    for record in records:
        row, place = record.row, record.schedule
        multiplier = row.multiplier if place is None else schedules[place]
        # Where the multiplier is 0, the weight stays as it is.
        l2, l1 = (0.0 if i is None or not multiplier else decays[i] for i in (record.l2, record.l1))
        reference = record.reference
        if reference is not None:
            reference = np.array(ops.convert_to_numpy(reference))
        theta = value_of(record).copy()
        found.append(Ahead(row.path, theta, reference, row.decay, l2, l1, rate * multiplier))
    return found
