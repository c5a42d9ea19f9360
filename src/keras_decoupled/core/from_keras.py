"""`from_keras`: an optimizer that continues the training of one of `keras.optimizers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.keras_hooks import Inside
from keras_decoupled.core.numbers import copied
from keras_decoupled.core.settings import as_number
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.rows import Row
from keras_decoupled.paths.match import labels, path_of
from keras_decoupled.saving.state import recounted
from keras_decoupled.schedule.rates import make_rate

_DECAYS = ("weight_decay", "adam_weight_decay")
_RULES = {"weight_decays", "lr_multipliers", "decay_vectors", "model", "matrix_axes"}
_PARTS = {"exclude_layers", "exclude_embeddings"}  # of Muon


def continued(cls: Any, optimizer: Any, changes: Mapping[str, Any]) -> Any:
    """Return an optimizer of this class that continues `optimizer`; see `Decoupled.from_keras`."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return _loss_scaled(cls, optimizer, changes)
    if type(optimizer) is not cls:
        _check_class(cls, optimizer)
    for name in _PARTS & changes.keys() if optimizer.built else ():
        rule = "cannot be changed when the optimizer is built: each variable keeps its part"
        refuse(name, changes[name], rule, "Leave it out, or make a new optimizer.")
    if type(optimizer) is cls:
        return _with_changes(optimizer, changes)
    stock = Inside(optimizer)
    arguments = optimizer.get_config()
    for name in ("learning_rate", *_DECAYS):
        arguments.pop(name, None)
    rate = stock.rate
    if isinstance(rate, keras.Variable):
        rate = float(str(np.float32(as_number(rate))))
    elif arguments.get("gradient_accumulation_steps") and "learning_rate" not in changes:
        steps = arguments["gradient_accumulation_steps"]
        refuse(
            "learning_rate",
            Seen(f"learning_rate={rate!r}, gradient_accumulation_steps={steps}"),
            "cannot be continued if it is a schedule and gradients accumulate: a schedule counts "
            "micro-batches in keras.optimizers, and weight updates here",
            "Pass learning_rate= a schedule that counts weight updates.",
        )
    if rate == 0 and "base_learning_rate" not in changes:
        rule = "of 0 cannot be continued without `base_learning_rate`: the decay is λ = α·w"
        refuse("learning_rate", rate, rule, "Pass base_learning_rate= the rate it began with.")
    alpha = make_rate(rate, changes.get("base_learning_rate"))[0].base
    arguments |= {
        "learning_rate": rate,
        "base_learning_rate": alpha,
        **cls._kd_algorithm.twin_arguments,
    }
    if "learning_rate" in changes:
        del arguments["base_learning_rate"]
    excluded = _excluded(stock)
    _carry_decay(stock, alpha, arguments, changes)
    new = cls(**arguments | dict(changes))
    if excluded:
        new.exclude_from_weight_decay(var_list=excluded)
    if optimizer.built:
        names = labels([path_of(v) for v in stock.variables])
        parts = list(map(stock.part, stock.variables))
        new._kd.registry.rules.before = {
            name: Row(name, tuple(v.shape), Decay(), part=part, axes="rc" * (part == "muon"))
            for name, v, part in zip(names, stock.variables, parts, strict=True)
            if part
        }
        new.build(stock.variables)
        _carry_state(stock, new)
        _go_to(new, changes)
    return new


def _go_to(new: Any, changes: Mapping[str, Any]) -> None:
    """Go to the position of the first update, if the user gives one."""
    if "t_cur" in changes:
        new.restart(changes["t_cur"])


def _with_changes(optimizer: Any, changes: Mapping[str, Any]) -> Any:
    """Return one of our optimizers with other arguments, and with its state."""
    config = optimizer.get_config()
    if "learning_rate" in changes:  # the new rate is the new α; η stays as it is
        config.pop("base_learning_rate")
    if _RULES & changes.keys():  # the rules are read anew
        config["resolved"] |= {"table": [], "waiting": []}
    new = type(optimizer).from_config(config | dict(changes))
    before, rules = optimizer._kd.registry, new._kd.registry.rules
    left = (record.row for record in before.left)
    rows = (*left, *before.waiting, *before.table, *before.rows_now())
    rules.before = {row.path: row for row in rows if row}
    rules.continue_model(before.rules)
    if optimizer.built:
        store: dict[str, Any] = {}
        optimizer.save_own_variables(store)
        new.build(Inside(optimizer).variables)
        # The config has the numbers as they are now, and the changes: the state brings no others.
        numbers = list(new._kd.movable.values())
        if "base_learning_rate" in changes:
            numbers.append(new._kd.clock.rate)
        kept = [(number.variable, as_number(number.variable)) for number in numbers]
        new.load_own_variables(store)
        for variable, number in kept:
            variable.assign(number)
        _go_to(new, changes)
    return new


