"""One run: a small network, an optimizer, a learning rate and a decay, from a seed to its losses.

Learning rate and decay are arguments of the compiled step, so that a whole grid is compiled once
per optimizer.
"""

import functools
from typing import NamedTuple

import fashion
import jax
import keras
import numpy as np
from keras import layers

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts

BATCH = 100
EVALUATED = 1000  # images at a time


class Cell(NamedTuple):
    """What a run is, and its key in the results."""

    experiment: str
    algorithm: str  # of ALGORITHMS
    schedule: str  # of `multipliers`
    rate: float  # α
    decay: float  # λ, per update, for ours; α·λ for keras.AdamW; w of w/2·‖θ‖² for the penalty
    epochs: int
    seed: int


class Scores(NamedTuple):
    """Mean cross-entropy and share of errors."""

    validation_loss: float
    validation_error: float
    test_loss: float
    test_error: float


class Given(keras.optimizers.schedules.LearningRateSchedule):
    """A decay that is an argument of the compiled step."""

    value = 0.0

    def __call__(self, step):
        return self.value


def network():
    """Three convolutions with normalization: 15 thousand weights."""

    def convolution(filters, strides):
        return [
            layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]

    body = convolution(16, 2) + convolution(32, 2) + convolution(32, 1)
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *body, *head])


UNDECAYED = ("bias", "gamma", "beta")
# Learning rates are given at every step. With α = 1, η is the rate itself: see `Program.decay`.
ALGORITHMS = {
    "adamw": lambda: AdamW(1.0, weight_decay=Given()),
    "sgdw": lambda: SGDW(1.0, momentum=0.9, weight_decay=Given()),
    "keras-adamw": lambda: keras.optimizers.AdamW(1.0, weight_decay=1.0),
    "adam-l2": lambda: keras.optimizers.Adam(1.0),
    "sgd-l2": lambda: keras.optimizers.SGD(1.0, momentum=0.9),
}


def multipliers(schedule, updates, per_epoch):
    """Return η of each update."""
    if schedule == "constant":
        return np.ones(updates, "float32")
    if schedule == "cosine":
        shape = CosineWarmRestarts(1.0, updates, autorestart=False)
    else:  # "restarts 2": cycles of 2, 4, 8, … epochs
        shape = CosineWarmRestarts(1.0, int(schedule.split()[1]) * per_epoch, t_mul=2)
    return keras.ops.convert_to_numpy(shape.multiplier(np.arange(updates)))


class Program:
    """The compiled step of one algorithm, and what it trains on."""

    def __init__(self, algorithm, data):
        self.algorithm, (self.training, self.validation, self.test) = algorithm, data
        self.model, self.optimizer = network(), ALGORITHMS[algorithm]()
        if hasattr(self.optimizer, "exclude_from_weight_decay"):
            self.optimizer.exclude_from_weight_decay(var_names=UNDECAYED)
        self.optimizer.build(self.model.trainable_variables)
        rates = ("learning_rate", "learning_rate_factor")
        [self.rate_at] = [i for i, v in enumerate(self.optimizer.variables) if v.name in rates]
        self.kernels = [v.name == "kernel" for v in self.model.trainable_variables]
        self.step = jax.jit(self._step)
        self.logits = jax.jit(
            lambda weights, averages, x: self.model.stateless_call(weights, averages, x)[0]
        )

    def decay(self, cell):
        """The decay that the step is given.

        Ours has α = 1, so that η is the rate, and η·decay is to be (rate/α)·λ.
        """
        return cell.decay if self.algorithm.endswith("l2") else cell.decay / cell.rate

    def _step(self, weights, averages, state, x, y, rate, decay):
        penalty = decay if self.algorithm.endswith("l2") else 0.0
        if self.algorithm == "keras-adamw":
            self.optimizer.weight_decay = decay
        elif self.algorithm in ("adamw", "sgdw"):
            self.optimizer.weight_decay.value = decay
        gradient = jax.grad(functools.partial(self._loss, penalty=penalty), has_aux=True)
        grads, averages = gradient(weights, averages, x, y)
        state = [*state[: self.rate_at], rate, *state[self.rate_at + 1 :]]
        weights, state = self.optimizer.stateless_apply(state, grads, weights)
        return weights, averages, state

    def _loss(self, weights, averages, x, y, penalty):
        logits, averages = self.model.stateless_call(weights, averages, x, training=True)
        loss = keras.ops.mean(_cross_entropy(y, logits))
        squares = sum(
            keras.ops.sum(w**2) for w, kernel in zip(weights, self.kernels, strict=True) if kernel
        )
        return loss + penalty / 2 * squares, averages

    def run(self, cell):
        """Train; yield the Scores after each epoch whose turn it is, of the last in any case."""
        keras.utils.set_random_seed(cell.seed)
        fresh = network()
        weights = [v.value for v in fresh.trainable_variables]
        averages = [v.value for v in fresh.non_trainable_variables]
        state = [v.value for v in self.optimizer.variables]
        per_epoch = len(self.training.labels) // BATCH
        eta = multipliers(cell.schedule, cell.epochs * per_epoch, per_epoch)
        rates = (cell.rate * eta).astype("float32")
        decay, k = np.float32(self.decay(cell)), 0
        for epoch in range(cell.epochs):
            for x, y in fashion.batches(self.training, cell.seed, epoch, BATCH):
                weights, averages, state = self.step(
                    weights, averages, state, x, y, rates[k], decay
                )
                k += 1
            if cell.experiment == "restarts" or epoch + 1 == cell.epochs:
                yield epoch + 1, self.scores(weights, averages)

    def scores(self, weights, averages):
        """Validation and test scores; a run that diverged guesses, and its loss is infinite."""
        return Scores(
            *self._score(self.validation, weights, averages),
            *self._score(self.test, weights, averages),
        )

    def _score(self, part, weights, averages):
        logits = np.concatenate(
            [
                self.logits(weights, averages, part.images[i : i + EVALUATED])
                for i in range(0, len(part.labels), EVALUATED)
            ]
        )
        loss = float(np.mean(_cross_entropy(part.labels, logits)))
        if not np.isfinite(loss):
            return float("inf"), 0.9
        return loss, float(np.mean(logits.argmax(axis=1) != part.labels))


def _cross_entropy(labels, logits):
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
