"""One run: a small network, an optimizer, a learning rate and a decay, from a seed to its losses.

Learning rate and decay are arguments of the compiled step, so that a whole grid is compiled once
per optimizer.
"""

import functools

import jax
import keras
import numpy as np
from keras import layers

import fashion
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay
from results import Scores

EVALUATED = 1000  # images at a time


class Given(keras.optimizers.schedules.LearningRateSchedule):
    """A decay that is an argument of the compiled step."""

    value = 0.0

    def __call__(self, step):
        return self.value


def network():
    """Two convolutions and a dense layer, each normalized, and a head: 52 thousand weights."""

    def normalized(layer):
        return [layer, layers.BatchNormalization(momentum=0.9), layers.ReLU()]

    def convolution(filters):
        return normalized(
            layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
        )

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *convolution(8),
            *convolution(16),
            layers.Flatten(),
            *normalized(layers.Dense(64, use_bias=False)),
            layers.Dense(10, name="head"),
        ]
    )


UNDECAYED = ("bias", "gamma", "beta")
# Optimizers of a decay. Learning rates are given at every step. With α = 1, η is the rate itself:
# see `decay_input`.
ALGORITHMS = {
    "adamw": lambda decay: AdamW(1.0, weight_decay=decay),
    "adamw-eta0": lambda decay: AdamW(1.0, weight_decay=Decay(decay, eta_power=0)),
    "adamw-eta2": lambda decay: AdamW(1.0, weight_decay=Decay(decay, eta_power=2)),
    "adamw-cautious": lambda decay: AdamW(1.0, weight_decay=Decay(decay, cautious=True)),
    "adamw-initial": lambda decay: AdamW(1.0, weight_decay=Decay(decay, towards="initial")),
    "adamw-l1": lambda decay: AdamW(1.0, weight_decay=Decay(l1=decay)),
    "adamw-soft": lambda decay: AdamW(1.0, weight_decay=Decay(l1=decay, soft_threshold=True)),
    "sgdw": lambda decay: SGDW(1.0, momentum=0.9, weight_decay=decay),
    "keras-adamw": lambda decay: keras.optimizers.AdamW(1.0, weight_decay=1.0),
    "adam-l1": lambda decay: keras.optimizers.Adam(1.0),
    "adam-l2": lambda decay: keras.optimizers.Adam(1.0),
    "sgd-l2": lambda decay: keras.optimizers.SGD(1.0, momentum=0.9),
}
PENALTIES = {  # in the loss, of a kernel
    "adam-l1": lambda kernel: keras.ops.sum(keras.ops.abs(kernel)),
    "adam-l2": lambda kernel: keras.ops.sum(kernel**2) / 2,
    "sgd-l2": lambda kernel: keras.ops.sum(kernel**2) / 2,
}
NUMBERS = ("adamw-l1", "adamw-soft")  # of an l1 that no schedule can stand for
ETA_POWERS = {"adamw-eta0": 0, "adamw-eta2": 2}  # 1 for all others


def decay_input(cell):
    """Return the decay that a cell's optimizer is given, or the factor of its penalty.

    Ours has α = 1, so that η is the rate, and η^p·decay is to be (rate/α)^p·λ.
    """
    if cell.algorithm in PENALTIES:
        return cell.decay
    return cell.decay / cell.rate ** ETA_POWERS.get(cell.algorithm, 1)


def course(cell):
    """Return η of each update, and what the decay is multiplied by.

    The decay is normalized: in a cycle of T updates it is √(all updates/T) times the cell's, which
    is that of one cosine over the whole run.
    """
    steps = np.arange(cell.updates)
    if cell.schedule == "constant":
        return np.ones(cell.updates), np.ones(cell.updates)
    if cell.schedule == "cosine":
        shape = CosineWarmRestarts(1.0, cell.updates, autorestart=False)
    else:  # "restarts 2": cycles of 2, 4, 8, … epochs
        shape = CosineWarmRestarts(1.0, int(cell.schedule.split()[1]) * cell.per_epoch, t_mul=2)
    eta, T = (keras.ops.convert_to_numpy(f(steps)) for f in (shape.multiplier, shape.cycle_steps))
    return eta, np.sqrt(cell.updates / T)


