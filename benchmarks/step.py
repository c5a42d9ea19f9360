"""Time one optimizer step: ours beside stock Keras and the backend's own optimizers.

    KERAS_BACKEND=torch python benchmarks/step.py [--quick] [--out FILE] [--workload …] [--optimizer …]
                                                  [--kinds | --stock | --eager] [--dtype bfloat16]

All contenders for the same work are in one process and take turns. Writes JSON and draws step.png
beside it, from the results of all backends that lie there. `nox -s benchmark` does all of it.
A part (--workload, --optimizer) has a file of its own, and draws nothing.
With --kinds, the contenders are ours with each kind of decay, and the picture is left as it is.
With --stock, they are the other stock optimizers, as `decouple` makes them and as they are; nothing
is drawn. With --eager, on TensorFlow and JAX, nothing is compiled (`run_eagerly=True`).
"""

import argparse
import importlib
import sys
from pathlib import Path

import keras
from rich.console import Console

import measure
import plot
import report
import workloads
from contenders import (
    BYTES,
    KERAS,
    OURS,
    PLAIN,
    RULES,
    STOCK_BYTES,
    decay_kinds,
    keras_optimizers,
    stock_optimizers,
)

BACKEND = keras.backend.backend()
# Of the way that ours went; more means that it is not the same work. Each Nadam has a momentum
# schedule of its own, which the first steps show.
APART = {"AdamW": 0.05, "NadamW": 0.5, "SGDW": 0.05}


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="parts of the models, few rounds")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file; default: benchmarks/results/[kinds-|stock-|eager-|bfloat16-]BACKEND.json",
    )
    parser.add_argument(
        "--workload",
        nargs="+",
        choices=workloads.workloads(True) | workloads.for_stock(True),
        help="only these",
    )
    parser.add_argument("--optimizer", nargs="+", choices=BYTES | STOCK_BYTES, help="only these")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of weights and gradients; peers round each step to bfloat16, and so go elsewhere",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--kinds",
        action="store_const",
        const="kinds",
        dest="which",
        help="our kinds of decay beside plain",
    )
    which.add_argument(
        "--stock", action="store_const", const="stock", dest="which", help="other stock optimizers"
    )
    which.add_argument(
        "--eager",
        action="store_const",
        const="eager",
        dest="which",
        help="nothing compiled; small variables unless --workload says more",
    )
    options = parser.parse_args()
    known = STOCK_BYTES if options.which == "stock" else BYTES
    for name in options.optimizer or ():
        if name not in known:
            parser.error(
                f"--optimizer {name}: {'without' if name in BYTES else 'only with'} --stock"
            )
    return options


def warm_up(backend, modes):
    """Step on two variables once: starting threads and compilers is in no one's first step."""
    values, grads = workloads.Workload("", [(8, 8), (8,)]).arrays()
    grads = backend.tensors(grads)
    for kind in BYTES:
        for mode in modes:
            for make in backend.contenders(kind, mode, values, grads).values():
                contender = make()
                contender.build()
                contender.step()
                contender.extra_bytes()


def run(backend, key, workload, kind, mode, which, effort, progress):
    """Measure one optimizer on one model: beside its peers, or with each kind of decay."""
    kinds = which == "kinds"
    values, arrays = workload.arrays()
    grads = backend.tensors(arrays)
    if kinds:
        ours, makers = PLAIN, backend.of_keras(decay_kinds(kind), mode, values, grads)
    elif which in ("stock", "eager"):
        made = (stock_optimizers if which == "stock" else keras_optimizers)(kind, len(values))
        ours, makers = OURS, backend.of_keras(made, mode, values, grads)
    else:
        ours, makers = OURS, backend.contenders(kind, mode, values, grads)
    copy = backend.copy((BYTES | STOCK_BYTES)[kind] * workload.parameters)
    results, entry = measure.group(makers, ours, copy, effort, values[-1], progress)
    copy.close()
    for name, row in results.items():
        row["ours"] = kinds or name in (OURS, RULES)
        if kinds:
            row["this_over_plain"] = 1 / row.pop("ours_over_this")
    return {
        "workload": key,
        "title": workload.title,
        "variables": len(workload.shapes),
        "parameters": workload.parameters,
        "optimizer": kind,
        "mode": mode,
        **entry,
        "contenders": results,
    }


