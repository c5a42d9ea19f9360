"""Muon with independent weight decay. The step is Keras' own."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.core.arguments import Shared
from keras_decoupled.optimizers.ready_made import passes_all_on, registered
from keras_decoupled.optimizers.stock import Stock


@registered
class Muon(Stock, keras.optimizers.Muon):
    r"""Muon with independent weight decay: steps by an orthogonalized momentum.

    Muon steps variables of two dimensions, except embeddings and those that `exclude_layers` names.
    With gradient g and momentum m:

        m ← momentum·m + g
        u = η·α·m_v · rms_rate·√max(rows, columns) · orthogonalized(g + momentum·m)

    With nesterov=False, m itself is orthogonalized; with rms_rate=None, the factor rms_rate·√max is
    left out. Adam steps all other variables, at adam_lr_ratio times the rate. Each variable's part
    is decided at the first build and saved. Both parts have one λ, unless `weight_decays` says
    otherwise: there is no `adam_weight_decay`. Muon needs Keras 3.13 or later.

    Args:
        adam_beta_1: β1 of the Adam part. Defaults to `0.9`.
        adam_beta_2: β2 of the Adam part. Defaults to `0.999`.
        epsilon: ε of the Adam part, in units of g. Defaults to `1e-7`.
        exclude_layers: regular expressions. A variable goes to the Adam part if one of them is
            found in its path. Name the output layer here. Defaults to `None`, no expression.
        exclude_embeddings: whether variables with "embedding" in their path go to the Adam part.
            Defaults to `True`.
        muon_a: first coefficient of the Newton-Schulz iteration. Defaults to `3.4445`.
        muon_b: second coefficient. Defaults to `-4.775`.
        muon_c: third coefficient. Defaults to `2.0315`.
        adam_lr_ratio: the Adam part's learning rate over that of Muon. Defaults to `1`.
        momentum: fraction of m kept per update. Defaults to `0.95`.
        ns_steps: number of Newton-Schulz iterations. Defaults to `5`.
        nesterov: whether to step by the momentum of the next update. Defaults to `True`.
        rms_rate: about the root mean square of a step at rate 1; Adam's is 0.2 to 0.4. None leaves
            the orthogonalized matrix as it is. Defaults to `0.2`.
        **shared: the arguments that all optimizers share.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Muon
    >>> layers = [keras.layers.Dense(8), keras.layers.Dense(1, name="head")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> model.compile(Muon(1e-3, weight_decay=1e-4, exclude_layers=["head"]), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024); the
    factor rms_rate: Liu et al., arXiv 2502.16982.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: Any = 0.001,
        adam_beta_1: float | LearningRateSchedule = 0.9,
        adam_beta_2: float | LearningRateSchedule = 0.999,
        *,
        epsilon: float | LearningRateSchedule = 1e-7,
        weight_decay: Any = None,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float | LearningRateSchedule = 3.4445,
        muon_b: float | LearningRateSchedule = -4.7750,
        muon_c: float | LearningRateSchedule = 2.0315,
        adam_lr_ratio: float | LearningRateSchedule = 1,
        momentum: float | LearningRateSchedule = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | LearningRateSchedule | None = 0.2,
        **shared: Unpack[Shared],
    ) -> None:
        if "rms_rate" not in inspect.signature(keras.optimizers.Muon.__init__).parameters:
            raise ValueError(
                "`Muon` needs Keras 3.13 or later: earlier versions have another step and other "
                f"arguments. Received: Keras {keras.__version__}. Upgrade Keras."
            )
