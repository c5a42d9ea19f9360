"""`SnapshotEnsemble`: the weights at each cycle's end, and the mean of their predictions."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
from collections.abc import Iterator, Sequence
from string import Formatter
from typing import Any

import keras
import numpy as np

from keras_decoupled.checks import Seen, refuse

from .position import batches_at_end, batches_seen, check_cosine, cycle_is_over, optimizer_of

_ENDING = ".weights.h5"


class SnapshotEnsemble(keras.callbacks.Callback):
    """Save the weights where each cosine cycle ends, and predict with all of them.

    A cycle may end in the middle of an epoch. Its file is written after its last update, before
    the next one. A warm-up is part of the first cycle. The files are those of `model.save_weights`,
    with the optimizer's state. A file gets its name only when it is complete.

    The position in the cycle is read when an epoch begins. After that, each batch counts as one
    call of the optimizer. So on JAX `fit` brings the state back only where a cycle ends, where the
    position is read again. If a `LossScaleOptimizer` skipped updates, the cycle lasts longer. A
    restart by hand or by another callback counts from the next epoch on.

    `fit` numbers the files from the next free number, and never overwrites a file. If
    `BackupAndRestore` resumes a run that was killed, an epoch is run again. Its snapshots are then
    written again under new numbers. The older ones stay, and `predict` uses both. Delete the older
    ones if you want each cycle once. Put `BackupAndRestore` after this callback, so that a kill
    between the two loses no snapshot.

    Args:
        filepath: path of the files, with "{cycle}" (or "{cycle:03d}", for example) for the number.
            It ends in ".weights.h5". Folders that do not exist are made.

    Raises:
        TypeError: `filepath` is not a path.
        ValueError: `filepath` has no "{cycle}", or does not end in ".weights.h5". When `fit`
            begins: the optimizer has no cosine cycles. In `fit`: a cycle ends among batches that
            `steps_per_execution` runs together.

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
        self._files = _Files(filepath)
        self._number = 0
        self._end = math.inf  # what `batches_seen` is when the cycle is over
        self._batches = math.inf  # the same, counted from the beginning of this epoch

    def files(self) -> list[str]:
        """Return the paths of the snapshots, in the order of their numbers."""
        return list(self._files.found().values())

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the optimizer, and take the next free number."""
        check_cosine(optimizer_of(self.model))
        self._number = max(self._files.found(), default=-1) + 1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Read the position."""
        self._plan(0)

    # Not `on_train_batch_end`: if a callback has one, then on JAX and torch each batch waits for
    # its metrics. Otherwise Keras ends a batch in a thread while the next one runs.
    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if the batch before this one was the last of a cycle."""
        if batch >= self._batches:
            self._look()
            self._plan(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if the epoch's last batch was the last of a cycle."""
        self._look()

    def _plan(self, batch: int) -> None:
        """Find where the cycle ends; `batch` batches of the epoch are done."""
        optimizer = optimizer_of(self.model)
        self._end = batches_at_end(optimizer)
        self._batches = batch + self._end - batches_seen(optimizer)

    def _look(self) -> None:
        """Save if the cycle has just ended. Skipped updates or a restart may have moved its end."""
        optimizer = optimizer_of(self.model)
        seen = batches_seen(optimizer)
        if seen > self._end:
            steps, ago = self.model.steps_per_execution, seen - self._end
            refuse(
                "steps_per_execution",
                Seen(f"steps_per_execution={steps}, and a cycle that ended {ago} batches ago"),
                "must not run batches of two cycles together: the weights between them are lost",
                "Compile with steps_per_execution=1, or with a divisor of the number of batches in "
                "a cycle and in an epoch. A `train_step` of your own must call the optimizer once.",
            )
        if seen == self._end and cycle_is_over(optimizer):
            self._save()

    def _save(self) -> None:
        path = self._files.path(self._number)
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        part = f"{path.removesuffix(_ENDING)}.part{_ENDING}"
        self.model.save_weights(part)
        os.replace(part, path)
        self._number += 1

    def predict(self, model: keras.Model, x: Any, **kwargs: Any) -> Any:
        """Return the mean of the predictions that the model makes with each snapshot's weights.

        All files of the pattern are used, also those of earlier runs. Afterwards the model has its
        own weights again, also after an error. To leave a snapshot out, move its file away.

        Args:
            model: a built model like the one that was trained.
            x: what `model.predict` takes, except generators: it is read once for each snapshot.
            **kwargs: further arguments of `model.predict`.

        Returns:
            What `model.predict` returns, averaged.

        Raises:
            TypeError: `x` is a generator or another iterator.
            ValueError: there is no snapshot.
        """
        files = self.files()
        if not files:
            received = Seen(f"filepath={self._files.pattern!r}, which no file matches")
            cure = "Train with this callback, for a whole cycle."
            refuse("predict()", received, "needs at least one snapshot", cure)
        if isinstance(x, Iterator):
            rule = "must be data that can be read once for each snapshot"
            refuse("x", x, rule, "Pass arrays, a `PyDataset` or a dataset.", TypeError)
        mean: Any = None
        optimizer = getattr(model, "optimizer", None)  # perhaps another one than in training
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
    """Return the mean in the precision of the model's output, or float64 for integers."""
    dtype = output.dtype
    return mean.astype(dtype) if keras.backend.is_float_dtype(dtype.name) else mean


@contextlib.contextmanager
def _kept(variables: Sequence[Any]) -> Iterator[None]:
    """Restore the values of these variables when the block ends."""
    before = [np.array(variable.numpy()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


class _Files:
    """The files of a pattern such as "snapshots/{cycle:03d}.weights.h5", by number."""

    def __init__(self, pattern: Any) -> None:
        if not isinstance(pattern, (str, os.PathLike)):
            cure = f'Pass "{{cycle}}{_ENDING}", say.'
            refuse("filepath", pattern, "must be a path", cure, TypeError)
        self.pattern = os.path.normpath(os.fspath(pattern))  # as glob writes paths, on Windows too
        self._glob = self._regex = ""
        try:
            for text, name, _, _ in Formatter().parse(self.pattern):
                self._glob += glob.escape(text) + ("*" if name is not None else "")
                self._regex += re.escape(text) + (r"(\d+)" if name is not None else "")
            known = all(self._number(self.path(number)) == number for number in (0, 12345))
        except (ValueError, KeyError, IndexError):  # a wrong format, or another field
            known = False
        if not known or not self.pattern.endswith(_ENDING):
            rule = f'must have "{{cycle}}" for a number, no other field, and "{_ENDING}" at its end'
            cure = f'Pass "{{cycle}}{_ENDING}" or "{{cycle:03d}}{_ENDING}", say.'
            refuse("filepath", os.fspath(pattern), rule, cure)

    def path(self, number: int) -> str:
        """Return the path of the file with this number."""
        return self.pattern.format(cycle=number)

    def found(self) -> dict[int, str]:
        """Return the existing files by number, lowest first."""
        numbers = map(self._number, glob.glob(self._glob))
        return {number: self.path(number) for number in sorted(n for n in numbers if n is not None)}

    def _number(self, path: str) -> int | None:
        """Return the number in a path, or None if the path does not match."""
        match = re.fullmatch(self._regex, path)
        number = int(match[1]) if match and match.groups() else None
        return number if number is not None and self.path(number) == path else None
