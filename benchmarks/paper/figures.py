"""Draw what the runs say, and write its numbers.

    PYTHONPATH=benchmarks python benchmarks/paper/figures.py [--quick] [--out FOLDER]

Reads `runs.csv`; writes `summary.json` beside it, and the pictures of docs/evidence.md. A quick
run's pictures stay beside it.
"""

from pathlib import Path

import matplotlib
import numpy as np

import analysis
import experiments
import report
from analysis import Estimate, Runs, updates
from results import Results
from run import arguments, folder
from summary import summary

matplotlib.use("Agg")  # draws into files: no screen needed
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullLocator

DOCS = Path(__file__).parents[2] / "docs" / "evidence"
ADAM = ("adam-l2", "keras-adamw", "adamw")
SGD = ("sgd-l2", "sgdw")
TITLES = {
    "adam-l2": "Adam, L2 penalty in the loss",
    "keras-adamw": "keras.optimizers.AdamW",
    "adamw": "keras_decoupled.AdamW",
    "sgd-l2": "SGD with momentum, L2 penalty in the loss",
    "sgdw": "keras_decoupled.SGDW",
}
DECAYS = {
    "adam-l2": "w, of the penalty w/2·‖θ‖²",
    "keras-adamw": "weight_decay: a step removes α·η·w",
    "adamw": "weight_decay: a step removes η·λ",
    "sgd-l2": "w, of the penalty w/2·‖θ‖²",
    "sgdw": "weight_decay: a step removes η·λ",
}
SCORES = {"loss": "test loss (nats)", "error": "test error (%)"}
SCHEDULES = {"constant": "0.5", "cosine": "tab:orange", "restarts 2": "tab:blue"}
NAMES = {
    "constant": "constant",
    "cosine": "one cosine",
    "restarts 2": "warm restarts, t_mul=2",
}
WORST = {"loss": 1.6, "error": 1.4}  # colours end at so many times the best


def heat_maps(grids, numbers, names, score, out):
    """Draw test scores over learning rate × decay; the ten best cells and each rate's best decay."""
    scale = 100 if score == "error" else 1
    values = {name: scale * grids[name].mean(f"test_{score}") for name in names}
    found = np.concatenate([v[np.isfinite(v)] for v in values.values()])
    if not len(found):
        return
    lowest = found.min()
    colours = LogNorm(lowest, WORST[score] * lowest)
    figure, row = plt.subplots(
        1, len(names), figsize=(4.6 * len(names) + 1, 4.9), layout="constrained"
    )
    for axes, name in zip(row, names, strict=True):
        grid = grids[name]
        shown = axes.pcolormesh(grid.decays, grid.rows, values[name], norm=colours, cmap="viridis")
        best = analysis.best_decay(grid.mean(f"validation_{score}"), grid.decays)
        axes.plot(np.exp(best), grid.rows, color="white", linewidth=1.5, marker="|", markersize=9)
        i, j = grid.best(score, 10).T
        axes.plot(grid.decays[j], grid.rows[i], "o", color="black", markersize=7)
        axes.set(xscale="log", yscale="log", xlabel=DECAYS[name])
        axes.yaxis.set_minor_locator(NullLocator())
        lean = Estimate(*numbers[name][score]["slope"])
        axes.set_title(f"{TITLES[name]}\nbest decay ~ α^s,  s = {lean}", fontsize=11)
    row[0].set_ylabel("base learning rate α")
    bar = figure.colorbar(shown, ax=row, extend="max", pad=0.01)
    ticks = np.linspace(lowest, WORST[score] * lowest, 5)
    bar.set_ticks(ticks, labels=[f"{tick:.1f}" if scale > 1 else f"{tick:.2f}" for tick in ticks])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(SCORES[score])
    handles = [
        plt.Line2D([], [], color="black", marker="o", ls=""),
        plt.Line2D([], [], color="0.75", marker="|", markersize=9),
    ]
    labels = ["ten best cells", "best decay of each learning rate"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, out / f"{names[-1]}-{score}.png")


def budgets(epochs, batches, out):
    """Draw the test loss against λ, and against λ_norm, for several numbers of updates."""
    if not np.isfinite(epochs.mean("test_loss")).any():
        return
    figure, rows = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharey=True)
    groups = (
        (epochs, updates(epochs=epochs.rows), "epochs", "budgets: 5 to 40 epochs of batches of 50"),
        (
            batches,
            updates(batch=batches.rows),
            "batch",
            "batches: 20 epochs of batches of 25 to 200",
        ),
    )
    for (left, right), (grid, T, what, title) in zip(rows, groups, strict=True):
        best = analysis.best_decay(grid.mean("validation_loss"), grid.decays)
        losses = grid.mean("test_loss")
        for k, (row, steps) in enumerate(zip(grid.rows, T, strict=True)):
            colour = plt.cm.viridis(k / len(T))
            for axes, factor in ((left, 1), (right, np.sqrt(steps))):
                label = f"{what} {row:g}: T = {steps} updates"
                axes.plot(grid.decays * factor, losses[k], ".-", color=colour, label=label)
                if np.isfinite(best[k]):
                    axes.axvline(np.exp(best[k]) * factor, color=colour, ls="--", linewidth=1)
        left.set(xlabel="λ, per update", ylabel=SCORES["loss"], title=title)
        right.set(xlabel="λ_norm = λ·√T", title="the same against the normalized decay")
        left.legend(fontsize=9, title="dashed: best λ, by validation")
        for axes in (left, right):
            axes.set_xscale("log")
    lowest = np.nanmin(epochs.mean("test_loss"))
    left.set_ylim(0.97 * lowest, 1.6 * lowest)  # of all four: they share it
    save(figure, out / "normalized.png")


def restarts(curves, out):
    """Draw the test loss over the run under each schedule."""
    if not curves:
        return
    names = list(experiments.RESTARTED_AT)
    figure, row = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for axes, name in zip(row, names, strict=True):
        for schedule, (rate, scores) in analysis.chosen(curves, name).items():
            losses, colour = scores.test_loss, SCHEDULES[schedule]
            epochs = np.arange(1, losses.shape[1] + 1)
            label = f"{NAMES[schedule]}, α = {rate:g}"
            axes.plot(epochs, losses.mean(axis=0), color=colour, label=label)
            low, high = losses.min(axis=0), losses.max(axis=0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        for end in experiments.CYCLE_ENDS:
            axes.axvline(end, color="0.8", linewidth=0.8, zorder=0)
        title = {"adamw": "AdamW", "sgdw": "SGDW"}[name]
        axes.set(xlabel="epoch (grey: a cycle ends)", ylabel=SCORES["loss"], title=title)
        axes.set_ylim(0.3, 0.8)
        axes.legend()
    save(figure, out / "restarts.png")


def save(figure, file):
    """Write a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    print(file)


def main():
    options = arguments()
    source = folder(options)
    out = source if options.quick or options.out else DOCS
    runs = Runs(Results(source).done(), options.quick)
    numbers, grids = summary(runs), runs.separability()
    report.write(numbers, source / "summary.json")
    for score in SCORES:
        for names in (ADAM, SGD):
            heat_maps(grids, numbers["separability"], names, score, out)
    budgets(runs.budgets(), runs.batches(), out)
    restarts(runs.curves(), out)


if __name__ == "__main__":
    main()
