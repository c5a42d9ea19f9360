"""Decays from a model's L1/L2 regularizers, and taking those penalties out of its loss.

A Keras penalty sits in two places. `variable.regularizer` makes `model.losses`; an attribute of a
layer (`layer.kernel_regularizer`) goes into `get_config()`, so it brings the penalty back with the
next `load_model`. Taking a penalty out empties both, and remembers (l1, l2) on the variable. The
regularizer object is never changed: it belongs to the user, and other models may share it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_decoupled import checks
from keras_decoupled.paths.match import labels

# Exact types: a subclass computes something else, and (l1, l2) would not say what.
_KINDS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


def get_weight_decays(
    model: keras.Model, zero_penalties: bool = False
) -> dict[str, tuple[float, float]]:
    """Return the L1 and L2 factors of a model's weight regularizers.

    A penalty that was taken out earlier is found again, for as long as the model object lives. A
    regularizer of another kind, a subclass of the three included, is left in place, with a warning.

    Args:
        model: a built `keras.Model`.
        zero_penalties: also take the penalties out of the loss, those of frozen variables included.
            They stay out after saving and loading, and no layer's `get_config()` shows them;
            activity regularizers and your regularizer objects stay as they are. A layer that two
            models share loses its penalty in both. A training function compiled earlier keeps the
            old loss, so call this before `model.compile`. A layer that makes its regularizer
            itself (`add_weight(regularizer=L2(1e-4))`) makes it again when it is loaded; loaded
            together with the model, this package's optimizers take it out again.

    Returns:
        `{variable.path: (l1, l2)}` in the order of `model.trainable_variables`, for each variable
        whose regularizer is `L1`, `L2` or `L1L2`, factors of 0 included. `L2(0.01)` gives
        `(0.0, 0.01)`.
        Of variables that share a path the later ones are "path#2", "path#3".

    Raises:
        TypeError: `model` is no `keras.Model`.
        ValueError: `model` is not built.

    Example:
        >>> head = keras.layers.Dense(2, kernel_regularizer="l2", name="head")
        >>> model = keras.Sequential([keras.Input((4,)), head], name="net")
        >>> get_weight_decays(model)
        {'net/head/kernel': (0.0, 0.01)}
    """
    _check_model(model)
    variables = model.trainable_variables
    decays, others = {}, []
    for label, variable in zip(labels([v.path for v in variables]), variables, strict=True):
        penalty = read_penalty(variable)
        if penalty is not None:
            decays[label] = penalty
        elif variable.regularizer is not None:
            others.append(f"{label} ({_name(variable.regularizer)})")
    if others:
        warnings.warn(
            "Only regularizers that are exactly L1, L2 or L1L2 can become weight decay. These stay "
            f"in the loss: {', '.join(others)}. To decay these variables instead, build their "
            "layers without regularizers and name the variables in `weight_decays`.",
            UserWarning,
            stacklevel=2,
        )
    if zero_penalties:
        take_penalties(model)
    return decays


def fill_dict_in_order(wd_dict: Mapping[str, Any], values: Iterable[Any]) -> dict[str, Any]:
    """Return a new dict with the keys of `wd_dict` and, in their order, the decays in `values`.

    Args:
        wd_dict: what `get_weight_decays` returned; it is not changed.
        values: one `(l1, l2)`, or one number l2, for each key.

    Raises:
        TypeError: `wd_dict` is no dict, `values` is no list, or a decay is no number.
        ValueError: `values` has another length, or a decay is negative or not finite.

    Example:
        >>> decays = {"lstm/kernel": (0.0, 0.0), "lstm/bias": (0.0, 0.0)}
        >>> fill_dict_in_order(decays, [(0, 1e-4), (1e-6, 0)])
        {'lstm/kernel': (0.0, 0.0001), 'lstm/bias': (1e-06, 0.0)}
    """
    if not isinstance(wd_dict, Mapping):
        raise TypeError(
            "`wd_dict` must be a dict. "
            f"Received: wd_dict={wd_dict!r}. Take it from get_weight_decays(model)."
        )
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(
            "`values` must be a list. "
            f"Received: values={values!r}. Give one (l1, l2) for each key of `wd_dict`, in order."
        )
    values = list(values)
    if len(values) != len(wd_dict):
        raise ValueError(
            f"`values` must hold one (l1, l2) for each of the {len(wd_dict)} keys of `wd_dict`. "
            f"Received: {len(values)} values. The keys, in order, are {list(wd_dict)}; "
            "(0, 0) is no decay."
        )
    return {key: _decay(f"values[{i}]", values[i]) for i, key in enumerate(wd_dict)}


def read_penalty(variable: Any) -> tuple[float, float] | None:
    """Return (l1, l2) of a variable's regularizer, or of the one that was taken out of it.

    None where there is neither, and where the variable has a regularizer of another kind.
    """
    # getattr: an optimizer may be built on a raw tf.Variable, which has no regularizer.
    regularizer = getattr(variable, "regularizer", None)
    if regularizer is None:
        return getattr(variable, "_keras_decoupled_penalty", None)
    return _factors(regularizer) if type(regularizer) in _KINDS else None


def take_penalty(variable: Any) -> None:
    """Take an L1, L2 or L1L2 penalty out of a variable, and remember it there."""
    regularizer = getattr(variable, "regularizer", None)
    if type(regularizer) in _KINDS:
        variable._keras_decoupled_penalty = _factors(regularizer)
        variable.regularizer = None


def take_penalties(model: keras.Model) -> None:
    """Take the L1, L2 and L1L2 penalties out of a model's variables and of what its layers save."""
    _check_model(model)
    regularizers = {id(v): v.regularizer for v in model.variables}  # as they were
    for variable in model.variables:
        take_penalty(variable)
    for layer in _layers(model):
        taken = [v for v in layer.variables if hasattr(v, "_keras_decoupled_penalty")]
        objects = {id(regularizers.get(id(v))) for v in taken}
        penalties = {v._keras_decoupled_penalty for v in taken}
        emptied = {}
        # vars: `LSTM.kernel_regularizer` is a property, the attribute is its cell's.
        for name, value in list(vars(layer).items()):
            if type(value) not in _KINDS or name.endswith("activity_regularizer"):
                continue
            # The very object, under any name; or a copy of it, as of a layer that hands its
            # sublayers copies. Anything else may be a penalty that the layer adds in `call`,
            # which would be lost.
            copied = name.endswith("_regularizer") and _factors(value) in penalties
            if copied or id(value) in objects:
                emptied[name] = value
                setattr(layer, name, None)
        if emptied and not _has_config(layer):
            # It reads `self.regularizer.l2`, say, and could not be saved with None.
            for name, value in emptied.items():
                setattr(layer, name, type(value)(0.0))


