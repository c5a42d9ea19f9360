"""`RestartOnPlateau`: a warm restart when a metric gets no better."""

from __future__ import annotations

import math
import warnings
from typing import Any

import keras

from keras_decoupled import checks

from .position import check_schedule, optimizer_of


class RestartOnPlateau(keras.callbacks.Callback):
    """Restart the learning rate's schedule when a metric has stopped getting better.

    After `patience` epochs without a better value, it calls `optimizer.restart()`: the next update
    is the first one of the first cycle. The arguments are those of
    `keras.callbacks.ReduceLROnPlateau`.

    The schedule's position is saved with the optimizer. As with Keras' callbacks, the best value
    and the count of epochs are lost when `fit` ends. A run that `BackupAndRestore` resumes
    continues at its position and counts from 0. Put this callback before `BackupAndRestore`, so
    that a backup includes the restart.

    Args:
        monitor: name of the metric in the logs. Default "val_loss".
        patience: number of epochs without a better value before a restart; ≥ 0. Default 10.
        verbose: 1 prints a line at each restart. Default 0.
        mode: "min" if lower is better, "max" if higher is better, "auto" to ask the metric.
            Default "auto".
        min_delta: how much better a value has to be; ≥ 0. Default 1e-4.
        cooldown: as in `ReduceLROnPlateau`, the next cooldown − 1 epochs after a restart do not
            count; ≥ 0. Default 0. A loss rises after a restart. It needs some epochs to fall again.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range; when `fit` begins, the optimizer has no schedule.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import AdamW, CosineWarmRestarts
    >>> from keras_decoupled.callbacks import RestartOnPlateau
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(AdamW(CosineWarmRestarts(0.1, 100), weight_decay=1e-3), loss="mse")
    >>> restart = RestartOnPlateau("loss", patience=1, min_delta=1e9)  # nothing is that much better
    >>> x, y = np.ones((6, 3)), np.ones((6, 1))
    >>> history = model.fit(x, y, epochs=3, verbose=0, callbacks=[restart])
    >>> int(model.optimizer.t_cur)
    0
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
    ) -> None:
        super().__init__()
        self.monitor = monitor
        epochs = "It counts epochs."
        self.patience = checks.integer("patience", patience, minimum=0, cure=epochs)
        self.cooldown = checks.integer("cooldown", cooldown, minimum=0, cure=epochs)
        self.verbose = verbose
        if not isinstance(mode, str) or mode not in ("auto", "min", "max"):
            cure = "It says whether lower or higher values of the metric are better."
            checks.refuse("mode", mode, 'must be "auto", "min" or "max"', cure)
        min_delta = checks.real("min_delta", min_delta, minimum=0, cure="0 counts any improvement.")
        # Keras' callback finds out whether lower or higher is better. Here it never stops training.
        # Its messages have the name of its class.
        named = type("RestartOnPlateau", (keras.callbacks.EarlyStopping,), {})
        self._watch = named(monitor, min_delta=min_delta, mode=mode, patience=math.inf)
        self._waited = self._cooling = 0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check that there is a schedule, and forget what an earlier `fit` saw."""
        check_schedule(optimizer_of(self.model))
        self._watch.set_model(self.model)
        self._watch.on_train_begin()
        self._watch.best = None  # Keras 3.12 keeps the value of the last `fit`
        self._waited = self._cooling = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Restart if the metric has not got better for `patience` epochs."""
        if logs.get(self.monitor) is None:
            warnings.warn(
                f"`RestartOnPlateau` looks at '{self.monitor}', which is not in this epoch's logs. "
                f"The logs have: {', '.join(logs)}. The epoch does not count.",
                UserWarning,
                stacklevel=2,
            )
            return
        self._watch.on_epoch_end(epoch, logs)
        better = self._watch.wait == 0
        self._cooling = max(self._cooling - 1, 0)
        self._waited = 0 if better or self._cooling else self._waited + 1
        if better or self._cooling or self._waited < self.patience:
            return
        optimizer_of(self.model).restart()
        self._waited, self._cooling = 0, self.cooldown
        if self.verbose:
            print(
                f"\nEpoch {epoch + 1}: RestartOnPlateau restarts the schedule, because "
                f"'{self.monitor}' has not got better."
            )