def suspicious(entry):
    """Names of those that did not do the same work."""
    rows, limit = entry["contenders"], APART.get(entry["optimizer"], 0.05)
    return [name for name in rows if name != RULES and not rows[name]["apart"] <= limit]


def ratios(entry):
    """Short text: ours beside each peer, or each kind beside plain."""
    rows = entry["contenders"]
    if PLAIN in rows:
        return ", ".join(f"{k} {row['this_over_plain']:.2f}" for k, row in rows.items())
    texts = [
        f"÷ {name.removeprefix(KERAS + '.')} {row['ours_over_this']:.2f}"
        for name, row in rows.items()
        if not row["ours"]
    ]
    if entry["optimizer"] in STOCK_BYTES:
        over_stock = rows[f"{KERAS}.{entry['optimizer']}"]["ours_over_this"]
        return f"{texts[0]}, with rules {over_stock / rows[RULES]['ours_over_this']:.2f}"
    if RULES in rows:
        texts.append(f"rules ÷ without {1 / rows[RULES]['ours_over_this']:.2f}")
    return ", ".join(texts)


def main():
    """Measure, print, write, draw."""
    options = arguments()
    workloads.DTYPE = options.dtype
    backend = importlib.import_module(f"on_{BACKEND}")
    effort = measure.QUICK if options.quick else measure.FULL
    effort = effort._replace(first_steps=getattr(backend, "FIRST_STEPS", effort.first_steps))
    stock = options.which == "stock"
    part = bool(options.workload or options.optimizer)
    modes = backend.MODES
    if stock:  # 400 variables of Adafactor compile for a quarter of a minute
        effort, modes = effort._replace(first_steps=1), modes[:1]
    models = workloads.for_stock if stock else workloads.workloads
    if options.which == "eager":
        modes, options.workload = ("eager",), options.workload or ["small"]
    todo = [
        (key, workload, kind, mode)
        for key, workload in models(options.quick).items()
        for kind in options.optimizer or (STOCK_BYTES if stock else BYTES)
        for mode in modes
        if not options.workload or key in options.workload
    ]
    if not todo:
        sys.exit(f"There is no such workload: {options.workload}. There are: {[*models(True)]}.")
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    result["results"] = []
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"Keras {keras.__version__} on {BACKEND}; {report.machine(result)}")
    with report.Bar(console) as bar:
        task = bar.add_task("starting", total=len(todo))
        warm_up(backend, backend.MODES)
        for done, (key, workload, kind, mode) in enumerate(todo):
            bar.show(task, description=f"{workload.title}, {kind} {mode}")

            def progress(part, done=done):
                bar.show(task, completed=done + part)

            progress(0)
            entry = run(backend, key, workload, kind, mode, options.which, effort, progress)
            result["results"].append(entry)
            console.print(report.table(entry))
            for name in suspicious(entry):
                console.print(f"[red]{name} went elsewhere than ours: not the same work[/red]")
        bar.show(task, description="done", completed=len(todo))
    for entry in result["results"]:
        label = f"{entry['title']}, {entry['optimizer']} {entry['mode']}"
        console.print(f"{label:<44} {ratios(entry)}", soft_wrap=True)
    low = options.dtype != "float32"
    prefix = "".join(f"{part}-" for part in (options.which, low and options.dtype) if part)
    file = report.output(options.out, BACKEND, options.quick, prefix, part)
    report.write(result, file)
    console.print(f"Written: {file}", soft_wrap=True)
    if options.which or low or part:
        return
    picture = file.with_name(f"{'quick-' if options.quick else ''}step.png")
    plot.draw([file, *plot.beside(file, options.quick, prefix)], picture)
    console.print(f"Drawn: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
