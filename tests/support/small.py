"""Small things that many tests make: variables of ones, a copy through JSON, what is left after a decay, two layers."""

import json

import keras
import numpy as np

from cases import eager, make_variable, numpy

WEAK = 2.0**-12  # of a penalty; a strong one is warned of


def ones(*paths, shape=(2,), dtype="float32"):
    """Variables of these paths; without any, "w"."""
    return [make_variable(path, np.ones(shape), dtype) for path in paths or ("w",)]


def again(optimizer):
    """What comes out of the optimizer's config as JSON."""
    return type(optimizer).from_config(json.loads(json.dumps(optimizer.get_config())))


def left(optimizer, ours, updates=1, runner=eager):
    """What each update without a gradient leaves of weights of 1: a row for each update."""
    step, rows = runner(optimizer, ours), []
    for _ in range(updates):
        for v in ours:
            v.assign(np.ones(v.shape))
        step([np.zeros(v.shape, str(v.dtype)) for v in ours])
        rows.append([numpy(v).ravel()[0] for v in ours])
    return np.squeeze(rows)


def named(kernel=None, bias=None, units=2):
    """Layers "one" and "two": a penalty of the first one's kernel, and one of the second one's bias."""
    one = keras.layers.Dense(2, kernel_regularizer=kernel, name="one")
    two = keras.layers.Dense(units, bias_regularizer=bias, name="two")
    return keras.Sequential([keras.Input((2,)), one, two], name="net")
