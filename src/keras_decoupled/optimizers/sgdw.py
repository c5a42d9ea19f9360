"""SGDW: stochastic gradient descent with momentum and independent weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Unpack

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.arguments import Shared, flag, fraction
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.decay.kinds import Decay


class SGD(Algorithm):
    """SGD's step. Its one slot is the buffer, if there is momentum."""

    arguments: ClassVar = {
        "momentum": fraction("0 is none, 0.9 is usual."),
        "nesterov": flag("False is plain momentum."),
    }
    kernel = "sgdw"
    twin_names: ClassVar = {"momentum": "momentums"}

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """The buffer, if there is momentum."""
        return ("momentum",) if h.momentum else ()

    def step(
        self, h: Any, g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """SGD's step. The buffer holds learning rate times gradient."""
        if not slots:
            return rate * g, ()
        buf = h.momentum * slots[0] - rate * g
        return (rate * g - h.momentum * buf if h.nesterov else -buf), (buf,)


@keras.saving.register_keras_serializable(package="keras_decoupled")
class SGDW(Decoupled):
    r"""SGD with momentum and independent weight decay: the base learning rate never multiplies it.

        buf ← momentum·buf − η·α·m_v·g
        θ ← θ − η·(l2·θ + l1·sign θ) + buf

    With `nesterov`, the last term is + momentum·buf − η·α·m_v·g instead. g is the gradient, θ on
    the right the value before the update, η = (learning rate now)/α, m_v the variable's
    learning-rate multiplier and (l1, l2) its decay. As in Algorithm 1, the
    buffer includes the learning rate, and not the decay: when η falls to 0, momentum still moves
    the weights. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.01`.
        momentum: fraction of the buffer kept per update, in [0, 1). An optimizer that is built with
            0 has no buffer, and its momentum stays 0. Defaults to `0.0`.
        nesterov: whether to step by the buffer of the next update. Defaults to `False`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: an argument is out of its range, or a key matches no variable (at build).
        TypeError: an argument has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import SGDW
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(SGDW(0.1, momentum=0.9, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101,
    Algorithm 1.
    """

    _kd_algorithm = SGD()
    _kd_twins = (keras.optimizers.SGD,)
    momentum: float | LearningRateSchedule
    nesterov: bool

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.01,
        momentum: float | LearningRateSchedule = 0.0,
        nesterov: bool = False,
        *,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"momentum": momentum, "nesterov": nesterov}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
