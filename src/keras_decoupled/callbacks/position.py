"""Where a model's optimizer stands in its schedule: no other file here looks inside one."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.schedule.rates import CosineRate


def optimizer_of(model: Any) -> Any:
    """Return the model's optimizer, out of the `LossScaleOptimizer` that mixed_float16 puts on."""
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def check_schedule(model: Any) -> None:
    """Refuse an optimizer that has no schedule to restart."""
    optimizer = optimizer_of(model)
    if not isinstance(optimizer, Decoupled):
        raise ValueError(
            "`RestartOnPlateau` needs an optimizer of keras_decoupled with a schedule. Received: "
            f"optimizer={optimizer!r}. Compile the model with AdamW(CosineWarmRestarts(...)), say."
        )
    optimizer._kd.clock.timing.step_at(0)  # as restart() asks: it says what is missing


def check_cosine(model: Any) -> None:
    """Refuse an optimizer that has no cosine cycles."""
    optimizer = optimizer_of(model)
    rate = optimizer._kd.clock.timing.rate if isinstance(optimizer, Decoupled) else None
    if not isinstance(rate, CosineRate):
        raise ValueError(
            "`SnapshotEnsemble` needs an optimizer of keras_decoupled with cosine cycles. Received: "
            f"optimizer={optimizer!r}. Compile the model with AdamW(CosineWarmRestarts(...)), say, "
            "or with use_cosine_annealing=True and total_iterations."
        )


def batches_seen(optimizer: Decoupled) -> int:
    """Return how often the optimizer was called, also where gradients accumulate."""
    return int(optimizer._kd.clock.counter)


def batches_at_end(optimizer: Decoupled) -> float:
    """Return what `batches_seen` will be after the cycle's last update, infinity after the only cycle."""
    each = optimizer.gradient_accumulation_steps or 1
    return (batches_seen(optimizer) // each + _updates_left(optimizer)) * each


def cycle_is_over(optimizer: Decoupled) -> bool:
    """Tell whether the next update is the first of a cycle, or follows the only one."""
    return _updates_left(optimizer) == math.inf or int(optimizer.t_cur) == 0


def _updates_left(optimizer: Decoupled) -> float:
    """Return the number of updates to the end of the cycle, infinity after the only one."""
    schedule = optimizer._kd.clock.timing.rate.schedule
    s = int(optimizer._kd.clock.counts(optimizer._kd.update.on)[1])
    first = max(s, schedule.warmup_steps)  # a warm-up is a part of the first cycle
    if not schedule.autorestart and first - schedule.warmup_steps >= schedule.first_decay_steps:
        return math.inf
    return first - s + int(schedule.cycle_steps(first)) - int(schedule.position(first))
