"""Fashion-MNIST: a few thousand images to train on, ten thousand to choose by, the test set to report."""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Debian's package dataset-fashion-mnist.
FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAINING = 5000  # few enough for a gap between training and test that regularization can close
CHOOSING = 10_000  # as many as there are test images


class Part(NamedTuple):
    """Images in (count, 28, 28, 1), float32 of mean 0 and deviation 1; labels in int32."""

    images: np.ndarray
    labels: np.ndarray


def load():
    """Return (training, validation, test), always in the same order; train on the first of the 50,000."""
    (images, labels), (test_images, test_labels) = _arrays()
    order = np.random.default_rng(0).permutation(len(images))
    first, second, rest = np.split(order, (TRAINING, TRAINING + CHOOSING))
    training = np.concatenate([first, rest])
    mean, deviation = images[first].mean() / 255, images[first].std() / 255

    def part(images, labels):
        images = ((images / 255 - mean) / deviation).astype("float32")[..., None]
        return Part(images, labels.astype("int32"))

    return (
        part(images[training], labels[training]),
        part(images[second], labels[second]),
        part(test_images, test_labels),
    )


def of_classes(part, classes):
    """Return the images of some classes."""
    chosen = np.isin(part.labels, classes)
    return Part(part.images[chosen], part.labels[chosen])


def batches(part, count, seed, epoch, size):
    """Yield one epoch's batches of the first `count` images, a function of seed and epoch.

    No augmentation: what keeps the network from learning by heart is the decay alone.
    """
    order = np.random.default_rng((seed, epoch)).permutation(count)
    for start in range(0, count - size + 1, size):
        chosen = order[start : start + size]
        yield part.images[chosen], part.labels[chosen]


def _arrays():
    if not FOLDER.exists():
        import keras

        return keras.datasets.fashion_mnist.load_data()
    return tuple(
        (_read(f"{name}-images-idx3", 16).reshape(-1, 28, 28), _read(f"{name}-labels-idx1", 8))
        for name in ("train", "t10k")
    )


def _read(name, header):
    with gzip.open(FOLDER / f"{name}-ubyte.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)
