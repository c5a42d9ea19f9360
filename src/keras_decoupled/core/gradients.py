"""Gradients as the update wants them: dense tensors of one dtype."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

from keras_decoupled.paths.match import path_of

LOW_PRECISION = ("bfloat16", "float16")  # of such a variable all state is float32

_TORCH = keras.backend.backend() == "torch"
# By type of gradient: whether it has to be made a dense tensor. Asked once, not per variable.
_SPARSE: dict[type, bool] = {}


class Wanted:
    """What a variable's gradient has to be: of its shape, and in its slots' type."""

    __slots__ = ("dtype", "seen", "shape")

    def __init__(self, variable: Any) -> None:
        dtype = _dtype_name(variable.dtype)
        self.dtype = "float32" if dtype in LOW_PRECISION else dtype
        self.shape = tuple(variable.shape)
        # Type, dtype and shape of the last gradient that was fine as it came, as most are.
        self.seen: tuple[Any, ...] = ()


def dense(gradient: Any, variable: Any, wanted: Wanted) -> Any:
    """Return the gradient dense, and in the type of its variable's slots.

    A sparse gradient stands for a dense one: moments and decay reach every row. Keras adds
    gradients to their accumulators as they are, so they need one dtype.

    Raises:
        ValueError: the gradient has another shape than the variable; it would be broadcast.
    """
    if gradient is None:
        return None
    kind = type(gradient)
    layout = getattr(gradient, "layout", None) if _TORCH else None
    signature = (kind, getattr(gradient, "dtype", None), getattr(gradient, "shape", None), layout)
    if signature == wanted.seen:
        return gradient
    if getattr(variable, "overwrite_with_gradient", False):
        return gradient
    if kind not in _SPARSE:
        _SPARSE[kind] = not ops.is_tensor(gradient) or any(
            hasattr(kind, name) for name in ("dense_shape", "todense")
        )
    if _SPARSE[kind]:
        if hasattr(gradient, "dense_shape") and hasattr(gradient, "indices"):  # tf.IndexedSlices
            gradient = ops.scatter(
                ops.expand_dims(gradient.indices, -1), gradient.values, wanted.shape
            )
        gradient = ops.convert_to_tensor(gradient, sparse=False)
    elif layout is not None and str(layout) != "torch.strided":
        gradient = gradient.to_dense()
    _check_shape(gradient, variable, wanted.shape)
    if _dtype_name(gradient.dtype) != wanted.dtype:
        return ops.cast(gradient, wanted.dtype)
    if not _SPARSE[kind] and (layout is None or gradient.layout is layout):
        wanted.seen = signature
    return gradient


def _check_shape(gradient: Any, variable: Any, shape: tuple[int, ...]) -> None:
    if getattr(gradient.shape, "rank", 0) is None:  # a traced TensorFlow step may not know it
        return
    given = tuple(gradient.shape)
    if len(given) != len(shape) or any(
        n not in (None, m) for n, m in zip(given, shape, strict=True)
    ):
        raise ValueError(
            "A gradient must have the shape of its variable: another would be broadcast. Received: "
            f"a gradient of shape {given} for {path_of(variable)}, which has shape {shape}. Give "
            "gradients and variables in one order."
        )


@functools.cache
def _dtype_name(dtype: Any) -> str:
    return str(keras.backend.standardize_dtype(dtype))
