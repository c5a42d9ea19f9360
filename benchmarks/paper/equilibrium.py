"""Size and turn of the weights of a real network, as `WatchUpdates` measures them, beside what α and λ say.

    nox -s paper [-- --quick]

Trains the network of `one_run.py` at constant rates. Writes `equilibrium.json` beside the runs, and the picture of
docs/alpha-and-lambda.md.
"""

import math
from collections import defaultdict
from statistics import mean

import keras

import fashion
import report
from drawing import DOCS, WIDTH, plt, save
from keras_decoupled import AdamW, no_decay
from keras_decoupled.callbacks import WatchUpdates
from one_run import network
from run import arguments, folder

SETTINGS = ((0.002, 0.001), (0.008, 0.001), (0.002, 0.004), (0.008, 0.004))  # α, λ
BETA_1, BATCH, EVERY = 0.9, 50, 20
LAYERS = ("convolution 1", "convolution 2", "dense", "head")  # no normalization follows the head
# Updates: so many times 1/λ of the smallest λ. Equilibrium is measured over the last eighth.
LIVES = 8
SMOOTHED = 5  # watched updates, in the picture


def expected(rate, decay):
    """Size (root mean square) and turn (radians per update) in equilibrium, at η = 1."""
    turn = math.sqrt(2 * decay * (1 - BETA_1) / (1 + BETA_1))
    return rate / math.sqrt(2 * decay), turn


def train(rate, decay, data, updates):
    """Train at a constant rate; return the rows of each kernel, by layer."""
    keras.utils.set_random_seed(0)
    model = network()
    optimizer = AdamW(rate, decay, beta_1=BETA_1, weight_decays=no_decay(model))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    watch = WatchUpdates(EVERY, variables=["kernel"])
    images, labels = (array[: fashion.TRAINING] for array in data)
    epochs = -(-updates * BATCH // fashion.TRAINING)
    options = {"batch_size": BATCH, "epochs": epochs, "verbose": 0, "callbacks": [watch]}
    model.fit(images, labels, **options)
    rows = defaultdict(list)
    names = dict(zip(dict.fromkeys(row["path"] for row in watch.rows), LAYERS, strict=True))
    for row in watch.rows:
        rows[names[row["path"]]].append(row)
    return rows


def settled(rows):
    """Mean size and turn over the last eighth."""
    late = rows[-len(rows) // 8 :]
    return mean(row["weight_rms"] for row in late), mean(row["turn"] for row in late)


def draw(runs):
    """A line for each kernel before a normalization: its size and its turn, beside what is expected."""
    figure, (sizes, turns) = plt.subplots(1, 2, figsize=(WIDTH, 4.4), layout="constrained")
    for i, ((rate, decay), rows) in enumerate(runs.items()):
        colour = f"C{i}"
        for ax, name, level in zip(
            (sizes, turns), ("weight_rms", "turn"), expected(rate, decay), strict=True
        ):
            for layer, own in rows.items():
                if layer != "head":
                    parts = [
                        own[start : start + SMOOTHED] for start in range(0, len(own), SMOOTHED)
                    ]
                    x, y = (
                        [mean(row[key] for row in part) for part in parts]
                        for key in ("update", name)
                    )
                    ax.plot(x, y, color=colour, lw=1, alpha=0.8)
            ax.axhline(level, color=colour, ls="--", lw=2)
            ax.set_yscale("log")
        sizes.plot([], [], color=colour, label=f"α = {rate}, λ = {decay}")
    sizes.set_title("Size (root mean square)", loc="left")
    turns.set_title("Turn (radians per update)", loc="left")
    for ax in (sizes, turns):
        ax.set_xlabel("weight update; dashed: expected in equilibrium")
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def main():
    """Train, print, write, draw."""
    options = arguments()
    data = fashion.load()[0]
    updates = round(LIVES / min(decay for _, decay in SETTINGS)) // (40 if options.quick else 1)
    runs, found = {}, []
    for rate, decay in SETTINGS:
        runs[rate, decay] = train(rate, decay, data, updates)
        size, turn = expected(rate, decay)
        for layer, rows in runs[rate, decay].items():
            here = settled(rows)
            found.append(
                {
                    "α": rate,
                    "λ": decay,
                    "layer": layer,
                    "size": float(f"{here[0]:.4g}"),
                    "size over expected": round(here[0] / size, 3),
                    "turn": float(f"{here[1]:.4g}"),
                    "turn over expected": round(here[1] / turn, 3),
                }
            )
            print(found[-1])
    report.write(found, folder(options) / "equilibrium.json")
    pictures = folder(options) if options.quick else DOCS
    save(draw(runs), pictures / "equilibrium.png")


if __name__ == "__main__":
    main()
