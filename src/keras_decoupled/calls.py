"""Writes the call that makes an object: what `repr` shows of optimizers, schedules and decays."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

_MOST = 3  # entries of a dict: of a longer dict, only their number is shown
# Every optimizer also takes Keras' arguments, by `**shared`. Their defaults are read here.
_OF_KERAS = inspect.signature(keras.optimizers.SGD).parameters


def call(cls: type[Any], arguments: Mapping[str, Any]) -> str:
    """Return the call of this class with these arguments, without defaults and without `name`."""
    parameters = {**_OF_KERAS, **inspect.signature(cls).parameters}
    shown = [
        f"{name}={written(value)}"
        for name, value in arguments.items()
        if name != "name" and (name not in parameters or _other(value, parameters[name].default))
    ]
    return f"{cls.__name__}({', '.join(shown)})"


def _other(value: Any, default: Any) -> bool:
    empty = isinstance(value, list | Mapping) and not value
    return value != default and not (empty and default is None)


def written(value: Any) -> str:
    """Return an argument as code."""
    if isinstance(value, list | tuple):
        items = ", ".join(map(written, value))
        return f"[{items}]" if isinstance(value, list) else f"({items})"
    if isinstance(value, Mapping):
        entries = ", ".join(f"{key!r}: {written(entry)}" for key, entry in value.items())
        return f"{{{entries}}}" if len(value) <= _MOST else f"{{… {len(value)} entries}}"
    if isinstance(value, LearningRateSchedule):
        try:
            return call(type(value), value.get_config())
        except NotImplementedError:  # Keras does not ask for one, if nothing is saved
            return f"{type(value).__name__}(…)"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value)
