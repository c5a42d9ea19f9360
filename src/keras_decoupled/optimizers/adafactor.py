"""Adafactor with independent weight decay."""

from __future__ import annotations

from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Adafactor(Stock, keras.optimizers.Adafactor):
    r"""Adafactor with independent weight decay: the base learning rate never multiplies it.

    At update k, with i = k + 1, gradient g, β = 1 − i^beta_2_decay and rms(x) = √mean(x²), for a
    variable of two or more dimensions:

        r ← β·r + (1−β)·(mean of g² + ε1 over the last axis)
        c ← β·c + (1−β)·(mean of g² + ε1 over the last axis but one)
        v = r·c/(mean of r over its last axis), as an outer product of rows r and columns c

    for others v ← β·v + (1−β)·(g² + ε1), and for all

        s = g/√v
        u = min(η·α·m_v, 1/√i) · max(ε2, rms(θ)) · s/max(1, rms(s)/clip_threshold)
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. So the rate that is used is at most 1/√(k+1), after a
    million updates 0.001, while the decay goes by η alone; and a step is relative: it grows with
    the weights. The step is that of `keras.optimizers.Adafactor`, which keeps v, too.
    `keras.optimizers.Adafactor(α, weight_decay=w)` is this with weight_decay = α·w but for rms(θ),
    which stock Keras takes after the decay: its steps are up to the fraction η·α·w shorter. That
    decay, too, goes by the whole rate, without the bound. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, relative to the size of the weights, or a `LearningRateSchedule`, or a
            callable; the paper has 0.01. Defaults to `0.001`.
        beta_2_decay: exponent of β = 1 − (k+1)^beta_2_decay, < 0. Defaults to `-0.8`.
        epsilon_1: ε1 > 0, added to g², in its units. Defaults to `1e-30`.
        epsilon_2: ε2 ≥ 0, the least size of a weight that a step is relative to, in units of θ:
            weights that start at 0 would stay there without. Defaults to `1e-3`.
        clip_threshold: the largest root mean square of s, > 0, where 1 is usual; apart from
            `clipnorm` and its kin, which clip the gradient. Defaults to `1.0`.
        relative_step: kept for configs of Keras, where it changes nothing: the rate is at most
            1/√(k+1) with either value, under a schedule, too. Defaults to `True`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, or a
            key matches no variable (at build). Keras does not check the other arguments.
        TypeError: one of these has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Adafactor
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(Adafactor(1e-2, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Shazeer & Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, arXiv
    1804.04235, Algorithms 4 (matrices) and 5 (vectors), with the hyperparameters of Algorithm 6 but
    for α; the decay: Loshchilov & Hutter, arXiv 1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float = 1.0,
        relative_step: bool = True,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {
            "beta_2_decay": beta_2_decay,
            "epsilon_1": epsilon_1,
            "epsilon_2": epsilon_2,
            "clip_threshold": clip_threshold,
            "relative_step": relative_step,
        }
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
