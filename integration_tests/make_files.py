"""Write the files of `test_files.py`: python integration_tests/make_files.py, on each backend.

    KERAS_BACKEND=jax python integration_tests/make_files.py

Each is a model saved in the middle of a cosine cycle, and the weights that the same run, not
interrupted, has five updates later. Files written by a released version are kept: they have to
stay readable.
"""

import json
from pathlib import Path

import keras
import numpy as np

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW, __version__

FOLDER = Path(__file__).parent / "files"
OPTIMIZERS = {
    "adamw": (AdamW, {"amsgrad": True}),
    "nadamw": (NadamW, {}),
    "sgdw": (SGDW, {"momentum": 0.9, "nesterov": True}),
}


def train(model, first, last):
    """Updates number first to last - 1, each on data of its own number."""
    for i in range(first, last):
        rng = np.random.default_rng(i)
        model.train_on_batch(rng.random((8, 3), "float32"), rng.random((8, 1), "float32"))


def make(name):
    keras.utils.clear_session()
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, "tanh", kernel_regularizer="l2"),
            keras.layers.Dense(1),
        ],
        name="net",
    )
    cls, arguments = OPTIMIZERS[name]
    optimizer = cls(
        CosineWarmRestarts(0.02, 4, t_mul=1.5, m_mul=0.9, warmup_steps=1),
        weight_decay=1e-3,
        weight_decays={"bias": (1e-4, 0)},
        lr_multipliers={"dense/": 0.5},
        model=model,
        normalize_weight_decay=True,
        **arguments,
    )
    model.compile(optimizer, loss="mse")
    return model


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in OPTIMIZERS:
        model = make(name)
        train(model, 0, 7)
        stem = f"{__version__}-{name}-{keras.backend.backend()}"
        model.save(FOLDER / f"{stem}.keras")
        train(model, 7, 12)
        weights = [keras.ops.convert_to_numpy(v).tolist() for v in model.trainable_variables]
        (FOLDER / f"{stem}.json").write_text(json.dumps(weights))


if __name__ == "__main__":
    main()
