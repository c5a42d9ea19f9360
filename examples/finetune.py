"""Pre-train a small network on the digits 0 to 4, then fine-tune it on 5 to 9.

    python examples/finetune.py

Fine-tuning goes on with few images. So the layers near the input take smaller steps, and the decay
pulls the backbone to its pretrained weights, and not to 0. The learning rate has warm restarts.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # the backend that you installed

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from keras_decoupled import CosineWarmRestarts, Decay, Muon

BATCH = 25
FEW = 200  # images to fine-tune on
CYCLES = (3, 6)  # epochs of each cosine cycle
RATE = 0.01
HEAD = ["head/"]  # regular expressions: the output layer is for the Adam part of Muon


def load_data(digits):
    """Images of these digits alone, labelled from 0 on; a fifth of them kept for the test."""
    images, labels = load_digits(return_X_y=True)
    chosen = np.isin(labels, digits)
    images = (images[chosen] / 16).astype("float32")
    labels = labels[chosen] - digits[0]
    return train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)


def make_backbone():
    """Two layers, both of them to be pre-trained."""
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu", name="early"),
            keras.layers.Dense(64, activation="relu", name="late"),
        ],
        name="backbone",
    )


def with_head(backbone, optimizer):
    """The backbone under a new output layer."""
    image = keras.Input((64,))
    digit = keras.layers.Dense(5, activation="softmax", name="head")(backbone(image))
    model = keras.Model(image, digit)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def accuracy(model, images, labels):
    return model.evaluate(images, labels, verbose=0)[1]


def distance(backbone, weights):
    """How far the backbone is from earlier weights of its own, over the size of those."""
    moved = sum(np.sum((a - b) ** 2) for a, b in zip(backbone.get_weights(), weights, strict=True))
    return float(np.sqrt(moved / sum(np.sum(b**2) for b in weights)))


def main():
    keras.utils.set_random_seed(0)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")

    x_train, x_test, y_train, y_test = load_data(range(5))
    backbone = make_backbone()
    optimizer = Muon(RATE, weight_decay=3e-4, weight_decays={"bias": 0}, exclude_layers=HEAD)
    model = with_head(backbone, optimizer)
    model.fit(x_train, y_train, batch_size=BATCH, epochs=4, verbose=0)
    print(f"Digits 0 to 4, pre-trained: test accuracy {accuracy(model, x_test, y_test):.4f}")
    pretrained = backbone.get_weights()

    x_train, x_test, y_train, y_test = load_data(range(5, 10))
    x_train, y_train = x_train[:FEW], y_train[:FEW]
    updates_per_epoch = -(-FEW // BATCH)
    schedule = CosineWarmRestarts(
        RATE,
        first_decay_steps=CYCLES[0] * updates_per_epoch,
        t_mul=2,
        warmup_steps=updates_per_epoch,
    )
    optimizer = Muon(
        schedule,
        weight_decay=3e-4,  # for the new head: towards 0, as usual
        weight_decays={backbone: Decay(3e-3, towards="initial"), "bias": 0},
        # The nearer to the input, the smaller the step. A layer can be the key, or its name.
        lr_multipliers={"late": 0.5, "early": 0.25},
        exclude_layers=HEAD,
    )
    model = with_head(backbone, optimizer)
    before = accuracy(model, x_test, y_test)
    model.fit(x_train, y_train, batch_size=BATCH, epochs=1 + sum(CYCLES), verbose=0)
    after = accuracy(model, x_test, y_test)
    print(f"Digits 5 to 9, new head:    test accuracy {before:.4f}")
    print(f"Digits 5 to 9, fine-tuned:  test accuracy {after:.4f}")
    print(f"The backbone moved by {distance(backbone, pretrained):.0%} of its pretrained weights.")


if __name__ == "__main__":
    main()
