"""Time `model.fit` end to end: our optimizers against stock Keras', in turns.

    KERAS_BACKEND=torch python benchmarks/fit.py [--quick] [--out FILE] [--optimizer …]

The model has many small Dense and LayerNormalization layers and the batch is small, so that the
optimizer is a good part of a step. Writes JSON. `nox -s benchmark` runs it after step.py.
"""

import argparse
import importlib
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import report
from contenders import KERAS, OURS, keras_optimizers
from measure import quiet, ratio, spread, timed

BACKEND = keras.backend.backend()
WIDTH, BATCH = 64, 8
KINDS = ("AdamW", "NadamW", "SGDW")


def make_model(depth):
    """Dense, LayerNormalization, residual, again and again."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((WIDTH,))
    for _ in range(depth):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.add([x, keras.layers.Dense(WIDTH, "relu")(y)])
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def run(kind, jit_compile, depth, steps, rounds, advance):
    """Time epochs of `steps` steps, in turns; the first fit, which compiles, is apart."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps * BATCH, WIDTH), "float32")
    y = rng.standard_normal((steps * BATCH, 1), "float32")
    epochs, first, times = {}, {}, {}
    variables = len(make_model(depth).trainable_variables)
    for name, make in keras_optimizers(kind, variables).items():
        if name != OURS and not name.startswith(KERAS + "."):
            continue  # the rules are keyed by names that these variables do not have
        model = make_model(depth)
        model.compile(make(), loss="mse", jit_compile=jit_compile)

        def epoch(model=model):
            model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)

        epochs[name], times[name] = epoch, []
        with quiet():
            first[name] = timed(epoch)
        advance()
    for done in range(rounds):
        with quiet():
            for name in [*epochs] if done % 2 else [*epochs][::-1]:
                times[name].append(timed(epochs[name]) / steps)
        advance()
    return {
        "optimizer": kind,
        "jit_compile": jit_compile,
        "layers": depth,
        "variables": variables,
        "batch": BATCH,
        "steps": steps,
        "rounds": rounds,
        "contenders": {
            name: spread(seconds)
            | {"ours_over_this": ratio(times[OURS], seconds), "first_epoch_s": first[name]}
            for name, seconds in times.items()
        },
    }


def table(entries, steps):
    """All optimizers in one table."""
    shown = Table(title="model.fit, ms per step", title_justify="left")
    shown.add_column("optimizer")
    columns = ("XLA", "ms", "quartiles", "ours÷this", f"first {steps} steps, s")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        for name, row in entry["contenders"].items():
            low, high = row["ms_quartiles"]
            shown.add_row(
                f"{name}.{entry['optimizer']}" if name == OURS else f"  {name}",
                {"auto": "", True: "yes", False: "no"}[entry["jit_compile"]],
                f"{row['ms']:.2f}",
                f"{low:.2f}–{high:.2f}",
                f"{row['ours_over_this']:.2f}",
                f"{row['first_epoch_s']:.2f}",
                style="bold" if name == OURS else None,
            )
    return shown


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="AdamW alone, few layers, steps, rounds"
    )
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/fit-BACKEND.json")
    parser.add_argument("--optimizer", nargs="+", choices=KINDS, help="only these")
    options = parser.parse_args()
    depth, steps, rounds = (6, 10, 5) if options.quick else (100, 50, 12)
    kinds = options.optimizer or (KINDS[:1] if options.quick else KINDS)
    modes = (True, False) if BACKEND == "tensorflow" else ("auto",)
    console = Console(width=None if Console().is_terminal else 120)
    backend = importlib.import_module(f"on_{BACKEND}")
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    console.print(f"Keras {keras.__version__} on {BACKEND}; {report.machine(result)}")
    with report.Bar(console) as bar:
        task = bar.add_task("", total=len(kinds) * len(modes) * (rounds + 2))

        def advance():
            bar.show(task, advance=1)

        result["results"] = []
        for kind in kinds:
            for mode in modes:
                bar.show(task, description=f"fit, {kind}, jit_compile={mode}")
                result["results"].append(run(kind, mode, depth, steps, rounds, advance))
                keras.backend.clear_session()
    console.print(table(result["results"], steps))
    file = report.output(options.out, BACKEND, options.quick, "fit-")
    report.write(result, file)
    console.print(f"Written: {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
