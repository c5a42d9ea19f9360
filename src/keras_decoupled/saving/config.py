"""A saved config, read: it is data, and a file's may hold anything.

`Decoupled.get_config` has the arguments as given and, as `resolved`, what they came to. All of it
is checked here or by the constructor, as an argument is, before any of it is used. No function is
called, but a callable learning rate, of one's own, where the config has no `base_learning_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple

import keras

from keras_decoupled import checks
from keras_decoupled.decay import kinds
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.table import Table


class Resolved(NamedTuple):
    """What the arguments had come to when the config was written."""

    exclusions: Exclusions
    table: Table
    waiting: Table
    paths: list[str]  # of variables that had left: frozen, say
    factor: float | None  # r; None where the rate is a number: it is written as r left it


def read(
    config: Any, custom_objects: Mapping[str, Any] | None
) -> tuple[dict[str, Any], Resolved | None]:
    """Return the constructor's arguments, and what they had come to, where that is in the config."""
    checks.fields("config", config, ())
    for key in config:
        if not isinstance(key, str) or key == "self":
            raise ValueError(
                "The keys of a config must be names of arguments. "
                f"Received: {key!r}. Take what `get_config()` returned."
            )
    checks.shallow("config", config)
    arguments = dict(config)
    resolved = arguments.pop("resolved", None)
    decay = kinds.reader(custom_objects)
    if "weight_decay" in arguments:
        arguments["weight_decay"] = decay(arguments["weight_decay"])
    if isinstance(arguments.get("weight_decays"), Mapping):
        arguments["weight_decays"] = {
            key: tuple(map(decay, given)) if isinstance(given, list) else decay(given)
            for key, given in arguments["weight_decays"].items()
        }
    if isinstance(arguments.get("learning_rate"), Mapping):
        arguments["learning_rate"] = _learning_rate(arguments["learning_rate"], custom_objects)
    if resolved is None:
        return arguments, None
    name = "config['resolved']"
    exclusions, table, waiting, factor = checks.fields(
        name, resolved, ("exclusions", "table", "waiting", "learning_rate_factor")
    )
    factor = checks.real(
        f"{name}['learning_rate_factor']", factor, minimum=0.0, cure=checks.OF_A_FILE
    )
    return arguments, Resolved(
        Exclusions.from_config(exclusions, name=f"{name}['exclusions']"),
        Table.from_config(table, decay, name=f"{name}['table']"),
        Table.from_config(waiting, decay, name=f"{name}['waiting']"),
        [
            checks.text(f"{name}['paths']", path)
            for path in checks.listed(f"{name}['paths']", resolved.get("paths", []))
        ],
        None if isinstance(arguments.get("learning_rate", 0.0), Real) else factor,
    )


def _learning_rate(config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None) -> Any:
    rate = kinds.deserialize(config, custom_objects)
    # A rate that is no schedule is called at each update. Of Keras' own things, which a file can
    # name without anyone having registered them, none is a rate, and some do what nobody asked for.
    # A lambda, which has Keras' module too, comes where safe mode is off: its user trusts the file.
    schedule = isinstance(rate, keras.optimizers.schedules.LearningRateSchedule)
    if callable(rate) and not schedule and getattr(rate, "__name__", "") != "<lambda>":
        package = str(getattr(rate, "__module__", "")).split(".")[0]
        if package in ("keras", "keras_hub", "keras_cv", "keras_nlp"):
            raise ValueError(
                "`learning_rate` in a config must be a number, a `LearningRateSchedule` or a "
                f"function of your own. Received: {config}. Give `learning_rate` a schedule, or "
                "load with the function registered by "
                "@keras.saving.register_keras_serializable()."
            )
    return rate
