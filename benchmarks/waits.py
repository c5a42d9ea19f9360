"""Count how often an update on torch makes Python wait for the GPU: ours, and stock Keras'.

    KERAS_BACKEND=torch python benchmarks/waits.py

Where an update reads a number from the GPU, or copies one there, Python waits until the GPU has
done all that it was given; after that the GPU waits for Python. torch itself tells where this
happens. Exits with 1 if an update of ours waits. Without a GPU there is nothing to wait for.
"""

import sys
import warnings
from functools import partial

import keras
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import keras_decoupled
from contenders import KERAS, MOMENTUM, RATE, keras_variables
from keras_decoupled import CosineWarmRestarts

UPDATES = 10
WARM_UP = 3  # the first update reads each scalar variable once
DECAY = 1e-4
SHAPES = [(64, 64), (64,), (64, 8), (8,)]


def optimizers():
    """Functions that make them and the type of the weights, by name."""
    adamw, rate = keras_decoupled.AdamW, RATE["AdamW"]
    restarts = CosineWarmRestarts(rate, first_decay_steps=4)
    makers = {
        "AdamW": (partial(adamw, rate), "float32"),
        "AdamW, bfloat16 weights": (partial(adamw, rate), "bfloat16"),
        "AdamW, warm restarts": (partial(adamw, restarts), "float32"),
        "AdamW, global_clipnorm": (partial(adamw, rate, global_clipnorm=1.0), "float32"),
        "AdamW, accumulation": (partial(adamw, rate, gradient_accumulation_steps=2), "float32"),
        "NadamW": (partial(keras_decoupled.NadamW, rate), "float32"),
        "SGDW": (partial(keras_decoupled.SGDW, rate, momentum=MOMENTUM), "float32"),
        "Lion": (partial(keras_decoupled.Lion, rate), "float32"),
    }
    for name in ("AdamW", "SGD", "Lion"):
        makers[f"{KERAS}.{name}"] = partial(getattr(keras.optimizers, name), rate), "float32"
    return makers


def waits(make, dtype):
    """Where some updates waited: a place in the code for each time."""
    variables = keras_variables([np.ones(shape, "float32") for shape in SHAPES], dtype)
    grads = [torch.ones_like(variable.value) for variable in variables]
    optimizer = make(weight_decay=DECAY)
    optimizer.build(variables)
    with torch.no_grad():
        for _ in range(WARM_UP):
            optimizer.apply(grads, variables)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(UPDATES):
                    optimizer.apply(grads, variables)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchronizing" in str(warning.message)]
    return [f"{warning.filename}:{warning.lineno}" for warning in found]


def main():
    """Count, and print a table."""
    console = Console(width=None if Console().is_terminal else 120)
    if not torch.cuda.is_available():
        console.print("No GPU: an update has nothing to wait for.")
        return 0
    table = Table("optimizer", "waits per update", "places", title=torch.cuda.get_device_name())
    ours = 0
    for name, (make, dtype) in optimizers().items():
        places = waits(make, dtype)
        ours += 0 if name.startswith(KERAS) else len(places)
        table.add_row(name, f"{len(places) / UPDATES:g}", "\n".join(sorted(set(places))))
    console.print(table)
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main())
