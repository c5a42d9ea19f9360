"""The jobs that `test_many_devices.py` runs on one device and, in child processes, on many.

A job leaves `WAY-CASE-KIND.npz`, its weights and optimizer variables at the end, or
`WAY-CASE-KIND.txt`, what went wrong; and `WAY-CASE.keras`, a file of its middle.
"""

import contextlib
import os
import traceback
import warnings

import keras
import numpy as np

from keras_decoupled import SGDW, Adafactor, AdamW, CosineWarmRestarts, Decay, NadamW

BATCH = 16  # what 8 devices can share
HALF, END = 7, 13  # batches; both in the middle of a cycle, and of an accumulation of two
ALONE = "alone"  # the way on one device

AVERAGED = {"use_ema": True, "ema_momentum": 0.9}
CASES = {
    "adamw": (AdamW, {"amsgrad": True, **AVERAGED}),
    "nadamw": (NadamW, {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5}),
    "sgdw": (SGDW, {"momentum": 0.9, "nesterov": True, **AVERAGED, "ema_overwrite_frequency": 5}),
    "bfloat16": (AdamW, {}),
    # The initial weights lie where the variable lies.
    "towards": (
        AdamW,
        {"weight_decay": Decay(1e-2, towards="initial", eta_power=2), "weight_decays": {}},
    ),
    # Its averages over rows and columns have shapes of their own.
    "adafactor": (Adafactor, {}),
}
if keras.backend.backend() == "tensorflow":
    # Under a strategy Keras clips the gradient of each replica, before they are summed, and cannot
    # accumulate in a graph ("`merge_call` called while …").
    CASES["nadamw"] = (NadamW, {})
    CASES["eager"] = (NadamW, {"gradient_accumulation_steps": 2})
if os.environ.get("CI"):  # where torch, the fastest of them, runs all cases
    LEFT_OUT = {"jax": ("sgdw", "bfloat16", "towards"), "tensorflow": ("sgdw", "adafactor")}
    for name in LEFT_OUT.get(keras.backend.backend(), ()):
        del CASES[name]
# For sums in another order; bfloat16 has three digits.
TOLERANCES = dict.fromkeys(CASES, 1e-6) | {"bfloat16": 2e-2}


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
    model.compile(optimizer, loss="mse", run_eagerly=case == "eager")
    return model


def data(first, last):
    """Batches number first to last - 1, in a row."""
    x = np.random.default_rng(0).normal(size=(END * BATCH, 8)).astype("float32")
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
    """One way to train.

    Args:
        folder: for what the jobs leave.
        name: the way's.
        train: called with a model and the numbers of the first batch and of the one after the last.
        make, load: called with a case, with a file; return a model.
        writes: whether this process writes the files; another one does, of two that do the same.
        wait: called where a file has been written that others read.
    """

    half = HALF  # the batches before the file

    def __init__(
        self,
        folder,
        name,
        *,
        train=fit,
        make=make,
        load=keras.models.load_model,
        writes=True,
        wait=lambda: None,
    ):
        self.folder, self.name, self.train = folder, name, train
        self.make, self.load, self.writes, self.wait = make, load, writes, wait

    def run(self, source, cases=tuple(CASES)):
        """Train on every case, from the start, and on from the files that another way left."""
        for case in cases:
            self.straight(case)
            self.resumed(case, source)

    def straight(self, case):
        """Train without a stop, and leave a file of the middle."""
        with self._result(case, "straight") as keep:
            model = self.make(case)
            self.train(model, 0, self.half)
            self.save(model, self._file(self.name, case))
            self.wait()
            self.train(model, self.half, END)
            keep(model)

    def resumed(self, case, source):
        """Go on from the file that another way left."""
        with self._result(case, f"from_{source}") as keep:
            model = self.load(self._file(source, case))
            done = int(value(model.optimizer.variables[0]))  # batches; `iterations` counts updates
            self.train(model, done, END)
            keep(model)

    def save(self, model, file):
        if self.writes:
            model.save(file)

    def state(self, model):
        return state(model)

    def _file(self, way, case):
        return self.folder / f"{way}-{case}.keras"

    @contextlib.contextmanager
    def _result(self, case, kind):
        stem = self.folder / f"{self.name}-{case}-{kind}"
        keras.utils.clear_session(free_memory=False)  # here, as it also ends a distribution

        def keep(model):
            arrays = self.state(model)
            if self.writes:
                np.savez(stem.with_suffix(".npz"), *arrays)

        try:
            with warnings.catch_warnings():
                # Keras only warns where variables lie inside and outside of a distribution.
                warnings.simplefilter("error", UserWarning)
                yield keep
        except Exception:  # what fails here fails one test, with the reason
            stem.with_suffix(".txt").write_text(traceback.format_exc())
