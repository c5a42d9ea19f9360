"""Which runs the experiments need."""

import math

from fashion import TRAINING
from results import Cell, TextCell

SEEDS = range(3)
EPOCHS, BATCH = 20, 50  # where an experiment does not say otherwise: 2000 updates


def grid(start, count, step=2.0):
    """Return `count` numbers from `start` on, each `step` times the last."""
    return [float(f"{start * step**i:.4g}") for i in range(count)]


def cell(algorithm, rate, decay, seed, **others):
    """Return a run of the usual length under one cosine, but for `others`."""
    usual = {"schedule": "cosine", "images": TRAINING, "epochs": EPOCHS, "batch": BATCH}
    usual |= others
    usual.setdefault("scored", usual["epochs"])
    return Cell(algorithm=algorithm, rate=rate, decay=decay, seed=seed, **usual)


# Separable hyperparameters: the paper's Figures 1 and 2.
ADAM_RATES = grid(2.5e-4, 11)
ADAM_DECAYS = grid(2.5e-4, 11)  # λ
COUPLED = grid(2.0**-5, 11)  # w of keras.optimizers.AdamW
ADAM_L2 = grid(1e-5, 11, math.sqrt(10))  # w of w/2·‖θ‖²
SGD_RATES = grid(1e-3, 11)
SGD_DECAYS = grid(2.5e-4, 11)
SGD_L2 = grid(1e-4, 10, math.sqrt(10))
CHECKED = 0.032  # λ at which keras.optimizers.AdamW is run too, at these learning rates
CHECKED_RATES = ADAM_RATES[::2]

# Normalized decay: at one learning rate the best decay for so many epochs, batches of so many
# images, and so many images to train on.
BUDGET_RATE = 0.016
BUDGET_DECAYS = grid(1e-3, 9)
BUDGETS = {
    "epochs": (5, 10, 20, 40),
    "batch": (25, 50, 100, 200),
    "images": (1250, 2500, 5000, 10_000),
}

# Warm restarts: cycles of 2, 4, 8, 16 and 32 epochs.
CYCLE_ENDS = (2, 6, 14, 30, 62)
RESTARTED = CYCLE_ENDS[-1]
FOLLOWED = 2  # epochs from one evaluation to the next
RESTARTED_AT = {"adamw": 0.016, "sgdw": 0.064}
RESTARTED_DECAYS = (0.008, 0.02, 0.05)  # each schedule has the best of them
# A constant learning rate has to be smaller; of 1, 1/4 and 1/16 this did best in a first try.
SCHEDULES = {"restarts 2": 1.0, "cosine": 1.0, "constant": 0.25}


# Kinds of decay: the grid of learning rate × λ, thinned.
KINDS = ("adamw-eta0", "adamw-eta2", "adamw-cautious")
KINDS_RATES = ADAM_RATES[2::2]

# Fine-tuning on so many images of new classes, always in 400 updates. Seeds are cheap, and needed.
FINE_TUNED = " fine-tuned"  # ends the algorithm's name
FINE_TUNING = ("adamw", "adamw-initial")
FINE_TUNING_RATES = (0.001, 0.004, 0.016)
FINE_TUNING_DECAYS = [0.0, *grid(1e-3, 6, 4.0)]
FINE_TUNING_IMAGES = {50: 10, 200: 20, 1000: 50}  # images: batch
FINE_TUNING_UPDATES = 400
FINE_TUNING_SEEDS = range(2 * len(SEEDS))

# Sparsity: three ways to an l1, at one learning rate.
SPARSE_RATE = 0.016
SPARSE_L1 = {  # λ1 of ours; w of w·Σ|θ|
    "adamw-soft": grid(1e-4, 8),
    "adamw-l1": grid(1e-4, 8),
    "adam-l1": grid(1e-6, 8, math.sqrt(10)),
}

# Muon on text: which variables are matrices, and at the middle rate in which type they are multiplied.
MUON_FORMS = ("adamw", "keras-muon", "muon")
MUON_RATES = grid(0.002, 5)
MUON = {"width": 64, "decay": 1e-3, "updates": 1500, "batch": 16}

# Widths: does the best rate of the narrow model stay the best of wider ones? "scaled": the rate of each matrix is
# multiplied by base width / width. Under a coupled decay that scales its decay too.
#
# Expected, written down before the runs:
# 1. Without multipliers the best rate at width 256 is a quarter to a half of that at 64, in both forms.
# 2. With multipliers it stays, to one step of the grid, in both forms. That part is the multipliers'.
# 3. The part of the decay: at the rate that is carried over, the loss at width 256 is lower where λ stays than where
#    the multipliers scale it. In a pilot of 1,000 updates at width 128 there was no such difference.
# 4. Over all rates, the loss varies least where λ stays and the rates are scaled.
WIDTHS = (64, 128, 256)
WIDTH_RATES = (0.001, 0.0025, 0.00625, 0.016, 0.04, 0.1)
WIDTH_DECAY = 0.005  # λ; 1/λ is 200 updates
WIDTH_COUPLED = 0.3125  # w of keras.optimizers.AdamW: λ = α·w is the same at the fourth rate
WIDTH = {"updates": 1500, "batch": 8}
WIDTH_FORMS = ("adamw", "keras-adamw", "adamw-scaled", "keras-adamw-scaled")


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
    for rate in CHECKED_RATES:
        yield cell("keras-adamw", rate, CHECKED, seed)


