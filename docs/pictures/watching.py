"""Four runs as `WatchUpdates.plot` shows them: one that is well, and three that have a fault."""

import keras
import numpy as np
from keras import layers

from drawing import plt, save
from keras_decoupled import AdamW, no_decay
from keras_decoupled.callbacks import WatchUpdates

UPDATES, BATCH, WIDTH = 1500, 32, 48
RUNS = {
    "Well: later on, every matrix turns as fast": {},
    "hidden_2 hardly learns: its multiplier is 0.001": {
        "lr_multipliers": {"hidden_2": 1e-3}
    },
    "The decay is too strong: weight_decay=0.1": {"weight_decay": 0.1},
    "The rate is too high: 0.3": {"learning_rate": 0.3},
}


def network():
    """Four dense layers with a normalization after each, and a head."""
    body = []
    for i in range(4):
        body += [
            layers.Dense(WIDTH, use_bias=False, name=f"hidden_{i}"),
            layers.LayerNormalization(name=f"norm_{i}"),
            layers.ReLU(),
        ]
    return keras.Sequential([keras.Input((20,)), *body, layers.Dense(5, name="head")])


def data():
    """Classes by a network that nobody trains, a tenth of them wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(UPDATES * BATCH // 4, 20)).astype("float32")
    keras.utils.set_random_seed(1)
    y = np.array(network()(x).detach()).argmax(axis=1)
    wrong = rng.random(len(y)) < 0.1
    return x, np.where(wrong, rng.integers(0, 5, len(y)), y)


def main():
    x, y = data()
    figure, grid = plt.subplots(2, 2, figsize=(9, 6.4), sharey=True)
    for ax, (title, changed) in zip(grid.flat, RUNS.items(), strict=True):
        keras.utils.set_random_seed(0)
        model = network()
        given = {"learning_rate": 0.01, "weight_decay": 0.005} | changed
        optimizer = AdamW(weight_decays=no_decay(model), **given)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss)
        watch = WatchUpdates(every=15, variables=["kernel"])
        model.fit(x, y, batch_size=BATCH, epochs=4, verbose=0, callbacks=[watch])
        watch.plot(ax)
        ax.set_title(title)
        ax.set_xlabel("weight update (dot: mostly decay)")
        ax.grid(visible=False)
    save(figure, "watching")


if __name__ == "__main__":
    main()
