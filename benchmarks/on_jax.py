"""Contenders on JAX: Keras optimizers by `stateless_apply` and optax, jitted, buffers donated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import workloads
from contenders import (
    DECAY,
    MOMENTUM,
    RATE,
    Contender,
    Copy,
    DeviceCopy,
    keras_optimizers,
    keras_variables,
)

MODES = ("",)


def device():
    """Name the accelerator, None for the CPU."""
    first = jax.devices()[0]
    return None if first.platform == "cpu" else first.device_kind


def settings():
    """What of the backend bears on the figures."""
    return {}


def tensors(arrays):
    """These arrays where the variables are."""
    # `asarray` may share memory with NumPy.
    return [jnp.array(array, workloads.DTYPE) for array in arrays]


class OnJax(Contender):
    """A jitted update of (state, weights), both donated."""

    def step(self):
        self.state, self.weights = self.update(self.state, self.weights, self.grads)
        jax.block_until_ready((self.state, self.weights))

    def extra_bytes(self):
        """What XLA reserves beside the arguments: temporaries, and results not in their place."""
        lowered = self.update.lower(self.state, self.weights, self.grads)
        analysis = lowered.compile().memory_analysis()
        if analysis is None:
            return None
        results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
        return analysis.temp_size_in_bytes + max(results, 0)

    def last(self):
        return np.array(self.weights[-1], "float32")


class Keras(OnJax):
    """`optimizer.stateless_apply`, as Keras' own training loop calls it."""

    def __init__(self, make, values, grads):
        self.make, self.grads, self.variables = make, grads, keras_variables(values)

    def build(self):
        optimizer = self.make()
        optimizer.build(self.variables)
        self.state = [variable.value for variable in optimizer.variables]
        self.weights = [variable.value for variable in self.variables]

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(state, weights, grads):
            weights, state = optimizer.stateless_apply(state, grads, weights)
            return state, weights

        self.update = update


class Eager(Keras):
    """`optimizer.apply`, as under `run_eagerly=True`."""

    def build(self):
        self.optimizer = self.make()
        self.optimizer.build(self.variables)

    def step(self):
        self.optimizer.apply(self.grads, self.variables)
        self.weights = [variable.value for variable in self.variables]
        jax.block_until_ready((self.weights, [v.value for v in self.optimizer.variables]))

    def extra_bytes(self):
        """Unknown."""


class Optax(OnJax):
    """`update` and `apply_updates` in one jit, as in optax' guide."""

    def __init__(self, make, values, grads):
        self.make, self.grads, self.weights = make, grads, tensors(values)

    def build(self):
        optimizer = self.make()
        self.state = optimizer.init(self.weights)

        @partial(jax.jit, donate_argnums=(0, 1))
        def update(state, weights, grads):
            updates, state = optimizer.update(grads, state, weights)
            return state, optax.apply_updates(weights, updates)

        self.update = update


def peers(kind):
    """Functions that make the optimizers of optax, by name."""
    rate = RATE[kind]
    if kind == "AdamW":
        return {"optax.adamw": partial(optax.adamw, rate, weight_decay=DECAY)}
    if kind == "NadamW":
        return {"optax.nadamw": partial(optax.nadamw, rate, weight_decay=DECAY)}
    # optax.sgd has no decay. This one goes through the buffer, and comes out so much larger.
    decay = optax.add_decayed_weights(DECAY * (1 - MOMENTUM))
    sgd = optax.sgd(rate, momentum=MOMENTUM)
    return {"optax.sgd, with decay": partial(optax.chain, decay, sgd)}


def of_keras(makers, mode, values, grads):
    """Functions that make the contenders of these makers of Keras optimizers, by name."""
    cls = Eager if mode == "eager" else Keras
    return {name: partial(cls, make, values, grads) for name, make in makers.items()}


def contenders(kind, mode, values, grads):
    """Functions that make the contenders, by name: ours, stock Keras, optax'."""
    made = of_keras(keras_optimizers(kind, len(values)), mode, values, grads)
    return made | {name: partial(Optax, make, values, grads) for name, make in peers(kind).items()}


def copy(moved):
    """What moves this many bytes where the variables are."""
    if not device():
        return Copy(moved)
    return DeviceCopy(
        moved,
        lambda size: jnp.ones(size, "uint8"),
        lambda source: jnp.copy(source).block_until_ready(),
    )