def budget(what, value, decay, seed):
    """Return the run in which one thing differs from the usual."""
    return cell("adamw", BUDGET_RATE, decay, seed, **{what: value})


def budgets(seed):
    """Yield the runs of one learning rate and many decays, for each number of updates."""
    for decay in BUDGET_DECAYS:
        for what, values in BUDGETS.items():
            for value in values:
                yield budget(what, value, decay, seed)


def restarts(seed):
    """Yield the runs whose loss is followed."""
    others = {"epochs": RESTARTED, "scored": FOLLOWED}
    for algorithm, rate in RESTARTED_AT.items():
        for schedule, part in SCHEDULES.items():
            for decay in RESTARTED_DECAYS:
                yield cell(algorithm, rate * part, decay, seed, schedule=schedule, **others)


def kinds(seed):
    """Yield the runs of a grid for each kind of decay; the plain one's are in `separability`."""
    for rate in KINDS_RATES:
        for decay in ADAM_DECAYS:
            for algorithm in KINDS:
                yield cell(algorithm, rate, decay, seed)


def fine_tuned(algorithm, images, rate, decay, seed):
    """Return a run that starts from pretrained weights; without a decay there is but one kind."""
    batch = FINE_TUNING_IMAGES[images]
    epochs = FINE_TUNING_UPDATES * batch // images
    algorithm = (algorithm if decay else FINE_TUNING[0]) + FINE_TUNED
    return cell(algorithm, rate, decay, seed, images=images, batch=batch, epochs=epochs)


def fine_tuning(seed):
    """Yield the runs of two seeds."""
    for each in FINE_TUNING_SEEDS[seed :: len(SEEDS)]:
        for images in FINE_TUNING_IMAGES:
            for rate in FINE_TUNING_RATES:
                for decay in FINE_TUNING_DECAYS:
                    for algorithm in FINE_TUNING:
                        yield fine_tuned(algorithm, images, rate, decay, each)


def sparsity(seed):
    """Yield the runs of three ways to an l1, and without one."""
    yield cell("adam-l1", SPARSE_RATE, 0.0, seed)
    for algorithm, l1s in SPARSE_L1.items():
        for l1 in l1s:
            yield cell(algorithm, SPARSE_RATE, l1, seed)


def of_muon(form, rate, seed):
    """Return a run of one form at one learning rate."""
    return TextCell(form=form, rate=rate, seed=seed, **MUON)


def muon(seed):
    """Yield the runs of each form of Muon, and of AdamW, at each learning rate."""
    for rate in MUON_RATES:
        for form in MUON_FORMS:
            yield of_muon(form, rate, seed)
    yield of_muon("muon-bfloat16", MUON_RATES[2], seed)


def of_width(form, width, rate, seed):
    """Return a run of one of WIDTH_FORMS. At the base width nothing is scaled; a coupled decay is λ = α·w."""
    decay = coupled(rate, WIDTH_COUPLED) if form.startswith("keras") else WIDTH_DECAY
    form = form.removesuffix("-scaled") if width == WIDTHS[0] else form
    form = "adamw" if form == "keras-adamw" else form
    return TextCell(form=form, width=width, rate=rate, decay=decay, seed=seed, **WIDTH)


def rates_of_width(width):
    """Return the rates at this width. The highest is left out at the widest, where a run takes longest."""
    return WIDTH_RATES[:-1] if width == WIDTHS[-1] else WIDTH_RATES


def seeds_of_width(form, width, rate):
    """Return the seeds: three near the best rate, one far from it, as the first seed shows it.

    Far are the outer rates, and at more than the base width the rate next to them that has the greater loss: a
    high one without multipliers, a low one with them.
    """
    far = {WIDTH_RATES[0], WIDTH_RATES[-1]}
    if width > WIDTHS[0]:
        far.add(WIDTH_RATES[1] if form.endswith("scaled") else WIDTH_RATES[-2])
    return SEEDS[:1] if rate in far else SEEDS


def widths(seed):
    """Yield the runs of each form, width and learning rate, narrow ones first."""
    for width in WIDTHS:
        for rate in rates_of_width(width):
            for form in WIDTH_FORMS:
                if seed in seeds_of_width(form, width, rate):
                    yield of_width(form, width, rate, seed)


def short(run):
    """Return a run as a quick experiment has it."""
    if isinstance(run, TextCell):
        return run._replace(updates=20, width=run.width // 4, batch=2)
    return run._replace(epochs=FOLLOWED, scored=FOLLOWED)


EXPERIMENTS = {
    "grid": separability,
    "budgets": budgets,
    "restarts": restarts,
    "kinds": kinds,
    "fine-tuning": fine_tuning,
    "sparsity": sparsity,
    "muon": muon,
    "widths": widths,
}


def kind_of(run):
    """Return what the runs of one kind have in common, for a quick experiment."""
    return run.form if isinstance(run, TextCell) else (run.algorithm, run.schedule, run.batch)


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
            kinds.setdefault(kind_of(run), []).append(run)
        for runs in kinds.values():
            found += [short(run) for run in runs[:: max(1, len(runs) // 2)]]
    return list(dict.fromkeys(found))
