"""Code for single backends: the same numbers in fewer passes over memory; a TensorFlow scope."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras

_ASSIGNING = ("assign", "assign_add", "assign_sub")
# A class may override these without changing the step.
_HARMLESS = ("build", "get_config", "from_config")


class StandIn(NamedTuple):
    """A tensor that a stock class updates in place of a variable."""

    value: Any
    position: int  # the variable's position in the last build


def eager() -> Any:
    """Return a scope in which tensors have values, even if TensorFlow builds in a traced step."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    from keras_decoupled.fast import tensorflow_ops  # needs TensorFlow

    return tensorflow_ops.eager()


def on_host() -> Any:
    """On torch, return an `OnHost`, which computes an update's numbers with floats; else None."""
    if keras.backend.backend() != "torch":
        return None
    from keras_decoupled.fast import torch_host_copy  # needs torch

    return torch_host_copy.OnHost()


def traces(function: Callable[..., None], numbers: Sequence[float]) -> bool:
    """Tell whether a function of these numbers can be compiled with tensors in their place.

    torch compiles nothing: there it is run with the numbers themselves.
    """
    backend = keras.backend.backend()
    try:
        if backend == "jax":
            import jax

            jax.eval_shape(function, *[jax.ShapeDtypeStruct((), "float32")] * len(numbers))
        elif backend == "tensorflow":
            from keras_decoupled.fast import tensorflow_ops  # needs TensorFlow

            tensorflow_ops.trace(function, len(numbers))
        else:
            function(*numbers)
    except Exception:  # a user's code may raise anything where it gets a tensor in place of a float
        return False
    return True


def paths_of(optimizer: Any) -> tuple[Any, Any]:
    """Return a built optimizer's fast update of all variables, and its fast step of one variable.

    Each is None if the optimizer has none. A user's derived class has them too, unless it overrides
    a method that they would skip.
    """
    backend, cls = keras.backend.backend(), type(optimizer)
    kernel, stock = optimizer._kd.algorithm.kernel, getattr(cls, "_kd_stock", None)
    mathematics = {n for n in vars(stock or object) if n[:2] != "__" and n not in _HARMLESS}
    if backend == "torch" and not _overrides(cls, ["update_step", *_ASSIGNING, *mathematics]):
        from keras_decoupled.fast import torch_update  # needs torch

        return torch_update.make(optimizer, kernel, stock), None
    if backend == "tensorflow" and kernel and not _overrides(cls, _ASSIGNING):
        from keras_decoupled.fast import tensorflow_ops  # needs TensorFlow

        if kernel in tensorflow_ops.STEPS:
            return None, tensorflow_ops.Op(optimizer, kernel)
    return None, None


def _overrides(cls: type[Any], names: Iterable[str]) -> bool:
    """Tell whether a class defines any of these below the first class of this package."""
    package = __name__.split(".")[0]
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == package:
            return False
        if not vars(base).keys().isdisjoint(names):
            return True
    return False
