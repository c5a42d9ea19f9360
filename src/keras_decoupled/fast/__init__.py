"""The same numbers in fewer passes over memory. Without this folder all still works."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras


class StandIn(NamedTuple):
    """A tensor that a stock class updates in a variable's place."""

    value: Any
    position: int  # of the variable, in the last build


def paths_of(optimizer: Any) -> tuple[Any, Any]:
    """Return what updates all variables of a built optimizer, and what steps one; None: nothing."""
    backend = keras.backend.backend()
    if backend == "torch":
        from keras_decoupled.fast import torch_update  # needs torch

        return torch_update.make(optimizer), None
    if backend == "tensorflow":
        from keras_decoupled.fast import tensorflow_ops  # needs TensorFlow

        return None, tensorflow_ops.make(optimizer)
    return None, None
