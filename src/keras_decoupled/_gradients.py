"""Gradients as the update wants them: dense tensors of one dtype."""

from __future__ import annotations

import functools
from typing import Any

import keras
from keras import ops

LOW_PRECISION = ("bfloat16", "float16")  # of such a variable all state is float32

# By type of gradient: whether it has to be made a dense tensor. Asked once, not per variable.
_SPARSE: dict[type, bool] = {}
# Types and dtypes of gradients that are fine as they are, with the dtype wanted.
_AS_IS: set[tuple[type, Any, str | None]] = set()


def dense(gradient: Any, variable: Any, dtype: str | None) -> Any:
    """Return the gradient dense, and in the type of its variable's slots.

    A sparse gradient stands for a dense one: moments and decay reach every row. Keras adds
    gradients to their accumulators as they are, so they need one dtype.
    """
    kind = type(gradient)
    known = (kind, getattr(gradient, "dtype", None), dtype)
    if known in _AS_IS or gradient is None:
        return gradient
    if getattr(variable, "overwrite_with_gradient", False):
        return gradient
    if dtype is None:  # the first update, which builds
        dtype = slot_dtype(variable)
    if kind not in _SPARSE:
        _SPARSE[kind] = not ops.is_tensor(gradient) or any(
            hasattr(kind, name) for name in ("dense_shape", "todense")
        )
    if _SPARSE[kind]:
        if hasattr(gradient, "dense_shape") and hasattr(gradient, "indices"):  # tf.IndexedSlices
            gradient = ops.scatter(
                ops.expand_dims(gradient.indices, -1), gradient.values, tuple(variable.shape)
            )
        gradient = ops.convert_to_tensor(gradient, sparse=False)
    if _dtype_name(gradient.dtype) != dtype:
        return ops.cast(gradient, dtype)
    if not _SPARSE[kind]:
        _AS_IS.add(known)
    return gradient


@functools.cache
def _dtype_name(dtype: Any) -> str:
    return str(keras.backend.standardize_dtype(dtype))


def slot_dtype(variable: Any) -> str:
    """Return the dtype of a variable's slots, and so of its gradient."""
    dtype = _dtype_name(variable.dtype)
    return "float32" if dtype in LOW_PRECISION else dtype
