"""Contenders on TensorFlow: Keras optimizers by `apply` in a `tf.function`, with and without XLA."""

from functools import partial

import keras
import numpy as np
import tensorflow as tf

import workloads
from contenders import Contender, Copy, keras_optimizers, keras_variables

MODES = ("XLA", "no XLA")
FIRST_STEPS = 1  # each builds, traces and compiles for up to a quarter of a minute
tf.get_logger().setLevel("ERROR")  # each contender is a function of its own: no needless tracing


def device():
    """Name the accelerator, None for the CPU."""
    found = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(found[0])["device_name"] if found else None


GPU = bool(tf.config.list_physical_devices("GPU"))  # asked once: not while a step is timed


def settings():
    """What of the backend bears on the figures."""
    return {}


def tensors(arrays):
    """These arrays where the variables are."""
    return [tf.constant(array, workloads.DTYPE) for array in arrays]


class Keras(Contender):
    """`optimizer.apply`, traced once, or eager."""

    def __init__(self, make, mode, values, grads):
        self.make, self.mode, self.grads = make, mode, grads
        self.variables = keras_variables(values)

    def build(self):
        optimizer = self.make()
        optimizer.build(self.variables)

        def update(grads):
            optimizer.apply(grads, self.variables)

        if self.mode != "eager":
            update = tf.function(update, jit_compile=self.mode == "XLA", autograph=False)
        self.update = update

    def step(self):
        self.update(self.grads)
        if GPU:
            tf.test.experimental.sync_devices()

    def extra_bytes(self):
        """Unknown: TensorFlow does not tell, and resident memory shows its allocator's pools."""

    def last(self):
        return np.array(keras.ops.convert_to_numpy(self.variables[-1]), "float32")


def of_keras(makers, mode, values, grads):
    """Functions that make the contenders of these makers of Keras optimizers, by name."""
    return {name: partial(Keras, make, mode, values, grads) for name, make in makers.items()}


def contenders(kind, mode, values, grads):
    """Functions that make the contenders, by name: ours and stock Keras."""
    return of_keras(keras_optimizers(kind, len(values)), mode, values, grads)


def copy(moved):
    """What moves this many bytes."""
    return Copy(moved)
