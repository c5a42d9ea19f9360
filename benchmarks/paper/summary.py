"""The numbers of docs/evidence.md, with their intervals, as JSON has them."""

import numpy as np

import analysis
import experiments
from results import Scores


def summary(runs):
    """Return all that is said of the runs."""
    return {
        "separability": {name: _grid(grid) for name, grid in runs.separability().items()},
        "agreement with keras.optimizers.AdamW": _agreement(list(runs.checks())),
        "budgets": _carried(runs.budgets(), "epochs"),
        "batches": _carried(runs.batches(), "batch"),
        "restarts": {name: _curves(runs.curves(), name) for name in experiments.RESTARTED_AT},
    }


def _grid(grid):
    found = {}
    for score in ("loss", "error"):
        [[i, j]] = grid.best(score)
        test = getattr(grid.scores, f"test_{score}")[i, j]
        values = grid.mean(f"validation_{score}")
        best = analysis.best_decay(values, grid.decays)
        ten = grid.best(score, 10)
        found[score] = {
            "slope": analysis.bootstrap(grid, f"validation_{score}", analysis.slope).rounded(),
            "best rate": grid.rows[i],
            "best decay": grid.decays[j],
            "best is at an edge": bool(
                i in (0, len(grid.rows) - 1) or j in (0, len(grid.decays) - 1)
            ),
            "its test score": _spread(test),
            "ten best": [[grid.rows[a], grid.decays[b]] for a, b in ten],
            "best decay by rate": {
                f"{rate:g}": float(f"{decay:.3g}")
                for rate, decay in zip(grid.rows, np.exp(best), strict=True)
            },
            "one at a time, test score": _rounded(analysis.one_at_a_time(grid, score)),
        }
    return found


def _spread(test):
    return {"mean": _rounded(test.mean()), "seeds": [_rounded(x) for x in test]}


def _rounded(score):
    return round(float(score), 4)


def _agreement(pairs):
    ours, theirs = (np.array([pair[k] for pair in pairs]).reshape(-1, 4) for k in (0, 1))
    apart = np.abs(ours - theirs)
    return {
        "runs": len(pairs),
        **{
            f"{name}, largest difference": float(f"{apart[:, k].max():.3g}") if pairs else None
            for k, name in enumerate(Scores._fields)
        },
    }


def _carried(grid, what):
    T = analysis.updates(**{what: grid.rows})
    best = analysis.best_decay(grid.mean("validation_loss"), grid.decays)
    first = T.argmin()

    def exponent(rows, decays, _):
        T = analysis.updates(**{what: rows})
        if len(set(T)) < 3 or not np.isfinite(decays).all():
            return np.nan
        return np.polyfit(np.log(T), decays, 1)[0]

    def row(k):
        normalized = best[first] + np.log(T[first] / T[k]) / 2
        return {
            what: int(grid.rows[k]),
            "T": int(T[k]),
            "best λ": float(f"{np.exp(best[k]):.3g}"),
            "best λ_norm": float(f"{np.exp(best[k]) * np.sqrt(T[k]):.3g}"),
            "test loss there": _rounded(analysis.at(grid, k, best[k])),
            "test loss with the shortest run's λ": _rounded(analysis.at(grid, k, best[first])),
            "test loss with the shortest run's λ_norm": _rounded(analysis.at(grid, k, normalized)),
        }

    return {
        "best λ ~ T^p, p": analysis.bootstrap(grid, "validation_loss", exponent).rounded(),
        "rows": [row(k) for k in range(len(T))],
    }


def _curves(curves, name):
    return {
        schedule: {
            "rate": rate,
            "test loss, mean over the epochs": _spread(scores.test_loss.mean(axis=1)),
            "test loss at the end of each cycle": {
                str(end): _spread(scores.test_loss[:, end - 1])
                for end in experiments.CYCLE_ENDS
                if end <= scores.test_loss.shape[1]
            },
            "test error at the end": _spread(scores.test_error[:, -1]),
        }
        for schedule, (rate, scores) in analysis.chosen(curves, name).items()
    }
