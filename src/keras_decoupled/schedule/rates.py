"""The kinds of `learning_rate`: at step s, each gives schedule(s) and its multiplier schedule(s)/α.

The optimizer keeps one factor r that callbacks move. The rate of an update is r·schedule(s), and η
is r times the multiplier. Our own schedules compute the multiplier themselves: a division of
float32 numbers could give 1.00000005 in place of 1.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Self

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.checks import Seen, refuse

from .cosine import CosineWarmRestarts
from .exact import ExactSchedule
from .stable import WarmupStableDecay

_FEW = sorted(checks.STEPS[::-20])  # enough to see whether a schedule rises above its first rate


class Rate(LearningRateSchedule):
    """Base of all kinds. As a `LearningRateSchedule`, it is accepted by Keras' constructor."""

    def __init__(self, base: float | None) -> None:
        self.known_base = base  # α; None until a callable is asked

    @property
    def base(self) -> float:
        """α, the rate at which η is 1."""
        assert self.known_base is not None
        return self.known_base

    def at(self, step: Any) -> tuple[Any, Any]:
        """Return schedule(s) and the multiplier, schedule(s)/α."""
        rate = self(step)
        return rate, rate / self.base


class ConstantRate(Rate):
    """A number: α at every step. α is None if the number is 0: then nothing moves."""

    def __init__(self, base: float | None, given: float) -> None:
        super().__init__(base)
        self.given = given  # differs from α if `base_learning_rate` does

    @property
    def base(self) -> float:
        """α, or 1 where it is not known: η is 0 in any case."""
        return 1.0 if self.known_base is None else self.known_base

    def __call__(self, step: Any) -> Any:
        """Return α."""
        return self.base


class CallableRate(Rate):
    """A bare callable: α is its value when the optimizer is built."""

    def __init__(self, function: Callable[[], Any], base: float | None) -> None:
        super().__init__(base)
        self.function = function

    @property
    def base(self) -> float:
        """α; before build, the callable's value now."""
        if self.known_base is not None:
            return self.known_base
        value = self.function()
        if ops.is_tensor(value) or isinstance(value, (keras.Variable, np.ndarray)):
            value = ops.convert_to_numpy(ops.convert_to_tensor(value, "float32"))
            value = value.item() if value.ndim == 0 else value
        return _reference(value, "the callable's value at build")

    def fix_base(self) -> None:
        """Take the callable's value now, at build, as α."""
        self.known_base = self.base

    def __call__(self, step: Any) -> Any:
        """Return the callable's value now."""
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
                    f"which rate η is 1 and the weight decay acts in full. It is taken to be "
                    f"{base:g}, {source}. Pass this or another rate as `base_learning_rate`.",
                    UserWarning,
                    stacklevel=7,  # where the optimizer is made
                )
        super().__init__(base)

    def __call__(self, step: Any) -> Any:
        """Return schedule(s)."""
        return self.schedule(step)

    @property
    def peak(self) -> float:
        """The rate that is α if no `base_learning_rate` is given."""
        return _top(self.schedule)[0]


class ExactRate(ScheduleRate):
    """A schedule of our own, which computes its multiplier exactly."""

    schedule: ExactSchedule

    def at(self, step: Any) -> tuple[Any, Any]:
        """Return schedule(s) and the multiplier, without a division of rounded numbers."""
        if type(self.schedule).__call__ is not ExactSchedule.__call__:  # a user's class changes it
            return super().at(step)
        eta, initial = self.schedule.multiplier(step), self.schedule.initial_learning_rate
        return initial * eta, eta * (initial / self.base)

    @property
    def peak(self) -> float:
        """The rate at the start of the first cycle, or in the stable part."""
        return self.schedule.initial_learning_rate * self.schedule.eta_max


class CosineRate(ExactRate):
    """Warm restarts."""

    schedule: CosineWarmRestarts


class StableRate(ExactRate):
    """A stable part and a decay, whose start may be an optimizer variable."""

    schedule: WarmupStableDecay

    def starting(self, start: Any) -> Self:
        """Return this rate with its decay from the step `start`, if that comes earlier."""
        other = copy.copy(self)
        other.schedule = self.schedule.starting(start)
        return other


