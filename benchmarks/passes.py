"""Count how often a step goes over memory, and time it against a plain copy.

    KERAS_BACKEND=torch python benchmarks/passes.py [--quick] [--out FILE]

A pass is one number per weight, read or written. The least that the arithmetic allows is to read weights,
gradients and slots once and to write weights and slots once. What a step really moves is counted on torch from
the tensors that each kernel is given, and on JAX it is what XLA says of the compiled step. A kernel may find in a
cache what another has just written, so more passes need not take longer.

The share of the copy limit is the time of copying the least over the time of the step. Writes JSON.
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
from contenders import BYTES, DECAY, MOMENTUM, RATE, STOCK_BYTES, decay_kinds

BACKEND = keras.backend.backend()
# Weights and gradients are read, weights are written; each slot is read and written.
LEAST = {name: moved // 4 for name, moved in (BYTES | STOCK_BYTES).items()}
LEAST |= {"AdamW, amsgrad": LEAST["AdamW"] + 2, "SGDW, no momentum": LEAST["SGDW"] - 2}
REFERENCE = 'towards="initial"'  # reads one array more


def optimizers():
    """Functions that make optimizers, by name and kind of decay."""
    made = {(name, kind): make for name in RATE for kind, make in decay_kinds(name).items()}
    decay = {"weight_decay": 1e-3 * DECAY}
    more = {
        "AdamW, amsgrad": partial(keras_decoupled.AdamW, 1e-3, amsgrad=True, **decay),
        "Lion": partial(keras_decoupled.Lion, 1e-3, **decay),
        "SGDW, no momentum": partial(keras_decoupled.SGDW, 1e-2, **decay),
    }
    undecayed = partial(keras_decoupled.SGDW, 1e-2, MOMENTUM, weight_decay=0)
    return (
        made
        | {(name, "plain"): make for name, make in more.items()}
        | {("SGDW", "none"): undecayed}
    )


def least(name, kind):
    """Passes that the arithmetic needs."""
    return LEAST[name] + (kind == REFERENCE)


def count_on_torch(contender):
    """Bytes of all tensors that kernels read or write in a step."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def size(value):
        return sum(x.nbytes for x in tree_leaves(value) if isinstance(x, torch.Tensor))

    class Traffic(TorchDispatchMode):
        moved = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            result = func(*args, **kwargs)
            if func.is_view:
                return result
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            for argument in func._schema.arguments:
                written = argument.alias_info is not None and argument.alias_info.is_write
                written = written and argument.name != "grads"  # only where a scale is given
                overwritten = written and func._schema.name in ("aten::copy_", "aten::zero_")
                bytes_ = size(given.get(argument.name))
                Traffic.moved += bytes_ * ((not overwritten) + written)
            if not any(r.alias_info for r in func._schema.returns):
                Traffic.moved += size(result)
            return result

    with Traffic():
        contender.step()
    return Traffic.moved


def count_on_jax(contender):
    """Bytes that XLA counts for the compiled step."""
    lowered = contender.update.lower(contender.state, contender.weights, contender.grads)
    return lowered.compile().cost_analysis()["bytes accessed"]


COUNT = {"torch": count_on_torch, "jax": count_on_jax}


def main():
    """Count, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small matrix, few rounds")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/passes-BACKEND.json")
    options = parser.parse_args()
    if BACKEND not in COUNT:
        parser.error(f"{BACKEND} does not say what a step moves; run it on torch or JAX")
    backend = importlib.import_module(f"on_{BACKEND}")
    side, rounds = (256, 3) if options.quick else (5000, 15)
    workload = workloads.Workload("", [(side, side)])
    values, arrays = workload.arrays()
    grads = backend.tensors(arrays)
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    result["results"] = []
    console = Console(width=None if Console().is_terminal else 120)
    console.print(f"Keras {keras.__version__} on {BACKEND}; {report.machine(result)}")
    shown = Table("optimizer", "decay", title="Passes over memory", title_justify="left")
    for column in ("least", "counted", "ms", "share of the copy limit"):
        shown.add_column(column, justify="right")
    for (name, kind), make in optimizers().items():
        contender = backend.of_keras({name: make}, "", values, grads)[name]()
        contender.build()
        contender.step()
        passes = COUNT[BACKEND](contender) / (4 * workload.parameters)
        copy = backend.copy(4 * workload.parameters * least(name, kind))
        with measure.quiet():
            pairs = [
                (measure.timed(contender.step), copy.repeats * measure.timed(copy.step))
                for _ in range(rounds)
            ]
        copy.close()
        step, limit = (median(seconds) for seconds in zip(*pairs, strict=True))
        row = {
            "least": least(name, kind),
            "counted": passes,
            "ms": 1e3 * step,
            "share": limit / step,
        }
        result["results"].append({"optimizer": name, "decay": kind} | row)
        shown.add_row(
            name,
            kind,
            f"{row['least']}",
            f"{passes:.1f}",
            f"{row['ms']:.1f}",
            f"{row['share']:.2f}",
        )
    file = report.output(options.out, BACKEND, options.quick, "passes-")
    report.finish(console, shown, result, file)


if __name__ == "__main__":
    main()
