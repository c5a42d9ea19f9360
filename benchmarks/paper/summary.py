"""The numbers of docs/evidence.md, as JSON has them; of an exponent [value, low, high]."""

import numpy as np

import analysis
import experiments
from results import Scores


def summary(runs):
    """Return all that is said of the runs."""
    return {
        "separability": {
            name: {score: tuned(grid, score) for score in ("loss", "error")}
            for name, grid in runs.separability().items()
        },
        "agreement with keras.optimizers.AdamW": agreement(*runs.checks()),
        "budgets": {what: carried(grid, what) for what, grid in runs.budgets().items()},
        "restarts": {
            name: {schedule: followed(decays) for schedule, decays in schedules.items()}
            for name, schedules in runs.curves().items()
        },
        "kinds": {
            name: {score: best(grid, score) for score in ("loss", "error")}
            for name, grid in runs.kinds().items()
        },
        "fine-tuning": {
            str(images): tuned_finely(grids) for images, grids in runs.fine_tuning().items()
        },
        "sparsity": {
            name: [sparse(grid, j) for j in range(len(grid.decays))]
            for name, grid in runs.sparsity().items()
        },
    }


def tuned(grid, score):
    """What a grid says, if it is the loss, or the error, that counts."""
    return best(grid, score) | {
        "test score of tuning one at a time": _rounded(analysis.one_at_a_time(grid, score)),
        "cost of 8 times the learning rate": _rounded(analysis.kept(grid, score, 3)),
        "cost of an eighth of the learning rate": _rounded(analysis.kept(grid, score, -3)),
    }


def best(grid, score):
    """A grid's best cell, each rate's best decay, and how that moves with the rate."""
    [[i, j]] = grid.best(score)
    rows = analysis.near(grid, score)
    decays = np.exp(analysis.best_decay(grid.mean(f"validation_{score}"), grid.decays))
    return {
        "slope": analysis.exponent(grid, score, grid.rows, rows, resample_rows=True).rounded(),
        "its learning rates": list(grid.rows[rows]),
        "best decay by learning rate": {
            f"{rate:g}": _short(decay) for rate, decay in zip(grid.rows, decays, strict=True)
        },
        "best learning rate": grid.rows[i],
        "best decay": grid.decays[j],
        "best is at an edge": _edge(i, grid.rows) or _edge(j, grid.decays),
        "ten best": [[grid.rows[a], grid.decays[b]] for a, b in grid.best(score, 10)],
        "test score of the best": _seeds(getattr(grid.scores, f"test_{score}")[i, j]),
    }


def tuned_finely(grids):
    """By algorithm the best cell by the error, and how far it is from no decay and from towards zero."""
    zero, initial = experiments.FINE_TUNING
    grid = grids[zero]  # or the other: their first columns are the same runs, without a decay
    scores = Scores(*(score[:, :1] for score in grid.scores))
    none = grid._replace(decays=grid.decays[:1], scores=scores)
    errors, found = {}, {}
    for name, grid in (grids | {"no decay": none}).items():
        [[i, j]] = grid.best("error")
        errors[name] = grid.scores.test_error[i, j]
        found[name] = {"α": grid.rows[i], "λ": grid.decays[j], "test error": _seeds(errors[name])}
    pairs = {
        "towards zero − no decay": (zero, "no decay"),
        "towards the start − no decay": (initial, "no decay"),
        "towards the start − towards zero": (initial, zero),
    }
    return found | {
        name: analysis.difference(errors[a], errors[b]).rounded() for name, (a, b) in pairs.items()
    }


def sparse(grid, j):
    """What one l1 gives."""
    scores = Scores(*(score[0, j] for score in grid.scores))
    return {
        "l1": grid.decays[j],
        "zeros": _seeds(scores.zeros),
        "test error": _seeds(scores.test_error),
        "test loss": _seeds(scores.test_loss),
    }


def agreement(ours, theirs):
    """By learning rate, how far runs of ours and Keras' that compute the same are apart."""
    return {
        f"{rate:g}": {
            "test loss, ours": _rounded(a.mean()),
            "test loss, Keras'": _rounded(b.mean()),
            "apart, mean of the seeds": _short(np.abs(a - b).mean()),
            "deviation of the seeds": _short(a.std(ddof=1)),
        }
        for rate, [a], [b] in zip(
            ours.rows, ours.scores.test_loss, theirs.scores.test_loss, strict=True
        )
    }


def carried(grid, what):
    """How the best λ moves with T, and what the shortest run's λ, or λ_norm, costs a longer one."""
    T = np.array([analysis.updates(what, row) for row in grid.rows])
    best = analysis.best_decay(grid.mean("validation_loss"), grid.decays)
    rows = np.flatnonzero(np.isfinite(best))
    estimates = {score: analysis.best_decays(grid, score) for score in ("loss", "error")}

    def row(k):
        normalized = best[0] + np.log(T[0] / T[k]) / 2
        return {
            what: int(grid.rows[k]),
            "T": int(T[k]),
            "best λ": _short(np.exp(best[k])),
            "best λ_norm": _short(np.exp(best[k]) * np.sqrt(T[k])),
            "test loss": _rounded(analysis.at(grid, "loss", k, best[k])),
            "test loss with the first λ": _rounded(analysis.at(grid, "loss", k, best[0])),
            "test loss with the first λ_norm": _rounded(analysis.at(grid, "loss", k, normalized)),
        } | {f"best λ by {score}": estimates[score][k].rounded() for score in estimates}

    return {
        f"best λ by {score} ~ T^p, p": analysis.exponent(
            grid, score, T, rows, resample_rows=False
        ).rounded()
        for score in ("loss", "error")
    } | {"rows": [row(k) for k in range(len(T))]}


def followed(decays):
    """A schedule's losses: with the λ that is best at the end, and the mean with that which is best in the mean."""
    end, way = (analysis.chosen(decays, criterion) for criterion in (_last, np.mean))
    best = decays[end]
    return {
        "λ": end,
        "test loss where a cycle ends": {
            str(epoch): _seeds(best.test_loss[:, place])
            for epoch, place in analysis.cycle_ends(best)
        },
        "test error at the end": _seeds(best.test_error[:, -1]),
        "test loss, mean over the run": _seeds(best.test_loss.mean(axis=1)),
        "λ for that mean": way,
        "test loss, mean over the run, with this λ": _seeds(decays[way].test_loss.mean(axis=1)),
    }


def _last(losses):
    return losses[:, -1].mean()


def _edge(index, axis):
    return bool(index in (0, len(axis) - 1))


def _seeds(scores):
    return {"mean": _rounded(scores.mean()), "seeds": [_rounded(score) for score in scores]}


def _rounded(score):
    return round(float(score), 4)


def _short(number):
    return float(f"{number:.3g}")
