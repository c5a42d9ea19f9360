"""When an update happens: k, the schedule position s, the rate, η; `restart` and `begin_decay`.

k counts weight updates, never micro-batches, and s = k − cycle_start. The rate is r·schedule(s) and
η is r·schedule(s)/α, where r is 1 until somebody moves it. Whatever moves is an optimizer variable,
so it is saved with the others.

The argument `on` of the methods does the arithmetic: with tensors (`core/numbers.py`), or on torch
with Python floats (`fast/torch_host_copy.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_decoupled import checks
from keras_decoupled.core.arguments import at_least_0
from keras_decoupled.core.numbers import has_value
from keras_decoupled.core.settings import Setting, as_number
from keras_decoupled.schedule.rates import (
    CallableRate,
    ConstantRate,
    ScheduleRate,
    StableRate,
)
from keras_decoupled.schedule.stable import NEVER
from keras_decoupled.schedule.timing import Timing

_NOT_HERE = (
    "The optimizer's state is not here. Inside an epoch, Keras' `fit` on JAX keeps the state "
    "outside the optimizer. In a callback go through `self.model.optimizer`, which brings the "
    "state back first. On JAX, a loss or a metric cannot read the state: log it from a callback, "
    "in on_epoch_end or on_train_batch_end."
)


class Clock:
    """The count of updates, the position in the schedule, the rate and η.

    Args:
        timing: what the arguments about time mean.
        counter: Keras' variable that counts calls of `apply`.
        accumulated: returns how many calls make one update.
        add_scalar: makes an optimizer variable of a name, value and dtype.
        dtype: the type of the variable of r.
    """

    def __init__(
        self,
        timing: Timing,
        counter: Any,
        accumulated: Callable[[], int],
        add_scalar: Callable[[str, float, str], Any],
        dtype: str,
    ) -> None:
        self.timing, self.counter, self._accumulated = timing, counter, accumulated
        self.constant = isinstance(timing.rate, ConstantRate)  # the rate was given as a number
        # What the variable of the rate holds at r = 1.
        self._unit = float(np.float32(timing.rate.base)) if self.constant else 1.0
        if self.constant:
            # As in stock Keras: a variable that callbacks assign. It is α·r.
            name, value, dtype = "learning_rate", timing.rate.given, "float32"
        else:
            name, value = "learning_rate_factor", timing.rate_factor
        self.rate = Setting(name, value, add_scalar(name, value, dtype), at_least_0(""))
        self._cycle_start = add_scalar("cycle_start", -timing.t_cur, "int")
        # The step s at which `begin_decay` lets the decay start.
        self._decay_start: Any = None
        if isinstance(timing.rate, StableRate):
            self._decay_start = add_scalar("decay_start", NEVER, "int")
        self._warned = False  # whether it has warned that a higher rate strengthens the decay

    # Reading.

    def now(self, on: Any) -> tuple[Any, Any, Any, Any]:
        """Return k, the rate before layer multipliers, η and √(1/T) of the next update."""
        k, rate, multiplier, normalization = self._unmoved(on)
        r = self.factor(on)
        return k, r * rate, r * multiplier, normalization

    def _unmoved(self, on: Any) -> tuple[Any, Any, Any, Any]:
        """Return what `now` returns, at r = 1."""
        k, step = self.counts(on)
        rate: Any = self.timing.rate
        if self._decay_start is not None:
            rate = rate.starting(on.count(self._decay_start))

        def at(step: Any) -> tuple[Any, Any, Any]:
            return *rate.at(step), self.timing.normalization(step)

        return k, *on.evaluate_all(at, step)

    def counts(self, on: Any) -> tuple[Any, Any]:
        """Return k and s of the next update."""
        try:
            k = on.count(self.counter) // self._accumulated()
            return k, k - on.count(self._cycle_start)
        except (TypeError, AttributeError) as error:  # the variables hold no value
            raise RuntimeError(_NOT_HERE) from error

    def factor(self, on: Any) -> Any:
        """Return r."""
        now = on.read(self.rate.variable)
        return now / self._unit if self.constant else now

    def learning_rate(self, on: Any) -> Any:
        """Return the rate of the next update: a variable where a number was given."""
        self.check_state()
        if self.constant:
            return self.rate.variable
        return self.now(on)[1]

    def check_state(self) -> None:
        """Raise if the optimizer's variables hold no values now."""
        if not has_value(self.counter):
            raise RuntimeError(_NOT_HERE)

    # What a user sets.

    def set_learning_rate(self, value: Any, on: Any) -> None:
        """Move r so that the next update has this rate."""
        if callable(value) and not isinstance(value, keras.Variable):
            rule = "can be set to a number only: it scales the schedule that the optimizer has"
            cure = "For another schedule make a new optimizer."
            checks.refuse("learning_rate", checks.Seen(repr(value)), rule, cure, TypeError)
        cure = "0 stops all steps and decay."
        value = checks.real(
            "learning_rate", as_number(value), minimum=0.0, below=checks.FLOAT32, cure=cure
        )
        self.check_state()
        if self.constant:
            if value > 0 and self.timing.rate.known_base is None:
                rule = "cannot be set above 0 on an optimizer that was made with 0: η is the rate "
                rule += "divided by the rate that the optimizer was made with"
                cure = "Make it with base_learning_rate= the rate at which the decay acts in full."
                checks.refuse("learning_rate", value, rule, cure)
            self._warn_of_eta(value)
            self.rate.variable.assign(value)
            return
        schedule = self.timing.rate
        # The schedule's own value. The rate divided by r would differ in the last bits.
        now = schedule.base * float(as_number(self._unmoved(on)[2]))
        if now == 0:
            if value > 0:
                checks.refuse(
                    "learning_rate",
                    value,
                    "cannot be set while the schedule is at 0: it is stored as a factor of the "
                    "schedule's value",
                    "restart() starts the schedule again. from_keras(optimizer, learning_rate=...) "
                    "of its class makes an optimizer that continues at another rate.",
                )
            return
        if abs(value - as_number(self.learning_rate(on))) <= 5e-7 * value:
            return  # this is the rate that was read, rounded: to set it must not change r
        factor = value / now
        if factor > 1 + 1e-6 and isinstance(schedule, ScheduleRate) and not self._warned:
            self._warned = True
            warnings.warn(
                f"`learning_rate` was set to {factor:g} times its schedule's value here. The "
                f"factor stays: the rate will peak at {factor * self.timing.rate.peak:g} at the "
                "schedule's top (after a restart, say), and η and the decays scale with it.",
                UserWarning,
                stacklevel=5,
            )
        self.rate.variable.assign(factor)

    def _warn_of_eta(self, rate: float) -> None:
        eta = rate / self.timing.rate.base
        if eta > 1.01 and not self._warned:
            self._warned = True
            warnings.warn(
                f"`learning_rate` was set to {rate:g}, {eta:g} times the rate that the optimizer "
                f"was made with. The decays grow with it: each is now {eta:g} times as strong. "
                "To have them as given, make the optimizer with base_learning_rate= the highest "
                "rate that you will set.",
                UserWarning,
                stacklevel=6,
            )

    def set_factor(self, factor: float) -> None:
        """Set r to the number of a file."""
        self.rate.variable.assign(factor * self._unit)

    def restart(self, position: int, on: Any) -> None:
        """Make the next update the one at a position of the first cycle, after the warm-up."""
        step = min(self.timing.step_at(position), NEVER)
        k, _ = self.counts(on)
        self._cycle_start.assign(k - step)
        if self._decay_start is not None:
            self._decay_start.assign(NEVER)

    def begin_decay(self, on: Any) -> None:
        """Begin the decay of a `WarmupStableDecay` with the next update, or after its warm-up."""
        if self._decay_start is None:
            checks.refuse(
                "begin_decay()",
                checks.Seen(f"schedule={getattr(self.timing.rate, 'schedule', None)!r}"),
                "needs a `WarmupStableDecay` as the optimizer's learning rate",
                "Make the optimizer with "
                "learning_rate=WarmupStableDecay(α, stable_steps=None, decay_steps=...).",
            )
        _, step = self.counts(on)
        start = ops.maximum(step, min(self.timing.step_at(0), NEVER))
        self._decay_start.assign(ops.minimum(self._decay_start, start))

    # Config and state.

    def get_config(self) -> dict[str, Any]:
        """Return the arguments about time, as JSON, and the learning rate as it is now."""
        rate = self.timing.rate
        if isinstance(rate, CallableRate):
            given = keras.saving.serialize_keras_object(rate.function)
        elif isinstance(rate, ScheduleRate) and not self.timing.use_cosine_annealing:
            given = keras.optimizers.schedules.serialize(rate.schedule)
        elif self.constant:
            given = self.rate.now()
        else:
            given = rate.base * self.rate.now()
        more = {"learning_rate": given, "base_learning_rate": rate.known_base}
        return self.timing.get_config() | more