def _check_class(cls: Any, optimizer: Any) -> None:
    # On torch, Keras makes an object of another class than the stock class that is called.
    made = {type(twin.__new__(twin)) for twin in cls._kd_twins}
    if type(optimizer) in made.union(cls._kd_twins):
        return
    if isinstance(optimizer, keras.Model):
        rule = "needs an optimizer"
        cure = "Give it model.optimizer."
        refuse(f"{cls.__name__}.from_keras", Seen("a model"), rule, cure, TypeError)
    names = " or ".join(f"`{_public_name(twin)}`" for twin in cls._kd_twins)
    refuse(
        f"{cls.__name__}.from_keras",
        optimizer,
        f"needs an optimizer of exactly the class {names}"
        if names
        else f"cannot continue an optimizer: no class of Keras {keras.__version__} has this step",
        "For another class call decouple(that class).from_keras(optimizer).",
        TypeError,
    )


def _public_name(cls: type[Any]) -> str:
    public = getattr(keras.optimizers, cls.__name__, None) is cls
    return f"keras.optimizers.{cls.__name__}" if public else cls.__name__


def _excluded(stock: Inside) -> list[Any]:
    """Return the variables that `exclude_from_weight_decay` keeps from any decay."""
    if stock.has_exclusions and not stock.optimizer.built:
        refuse(
            "exclude_from_weight_decay()",
            Seen(f"{stock.optimizer!r}, which is not built"),
            "can be carried over only from a built optimizer",
            "Build it: optimizer.build(model.trainable_variables).",
        )
    return [variable for variable in stock.variables if not stock.decays(variable)]


def _carry_decay(
    stock: Inside, alpha: float, arguments: dict[str, Any], changes: Mapping[str, Any]
) -> None:
    """Add the decay λ = α·w to the arguments; if Muon's Adam part has another, by variable."""
    decay, of_adam = (alpha * (getattr(stock.optimizer, name, None) or 0.0) for name in _DECAYS)
    arguments["weight_decay"] = decay
    if not hasattr(stock.optimizer, "adam_weight_decay") or of_adam == decay:
        return
    if not stock.optimizer.built and "weight_decay" not in changes:
        refuse(
            "adam_weight_decay",
            Seen(f"{stock.optimizer!r}, which is not built"),
            "can be carried over only from a built optimizer, if `weight_decay` is another",
            "Build it: optimizer.build(model.trainable_variables). Or pass weight_decay= a λ.",
        )
    names = labels([path_of(v) for v in stock.variables])
    pairs = zip(names, stock.variables, strict=True)
    arguments["weight_decays"] = {name: of_adam for name, v in pairs if stock.part(v) == "adam"}


def _carry_state(stock: Inside, new: Any) -> None:
    own = Inside(new)
    steps, steps_now = ((o.gradient_accumulation_steps or 1) for o in (stock.optimizer, new))
    own.counter.assign(recounted(int(as_number(stock.counter)), steps, steps_now))
    pairs = paired(own.averages, stock.averages) + paired(own.accumulators, stock.accumulators)
    for here, there in [*pairs, *new._kd_twin_state(stock.optimizer)]:
        if here is not None and there is not None:
            here.assign(copied(there, here.dtype))


def twin_state(new: Any, stock: Any) -> list[tuple[Any, Any]]:
    """Return pairs: an optimizer variable of the algorithm, and that of its stock twin."""
    kd, pairs = new._kd, []
    for name, attribute in kd.algorithm.twin_names.items():
        own: Any = kd.registry.scalars.get(name)
        if name in kd.algorithm.slot_names(new):
            own = [record.slots.get(name) for record in kd.registry.built]
        if own is not None:  # without momentum, SGD has none
            pairs += paired(own, getattr(stock, attribute, ()))
    return pairs


def _loss_scaled(cls: Any, wrapper: Any, changes: Mapping[str, Any]) -> Any:
    inner = continued(cls, wrapper.inner_optimizer, changes)
    new = keras.optimizers.LossScaleOptimizer(
        inner,
        initial_scale=wrapper.initial_scale,
        dynamic_growth_steps=wrapper.dynamic_growth_steps,
        name=wrapper.name,
    )
    if wrapper.built:
        new.build(Inside(wrapper.inner_optimizer).variables)
        new.step_counter.assign(copied(wrapper.step_counter, new.step_counter.dtype))
        new.dynamic_scale.assign(copied(wrapper.dynamic_scale, new.dynamic_scale.dtype))
    return new


def paired(here: Any, there: Any) -> list[tuple[Any, Any]]:
    """Return pairs from two variables, or from two lists of the same length."""
    if isinstance(here, keras.Variable):
        return [(here, there)]
    return list(zip(here, there, strict=True)) if len(here) == len(there) else []
