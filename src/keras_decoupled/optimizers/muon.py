"""Muon with independent weight decay."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Unpack

import keras

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.stock import Stock


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Muon(Stock, keras.optimizers.Muon):
    r"""Muon with independent weight decay: the base learning rate never multiplies it.

    Variables of two dimensions, except embeddings and what `exclude_layers` names, are stepped by
    Muon, with gradient g and momentum m:

        m ← momentum·m + g
        u = η·α·m_v · rms_rate·√max(rows, columns) · orthogonalized(g + momentum·m)

    (nesterov=False: of m; rms_rate=None: without the factor and the root), all others by Adam, at
    adam_lr_ratio times the rate. Then

        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, and m_v the
    variable's learning-rate multiplier. There is one λ for both parts, unless `weight_decays` says
    otherwise. Which part a variable belongs to is decided at the first build and saved. The step is
    that of `keras.optimizers.Muon`. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        adam_beta_1: β1 of the Adam part. Defaults to `0.9`.
        adam_beta_2: β2 of the Adam part. Defaults to `0.999`.
        epsilon: ε of the Adam part. Defaults to `1e-7`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        exclude_layers: regular expressions; variables in whose path one is found go to the Adam
            part. The output layer belongs there. Defaults to `None`, no expression.
        exclude_embeddings: whether variables with "embedding" in their path go to the Adam part.
            Defaults to `True`.
        muon_a: first coefficient of the Newton-Schulz iteration. Defaults to `3.4445`.
        muon_b: second coefficient. Defaults to `-4.775`.
        muon_c: third coefficient. Defaults to `2.0315`.
        adam_lr_ratio: the Adam part's learning rate over that of Muon. Defaults to `1`.
        momentum: fraction of m kept per update. Defaults to `0.95`.
        ns_steps: number of Newton-Schulz iterations. Defaults to `5`.
        nesterov: whether to step by the momentum of the update to come. Defaults to `True`.
        rms_rate: the root mean square of a step at rate 1, about; Adam's is 0.2 to 0.4. None
            leaves the orthogonalized matrix as it is. Defaults to `0.2`.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: an argument is unknown (`adam_weight_decay`, say), a key matches no variable
            (at build), or Keras is older than 3.13.
        TypeError: an argument has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Muon
    >>> layers = [keras.layers.Dense(8), keras.layers.Dense(1, name="head")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> model.compile(Muon(1e-3, weight_decay=1e-4, exclude_layers=["head"]), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024); the
    factor rms_rate: Liu et al., arXiv 2502.16982; the decay: Loshchilov & Hutter, arXiv
    1711.05101.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.999,
        *,
        epsilon: float = 1e-7,
        weight_decay: Any = None,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float = 3.4445,
        muon_b: float = -4.7750,
        muon_c: float = 2.0315,
        adam_lr_ratio: float = 1,
        momentum: float = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | None = 0.2,
        **shared: Unpack[Shared],
    ) -> None:
        if "rms_rate" not in inspect.signature(keras.optimizers.Muon.__init__).parameters:
            raise ValueError(
                "`Muon` needs Keras 3.13 or later: before that, its step and arguments were others. "
                f"Received: Keras {keras.__version__}. Upgrade Keras."
            )
        own = {
            "adam_beta_1": adam_beta_1,
            "adam_beta_2": adam_beta_2,
            "epsilon": epsilon,
            "exclude_layers": exclude_layers,
            "exclude_embeddings": exclude_embeddings,
            "muon_a": muon_a,
            "muon_b": muon_b,
            "muon_c": muon_c,
            "adam_lr_ratio": adam_lr_ratio,
            "momentum": momentum,
            "ns_steps": ns_steps,
            "nesterov": nesterov,
            "rms_rate": rms_rate,
        }
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
