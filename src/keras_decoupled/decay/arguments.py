"""Reads what users give: a decay in any of its forms, and dicts by string, layer or model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.decay.kinds import Decay, checked_l1, checked_l2
from keras_decoupled.paths import match

# A string, a layer, or, from a config, the labels of a layer's variables.
Key: TypeAlias = str | keras.Layer | tuple[str, ...]
Labeled: TypeAlias = dict[str | tuple[str, ...], Any]  # with labels in place of layers
_JOINT = "\n"  # between a layer's labels: a config's keys are strings. No path has it


class LayerLabels(tuple[str, ...]):
    """The labels of a layer's variables, with the layer's name."""

    name = ""


def mapping(name: str, value: Any, check: Callable[[str, Any], Any]) -> dict[Key, Any]:
    """Return the argument `{key: entry}` with its keys and entries checked."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        rule = "must be a dict from keys, which are parts of a variable's path"
        entry = "'rc'" if name == "matrix_axes" else "1e-4"
        refuse(name, value, rule, f"Write {name}={{'kernel': {entry}}}, say.", TypeError)
    return {
        _checked(name, key): check(f"{name}[{getattr(key, 'name', key)!r}]", entry)
        for key, entry in value.items()
    }


def as_decay(name: str, value: Any) -> Decay:
    """Return the decay of an argument: a number, a schedule, a pair, a `Decay` or its dict."""
    if isinstance(value, Decay):
        return value
    if isinstance(value, Mapping):
        fields = {field.name for field in dataclasses.fields(Decay)}
        if not value or not value.keys() <= fields:
            rule = (
                f"must be a decay; a dict needs the fields of `Decay`: {', '.join(sorted(fields))}"
            )
            refuse(name, value, rule, "Write Decay(...).")
        return Decay(**value)
    if not isinstance(value, tuple | list):
        return Decay(checked_l2(name, value))
    if len(value) != 2:
        rule = "must be a number l2, a pair (l1, l2) or a `Decay`"
        refuse(name, value, rule, "Write (l1, 0) for l1 alone.")
    l1, l2 = value
    return Decay(checked_l2(name, l2), checked_l1(name, l1))


def _checked(name: str, key: Any) -> Key:
    what = f"a key of `{name}`"
    if isinstance(key, keras.Layer):
        if not key.weights:
            cure = "Build the model first: model.build(input_shape), or call it once."
            refuse(what, key, "must be a layer that is built and has weights", cure)
        return key
    if not isinstance(key, str):
        rule = "must be a string (a variable's path or a part of it), a layer or a model"
        refuse(what, key, rule, "Take `variable.path`.", TypeError)
    return tuple(key.removesuffix(_JOINT).split(_JOINT)) if _JOINT in key else key


def as_labels(
    rules: Mapping[Key, Any],
    label: Mapping[Any, str],
    key_of: Callable[[Any], Any],
    argument: str,
    strict: bool = True,
) -> Labeled:
    """Return the rules with each layer replaced by the labels of its variables.

    Args:
        rules: `{key: entry}` of the argument.
        label: the label of each variable, by Keras' identity of the variable.
        key_of: returns that identity.
        argument: the argument's name, for the message.
        strict: whether a layer without any of these variables is an error. A frozen layer is
            never an error: a later build may use its rule.
    """
    found: Labeled = {}
    for key, entry in rules.items():
        if isinstance(key, keras.Layer):
            hits = LayerLabels(label[key_of(v)] for v in key.weights if key_of(v) in label)
            hits.name = key.name
            frozen = key.weights and not any(v.trainable for v in key.weights)
            if strict and not hits and not frozen:
                refuse(
                    f"a key of `{argument}`",
                    Seen(f"the layer {key.name!r}, which has none of them"),
                    "must be a layer with variables that the optimizer trains",
                    "Take a layer of the model that is trained, or leave this key out.",
                )
            key = hits
        found.pop(key, None)  # two layers may have the same labels: the later one counts
        found[key] = entry
    return found


def after_load(rules: Labeled, names: Sequence[str]) -> Labeled:
    """Return the rules with whole paths as they are after the load."""
    shortened = functools.partial(match.after_load, known=set(names))
    return {
        tuple(map(shortened, key)) if isinstance(key, tuple) else shortened(key): entry
        for key, entry in rules.items()
    }


def shown(key: Key) -> str:
    """Return a key as the user knows it: a layer by its name, or by its paths' common part."""
    name = key if isinstance(key, str) else getattr(key, "name", "")
    if name:
        return name
    paths = [label.split("/") for label in key]
    common = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    return "/".join(common) or ", ".join(key)


def key_to_config(key: Key) -> str:
    """Return a key as the string that `mapping` reads."""
    if isinstance(key, keras.Layer):
        key = tuple(v.path for v in key.weights)
    return _JOINT.join(key) + _JOINT if isinstance(key, tuple) else key
