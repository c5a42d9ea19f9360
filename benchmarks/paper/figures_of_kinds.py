"""Pictures of what the kinds of decay do; `figures.py` draws them with all others."""

import json

import numpy as np

from analysis import mean
from drawing import SCORES, WIDTH, plt, save

WAYS = {  # what makes T larger: colour and label
    "epochs": ("tab:red", "more epochs over the same images"),
    "batch": ("tab:blue", "smaller batches"),
    "images": ("tab:green", "more images"),
}
POWERS = {  # colour and label
    "adamw-eta0": ("tab:green", "λ (eta_power=0)"),
    "adamw": ("tab:blue", "η·λ (eta_power=1)"),
    "adamw-eta2": ("tab:orange", "η²·λ (eta_power=2)"),
}
GOALS = {
    "adamw": ("tab:blue", "towards zero"),
    "adamw-initial": ("tab:orange", 'towards="initial"'),
}
SPARSE = {
    "adamw-soft": ("tab:blue", "soft_threshold=True"),
    "adamw-l1": ("tab:orange", "l1·sign(θ) beside the step"),
    "adam-l1": ("0.4", "w·Σ|θ| in the loss, Adam"),
}
SHOWN = (13, 21)  # % of test errors; the largest l1 is far above
CROWDED = 5  # % of zeros, below which numbers would lie on each other


def timescale(numbers, out):
    """Draw the best λ over T, with the powers of T that two rules give."""
    T = np.array([row["T"] for row in numbers["epochs"]["rows"]])
    usual = next(row for row in numbers["epochs"]["rows"] if row["epochs"] == 20)
    if not np.isfinite(usual["best λ"]):
        return
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for power, style, rule in (
        (-0.5, "--", "T^−½: normalized"),
        (-1, ":", "T^−1: 1/λ is a share of T"),
    ):
        line = usual["best λ"] * (T / usual["T"]) ** power
        axes.plot(T, line, style, color="0.5", label=rule)
    for what, (colour, label) in WAYS.items():
        rows = numbers[what]["rows"]
        best, low, high = np.transpose([row["best λ by loss"] for row in rows])
        steps = [row["T"] for row in rows]
        axes.errorbar(
            steps, best, [best - low, high - best], fmt="o-", capsize=3, color=colour, label=label
        )
    axes.set(xscale="log", yscale="log", xlabel="T, updates of a run", ylabel="best λ by the loss")
    axes.set_xticks(T, labels=map(str, T))
    axes.xaxis.minorticks_off()
    axes.set_title("AdamW at α = 0.016; bars: bootstrap intervals of 95%")
    axes.legend()
    save(figure, out / "timescale.png")


def gradients(file, out):
    """Draw the gradient's norm over the run for three powers of η; print what the page says of it."""
    if not file.exists():
        return
    rows = json.loads(file.read_text(encoding="utf-8"))
    decays = sorted({row["λ"] for row in rows})
    figure, panels = plt.subplots(
        1, len(decays), figsize=(WIDTH, 4.6), layout="constrained", sharey=True
    )
    for axes, decay in zip(panels, decays, strict=True):
        for row in rows:
            if row["λ"] == decay:
                colour, label = POWERS[row["kind"]]
                middle, low, high = np.transpose(row["before normalization"])
                epochs = np.arange(1, len(middle) + 1)
                early, late = (
                    middle[first - 1 : last].mean() for first, last in ((1, 10), (31, 36))
                )
                print(
                    f"gradient, {row['kind']}, λ = {decay}: {early:.2f} in epochs 1 to 10, {late:.2f} "
                    f"in 31 to 36, {middle[-1]:.2g} at the end, {middle.max():.2g} at most"
                )
                axes.plot(epochs, middle, color=colour, label=label)
                axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set(xlabel="epoch", yscale="log", title=f"λ = {decay:g}")
    panels[0].set_ylabel(
        "norm of the gradient of 1000 training images,\nweights before a normalization"
    )
    panels[0].legend()
    save(figure, out / "gradients.png")


def fine_tuning(grids, numbers, out):
    """Draw the test error over λ, at the learning rate that is best by validation for each λ."""
    if not np.isfinite(next(iter(grids.values()))["adamw"].mean("test_error")).all():
        return
    figure, panels = plt.subplots(1, len(grids), figsize=(WIDTH, 4.4), layout="constrained")
    for axes, (images, kinds) in zip(panels, grids.items(), strict=True):
        for name, (colour, label) in GOALS.items():
            grid = kinds[name]
            rates = grid.mean("validation_error").argmin(axis=0)
            errors = 100 * grid.scores.test_error[rates, np.arange(len(grid.decays))]
            middle, spread = mean(errors), errors.std(axis=1, ddof=1) / np.sqrt(errors.shape[1])
            axes.errorbar(
                grid.decays[1:],
                middle[1:],
                spread[1:],
                fmt="o-",
                capsize=3,
                color=colour,
                label=label,
            )
        axes.axhline(middle[0], color="0.5", ls="--", label="no decay")
        told = numbers[str(images)]["towards the start − towards zero"]
        apart, low, high = (100 * number for number in told)
        axes.set_title(
            f"{images} images\nbest of each: start − zero\n= {apart:.1f} [{low:.1f}, {high:.1f}]"
        )
        axes.set(xscale="log", xlabel="λ of the pretrained weights")
    panels[0].set_ylabel(f"{SCORES['error']}, mean of {errors.shape[1]} seeds ± standard error")
    panels[0].legend()
    save(figure, out / "fine-tuning.png")


def sparsity(numbers, out):
    """Draw the test error over the share of exact zeros, a point for each l1."""
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for name, (colour, label) in SPARSE.items():
        rows = numbers[name]
        zeros = [100 * row["zeros"]["mean"] for row in rows]
        errors = [100 * row["test error"]["mean"] for row in rows]
        axes.plot(zeros, errors, "o-", color=colour, label=label)
        if name == "adamw-soft":
            for x, y, row in zip(zeros, errors, rows, strict=True):
                if x > CROWDED and y < SHOWN[1]:
                    place = {"xytext": (-6, 8), "textcoords": "offset points"}
                    axes.annotate(f"{row['l1']:g}", (x, y), **place)
    axes.set_ylim(*SHOWN)
    axes.set(xlabel="weights of the kernels that are exactly 0 (%)", ylabel=SCORES["error"])
    axes.set_title("Numbers: l1 of soft_threshold; mean of three seeds")
    axes.legend(loc="upper center")
    if np.isfinite(zeros).all():
        save(figure, out / "sparsity.png")
