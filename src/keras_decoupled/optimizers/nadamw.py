"""NadamW: Adam with Nesterov momentum and independent weight decay.

What differs from AdamW: the step looks one update ahead, so the gradient enters it directly. The
momentum μ_i grows over the first updates, and the product Π of all μ_i is saved. ε is added to √v
after the bias correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.arguments import Shared, at_least_0, fraction
from keras_decoupled.core.numbers import one_minus
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.optimizers.adamw import one_minus_power


class Nadam(Algorithm):
    """Nadam's step. The slots are m and v. Π, the product of all μ so far, is saved beside them."""

    arguments: ClassVar = {
        "beta_1": fraction("0.9 is usual."),
        "beta_2": fraction("0.999 is usual."),
        "epsilon": at_least_0("1e-7 is Keras' default."),
        "momentum_decay": at_least_0("0.004 is Dozat's, 1.0 keras.optimizers.Nadam's."),
    }
    kernel = "nadamw"
    state: ClassVar = {"momentum_product": 1.0}
    twin_arguments: ClassVar = {"momentum_decay": 1.0}
    twin_names: ClassVar = {
        "momentum": "_momentums",
        "velocity": "_velocities",
        "momentum_product": "_u_product",
    }

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """The moments m and v."""
        return ("momentum", "velocity")

    def scalars(self, h: Any, i: Any, on: Any, state: Mapping[str, Any]) -> tuple[Any, ...]:
        """μ_(i+1)/(1−Π_(i+1)), (1−μ_i)/(1−Π_i), 1−β2^i, Π_i, 1−β1 and 1−β2."""

        def mu(i: Any) -> Any:
            return h.beta_1 * (1 - 0.5 * on.math.exp(i * (h.momentum_decay * math.log(0.96))))

        mu_i, mu_next = mu(i), mu(i + 1)
        product = state["momentum_product"] * mu_i
        return (
            mu_next / (1 - product * mu_next),
            (1 - mu_i) / (1 - product),
            one_minus_power(h, "beta_2", i, on),
            product,
            h.exactly(one_minus, "beta_1"),
            h.exactly(one_minus, "beta_2"),
        )

    def new_state(self, scalars: tuple[Any, ...]) -> dict[str, Any]:
        """Π_i."""
        return {"momentum_product": scalars[3]}

    def step(
        self, h: Any, g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Nadam's step."""
        share_m, share_g, correction, _, one_minus_beta_1, one_minus_beta_2 = scalars
        m, v = slots
        m = m + one_minus_beta_1 * (g - m)
        v = v + one_minus_beta_2 * (ops.square(g) - v)
        root = ops.sqrt(v / correction)
        return (rate * share_m * m + rate * share_g * g) / (root + h.epsilon), (m, v)


@keras.saving.register_keras_serializable(package="keras_decoupled")
class NadamW(Decoupled):
    r"""Nadam with independent weight decay: the base learning rate never multiplies it.

    At update k, with i = k + 1, μ_i = β1·(1 − ½·0.96^(i·momentum_decay)), Π_i = μ_1···μ_i:

        m ← m + (1−β1)·(g − m)
        v ← v + (1−β2)·(g² − v)
        θ ← θ − η·(l2·θ + l1·sign θ)
              − η·α·m_v · [ μ_(i+1)·m/(1−Π_(i+1)) + (1−μ_i)·g/(1−Π_i) ] / (√(v/(1−β2^i)) + ε)

    with θ on the right the value before the update, η = (learning rate now)/α, m_v the variable's
    learning-rate multiplier, (l1, l2) its decay. `Decay` has other kinds. If β1 or momentum_decay
    changes, Π keeps its earlier factors, and μ_i and μ_(i+1) use the numbers of this update.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of v, in [0, 1). Defaults to `0.999`.
        epsilon: ε ≥ 0, added to √v after its bias correction. Defaults to `1e-7`.
        momentum_decay: ≥ 0, in μ_i. `0.004` is Dozat's and `torch.optim.NAdam`'s; `1.0` is
            `keras.optimizers.Nadam`. Defaults to `0.004`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: an argument is out of its range, or a key matches no variable (at build).
        TypeError: an argument has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import NadamW
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(NadamW(1e-3, weight_decay=1e-4), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Dozat, *Incorporating Nesterov Momentum into Adam* (2016), Algorithm 2; the decay:
    Loshchilov & Hutter, arXiv 1711.05101, Algorithm 2.
    """

    _kd_algorithm = Nadam()
    _kd_twins = (keras.optimizers.Nadam,)
    beta_1: float | LearningRateSchedule
    beta_2: float | LearningRateSchedule
    epsilon: float | LearningRateSchedule
    momentum_decay: float | LearningRateSchedule

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float | LearningRateSchedule = 0.999,
        epsilon: float | LearningRateSchedule = 1e-7,
        momentum_decay: float | LearningRateSchedule = 0.004,
        *,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        own = {"beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
        own["momentum_decay"] = momentum_decay
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
