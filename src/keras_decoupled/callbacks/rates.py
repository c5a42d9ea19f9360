"""`LogRates`: what the next update uses, in the logs of each epoch."""

from __future__ import annotations

import gc
import itertools
import warnings
from typing import Any

import keras
from keras import ops

from keras_decoupled.checks import Seen, refuse

from .position import as_number, is_ours, moving_settings, optimizer_of

_WRITERS = (keras.callbacks.CSVLogger, keras.callbacks.TensorBoard)  # they write logs to files


class LogRates(keras.callbacks.Callback):
    """Put the rates that the next update uses into the logs of each epoch.

    History, `CSVLogger`, `TensorBoard` and the progress bar then show `learning_rate`, `eta` (η,
    which also scales the decay), `t_cur` (the position in the cycle) and `weight_decay` (the
    uniform λ, before η; absent if the optimizer has none). An argument such as `beta_1` is shown
    once it was set, or if it is a schedule. A stock Keras optimizer has only `learning_rate`.
    All are read once an epoch, when it ends.

    In the list of callbacks, put `LogRates` before `CSVLogger` and `TensorBoard`, which write the
    logs. Put it after callbacks that move the rate when an epoch ends, such as `RestartOnPlateau`.
    A `LearningRateScheduler` moves the rate later: when the next epoch begins.

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
            cure = "Keras' `TensorBoard` logs the rate of each of its optimizers."
            received = Seen(f"optimizer={optimizer!r}")
            refuse("LogRates", received, "needs an optimizer with one learning rate", cure)
        self._settings: set[str] = set()
        self._warn_of_writers_before()

    def _warn_of_writers_before(self) -> None:
        # Keras tells a callback nothing of the others. So Python's garbage collector is asked for
        # the list that holds this one.
        for callbacks in gc.get_referrers(self):
            if not isinstance(callbacks, list):
                continue
            before = itertools.takewhile(lambda callback: callback is not self, callbacks)
            names = [type(c).__name__ for c in before if isinstance(c, _WRITERS)]
            if names:
                warnings.warn(
                    f"`LogRates` comes after {' and '.join(names)}, which will lack its columns. "
                    "Put it before them in the list of callbacks.",
                    UserWarning,
                    stacklevel=2,
                )
                return

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Add the rates to the epoch's logs."""
        optimizer = optimizer_of(self.model)
        logs["learning_rate"] = as_number(optimizer.learning_rate)
        if not is_ours(optimizer):
            return
        logs["eta"] = as_number(optimizer.eta_t)
        logs["t_cur"] = int(optimizer.t_cur)
        decay = optimizer.weight_decay
        if isinstance(decay, keras.optimizers.schedules.LearningRateSchedule):
            decay = decay(ops.convert_to_tensor(optimizer.iterations))
        if decay is not None:
            logs["weight_decay"] = as_number(decay)
        settings = moving_settings(optimizer, self._settings)
        self._settings |= settings.keys()  # a column that was there once stays
        logs.update(settings)
