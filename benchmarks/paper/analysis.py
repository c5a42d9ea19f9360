"""What the runs say: grids, their best cells, how the best decay moves with the learning rate, curves.

"Best" is chosen by the validation images, over the mean of the seeds; what is reported of the choice
is of the test images.
"""

import functools
from typing import NamedTuple

import numpy as np

import experiments
from experiments import SEEDS, cell
from results import Scores

DRAWS = 2000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
NEAR = 1.1  # a learning rate counts where its best cell has at most so many times the best loss
AROUND = 10.0  # see `one_at_a_time`
UNKNOWN = Scores(*[np.nan] * len(Scores._fields))


class Grid(NamedTuple):
    """Scores over learning rates (or budgets) × decays, in (rows, decays, seeds)."""

    rows: np.ndarray
    decays: np.ndarray
    scores: Scores

    def mean(self, score):
        """Mean of a score over the seeds, in (rows, decays)."""
        return mean(getattr(self.scores, score))

    def best(self, score, count=1):
        """(row, decay) indices of the cells that the validation images find best."""
        values = self.mean(f"validation_{score}")
        order = np.argsort(values, axis=None)[:count]  # NaN comes last
        return np.stack(np.unravel_index(order, values.shape), axis=-1)


class Estimate(NamedTuple):
    """A number and its bootstrap interval."""

    value: float
    low: float
    high: float

    def rounded(self):
        """As JSON has it: [value, low, high]."""
        return [round(number, 3) for number in self]

    def __str__(self):
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Runs:
    """The runs that are there; of a quick experiment, whose runs have two epochs."""

    def __init__(self, done, quick):
        self.done, self.quick = done, quick

    def find(self, run):
        """Return {epoch: Scores} of a run, or None."""
        return self.done.get(experiments.short(run) if self.quick else run)

    def end(self, run):
        """Scores at the end of a run; NaN where it is not there."""
        found = self.find(run)
        return found[max(found)] if found else UNKNOWN

    def grid(self, rows, decays, run, seeds=SEEDS):
        """A Grid of run(row, decay, seed)."""
        scores = np.array([[[self.end(run(r, d, s)) for s in seeds] for d in decays] for r in rows])
        return Grid(np.array(rows), np.array(decays), _by_score(scores))

    def separability(self):
        """{algorithm: Grid} of learning rate × decay."""

        def of(algorithm, rates, decays):
            return self.grid(rates, decays, lambda rate, d, seed: cell(algorithm, rate, d, seed))

        e = experiments
        return {
            "adam-l2": of("adam-l2", e.ADAM_RATES, e.ADAM_L2),
            "keras-adamw": self.grid(
                e.ADAM_RATES,
                e.COUPLED,
                lambda rate, w, seed: cell("adamw", rate, e.coupled(rate, w), seed),
            ),
            "adamw": of("adamw", e.ADAM_RATES, e.ADAM_DECAYS),
            "sgd-l2": of("sgd-l2", e.SGD_RATES, e.SGD_L2),
            "sgdw": of("sgdw", e.SGD_RATES, e.SGD_DECAYS),
        }

    def kinds(self):
        """{algorithm: Grid} of learning rate × λ, for each kind of decay; the plain one's as thin."""
        e = experiments
        return {
            name: self.grid(e.KINDS_RATES, e.ADAM_DECAYS, functools.partial(cell, name))
            for name in ("adamw", *e.KINDS)
        }

    def fine_tuning(self):
        """{images: {algorithm: Grid}} of learning rate × λ."""
        e = experiments
        return {
            images: {
                name: self.grid(
                    e.FINE_TUNING_RATES,
                    e.FINE_TUNING_DECAYS,
                    functools.partial(e.fine_tuned, name, images),
                    e.FINE_TUNING_SEEDS,
                )
                for name in e.FINE_TUNING
            }
            for images in e.FINE_TUNING_IMAGES
        }

    def sparsity(self):
        """{algorithm: Grid} of one learning rate × l1, the first of them 0."""
        e = experiments

        def run(name, rate, l1, seed):
            return cell(name if l1 else "adam-l1", rate, l1, seed)

        return {
            name: self.grid([e.SPARSE_RATE], [0.0, *l1s], functools.partial(run, name))
            for name, l1s in e.SPARSE_L1.items()
        }

    def budgets(self):
        """{what of a run changes: Grid of it × λ}, in the order of T, the number of updates."""
        found = {}
        for what, values in experiments.BUDGETS.items():
            rows = sorted(values, key=lambda value: updates(what, value))
            found[what] = self.grid(
                rows, experiments.BUDGET_DECAYS, functools.partial(experiments.budget, what)
            )
        return found

    def curves(self):
        """{algorithm: {schedule: {λ: Scores in (seeds, epochs)}}} of the restarts."""
        found = {}
        for seed in SEEDS:
            for run in experiments.restarts(seed):
                if scores := self.find(run):
                    schedules = found.setdefault(run.algorithm, {})
                    decays = schedules.setdefault(run.schedule, {})
                    decays.setdefault(run.decay, []).append(list(scores.values()))
        return {
            algorithm: {
                schedule: {decay: _by_score(runs) for decay, runs in decays.items()}
                for schedule, decays in schedules.items()
            }
            for algorithm, schedules in found.items()
        }

    def checks(self):
        """Two Grids of one decay: of ours, and of keras.optimizers.AdamW where it computes the same."""
        return tuple(
            self.grid(
                experiments.CHECKED_RATES, [experiments.CHECKED], functools.partial(cell, algorithm)
            )
            for algorithm in ("adamw", "keras-adamw")
        )


