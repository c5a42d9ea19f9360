"""The learning rate r·schedule(s), η, the uniform decay λ, and the position s that restarts move.

k counts weight updates, never micro-batches; s = k − cycle_start. Everything that moves is an
optimizer variable, so it is saved with the others.
"""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_decoupled import checks
from keras_decoupled.core.keras_hooks import KerasHooks
from keras_decoupled.core.numbers import OnTensors
from keras_decoupled.schedule.rates import (
    CallableRate,
    ConstantRate,
    Rate,
    ScheduleRate,
    StableRate,
)
from keras_decoupled.schedule.stable import NEVER
from keras_decoupled.schedule.timing import Timing

_NOT_HERE = (
    "The optimizer's state is not here: inside an epoch, Keras' `fit` on JAX keeps it outside the "
    "optimizer. In a callback go through `self.model.optimizer`, which brings it back first. A "
    "loss or a metric cannot read it on JAX: log it from a callback, in on_epoch_end or "
    "on_train_batch_end."
)


class Scheduled(KerasHooks):
    """A Keras optimizer whose rate is r·schedule(s), whatever the schedule."""

    def __init__(self, timing: Timing, **kwargs: Any) -> None:
        super().__init__(learning_rate=timing.rate, **kwargs)
        self._timing = timing
        self._on_tensors = OnTensors("float64" if keras.config.floatx() == "float64" else "float32")
        r = timing.rate_factor
        if self._constant_rate:
            # As in stock Keras: a variable that callbacks assign. It is α·r.
            self._rate = self._add_scalar("learning_rate", timing.rate.given, "float32")
            self.use_rate_variable(self._rate)
        else:
            # r, which callbacks and assignments move.
            self._rate = self._add_scalar("learning_rate_factor", r, self._on_tensors.dtype)
        self._cycle_start = self._add_scalar("cycle_start", -timing.t_cur, "int")
        # The schedule's step at which `begin_decay` said that the decay starts.
        self._decay_start: Any = None
        if isinstance(timing.rate, StableRate):
            self._decay_start = self._add_scalar("decay_start", NEVER, "int")
        self._warned_of_peak = False
        self._rate_unused = False  # whoever asks for the rate now throws it away

    def _add_scalar(self, name: str, value: float, dtype: str) -> Any:
        # Like `iterations`: under tf.distribute every replica computes the same scalar.
        # An array: TensorFlow's cast of a Python number to float64 goes through float32.
        return self.add_variable(
            (),
            keras.initializers.Constant(np.array(value)),
            dtype,
            aggregation="only_first_replica",
            name=name,
        )

    @property
    def _constant_rate(self) -> bool:
        return isinstance(self._timing.rate, ConstantRate)

    # Reading. `on` computes with tensors or, on torch, with floats of the host.

    def _counts(self, on: Any) -> tuple[Any, Any]:
        """Return k and s of the next update."""
        try:
            updates = on.count(self.update_counter) // (self.gradient_accumulation_steps or 1)
            return updates, updates - on.count(self._cycle_start)
        except (TypeError, AttributeError) as error:
            raise RuntimeError(_NOT_HERE) from error

    def _factor(self, on: Any) -> Any:
        """Return r."""
        now = on.read(self._rate)
        return now / float(np.float32(self._timing.rate.base)) if self._constant_rate else now

    def _schedule(self, on: Any) -> Rate:
        """Return the rate at r = 1, a function of s."""
        rate = self._timing.rate
        return rate.starting(on.count(self._decay_start)) if isinstance(rate, StableRate) else rate

    def _rate_and_eta(self, on: Any, step: Any) -> tuple[Any, Any]:
        factor = self._factor(on)
        rate, multiplier = on.evaluate_both(self._schedule(on).at, step)
        return factor * rate, factor * multiplier

    def _check_state(self) -> None:
        try:
            ops.convert_to_tensor(self.update_counter)
        except (TypeError, AttributeError) as error:  # the variable holds no value
            raise RuntimeError(_NOT_HERE) from error

    @property
    def learning_rate(self) -> Any:
        """The rate that the next update uses, before layer multipliers.

        Where a number was given, a `keras.Variable`, as in stock Keras. Under a schedule a tensor,
        r·schedule(s); setting it moves r, and with it the whole schedule.
        """
        if self._rate_unused:
            return self._rate
        self._check_state()
        if self._constant_rate:
            return self._rate
        return self._rate_and_eta(self._on_tensors, self._counts(self._on_tensors)[1])[0]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if callable(value) and not isinstance(value, keras.Variable):
            raise TypeError(
                "`learning_rate` can be set to a number only: it moves the factor r over the "
                f"schedule that the optimizer was made with. Received: {value!r}. For another "
                "schedule make a new optimizer."
            )
        value = checks.real(
            "learning_rate",
            as_number(value),
            minimum=0.0,
            below=checks.FLOAT32,
            cure="0 stops all steps and decay.",
        )
        self._check_state()
        if self._constant_rate:
            self._rate.assign(value)
            return
        rate = self._schedule(self._on_tensors)
        # Not rate(step): a float32 rate over a float32 schedule is not exactly r.
        _, multiplier = rate.at(self._counts(self._on_tensors)[1])
        now = rate.base * float(as_number(multiplier))
        if now == 0:
            if value > 0:
                raise ValueError(
                    "`learning_rate` cannot be set while the schedule is at 0: it is stored as a "
                    f"factor over the schedule. Received: learning_rate={value}. Set it where the "
                    "schedule is above 0, or give the schedule an eta_min > 0."
                )
            return
        if abs(value - as_number(self.learning_rate)) <= 5e-7 * value:
            return  # the rate as it was read, rounded: written back, it must not move r
        factor = value / now
        if factor > 1 + 1e-6 and isinstance(rate, ScheduleRate):
            self._warn_of_peak(factor)
        self._rate.assign(factor)

    def _warn_of_peak(self, factor: float) -> None:
        if not self._warned_of_peak:
            warnings.warn(
                f"`learning_rate` was set to {factor:g} times what its schedule says here, and "
                f"the factor stays: the rate will peak at {factor * self._timing.rate.peak:g} when "
                "the schedule is at its top again, and η and the decays scale with it.",
                UserWarning,
                stacklevel=4,
            )
        self._warned_of_peak = True

    def _set_factor(self, factor: float) -> None:
        """Set r, of a file."""
        alpha = float(np.float32(self._timing.rate.base)) if self._constant_rate else 1.0
        self._rate.assign(factor * alpha)

    def _learning_rate_to_config(self) -> Any:
        rate = self._timing.rate
        if isinstance(rate, CallableRate):
            return keras.saving.serialize_keras_object(rate.function)
        if isinstance(rate, ScheduleRate) and not self._timing.use_cosine_annealing:
            return keras.optimizers.schedules.serialize(rate.schedule)
        if self._constant_rate:
            return as_given(rate.given, self._rate)
        return rate.base * as_given(self._timing.rate_factor, self._rate)

    @property
    def lr_t(self) -> Any:
        """The same as `learning_rate` (keras-adamw's name)."""
        return self.learning_rate

    @property
    def eta_t(self) -> Any:
        """η of the next update: r·multiplier(s)."""
        return self._rate_and_eta(self._on_tensors, self._counts(self._on_tensors)[1])[1]

    @property
    def t_cur(self) -> Any:
        """Position of the next update in its cycle, or after the warm-up; else the step s."""
        return self._timing.position(self._counts(self._on_tensors)[1])

    @t_cur.setter
    def t_cur(self, position: int) -> None:
        self.restart(position)

    def restart(self, position: int = 0) -> None:
        """Make the next update the one at `position` of the first cycle, without the warm-up.

        A `WarmupStableDecay` goes back to its stable part, and forgets `begin_decay`.

        Args:
            position: 0 ≤ position < T of the first cycle; -1 is 0. Defaults to `0`.

        Raises:
            ValueError: there is no schedule, or no such position in it.
            RuntimeError: on JAX, called inside an epoch of `fit` on an optimizer that is not
                `self.model.optimizer`.
        """
        step = min(self._timing.step_at(position), NEVER)
        updates, _ = self._counts(self._on_tensors)
        self._cycle_start.assign(updates - step)
        if self._decay_start is not None:
            self._decay_start.assign(NEVER)

    def begin_decay(self) -> None:
        """Begin the decay of a `WarmupStableDecay` with the next update.

        In the warm-up: with the first update after it. Where the decay is on or over already,
        nothing changes, so that a callback may call this at every epoch, and a run that is resumed
        goes on. With `stable_steps` given, the decay begins before these are over. `restart()`
        goes back to the stable part.

        Raises:
            ValueError: the learning rate is no `WarmupStableDecay`.
            RuntimeError: on JAX, called inside an epoch of `fit` on an optimizer that is not
                `self.model.optimizer`.

        Example:
        >>> from keras_decoupled import AdamW, WarmupStableDecay
        >>> optimizer = AdamW(WarmupStableDecay(1e-3, None, decay_steps=1000), weight_decay=1e-4)
        >>> optimizer.begin_decay()
        """
        if self._decay_start is None:
            schedule = getattr(self._timing.rate, "schedule", None)
            raise ValueError(
                "`begin_decay()` needs a `WarmupStableDecay`, as the optimizer's learning rate. "
                f"Received: schedule={schedule!r}. Make the optimizer with "
                "learning_rate=WarmupStableDecay(α, stable_steps=None, decay_steps=...)."
            )
        _, step = self._counts(self._on_tensors)
        start = ops.maximum(step, min(self._timing.step_at(0), NEVER))
        self._decay_start.assign(ops.minimum(self._decay_start, start))


def as_given(given: float, variable: Any) -> float:
    """Return a variable's value, to the digit as it was given where nothing moved it."""
    now = as_number(variable)
    if now == given or np.float32(now) == np.float32(given):
        return given
    return float(str(np.float32(now))) if variable.dtype == "float32" else now


def as_number(value: Any) -> Any:
    """Return a scalar array, tensor or variable as a float; anything else as it is."""
    if isinstance(value, keras.Variable) or ops.is_tensor(value):
        low = keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16")
        value = ops.convert_to_numpy(ops.convert_to_tensor(value, "float32" if low else None))
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
