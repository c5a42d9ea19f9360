"""`width_lr_multipliers`: learning rates that carry over from a small model to a wider one."""

from __future__ import annotations

import math
import re
from typing import Any, TypeAlias

import keras
from keras import layers

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.decay import regularizers
from keras_decoupled.layerwise import ModelRules, weights_of
from keras_decoupled.paths import blocks, match

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)


def width_lr_multipliers(model: keras.Model, base_model: keras.Model) -> dict[str, float]:
    """Return `{path: multiplier}` with which the best rate of a narrow model fits a wider one.

    You tune the learning rate on `base_model`, and train `model` with that rate and

        multiplier = fan_in of the base model's variable / fan_in

    for each matrix. fan_in is the number of inputs that are summed into one output. Embeddings,
    tables of positions, biases, scales and depthwise kernels have the multiplier 1. The first layer
    has 1 too: it has as many inputs in both models. λ stays as it is: a multiplier does not scale
    the decay here.

    It is for optimizers whose step does not grow with the gradient: AdamW, NadamW, Lion. You do the
    rest:

    - The output kernel starts at zero, or with a deviation ∝ 1/fan_in. Hidden kernels start with a
      deviation ∝ 1/√fan_in. The first layer and embeddings start with one deviation at all widths.
      Keras' default, Glorot, does not do this for the first layer and for the 3-D kernels of
      attention.
    - The size of an attention head stays, and the number of heads grows.
    - ε stays far below the gradients, which get smaller with the width.
    - The logits of an embedding that is also the output kernel are multiplied by base width /
      width in the model.

    A kernel of a layer of your own is taken as (inputs…, outputs): its last axis is the outputs. If
    another axis is the outputs, change the kernel's entry: `multipliers | {"block/wq": 0.25}`.

    Args:
        model: a built `keras.Model`.
        base_model: a built model of the same layers in the same order, of another width.

    Raises:
        TypeError: an argument is not a `keras.Model`.
        ValueError: a model is not built, or the two do not have the same variables in the same
            order, except for the lengths of their axes.

    Example:
    >>> import keras
    >>> from keras_decoupled import AdamW, width_lr_multipliers
    >>> def network(width):
    ...     dense = [keras.layers.Dense(width, name="a"), keras.layers.Dense(2, name="head")]
    ...     return keras.Sequential([keras.Input((4,)), *dense], name="net")
    >>> model = network(256)
    >>> multipliers = width_lr_multipliers(model, network(64))
    >>> multipliers
    {'net/a/kernel': 1.0, 'net/a/bias': 1.0, 'net/head/kernel': 0.25, 'net/head/bias': 1.0}
    >>> optimizer = AdamW(0.01, weight_decay=1e-3, lr_multipliers=multipliers)

    Sources: Yang et al., arXiv 2203.03466, Table 3 without the output multiplier; with an
    independent decay: arXiv 2510.19093.
    """
    variables, names = weights_of(model)
    weights_of(base_model, "base_model")
    own, base = _owned(model), _owned(base_model)
    _check_pairs(own, base)
    pairs = zip(own, base, strict=True)
    multipliers = {id(v[0]): _fan_in(*other) / _fan_in(*v) for v, other in pairs}
    return ModelRules({n: multipliers[id(v)] for n, v in zip(names, variables, strict=True)}, names)


_Owned: TypeAlias = tuple[Any, keras.Layer | None]  # a variable, and its layer if fan_in needs it


def _owned(model: keras.Model) -> list[_Owned]:
    """Return the model's variables, each with its layer if the kind of layer decides fan_in."""
    owners: dict[int, keras.Layer] = {}
    for layer in regularizers.all_layers(model):
        if isinstance(layer, (layers.EinsumDense, *_TRANSPOSED, *_DEPTHWISE)):
            owners |= {id(v): layer for v in layer.weights}
    return [(v, owners.get(id(v))) for v in model.weights]


def _check_pairs(own: list[_Owned], base: list[_Owned]) -> None:
    cure = "Make both by one function, with the width as its argument."
    rule = "must have the variables of `model`, in the same order, except for the lengths of axes"
    for (v, layer), (other, base_layer) in zip(own, base, strict=False):
        alike = len(v.shape) == len(other.shape) and type(layer) is type(base_layer)
        if not alike or v.name != other.name:
            what = f"{other.path} of shape {tuple(other.shape)} in the place of {v.path}"
            refuse("base_model", Seen(f"{what}, {tuple(v.shape)}"), rule, cure)
    if len(own) != len(base):
        refuse("base_model", Seen(f"{len(base)} variables for {len(own)}"), rule, cure)


def _fan_in(variable: Any, layer: keras.Layer | None) -> int:
    """Return how many inputs are summed into one output; 1 if the variable is not a matrix."""
    return max(_inputs(tuple(variable.shape), variable.path, layer), 1)


def _inputs(shape: tuple[int, ...], path: str, layer: keras.Layer | None) -> int:
    depthwise = isinstance(layer, _DEPTHWISE) or "depthwise" in match.components(path)[-1]
    if depthwise or len(shape) < 2 or match.is_scale(path) or blocks.is_embedding(path):
        return 1
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel, outputs = re.split(",|->", layer.equation)
        if len(kernel) == len(shape):
            pairs = zip(kernel, shape, strict=True)
            return math.prod(n for x, n in pairs if x in inputs and x not in outputs)
    if isinstance(layer, _TRANSPOSED):
        return shape[-1]
    return math.prod(shape[:-1])
