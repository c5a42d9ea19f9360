"""Checks of the numbers in a decay: l2, a number or a schedule, and l1, a number."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks

Number: TypeAlias = float | LearningRateSchedule


def checked_l2(name: str, value: Any) -> Number:
    """Return an l2 as the package keeps it."""
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
    """Return an l1 as the package keeps it."""
    return checks.real(
        name, value, minimum=0.0, below=checks.FLOAT32, cure="It is the l1 of a decay, a number."
    )


def half_life(decay: float) -> float:
    """Return the number of updates at η = 1 in which a weight loses half of its value."""
    return math.log(0.5) / math.log1p(-decay) if decay < 1 else 0.0


def number_to_config(number: Number) -> Any:
    """Return a number or schedule as JSON."""
    return number if isinstance(number, float) else keras.saving.serialize_keras_object(number)
