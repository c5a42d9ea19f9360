"""Decays from a model's L1/L2 regularizers, and the removal of those penalties from its loss.

A Keras penalty is in two places. `variable.regularizer` makes `model.losses`; an attribute of a
layer (`layer.kernel_regularizer`) goes into `get_config()`, and so brings the penalty back with the
next `load_model`. Removing a penalty sets both to None, and keeps (l1, l2) on the variable. The
regularizer object is never changed: it belongs to the user, and other models may share it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_decoupled import checks
from keras_decoupled.paths.match import labels

# Exact types: a subclass computes something else, and (l1, l2) would not say what.
_KINDS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
Penalty: TypeAlias = tuple[float, float]  # (l1, l2)


def get_weight_decays(model: keras.Model, zero_penalties: bool = False) -> dict[str, Penalty]:
    """Return the L1 and L2 factors of a model's weight regularizers.

    A penalty that was removed earlier is found again, for as long as the model object lives. A
    regularizer of another kind, a subclass of the three included, is left in place, with a warning.

    Args:
        model: a built `keras.Model`.
        zero_penalties: also remove the penalties from the loss, those of frozen variables included.
            Call this before `model.compile`: a training function keeps the loss it was compiled
            with. The penalties stay out after saving and loading. Activity regularizers stay. A
            layer that two models share loses its penalty in both. A layer that makes its
            regularizer itself (`add_weight(regularizer=L2(1e-4))`) makes it again when it is
            loaded; loaded with the model, this package's optimizers remove it again.

    Returns:
        `{variable.path: (l1, l2)}` in the order of `model.trainable_variables`, for each variable
        whose regularizer is `L1`, `L2` or `L1L2`. Further variables of a path are "path#2" and so on.

    Example:
        >>> import keras
        >>> from keras_decoupled import get_weight_decays
        >>> head = keras.layers.Dense(2, kernel_regularizer="l2", name="head")
        >>> model = keras.Sequential([keras.Input((4,)), head], name="net")
        >>> get_weight_decays(model)
        {'net/head/kernel': (0.0, 0.01)}
    """
    _check_model(model)
    cure = "False leaves the penalties in the loss."
    zero_penalties = checks.flag("zero_penalties", zero_penalties, cure=cure)
    variables = model.trainable_variables
    decays, others = {}, []
    for label, variable in zip(labels([v.path for v in variables]), variables, strict=True):
        penalty = read_penalty(variable)
        if penalty is not None:
            decays[label] = penalty
        elif variable.regularizer is not None:
            name = getattr(variable.regularizer, "__name__", type(variable.regularizer).__name__)
            others.append(f"{label} ({name})")
    if others:
        warnings.warn(
            "Only regularizers that are exactly L1, L2 or L1L2 can become weight decay. These stay "
            f"in the loss: {', '.join(others)}. To decay these variables instead, build their "
            "layers without regularizers and name the variables in `weight_decays`.",
            UserWarning,
            stacklevel=2,
        )
    if zero_penalties:
        remove_penalties(model)
    return decays


def fill_dict_in_order(wd_dict: Mapping[str, Any], values: Iterable[Any]) -> dict[str, Any]:
    """Return a new dict with the keys of `wd_dict` and, in their order, the decays in `values`.

    Args:
        wd_dict: what `get_weight_decays` returned; it is not changed.
        values: one `(l1, l2)`, or one number l2, for each key.

    Example:
        >>> from keras_decoupled import fill_dict_in_order
        >>> decays = {"lstm/kernel": (0.0, 0.0), "lstm/bias": (0.0, 0.0)}
        >>> fill_dict_in_order(decays, [(0, 1e-4), (1e-6, 0)])
        {'lstm/kernel': (0.0, 0.0001), 'lstm/bias': (1e-06, 0.0)}
    """
    if not isinstance(wd_dict, Mapping):
        raise TypeError(
            f"`wd_dict` must be a dict from get_weight_decays(model). Received: wd_dict={wd_dict!r}."
        )
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(
            "`values` must be a list, with one (l1, l2) for each key of `wd_dict`, in order. "
            f"Received: values={values!r}."
        )
    values = list(values)
    if len(values) != len(wd_dict):
        raise ValueError(
            f"`values` must hold one (l1, l2) for each of the {len(wd_dict)} keys of `wd_dict`. "
            f"Received: {len(values)} values. The keys are {list(wd_dict)}; (0, 0) is no decay."
        )
    return {key: _decay(f"values[{i}]", values[i]) for i, key in enumerate(wd_dict)}


def read_penalty(variable: Any) -> Penalty | None:
    """Return (l1, l2) of a variable's L1, L2 or L1L2 regularizer, also of one that was removed."""
    # getattr: a raw tf.Variable has no regularizer.
    regularizer = getattr(variable, "regularizer", None)
    if regularizer is None:
        return getattr(variable, "_keras_decoupled_penalty", None)
    return _factors(regularizer) if type(regularizer) in _KINDS else None


