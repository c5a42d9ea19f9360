"""Who takes part: our optimizers, stock Keras' and the backend's own, each behind one interface."""

import os
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import keras
import numpy as np

import keras_decoupled
import workloads
from keras_decoupled import Decay

RATE = {"AdamW": 1e-3, "NadamW": 1e-3, "SGDW": 1e-2}
DECAY = 4e-3  # of Keras, torch and optax: multiplied by the learning rate, which ours is not
MOMENTUM = 0.9
BYTES = {
    "AdamW": 7 * 4,
    "NadamW": 7 * 4,
    "SGDW": 5 * 4,
}  # per parameter: read g, m, v, θ; write m, v, θ. In bfloat16, with a float32 copy of θ, as much

# And of the stock optimizers that `decouple` takes: slots are read and written.
STOCK_BYTES = {
    "Adadelta": 7 * 4,
    "Adafactor": 5 * 4,
    "Adagrad": 5 * 4,
    "Adamax": 7 * 4,
    "Lamb": 7 * 4,
    "Lion": 5 * 4,
    "Muon": 5 * 4,
    "Nadam": 7 * 4,
    "RMSprop": 5 * 4,
}

OURS, RULES, KERAS = "keras_decoupled", "keras_decoupled, four rules", "keras.optimizers"
PLAIN = "plain"  # the kind of decay that the others are compared with


class Contender(ABC):
    """One optimizer with variables of its own. What `build` and `step` take is timed."""

    @abstractmethod
    def build(self):
        """Make the optimizer and its state."""

    @abstractmethod
    def step(self):
        """Update all variables once; return when that is done."""

    @abstractmethod
    def last(self):
        """Return a copy of the last variable as an array."""

    @abstractmethod
    def extra_bytes(self):
        """Return what a step takes beside arguments and state, None: unknown. May take a step."""


class Copy:
    """What limits a step: moving as many bytes by a plain copy, on all cores."""

    def __init__(self, moved):
        size = min(moved // 2, 2**28)  # bytes; half of what moves is read, half is written
        self.repeats, self.moved = moved / 2 / size, moved
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.pool = ThreadPoolExecutor(count)
        self.pieces = [
            (np.zeros(size // count, "uint8"), np.ones(size // count, "uint8"))
            for _ in range(count)
        ]

    def step(self):
        """Copy once; NumPy lets go of the interpreter's lock meanwhile."""
        list(self.pool.map(lambda pair: np.copyto(*pair), self.pieces))

    def close(self):
        """End the threads."""
        self.pool.shutdown()


class DeviceCopy:
    """The same on an accelerator."""

    def __init__(self, moved, make, copy):
        """`make(size)` gives bytes on the device; `copy(bytes)` copies them and waits for it."""
        self.source, self.copy = make(min(moved // 2, 2**30)), copy
        self.repeats, self.moved = moved / 2 / self.source.nbytes, moved

    def step(self):
        """Copy once."""
        self.copy(self.source)

    def close(self):
        """Nothing to end."""


def keras_optimizers(kind, count):
    """Functions that make our optimizer and its twin in stock Keras, by name."""
    rate = RATE[kind]
    ours = partial(getattr(keras_decoupled, kind), rate, weight_decay=rate * DECAY)
    if kind == "AdamW":
        with_rules = partial(keras_decoupled.AdamW, rate, **workloads.rules(count, rate * DECAY))
        stock = partial(keras.optimizers.AdamW, rate, weight_decay=DECAY)
        return {OURS: ours, RULES: with_rules, KERAS + ".AdamW": stock}
    if kind == "NadamW":
        stock = partial(keras.optimizers.Nadam, rate, weight_decay=DECAY)
        return {OURS: ours, KERAS + ".Nadam": stock}
    settings = {"momentum": MOMENTUM, "weight_decay": DECAY}
    stock = partial(keras.optimizers.SGD, rate, **settings)
    return {OURS: partial(ours, momentum=MOMENTUM), KERAS + ".SGD": stock}


def stock_optimizers(kind, count):
    """Functions that make a decoupled stock class, and the stock one with its own decay."""
    cls, rate = getattr(keras.optimizers, kind), 1e-3
    decays = {"weight_decay": DECAY} | ({"adam_weight_decay": DECAY} if kind == "Muon" else {})
    ours = partial(keras_decoupled.decouple(cls), rate)
    return {
        OURS: partial(ours, weight_decay=rate * DECAY),
        RULES: partial(ours, **workloads.rules(count, rate * DECAY)),
        f"{KERAS}.{kind}": partial(cls, rate, **decays),
    }


def decay_kinds(kind):
    """Functions that make our optimizer with each kind of decay, by the kind's name."""
    l2 = RATE[kind] * DECAY
    l1 = l2 / 20  # the weights are at 0.05: about the same decay
    decays = {
        PLAIN: l2,
        "eta_power=0": Decay(l2, eta_power=0),
        "eta_power=2": Decay(l2, eta_power=2),
        "cautious": Decay(l2, cautious=True),
        'towards="initial"': Decay(l2, towards="initial"),
        "soft_threshold": Decay(l2, l1, soft_threshold=True),
        "(l1, l2)": (l1, l2),
    }
    ours = keras_optimizers(kind, 1)[OURS]
    return {name: partial(ours, weight_decay=decay) for name, decay in decays.items()}


def keras_variables(values, dtype=None):
    """Variables of Keras with these values, named so that each rule hits every fourth."""
    return [
        keras.Variable(value, dtype=dtype or workloads.DTYPE, name=name)
        for value, name in zip(values, workloads.names(len(values)), strict=True)
    ]
