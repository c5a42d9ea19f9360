"""The learning rate r·schedule(s), η, and the position s that restarts move.

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
from keras_decoupled.schedule.rates import ScheduleRate
from keras_decoupled.schedule.timing import Timing


class Clocked(keras.optimizers.Optimizer):
    """A Keras optimizer whose rate is r·schedule(s), whatever the schedule."""

    def __init__(self, timing: Timing, **kwargs: Any) -> None:
        super().__init__(learning_rate=timing.rate, **kwargs)
        self._timing = timing
        # Scalars are computed in float32 at least: in bfloat16 0.999 is 1.
        self._scalar_dtype = "float64" if keras.config.floatx() == "float64" else "float32"
        # r: callbacks and assignments move it.
        self._factor = self._add_scalar("learning_rate_factor", timing.factor, self._scalar_dtype)
        self._cycle_start = self._add_scalar("cycle_start", -timing.t_cur, "int")
        self._warned_of_peak = False

    def _add_scalar(self, name: str, value: float, dtype: str) -> Any:
        # Like `iterations`: under tf.distribute every replica computes the same scalar.
        return self.add_variable(
            (),
            keras.initializers.Constant(value),
            dtype,
            aggregation="only_first_replica",
            name=name,
        )

    @property
    def learning_rate(self) -> Any:
        """r·schedule(s): the rate that the next update uses, before layer multipliers."""
        step = self._counters()[1]
        return self._times_factor(self._timing.rate(step))

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if callable(value):
            raise TypeError(
                "`learning_rate` can be set to a number only: it moves the factor r over the "
                f"schedule that the optimizer was made with. Received: {value!r}. For another "
                "schedule make a new optimizer."
            )
        value = checks.real(
            "learning_rate", as_number(value), minimum=0.0, cure="0 stops all steps and decay."
        )
        rate = self._timing.rate
        # Not rate(step): a float32 rate over a float32 schedule is not exactly r.
        now = rate.base * float(as_number(rate.multiplier(self._counters()[1])))
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
        if factor > 1 + 1e-6 and isinstance(self._timing.rate, ScheduleRate):
            self._warn_of_peak(factor)
        self._factor.assign(factor)

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

    @property
    def lr_t(self) -> Any:
        """The same as `learning_rate` (keras-adamw's name)."""
        return self.learning_rate

    @property
    def eta_t(self) -> Any:
        """η of the next update: r·multiplier(s)."""
        return self._eta(self._counters()[1])

    @property
    def t_cur(self) -> Any:
        """Position of the next update in its cycle; without a cosine, the schedule's step s."""
        return self._timing.position(self._counters()[1])

    @t_cur.setter
    def t_cur(self, position: int) -> None:
        self.restart(position)

    def restart(self, position: int = 0) -> None:
        """Make the next update the one at `position` of the first cycle, without the warm-up.

        Args:
            position: 0 ≤ position < T of the first cycle; -1 is 0. Defaults to `0`.

        Raises:
            ValueError: there is no schedule, or no such position in it.
            RuntimeError: on JAX, called inside an epoch of `fit` on an optimizer that is not
                `self.model.optimizer`.
        """
        step = self._timing.step_at(position)
        updates, _ = self._counters()
        self._cycle_start.assign(updates - step)

    def _eta(self, step: Any) -> Any:
        return self._times_factor(self._timing.rate.multiplier(step))

    def _times_factor(self, number: Any) -> Any:
        return ops.cast(self._factor, self._scalar_dtype) * self._cast(number)

    def _cast(self, number: Any) -> Any:
        # A Python number stays one: exact to the digits of what it will be multiplied with, where
        # TensorFlow's cast to float64 goes through float32.
        return number if isinstance(number, float) else ops.cast(number, self._scalar_dtype)

    def _counters(self) -> tuple[Any, Any]:
        """k and s of the next update; both count weight updates, never micro-batches."""
        try:
            updates = ops.convert_to_tensor(self.iterations)
            return updates, updates - ops.convert_to_tensor(self._cycle_start)
        except (TypeError, AttributeError) as error:  # the variable holds no value
            raise RuntimeError(
                "The optimizer's state is not here: inside an epoch, Keras' `fit` on JAX keeps it "
                "outside the optimizer. In a callback go through `self.model.optimizer`, which "
                "brings it back first."
            ) from error


def as_number(value: Any) -> Any:
    """Return a scalar array, tensor or variable as a float; anything else as it is."""
    if isinstance(value, keras.Variable) or ops.is_tensor(value):
        low = keras.backend.standardize_dtype(value.dtype) in ("bfloat16", "float16")
        value = ops.convert_to_numpy(ops.convert_to_tensor(value, "float32" if low else None))
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