class Program:
    """The compiled step of one algorithm, or of one l1 in it, and what it trains on."""

    def __init__(self, cell, data):
        self.algorithm, (self.training, self.validation, self.test) = cell.algorithm, data
        self.given = Given()
        self.model = network()
        self.optimizer = ALGORITHMS[self.algorithm](
            decay_input(cell) if self.algorithm in NUMBERS else self.given
        )
        if hasattr(self.optimizer, "exclude_from_weight_decay"):
            self.optimizer.exclude_from_weight_decay(var_list=self.undecayed())
        self.optimizer.build(self.model.trainable_variables)
        rates = ("learning_rate", "learning_rate_factor")
        [self.rate_at] = [i for i, v in enumerate(self.optimizer.variables) if v.name in rates]
        self.kernels = [v.name == "kernel" for v in self.model.trainable_variables]
        self.step = jax.jit(self._step)
        self.logits = jax.jit(
            lambda weights, averages, x: self.model.stateless_call(weights, averages, x)[0]
        )

    def undecayed(self):
        """Variables of the model that no decay is for."""
        return [v for v in self.model.trainable_variables if v.name in UNDECAYED]

    def _step(self, weights, averages, state, x, y, rate, decay):
        if self.algorithm == "keras-adamw":
            self.optimizer.weight_decay = decay
        self.given.value = decay
        factor = decay if self.algorithm in PENALTIES else 0.0
        gradient = jax.grad(functools.partial(self.loss, factor=factor), has_aux=True)
        grads, averages = gradient(weights, averages, x, y)
        state = [*state[: self.rate_at], rate, *state[self.rate_at + 1 :]]
        weights, state = self.optimizer.stateless_apply(state, grads, weights)
        return weights, averages, state

    def loss(self, weights, averages, x, y, factor):
        """Return the mean loss and the new averages; `factor` is of the penalty, if there is one."""
        logits, averages = self.model.stateless_call(weights, averages, x, training=True)
        loss = keras.ops.mean(cross_entropy(y, logits))
        if self.algorithm in PENALTIES:
            penalty = PENALTIES[self.algorithm]
            loss += factor * sum(penalty(kernel) for kernel in self.kernels_of(weights))
        return loss, averages

    def kernels_of(self, weights):
        """Those of the weights that are decayed in the usual runs."""
        return [w for w, kernel in zip(weights, self.kernels, strict=True) if kernel]

    def run(self, cell):
        """Train; yield (epoch, Scores) after each epoch whose turn it is, of the last in any case."""
        for epoch, weights, averages in self.train(cell):
            if epoch % cell.scored == 0 or epoch == cell.epochs:
                yield epoch, self.scores(weights, averages)

    def train(self, cell):
        """Train; yield (epoch, weights, averages of the normalization) after each epoch."""
        weights, averages, state = self.start(cell)
        eta, normalization = course(cell)
        rates = iter((cell.rate * eta).astype("float32"))
        decays = iter((decay_input(cell) * normalization).astype("float32"))
        training = self.images(cell)
        for epoch in range(1, cell.epochs + 1):
            for x, y in fashion.batches(training, cell.images, cell.seed, epoch, cell.batch):
                weights, averages, state = self.step(
                    weights, averages, state, x, y, next(rates), next(decays)
                )
            yield epoch, weights, averages

    def start(self, cell):
        """Return (weights, averages, state of the optimizer) before the first update."""
        keras.utils.set_random_seed(cell.seed)
        fresh = network()
        return (
            [v.value for v in fresh.trainable_variables],
            [v.value for v in fresh.non_trainable_variables],
            [v.value for v in self.optimizer.variables],
        )

    def images(self, cell):
        """Return the Part whose first images a run learns."""
        return self.training

    def predict(self, part, weights, averages):
        """Logits, (images, classes)."""
        starts = range(0, len(part.labels), EVALUATED)
        images = (part.images[start : start + EVALUATED] for start in starts)
        return np.concatenate([self.logits(weights, averages, x) for x in images])

    def scores(self, weights, averages):
        """Validation and test scores; a run that diverged guesses, and its loss is infinite."""
        kernels = np.concatenate([np.ravel(kernel) for kernel in self.kernels_of(weights)])
        return Scores(
            *self._score(self.validation, weights, averages),
            *self._score(self.test, weights, averages),
            zeros=float(np.mean(kernels == 0)),
        )

    def _score(self, part, weights, averages):
        logits = self.predict(part, weights, averages)
        loss = float(np.mean(cross_entropy(part.labels, logits)))
        if not np.isfinite(loss):
            return float("inf"), 0.9
        return loss, float(np.mean(logits.argmax(axis=1) != part.labels))


def cross_entropy(labels, logits):
    """Loss of each image, in nats."""
    return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
