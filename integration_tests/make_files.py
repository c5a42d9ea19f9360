"""Write the files of `test_files.py`: python integration_tests/make_files.py, on each backend.

    KERAS_BACKEND=jax python integration_tests/make_files.py

With names behind it (adamw lion), it writes the files of these optimizers alone.
Each is a model saved in the middle of a run, and the weights that the same run, not interrupted,
has five updates later. Files written by a released version are kept: they have to stay readable.
Those of 0.1.0 are in the middle of a cosine cycle. Those of 0.2.0 are of every optimizer. Those of
0.3.0 are of the classes whose files are new in it: with a setting and a multiplier that follow a
schedule, and a setting that was set.
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np

from keras_decoupled import SGDW, AdamW, Decay, Lion, Muon, NadamW

VERSION = "0.3.0"  # the release that these files come with; to be changed with what `make` makes
FOLDER = Path(__file__).parent / "files"
FALLING = keras.optimizers.schedules.PolynomialDecay
# name: (class, arguments, what is set in the middle of the run)
OPTIMIZERS = {
    "adamw": (AdamW, {"amsgrad": True, "beta_1": FALLING(0.9, 12, 0.6)}, {"beta_2": 0.99}),
    "nadamw": (NadamW, {"beta_1": FALLING(0.9, 12, 0.6)}, {"beta_2": 0.99}),
    "sgdw": (SGDW, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.8}),
    "lion": (Lion, {"beta_2": FALLING(0.99, 12, 0.8)}, {"beta_1": 0.8}),
    "muon": (
        Muon,
        {"exclude_layers": ["head"], "adam_lr_ratio": FALLING(1.0, 12, 0.5)},
        {"momentum": 0.8},
    ),
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
            keras.layers.Dense(4, "tanh", name="first", kernel_regularizer="l2"),
            keras.layers.Dense(4, "tanh", name="second"),
            keras.layers.Dense(4, name="third"),
            keras.layers.Dense(1, name="head"),
        ],
        name="net",
    )
    cls, arguments, _ = OPTIMIZERS[name]
    optimizer = cls(
        0.02,
        weight_decay=Decay(0.02, cautious=True),
        weight_decays={
            "bias": (1e-4, 0),
            "third/kernel": Decay(0.05, 0.002, towards="initial", eta_power=2),
            "head/kernel": Decay(0.01, 0.02, soft_threshold=True, eta_power=0),
        },
        lr_multipliers={"first/": 0.5, "head/": FALLING(1.0, 12, 0.5)},
        model=model,
        total_iterations_wd=4,
        **arguments,
    )
    model.compile(optimizer, loss="mse")
    return model


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or OPTIMIZERS:
        model = make(name)
        train(model, 0, 4)
        model.optimizer.learning_rate = 0.01
        model.optimizer.weight_decay = 0.05
        for argument, number in OPTIMIZERS[name][2].items():
            setattr(model.optimizer, argument, number)
        train(model, 4, 7)
        stem = f"{VERSION}-{name}-{keras.backend.backend()}"
        model.save(FOLDER / f"{stem}.keras")
        train(model, 7, 12)
        weights = [keras.ops.convert_to_numpy(v).tolist() for v in model.trainable_variables]
        (FOLDER / f"{stem}.json").write_text(json.dumps(weights))


if __name__ == "__main__":
    main()
