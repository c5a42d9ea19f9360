"""Train every run of the experiments that is not in the results yet.

    nox -s paper [-- --quick] [--experiment NAME …] [--out FOLDER]

A process per core, a run at a time in each. What ends is written at once: after a kill, start it
again. `figures.py` draws what came out. Delete a table after a change of what a run computes.
"""

import argparse
import contextlib
import multiprocessing
import os
import queue
import sys
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import experiments
import report
import text
from results import Results, TextCell

# Each process has one core to itself: XLA's and BLAS' threads would take each other's.
ONE_THREAD = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
}


def arguments():
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few small runs, for a look")
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results/paper")
    parser.add_argument("--experiment", nargs="+", choices=experiments.EXPERIMENTS)
    return parser.parse_args()


def folder(options):
    """Where the results are: a quick run does not replace a full one."""
    return options.out or report.FOLDER / ("quick-paper" if options.quick else "paper")


def work(tasks, ended):
    """Run cells until there are none; a program is compiled once for all cells that can share it."""
    programs = {}
    parent = multiprocessing.parent_process()
    for cell in iter(tasks.get, None):
        if not parent.is_alive():
            return
        make, key, data = program(cell)
        if key not in programs:
            programs[key] = make(cell, data())
        ended.put((cell, dict(programs[key].run(cell))))


def program(cell):
    """Return what makes the program of a cell, the key of those that can share it, and its data."""
    if isinstance(cell, TextCell):
        import transformer

        return transformer.Program, (cell.form, cell.width), text.load
    import fashion
    import fine_tuning
    import one_run

    number = one_run.decay_input(cell) if cell.algorithm in one_run.NUMBERS else None
    fine = cell.algorithm.endswith(experiments.FINE_TUNED)
    make = (fine_tuning if fine else one_run).Program
    return make, (cell.algorithm, number), fashion.load


def train(cells, results, processes):
    """Train the cells, and show how long it will take."""
    context = multiprocessing.get_context("spawn")
    tasks, ended = context.Queue(), context.Queue()
    for cell in (*cells, *[None] * processes):
        tasks.put(cell)
    # Daemons end with this process; where that was killed, `work` sees it.
    workers = [
        context.Process(target=work, args=(tasks, ended), daemon=True) for _ in range(processes)
    ]
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, speed_estimate_period=600) as bar:
        # In updates: runs have from 500 to 6200 of them.
        task = bar.add_task("updates", total=sum(cell.updates for cell in cells))
        for worker in workers:
            worker.start()
        for _ in cells:
            cell, scores = next_of(ended, workers)
            results.add(cell, scores)
            bar.advance(task, cell.updates)
    for worker in workers:
        worker.join()


def next_of(ended, workers):
    """Return what ended next; fail where a worker has died."""
    while True:
        for worker in workers:
            if worker.exitcode:
                raise SystemExit(f"a worker ended with {worker.exitcode}")
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=5)


def main():
    """Train what is missing."""
    options = arguments()
    os.environ.update(ONE_THREAD)
    results = Results(folder(options))
    results.mend()
    cells, done = experiments.cells(options.quick, options.experiment), results.done()
    missing = [cell for cell in cells if cell not in done]
    print(f"{len(cells) - len(missing)} of {len(cells)} runs are in {results.folder}")
    if any(isinstance(cell, TextCell) for cell in missing) and not text.available():
        print("Runs on text are left out: the program `bible` is missing (Debian: bible-kjv).")
        missing = [cell for cell in missing if not isinstance(cell, TextCell)]
    if missing:
        options_given = ["--", *sys.argv[1:]] if sys.argv[1:] else []
        settings = {"command": " ".join(["nox -s paper", *options_given])}
        about = report.circumstances("jax", options.quick, None, settings)
        report.write(about, folder(options) / "about.json")
        train(missing, results, min(os.cpu_count(), len(missing)))


if __name__ == "__main__":
    main()
