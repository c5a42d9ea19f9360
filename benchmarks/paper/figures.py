"""Draw what the runs say, and write its numbers.

    PYTHONPATH=benchmarks python benchmarks/paper/figures.py [--quick] [--out FOLDER]

Reads `runs.csv`; writes `summary.json` beside it, and the pictures of docs/evidence.md. A quick
run's pictures stay beside it.
"""

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullLocator

import experiments
import figures_of_kinds
import report
from analysis import Estimate, Runs
from drawing import DOCS, SCORES, WIDTH, plt, save
from results import Cell, Results
from run import arguments, folder
from summary import summary

ADAM = ("adam-l2", "keras-adamw", "adamw")
SGD = ("sgd-l2", "sgdw")
KINDS = ("adamw-eta0", "adamw", "adamw-eta2", "adamw-cautious")
TITLES = {
    "adam-l2": "Adam, L2 penalty in the loss",
    "keras-adamw": "keras.optimizers.AdamW",
    "adamw": "keras_decoupled.AdamW",
    "adamw-eta0": "AdamW, Decay(λ, eta_power=0)",
    "adamw-eta2": "AdamW, Decay(λ, eta_power=2)",
    "adamw-cautious": "AdamW, Decay(λ, cautious=True)",
    "sgd-l2": "SGD with momentum, L2 penalty in the loss",
    "sgdw": "keras_decoupled.SGDW",
}
DECAYS = {
    "adam-l2": "w: penalty w/2·‖θ‖²",
    "keras-adamw": "weight_decay: a step removes α·η·w",
    "adamw": "weight_decay: a step removes η·λ",
    "adamw-eta0": "λ: a step removes λ",
    "adamw-eta2": "λ: a step removes η²·λ",
    "adamw-cautious": "λ: a step removes η·λ, or nothing",
    "sgd-l2": "w: penalty w/2·‖θ‖²",
    "sgdw": "weight_decay: a step removes η·λ",
}
LINES = {  # colour and label
    "constant": ("0.5", "constant rate, α/4"),
    "cosine": ("tab:orange", "one cosine"),
    "restarts 2": ("tab:blue", "warm restarts, t_mul=2"),
}
BUDGET_TITLES = {
    "epochs": "5 to 40 epochs",
    "batch": "batches of 25 to 200",
    "images": "1250 to 10,000 images",
}
WORST = {"loss": 1.6, "error": 1.4}  # colours end at so many times the best


