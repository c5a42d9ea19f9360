"""The runs of `test_many_devices.py` and `test_many_processes.py`, on one device and on many.

A run has legs, and each goes on from the file of the leg before it. The case's chain says in which
way each leg trains, so that the file goes from one device to many, from one way to another, and back.

A run leaves `CASE.npz`, its weights and optimizer variables at the end, or `CASE.txt`, what went
wrong. `CASE-whole` is the same without files, on one device.
"""

import contextlib
import itertools
import os
import traceback
import warnings

import keras
import numpy as np

from keras_decoupled import SGDW, Adafactor, AdamW, CosineWarmRestarts, Decay, NadamW

BACKEND = keras.backend.backend()
BATCH = 16  # what 8 devices can share
STOPS = (3, 9, 13)  # batches. Files are of the middle of a cycle, and of an accumulation of two
ALONE = "alone"  # the way on one device

AVERAGED = {"use_ema": True, "ema_momentum": 0.9}
CASES = {
    "adamw": (
        AdamW,
        {
            # The initial weights lie where the variable lies.
            "weight_decay": Decay(1e-2, towards="initial", eta_power=2),
            "weight_decays": {},  # of the biases too
            "amsgrad": True,
            **AVERAGED,
        },
    ),
    "nadamw": (NadamW, {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5}),
    # Its averages over rows and columns have shapes of their own.
    "adafactor": (Adafactor, {}),
    "bfloat16": (NadamW, {}),
    "sgdw": (SGDW, {"momentum": 0.9, "nesterov": True, **AVERAGED, "ema_overwrite_frequency": 5}),
}
if BACKEND == "tensorflow":
    # Under a strategy Keras clips the gradient of each replica, before they are summed, and cannot
    # accumulate in a graph ("`merge_call` called while …").
    CASES["nadamw"] = (NadamW, {"gradient_accumulation_steps": 2})
EAGER = ["nadamw"] if BACKEND == "tensorflow" else []
if os.environ.get("CI"):  # where torch, the fastest of them, runs all cases
    LEFT_OUT = {"jax": ("bfloat16", "sgdw"), "tensorflow": ("adafactor", "sgdw")}
    for name in LEFT_OUT.get(BACKEND, ()):
        del CASES[name]
# For sums in another order; bfloat16 has three digits.
TOLERANCES = dict.fromkeys(CASES, 1e-6) | {"bfloat16": 2e-2}

# Two or three ways to use many devices, and the device alone. Each case goes one of the chains.
CHAINS = {
    "jax": [
        (ALONE, "data_parallel", "model_parallel"),
        ("model_parallel", "data_parallel", ALONE),
        ("data_parallel", "model_parallel", ALONE),
    ],
    "tensorflow": [(ALONE, "fit", "loop"), ("loop", "fit", ALONE), ("fit", "loop", ALONE)],
    "torch": [(ALONE, "ddp", "by_hand"), ("by_hand", "fit", ALONE), ("fit", "ddp", ALONE)],
}[BACKEND]
CHAINS = dict(zip(CASES, itertools.cycle(CHAINS), strict=False))


def make(case):
    """A model, from the same weights each time, with rules and a schedule."""
    keras.utils.set_random_seed(0)
    dtype = "bfloat16" if case == "bfloat16" else "float32"
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "tanh", name="hidden", dtype=dtype),
            keras.layers.Dense(1, name="head", dtype=dtype),
        ],
        name="net",
    )
    cls, arguments = CASES[case]
    optimizer = cls(
        CosineWarmRestarts(0.02, 4, t_mul=2, m_mul=0.9, warmup_steps=1),
        lr_multipliers={"hidden": 0.5},
        normalize_weight_decay=True,
        **{"weight_decay": 1e-3, "weight_decays": {"bias": (1e-4, 0)}, **arguments},
    )
    model.compile(optimizer, loss="mse", run_eagerly=case in EAGER)
    return model


