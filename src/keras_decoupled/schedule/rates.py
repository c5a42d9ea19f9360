"""What a learning rate is here: schedule(s), and η's multiplier schedule(s)/α.

The optimizer keeps one factor r that callbacks move; the rate of an update is r·schedule(s) and
η is r·multiplier(s). Each class below is one kind of `learning_rate` argument. The multiplier of
a constant and of a `CosineWarmRestarts` is not computed by a division of float32 numbers: that
would give 1.00000005 where 1 is meant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks

from .cosine import CosineWarmRestarts

# A schedule that nowhere says what its peak is gets asked at these steps.
_PROBES = (0, *(10**j for j in range(10)))


class Rate(LearningRateSchedule):
    """Base: a constant rate, α at every step."""

    def __init__(self, base: float) -> None:
        self.base = base  # α

    def __call__(self, step: Any) -> Any:
        """Return schedule(s), the rate before the factor r."""
        return self.base

    def multiplier(self, step: Any) -> Any:
        """Return schedule(s)/α."""
        return 1.0

    @property
    def known_base(self) -> float | None:
        """α where it is known already."""
        return self.base

    @property
    def peak(self) -> float:
        """The highest rate that the schedule is known to reach."""
        return self.base

    def get_config(self) -> dict[str, Any]:
        """Return nothing of interest: the optimizer's config has the argument as given."""
        return {}


class CallableRate(Rate):
    """A bare callable: α is its value when the optimizer is built."""

    def __init__(self, function: Callable[[], Any], base: float | None) -> None:
        self.function = function
        self._base = base
        # TensorFlow builds inside a traced step, where a tensor has no value to be read: then
        # it is the value here. A config has α, so that reading one calls nothing.
        self._first: float | None = self._ask() if base is None else None

    @property
    def base(self) -> float:  # type: ignore[override]
        """α; before build, what the callable says now."""
        if self._base is not None:
            return self._base
        now = self._ask()
        value = self._first if now is None else now
        return _reference(math.nan if value is None else value, "the callable's value at build")

    def fix_base(self) -> None:
        """Take the callable's value now, at build, as α."""
        self._base = self.base

    def _ask(self) -> float | None:
        try:
            value = self.function()
            if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
                value = keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(value, "float32"))
            return float(value)
        except Exception:
            # No eager value here, or the callable is not ready to be asked.
            return None

    @property
    def known_base(self) -> float | None:
        """α where the callable was asked already."""
        return self._base

    def __call__(self, step: Any) -> Any:
        """Return what the callable says now."""
        return self.function()

    def multiplier(self, step: Any) -> Any:
        """Return the callable's value over α."""
        return self.function() / self.base


class ScheduleRate(Rate):
    """Any Keras schedule."""

    def __init__(self, schedule: LearningRateSchedule, base: float | None) -> None:
        super().__init__(_schedule_reference(schedule) if base is None else base)
        self.schedule = schedule

    @property
    def peak(self) -> float:
        """What the schedule says of itself, else the highest of some values."""
        own = _own_reference(self.schedule)
        return own or max(value for _, value in _probe(self.schedule))

    def __call__(self, step: Any) -> Any:
        """Return schedule(s)."""
        return self.schedule(step)

    def multiplier(self, step: Any) -> Any:
        """Return schedule(s)/α."""
        return self.schedule(step) / self.base


class CosineRate(ScheduleRate):
    """Our own schedule, which knows its multiplier exactly."""

    schedule: CosineWarmRestarts

    def multiplier(self, step: Any) -> Any:
        """Return schedule(s)/α without a division of rounded numbers."""
        return self.schedule.multiplier(step) * (self.schedule.initial_learning_rate / self.base)

    @property
    def peak(self) -> float:
        """The rate at the start of the first cycle."""
        return self.schedule.initial_learning_rate * self.schedule.eta_max


def make_rate(learning_rate: Any, base_learning_rate: Any) -> tuple[Rate, float]:
    """Return the rate of a `learning_rate` argument and the factor r that it starts with.

    A float that differs from `base_learning_rate` starts with r = learning_rate/base: so a config
    written after a callback moved the rate brings back both the rate and α.
    """
    base = None
    if base_learning_rate is not None:
        base = _reference(
            checks.real(
                "base_learning_rate", base_learning_rate, cure="It is the rate at which η is 1."
            ),
            "`base_learning_rate`",
        )
    if isinstance(learning_rate, CosineWarmRestarts):
        return CosineRate(learning_rate, base), 1.0
    if isinstance(learning_rate, LearningRateSchedule):
        checks.of_one_number("learning_rate", learning_rate)
        return ScheduleRate(learning_rate, base), 1.0
    if isinstance(learning_rate, type):
        raise TypeError(
            "`learning_rate` must be a number, a `LearningRateSchedule` or a callable. Received: "
            f"the class {learning_rate.__name__}. Make an instance: {learning_rate.__name__}(...)."
        )
    if callable(learning_rate):
        return CallableRate(learning_rate, base), 1.0
    rate = checks.real(
        "learning_rate",
        learning_rate,
        minimum=0.0,
        below=checks.FLOAT32,
        cure="Pass a number, a `LearningRateSchedule` or a callable without arguments.",
    )
    base = _reference(rate, "`learning_rate`") if base is None else base
    return Rate(base), rate / base


def _reference(value: float, source: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"η is the learning rate divided by its base value, and that value ({source}) must be "
            f"a finite number > 0. Received: {value}. Pass `base_learning_rate`, the rate at which "
            "the weight decay is meant to act in full (the peak of a warm-up, say)."
        )
    return value


def _schedule_reference(schedule: LearningRateSchedule) -> float:
    """α of a schedule: the end of its warm-up, else its initial rate, else its value at step 0."""
    if getattr(schedule, "warmup_target", None) is not None:
        return _reference(float(schedule.warmup_target), "the schedule's `warmup_target`")
    own = _own_reference(schedule)
    if own is None:
        start = _reference(_value_at(schedule, 0), "the schedule's value at step 0")
    else:
        start = _reference(own, "the schedule's `initial_learning_rate`")
    # An initial rate is the base, unless the schedule is a warm-up in the shape of a decay.
    tolerated = 1.01 if own is None else 2.01
    for step, later in _probe(schedule):
        if later > tolerated * start:
            raise ValueError(
                "`learning_rate` is a schedule that does not say what its base learning rate is, "
                f"and it rises: {start:g} at step 0, {later:g} at step {step}; η would exceed 1. "
                f"Received: learning_rate={schedule}. Pass `base_learning_rate`, the rate at which "
                "the weight decay is meant to act in full."
            )
    return start


def _own_reference(schedule: LearningRateSchedule) -> float | None:
    for name in ("warmup_target", "initial_learning_rate"):
        if getattr(schedule, name, None) is not None:
            return float(getattr(schedule, name))
    return None


def _probe(schedule: LearningRateSchedule) -> Iterator[tuple[int, float]]:
    for step in _PROBES:
        try:
            yield step, _value_at(schedule, step)
        except Exception:
            return  # a table, say, that ends before this step


def _value_at(schedule: LearningRateSchedule, step: int) -> float:
    return float(keras.ops.convert_to_numpy(schedule(step)))
