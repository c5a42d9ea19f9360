"""Lamb with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Lamb(Stock, keras.optimizers.Lamb):
    r"""Lamb with independent weight decay: the base learning rate never multiplies it.

    At update k, with i = k + 1, gradient g, moments m and v, and ‖·‖ the root of the sum of the
    squares over a variable:

        m ← m + (1−β1)·(g − m)
        v ← v + (1−β2)·(g² − v)
        r = m/(1−β1^i) / (√(v/(1−β2^i)) + ε)
        u = η·α·m_v · ‖θ‖/‖r‖ · r, and η·α·m_v · r where one of the norms is 0
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. So α is the length of a step over that of the weights.
    Unlike in the paper, the decay enters neither norm. The step is that of `keras.optimizers.Lamb`.
    `keras.optimizers.Lamb(α, weight_decay=w)` is this with weight_decay = α·w but for ‖θ‖, which
    stock Keras takes after the decay: its steps are shorter by the fraction η·α·w. `Decay` has
    other kinds of decay.

    Args:
        learning_rate: α, relative to the norm of the weights, or a `LearningRateSchedule`, or a
            callable. Defaults to `0.001`.
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of v, in [0, 1). Defaults to `0.999`.
        epsilon: ε > 0, added to the root of v after its bias correction, in units of g. Defaults
            to `1e-7`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, or a
            key matches no variable (at build). Keras does not check the other arguments.
        TypeError: one of these has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Lamb
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(Lamb(1e-3, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*,
    arXiv 1904.00962, Algorithm 2 without its λ, φ the identity; the decay: Loshchilov & Hutter,
    arXiv 1711.05101.
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
