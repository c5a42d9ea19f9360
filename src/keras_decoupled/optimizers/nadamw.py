"""NadamW: Adam with Nesterov momentum and decoupled weight decay."""

from __future__ import annotations

import math
from typing import Any, Unpack

import keras
from keras import ops

from keras_decoupled import checks
from keras_decoupled.core.arguments import Shared
from keras_decoupled.core.decoupled import Decoupled

from .adamw import one_minus_power


def nadam(
    g: Any,
    m: Any,
    v: Any,
    *,
    rate_m: Any,
    rate_g: Any,
    correction: Any,
    beta_1: float,
    beta_2: float,
    epsilon: float,
) -> tuple[Any, tuple[Any, ...]]:
    """Return Nadam's step and its new moments; see `NadamW` for the three scalars."""
    m = m + (1 - beta_1) * (g - m)
    v = v + (1 - beta_2) * (ops.square(g) - v)
    return (rate_m * m + rate_g * g) / (ops.sqrt(v / correction) + epsilon), (m, v)


@keras.saving.register_keras_serializable(package="keras_decoupled")
class NadamW(Decoupled):
    r"""Nadam with weight decay that the learning rate does not scale.

    At update k, with i = k + 1, μ_i = β1·(1 − ½·0.96^(i·momentum_decay)), Π_i = μ_1···μ_i:

        m ← m + (1−β1)·(g − m)
        v ← v + (1−β2)·(g² − v)
        θ ← θ − η·(l2·θ + l1·sign θ)
              − η·α·m_v · [ μ_(i+1)·m/(1−Π_(i+1)) + (1−μ_i)·g/(1−Π_i) ] / (√(v/(1−β2^i)) + ε)

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of v, in [0, 1). Defaults to `0.999`.
        epsilon: ε ≥ 0, added to the corrected √v. Defaults to `1e-7`.
        momentum_decay: ψ ≥ 0 in μ_i. `0.004` is Dozat's and `torch.optim.NAdam`'s; `1.0` is
            `keras.optimizers.Nadam`. Defaults to `0.004`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1; a number, a
            schedule or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers here share; see `AdamW`.

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

    _fused_kernel = "nadamw"  # in `_torch_kernels.py` and `_tensorflow_fused.py`

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        momentum_decay: float = 0.004,
        *,
        weight_decay: Any = None,
        **shared: Unpack[Shared],
    ) -> None:
        beta_1 = checks.real("beta_1", beta_1, minimum=0.0, below=1.0, cure="0.9 is usual.")
        beta_2 = checks.real("beta_2", beta_2, minimum=0.0, below=1.0, cure="0.999 is usual.")
        epsilon = checks.real("epsilon", epsilon, minimum=0.0, cure="1e-7 is Keras' default.")
        momentum_decay = checks.real(
            "momentum_decay",
            momentum_decay,
            minimum=0.0,
            cure="0.004 is Dozat's, 1.0 is keras.optimizers.Nadam.",
        )
        super().__init__(learning_rate, weight_decay=weight_decay, **shared)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.momentum_decay = momentum_decay

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The moments m and v."""
        return ("momentum", "velocity")

    def add_scalars(self) -> None:
        """Make Π, of the updates made: a product over all of them has no closed form in k."""
        self._product = self._add_scalar("momentum_product", 1.0, self._scalar_dtype)

    def scalars(self, updates: Any) -> tuple[Any, ...]:
        """μ_(i+1)/(1−Π_(i+1)), (1−μ_i)/(1−Π_i), 1−β2^i, and Π_i to be kept."""
        mu, mu_next = self._mu(updates), self._mu(updates + 1)
        product = ops.cast(self._product, self._scalar_dtype) * mu
        return (
            mu_next / (1 - product * mu_next),
            (1 - mu) / (1 - product),
            one_minus_power(self.beta_2, updates),
            product,
        )

    def _mu(self, i: Any) -> Any:
        return self.beta_1 * (1 - 0.5 * ops.exp(i * (self.momentum_decay * math.log(0.96))))

    def end_of_update(self, scalars: tuple[Any, ...]) -> None:
        """Keep Π_i."""
        self._product.assign(scalars[3])

    def step(
        self, gradient: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Nadam's step."""
        share_m, share_g, correction, _ = scalars
        return nadam(
            gradient,
            *slots,
            rate_m=rate * share_m,
            rate_g=rate * share_g,
            correction=correction,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the config as JSON."""
        return super().get_config() | {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "momentum_decay": self.momentum_decay,
        }
