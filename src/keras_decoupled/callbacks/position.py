"""What the callbacks read of an optimizer of this package. No other file here looks inside one."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import keras

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.core.settings import as_number as as_number
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
    """Return the settings that are scheduled or were set, and those of these names."""
    return optimizer._kd.update.moving(names)


def check_schedule(optimizer: Any) -> None:
    """Refuse an optimizer that has no schedule to restart."""
    if not is_ours(optimizer):
        rule = "needs an optimizer of keras_decoupled with a schedule"
        cure = "Compile the model with AdamW(CosineWarmRestarts(...)), say."
        refuse("RestartOnPlateau", Seen(f"optimizer={optimizer!r}"), rule, cure)
    optimizer._kd.timing.step_at(0)  # restart() asks this too; the error says what is missing


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
