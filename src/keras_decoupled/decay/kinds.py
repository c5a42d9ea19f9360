"""A weight decay of one variable: a number or a schedule of the update count."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks

Decay: TypeAlias = float | LearningRateSchedule
Pair: TypeAlias = tuple[float, Decay]  # (l1, l2)


def checked(name: str, value: Any) -> Decay:
    """Return an l2 decay as the package keeps it."""
    if isinstance(value, LearningRateSchedule):
        checks.of_one_number(name, value)
        return value
    return checks.real(
        name,
        value,
        minimum=0.0,
        below=checks.FLOAT32,
        cure="It is the fraction of the weight removed per update at η = 1: a number or a "
        "`LearningRateSchedule`. Decays per variable go into `weight_decays`.",
    )


def checked_l1(name: str, value: Any) -> float:
    """Return an l1 decay as the package keeps it."""
    return checks.real(
        name, value, minimum=0.0, below=checks.FLOAT32, cure="It is the pair's l1, a number."
    )


def is_zero(decay: Decay) -> bool:
    return isinstance(decay, float) and decay == 0


def half_life(decay: float) -> float:
    """Return the number of updates at η = 1 in which a weight loses half of its value."""
    return math.log(0.5) / math.log1p(-decay) if decay < 1 else 0.0


def to_config(decay: Decay) -> Any:
    """Return a decay as JSON."""
    return decay if isinstance(decay, float) else keras.saving.serialize_keras_object(decay)


def reader(custom_objects: Any) -> Callable[[Any], Any]:
    """Return the reverse of `to_config`; equal schedules come back as one object.

    So a schedule that a hundred variables share is evaluated once per step after a load, too.
    A number is still to be checked.
    """
    known: dict[str, Any] = {}

    def read(saved: Any) -> Any:
        if not isinstance(saved, dict):
            return saved
        text = json.dumps(saved, sort_keys=True)
        if text not in known:
            known[text] = deserialize(saved, custom_objects)
            if isinstance(known[text], LearningRateSchedule):
                checks.of_one_number("a weight decay of the config", known[text])
        return known[text]

    return read


def deserialize(saved: Any, custom_objects: Any) -> Any:
    """Return the object of a config, as Keras makes it; what Keras stumbles over is refused, too."""
    try:
        return keras.saving.deserialize_keras_object(saved, custom_objects)
    except (ValueError, TypeError):
        raise
    except Exception as error:
        raise ValueError(
            "A learning rate or weight decay in a config must be a number, or an object as "
            f"keras.saving.serialize_keras_object() writes it. Received: {saved!r:.500}. "
            f"It led to {type(error).__name__}: {error}."
        ) from error
