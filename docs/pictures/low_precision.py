"""How far AdamW moves a weight in bfloat16."""

import keras
import numpy as np

import keras_decoupled
from drawing import BLUE, ORANGE, RED, plt, save

UPDATES = 200


def moved(optimizer, dtype):
    variable = keras.Variable(np.ones(1, "float32"), dtype=dtype)
    found = [0.0]
    for _ in range(UPDATES):
        optimizer.apply([keras.ops.ones((1,), dtype)], [variable])
        found.append(
            1
            - float(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))[0])
        )
    return found


figure, ax = plt.subplots(figsize=(9, 3.2))
for label, optimizer, dtype, style in (
    (
        "keras_decoupled.AdamW, float32",
        keras_decoupled.AdamW(1e-3, weight_decay=0),
        "float32",
        {"color": ORANGE, "linewidth": 5, "alpha": 0.5},
    ),
    (
        "keras_decoupled.AdamW, bfloat16",
        keras_decoupled.AdamW(1e-3, weight_decay=0),
        "bfloat16",
        {"color": BLUE},
    ),
    (
        "keras.optimizers.AdamW, bfloat16",
        keras.optimizers.AdamW(1e-3, weight_decay=0),
        "bfloat16",
        {"color": RED, "linewidth": 2.5},
    ),
):
    ax.plot(moved(optimizer, dtype), label=label, **style)
ax.set(
    xlabel="weight update at a learning rate of 0.001, under a gradient of 1",
    ylabel="moved from 1 by",
    xlim=(0, UPDATES),
)
ax.legend(loc="upper left")
save(figure, "bfloat16")