def data(first, last):
    """Batches number first to last - 1, in a row."""
    x = np.random.default_rng(0).normal(size=(STOPS[-1] * BATCH, 8)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    return x[first * BATCH : last * BATCH], y[first * BATCH : last * BATCH]


def fit(model, first, last):
    x, y = data(first, last)
    model.fit(x, y, batch_size=BATCH, epochs=1, shuffle=False, verbose=0)


def state(model):
    """All that training changes, as arrays."""
    variables = [*model.trainable_variables, *model.optimizer.variables]
    return [np.asarray(value(v), "float64") for v in variables]


def value(variable):
    parts = getattr(variable.value, "values", None)  # of a torch tensor, a method
    if "gradient_accumulator" in variable.name and isinstance(parts, tuple):
        # Each replica of TensorFlow has its part of the sum; of all else, what the others have.
        return sum(part.numpy() for part in parts)
    return keras.ops.convert_to_numpy(variable)


class Way:
    """One way to train; here, on one device.

    Args:
        folder: for the files.
    """

    stops = STOPS
    writes = (
        True  # whether this process writes the files; another one does, of two that do the same
    )

    def __init__(self, folder):
        self.folder = folder

    def make(self, case):
        return make(case)

    def load(self, file):
        return keras.models.load_model(file)

    def train(self, model, first, last):
        fit(model, first, last)

    def save(self, model, file):
        if self.writes:
            model.save(file)

    def wait(self):
        """Wait, in several processes, for a file that others read."""

    def state(self, model):
        return state(model)

    def whole(self, case):
        """Train from the start to the end with one model."""
        with self._errors(f"{case}-whole"):
            model = self.make(case)
            for first, last in itertools.pairwise((0, *self.stops)):
                self.train(model, first, last)
            self._keep(model, f"{case}-whole")

    def leg(self, case, number):
        """Train a new model, or go on from the file of the leg before."""
        with self._errors(case):
            if number == 0:
                model, done = self.make(case), 0
            else:
                model = self.load(self.folder / f"{case}-{number - 1}.keras")
                done = int(value(model.optimizer.variables[0]))  # batches, not updates
            self.train(model, done, self.stops[number])
            self.save(model, self.folder / f"{case}-{number}.keras")
            self.wait()
            if number + 1 == len(self.stops):
                self._keep(model, case)

    def _keep(self, model, name):
        arrays = self.state(model)
        if self.writes:
            np.savez(self.folder / f"{name}.npz", *arrays)

    @contextlib.contextmanager
    def _errors(self, name):
        """Write what goes wrong: it fails one test, with the reason."""
        keras.utils.clear_session(free_memory=False)  # here, as it also ends a distribution
        try:
            with warnings.catch_warnings():
                # Keras only warns where variables lie inside and outside of a distribution.
                warnings.simplefilter("error", UserWarning)
                yield
        except Exception:
            with open(self.folder / f"{name}.txt", "a", encoding="utf-8") as errors:
                traceback.print_exc(file=errors)


def train_legs(ways, chains=CHAINS):
    """Train the legs of these ways: {name: Way}. They follow each other in each chain."""
    for case, chain in chains.items():
        for number, name in enumerate(chain):
            if name in ways:
                ways[name].leg(case, number)


def train_all(folder, start, chains=CHAINS, stops=STOPS):
    """Train all runs: the legs on one device here, those on many by `start()`."""
    alone = Way(folder)
    alone.stops = stops
    for case, chain in chains.items():
        alone.whole(case)
        if chain[0] == ALONE:
            alone.leg(case, 0)
    start()
    for case, chain in chains.items():
        if chain[-1] == ALONE:
            alone.leg(case, len(chain) - 1)


def assert_as_whole(folder, case):
    """A run in legs ended with the weights, moments, averages and counters of the whole run."""
    got, wanted = (_result(folder, name) for name in (case, f"{case}-whole"))
    assert len(wanted) > 10
    tolerance = TOLERANCES[case]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def _result(folder, name):
    errors = folder / f"{name}.txt"
    assert not errors.exists(), errors.read_text()
    with np.load(folder / f"{name}.npz") as arrays:
        return list(arrays.values())
