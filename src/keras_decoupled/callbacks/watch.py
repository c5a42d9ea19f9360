"""`WatchUpdates`: how far single updates move each variable, and how much of that is the decay."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np

from keras_decoupled import checks, plots
from keras_decoupled.checks import Seen, refuse

from .position import (
    Ahead,
    ahead,
    as_number,
    batches_until,
    is_ours,
    knows,
    optimizer_of,
    trained,
    updates_seen,
    value_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHUNK = 2**15  # numbers that are measured at once: they stay in a cache
_RANGE = (1e-4, 1e-1)  # of the colours
_LOGGED = ("relative_update", "turn", "decay_share")


class _Before(NamedTuple):
    """The state before a watched update."""

    optimizer: Any
    k: int
    eta: float
    records: list[Any]
    each: list[Ahead]


class WatchUpdates(keras.callbacks.Callback):
    """Measure single updates: how far each variable moves, and how much of that is the decay.

    `rows` has a dict for each variable of each watched update:

    - `update` (k), `epoch` (None outside `fit`), `path`
    - `weight_rms`: root mean square of θ before the update
    - `update_rms`: of the whole change Δθ
    - `step_rms`: of the optimizer's step u = −Δθ − c, where c is what the decay took
    - `relative_update`: ‖Δθ‖/‖θ‖
    - `decay_share`: ‖c‖/(‖c‖ + ‖u‖)
    - `turn`: the angle between θ before and after, in radians
    - `rate` (with the multiplier), `eta` and `decay_per_update`, as this update used them

    `relative_update` and `turn` are NaN if θ was 0, and `turn` also if θ becomes 0. `decay_share`
    is 0 if nothing changed. Where weights have less precision than float32, θ is the float32 copy.
    If a constraint or an average changes the weights after the step, that counts as part of u.
    Gradients are not watched.

    A watched update needs two copies of the watched variables, and other updates cost nothing. On
    JAX `fit` brings the state back only for watched updates. An update that `LossScaleOptimizer`
    skips has no row. With gradient accumulation, one row is one update, not one batch.

    In the list of callbacks, put it after those that set the rate before a batch, and before those
    that change the weights when an epoch ends, such as `SwapEMAWeights`. Use one `WatchUpdates` for
    one training: `rows` grows with each `fit`.

    In a loop of your own, call `before` and `after`:

        watch.before(optimizer)
        optimizer.apply(gradients, variables)
        watch.after(optimizer)

    Args:
        every: watch the updates 0, `every`, 2·`every` and so on. Defaults to `None`: the first
            update of each epoch.
        variables: which variables to watch: a list of keys as in `weight_decays` (parts of paths,
            layers). Defaults to `None`: all that are trained.
        log: whether to add the median and maximum of `relative_update`, `turn` and `decay_share` to
            the logs of each epoch, from its last watched update: `relative_update_median` and so
            on, over the variables that it moved. They are NaN if there is none. With `log`, put
            `WatchUpdates` before `CSVLogger`. Defaults to `False`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `every` is below 1, or a key hits no variable that is trained. When `fit`
            begins: the optimizer is not of this package, `steps_per_execution` is not 1, or, on
            TensorFlow, the model is not built. In training: more than one update ran since the
            variables were copied.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import AdamW
    >>> from keras_decoupled.callbacks import WatchUpdates
    >>> dense = keras.layers.Dense(1, kernel_initializer="ones", name="dense")
    >>> model = keras.Sequential([keras.Input((3,)), dense])
    >>> model.compile(AdamW(0.01, weight_decay=0.001), loss="mse")
    >>> watch = WatchUpdates(variables=["kernel"])
    >>> x, y = np.ones((6, 3)), np.zeros((6, 1))
    >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[watch])
    >>> row = watch.rows[0]
    >>> row["path"], row["update"], round(row["relative_update"], 4), round(row["decay_share"], 3)
    ('sequential/dense/kernel', 0, 0.011, 0.091)
    """

    def __init__(
        self,
        every: int | None = None,
        variables: Sequence[str | keras.Layer] | None = None,
        log: bool = False,
    ) -> None:
        super().__init__()
        if every is not None:
            cure = "None watches the first update of each epoch."
            every = checks.integer("every", every, minimum=1, cure=cure)
        if variables is not None and (
            isinstance(variables, str) or not isinstance(variables, Sequence)
        ):
            cure = 'Write ["kernel"], say. None watches all.'
            refuse("variables", variables, "must be a list of keys", cure, TypeError)
        self.rows: list[dict[str, Any]] = []
        self._every, self._keys = every, variables
        self._log = checks.flag("log", log, cure="True adds six numbers to the logs.")
        self._before: _Before | None = None
        self._epoch: int | None = None
        self._next = 0.0  # the next batch of the epoch at whose start there is work

    # In a loop of your own.

    def before(self, optimizer: keras.Optimizer) -> None:
        """Take a copy of the variables: the next update is watched."""
        self._epoch = None
        self._begin(_checked(optimizer))

    def after(self, optimizer: keras.Optimizer) -> None:
        """Add the rows of the update since `before`; none if there was no update."""
        optimizer = _checked(optimizer)
        if self._before is None or self._before.optimizer is not optimizer:
            rule = "must come after `before`, with the same optimizer"
            refuse("after", Seen("a call without it"), rule, "Call before(optimizer) first.")
        self._finish(optimizer)
        self._before = None

    def _begin(self, optimizer: Any) -> None:
        records = trained(optimizer, self._keys)
        k, eta = updates_seen(optimizer), as_number(optimizer.eta_t)
        self._before = _Before(optimizer, k, eta, records, ahead(optimizer, records))

    def _finish(self, optimizer: Any) -> None:
        """Add rows if the update has happened."""
        before, k = self._before, updates_seen(optimizer)
        if before is None or k == before.k:
            return
        self._before = None
        if k != before.k + 1:
            what = f"{k - before.k} updates since the last look"
            cure = "A `train_step` of your own must call the optimizer once. By hand, call before "
            cure += "and after around each single update."
            refuse("WatchUpdates", Seen(what), "measures single updates", cure)
        for record, was in zip(before.records, before.each, strict=True):
            head = {"update": before.k, "epoch": self._epoch, "path": was.path}
            tail = {"rate": was.rate, "eta": before.eta, "decay_per_update": was.l2}
            self.rows.append(head | measured(was, value_of(record)) | tail)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Plot the relative updates as colours: a line for each variable, over the updates.

        A dot marks an update of which the decay is more than half. A variable whose weights were
        all 0 before an update has no colour there. It needs matplotlib.

        Args:
            ax: matplotlib Axes to draw into. Defaults to `None`: a new figure.

        Returns:
            The Axes. `ax.collections[0]` has the colours.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: `ax` is of another type.
            ValueError: nothing was watched yet.
        """
        if not self.rows:
            rule, cure = "needs a watched update", "Call `fit` with this callback first."
            refuse("plot", Seen("no rows"), rule, cure)
        paths = list(dict.fromkeys(row["path"] for row in self.rows))
        updates = sorted({row["update"] for row in self.rows})
        figures = np.full((2, len(paths), len(updates)), np.nan)
        for row in self.rows:
            place = paths.index(row["path"]), updates.index(row["update"])
            figures[:, *place] = row["relative_update"], row["decay_share"]
        ax, _ = plots.axes("WatchUpdates.plot", ax, (8.0, 1.6 + 0.22 * len(paths)))
        _draw(ax, paths, updates, *figures)
        return ax

    # Called by `fit`. There is no `on_train_batch_end`: with one, each batch would wait for its
    # metrics on JAX and torch.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the model and its optimizer."""
        optimizer, variables = self.model.optimizer, self.model.trainable_variables
        # Build the optimizer now. The first update would build it too late: it is to be watched.
        # That happens on TensorFlow in the first `fit`, and on TensorFlow and torch after layers
        # were unfrozen.
        ours = optimizer_of(self.model)
        if self.model.built and not (optimizer.built and knows(ours, variables)):
            # A built `LossScaleOptimizer` would begin its scale anew.
            (ours if optimizer.built else optimizer).build(variables)
        _checked(optimizer)
        steps = self.model.steps_per_execution
        if steps != 1:
            rule = "must be 1: the weights between updates that run together cannot be read"
            cure = "Compile without it, or leave WatchUpdates out."
            refuse("steps_per_execution", steps, rule, cure)
        self._before = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Find the first batch before which there is something to do."""
        self._epoch = epoch
        self._rows_before = len(self.rows)
        self._plan(0)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Finish the update before this batch, or begin to watch the next one."""
        if batch >= self._next:
            self._look(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Finish an update that ended with the epoch, and add to the logs."""
        self._finish(optimizer_of(self.model))
        if self._log and logs is not None:
            logs.update(_logs(self.rows[self._rows_before :]))

    def _look(self, batch: int) -> None:
        optimizer = optimizer_of(self.model)
        self._finish(optimizer)
        if self._before is None and self._due(optimizer, batch) == 0:
            self._begin(optimizer)
        self._plan(batch)

    def _plan(self, batch: int) -> None:
        """Find the next batch before which there is something to do; `batch` batches are done."""
        optimizer = optimizer_of(self.model)
        if self._before is not None:
            left = batches_until(optimizer, self._before.k + 1)
            self._next = batch + max(left, 1)
        else:
            self._next = batch + self._due(optimizer, batch)

    def _due(self, optimizer: Any, batch: int) -> float:
        """Return how many batches come before the first one of an update to watch."""
        if self._every is None:
            return 0 if batch == 0 else np.inf
        update = -(-updates_seen(optimizer) // self._every) * self._every
        return max(batches_until(optimizer, update), 0)  # below 0 while it accumulates gradients


def _checked(optimizer: Any) -> Any:
    """Return our built optimizer, taken out of a `LossScaleOptimizer`; refuse any other."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if not is_ours(optimizer):
        rule = "needs an optimizer of keras_decoupled: it does not know the decay of others"
        cure = "Compile the model with AdamW(...) of this package, say."
        refuse("WatchUpdates", Seen(f"optimizer={optimizer!r}"), rule, cure)
    if not optimizer.built:
        cure = (
            "Build the model first: give it an Input, or call it once. In a loop of your own, call "
        )
        cure += "optimizer.build(model.trainable_variables)."
        refuse("WatchUpdates", Seen("one that is not"), "needs an optimizer that is built", cure)
    return optimizer


def measured(was: Ahead, after: np.ndarray) -> dict[str, float]:
    """Return what an update has changed, in float64."""
    # If nothing changed, the variable had no gradient or a multiplier of 0. Then nothing decayed.
    still = np.array_equal(was.theta, after)
    arrays = [was.theta, after, *([] if was.reference is None else [was.reference])]
    flat, sums = [array.reshape(-1) for array in arrays], np.zeros(5)
    with np.errstate(all="ignore"):  # a run that diverged has rows, too
        for start in range(0, after.size, _CHUNK):
            a, b, *reference = (x[start : start + _CHUNK].astype("float64") for x in flat)
            change = b - a
            taken = 0.0 * a if still else decay_of(was, a, b, *reference)
            step = -change - taken
            pairs = ((a, a), (change, change), (taken, taken), (step, step), (a, change))
            sums += [np.einsum("i,i", x, y) for x, y in pairs]
        size, changed, decayed, stepped = np.sqrt(sums[:4])
        along, root = sums[4], np.sqrt(max(after.size, 1))
        across = np.sqrt(np.maximum((size * changed) ** 2 - along**2, 0.0))
    return {
        "weight_rms": float(size / root),
        "update_rms": float(changed / root),
        "step_rms": float(stepped / root),
        "relative_update": float(changed / size) if size else np.nan,
        "decay_share": float(decayed / (decayed + stepped)) if decayed or stepped else 0.0,
        # Exact for small angles. An arccos would give 0 for them.
        "turn": float(np.arctan2(across, size**2 + along)) if size and after.any() else np.nan,
    }


def decay_of(
    was: Ahead, before: np.ndarray, after: np.ndarray, reference: np.ndarray | float = 0.0
) -> np.ndarray:
    """Return c, what the decay took from each number, by the rule of `decay/kinds.py`."""
    d, change, soft = before - reference, after - before, was.decay.soft_threshold
    taken = was.l2 * d
    if was.l1:
        end = after - reference
        taken += was.l1 * np.sign(end if soft else d)
        taken = np.where(soft & (end == 0), -change, taken)
    if was.decay.cautious:  # if step and decay have the same sign, their sum has it too
        taken = np.where(-change * d >= 0, taken, 0.0)
    return taken


def _draw(
    ax: Any, paths: list[str], updates: list[int], relative: np.ndarray, share: np.ndarray
) -> None:
    from matplotlib.colors import LogNorm

    # Each watched update lasts to the next one.
    last = updates[-1] + (updates[-1] - updates[-2] if len(updates) > 1 else 1)
    edges = np.array([*updates, last], "float64")
    colours = ax.pcolormesh(
        edges,
        np.arange(len(paths) + 1) - 0.5,
        np.where(relative > 0, relative, np.nan),
        norm=LogNorm(*_RANGE),
        cmap="viridis",
    )
    ax.figure.colorbar(colours, ax=ax, label="relative update ‖Δθ‖/‖θ‖", extend="both")
    lines, columns = np.nonzero(share > 0.5)
    centres = (edges[:-1] + edges[1:]) / 2
    ax.plot(centres[columns], lines, ".", color="white", mec="black", mew=0.6, ms=5)
    layers = zip(*(path.split("/")[:-1] for path in paths), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, layers))
    ax.set_yticks(range(len(paths)), [path.split("/", shared)[-1] for path in paths])
    ax.set_ylim(len(paths) - 0.5, -0.5)  # from input to output
    plots.count_updates(ax)
    ax.set_xlabel(f"{plots.UPDATES}; a dot: the decay is more than half of the update")
    ax.set_facecolor("0.85")


def _logs(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return median and maximum over the variables that the last update in these rows moved."""
    last = [row for row in rows if row["update"] == rows[-1]["update"] and row["update_rms"]]
    found = {}
    for name in _LOGGED:
        values = [row[name] for row in last if not np.isnan(row[name])] or [np.nan]
        found[f"{name}_median"] = float(np.median(values))
        found[f"{name}_max"] = float(np.max(values))
    return found
