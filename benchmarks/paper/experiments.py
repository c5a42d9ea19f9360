"""Which runs the experiments need."""

import math

from results import Cell

SEEDS = range(3)
EPOCHS, BATCH = 20, 50  # where an experiment does not say otherwise: 2000 updates


def grid(start, count, step=2.0):
    """Return `count` numbers from `start` on, each `step` times the last."""
    return [float(f"{start * step**i:.4g}") for i in range(count)]


def cell(algorithm, rate, decay, seed, **others):
    """Return a run of the usual length under one cosine, but for `others`."""
    usual = {"scored": "end", "schedule": "cosine", "epochs": EPOCHS, "batch": BATCH}
    return Cell(algorithm=algorithm, rate=rate, decay=decay, seed=seed, **usual | others)


# Separable hyperparameters: the paper's Figures 1 and 2.
ADAM_RATES = grid(1e-3, 9)
ADAM_DECAYS = grid(1e-3, 9)  # λ
COUPLED = grid(0.125, 9)  # w of keras.optimizers.AdamW
ADAM_L2 = grid(1e-5, 11, math.sqrt(10))  # w of w/2·‖θ‖²
SGD_RATES = grid(4e-3, 9)
SGD_DECAYS = grid(1e-3, 9)
SGD_L2 = grid(1e-4, 9, math.sqrt(10))
CHECKED = (
    2  # one cell in so many of the coupled grid's diagonal is run by keras.optimizers.AdamW too
)

# Normalized decay: one learning rate, and the best decay for so many epochs, and for such batches.
BUDGET_RATE = 0.016
BUDGET_DECAYS = grid(1e-3, 9)
BUDGETS = (5, 10, 20, 40)
BATCHES = (25, 50, 100, 200)

# Warm restarts: cycles of 2, 4, 8, 16 and 32 epochs.
CYCLE_ENDS = (2, 6, 14, 30, 62)
RESTARTED = CYCLE_ENDS[-1]
RESTARTED_AT = {"adamw": (0.016, 0.016), "sgdw": (0.064, 0.016)}  # decays for EPOCHS
SLOWER = (1, 1 / 4, 1 / 16)  # a constant learning rate may have to be smaller


def coupled(rate, w):
    """λ of the run that keras.optimizers.AdamW(rate, weight_decay=w) is."""
    return float(f"{rate * w:.4g}")


def separability(seed):
    """Yield the runs of five grids; the coupled one is the decoupled one sheared, λ = α·w."""
    for rate in ADAM_RATES:
        for decay in sorted({*ADAM_DECAYS, *(coupled(rate, w) for w in COUPLED)}):
            yield cell("adamw", rate, decay, seed)
        for decay in ADAM_L2:
            yield cell("adam-l2", rate, decay, seed)
    for rate in SGD_RATES:
        for decay in SGD_DECAYS:
            yield cell("sgdw", rate, decay, seed)
        for decay in SGD_L2:
            yield cell("sgd-l2", rate, decay, seed)
    for rate, w in list(zip(ADAM_RATES, reversed(COUPLED), strict=True))[::CHECKED]:
        yield cell("keras-adamw", rate, coupled(rate, w), seed)


def budgets(seed):
    """Yield the runs of one learning rate and many decays, for each number of updates."""
    for decay in BUDGET_DECAYS:
        for epochs in BUDGETS:
            yield cell("adamw", BUDGET_RATE, decay, seed, epochs=epochs)
        for batch in BATCHES:
            yield cell("adamw", BUDGET_RATE, decay, seed, batch=batch)


def restarts(seed):
    """Yield the runs whose test loss is followed."""
    for algorithm, (rate, decay) in RESTARTED_AT.items():
        normalized = float(f"{decay * math.sqrt(EPOCHS / RESTARTED):.4g}")
        courses = {"restarts 2": (1,), "cosine": (1,), "constant": SLOWER}
        for schedule, slower in courses.items():
            for part in slower:
                others = {"scored": "epoch", "schedule": schedule, "epochs": RESTARTED}
                yield cell(algorithm, rate * part, normalized, seed, **others)


EXPERIMENTS = {"grid": separability, "budgets": budgets, "restarts": restarts}


def cells(quick, only=None):
    """Return all runs, a seed after the other; `quick`: a few of each kind, of two epochs."""
    experiments = [EXPERIMENTS[name] for name in only or EXPERIMENTS]
    if not quick:
        runs = (run for seed in SEEDS for experiment in experiments for run in experiment(seed))
        return list(dict.fromkeys(runs))  # two experiments may share some
    found = []
    for experiment in experiments:
        kinds = {}
        for run in experiment(0):
            kinds.setdefault((run.algorithm, run.schedule, run.batch), []).append(run)
        for runs in kinds.values():
            found += [run._replace(epochs=2) for run in runs[:: max(1, len(runs) // 2)]]
    return list(dict.fromkeys(found))
