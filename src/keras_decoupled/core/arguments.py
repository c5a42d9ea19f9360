"""The keyword arguments that every optimizer of the package takes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import keras

from keras_decoupled import checks

_norm = functools.partial(checks.real, minimum=0.0, cure="None clips nothing.")
_count = functools.partial(checks.integer, minimum=1, cure="None leaves it out.")
_KERAS_ARGUMENTS: dict[str, Callable[[str, Any], Any]] = {
    "name": functools.partial(checks.text, cure="None takes the class's."),
    "clipnorm": _norm,
    "clipvalue": _norm,
    "global_clipnorm": _norm,
    "use_ema": functools.partial(checks.flag, cure="True keeps moving averages of the weights."),
    "ema_momentum": functools.partial(checks.real, cure="0.99 is Keras' default."),
    "ema_overwrite_frequency": _count,
    "loss_scale_factor": functools.partial(
        checks.real, minimum=1e-30, cure="It is what the loss was multiplied by; None is 1."
    ),
    "gradient_accumulation_steps": _count,
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


def checked_keras_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that Keras takes, of the types it expects; their ranges it checks itself."""
    for name in kwargs.keys() - _KERAS_ARGUMENTS.keys():
        cure = _RENAMED.get(name, "See help() of the class for its arguments.")
        raise ValueError(
            f"Argument not recognized: `{name}`. Received: {name}={kwargs[name]!r}. {cure}"
        )
    return {
        name: None if value is None else _KERAS_ARGUMENTS[name](name, value)
        for name, value in kwargs.items()
    }
