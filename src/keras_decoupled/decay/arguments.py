"""Reading what users give: a decay in any of its forms, and dicts by string, layer or model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_decoupled.decay.amount_checks import checked_l1, checked_l2
from keras_decoupled.decay.kinds import Decay

# A string; a layer; or labels of variables, which a layer becomes in a config.
Key: TypeAlias = str | keras.Layer | tuple[str, ...]
_JOINT = "\n"  # joins labels where a config needs one string: no path has it


class LayerLabels(tuple[str, ...]):
    """The labels of a layer's variables, with the layer's name."""

    name = ""


def mapping(name: str, value: Any, check: Callable[[str, Any], Any]) -> dict[Key, Any]:
    """Return an argument `{key: entry}` with its keys and entries checked."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"`{name}` must be a dict from keys (parts of a variable's path) to numbers. "
            f"Received: {name}={value!r} of type {type(value).__name__}. "
            f"Write {name}={{'kernel': 1e-4}}, say."
        )
    return {
        _checked(name, key): check(f"{name}[{getattr(key, 'name', key)!r}]", entry)
        for key, entry in value.items()
    }


def as_decay(name: str, value: Any) -> Decay:
    """Return the decay of an argument: a number, a schedule, a pair (l1, l2), a `Decay` or its dict."""
    if isinstance(value, Decay):
        return value
    if isinstance(value, Mapping):
        fields = {field.name for field in dataclasses.fields(Decay)}
        if not value or not value.keys() <= fields:
            raise ValueError(
                f"`{name}` must be a decay, and a dict has the fields of `Decay`: "
                f"{', '.join(sorted(fields))}. Received: {dict(value)!r:.300}. Write Decay(...)."
            )
        return Decay(**value)
    if not isinstance(value, tuple | list):
        return Decay(checked_l2(name, value))
    if len(value) != 2:
        raise ValueError(
            f"`{name}` must be a number l2, a pair (l1, l2) or a `Decay`. Received: {value!r}. "
            "Write (l1, 0) for l1 alone."
        )
    l1, l2 = value
    return Decay(checked_l2(name, l2), checked_l1(name, l1))


def _checked(name: str, key: Any) -> Key:
    if isinstance(key, keras.Layer):
        if not key.weights:
            raise ValueError(
                f"A layer that is a key of `{name}` must be built and have weights. Received: "
                f"{key!r}. Build the model first: model.build(input_shape), or call it once."
            )
        return key
    if not isinstance(key, str):
        raise TypeError(
            f"Each key of `{name}` must be a string (a variable's path or a part of it), a layer "
            f"or a model. Received: {key!r}. Take `variable.path`."
        )
    return tuple(key.removesuffix(_JOINT).split(_JOINT)) if _JOINT in key else key


def as_labels(
    rules: Mapping[Key, Any],
    label: Mapping[Any, str],
    key_of: Callable[[Any], Any],
    argument: str,
    strict: bool = True,
) -> dict[str | tuple[str, ...], Any]:
    """Return the rules with each layer replaced by the labels of its variables.

    Args:
        rules: `{key: entry}` of the argument.
        label: the label of each variable, by Keras' identity of it.
        key_of: gives that identity.
        argument: the argument's name, for the message.
        strict: whether a layer that has none of these variables is an error. One that has frozen
            variables never is: they wait for a later build.
    """
    found: dict[str | tuple[str, ...], Any] = {}
    for key, entry in rules.items():
        if isinstance(key, keras.Layer):
            hits = LayerLabels(label[key_of(v)] for v in key.weights if key_of(v) in label)
            hits.name = key.name
            if strict and not hits and all(v.trainable for v in key.weights):
                raise ValueError(
                    f"A layer that is a key of `{argument}` must have variables that the optimizer "
                    f"trains. Received: the layer {key.name!r}, which has none of them. Take a "
                    "layer of the model that is trained, or leave this key out."
                )
            key = hits
        found.pop(key, None)  # a key that is given twice stands where it was given last
        found[key] = entry
    return found


def after_load(
    rules: Mapping[str | tuple[str, ...], Any], names: Sequence[str]
) -> dict[str | tuple[str, ...], Any]:
    """Return the rules with whole paths as a load leaves them: without leading components."""
    known = set(names)

    def shortened(path: str) -> str:
        tails = (path.split("/", i)[-1] for i in range(path.count("/") + 1))
        return next((tail for tail in tails if tail in known), path)

    return {
        tuple(map(shortened, key)) if isinstance(key, tuple) else shortened(key): entry
        for key, entry in rules.items()
    }


def shown(key: str | tuple[str, ...]) -> str:
    """Return a key as a user knows it: a layer's name, else what its variables' paths have in common."""
    if isinstance(key, str):
        return key
    paths = [label.split("/") for label in key]
    common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return getattr(key, "name", "") or "/".join(common) or ", ".join(key)


def key_to_config(key: Key) -> str:
    """Return a key as the string that `mapping` reads."""
    if isinstance(key, keras.Layer):
        key = tuple(v.path for v in key.weights)
    return _JOINT.join(key) + _JOINT if isinstance(key, tuple) else key
