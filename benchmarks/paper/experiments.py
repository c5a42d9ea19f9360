"""Which runs the three experiments need."""

import math

from training import Cell

SEEDS = range(3)
STEP = 2.0  # from one learning rate, and one decay, to the next


def grid(start, count, step=STEP):
    """Return `count` numbers from `start` on, each `step` times the last."""
    return [float(f"{start * step**i:.4g}") for i in range(count)]


# Separable hyperparameters: the paper's Figures 1 and 2, after so many epochs.
EPOCHS = 30
ADAM_RATES = grid(5e-4, 9)
ADAM_DECAYS = grid(2e-4, 9)  # λ; for the coupled form α·λ/α, see `coupled`
ADAM_L2 = grid(1e-5, 9)
SGD_RATES = grid(5e-3, 9)
SGD_DECAYS = grid(2e-4, 9)
SGD_L2 = grid(1e-4, 9)
COUPLED = grid(2e-2, 9)  # w of keras.optimizers.AdamW
CHECKED = 4  # cells, from corner to corner, in which keras.optimizers.AdamW is run as well

# Normalized decay: budgets in epochs, all with one learning rate.
BUDGETS = (10, 20, 40, 80)
BUDGET_RATE = 8e-3
BUDGET_DECAYS = grid(2e-4, 17, math.sqrt(2))

# Warm restarts: 2 + 4 + 8 + 16 + 32 epochs.
RESTARTED = 62
SCHEDULES = ("restarts 2", "cosine", "constant")
RESTARTED_AT = {"adamw": (8e-3, 3e-3), "sgdw": (8e-2, 3e-3)}


def coupled(rate, w):
    """λ of the run that keras.optimizers.AdamW(rate, weight_decay=w) is."""
    return float(f"{rate * w:.4g}")


def separability(seeds):
    """Yield the runs of four grids; the coupled one is the decoupled one sheared, λ = α·w."""
    for seed in seeds:
        for rate in ADAM_RATES:
            decays = {*ADAM_DECAYS, *(coupled(rate, w) for w in COUPLED)}
            for decay in sorted(decays):
                yield Cell("grid", "adamw", "cosine", rate, decay, EPOCHS, seed)
            for decay in ADAM_L2:
                yield Cell("grid", "adam-l2", "cosine", rate, decay, EPOCHS, seed)
        for rate in SGD_RATES:
            for decay in SGD_DECAYS:
                yield Cell("grid", "sgdw", "cosine", rate, decay, EPOCHS, seed)
            for decay in SGD_L2:
                yield Cell("grid", "sgd-l2", "cosine", rate, decay, EPOCHS, seed)
    for rate, w in list(zip(ADAM_RATES, COUPLED, strict=True))[:: len(COUPLED) // CHECKED]:
        yield Cell("grid", "keras-adamw", "cosine", rate, coupled(rate, w), EPOCHS, 0)


def budgets(seeds):
    """Yield the runs of one learning rate and many decays, for each budget."""
    for seed in seeds:
        for epochs in BUDGETS:
            for decay in BUDGET_DECAYS:
                yield Cell("budgets", "adamw", "cosine", BUDGET_RATE, decay, epochs, seed)


def restarts(seeds):
    """Yield the runs whose test loss is followed."""
    for seed in seeds:
        for algorithm, (rate, decay) in RESTARTED_AT.items():
            for schedule in SCHEDULES:
                yield Cell("restarts", algorithm, schedule, rate, decay, RESTARTED, seed)


EXPERIMENTS = {"grid": separability, "budgets": budgets, "restarts": restarts}


def cells(quick, only=None):
    """Return all runs; `quick`: a few of each kind, of two epochs."""
    found = []
    for name, experiment in EXPERIMENTS.items():
        if only and name not in only:
            continue
        runs = list(experiment(SEEDS))
        if quick:
            runs = [cell._replace(epochs=2) for cell in runs[:: len(runs) // 4]]
        found += runs
    return list(dict.fromkeys(found))
