"""`LogRates`: what the next update uses, in the logs of each epoch."""

from __future__ import annotations

from typing import Any

import keras

from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.core.settings import as_number

from .position import optimizer_of


class LogRates(keras.callbacks.Callback):
    """Put the rates that the next update uses into the logs of each epoch.

    History, `CSVLogger`, `TensorBoard` and the progress bar then have `learning_rate`, `eta` (η, by
    which the decay is scaled too), `t_cur` (the position in the cycle) and `weight_decay` (the
    uniform λ, as it is set and before η; absent where the optimizer was given none). Of a stock
    Keras optimizer it is `learning_rate` alone. They are read once an epoch, when it ends.

    In the list of callbacks it has to stand before those that write the logs, `CSVLogger` and
    `TensorBoard`, and after those that move the rate there, as `RestartOnPlateau` does. A
    `LearningRateScheduler` moves it later: when the next epoch begins.

    Raises:
        ValueError: the optimizer is a `MultiOptimizer`, which has no rate of its own.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import AdamW, CosineWarmRestarts
    >>> from keras_decoupled.callbacks import LogRates
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(AdamW(CosineWarmRestarts(0.1, 4), weight_decay=1e-3), loss="mse")
    >>> x, y = np.ones((6, 3)), np.ones((6, 1))
    >>> history = model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[LogRates()])
    >>> history.history["t_cur"]  # 3 updates an epoch, cycles of 4
    [3, 2]
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse an optimizer that has several rates."""
        optimizer = optimizer_of(self.model)
        if hasattr(optimizer, "optimizers"):
            raise ValueError(
                "`LogRates` needs an optimizer with one learning rate. Received: optimizer="
                f"{optimizer!r}. Keras' `TensorBoard` logs the rate of each of its optimizers."
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Add the rates to the epoch's logs."""
        optimizer = optimizer_of(self.model)
        logs["learning_rate"] = as_number(optimizer.learning_rate)
        if not isinstance(optimizer, Decoupled):
            return
        logs["eta"] = as_number(optimizer.eta_t)
        logs["t_cur"] = int(optimizer.t_cur)
        decay = optimizer.weight_decay
        if isinstance(decay, keras.optimizers.schedules.LearningRateSchedule):
            decay = decay(optimizer.iterations)
        if decay is not None:
            logs["weight_decay"] = as_number(decay)
