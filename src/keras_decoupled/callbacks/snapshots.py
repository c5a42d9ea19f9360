"""`SnapshotEnsemble`: the weights at the end of each cosine cycle, and the mean of what they say."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from .numbered_files import NumberedFiles
from .position import (
    batches_at_end,
    batches_seen,
    check_cosine,
    cycle_is_over,
    optimizer_of,
)


class SnapshotEnsemble(keras.callbacks.Callback):
    """Save the weights where each cosine cycle ends, and predict with all of them.

    A cycle may end in the middle of an epoch. Its file is written after its last update, before
    the next one. A warm-up is part of the first cycle. The files are those of `model.save_weights`,
    with the optimizer's state. Half-written ones, of a killed run, never have a name of the pattern.

    The position in the cycle is read when an epoch begins, and counted from there, one call of the
    optimizer for each batch: on JAX, `fit` has to bring its state back only where a cycle ends. It is
    read again there, so that updates which a `LossScaleOptimizer` skipped make the cycle longer. A
    restart by hand or by another callback counts from the next epoch on.

    `fit` numbers the files from the next number that is free, and overwrites none. If it begins at a
    later epoch than the first, with `BackupAndRestore` or `initial_epoch`, it goes on with a run that
    was killed: files which that has written in the epoch that comes again stay, and are not written a
    second time. Put `BackupAndRestore` behind this in the list of callbacks.

    Args:
        filepath: path of the files, with "{cycle}" or, say, "{cycle:03d}" for the number, and
            ".weights.h5" at its end. Folders that do not exist are made.

    Raises:
        TypeError: `filepath` is no path.
        ValueError: `filepath` has no "{cycle}" or another end. When `fit` begins: the optimizer has no
            cosine cycles. In `fit`: a cycle ends inside the batches that `steps_per_execution` takes
            together.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import AdamW, CosineWarmRestarts
    >>> from keras_decoupled.callbacks import SnapshotEnsemble
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    >>> model.compile(AdamW(CosineWarmRestarts(0.1, 2, t_mul=2), weight_decay=1e-3), loss="mse")
    >>> x, y = np.ones((8, 3)), np.ones((8, 1))
    >>> snapshots = SnapshotEnsemble("snapshots/{cycle}.weights.h5")
    >>> history = model.fit(x, y, batch_size=2, epochs=2, verbose=0, callbacks=[snapshots])
    >>> snapshots.files()  # 8 updates: a cycle of 2, one of 4, and 2 of the next
    ['snapshots/0.weights.h5', 'snapshots/1.weights.h5']
    >>> snapshots.predict(model, x, verbose=0).shape
    (8, 1)

    References:
        Huang et al., Snapshot Ensembles: https://arxiv.org/abs/1704.00109
    """

    def __init__(self, filepath: str | os.PathLike[str]) -> None:
        super().__init__()
        self._files = NumberedFiles("filepath", filepath, "cycle", ".weights.h5")
        self._number = 0
        self._ahead: set[int] | None = None  # None: this `fit` has not begun an epoch yet
        self._end = math.inf  # batches that the optimizer will have seen when the cycle is over
        self._batches = math.inf  # the same, counted in this epoch

    def files(self) -> list[str]:
        """Return the paths of the snapshots that there are, in the order of their numbers."""
        return list(self._files.found().values())

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the optimizer, and take the next free number."""
        check_cosine(self.model)
        self._number = max(self._files.found(), default=-1) + 1
        self._ahead = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Read the position."""
        if self._ahead is None:
            self._ahead = self._written_ahead() if epoch > 0 else set()
        self._plan(0)

    # Not on_train_batch_end: on JAX and torch Keras runs that in a thread beside the next batch
    # unless a callback has one. Having one would make each batch wait for its metrics.
    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if the batch before this one was the last of a cycle."""
        if batch >= self._batches:
            self._look()
            self._plan(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if the epoch's last batch was the last of a cycle."""
        self._look()

    def _plan(self, batch: int) -> None:
        """Find where the present cycle ends; that many batches of the epoch are done."""
        optimizer = optimizer_of(self.model)
        self._end = batches_at_end(optimizer)
        self._batches = batch + self._end - batches_seen(optimizer)

    def _look(self) -> None:
        """Save if the cycle has just ended, and not if updates were skipped or it was restarted."""
        optimizer = optimizer_of(self.model)
        seen = batches_seen(optimizer)
        if seen > self._end:
            raise ValueError(
                "`steps_per_execution` must not take batches of two cycles together, as nobody can "
                "save the weights between them. Received: steps_per_execution="
                f"{self.model.steps_per_execution}, and a cycle that ended {seen - self._end} "
                "batches ago. Compile with steps_per_execution=1, or with a divisor of the number "
                "of batches in a cycle and in an epoch. A `train_step` of your own must call the "
                "optimizer once."
            )
        if seen == self._end and cycle_is_over(optimizer):
            self._save(seen)

    def _save(self, seen: int) -> None:
        if seen in (self._ahead or ()):
            return
        path = self._files.path(self._number)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        part = path.removesuffix(".weights.h5") + ".part.weights.h5"
        self.model.save_weights(part)
        os.replace(part, path)
        self._number += 1

    def _written_ahead(self) -> set[int]:
        """Return after which batches, of the epoch that begins, a killed run has written a file.

        They are the newest files. Older ones, and those of other runs, are of other batches.
        """
        optimizer, ahead = optimizer_of(self.model), set[int]()
        now = batches_seen(optimizer)
        last = now + (self.params["steps"] or math.inf)
        variables = [*self.model.variables, *self.model.optimizer.variables]
        # One of another run may be of another optimizer, or of another model.
        with _kept(variables), warnings.catch_warnings(action="ignore"):
            for path in reversed(self.files()):
                try:
                    self.model.load_weights(path)
                except (ValueError, OSError, KeyError):  # or no file of Keras, or half of one
                    break
                seen = batches_seen(optimizer)
                if not now < seen <= last:
                    break
                ahead.add(seen)
        return ahead

    def predict(self, model: keras.Model, x: Any, **kwargs: Any) -> Any:
        """Return the mean of the predictions that the model makes with each snapshot's weights.

        All files of the pattern take part, those of earlier runs too. The model then has its own
        weights again, also after an error. To leave a snapshot out, move its file away.

        Args:
            model: a built model like the one that was trained.
            x: what `model.predict` takes, if it can be read more than once: no generator.
            **kwargs: further arguments of `model.predict`.

        Returns:
            What `model.predict` returns, averaged.

        Raises:
            TypeError: `x` is a generator or another iterator.
            ValueError: there is no snapshot.
        """
        files = self.files()
        if not files:
            raise ValueError(
                "`predict()` needs a snapshot at least. Received: filepath="
                f"{self._files.pattern!r}, of which there is no file. Train with this callback, "
                "for a whole cycle."
            )
        if isinstance(x, Iterator):
            raise TypeError(
                "`x` must be data that can be read once for each snapshot. Received: "
                f"x={x!r} of type {type(x).__name__}. Pass arrays, a `PyDataset` or a dataset."
            )
        mean: Any = None
        optimizer = getattr(model, "optimizer", None)  # it may be another one, or none
        with _kept(model.variables):
            for n, path in enumerate(files, start=1):
                model.load_weights(path, objects_to_skip=[optimizer])
                outputs = model.predict(x, **kwargs)
                wide = keras.tree.map_structure(lambda y: np.asarray(y, "float64"), outputs)
                if mean is None:
                    mean = wide
                else:
                    mean = keras.tree.map_structure(lambda m, y, n=n: m + (y - m) / n, mean, wide)
        return keras.tree.map_structure(_rounded, mean, outputs)


def _rounded(mean: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Return the mean in the precision of the model's output; of integers it is none of them."""
    dtype = output.dtype
    return mean.astype(dtype) if keras.backend.is_float_dtype(dtype.name) else mean


@contextlib.contextmanager
def _kept(variables: Sequence[Any]) -> Iterator[None]:
    """Give variables their values back afterwards."""
    before = [np.array(variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
