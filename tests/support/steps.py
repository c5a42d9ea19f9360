"""What the tests of our schedules share: steps of every kind, compilers, dtypes."""

import contextlib

import keras
import numpy as np
from keras import ops

LAST = 2**31 - 2  # the last step of a run that counts in int32


def numpy(x):
    return ops.convert_to_numpy(x)


def at(function, steps):
    """`function` of an array of steps, padded: JAX compiles every operation for every new size."""
    size = 64
    while size < len(steps):
        size *= 8
    return numpy(function(np.pad(steps, (0, size - len(steps)))))[: len(steps)]


def compiled(function):
    """`function` as the backend's training loops compile it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return [tf.function(function), tf.function(function, jit_compile=True)]
    if keras.backend.backend() == "jax":
        import jax

        return [jax.jit(function)]
    return [function]  # Keras runs torch eagerly


@contextlib.contextmanager
def floatx(name, x64=False):
    with contextlib.ExitStack() as stack:
        stack.callback(keras.config.set_floatx, keras.config.floatx())
        keras.config.set_floatx(name)
        if x64 and keras.backend.backend() == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield


def step_kinds(step):
    """A step that float16 has, in everything that a step may be."""
    return [
        np.int32(step),
        np.int64(step),
        np.uint8(step),
        float(step),
        np.float16(step),
        np.array(step),
        ops.convert_to_tensor(step),
        ops.convert_to_tensor(np.uint8(step)),
        ops.convert_to_tensor(float(step), "float32"),
        keras.Variable(step, dtype="int", trainable=False),
    ]


def rates_of_stock(make_optimizer, schedule, updates):
    """The rates that an optimizer of Keras uses under a schedule, and a weight of 0 whose gradient is always 1."""
    optimizer = make_optimizer(schedule)
    variable = keras.Variable(np.zeros(2, "float32"))
    rates = []
    for _ in range(updates):
        rates.append(float(optimizer.learning_rate))
        optimizer.apply([ops.ones(2)], [variable])
    return rates, variable
