"""Adagrad with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Adagrad(Stock, keras.optimizers.Adagrad):
    r"""Adagrad with independent weight decay: the base learning rate never multiplies it.

    With gradient g and the sum v of its squares, which starts at initial_accumulator_value:

        v ← v + g²
        u = η·α·m_v · g/√(v + ε)
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. The steps get smaller as v grows, and the decay does not:
    in a long run it wins, unless a schedule lowers η. The step is that of
    `keras.optimizers.Adagrad`, and `keras.optimizers.Adagrad(α, weight_decay=w)` is this with
    weight_decay = α·w. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Larger ones than Adam's are usual,
            0.01 to 1. Defaults to `0.001`.
        initial_accumulator_value: v before the first update, ≥ 0, in units of g². Defaults to
            `0.1`.
        epsilon: ε ≥ 0, added to v under the root, in units of g². Defaults to `1e-7`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, or a
            key matches no variable (at build). Keras does not check the other arguments.
        TypeError: one of these has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Adagrad
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(Adagrad(1e-2, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Duchi, Hazan & Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization*, JMLR 12 (2011), Figure 1, with ε under the root in place of δ beside it; the
    decay: Loshchilov & Hutter, arXiv 1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"initial_accumulator_value": initial_accumulator_value, "epsilon": epsilon}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
