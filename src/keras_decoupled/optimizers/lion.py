"""Lion with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Lion(Stock, keras.optimizers.Lion):
    r"""Lion with independent weight decay: the base learning rate never multiplies it.

    With gradient g and momentum m:

        u = η·α·m_v · sign(β1·m + (1−β1)·g)
        m ← β2·m + (1−β2)·g
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. The step is that of `keras.optimizers.Lion`, and
    `keras.optimizers.Lion(α, weight_decay=w)` is this with weight_decay = α·w. `Decay` has other
    kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Lion's steps are larger than
            Adam's: a third to a tenth of Adam's rate is usual. Defaults to `0.001`.
        beta_1: β1, share of m in the step, in (0, 1]. Defaults to `0.9`.
        beta_2: β2, decay rate of m. Defaults to `0.99`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: an argument is out of its range, or a key matches no variable (at build).
        TypeError: an argument has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Lion
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(Lion(1e-4, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Chen et al., *Symbolic Discovery of Optimization Algorithms*, arXiv 2302.06675,
    Algorithm 2; the decay: Loshchilov & Hutter, arXiv 1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"beta_1": beta_1, "beta_2": beta_2}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
