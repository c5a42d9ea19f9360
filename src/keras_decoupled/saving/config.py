"""Reads a saved config, which may hold anything if it comes from a file.

`Decoupled.get_config` writes the arguments and, as `resolved`, the row that each variable got. Of
rules and rows it writes only the entries that differ from the defaults. Everything is checked
before it is used, here or by the constructor. No function is called, except a user's own callable
learning rate if the config has no `base_learning_rate`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any, NamedTuple

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.decay.arguments import as_decay
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.rows import Row, read_rows


class Resolved(NamedTuple):
    """What the arguments resolved to when the config was written."""

    exclusions: Exclusions
    table: tuple[Row, ...]  # of the variables built on
    waiting: tuple[Row, ...]  # of other variables
    paths: set[str]  # of variables that have no row
    factor: float | None  # r; None if the rate is a number, because the number is r·α already


def read_config(
    config: Any, custom_objects: Mapping[str, Any] | None, own: Collection[str]
) -> tuple[dict[str, Any], Resolved | None]:
    """Return the constructor's arguments, and the config's `resolved` part, None if it has none.

    `own` has the names of the class's own arguments that may be schedules.
    """
    checks.fields("config", config, ())
    for key in config:
        if not isinstance(key, str) or key == "self":
            cure = "Take what `get_config()` returned."
            checks.refuse("a key of the config", key, "must be the name of an argument", cure)
    arguments = dict(config)
    resolved = arguments.pop("resolved", None)
    number = _number_reader(custom_objects)
    if "weight_decay" in arguments:
        arguments["weight_decay"] = _decay(arguments["weight_decay"], number)
    decays, rate = arguments.get("weight_decays"), arguments.get("learning_rate")
    if isinstance(decays, Mapping):
        arguments["weight_decays"] = _each(decays, lambda given: _decay(given, number))
    multipliers = arguments.get("lr_multipliers")
    if isinstance(multipliers, Mapping):
        arguments["lr_multipliers"] = _each(multipliers, number)
    if isinstance(rate, Mapping):
        arguments["learning_rate"] = _learning_rate(rate, custom_objects)
    for key in own:
        if isinstance(arguments.get(key), Mapping) and "class_name" in arguments[key]:
            arguments[key] = number(arguments[key])
    if resolved is None:
        return arguments, None
    name = "config['resolved']"
    table, factor = checks.fields(name, resolved, ("table", "learning_rate_factor"))
    factor = checks.real(
        f"{name}['learning_rate_factor']", factor, minimum=0.0, cure=checks.OF_A_FILE
    )
    decay = arguments.get("weight_decay")
    uniform = None if decay is None else as_decay("weight_decay", decay)
    exclusions = resolved.get("exclusions", {"var_list": [], "var_names": []})
    waiting = resolved.get("waiting", [])
    return arguments, Resolved(
        Exclusions.from_config(exclusions, name=f"{name}['exclusions']"),
        tuple(read_rows(table, number, uniform, name=f"{name}['table']")),
        tuple(read_rows(waiting, number, uniform, name=f"{name}['waiting']")),
        set(checks.texts(f"{name}['paths']", resolved.get("paths", []))),
        None if isinstance(arguments.get("learning_rate", 0.0), Real) else factor,
    )


def _each(rules: Mapping[str, Any], read: Callable[[Any], Any]) -> dict[str, Any]:
    """Return the rules, each value read; those of `no_decay(model)` keep what they know of it."""
    done = copy.copy(rules) if isinstance(rules, dict) else dict(rules)
    done.update({key: read(given) for key, given in rules.items()})
    return done


def _number_reader(custom_objects: Any) -> Callable[[Any], Any]:
    """Return a function that reads a number or schedule; equal schedules become one object.

    So a schedule that a hundred variables share is still evaluated once per step after a load.
    """
    known: dict[str, Any] = {}

    def read_number(saved: Any) -> Any:
        if not isinstance(saved, dict):
            return saved
        text = json.dumps(saved, sort_keys=True)
        if text not in known:
            known[text] = _deserialize(saved, custom_objects)
        return known[text]

    return read_number


def _decay(saved: Any, number: Callable[[Any], Any]) -> Any:
    """Return a decay as the constructor takes it. The constructor checks it."""
    if isinstance(saved, list):
        return tuple(map(number, saved))
    if isinstance(saved, Mapping) and "class_name" not in saved:  # the fields of a `Decay`
        return {key: number(value) for key, value in saved.items()}
    return number(saved)


def _deserialize(saved: Any, custom_objects: Any) -> Any:
    """Return the object that Keras makes of a config.

    A damaged file can raise any error in Keras, often no more than "KeyError: 'x'".
    """
    try:
        made = keras.saving.deserialize_keras_object(saved, custom_objects)
        # Keras' own schedules accept anything, and fail only in the first update. So one is tried
        # here. A user's schedule is not called before the first update.
        if isinstance(made, LearningRateSchedule) and type(made).__module__.startswith("keras."):
            checks.values_of(made, [0])
        return made
    except (ValueError, TypeError):
        raise
    except Exception as error:
        rule = "must be a number, or an object as keras.saving.serialize_keras_object() writes it"
        cure = f"It led to {type(error).__name__}: {error}."
        checks.refuse("a learning rate or weight decay in a config", saved, rule, cure)


def _learning_rate(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> Any:
    rate = _deserialize(config, custom_objects)
    # A function is called at each update. A file can name any function of Keras. None of these is a
    # rate, and some are dangerous: `keras.utils.get_file` writes files. A lambda has Keras' module
    # too, but is read only if the user has switched safe mode off.
    schedule = isinstance(rate, LearningRateSchedule)
    if callable(rate) and not schedule and getattr(rate, "__name__", "") != "<lambda>":
        package = str(getattr(rate, "__module__", "")).split(".")[0]
        if package in ("keras", "keras_hub", "keras_cv", "keras_nlp"):
            checks.refuse(
                "learning_rate",
                config,
                "in a config must be a number, a `LearningRateSchedule` or a function of your own",
                "Give `learning_rate` a schedule, or load with the function registered by "
                "@keras.saving.register_keras_serializable().",
            )
    return rate
