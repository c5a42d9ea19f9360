"""Adamax with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Adamax(Stock, keras.optimizers.Adamax):
    r"""Adamax with independent weight decay: the base learning rate never multiplies it.

    At update k, with i = k + 1, gradient g, momentum m and a fading maximum n of |g|:

        m ← m + (1−β1)·(g − m)
        n ← max(β2·n, |g|)
        u = η·α·m_v · m/((1−β1^i)·(n + ε))
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. The step is that of `keras.optimizers.Adamax`, and
    `keras.optimizers.Adamax(α, weight_decay=w)` is this with weight_decay = α·w. `Decay` has other
    kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of n, in [0, 1). Defaults to `0.999`.
        epsilon: ε > 0, added to n, in units of g. Defaults to `1e-7`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, or a
            key matches no variable (at build). Keras does not check the other arguments.
        TypeError: one of these has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Adamax
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(Adamax(2e-3, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Kingma & Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980, Algorithm 2,
    with ε added; the decay: Loshchilov & Hutter, arXiv 1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
