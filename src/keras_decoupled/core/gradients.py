"""What an update is given: dense gradients of one dtype, for variables of Keras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.paths.match import path_of

LOW_PRECISION = ("bfloat16", "float16")  # variables of these types have float32 state

_TORCH = keras.backend.backend() == "torch"
# By type of gradient: whether it must be converted to a dense tensor. Found once per type.
_SPARSE: dict[type, bool] = {}


def check_variables(variables: Sequence[Any], key_of: Callable[[Any], Any]) -> list[Any]:
    """Return the variables' keys.

    Raises:
        TypeError: an item is not a Keras variable. A raw `tf.Variable` is accepted too.
        ValueError: a variable is listed twice.
    """
    for variable in variables:
        if not (hasattr(variable, "assign") and hasattr(variable, "trainable")):
            kind = type(variable)
            cure = "Take model.trainable_variables"
            if _TORCH:
                cure += "; the gradient of one of them is `variable.value.grad`"
            what = Seen(f"a {kind.__module__}.{kind.__qualname__} among them")
            rule = "must be keras variables, such as model.trainable_variables"
            refuse("variables", what, rule, f"{cure}.", TypeError)
    keys = list(map(key_of, variables))
    if len(set(keys)) < len(keys):
        twice = next(v for v, key in zip(variables, keys, strict=True) if keys.count(key) > 1)
        refuse(
            "variables",
            Seen(f"{path_of(twice)} more than once"),
            "must have each variable once",
            "Take `model.trainable_variables`, or add up the gradients of one variable.",
        )
    return keys


class GradientSpec:
    """What a gradient must have: its variable's shape, and the dtype of the variable's slots."""

    __slots__ = ("as_expected", "dtype", "shape")

    def __init__(self, variable: Any) -> None:
        dtype = keras.backend.standardize_dtype(variable.dtype)
        self.dtype = "float32" if dtype in LOW_PRECISION else dtype
        self.shape = tuple(variable.shape)
        # Type, dtype, shape and layout of the last gradient that needed no change. Most need none.
        self.as_expected: tuple[Any, ...] = ()


def dense(gradient: Any, variable: Any, spec: GradientSpec) -> Any:
    """Return the gradient as a dense tensor of the spec's dtype.

    A sparse gradient counts as a dense one with zeros: every row has its moments and decay.
    Keras adds gradients to their accumulators as they are, so they need one dtype.

    Raises:
        ValueError: the gradient has another shape than the variable; it would be broadcast.
    """
    if gradient is None:
        return None
    kind = type(gradient)
    layout = getattr(gradient, "layout", None) if _TORCH else None
    signature = (kind, getattr(gradient, "dtype", None), getattr(gradient, "shape", None), layout)
    if signature == spec.as_expected or getattr(variable, "overwrite_with_gradient", False):
        return gradient
    if kind not in _SPARSE:
        _SPARSE[kind] = not ops.is_tensor(gradient) or any(
            hasattr(kind, name) for name in ("dense_shape", "todense")
        )
    if _SPARSE[kind]:
        if hasattr(gradient, "dense_shape") and hasattr(gradient, "indices"):  # tf.IndexedSlices
            rows = ops.expand_dims(gradient.indices, -1)
            gradient = ops.scatter(rows, gradient.values, spec.shape)
        gradient = ops.convert_to_tensor(gradient, sparse=False)
    elif layout is not None and str(layout) != "torch.strided":
        gradient = gradient.to_dense()
    _check_shape(gradient, variable, spec.shape)
    if keras.backend.standardize_dtype(gradient.dtype) != spec.dtype:
        return ops.cast(gradient, spec.dtype)
    if not _SPARSE[kind] and (layout is None or gradient.layout is layout):
        spec.as_expected = signature
    return gradient


def _check_shape(gradient: Any, variable: Any, shape: tuple[int, ...]) -> None:
    if getattr(gradient.shape, "rank", 0) is None:  # a traced TensorFlow step may not know it
        return
    given = tuple(gradient.shape)
    known = len(given) == len(shape) and all(
        n in (None, m) for n, m in zip(given, shape, strict=True)
    )
    if not known:
        refuse(
            "gradient",
            Seen(f"one of shape {given} for {path_of(variable)}, which has shape {shape}"),
            "must have the shape of its variable, as another would be broadcast",
            "Give gradients and variables in one order.",
        )
