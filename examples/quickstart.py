"""Train on handwritten digits, stop in the middle of a cosine cycle, save, load, and go on.

    python examples/quickstart.py [--out FOLDER]

Writes digits_mid_cycle.keras (what is saved and loaded on the way: the model, the optimizer and its
place in the cycle), digits.keras (the trained model) and training.png.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")  # the backend that you installed

import keras
import matplotlib
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_decoupled import AdamW, CosineWarmRestarts

matplotlib.use("Agg")  # draws into files: no screen needed
import matplotlib.pyplot as plt

BATCH = 32
CYCLES = (2, 4, 8)  # epochs of each cosine cycle: every one twice as long as the one before
SAVE_AT = 4  # epochs: half-way through the second cycle


def load_data():
    """1797 images of 8x8 pixels, a fifth of them kept for the test."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


def make_model(schedule):
    """A small convolutional network with our optimizer."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    # At η = 1 a weight loses 0.05% per update, whatever the learning rate; a bias loses nothing.
    optimizer = AdamW(schedule, weight_decay=5e-4, weight_decays={"bias": 0})
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Recorder(keras.callbacks.Callback):
    """Keeps the learning rate and η of every update, and the losses of every epoch."""

    def __init__(self):
        super().__init__()
        self.rate, self.eta, self.train_loss, self.test_loss = [], [], [], []

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer  # by way of the model: on JAX, this fetches its state
        self.rate.append(float(optimizer.learning_rate))
        self.eta.append(float(optimizer.eta_t))

    def on_epoch_end(self, epoch, logs=None):
        self.train_loss.append(logs["loss"])
        self.test_loss.append(logs["val_loss"])


def place(optimizer):
    """Where an optimizer stands: what has to survive saving and loading."""
    return {
        "updates done": int(optimizer.iterations),
        "position in the cycle": int(optimizer.t_cur),
        "η": float(optimizer.eta_t),
        "learning rate": float(optimizer.learning_rate),
    }


def draw(record, updates_per_epoch, file):
    """Learning rate and η per update above, train and test loss per epoch below."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 7), layout="constrained")

    epochs = [update / updates_per_epoch for update in range(len(record.rate))]
    right = top.twinx()
    (rate,) = top.plot(epochs, record.rate, color="tab:blue", linewidth=5, alpha=0.4)
    (eta,) = right.plot(epochs, record.eta, color="tab:red", linewidth=1.2, linestyle="--")
    top.set(ylabel="learning rate", ylim=(0, 1.1 * max(record.rate)))
    right.set(ylabel="η = learning rate / base learning rate", ylim=(0, 1.1 * max(record.eta)))
    top.set_title("Cosine with warm restarts: the decay follows η", loc="left")

    done = range(1, len(record.train_loss) + 1)
    (train,) = bottom.semilogy(done, record.train_loss, "o-", color="tab:blue", markersize=4)
    (test,) = bottom.semilogy(done, record.test_loss, "s-", color="tab:orange", markersize=4)
    bottom.set(ylabel="cross-entropy per image (nats)")
    bottom.set_title("Loss on the digits", loc="left")

    for axes in (top, bottom):
        axes.set(xlabel=f"epoch ({updates_per_epoch} weight updates each)", xlim=(0, sum(CYCLES)))
        restarts = [axes.axvline(sum(CYCLES[:i]), color="0.6", linestyle=":") for i in (1, 2)]
        saved = axes.axvline(SAVE_AT, color="tab:green")
    names = ["learning rate of each update", "η of each update"]
    right.legend([rate, eta], names, loc="upper right", framealpha=1)
    names = ["train (mean over the epoch)", "test (at its end)", "warm restart", "saved and loaded"]
    bottom.legend([train, test, restarts[0], saved], names, loc="upper right", framealpha=1)
    figure.savefig(file, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("quickstart_output"), help="folder")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)

    x_train, x_test, y_train, y_test = load_data()
    updates_per_epoch = -(-len(x_train) // BATCH)
    schedule = CosineWarmRestarts(2e-3, first_decay_steps=CYCLES[0] * updates_per_epoch, t_mul=2)
    record = Recorder()
    settings = {"batch_size": BATCH, "validation_data": (x_test, y_test), "callbacks": [record]}

    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    model = make_model(schedule)
    model.fit(x_train, y_train, epochs=SAVE_AT, **settings)

    before = place(model.optimizer)
    model.save(out / "digits_mid_cycle.keras")
    del model
    model = keras.models.load_model(out / "digits_mid_cycle.keras")
    after = place(model.optimizer)
    print(f"\n{'Saved and loaded':<24}{'before':>12}{'after':>12}")
    for name, value in before.items():
        print(f"{name:<24}{value:>12.6g}{after[name]:>12.6g}")
    if before != after:
        raise SystemExit("the loaded optimizer stands elsewhere")
    print()

    model.fit(x_train, y_train, initial_epoch=SAVE_AT, epochs=sum(CYCLES), **settings)

    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    model.save(out / "digits.keras")
    draw(record, updates_per_epoch, out / "training.png")
    print(f"\nTest accuracy: {accuracy:.4f}")
    for name in ("digits_mid_cycle.keras", "digits.keras", "training.png"):
        print(f"Written: {(out / name).resolve()}")


if __name__ == "__main__":
    main()
