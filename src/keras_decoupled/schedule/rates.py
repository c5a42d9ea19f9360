"""What a learning rate is here: schedule(s), and η's multiplier schedule(s)/α.

The optimizer keeps one factor r that callbacks move; the rate of an update is r·schedule(s) and
η is r·multiplier(s). Each class below is one kind of `learning_rate` argument. The multiplier of
a constant and of our own schedules is not computed by a division of float32 numbers: that would
give 1.00000005 where 1 is meant.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, Self

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks

from .cosine import CosineWarmRestarts
from .exact import ExactSchedule
from .stable import WarmupStableDecay

_POWERS = [0, *(10**j for j in range(10))]  # asked whether a schedule rises
_SEARCHED = sorted({0, *(round(10 ** (6 * i / 199)) for i in range(200))})  # asked for its top


class Rate(LearningRateSchedule):
    """Base of all kinds, called with s: a Keras schedule, as Keras' constructor takes no other."""

    base: float  # α

    def at(self, step: Any) -> tuple[Any, Any]:
        """Return schedule(s) and the multiplier, schedule(s)/α."""
        rate = self(step)
        return rate, rate / self.base

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


class ConstantRate(Rate):
    """A number: α at every step."""

    def __init__(self, base: float, given: float) -> None:
        self.base = base
        self.given = given  # where `base_learning_rate` is another number

    def __call__(self, step: Any) -> Any:
        """Return α."""
        return self.base

    def at(self, step: Any) -> tuple[Any, Any]:
        """Return α and 1."""
        return self.base, 1.0


class CallableRate(Rate):
    """A bare callable: α is its value when the optimizer is built."""

    def __init__(self, function: Callable[[], Any], base: float | None) -> None:
        self.function = function
        self._base = base
        # TensorFlow builds inside a traced step, where a tensor has no value to be read: then
        # it is the value here. A config has α, so that reading one calls nothing.
        self._first = self._ask() if base is None else None

    @property
    def base(self) -> float:  # type: ignore[override]
        """α; before build, what the callable says now."""
        if self._base is not None:
            return self._base
        now = self._ask()
        value = self._first if now is None else now
        return _reference(math.nan if value is None else value, "the callable's value at build")

    @property
    def known_base(self) -> float | None:
        """α where the callable was asked already."""
        return self._base

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

    def __call__(self, step: Any) -> Any:
        """Return what the callable says now."""
        return self.function()


class ScheduleRate(Rate):
    """Any Keras schedule."""

    def __init__(self, schedule: LearningRateSchedule, base: float | None) -> None:
        self.schedule = schedule
        if base is None:
            base, source, rises = _top(schedule)
            _reference(base, source)
            if rises:
                warnings.warn(
                    "`learning_rate` is a schedule that rises, and no `base_learning_rate` says at "
                    f"which rate η is 1 and the weight decay acts in full. {base:g} is taken for "
                    f"it: {source}. Pass that or another one as `base_learning_rate`.",
                    UserWarning,
                    stacklevel=6,  # where the optimizer is made
                )
        self.base = base

    def __call__(self, step: Any) -> Any:
        """Return schedule(s)."""
        return self.schedule(step)

    @property
    def peak(self) -> float:
        """The rate that would be α, had no other been given."""
        return _top(self.schedule)[0]


class ExactRate(ScheduleRate):
    """A schedule of our own, which knows its multiplier exactly."""

    schedule: ExactSchedule

    def at(self, step: Any) -> tuple[Any, Any]:
        """Return schedule(s) and schedule(s)/α, without a division of rounded numbers."""
        eta, initial = self.schedule.multiplier(step), self.schedule.initial_learning_rate
        return initial * eta, eta * (initial / self.base)


class CosineRate(ExactRate):
    """Warm restarts."""

    schedule: CosineWarmRestarts

    @property
    def peak(self) -> float:
        """The rate at the start of the first cycle."""
        return self.schedule.initial_learning_rate * self.schedule.eta_max


