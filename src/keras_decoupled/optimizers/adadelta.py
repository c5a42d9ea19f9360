"""Adadelta with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Adadelta(Stock, keras.optimizers.Adadelta):
    r"""Adadelta with independent weight decay: the base learning rate never multiplies it.

    With gradient g, its mean square v and the mean square d of what δ was, both 0 at first:

        v ← ρ·v + (1−ρ)·g²
        δ = √(d + ε)/√(v + ε) · g
        d ← ρ·d + (1−ρ)·δ²
        u = η·α·m_v · δ
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. The step is that of `keras.optimizers.Adadelta`, and
    `keras.optimizers.Adadelta(α, weight_decay=w)` is this with weight_decay = α·w. `Decay` has
    other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. The paper has none, which is
            α = 1. Defaults to `0.001`.
        rho: ρ, the fraction of v and d kept per update, in [0, 1). Defaults to `0.95`.
        epsilon: ε > 0, added to both under the root, in units of g² and of θ². The first steps
            are of about the size √ε, so that with a larger one they grow sooner. Defaults to
            `1e-7`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, or a
            key matches no variable (at build). Keras does not check the other arguments.
        TypeError: one of these has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Adadelta
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(Adadelta(1.0, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Zeiler, *ADADELTA: An Adaptive Learning Rate Method*, arXiv 1212.5701, Algorithm 1; the
    decay: Loshchilov & Hutter, arXiv 1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"rho": rho, "epsilon": epsilon}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
