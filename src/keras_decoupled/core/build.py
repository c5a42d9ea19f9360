"""A build: what each variable gets, and the optimizer variables that it needs."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import keras

from keras_decoupled import fast
from keras_decoupled.core.gradients import LOW_PRECISION, check_variables
from keras_decoupled.core.registry import MASTER, REFERENCE
from keras_decoupled.decay import regularizers
from keras_decoupled.decay.kinds import at_start, half_life
from keras_decoupled.decay.rows import Row
from keras_decoupled.paths.match import first, path_of
from keras_decoupled.schedule.rates import CallableRate, eager


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
    if isinstance(kd.timing.rate, CallableRate):
        kd.timing.rate.fix_base()
    if not (optimizer.built or registry.table):
        _warn_of_no_decay(optimizer, rows)
        with eager():  # a schedule is asked for its value
            _warn_of_strong_decay(kd, rows)
        _warn_of_penalties(variables, rows)
        _warn_of_equal_paths(variables)
    if any(keras.backend.standardize_dtype(v.dtype) == "float64" for v in variables):
        kd.update.on.dtype = "float64"
    if not optimizer.built:
        for name, value in kd.algorithm.state.items():
            kd.add_scalar(name, value, kd.update.on.dtype)
    registry.build(variables, rows, unclaimed)
    optimizer._kd_build_keras(variables)
    slot_names = kd.algorithm.slot_names(optimizer)
    for name in slot_names:
        optimizer.add_optimizer_variables(variables, name)
    for record in registry.built:
        if keras.backend.standardize_dtype(record.variable.dtype) in LOW_PRECISION:
            optimizer._kd_add_own_slot(record, MASTER)
        if record.row.decay.towards == "initial":
            optimizer._kd_add_own_slot(record, REFERENCE)
        # A layer that hard-codes its regularizer brings it back on load.
        penalty = record.row.removed_penalty
        if penalty and regularizers.read_penalty(record.variable) == penalty:
            regularizers.remove_penalty(record.variable)
    kd.inside.order(registry.line_up(slot_names))
    kd.update.fast, kd.update.fast_step = fast.paths_of(optimizer)
    if kd.init_verbose:
        with eager():
            print(optimizer.explain())


def _warn_of_no_decay(optimizer: Any, rows: Sequence[Row]) -> None:
    decay = optimizer._kd.registry.decay
    if rows and not (decay and decay.given == 0) and all(row.decay.zero for row in rows):
        _warn(
            f"{type(optimizer).__name__} decays no variable: its weight_decay, weight_decays and "
            "model give no decay above 0, or exclude_from_weight_decay() excludes what they hit. "
            "Give `weight_decay` (1e-4 is a start), or weight_decay=0 if you want no decay."
        )


def _warn_of_strong_decay(kd: Any, rows: Sequence[Row]) -> None:
    """Tell of decays that look like those of torch, which the learning rate multiplies there."""
    normalization, strong = kd.timing.first_normalization(), defaultdict(list)
    for row in rows:
        decay = normalization * at_start(row.decay.l2)
        if row.rule != "model" and decay >= (1 if kd.registry.rules.meant(row.decay) else 0.01):
            strong[decay].append(row.path)
    for decay, paths in strong.items():
        number, names = f"{decay:.3g}", first(paths)
        if decay >= 1:
            _warn(
                f"A weight decay of {number} removes the whole weight at every update: {names}. "
                "Usual values are 1e-3 to 1e-6."
            )
            continue
        _warn(
            f"A weight decay of {number} halves the weight every {half_life(decay):.0f} updates: "
            f"{names}. In torch and keras.optimizers the learning rate multiplies the decay, here "
            f"it does not: convert_weight_decay({number}, learning_rate) gives the number for "
            f"here. If you mean {number}, write Decay({number})."
        )


def _warn_of_penalties(variables: Sequence[Any], rows: Sequence[Row]) -> None:
    both = [
        row.path
        for variable, row in zip(variables, rows, strict=True)
        if row.rule != "model" and not row.decay.zero and regularizers.in_loss(variable)
    ]
    if both:
        _warn(
            f"Decayed, and also penalized in the loss by an L1 or L2 regularizer: {first(both)}. "
            "Pass `model=` to make the penalty the decay, or remove the regularizer."
        )


def _warn_of_equal_paths(variables: Sequence[Any]) -> None:
    counts = Counter(map(path_of, variables))
    equal = [path for path, count in counts.items() if count > 1]
    if equal and keras.backend.backend() == "torch":
        _warn(
            f"Several variables have the path {first(equal)}. On torch, Keras keeps parameters by "
            "path: `zero_grad` forgets some of these, and their gradients add up from step to "
            "step. Give the layers different names."
        )


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)