def remove_penalty(variable: Any) -> None:
    """Remove an L1, L2 or L1L2 penalty from a variable, and keep its factors there."""
    regularizer = getattr(variable, "regularizer", None)
    if type(regularizer) in _KINDS:
        variable._keras_decoupled_penalty = _factors(regularizer)
        variable.regularizer = None


def remove_penalties(model: keras.Model) -> None:
    """Remove the L1, L2 and L1L2 penalties from a model's variables and from its layers' configs."""
    _check_model(model)
    before = {id(v): v.regularizer for v in model.variables}
    for variable in model.variables:
        remove_penalty(variable)
    for layer in _layers(model):
        without = [v for v in layer.variables if hasattr(v, "_keras_decoupled_penalty")]
        objects = {id(before.get(id(v))) for v in without}
        penalties = {v._keras_decoupled_penalty for v in without}
        emptied = {}
        # vars: `LSTM.kernel_regularizer` is a property, the attribute is its cell's.
        for name, value in list(vars(layer).items()):
            if type(value) not in _KINDS or name.endswith("activity_regularizer"):
                continue
            # Empty only the object itself, under any name, or a copy of it, which a layer may hand
            # to its sublayers. Anything else may be a penalty that the layer adds in `call`.
            is_copy = name.endswith("_regularizer") and _factors(value) in penalties
            if is_copy or id(value) in objects:
                emptied[name] = value
                setattr(layer, name, None)
        if emptied:
            try:
                layer.get_config()
            except Exception:  # it reads `self.regularizer.l2`, say, and needs an object there
                for name, value in emptied.items():
                    setattr(layer, name, type(value)(0.0))


def _layers(model: keras.Model) -> list[keras.Layer]:
    """Return the model and every layer inside it; not every layer with sublayers has `layers`."""
    stack: list[Any] = [model]
    seen: dict[int, Any] = {}
    while stack:
        item = stack.pop()
        if id(item) in seen or not isinstance(item, keras.Layer | dict | list | tuple | set):
            continue
        seen[id(item)] = item
        inside = vars(item) if isinstance(item, keras.Layer) else item
        stack.extend(inside.values() if isinstance(inside, dict) else inside)
    return [item for item in seen.values() if isinstance(item, keras.Layer)]


def _factors(regularizer: Any) -> Penalty:
    config = regularizer.get_config()  # floats; the attribute of L1 is a tensor
    l1, l2 = float(config.get("l1", 0.0)), float(config.get("l2", 0.0))
    if isinstance(regularizer, keras.regularizers.L1):
        # Keras keeps this one in float32: 0.1 is meant where 0.10000000149 stands.
        l1 = float(str(np.float32(l1)))
    return l1, l2


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: model={model!r} of type "
            f"{type(model).__name__}. Give the built model whose regularizers are meant."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built; before that it has no variables. Received: the unbuilt model "
            f"{model.name!r}. Call model.build(input_shape), or pass data through it once."
        )


def _decay(name: str, value: Any) -> float | Penalty:
    cure = "It is a fraction of the weight removed per update; (0, 0) is no decay."
    if not isinstance(value, list | tuple):
        return checks.real(name, value, minimum=0.0, cure=f"Give a pair (l1, l2). {cure}")
    if len(value) != 2:
        raise ValueError(
            f"`{name}` must be a pair (l1, l2), or a number l2. Received: {name}={value!r}. {cure}"
        )
    l1, l2 = (checks.real(f"{name}[{i}]", x, minimum=0.0, cure=cure) for i, x in enumerate(value))
    return l1, l2
