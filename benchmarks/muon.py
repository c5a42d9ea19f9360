"""Time one step of Muon: ours beside Keras', torch.optim's and optax', and beside plain products.

    KERAS_BACKEND=torch python benchmarks/muon.py [--quick] [--out FILE]

What limits Muon is arithmetic. The share is that of the speed at which the machine multiplies plain matrices of
1024×1024, in the type of the products. Writes JSON.
"""

import argparse
import importlib
from functools import partial
from pathlib import Path
from statistics import median

import keras
from rich.console import Console
from rich.table import Table

import keras_decoupled
import measure
import report
import workloads
from contenders import DECAY, KERAS, OURS

BACKEND = keras.backend.backend()
RATE, SIDE = 1e-3, 1024
LOW = f"{OURS}, bfloat16"  # the products alone
AT_ONCE = {OURS: 3, LOW: 2}  # iterations on one Gram matrix
SIZES = [(256, 256)] * 16 + [(256, 1024)] * 8 + [(1024, 256)] * 8  # of eight small blocks


def operations(shapes, at_once=1):
    """Operations of the five Newton-Schulz iterations of one step; `at_once`, where a matrix is wide or tall.

    Iterations on the Gram matrix alone have more products, of the smaller side: see `newton_schulz`.
    """
    total = 0
    for n, m in map(sorted, shapes):
        most = at_once if m >= 2 * n else 1
        for k in (min(most, 5 - start) for start in range(0, 5, most)):
            total += 4 * n * n * m + 2 * n**3 * (k + 3 * (k - 1))
    return total


def contenders(backend, mode, values, grads):
    """Functions that make the contenders, by name."""
    ours = partial(keras_decoupled.Muon, RATE, weight_decay=RATE * DECAY)
    made = backend.of_keras(
        {
            OURS: ours,
            LOW: partial(ours, ns_dtype="bfloat16"),
            KERAS + ".Muon": partial(keras.optimizers.Muon, RATE, weight_decay=DECAY),
        },
        *(mode, values, grads),
    )
    if BACKEND == "torch":
        from torch.optim import Muon

        make = partial(Muon, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
        made["torch Muon, bfloat16"] = partial(backend.Native, make, values, grads)
    if BACKEND == "jax":
        from optax.contrib import muon

        make = partial(muon, RATE, weight_decay=DECAY, consistent_rms=0.2)
        made["optax.contrib.muon"] = partial(backend.Optax, make, values, grads)
    return made


class Products:
    """As many operations as a step has, by plain products of large matrices."""

    def __init__(self, backend, operations, dtype):
        x = keras.ops.convert_to_tensor(workloads.Workload("", [(SIDE, SIDE)]).arrays()[0][0])
        self.x, self.finish = keras.ops.cast(x, dtype), getattr(backend, "finish", None)
        self.repeats, self.moved = operations / (2 * SIDE**3), operations

    def step(self):
        """Multiply once, and wait for it."""
        y = keras.ops.matmul(self.x, self.x)
        if self.finish:
            self.finish()
        elif BACKEND == "jax":
            y.block_until_ready()


def adamw_ms(backend, mode, values, grads):
    """Milliseconds of a step of AdamW for the same matrices."""
    make = partial(keras_decoupled.AdamW, RATE, weight_decay=RATE * DECAY)
    contender = backend.of_keras({OURS: make}, mode, values, grads)[OURS]()
    contender.build()
    seconds = [measure.timed(contender.step) for _ in range(30)]
    return 1e3 * median(seconds[10:])


def run(backend, mode, quick, progress):
    """Measure all contenders on these matrices."""
    shapes = SIZES[14:20] if quick else SIZES
    values, arrays = workloads.Workload("", shapes).arrays()
    grads = backend.tensors(arrays)
    effort = measure.QUICK if quick else measure.FULL._replace(seconds=20.0)
    usual = operations(shapes)
    limits = {d: Products(backend, usual, d) for d in ("float32", "bfloat16")}
    made = contenders(backend, mode, values, grads)
    # The limit of float32 is timed beside them, that of bfloat16 after them.
    results, entry = measure.group(made, OURS, limits["float32"], effort, values[-1], progress)
    seconds = {"float32": entry["limit_ms"] / 1e3}
    seconds["bfloat16"] = median(measure.copy_times(limits["bfloat16"]))
    for name, row in results.items():
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        row["operations"] = operations(shapes, AT_ONCE.get(name, 1))
        row["share_of_products"] = row["operations"] / usual * 1e3 * seconds[dtype] / row["ms"]
        del row["this_over_limit"]
    return {
        "matrices": len(shapes),
        "mode": mode,
        "products_per_s": {dtype: usual / s for dtype, s in seconds.items()},  # operations
        "rounds": entry["rounds"],
        "adamw_ms": adamw_ms(backend, mode, values, grads),
        "contenders": results,
    }


def table(entry):
    """One group's contenders as a table."""
    title = f"Muon, {entry['matrices']} matrices of 256×256 to 1024×256 {entry['mode']}"
    caption = f"a step of AdamW takes {entry['adamw_ms']:.1f} ms"
    shown = Table("optimizer", title=title, title_justify="left", caption=caption)
    for column in ("ms", "quartiles", "ours÷this", "share of plain products", "apart"):
        shown.add_column(column, justify="right")
    for name, row in entry["contenders"].items():
        low, high = row["ms_quartiles"]
        ratio, share = row["ours_over_this"], row["share_of_products"]
        figures = f"{row['ms']:.1f}", f"{low:.1f}–{high:.1f}", f"{ratio:.2f}", f"{share:.2f}"
        shown.add_row(name, *figures, f"{row['apart']:.3f}")
    return shown


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six matrices, few rounds")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/muon-BACKEND.json")
    options = parser.parse_args()
    backend = importlib.import_module(f"on_{BACKEND}")
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"Keras {keras.__version__} on {BACKEND}; {report.machine(result)}")
    result["results"] = []
    with report.Bar(console) as bar:
        task = bar.add_task("", total=len(backend.MODES))
        for mode in backend.MODES:
            bar.show(task, description=f"Muon {mode}")
            result["results"].append(run(backend, mode, options.quick, lambda part: None))
            bar.show(task, advance=1)
            console.print(table(result["results"][-1]))
    file = report.output(options.out, BACKEND, options.quick, "muon-")
    report.write(result, file)
    console.print(f"Written: {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
