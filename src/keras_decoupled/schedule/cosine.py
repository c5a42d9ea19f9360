"""`CosineWarmRestarts`: cosine annealing with warm restarts at exact integer boundaries."""

from __future__ import annotations

import inspect
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_decoupled.checks import Seen, flag, real, refuse

from .exact import INT32_MAX, ExactSchedule, length, real_tensor, tensor

_MAX_CYCLES = 100_000
_RADIX = 2048  # m_mul^i is computed from the digits of i: at most three to this base


@keras.saving.register_keras_serializable(package="keras_decoupled")
class CosineWarmRestarts(ExactSchedule):
    r"""Cosine annealing with warm restarts (SGDR), exact at every boundary.

    Cycle i lasts `T_i = round(first_decay_steps · t_mul^i)` updates, at most 2³¹ − 1. At update s
    of the cycle, counted from 0,

        learning rate = initial_learning_rate · η
        η = eta_min + ½(eta_max·m_mul^i − eta_min)(1 + cos(π·s/(T_i − 1)))      endpoint=True
        η = eta_min + ½(eta_max·m_mul^i − eta_min)(1 + cos(π·s/T_i))            endpoint=False

    Once, before the first cycle, `η = eta_max·(k + 1)/(warmup_steps + 1)` for the steps
    `k < warmup_steps`. The boundaries come from integer arithmetic, for steps up to 2³¹ − 2.

    Every method takes an integer, an array of integers, a variable or a traced tensor, and returns
    a tensor. η and the rate are float32, or float64 if floatx is float64. Counts are int32.

    Args:
        initial_learning_rate: learning rate at η = 1, the base learning rate α; ≥ 0.
        first_decay_steps: T of the first cycle, in updates; ≥ 1, or ≥ 2 with `endpoint`; < 2³¹.
        t_mul: factor from each cycle's length to the next; ≥ 1. Default 1.
        m_mul: factor from each cycle's peak to the next; ≥ 0. Default 1.
        eta_min: η at the end of every cycle; ≥ 0. Default 0.
        eta_max: η at the start of the first cycle; ≥ `eta_min`. Default 1.
        warmup_steps: updates of linear warm-up before the first cycle; ≥ 0. Default 0.
        endpoint: True (default): the last update of a cycle is at `eta_min` exactly. False: the
            restart comes when `eta_min` would be reached, as in SGDR, Keras and torch.
        autorestart: False: one cycle only, after which η stays at `eta_min`. Default True.
        name: a label, saved in the config.

    Raises:
        TypeError: an argument has the wrong type; a bool is not a number here.
        ValueError: an argument is out of range or not finite, or `t_mul` > 1 makes more than
            100,000 cycles.

    Example:
    >>> from keras_decoupled import AdamW, CosineWarmRestarts
    >>> schedule = CosineWarmRestarts(0.1, first_decay_steps=3, t_mul=2.0)
    >>> [round(float(schedule(step)), 3) for step in range(10)]
    [0.1, 0.05, 0.0, 0.1, 0.09, 0.065, 0.035, 0.01, 0.0, 0.1]
    >>> int(schedule.cycle(8)), int(schedule.position(8)), int(schedule.cycle_steps(8))
    (1, 5, 6)
    >>> optimizer = AdamW(schedule, weight_decay=1e-4)  # or any Keras optimizer

    References:
        Loshchilov & Hutter: https://arxiv.org/abs/1608.03983, eq. 5; 1711.05101, Appendix B.2
    """

    def __init__(
        self,
        initial_learning_rate: float,
        first_decay_steps: int,
        t_mul: float = 1.0,
        m_mul: float = 1.0,
        eta_min: float = 0.0,
        eta_max: float = 1.0,
        warmup_steps: int = 0,
        endpoint: bool = True,
        autorestart: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(initial_learning_rate, warmup_steps, name)
        self.endpoint = flag("endpoint", endpoint, cure="True ends a cycle at eta_min exactly.")
        self.autorestart = flag("autorestart", autorestart, cure="False stays at eta_min.")
        self.first_decay_steps = length(
            "first_decay_steps",
            first_decay_steps,
            minimum=2 if self.endpoint else 1,
            cure="It counts updates; with endpoint=True a cycle needs 2, its peak and its end.",
        )
        self.t_mul = real("t_mul", t_mul, minimum=1, cure="Pass 1 for cycles of equal length.")
        self.m_mul = real("m_mul", m_mul, minimum=0, cure="Pass 1 for peaks of equal height.")
        self.eta_min = real("eta_min", eta_min, minimum=0, cure="It is η at the end of a cycle.")
        self.eta_max = real("eta_max", eta_max, minimum=0, cure="It is η at the first peak.")
        if self.eta_min > self.eta_max:
            received = Seen(f"eta_min={eta_min!r}, eta_max={eta_max!r}")
            rule = "must be ≤ `eta_max`: a cycle falls from eta_max to eta_min"
            refuse("eta_min", received, rule, "Lower eta_min.")

        limit = INT32_MAX - self.warmup_steps
        starts, lengths = self._cycles(limit)
        self._starts, self._lengths = np.array(starts, "int32"), np.array(lengths, "int32")
        self._equal = self.autorestart and self.t_mul == 1  # then all cycles have the first length
        last_cycle = max(limit - 1, 0) // lengths[0] if self._equal else len(starts) - 1
        # m_mul^i is a product with one factor for each digit of i. Each factor is a float64 that is
        # rounded once, so the product is right to the last bits, also at cycle 2³¹ − 1. A power
        # computed in float32 is not.
        self._m_powers = []
        for unit in (1, _RADIX, _RADIX**2):
            if self.m_mul != 1 and unit <= last_cycle:
                digits = np.arange(min(_RADIX, last_cycle // unit + 1), dtype="float64")
                with np.errstate(over="ignore"):
                    self._m_powers.append((unit, self.m_mul ** (unit * digits)))

    def _cycles(self, limit: int) -> tuple[list[int], list[int]]:
        """Return starts and lengths of the cycles that start before `limit`.

        If all cycles are equal, only the first is returned.
        """
        starts, lengths = [0], [self.first_decay_steps]
        growing = self.autorestart and self.t_mul > 1
        while growing and starts[-1] + lengths[-1] < limit:
            if len(starts) == _MAX_CYCLES:
                refuse(
                    "t_mul",
                    Seen(f"t_mul={self.t_mul!r} with first_decay_steps={lengths[0]!r}"),
                    f"> 1 must make at most {_MAX_CYCLES:,} cycles before step 2**31 - 1",
                    "Pass t_mul=1 for cycles of equal length, or a larger t_mul.",
                )
            starts.append(starts[-1] + lengths[-1])
            lengths.append(round(min(lengths[0] * self.t_mul ** len(lengths), INT32_MAX)))
        return starts, lengths

    def cycle(self, step: Any) -> Any:
        """The index i of the cycle at `step`, from 0."""
        return self._cycle_at(super().position(step))[0]

    def position(self, step: Any) -> Any:
        """The position s in the cycle at `step`: 0 in the warm-up, T − 1 after the only cycle."""
        _, elapsed, T = self._cycle_at(super().position(step))
        return ops.minimum(elapsed, T - 1)

    def cycle_steps(self, step: Any) -> Any:
        """T of the cycle at `step`, in updates."""
        return self._cycle_at(super().position(step))[2]

    def _cycle_at(self, s: Any) -> tuple[Any, Any, Any]:
        """Return the cycle's index i, the updates since it began, and T; `s` is as in `_eta`.

        After the only cycle, the updates since it began are T or more.
        """
        if self._equal:
            T = int(self._lengths[0])
            return s // T, s % T, ops.full_like(s, T)
        starts, lengths = tensor(self._starts), tensor(self._lengths)
        vector = ops.reshape(s, (-1,))  # TensorFlow searches for vectors only
        i = ops.reshape(ops.searchsorted(starts, vector, side="right") - 1, ops.shape(s))
        return i, s - ops.take(starts, i), ops.take(lengths, i)

    def _eta(self, s: Any) -> Any:
        i, elapsed, T = self._cycle_at(s)
        eta_min = real_tensor(self.eta_min)
        dtype = keras.backend.standardize_dtype(eta_min.dtype)
        peak = self.eta_max * ops.ones_like(i, dtype)
        for unit, powers in self._m_powers:
            powers = np.minimum(powers, np.finfo(dtype).max).astype(dtype)
            peak = peak * ops.take(tensor(powers), i // unit % _RADIX)

        # ½(1 + cos(π·s/span)) = sin²(½π·(span − s)/span): near the end of a cycle, where 1 + cos
        # has no digits left in float32, the integer span − s is still exact.
        span = T - int(self.endpoint)
        left = span - elapsed
        wave = ops.square(ops.sin(math.pi / 2 * (ops.cast(left, dtype) / ops.cast(span, dtype))))
        eta = eta_min + (peak - eta_min) * wave
        # The two ends are exact, however XLA rounds. After the only cycle, left is negative.
        return ops.where(elapsed == 0, peak, ops.where(left <= 0, eta_min, eta))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, as `from_config` takes them."""
        names = inspect.signature(CosineWarmRestarts).parameters
        return {name: getattr(self, name) for name in names}
