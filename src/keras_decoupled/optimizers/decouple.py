"""`decouple`: independent weight decay for any Keras optimizer, a user's own too."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.arguments import KERAS_ARGUMENTS, Shared
from keras_decoupled.core.optimizer import PUBLIC, Decoupled
from keras_decoupled.core.parts import refuse_names
from keras_decoupled.optimizers.adamw import AdamW
from keras_decoupled.optimizers.muon import Muon
from keras_decoupled.optimizers.ready_made import passes_all_on
from keras_decoupled.optimizers.sgdw import SGDW
from keras_decoupled.optimizers.stock import DECOUPLED, Stock
from keras_decoupled.optimizers.stock_settings import OWN_DECAYS, parameters_of

_ACCUMULATES = (
    "it computes the weight anew from its accumulators at every update, so a decay would be lost "
    "or counted twice"
)
_WRAPS = "it wraps another optimizer. Wrap a decoupled one in it"
_REFUSED = {
    "Ftrl": _ACCUMULATES,
    "ScheduleFreeAdamW": _ACCUMULATES,
    "LossScaleOptimizer": _WRAPS,
    "MultiOptimizer": _WRAPS,
}
DECOUPLED |= {
    keras.optimizers.Adam: AdamW,
    keras.optimizers.AdamW: AdamW,
    keras.optimizers.SGD: SGDW,
    keras.optimizers.Muon: Muon,
}


def decouple(optimizer_class: type[keras.Optimizer]) -> type[keras.Optimizer]:
    r"""Return a Keras optimizer class with independent weight decay.

        θ ← θ − u − η·(l2·θ + l1·sign θ),   u = θ − stock(θ; g, rate η·α·m_v)

    with θ on the right the value before the update, g the gradient, η = (learning rate now)/α,
    m_v the variable's learning-rate multiplier and (l1, l2) its decay. The class takes the
    stock class's arguments in their order, and by keyword the arguments that all optimizers of this
    package share.

    `Adam` and `AdamW` give `keras_decoupled.AdamW`, `SGD` gives `SGDW`, and `Muon` gives
    `keras_decoupled.Muon`: these take the arguments of our classes.
    `Nadam` gives the step of Keras' Nadam, which is `NadamW(momentum_decay=1.0)`. An optimizer of
    your own works too, if its `update_step` changes the variable through `self.assign`,
    `self.assign_add` or `self.assign_sub`. Before you load a model that was saved with it, call
    `decouple` on your class again.

    Args:
        optimizer_class: a class of `keras.optimizers`, or one that is derived from
            `keras.optimizers.Optimizer`.

    Returns:
        A class derived from `optimizer_class`, the same one at every call.

    Raises:
        TypeError: `optimizer_class` is not such a class.
        ValueError: the class cannot be decoupled. `Ftrl` and `ScheduleFreeAdamW` recompute the
            weight from their accumulators; `LossScaleOptimizer` and `MultiOptimizer` wrap another
            optimizer.

    Example:
    >>> import keras
    >>> from keras_decoupled import decouple
    >>> Nadam = decouple(keras.optimizers.Nadam)
    >>> optimizer = Nadam(1e-3, weight_decay=1e-4, weight_decays={"bias": 0})

    Source: Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101.
    """
    is_class = inspect.isclass(optimizer_class)
    if not is_class or not issubclass(optimizer_class, keras.optimizers.Optimizer):
        rule = "needs a class derived from `keras.optimizers.Optimizer`"
        cure = (
            "Give the class, decouple(keras.optimizers.Lion), and call the class that it returns."
        )
        refuse("decouple", Seen(repr(optimizer_class)), rule, cure, TypeError)
    if issubclass(optimizer_class, Decoupled):
        return optimizer_class
    public = getattr(keras.optimizers, optimizer_class.__name__, None)
    if public is not None and optimizer_class is type(public.__new__(public)):
        optimizer_class = public  # on torch, a stock class makes objects of another class
    for name, reason in _REFUSED.items():
        if issubclass(optimizer_class, getattr(keras.optimizers, name, ())):
            rule = f"cannot have an independent weight decay: {reason}"
            refuse(name, Seen(repr(optimizer_class)), rule, "Other stock optimizers can.")
    if optimizer_class.update_step is keras.optimizers.Optimizer.update_step:
        rule = "needs a class with an `update_step` of its own"
        cure = "Write one, or take a class of `keras.optimizers`."
        refuse("decouple", Seen(repr(optimizer_class)), rule, cure)
    if optimizer_class not in DECOUPLED:
        _make(optimizer_class, stock=optimizer_class is public)
    return DECOUPLED[optimizer_class]


def _make(base: type[Any], stock: bool) -> None:
    """Make the decoupled class.

    If a file has a class that is unknown, Keras' error shows the class's name. Here the name is
    also the cure: "decouple(…)".
    """
    registered = keras.saving.get_registered_name(base).replace(">", ".")
    if not stock and hasattr(sys.modules["keras_decoupled"], registered):
        rule = "is the name of an optimizer of this package, and a file knows a class by its name"
        cure = "Register your class under a package of your own: "
        cure += '@keras.saving.register_keras_serializable(package="mine").'
        refuse(registered, Seen(repr(base)), rule, cure)
    own = (cls for cls in base.__mro__ if cls.__module__.split(".")[0] != "keras")
    names = {name for cls in own for name in vars(cls)}
    taken = {name for name in names if name in PUBLIC or name.startswith("_kd")}
    if taken:
        refuse_names(base, taken)

    def initialize(*args: Any, **kwargs: Any) -> None: ...

    parameters, inherited = parameters_of(base)
    initialize.__signature__ = _signature(base, parameters)  # type: ignore[attr-defined]
    name = base.__name__ if stock else f"decouple({base.__name__})"
    text = f"""`{base.__name__}` with independent weight decay.

        θ ← θ − u − η·(l2·θ + l1·sign θ),   u = θ − {base.__name__}(θ; g, rate η·α·m_v)

    with θ on the right the value before the update, g the gradient, η = (learning rate now)/α,
    m_v the variable's learning-rate multiplier and (l1, l2) its decay. The base learning
    rate α never multiplies the decay. `Decay` has other kinds of decay.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        **shared: the arguments that all optimizers share; see below.
        The other arguments are those of `{base.__name__}`:

    {inspect.getdoc(base) or "(it has no docstring)"}
    """
    constructor = passes_all_on(initialize, inherited)
    namespace = {"__init__": constructor, "__doc__": text, "__module__": __name__}
    made = type(name, (Stock, base), namespace)
    keras.saving.register_keras_serializable(package="keras_decoupled", name=registered)(made)


def _signature(base: type[Any], stock: Sequence[inspect.Parameter]) -> inspect.Signature:
    """Return the stock arguments in their order, without those that all optimizers share."""
    kinds = inspect.Parameter
    parameters: list[inspect.Parameter] = []
    positional = True
    for parameter in stock:
        if parameter.name in KERAS_ARGUMENTS or parameter.name in OWN_DECAYS[1:]:
            positional = False  # later arguments do not have the stock class's positions
            continue
        if parameter.name in Shared.__annotations__:
            rule = "must not have an argument that all optimizers of this package share"
            refuse(base.__name__, Seen(parameter.name), rule, "Give it another name.")
        kind = parameter.kind if positional else kinds.KEYWORD_ONLY
        if parameter.name == "weight_decay":
            parameter = parameter.replace(default=None)
        parameters.append(parameter.replace(kind=kind))
    names = [parameter.name for parameter in parameters]
    if "learning_rate" not in names:
        seen = Seen(f"a class that takes {names[1:]}")
        cure = "Add the argument to its __init__."
        refuse(base.__name__, seen, "must take a `learning_rate`", cure)
    if "weight_decay" not in names:
        parameters.append(kinds("weight_decay", kinds.KEYWORD_ONLY, default=None))
    return inspect.Signature([*parameters, kinds("shared", kinds.VAR_KEYWORD)])


def from_config(stock: type[Any], config: Mapping[str, Any]) -> Any:
    """Make a pickled optimizer from the stock class and the config."""
    return decouple(stock).from_config(config)


# The package exports no name for this class. Make it here, so that it is registered and its files
# can be loaded.
decouple(keras.optimizers.Nadam)