def heat_maps(grids, numbers, names, score, out):
    """Draw test scores over learning rate × decay; the ten best cells and each rate's best decay."""
    scale = 100 if score == "error" else 1
    values = {name: scale * grids[name].mean(f"test_{score}") for name in names}
    found = np.concatenate([v[np.isfinite(v)] for v in values.values()])
    if not len(found):
        return
    lowest, highest = found.min(), WORST[score] * found.min()
    columns = len(names) if len(names) < 4 else 2
    rows = len(names) // columns
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, (7.5 / columns + 1.2) * rows + 0.5),
        layout="constrained",
        sharey=True,
    )
    for axes, name in zip(panels.flat, names, strict=True):
        grid, told = grids[name], numbers[name][score]
        shown = axes.pcolormesh(
            edges(grid.decays),
            edges(grid.rows),
            np.minimum(values[name], highest),  # what diverged is as yellow as what is bad
            norm=LogNorm(lowest, highest),
            cmap="viridis",
        )
        rates, best = told["its learning rates"], told["best decay by learning rate"]
        line = [best[f"{rate:g}"] for rate in rates]
        axes.plot(line, rates, color="white", linewidth=1.5, marker="|", markersize=9)
        ten_rates, ten_decays = np.transpose(told["ten best"])
        axes.plot(ten_decays, ten_rates, "o", color="black", markersize=5)
        axes.set(xscale="log", yscale="log", xlabel=DECAYS[name].replace(": ", ":\n"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_title(f"{TITLES[name]}\nbest decay ~ α^s,\ns = {Estimate(*told['slope'])}")
    for axes in panels.reshape(rows, columns)[:, 0]:
        axes.set_ylabel("base learning rate α")
    bar = figure.colorbar(shown, ax=panels, pad=0.01)
    ticks = np.linspace(lowest, highest, 5)
    labels = [f"{tick:.{1 if scale > 1 else 2}f}" for tick in ticks]
    bar.set_ticks(ticks, labels=[*labels[:-1], f"≥ {labels[-1]}"])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_label(f"{SCORES[score]}, mean of three seeds")
    handles = [
        plt.Line2D([], [], color="black", marker="o", ls=""),
        plt.Line2D([], [], color="0.7", marker="|", markersize=9),
    ]
    labels = ["ten best cells", "best decay of each learning rate that s is fitted to"]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save(figure, out / f"{names[-1]}-{score}.png")


def edges(centres):
    """Edges of cells on a logarithmic axis."""
    step = np.sqrt(centres[1:] / centres[:-1])
    return np.concatenate([centres[:1] / step[:1], centres[:-1] * step, centres[-1:] * step[-1:]])


def budgets(grids, numbers, out):
    """Draw the test loss against λ, and against λ_norm, for several numbers of updates."""
    losses = {what: grid.mean("test_loss") for what, grid in grids.items()}
    if not np.isfinite(losses["epochs"]).any():
        return
    figure, rows = plt.subplots(
        len(grids), 2, figsize=(WIDTH, 3.2 * len(grids)), layout="constrained", sharey=True
    )
    for (left, right), (what, grid) in zip(rows, grids.items(), strict=True):
        told = numbers[what]
        for k, row in enumerate(told["rows"]):
            colour = plt.cm.viridis(k / len(told["rows"]))
            label = f"{row[what]}:\nT = {row['T']}"
            for axes, factor, best in (
                (left, 1, row["best λ"]),
                (right, np.sqrt(row["T"]), row["best λ_norm"]),
            ):
                axes.plot(grid.decays * factor, losses[what][k], ".-", color=colour, label=label)
                axes.axvline(best, color=colour, ls="--", linewidth=1)
        exponent = Estimate(*told["best λ by loss ~ T^p, p"])
        left.set(xlabel="λ, per update", ylabel=SCORES["loss"])
        left.set_title(f"{BUDGET_TITLES[what]}: \nbest λ ~ T^p,  p = {exponent}")
        right.set(xlabel="λ_norm = λ·√T")
        right.set_title("over λ_norm: dashed lines\ncoincide if p = −0.5")
        right.legend(title=what, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for axes in (left, right):
            axes.set_xscale("log")
    lowest = np.nanmin(losses["epochs"])
    left.set_ylim(0.9 * lowest, 1.6 * lowest)  # of all: they share it
    save(figure, out / "normalized.png")


def restarts(curves, numbers, out):
    """Draw the test loss over the run under each schedule."""
    if not curves:
        return
    figure, row = plt.subplots(1, len(curves), figsize=(WIDTH, 4.8), layout="constrained")
    for axes, (name, schedules) in zip(np.atleast_1d(row), curves.items(), strict=True):
        for schedule in (known for known in LINES if known in schedules):
            decay = numbers[name][schedule]["λ"]
            losses = schedules[schedule][decay].test_loss
            epochs = experiments.FOLLOWED * np.arange(1, losses.shape[1] + 1)
            colour, label = LINES[schedule]
            axes.plot(epochs, losses.mean(axis=0), color=colour, label=f"{label}, λ = {decay:g}")
            low, high = losses.min(axis=0), losses.max(axis=0)
            axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        for end in experiments.CYCLE_ENDS:
            axes.axvline(end, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel="epoch (grey lines: a cycle ends)", ylabel=SCORES["loss"])
        axes.set_title(TITLES[name])
        axes.set_ylim(0.2, 0.8)
        axes.legend(loc="lower left")
    figure.suptitle("Mean, least and most of three seeds; λ is the best for the last epoch")
    save(figure, out / "restarts.png")


def main():
    """Draw all."""
    options = arguments()
    source, out = folder(options), DOCS
    done = Results(source).done()
    if options.quick or options.out:
        out = source
    elif missing := {c for c in experiments.cells(quick=False) if isinstance(c, Cell)} - set(done):
        raise SystemExit(f"{len(missing)} runs are missing: nox -s paper")
    runs = Runs(done, options.quick)
    numbers, grids, kinds = summary(runs), runs.separability(), runs.kinds()
    report.write(numbers, source / "summary.json")
    for score in SCORES:
        for names in (ADAM, SGD):
            heat_maps(grids, numbers["separability"], names, score, out)
        heat_maps(kinds, numbers["kinds"], KINDS, score, out)
    budgets(runs.budgets(), numbers["budgets"], out)
    restarts(runs.curves(), numbers["restarts"], out)
    figures_of_kinds.timescale(numbers["budgets"], out)
    figures_of_kinds.fine_tuning(runs.fine_tuning(), numbers["fine-tuning"], out)
    figures_of_kinds.sparsity(numbers["sparsity"], out)
    figures_of_kinds.gradients(source / "gradients.json", out)


if __name__ == "__main__":
    main()
