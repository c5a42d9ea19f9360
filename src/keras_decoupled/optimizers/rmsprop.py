"""RMSprop with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class RMSprop(Stock, keras.optimizers.RMSprop):
    r"""RMSprop with independent weight decay: the base learning rate never multiplies it.

    With gradient g, its mean square v and momentum b:

        v ← ρ·v + (1−ρ)·g²
        b ← momentum·b + η·α·m_v · g/√(v + ε)
        u = b
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. With `centered`, the mean of the gradient is kept as well,
    a ← ρ·a + (1−ρ)·g, and v − a² + ε is under the root. The rate is part of b: with momentum,
    steps follow a change of the rate slowly, the decay at once. The step is that of
    `keras.optimizers.RMSprop`, and `keras.optimizers.RMSprop(α, weight_decay=w)` is this with
    weight_decay = α·w. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        rho: ρ, the fraction of v (and a) kept per update, in [0, 1). Defaults to `0.9`.
        momentum: fraction of b kept per update, in [0, 1). Defaults to `0.0`, plain steps.
        epsilon: ε > 0, added under the root, in units of g². Defaults to `1e-7`.
        centered: whether to divide by the deviation of the gradient from its mean, and not by its
            size. Defaults to `False`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, or a
            key matches no variable (at build). Keras does not check the other arguments.
        TypeError: one of these has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import RMSprop
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(RMSprop(1e-3, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Tieleman & Hinton, *Neural Networks for Machine Learning*, Coursera (2012), lecture 6e,
    slide 29; centered and with momentum: Graves, arXiv 1308.0850, p. 23; the decay: Loshchilov &
    Hutter, arXiv 1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"rho": rho, "momentum": momentum, "epsilon": epsilon, "centered": centered}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
