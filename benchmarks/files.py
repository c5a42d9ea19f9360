"""Time what grows with the number of variables: building, config, the first step, saving, loading.

    KERAS_BACKEND=torch python benchmarks/files.py [--quick] [--out FILE]

Our AdamW beside keras.optimizers.AdamW, in turns, on small variables without a model; and a whole
model of 1,000 variables saved and loaded. The goal is no more than twice stock Keras' time. Keras'
own config knows nothing of the variables, so the sum is shown as well. Writes JSON.
"""

import argparse
import importlib
import tempfile
from contextlib import nullcontext
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

import keras_decoupled
import report
from contenders import KERAS, OURS
from measure import quiet, ratio, spread, timed

BACKEND = keras.backend.backend()
if BACKEND == "torch":
    from torch import no_grad
else:
    no_grad = nullcontext
MAKERS = {
    OURS: lambda: keras_decoupled.AdamW(1e-3, weight_decay=4e-6),
    KERAS: lambda: keras.optimizers.AdamW(1e-3, weight_decay=4e-3),
}


class Bare:
    """Optimizers on a list of variables; a file is a dict in memory."""

    def __init__(self, count):
        self.variables = [keras.Variable(np.ones(4, "float32"), name=f"w{i}") for i in range(count)]
        self.grads = [keras.ops.ones(4) for _ in range(count)]

    def times(self, make):
        """Seconds of each step in an optimizer's life, by name."""
        first, second, store = make(), make(), {}
        seconds = {
            "build": timed(lambda: first.build(self.variables)),
            "first get_config": timed(first.get_config),
            "save_own_variables": timed(lambda: first.save_own_variables(store)),
        }
        second.build(self.variables)
        seconds["load_own_variables"] = timed(lambda: second.load_own_variables(store))
        seconds["these four"] = sum(seconds.values())
        if BACKEND == "torch" or len(self.variables) <= 1000:  # eager, which takes long elsewhere
            with no_grad():
                step = timed(lambda: first.apply(self.grads, self.variables))
            seconds["first step, eager"] = step
        return seconds


class Model:
    """A whole model, two variables a layer, and a file on the disk."""

    def __init__(self, count, folder):
        self.file = Path(folder) / "model.keras"
        x = inputs = keras.Input((4,))
        for _ in range(count // 2):
            x = keras.layers.Dense(4)(x)
        self.model = keras.Model(inputs, x)  # a Sequential is made anew with each of its layers

    def times(self, make):
        """Seconds of saving and loading, by name."""
        self.model.compile(make(), loss="mse")
        self.model.optimizer.build(self.model.trainable_variables)
        return {
            "model.save": timed(lambda: self.model.save(self.file)),
            "load_model": timed(lambda: keras.saving.load_model(self.file)),
        }


def run(subject, rounds, advance):
    """Measure both in turns: by what was timed, a row of the result."""
    found = {name: [] for name in MAKERS}
    for done in range(rounds):
        for name in [*MAKERS] if done % 2 else [*MAKERS][::-1]:
            with quiet():
                found[name].append(subject.times(MAKERS[name]))
        advance()
    rows = {}
    for what in found[OURS][0]:
        ours, stock = ([times[what] for times in found[name]] for name in (OURS, KERAS))
        both = {OURS: spread(ours), KERAS: spread(stock)}
        rows[what] = {"ours_over_keras": ratio(ours, stock), "contenders": both}
    return rows


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 variables, three rounds")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/files-BACKEND.json")
    options = parser.parse_args()
    todo = {1000: 3} if options.quick else {1000: 9, 5000: 3, 20_000: 3}
    if BACKEND == "tensorflow":  # which keeps 70 KB of each variable that was made, Keras' or ours
        todo.pop(20_000, None)
    console = Console(width=None if Console().is_terminal else 120)
    backend = importlib.import_module(f"on_{BACKEND}")
    result = report.circumstances(BACKEND, options.quick, backend.device(), backend.settings())
    result["results"] = []
    console.print(f"Keras {keras.__version__} on {BACKEND}; {report.machine(result)}")
    file = report.output(options.out, BACKEND, options.quick, "files-")
    for make in MAKERS.values():  # imports, and what is made once
        Bare(10).times(make)
    with report.Bar(console) as bar, tempfile.TemporaryDirectory() as folder:
        task = bar.add_task("", total=sum(todo.values()) + todo[1000])

        def measure(subject, count, rounds):
            title = f"AdamW, {count} variables, {type(subject).__name__.lower()}"
            bar.show(task, description=title)
            shown = Table("what", title=title, title_justify="left")
            for column in ("ours, ms", "Keras, ms", "ours÷Keras"):
                shown.add_column(column, justify="right")
            for what, row in run(subject, rounds, lambda: bar.show(task, advance=1)).items():
                result["results"].append({"variables": count, "what": what, "rounds": rounds} | row)
                each = [f"{row['contenders'][name]['ms']:.2f}" for name in (OURS, KERAS)]
                shown.add_row(what, *each, f"{row['ours_over_keras']:.2f}")
            console.print(shown)
            report.write(result, file)  # each time: the largest takes minutes on TensorFlow

        for count, rounds in todo.items():
            measure(Bare(count), count, rounds)
        measure(Model(1000, folder), 1000, todo[1000])
    console.print(f"Written: {file}", soft_wrap=True)


if __name__ == "__main__":
    main()
