"""Time `model.fit` end to end: our optimizers against stock Keras', in turns.

    KERAS_BACKEND=torch python benchmarks/fit.py [--quick] [--out FILE] [--model …] [--optimizer …]

Three models: many small layers and a small batch, so that the optimizer is a good part of a step; a
residual network of convolutions; a small transformer. Writes JSON. `nox -s benchmark` runs it after
step.py.
"""

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import report
from contenders import KERAS, OURS, keras_optimizers, stock_optimizers
from measure import quiet, ratio, spread, timed

BACKEND = keras.backend.backend()
KINDS = ("AdamW", "Lion", "SGDW")


class Work(NamedTuple):
    """A model, its data, and how long it is trained for."""

    model: Callable[[bool], keras.Model]  # whether the run is a quick one
    x: Callable[[np.random.Generator, int], np.ndarray]
    batch: int
    steps: int
    rounds: int


def layers(quick):
    """Dense, LayerNormalization, residual, again and again."""
    x = inputs = keras.Input((64,))
    for _ in range(6 if quick else 100):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.add([x, keras.layers.Dense(64, "relu")(y)])
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def resnet(quick):
    """Three stages of residual blocks, as in the ResNets for CIFAR (arXiv 1512.03385, 4.2)."""

    def convolution(x, channels, strides=1, activation="relu"):
        x = keras.layers.Conv2D(channels, 3, strides, "same", use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
        return keras.layers.Activation(activation)(x)

    inputs = keras.Input((16, 16, 3))
    x = convolution(inputs, 16)
    for stage in range(3):
        for block in range(1 if quick else 3):
            strides, channels = 1 + (stage > 0 and block == 0), 16 * 2**stage
            shortcut = x if strides == 1 else keras.layers.Conv2D(channels, 1, strides)(x)
            y = convolution(convolution(x, channels, strides), channels, activation="linear")
            x = keras.layers.Activation("relu")(keras.layers.add([shortcut, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def transformer(quick):
    """An encoder with the normalization first."""
    inputs = keras.Input((32,), dtype="int32")
    x = keras.layers.Embedding(512, 64)(inputs)
    for _ in range(1 if quick else 4):
        y = keras.layers.LayerNormalization()(x)
        x = keras.layers.add([x, keras.layers.MultiHeadAttention(4, 16)(y, y)])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(64)(keras.layers.Dense(256, "gelu")(y))
        x = keras.layers.add([x, y])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(inputs, keras.layers.Dense(1)(x))


WORK = {
    "layers": Work(layers, lambda rng, n: rng.standard_normal((n, 64), "float32"), 8, 50, 12),
    "resnet": Work(
        resnet, lambda rng, n: rng.standard_normal((n, 16, 16, 3), "float32"), 16, 20, 12
    ),
    "transformer": Work(transformer, lambda rng, n: rng.integers(0, 512, (n, 32)), 8, 30, 12),
}


def makers(kind, variables):
    """Functions that make ours and stock Keras', by name."""
    made = stock_optimizers if kind == "Lion" else keras_optimizers
    # Not those with rules: they are keyed by names that these variables do not have.
    return {n: make for n, make in made(kind, variables).items() if n == OURS or KERAS in n}


def run(name, kind, jit_compile, quick, advance):
    """Time epochs, in turns; the first fit, which compiles, is apart."""
    work = WORK[name]
    steps, rounds = (5, 3) if quick else (work.steps, work.rounds)
    rng = np.random.default_rng(0)
    x = work.x(rng, steps * work.batch)
    y = rng.standard_normal((len(x), 1), "float32")
    epochs, first, times = {}, {}, {}

    def make_model():
        keras.utils.set_random_seed(0)
        return work.model(quick)

    variables = len(make_model().trainable_variables)
    for contender, make in makers(kind, variables).items():
        model = make_model()
        model.compile(make(), loss="mse", jit_compile=jit_compile)

        def epoch(model=model):
            model.fit(x, y, batch_size=work.batch, shuffle=False, verbose=0)

        epochs[contender], times[contender] = epoch, []
        with quiet():
            first[contender] = timed(epoch)
        advance()
    for done in range(rounds):
        with quiet():
            for contender in [*epochs] if done % 2 else [*epochs][::-1]:
                times[contender].append(timed(epochs[contender]) / steps)
        advance()
    return {
        "model": name,
        "optimizer": kind,
        "jit_compile": jit_compile,
        "variables": variables,
        "batch": work.batch,
        "steps": steps,
        "rounds": rounds,
        "contenders": {
            contender: spread(seconds)
            | {"ours_over_this": ratio(times[OURS], seconds), "first_epoch_s": first[contender]}
            for contender, seconds in times.items()
        },
    }


def table(entries):
    """All optimizers in one table."""
    shown = Table(title="model.fit, ms per step", title_justify="left")
    shown.add_column("model")
    shown.add_column("optimizer")
    for column in ("XLA", "ms", "quartiles", "ours÷this", "first epoch, s"):
        shown.add_column(column, justify="right", no_wrap=True)
    for entry in entries:
        for name, row in entry["contenders"].items():
            low, high = row["ms_quartiles"]
            shown.add_row(
                f"{entry['model']}, {entry['variables']}" if name == OURS else "",
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
    parser.add_argument("--quick", action="store_true", help="AdamW alone, few layers and steps")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/fit-BACKEND.json")
    parser.add_argument("--model", nargs="+", choices=WORK, help="only these")
    parser.add_argument("--optimizer", nargs="+", choices=KINDS, help="only these")
    options = parser.parse_args()
    kinds = options.optimizer or (KINDS[:1] if options.quick else KINDS)
    modes = (True, False) if BACKEND == "tensorflow" else ("auto",)
    todo = [(n, k, m) for n in options.model or WORK for k in kinds for m in modes]
    console = Console(width=None if Console().is_terminal else 120)
    backend = importlib.import_module(f"on_{BACKEND}")
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    result["results"] = []
    console.print(f"Keras {keras.__version__} on {BACKEND}; {report.machine(result)}")
    part = bool(options.model or options.optimizer)
    file = report.output(options.out, BACKEND, options.quick, "fit-", part)
    with report.Bar(console) as bar:
        each = [(3 if options.quick else WORK[name].rounds) + 2 for name, *_ in todo]
        task = bar.add_task("", total=sum(each))

        def advance():
            bar.show(task, advance=1)

        for name, kind, mode in todo:
            bar.show(task, description=f"fit, {name}, {kind}, jit_compile={mode}")
            result["results"].append(run(name, kind, mode, options.quick, advance))
            report.write(result, file)  # each time: TensorFlow takes minutes for the next
            keras.backend.clear_session()
    report.finish(console, table(result["results"]), result, file)


if __name__ == "__main__":
    main()
