"""A build: what each variable gets, and the optimizer variables that it needs."""

from __future__ import annotations

import warnings
from typing import Any

import keras

from keras_decoupled import fast
from keras_decoupled.core import report
from keras_decoupled.core.gradients import LOW_PRECISION, check_variables
from keras_decoupled.core.registry import MASTER, REFERENCE
from keras_decoupled.decay import regularizers
from keras_decoupled.schedule.rates import CallableRate


def build(optimizer: Any, variables: list[Any]) -> None:
    """Create the state of these variables; known ones keep what they have."""
    kd = optimizer._kd
    registry = kd.registry
    keys = check_variables(variables, kd.inside.key_of)
    registry.begin_requests()
    if optimizer.built and keys == [record.key for record in registry.built]:
        for record in registry.built:  # a layer may have been frozen since
            record.trainable = bool(record.variable.trainable)
        return
    rows, unclaimed = registry.resolve(variables)
    with fast.eager():  # a callable or a schedule is asked for its value
        if isinstance(kd.timing.rate, CallableRate):
            kd.timing.rate.fix_base()
        told = report.warnings_of(optimizer, variables, rows)
    for text in told:
        warnings.warn(text, UserWarning, stacklevel=3)
    if any(keras.backend.standardize_dtype(v.dtype) == "float64" for v in variables):
        kd.update.on.dtype = "float64"
    if not optimizer.built:
        for name, value in kd.algorithm.state.items():
            kd.add_scalar(name, value, kd.update.on.dtype)
    registry.build(variables, rows, unclaimed)
    optimizer._kd_build_keras(variables)
    slot_names = kd.algorithm.slot_names(optimizer)
    for record in registry.built:
        record.algorithm = kd.algorithm.part(record.row)
        record.own_names = record.algorithm.slot_names(optimizer)
    for name in slot_names:
        having = [r.variable for r in registry.built if name in r.own_names]
        optimizer.add_optimizer_variables(having, name)
    for record in registry.built:
        if keras.backend.standardize_dtype(record.variable.dtype) in LOW_PRECISION:
            optimizer._kd_add_own_slot(record, MASTER)
        if record.row.decay.towards == "initial":
            optimizer._kd_add_own_slot(record, REFERENCE)
        # A layer that hard-codes its regularizer brings it back on load.
        penalty = record.row.removed_penalty
        if penalty and regularizers.read_penalty(record.variable) == penalty:
            regularizers.remove_penalty(record.variable)
    settings = [s.variable for s in kd.settings.values() if s.variable is not None]
    kd.inside.order([*registry.line_up(slot_names), *settings])
    kd.update.fast, kd.update.fast_step = fast.paths_of(optimizer)
    if kd.init_verbose:
        with fast.eager():
            print(optimizer.explain())