class StableRate(ExactRate):
    """A stable part, whose end may be an optimizer variable."""

    schedule: WarmupStableDecay

    def starting(self, start: Any) -> Self:
        """Return the rate with a decay that starts at this step, if that comes earlier."""
        other = copy.copy(self)
        other.schedule = self.schedule.starting(start)
        return other

    @property
    def peak(self) -> float:
        """The rate of the stable part."""
        return self.schedule.initial_learning_rate


def make_rate(learning_rate: Any, base_learning_rate: Any = None) -> tuple[Rate, float]:
    """Return the rate of a `learning_rate` argument and the factor r that it starts with.

    A float that differs from `base_learning_rate` starts with r = learning_rate/base: so a config
    written after a callback moved the rate brings back both the rate and α.
    """
    base = None
    if base_learning_rate is not None:
        cure = "It is the rate at which η is 1."
        base = checks.real("base_learning_rate", base_learning_rate, cure=cure)
        _reference(base, "`base_learning_rate`")
    if isinstance(learning_rate, (CosineWarmRestarts, WarmupStableDecay)):
        if base is None:  # nothing to search: its η is a multiple of this, whatever its eta_max
            base = learning_rate.initial_learning_rate
            _reference(base, "the schedule's `initial_learning_rate`")
        kind = CosineRate if isinstance(learning_rate, CosineWarmRestarts) else StableRate
        return kind(learning_rate, base), 1.0
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
    return ConstantRate(base, rate), rate / base


def _reference(value: float, source: str) -> float:
    if not (math.isfinite(value) and value > 1e-38):
        raise ValueError(
            f"η is the learning rate divided by its base value, and that value ({source}) must be "
            f"a finite number > 0. Received: {value}. Pass `base_learning_rate`, the rate at which "
            "the weight decay is meant to act in full (the peak of a warm-up, say)."
        )
    return value


def _top(schedule: LearningRateSchedule) -> tuple[float, str, bool]:
    """Return the rate at which a schedule's η is 1, what that is in it, and whether it rises to it.

    It is the end of its warm-up, else its initial rate, else its value at step 0; where the
    schedule rises far above the latter two, its largest value as far as a search can tell.
    """
    target, own = (getattr(schedule, x, None) for x in ("warmup_target", "initial_learning_rate"))
    if target is not None:
        return float(target), "the schedule's `warmup_target`", False

    def values(*steps: int) -> dict[int, float]:
        found: dict[int, float] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step in steps:
                try:  # with a tensor, as in an update: of Python's 0, 0 ** -0.5 is an error
                    rate = schedule(keras.ops.convert_to_tensor(step, "int32"))
                    found[step] = float(keras.ops.convert_to_numpy(rate))
                except Exception:
                    if own is None and step == 0:
                        raise
                    break  # a table, say, that ends before this step
        return found

    if own is None:
        start, source = values(0)[0], "the schedule's value at step 0"
        limit, asked = 1.01 * start, sorted({*_POWERS, *_SEARCHED})
    else:  # it is the base, unless the schedule is a warm-up in the shape of a decay
        start, source = float(own), "the schedule's `initial_learning_rate`"
        limit, asked = 2.01 * start, _POWERS
    if start > 0 and not any(rate > limit for rate in values(*asked).values()):
        return start, source, False

    known = {0: start}
    known |= {step: rate for step, rate in values(*_SEARCHED).items() if not math.isnan(rate)}
    best = max(known, key=known.__getitem__)
    i = _SEARCHED.index(best)
    low, high = _SEARCHED[max(i - 1, 0)], _SEARCHED[min(i + 1, len(_SEARCHED) - 1)]
    while max(best - low, high - best) > 1:  # between its neighbours: halve the wider side
        middle = (low + best if best - low > high - best else best + high) // 2
        known |= values(middle)
        if known.get(middle, 0.0) > known[best]:
            low, best, high = (low, middle, best) if middle < best else (best, middle, high)
        elif middle < best:
            low = middle
        else:
            high = middle
    if known[best] > start:
        return known[best], f"the schedule's largest value, at step {best}", True
    return start, source, True
