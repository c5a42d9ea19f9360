"""AdamW: Adam with independent weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.arguments import Shared, at_least_0, flag, fraction
from keras_decoupled.core.numbers import log, one_minus
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.decay.kinds import Decay


def adam(
    g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...], epsilon: Any
) -> tuple[Any, tuple[Any, ...]]:
    """Return Adam's step and its new moments; `scalars` are those of `adam_scalars`."""
    m, v, v_max = (*slots, None)[:3]  # not by `amsgrad`, which may have changed since build
    correction, _, one_minus_beta_1, one_minus_beta_2 = scalars
    rate = rate * correction
    m = m + one_minus_beta_1 * (g - m)
    v = v + one_minus_beta_2 * (ops.square(g) - v)
    if v_max is None:
        return rate * m / (ops.sqrt(v) + epsilon), (m, v)
    v_max = ops.where(v_max > v, v_max, v)  # ops.maximum gives float32 for float64 on torch
    return rate * m / (ops.sqrt(v_max) + epsilon), (m, v, v_max)


def one_minus_power(h: Any, beta: str, i: Any, on: Any) -> Any:
    """Return 1 − β^i, without cancellation if β is near 1 and i is small."""
    return -on.math.expm1(i * h.exactly(log, beta))


def adam_scalars(h: Any, i: Any, on: Any, beta_1: str, beta_2: str) -> tuple[Any, ...]:
    """Return √(1−β2^i)/(1−β1^i), √(1−β2^i), 1−β1 and 1−β2, given the names of the two β."""
    root = one_minus_power(h, beta_2, i, on) ** 0.5
    return (
        root / one_minus_power(h, beta_1, i, on),
        root,
        h.exactly(one_minus, beta_1),
        h.exactly(one_minus, beta_2),
    )


class Adam(Algorithm):
    """Adam's step. The slots are m and v, and with amsgrad the largest v."""

    arguments: ClassVar = {
        "beta_1": fraction("0.9 is usual."),
        "beta_2": fraction("0.999 is usual."),
        "epsilon": at_least_0("1e-7 is Keras' default."),
        "amsgrad": flag("False is plain AdamW."),
    }
    kernel = "adamw"
    twin_names: ClassVar = {
        "momentum": "_momentums",
        "velocity": "_velocities",
        "velocity_hat": "_velocity_hats",
    }

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """m, v, and with amsgrad the largest v."""
        return ("momentum", "velocity", "velocity_hat")[: 3 if h.amsgrad else 2]

    def scalars(self, h: Any, i: Any, on: Any, state: Mapping[str, Any]) -> tuple[Any, ...]:
        """√(1−β2^i)/(1−β1^i), √(1−β2^i), 1−β1 and 1−β2."""
        return adam_scalars(h, i, on, "beta_1", "beta_2")

    def step(
        self, h: Any, g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Adam's step."""
        return adam(g, slots, rate, scalars, h.epsilon)


@keras.saving.register_keras_serializable(package="keras_decoupled")
class AdamW(Decoupled):
    r"""Adam with independent weight decay: the base learning rate never multiplies it.

    At update k, with i = k + 1, gradient g, moments m and v:

        m ← m + (1−β1)·(g − m)
        v ← v + (1−β2)·(g² − v)
        θ ← θ − η·(l2·θ + l1·sign θ) − η·α·m_v · √(1−β2^i)/(1−β1^i) · m/(√v + ε)

    with θ on the right the value before the update, η = (learning rate now)/α, m_v the variable's
    learning-rate multiplier and (l1, l2) its decay. With `amsgrad`, the step uses the largest v.
    `keras.optimizers.AdamW(α, weight_decay=w)` is this with weight_decay = α·w. `Decay` has other
    kinds of decay. If a β changes, 1−β^i uses the β of this update, as in torch and optax.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of v, in [0, 1). Defaults to `0.999`.
        epsilon: ε ≥ 0, added to √v before the bias correction ("epsilon hat", as in
            `keras.optimizers.Adam`). Defaults to `1e-7`.
        amsgrad: whether to divide by the largest √v so far. Defaults to `False`.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: an argument is out of its range, or a key matches no variable (at build).
        TypeError: an argument has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import AdamW
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> optimizer = AdamW(1e-3, weight_decay=1e-4, weight_decays={"bias": 0})
    >>> model.compile(optimizer, loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101,
    Algorithm 2; amsgrad: Reddi et al., arXiv 1904.09237.
    """

    _kd_algorithm = Adam()
    _kd_twins = (keras.optimizers.Adam, keras.optimizers.AdamW)
    beta_1: float | LearningRateSchedule
    beta_2: float | LearningRateSchedule
    epsilon: float | LearningRateSchedule
    amsgrad: bool

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float | LearningRateSchedule = 0.999,
        epsilon: float | LearningRateSchedule = 1e-7,
        amsgrad: bool = False,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon, "amsgrad": amsgrad}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