def _layers(model: keras.Model) -> Iterator[keras.Layer]:
    """The model and every layer inside it, each once.

    `model.layers` has one level only, and a layer that is no model (a wrapper, an RNN, an
    attention) has no such property. So this looks where Keras finds sublayers: in the attributes
    of a layer, and in lists, tuples, dicts and sets there.
    """
    stack: list[Any] = [model]
    seen: set[int] = set()
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        if isinstance(item, keras.Layer):
            stack.extend(vars(item).values())
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set):
            stack.extend(item)
        else:
            continue
        seen.add(id(item))
        if isinstance(item, keras.Layer):
            yield item


def _factors(regularizer: Any) -> tuple[float, float]:
    config = regularizer.get_config()  # floats; the attribute of L1 is a tensor
    l1, l2 = float(config.get("l1", 0.0)), float(config.get("l2", 0.0))
    if isinstance(regularizer, keras.regularizers.L1):
        # Keras keeps this one in float32: 0.1 is meant where 0.10000000149 stands.
        l1 = float(str(np.float32(l1)))
    return l1, l2


def _has_config(layer: keras.Layer) -> bool:
    try:
        layer.get_config()
    except Exception:
        return False
    return True


def _name(regularizer: Any) -> str:
    return getattr(regularizer, "__name__", type(regularizer).__name__)


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: model={model!r} (of type "
            f"{type(model).__name__}). Give the built model whose regularizers are meant."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built; before that it has no variables. Received: the unbuilt model "
            f"{model.name!r}. Call model.build(input_shape), or pass data through it once."
        )


def _decay(name: str, value: Any) -> float | tuple[float, float]:
    """`value`, a number l2 or a pair (l1, l2), in floats."""
    cure = "It is a fraction of the weight removed per update; (0, 0) is no decay."
    if not isinstance(value, list | tuple):
        return checks.real(name, value, minimum=0.0, cure=f"Give a pair (l1, l2). {cure}")
    if len(value) != 2:
        raise ValueError(
            f"`{name}` must be a pair (l1, l2), or a number l2. Received: {name}={value!r}. {cure}"
        )
    l1, l2 = (checks.real(f"{name}[{i}]", x, minimum=0.0, cure=cure) for i, x in enumerate(value))
    return l1, l2
