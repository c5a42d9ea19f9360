"""How the time of a step grows: with parameters, with variables, with rules.

    KERAS_BACKEND=torch python benchmarks/scaling.py [--quick] [--out FILE]

AdamW alone: `step.py` has the others and the peers. Writes JSON. `nox -s benchmark` runs it last.
"""

import argparse
import gc
import importlib
from functools import partial
from pathlib import Path
from statistics import median

import keras
from rich.console import Console
from rich.table import Table

import keras_decoupled
import report
import workloads
from contenders import OURS
from measure import timed

BACKEND = keras.backend.backend()
MILLION = 1024 * 1024


def step_ms(backend, shapes, seconds, rules=0):
    """Median milliseconds of a step on variables of these shapes, under so many different rules."""
    values, arrays = workloads.Workload("", shapes).arrays()
    grads = backend.tensors(arrays)
    del arrays
    contender = backend.contenders("AdamW", backend.MODES[0], values, grads)[OURS]()
    if rules:
        # names are w0_rule…, w1_rule…: "w3_" is a part of one alone
        decays = {f"w{index}_": 1e-5 * (1 + index % rules) for index in range(len(shapes))}
        contender.make = partial(keras_decoupled.AdamW, 1e-3, weight_decays=decays)
    contender.build()
    for _ in range(3):
        contender.step()
    times = []
    while len(times) < 5 or sum(times) < seconds:
        times.append(timed(contender.step))
    return 1e3 * median(times)


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller models")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/scaling-BACKEND.json")
    options = parser.parse_args()
    backend = importlib.import_module(f"on_{BACKEND}")
    seconds = 0.2 if options.quick else 2.0
    millions = (1, 4, 16) if options.quick else (1, 4, 16, 64, 200)
    counts = (25, 100) if options.quick else (25, 100, 400, 1000)
    rules = (1, 4) if options.quick else (1, 4, 16, 64)
    todo = (
        [("parameters", m * MILLION, [(1024, 1024)] * m, 0) for m in millions]
        + [("variables", count, [(32, 32)] * count, 0) for count in counts]
        + [("rules", count, [(64, 64)] * 128, count) for count in rules]
    )
    console = Console(width=None if Console().is_terminal else 120)
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    result["results"] = []
    shown = Table(title=f"AdamW on {BACKEND}, {report.machine(result)}", title_justify="left")
    for column in ("of", "how many", "ms", "ns per parameter", "µs per variable"):
        shown.add_column(column, justify="right")
    with report.Bar(console) as bar:
        task = bar.add_task("", total=len(todo))
        for what, count, shapes, different in todo:
            bar.show(task, description=f"{count} {what}")
            ms = step_ms(backend, shapes, seconds, different)
            gc.collect()
            size = workloads.Workload("", shapes).parameters
            row = {"of": what, "count": count, "variables": len(shapes), "parameters": size}
            result["results"].append(row | {"ms": ms})
            per = f"{1e6 * ms / size:.2f}", f"{1e3 * ms / len(shapes):.1f}"
            shown.add_row(what, str(count), f"{ms:.2f}", *per)
            bar.show(task, advance=1)
    file = report.output(options.out, BACKEND, options.quick, "scaling-")
    report.finish(console, shown, result, file)


if __name__ == "__main__":
    main()
