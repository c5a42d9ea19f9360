"""`WarmupStableDecay`: a warm-up, a constant rate for as long as you like, a decay at the end."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, Self

import keras
from keras import ops

from keras_decoupled.checks import real, refuse

from .exact import INT32_MAX, ExactSchedule, length, real_tensor

# f as a function of 1 − x and x. 1 − x is computed from integers, so it is exact near the end of
# the decay. 1 minus a float32 x would not be exact there.
SHAPES: dict[str, Callable[[Any, Any], Any]] = {
    "1-sqrt": lambda left, x: left / (1 + ops.sqrt(x)),  # = 1 − √x
    "linear": lambda left, x: left,
    "cosine": lambda left, x: ops.square(ops.sin(math.pi / 2 * left)),  # = ½(1 + cos πx)
}
NEVER = INT32_MAX  # a step that no run reaches


@keras.saving.register_keras_serializable(package="keras_decoupled")
class WarmupStableDecay(ExactSchedule):
    r"""Warm-up, stable part, decay (WSD), exact at every boundary.

    The learning rate is `initial_learning_rate · η`. In the warm-up, for the steps
    `k < warmup_steps`, `η = (k + 1)/(warmup_steps + 1)`. Then η is 1 for `stable_steps` updates.
    Then comes the decay: at its updates j = 0, …, `decay_steps` − 1, with
    `x = j/(decay_steps − 1)`,

        η = eta_min + (1 − eta_min)·f(x)
        f(x) = 1 − √x  ("1-sqrt"),   1 − x  ("linear")   or   ½(1 + cos πx)  ("cosine")

    So η is 1 at the first update of the decay, and exactly `eta_min` at the last and from then on.

    The stable part can be trained for as long as there is data. A decay from any of its checkpoints
    gives a finished model. With `stable_steps=None` the stable part lasts until
    `optimizer.begin_decay()`, which only the optimizers of this package have. With other optimizers
    it never ends.

    Every method takes an integer, an array of integers, a variable or a traced tensor, and returns
    a tensor. η and the rate are float32, or float64 if floatx is float64. Positions are int32.
    Steps up to 2³¹ − 2 are exact.

    Args:
        initial_learning_rate: learning rate at η = 1, the base learning rate α; ≥ 0.
        stable_steps: updates from the end of the warm-up to the first of the decay; ≥ 0. None:
            until `optimizer.begin_decay()`.
        decay_steps: updates of the decay; ≥ 2.
        warmup_steps: updates of linear warm-up before the stable part; ≥ 0. Default 0.
        shape: shape of the decay: "1-sqrt" (default), "linear" or "cosine".
        eta_min: η at the end of the decay and from then on; 0 ≤ eta_min < 1. Default 0.
        name: a label, saved in the config.

    Raises:
        TypeError: an argument has the wrong type; a bool is not a number here.
        ValueError: an argument is out of range or not finite, or the shape is unknown.

    Example:
    >>> from keras_decoupled import AdamW, WarmupStableDecay
    >>> schedule = WarmupStableDecay(0.1, stable_steps=2, decay_steps=5, warmup_steps=1)
    >>> [round(float(schedule(step)), 3) for step in range(9)]
    [0.05, 0.1, 0.1, 0.1, 0.05, 0.029, 0.013, 0.0, 0.0]
    >>> optimizer = AdamW(WarmupStableDecay(1e-3, None, decay_steps=1000), weight_decay=1e-4)
    >>> optimizer.begin_decay()

    References:
        Hu et al.: https://arxiv.org/abs/2404.06395, section 4; shapes: 2508.01483
    """

    def __init__(
        self,
        initial_learning_rate: float,
        stable_steps: int | None,
        decay_steps: int,
        warmup_steps: int = 0,
        shape: str = "1-sqrt",
        eta_min: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__(initial_learning_rate, warmup_steps, name)
        cure = "None means until optimizer.begin_decay()."
        if stable_steps is not None:
            stable_steps = length("stable_steps", stable_steps, minimum=0, cure=cure)
        self.stable_steps = stable_steps
        cure = "It counts updates, and needs 2: the first is at η = 1, the last at eta_min."
        self.decay_steps = length("decay_steps", decay_steps, minimum=2, cure=cure)
        if not isinstance(shape, str) or shape not in SHAPES:
            error = ValueError if isinstance(shape, str) else TypeError
            rule = f"must be one of {', '.join(map(repr, SHAPES))}"
            refuse("shape", shape, rule, "'1-sqrt' is a good start.", error)
        self.shape = shape
        cure = "It is η at the end of the decay, which begins at 1."
        self.eta_min = real("eta_min", eta_min, minimum=0, below=1, cure=cure)
        # The step of the decay's first update.
        own = NEVER if stable_steps is None else self.warmup_steps + stable_steps
        self._start: Any = min(own, NEVER)

    def starting(self, start: Any) -> Self:
        """Return the same schedule with its decay from the step `start`, if that comes earlier.

        `start` is a number, or in an update a tensor.
        """
        other = copy.copy(self)
        if ops.is_tensor(start):
            other._start = ops.minimum(ops.cast(start, "int32"), self._start)
        else:
            other._start = min(start, self._start)
        return other

    def _eta(self, s: Any) -> Any:
        one, eta_min = real_tensor(1.0), real_tensor(self.eta_min)
        dtype = keras.backend.standardize_dtype(one.dtype)
        span = self.decay_steps - 1
        j = ops.clip(s - (self._start - self.warmup_steps), 0, span)
        left = ops.cast(span - j, dtype) / float(span)  # the integer span − j is exact
        falling = SHAPES[self.shape](left, ops.cast(j, dtype) / float(span))
        eta = self.eta_min + (1 - self.eta_min) * falling
        # The two ends are exact, however XLA rounds.
        return ops.where(j == 0, one, ops.where(j == span, eta_min, eta))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments, as `from_config` takes them."""
        names = inspect.signature(WarmupStableDecay).parameters
        return {name: getattr(self, name) for name in names}
