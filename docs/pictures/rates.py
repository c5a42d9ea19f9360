"""The decay alone, under several base learning rates: Keras' form and ours."""

import keras
import numpy as np

import keras_decoupled
from drawing import BLUE, GREEN, ORANGE, plt, save

RATES = {5e-4: GREEN, 1e-3: BLUE, 2e-3: ORANGE}
UPDATES = 2000


def lengths(optimizer):
    """A weight's size after each update, when no gradient acts."""
    variable = keras.Variable(np.ones(1, "float32"))
    gradient = keras.ops.zeros((1,))
    found = [1.0]
    for _ in range(UPDATES):
        optimizer.apply([gradient], [variable])
        found.append(float(keras.ops.convert_to_numpy(variable)[0]))
    return found


def draw(name, stock, ours):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    title = stock.__module__.split(".")[0] + f".optimizers.{stock.__name__}"
    for ax, make, head in (
        (
            axes[0],
            lambda rate: stock(rate, weight_decay=1.0),
            f"{title}\nweight_decay=1",
        ),
        (
            axes[1],
            lambda rate: ours(rate, weight_decay=1e-3),
            f"keras_decoupled.{ours.__name__}\nweight_decay=0.001",
        ),
    ):
        for width, (rate, color) in zip((9, 5, 2), RATES.items(), strict=True):
            width = width if ax is axes[1] else 2.5
            ax.plot(
                lengths(make(rate)),
                color=color,
                linewidth=width,
                label=f"learning rate {rate:g}",
            )
        ax.set(title=head, xlabel="weight update", ylim=(0, 1.02), xlim=(0, UPDATES))
        ax.legend()
    axes[0].set_ylabel("weight, without a gradient")
    save(figure, name)


draw("two-rates", keras.optimizers.AdamW, keras_decoupled.AdamW)
draw("any-optimizer", keras.optimizers.Lion, keras_decoupled.Lion)
