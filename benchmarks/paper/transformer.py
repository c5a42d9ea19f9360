"""One run of a small language model: characters, two blocks, an optimizer and a width, from a seed to its losses.

As in `one_run.py`, learning rate and decay are arguments of the compiled step.
"""

import math

import jax
import keras
import numpy as np
from keras import layers, ops

import text
from experiments import WIDTHS
from keras_decoupled import AdamW, Muon, width_lr_multipliers
from one_run import UNDECAYED, Given
from results import Losses

BLOCKS, HEAD, LENGTH = 2, 16, 128  # HEAD: numbers in an attention head, at every width
EVALUATED = 512  # windows of each part
WARM_UP = 0.05  # of the updates


class Scaled(Given):
    """A multiple of a decay that is given."""

    def __init__(self, given, factor):
        self.given, self.factor = given, factor

    def __call__(self, step):
        return self.factor * self.given.value


def adamw(decay, multipliers, scales_decay=False):
    """AdamW whose rates have multipliers, and its decays too if they are coupled."""
    decays = {p: Scaled(decay, m) for p, m in multipliers.items() if m != 1 and scales_decay}
    return AdamW(1.0, decay, beta_2=0.95, weight_decays=decays or None, lr_multipliers=multipliers)


MUON = {"adam_beta_2": 0.95, "exclude_layers": ["head/"]}
# With α = 1, η is the rate itself; the decay given is λ/rate. The multipliers are those of the width.
FORMS = {
    "adamw": lambda decay, _: AdamW(1.0, decay, beta_2=0.95),
    "adamw-scaled": adamw,
    "keras-adamw-scaled": lambda decay, m: adamw(decay, m, scales_decay=True),
    "muon": lambda decay, _: Muon(1.0, weight_decay=decay, **MUON),
    "muon-bfloat16": lambda decay, _: Muon(1.0, weight_decay=decay, ns_dtype="bfloat16", **MUON),
    "keras-muon": lambda decay, _: keras.optimizers.Muon(
        1.0, weight_decay=1.0, adam_weight_decay=1.0, **MUON
    ),
}


def network(width, characters):
    """A GPT. Kernels have a deviation of 1/√fan_in, the head starts at 0: the width changes no first output."""

    def normal(fan_in):
        return keras.initializers.RandomNormal(stddev=1 / math.sqrt(fan_in))

    def dense(units, fan_in, **more):
        return layers.Dense(units, kernel_initializer=normal(fan_in), **more)

    inputs = keras.Input((LENGTH,), dtype="int32")
    constant = keras.initializers.RandomNormal(stddev=1.0)
    x = layers.Embedding(characters, width, constant, name="token_embedding")(inputs)
    places = layers.Embedding(LENGTH, width, constant, name="position_embedding")
    x = x + places(ops.arange(LENGTH))
    for i in range(BLOCKS):
        y = layers.LayerNormalization(name=f"attention_norm_{i}")(x)
        attention = layers.MultiHeadAttention(
            width // HEAD, HEAD, kernel_initializer=normal(width), name=f"attention_{i}"
        )
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(name=f"mlp_norm_{i}")(x)
        y = dense(4 * width, width, activation="gelu", name=f"up_{i}")(y)
        x = x + dense(width, 4 * width, name=f"down_{i}")(y)
    x = layers.LayerNormalization(name="norm")(x)
    return keras.Model(inputs, layers.Dense(characters, kernel_initializer="zeros", name="head")(x))


def course(updates):
    """η of each update: a linear warm-up, then a cosine to 0."""
    first = int(WARM_UP * updates)
    steps = np.arange(updates)
    cosine = 0.5 * (1 + np.cos(np.pi * np.clip((steps - first) / (updates - first), 0, 1)))
    return np.where(steps < first, (steps + 1) / max(first, 1), cosine)


class Program:
    """The compiled step of one form and one width."""

    def __init__(self, cell, data):
        self.data, self.form, self.width = data, cell.form, cell.width
        self.given = Given()
        self.model = network(cell.width, data.characters)
        base = network(WIDTHS[0], data.characters)
        self.optimizer = FORMS[cell.form](self.given, width_lr_multipliers(self.model, base))
        undecayed = [
            v for v in self.model.trainable_variables if v.name in (*UNDECAYED, "embeddings")
        ]
        self.optimizer.exclude_from_weight_decay(var_list=undecayed)
        self.optimizer.build(self.model.trainable_variables)
        rates = ("learning_rate", "learning_rate_factor")
        [self.rate_at] = [i for i, v in enumerate(self.optimizer.variables) if v.name in rates]
        self.step = jax.jit(self._step, donate_argnums=(0, 1))
        self.losses = jax.jit(self.loss)

    def loss(self, weights, x, y):
        """Mean loss of a character, in nats."""
        logits, _ = self.model.stateless_call(weights, [], x)
        return ops.mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))

    def _step(self, weights, state, x, y, rate, decay):
        if self.form == "keras-muon":
            self.optimizer.weight_decay = self.optimizer.adam_weight_decay = decay
        self.given.value = decay
        grads = jax.grad(self.loss)(weights, x, y)
        state = [*state[: self.rate_at], rate, *state[self.rate_at + 1 :]]
        return self.optimizer.stateless_apply(state, grads, weights)

    def run(self, cell):
        """Train; yield (update, Losses) at the end."""
        keras.utils.set_random_seed(cell.seed)
        fresh = network(cell.width, self.data.characters)
        weights = [np.array(v) for v in fresh.trainable_variables]
        state = [np.array(v) for v in self.optimizer.variables]
        decay = np.float32(cell.decay / cell.rate)
        for k, eta in enumerate(course(cell.updates)):
            rng = np.random.default_rng((cell.seed, k))
            starts = rng.integers(0, len(self.data.training) - LENGTH, cell.batch)
            x, y = text.windows(self.data.training, starts, LENGTH)
            weights, state = self.step(weights, state, x, y, np.float32(cell.rate * eta), decay)
        yield cell.updates, Losses(*(self.mean(weights, part) for part in self.data[1:3]))

    def mean(self, weights, numbers):
        """Mean loss over windows that lie side by side."""
        starts = np.arange(EVALUATED) * LENGTH
        parts = (text.windows(numbers, some, LENGTH) for some in np.split(starts, EVALUATED // 64))
        loss = float(np.mean([self.losses(weights, x, y) for x, y in parts]))
        return loss if np.isfinite(loss) else float("inf")
