"""Draw the results of step.py: a panel per model, a bar per optimizer, milliseconds.

python benchmarks/plot.py [FILE …] [--optimizer NadamW] [--out FILE]
"""

import argparse
import json
from pathlib import Path

import matplotlib

import report

matplotlib.use("Agg")  # draws into files: no screen needed
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

plt.rcParams |= dict.fromkeys(("font.size", "axes.titlesize", "figure.titlesize"), 10.5)
BACKENDS = ("torch", "jax", "tensorflow")
OURS, PEER, LIMIT = "tab:blue", "0.72", "tab:red"


def beside(file, quick, prefix=""):
    """Results of the other backends in the same folder."""
    names = [f"{'quick-' if quick else ''}{prefix}{backend}.json" for backend in BACKENDS]
    return [file.with_name(n) for n in names if n != file.name and file.with_name(n).exists()]


def read(files):
    """Results by backend, in our order; of two for one backend, the first."""
    found = {}
    for file in files:
        result = json.loads(Path(file).read_text(encoding="utf8"))
        found.setdefault(result["backend"], result)
    return {backend: found[backend] for backend in BACKENDS if backend in found}


def bars(results, optimizer, workload):
    """Groups of bars of one panel: (heading, limit in ms, contenders)."""
    for backend, result in results.items():
        for entry in result["results"]:
            if (entry["optimizer"], entry["workload"]) == (optimizer, workload):
                mode = f" ({entry['mode']})" if entry["mode"] else ""
                yield backend + mode, entry["limit_ms"], entry["contenders"]


def panel(axes, groups):
    """Draw groups from top to bottom, each under its heading, with its limit as a line."""
    place, ticks, labels = 0.0, [], []
    for heading, limit, contenders in groups:
        axes.text(
            0.0, place, heading, transform=axes.get_yaxis_transform(), va="center", style="italic"
        )
        top = place + 0.5
        for name, row in contenders.items():
            place += 1
            low, high = row["ms_quartiles"]
            axes.barh(place, row["ms"], height=0.8, color=OURS if row["ours"] else PEER)
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            text = f"{row['ms']:.3g}" if row["ms"] < 1000 else f"{row['ms']:.0f}"
            weight = "bold" if row["ours"] else "normal"
            number = axes.annotate(text, (high, place), (4, 0), textcoords="offset points")
            number.set(va="center", weight=weight, zorder=4)
            number.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})
            ticks.append(place)
            labels.append(name)
        axes.plot([limit, limit], [top, place + 0.5], color=LIMIT, linestyle="--", linewidth=1.5)
        place += 1.3
    axes.set_yticks(ticks, labels)
    axes.set_ylim(place - 0.6, -0.7)
    axes.set_xscale("log")
    rows = [row for *_, contenders in groups for row in contenders.values()]
    limits = [limit for _, limit, _ in groups]
    left = min(*limits, *(row["ms"] for row in rows))
    right = max(*limits, *(row["ms_quartiles"][1] for row in rows))
    axes.set_xlim(left / 2, right * (right / left) ** 0.2)  # a sixth of the width for numbers
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("ms per step (log scale)")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def draw(files, out, optimizer="AdamW"):
    """Draw one optimizer on every model and every backend that the files have."""
    results = read(files)
    titles = {
        entry["workload"]: f"{entry['title']}: {entry['variables']} variables, "
        f"{entry['parameters'] / 1e6:.1f}M parameters"
        for result in results.values()
        for entry in result["results"]
        if entry["optimizer"] == optimizer
    }
    if not titles:
        return
    panels = {titles[key]: list(bars(results, optimizer, key)) for key in titles}
    save(panels, results, f"One {optimizer} step", out)


def save(panels, results, heading, out):
    """Draw these panels, by title, and write the picture."""
    lengths = [sum(len(rows) + 1.3 for *_, rows in groups) for groups in panels.values()]
    figure, grid = plt.subplots(
        len(panels),
        figsize=(9, 0.24 * sum(lengths) + len(panels) + 1.5),  # a page's column shows 9 inches
        height_ratios=lengths,
        layout="constrained",
        squeeze=False,
    )
    for axes, (title, groups) in zip(grid.flat, panels.items(), strict=True):
        panel(axes, groups)
        axes.set_title(title, loc="left", weight="bold")
    machines = " and ".join(dict.fromkeys(report.machine(result) for result in results.values()))
    figure.suptitle(f"{heading}, float32; shorter is better\n{machines}")
    colours = {
        "keras_decoupled": plt.Rectangle((0, 0), 1, 1, color=OURS),
        "others": plt.Rectangle((0, 0), 1, 1, color=PEER),
        "copying as many bytes as the step must move": plt.Line2D([], [], color=LIMIT, ls="--"),
        "quartiles": plt.Line2D([], [], color="black", linewidth=1),
    }
    figure.legend(colours.values(), colours.keys(), loc="outside lower center", ncols=2)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main():
    """Draw what lies in the folder of results, or the files given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="default: the full runs in results/")
    parser.add_argument("--optimizer", default="AdamW", choices=("AdamW", "NadamW", "SGDW"))
    parser.add_argument("--out", type=Path, default=report.FOLDER / "step.png")
    options = parser.parse_args()
    draw(
        options.files or beside(report.FOLDER / "none", quick=False), options.out, options.optimizer
    )


if __name__ == "__main__":
    main()
