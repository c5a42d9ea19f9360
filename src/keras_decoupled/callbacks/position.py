"""Where a model's optimizer stands in its schedule."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_decoupled.core.scheduled import Scheduled


def optimizer_of(model: Any) -> Any:
    """Return the model's optimizer, out of the `LossScaleOptimizer` that mixed_float16 puts on."""
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def scheduled_optimizer_of(model: Any, callback: str) -> Scheduled:
    """Return the model's optimizer, if it is one of this package."""
    optimizer = optimizer_of(model)
    if not isinstance(optimizer, Scheduled):
        raise ValueError(
            f"`{callback}` needs an optimizer of keras_decoupled with a schedule. Received: "
            f"optimizer={optimizer!r}. Compile the model with "
            "keras_decoupled.AdamW(CosineWarmRestarts(...)), say."
        )
    return optimizer


def batches_seen(optimizer: Scheduled) -> int:
    """Return how often the optimizer was called, also where gradients accumulate."""
    return int(optimizer.update_counter)


def batches_at_end(optimizer: Scheduled) -> float:
    """Return how many it will have seen after its cycle's last update, infinity if there is none."""
    left = optimizer.updates_left()
    each = optimizer.gradient_accumulation_steps or 1
    return math.inf if left is None else (batches_seen(optimizer) // each + left) * each


def cycle_is_over(optimizer: Scheduled) -> bool:
    """Tell whether the next update is the first of a cycle, or follows the only one."""
    return optimizer.updates_left() is None or int(optimizer.t_cur) == 0
