"""Decays from a model's L1/L2 regularizers, and the removal of those penalties from its loss.

A Keras penalty is in two places. `variable.regularizer` makes `model.losses`. An attribute of a
layer (`layer.kernel_regularizer`) goes into `get_config()`, so it brings the penalty back with the
next `load_model`. Removing a penalty sets both to None and saves (l1, l2) on the variable. The
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

# Exactly these types: a subclass may compute something else than (l1, l2).
_KINDS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)
Penalty: TypeAlias = tuple[float, float]  # (l1, l2)


def get_weight_decays(model: keras.Model, zero_penalties: bool = False) -> dict[str, Penalty]:
    """Return the L1 and L2 factors of a model's weight regularizers.

    Factors that were removed earlier are listed again, as long as the model object lives. Other
    regularizers, also subclasses of these three, stay in the loss, with a warning.

    Args:
        model: a built `keras.Model`.
        zero_penalties: remove the penalties from the loss, those of frozen variables too.
            Call this before `model.compile`: a training function keeps the loss it was compiled
            with. The penalties stay out after saving and loading. Activity regularizers stay. A
            layer that two models share loses its penalty in both. A layer that makes its own
            regularizer (`add_weight(regularizer=L2(1e-4))`) makes it again when it is loaded. An
            optimizer of this package that is loaded with the model then removes it again.
            Defaults to `False`.

    Returns:
        `{variable.path: (l1, l2)}` in the order of `model.trainable_variables`, for each variable
        whose regularizer is `L1`, `L2` or `L1L2`. If variables share a path, the later ones are
        "path#2", "path#3".

    Raises:
        TypeError: `model` is not a `keras.Model`, or `zero_penalties` is not a bool.
        ValueError: the model is not built.

    Example:
    >>> import keras
    >>> from keras_decoupled import get_weight_decays
    >>> head = keras.layers.Dense(2, kernel_regularizer="l2", name="head")
    >>> model = keras.Sequential([keras.Input((4,)), head], name="net")
    >>> get_weight_decays(model)
    {'net/head/kernel': (0.0, 0.01)}
    """
    check_model(model)
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
            "Only regularizers that are exactly L1, L2 or L1L2 can become a weight decay. These "
            f"stay in the loss: {', '.join(others)}. To decay these variables instead, build their "
            "layers without regularizers and name the variables in `weight_decays`.",
            UserWarning,
            stacklevel=2,
        )
    if zero_penalties:
        remove_penalties(model)
    return decays


def fill_dict_in_order(
    wd_dict: Mapping[str, tuple[float, float]], values: Iterable[float | tuple[float, float]]
) -> dict[str, float | tuple[float, float]]:
    """Return a new dict: the keys of `wd_dict` with the decays in `values`, in order.

    Args:
        wd_dict: what `get_weight_decays` returned. It is not changed.
        values: a pair `(l1, l2)` or a number l2 for each key; ≥ 0. l2 is the fraction of the weight
            removed per update at η = 1.

    Raises:
        TypeError: `wd_dict` is not a dict, or `values` is not a list of numbers and pairs.
        ValueError: `values` and `wd_dict` differ in length, or a number is negative or not finite.

    Example:
    >>> from keras_decoupled import fill_dict_in_order
    >>> decays = {"lstm/kernel": (0.0, 0.0), "lstm/bias": (0.0, 0.0)}
    >>> fill_dict_in_order(decays, [(0, 1e-4), (1e-6, 0)])
    {'lstm/kernel': (0.0, 0.0001), 'lstm/bias': (1e-06, 0.0)}
    """
    if not isinstance(wd_dict, Mapping):
        cure = "Give what get_weight_decays(model) returned."
        checks.refuse("wd_dict", wd_dict, "must be a dict", cure, TypeError)
    rule = f"must be a list of one (l1, l2) for each of the {len(wd_dict)} keys of `wd_dict`"
    cure = f"The keys are {list(wd_dict)}; (0, 0) is no decay."
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        checks.refuse("values", values, rule, cure, TypeError)
    values = list(values)
    if len(values) != len(wd_dict):
        checks.refuse("values", checks.Seen(f"{len(values)} values"), rule, cure)
    return {key: _decay(f"values[{i}]", values[i]) for i, key in enumerate(wd_dict)}


def _decay(name: str, value: Any) -> float | Penalty:
    cure = "It is a fraction of the weight removed per update; (0, 0) is no decay."
    if not isinstance(value, list | tuple):
        return checks.real(name, value, minimum=0.0, cure=f"Give a pair (l1, l2). {cure}")
    if len(value) != 2:
        checks.refuse(name, value, "must be a pair (l1, l2), or a number l2", cure)
    l1, l2 = (checks.real(f"{name}[{i}]", x, minimum=0.0, cure=cure) for i, x in enumerate(value))
    return l1, l2


def read_penalty(variable: Any) -> Penalty | None:
    """Return (l1, l2) of a variable's L1, L2 or L1L2 regularizer, also if it was removed."""
    regularizer = getattr(variable, "regularizer", None)  # a raw tf.Variable has none
    if regularizer is None:
        return getattr(variable, "_keras_decoupled_penalty", None)
    return _factors(regularizer)