def mean(scores):
    """Mean over the seeds that are there; NaN where none is."""
    counts = (~np.isnan(scores)).sum(axis=-1)
    return np.where(counts, np.nansum(scores, axis=-1) / np.maximum(counts, 1), np.nan)


def _by_score(scores):
    return Scores(*np.moveaxis(np.array(scores), -1, 0))


def updates(what, value):
    """T: updates of a run of the usual length, but for one thing."""
    return experiments.budget(what, value, decay=0.0, seed=0).updates


def best_decay(values, decays):
    """Log of each row's best decay; between cells, by a parabola through the best and its neighbours.

    At an edge of the grid, the edge; NaN for a row that is not there.
    """
    logs = np.log(decays)
    found = np.full(len(values), np.nan)
    for row, line in enumerate(values):
        if np.isnan(line).all():
            continue
        j = int(np.nanargmin(line))
        found[row] = logs[j]
        if 0 < j < len(line) - 1 and np.isfinite(line[j - 1 : j + 2]).all():
            before, here, after = line[j - 1 : j + 2]
            if (bend := before - 2 * here + after) > 0:
                found[row] += (before - after) / (2 * bend) * (logs[j + 1] - logs[j])
    return found


def near(grid, score):
    """Indices of the rows whose best cell is in no edge column and not much worse than the grid's."""
    values = grid.mean(f"validation_{score}")
    values = np.where(np.isnan(values), np.inf, values)
    lowest, place = values.min(axis=1), values.argmin(axis=1)
    inside = (place > 0) & (place < len(grid.decays) - 1)
    return np.flatnonzero(np.isfinite(lowest) & (lowest <= NEAR * lowest.min()) & inside)


def exponent(grid, score, x, rows, resample_rows):
    """Estimate of p in: best decay ~ x^p, a line through these rows in logarithms.

    A draw of the bootstrap takes as many seeds with replacement in each cell, and, where there are
    enough of them, as many rows with replacement.
    """
    if len(rows) < 3:
        return Estimate(np.nan, np.nan, np.nan)
    scores, x = getattr(grid.scores, f"validation_{score}")[rows], np.log(np.asarray(x)[rows])

    def fit(chosen, values):
        return np.polyfit(x[chosen], best_decay(values, grid.decays)[chosen], 1)[0]

    rng, draws = np.random.default_rng(0), []
    while len(draws) < DRAWS:
        chosen = rng.integers(0, len(rows), len(rows)) if resample_rows else np.arange(len(rows))
        if len(set(chosen)) < 3:  # no line, or one without a residual
            continue
        picked = rng.integers(0, scores.shape[-1], scores.shape)
        draws.append(fit(chosen, mean(np.take_along_axis(scores, picked, axis=-1))))
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(float(fit(np.arange(len(rows)), mean(scores))), float(low), float(high))


def best_decays(grid, score):
    """Estimate of the best decay of each row; a draw of the bootstrap takes as many seeds."""
    scores, rng = getattr(grid.scores, f"validation_{score}"), np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        picked = rng.integers(0, scores.shape[-1], scores.shape)
        draws.append(best_decay(mean(np.take_along_axis(scores, picked, axis=-1)), grid.decays))
    low, high = np.percentile(draws, INTERVAL, axis=0)
    found = (best_decay(mean(scores), grid.decays), low, high)
    return [Estimate(*map(float, np.exp(row))) for row in zip(*found, strict=True)]


def difference(a, b):
    """Estimate of the mean of a − b over the seeds, each with its own; a draw takes as many seeds."""
    apart, rng = a - b, np.random.default_rng(0)
    draws = apart[rng.integers(0, len(apart), (DRAWS, len(apart)))].mean(axis=1)
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(float(apart.mean()), float(low), float(high))


def one_at_a_time(grid, score):
    """Mean test score when first the rate and then the decay is tuned, once each.

    Over all decays to start from within a factor of AROUND of the best.
    """
    values, test = grid.mean(f"validation_{score}"), grid.mean(f"test_{score}")
    values = np.where(np.isnan(values), np.inf, values)
    [[_, best]] = grid.best(score)
    distances = np.abs(np.log(grid.decays / grid.decays[best]))
    rates = values.argmin(axis=0)[distances <= np.log(AROUND)]
    return float(test[rates, values[rates].argmin(axis=1)].mean())


def at(grid, score, row, decay):
    """Test score of a row at a log decay between the cells: linear in it."""
    return np.interp(decay, np.log(grid.decays), grid.mean(f"test_{score}")[row])


def kept(grid, score, steps):
    """What it costs in the test score to change α by so many cells and to keep the decay.

    Mean over the rows that are near the best, each with its own best decay.
    """
    rows = near(grid, score)
    best = best_decay(grid.mean(f"validation_{score}"), grid.decays)
    pairs = [(row, row + steps) for row in rows if row + steps in rows]
    costs = [at(grid, score, b, best[a]) - at(grid, score, b, best[b]) for a, b in pairs]
    return float(np.mean(costs)) if costs else np.nan


def chosen(decays, criterion):
    """The λ of {λ: Scores} that a criterion of the validation losses, (seeds, epochs), prefers."""
    return min(decays, key=lambda decay: criterion(decays[decay].validation_loss))


def cycle_ends(scores):
    """Yield (epoch, place in the scores) of each cycle's end that is there."""
    for epoch in experiments.CYCLE_ENDS:
        place = epoch // experiments.FOLLOWED - 1
        if place < scores.test_loss.shape[1]:
            yield epoch, place
