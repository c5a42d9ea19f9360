"""What the runs say: grids, their best cells, how the best decay moves with the learning rate, curves.

"Best" is chosen by the validation images, over the mean of the seeds; what is reported of the choice
is of the test images.
"""

from typing import NamedTuple

import numpy as np

import experiments
from experiments import BATCH, BATCHES, BUDGETS, EPOCHS, SEEDS, cell
from fashion import TRAINING
from results import Scores

DRAWS = 2000  # of the bootstrap
INTERVAL = (2.5, 97.5)  # percentiles
NEAR = 1.1  # a learning rate counts where its best cell is within a tenth of the grid's best
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
        return self.done.get(run._replace(epochs=2) if self.quick else run)

    def end(self, run):
        """Scores at the end of a run; NaN where it is not there."""
        found = self.find(run)
        return found[max(found)] if found else UNKNOWN

    def grid(self, rows, decays, run):
        """A Grid of run(row, decay, seed)."""
        scores = np.array([[[self.end(run(r, d, s)) for s in SEEDS] for d in decays] for r in rows])
        return Grid(np.array(rows), np.array(decays), Scores(*np.moveaxis(scores, -1, 0)))

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

    def budgets(self):
        """Grid of epochs × λ."""
        rate, decays = experiments.BUDGET_RATE, experiments.BUDGET_DECAYS
        return self.grid(BUDGETS, decays, lambda n, d, s: cell("adamw", rate, d, s, epochs=n))

    def batches(self):
        """Grid of batch sizes × λ."""
        rate, decays = experiments.BUDGET_RATE, experiments.BUDGET_DECAYS
        return self.grid(BATCHES, decays, lambda b, d, s: cell("adamw", rate, d, s, batch=b))

    def curves(self):
        """{(algorithm, schedule, rate): {score: (seeds, epochs)}} of the restarts."""
        found = {}
        for seed in SEEDS:
            for run in experiments.restarts(seed):
                if scores := self.find(run):
                    key = run.algorithm, run.schedule, run.rate
                    found.setdefault(key, []).append(list(scores.values()))
        return {key: Scores(*np.moveaxis(np.array(runs), -1, 0)) for key, runs in found.items()}

    def checks(self):
        """Pairs of runs, ours and keras.optimizers.AdamW's, that compute the same."""
        for seed in SEEDS:
            for run in experiments.separability(seed):
                if run.algorithm == "keras-adamw" and self.find(run):
                    yield self.end(run._replace(algorithm="adamw")), self.end(run)


def mean(scores):
    """Mean over the seeds that are there; NaN where none is."""
    counts = (~np.isnan(scores)).sum(axis=-1)
    return np.where(counts, np.nansum(scores, axis=-1) / np.maximum(counts, 1), np.nan)


def updates(epochs=EPOCHS, batch=BATCH):
    """Updates of a run."""
    return np.asarray(epochs) * (TRAINING // np.asarray(batch))


def best_decay(values, decays):
    """Log of each row's best decay; between cells, by a parabola through the best and its neighbours.

    NaN for a row without three neighbouring cells. At an edge, the edge.
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


def bootstrap(grid, score, statistic):
    """Estimate of statistic(rows, best λ of each row, values of each row).

    A draw takes as many rows with replacement, and as many seeds with replacement in each cell.
    """
    scores = getattr(grid.scores, score)
    rng = np.random.default_rng(0)
    count, _, seeds = scores.shape

    def of(chosen, values):
        return statistic(grid.rows[chosen], best_decay(values, grid.decays)[chosen], values[chosen])

    draws = []
    for _ in range(DRAWS):
        picked = rng.integers(0, seeds, scores.shape)
        values = mean(np.take_along_axis(scores, picked, axis=-1))
        draws.append(of(rng.integers(0, count, count), values))
    low, high = np.nanpercentile(draws, INTERVAL) if np.isfinite(draws).any() else (np.nan,) * 2
    return Estimate(float(of(np.arange(count), mean(scores))), float(low), float(high))


def slope(rows, decays, values):
    """Slope of log(best decay) against log(row), over the rows that come near the best."""
    best = np.where(np.isnan(values), np.inf, values).min(axis=1)
    near = np.isfinite(decays) & (best <= NEAR * best.min())
    if len(set(rows[near])) < 3:
        return np.nan
    return np.polyfit(np.log(rows[near]), decays[near], 1)[0]


def chosen(curves, name):
    """{schedule: (rate, Scores)}; of the constant rates, the one that the validation images prefer."""
    found = {}
    for (algorithm, schedule, rate), scores in curves.items():
        if algorithm == name:
            area = scores.validation_loss.mean()
            if schedule not in found or area < found[schedule][1].validation_loss.mean():
                found[schedule] = rate, scores
    return found


def one_at_a_time(grid, score):
    """Mean test score, over all decays to start from: find the best α, and at that the best decay."""
    values, test = grid.mean(f"validation_{score}"), grid.mean(f"test_{score}")
    values = np.where(np.isnan(values), np.inf, values)
    rates = values.argmin(axis=0)
    return float(test[rates, values[rates].argmin(axis=1)].mean())


def at(grid, row, decay):
    """Test loss of a row at a decay between the cells: linear in log λ."""
    return np.interp(decay, np.log(grid.decays), grid.mean("test_loss")[row])
