"""A model whose gradients are the numbers that are fed to it, to the bit: the oracle can follow `fit` itself.

The loss is linear in the weights, so rounding in one update does not come back through the gradient of the next.
"""

import math

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="exact")
class Weighted(keras.layers.Layer):
    """Σ x·θ over the weights of the layer, which take their x from `start` on: dΣ/dθ = x."""

    def __init__(self, shapes, start, **kwargs):
        super().__init__(**kwargs)
        self.shapes, self.start = shapes, start
        self.stop = start + sum(math.prod(shape) for shape in shapes.values())

    def build(self, input_shape):
        self.parts = [
            self.add_weight(shape=tuple(shape), initializer="ones", name=name)
            for name, shape in self.shapes.items()
        ]

    def call(self, x):
        theta = ops.concatenate([ops.reshape(part, (-1,)) for part in self.parts])
        return ops.sum(x[:, self.start : self.stop] * theta, axis=-1, keepdims=True)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1)

    def get_config(self):
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return super().get_config() | {"shapes": shapes, "start": self.start}


@keras.saving.register_keras_serializable(package="exact")
def output(y_true, y_pred):
    """The loss: what the model gives. The mean over a batch of one is no rounding."""
    return y_pred


def model_of(layers, values):
    """A model of layers {name: {weight: shape}}, with these values of all weights."""
    size = sum(math.prod(shape) for shapes in layers.values() for shape in shapes.values())
    x = keras.Input((size,))
    outputs, start = [], 0
    for name, shapes in layers.items():
        layer = Weighted(shapes, start, name=name)
        outputs.append(layer(x))
        start = layer.stop
    model = keras.Model(x, keras.layers.Add()(outputs))
    model.set_weights(values)
    return model


def row(gradients):
    """The model's input from which each weight gets its gradient."""
    return np.concatenate([np.ravel(g) for g in gradients])