def make_rate(learning_rate: Any, base_learning_rate: Any = None) -> tuple[Rate, float]:
    """Return the rate of a `learning_rate` argument, and the factor r at the start.

    A number starts with r = learning_rate/base_learning_rate. So a config that was written after a
    callback moved the rate brings back both the rate and α.
    """
    base = None
    if base_learning_rate is not None:
        cure = "It is the rate at which η is 1."
        base = checks.real(
            "base_learning_rate", base_learning_rate, below=checks.FLOAT32, cure=cure
        )
        _reference(base, "`base_learning_rate`")
    if isinstance(learning_rate, ExactSchedule):
        if base is None:  # η is 1 at `initial_learning_rate`, also if eta_max is not 1
            own = learning_rate.initial_learning_rate
            base = _reference(own, "the schedule's `initial_learning_rate`")
        kind = CosineRate if isinstance(learning_rate, CosineWarmRestarts) else StableRate
        return kind(learning_rate, base), 1.0
    if isinstance(learning_rate, LearningRateSchedule):
        checks.of_one_number("learning_rate", learning_rate)
        return ScheduleRate(learning_rate, base), 1.0
    if isinstance(learning_rate, type):
        name = learning_rate.__name__
        rule = "must be a number, a `LearningRateSchedule` or a callable"
        cure = f"Make an instance: {name}(...)."
        refuse("learning_rate", Seen(f"the class {name}"), rule, cure, TypeError)
    if callable(learning_rate):
        _check_callable(learning_rate)
        return CallableRate(learning_rate, base), 1.0
    cure = "Pass a number, a `LearningRateSchedule` or a callable without arguments."
    if isinstance(learning_rate, list | tuple | Iterator):
        cure += (
            " Variables are no first argument as in torch: `model.compile(optimizer)` brings them. "
        )
        cure += "Rates and decays of groups are `lr_multipliers` and `weight_decays`, by key."
    rate = checks.real("learning_rate", learning_rate, minimum=0.0, below=checks.FLOAT32, cure=cure)
    if base is None and rate > 0:
        base = _reference(rate, "`learning_rate`")
    made = ConstantRate(base, rate)
    return made, rate / made.base


def _check_callable(function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        rule = "must take no arguments if it is a callable"
        cure = f"It is called before each update: {error}."
        refuse("learning_rate", Seen(repr(function)), rule, cure)
    except ValueError:  # Python knows no signature of some built-in functions
        return


def _reference(value: Any, source: str) -> float:
    """Return `value` as α; `source` says where it comes from."""
    if not (isinstance(value, Real) and math.isfinite(value) and float(value) > 1e-38):
        refuse(
            "learning_rate",
            Seen(repr(value)),
            f"is divided by its base value to give η, and that value ({source}) must be a finite "
            "number > 0",
            "Pass `base_learning_rate`, the rate at which the weight decay acts in full (the peak "
            "of a warm-up, say).",
        )
    return float(value)


def _top(schedule: LearningRateSchedule) -> tuple[float, str, bool]:
    """Return the rate at which a schedule's η is 1, its source, and whether the schedule rises.

    The rate is the end of the warm-up, else the initial rate, else the value at step 0. If the
    schedule rises above 2.01 times the initial rate, or above 1.01 times its value at step 0, the
    rate is the largest of its values at `checks.STEPS`.
    """
    target, own = (getattr(schedule, x, None) for x in ("warmup_target", "initial_learning_rate"))
    if target is not None:
        return float(target), "the schedule's `warmup_target`", False
    if own is None:
        asked = checks.values_of(schedule, checks.STEPS)
        start, source, limit = asked[0], "the schedule's value at step 0", 1.01
    else:  # a `PolynomialDecay` may rise: it is then used as a warm-up
        asked = checks.values_of(schedule, _FEW)
        start, source, limit = float(own), "the schedule's `initial_learning_rate`", 2.01
    if start > 0 and all(not rate > limit * start for rate in asked.values()):
        return start, source, False

    if own is not None:
        asked = checks.values_of(schedule, checks.STEPS)
    best = max(asked, key=lambda step: -math.inf if math.isnan(asked[step]) else asked[step])
    if asked[best] > start:
        source = f"the schedule's largest value, at step {best}, of {len(asked)} asked"
        return asked[best], source, True
    return start, source, True
