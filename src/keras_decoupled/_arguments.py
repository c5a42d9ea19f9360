"""The keyword arguments that every optimizer of the package takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import keras

_KERAS_ARGUMENTS = {
    "name",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
}
_RENAMED = {
    "lr": "It is `learning_rate` in Keras 3.",
    "decay": "Keras 3 has no `decay`: pass a `LearningRateSchedule` as `learning_rate`.",
    "batch_size": "It is not needed: `total_iterations` is the number of updates.",
    "init_lr": "Pass `base_learning_rate`.",
}


class Shared(TypedDict, total=False):
    """The keyword arguments beside `weight_decay` that every optimizer takes; see `Decoupled`."""

    weight_decays: Mapping[str, Any] | None
    lr_multipliers: Mapping[str, float] | None
    model: keras.Model | None
    zero_penalties: bool
    total_iterations: int | None
    total_iterations_wd: int | None
    normalize_weight_decay: bool | None
    use_cosine_annealing: bool
    autorestart: bool | None
    eta_min: float
    eta_max: float
    t_cur: int
    base_learning_rate: float | None
    init_verbose: bool
    name: str | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None


def refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    for name in kwargs.keys() - _KERAS_ARGUMENTS:
        cure = _RENAMED.get(name, "See help() of the class for its arguments.")
        raise ValueError(
            f"Argument not recognized: `{name}`. Received: {name}={kwargs[name]!r}. {cure}"
        )