def in_loss(variable: Any) -> bool:
    """Tell whether an L1, L2 or L1L2 penalty of the variable is still in the loss."""
    return any(_factors(getattr(variable, "regularizer", None)) or ())


def remove_penalty(variable: Any) -> None:
    """Remove an L1, L2 or L1L2 penalty from a variable, and save its factors there."""
    penalty = _factors(getattr(variable, "regularizer", None))
    if penalty is not None:
        variable._keras_decoupled_penalty, variable.regularizer = penalty, None


def remove_penalties(model: keras.Model) -> None:
    """Remove the L1, L2 and L1L2 penalties from a model's variables and its layers' configs."""
    check_model(model)
    before = {id(v): v.regularizer for v in model.variables}
    for variable in model.variables:
        remove_penalty(variable)
    for layer in all_layers(model):
        without = [v for v in layer.variables if hasattr(v, "_keras_decoupled_penalty")]
        objects = {id(before.get(id(v))) for v in without}
        penalties = {v._keras_decoupled_penalty for v in without}
        emptied = {}
        # vars: `LSTM.kernel_regularizer` is a property, which reads its cell's attribute.
        for name, value in list(vars(layer).items()):
            if type(value) not in _KINDS or name.endswith("activity_regularizer"):
                continue
            # Remove the variable's regularizer under any name, and any copy that the layer may give
            # to its sublayers. Another regularizer may be a penalty that the layer adds in `call`.
            is_copy = name.endswith("_regularizer") and _factors(value) in penalties
            if is_copy or id(value) in objects:
                emptied[name] = value
                setattr(layer, name, None)
        if emptied:
            try:
                layer.get_config()
            except (AttributeError, TypeError, NotImplementedError):
                # `get_config` may read `self.regularizer.l2`: then it needs an object there.
                for name, value in emptied.items():
                    setattr(layer, name, type(value)(0.0))


def check_model(model: Any, name: str = "model") -> None:
    """Raise if this is not a model, or not a built one."""
    if not isinstance(model, keras.Model):
        cure = "Give the built model that the optimizer trains."
        checks.refuse(name, model, "must be a keras.Model", cure, TypeError)
    if not model.built:
        received = checks.Seen(f"the unbuilt model {model.name!r}")
        cure = "Call model.build(input_shape), or pass data through it once."
        checks.refuse(name, received, "must be built: before that it has no variables", cure)


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the model and every layer inside it, also layers that no `layers` attribute lists."""
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


def _factors(regularizer: Any) -> Penalty | None:
    if type(regularizer) not in _KINDS:
        return None
    config = regularizer.get_config()  # floats; the attribute of L1 is a tensor
    l1, l2 = float(config.get("l1", 0.0)), float(config.get("l2", 0.0))
    if isinstance(regularizer, keras.regularizers.L1):
        l1 = float(str(np.float32(l1)))  # Keras has rounded it to float32: 0.10000000149 is 0.1
    return l1, l2
