"""What an optimizer tells about itself: `explain()`, and the warnings of its first build."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from keras_decoupled import calls, checks
from keras_decoupled.core.arguments import KERAS_ARGUMENTS
from keras_decoupled.core.gradients import check_variables
from keras_decoupled.core.settings import as_number
from keras_decoupled.decay import explain, regularizers
from keras_decoupled.decay.arguments import shown
from keras_decoupled.decay.explain import Explanation
from keras_decoupled.decay.kinds import half_life
from keras_decoupled.decay.rows import Row, at_update
from keras_decoupled.decay.rules import Rules
from keras_decoupled.paths.match import first, path_of

# A plain number that removes this share of the weight or more per update looks like torch's decay.
_COPIED = 0.01
_CONVERT = (
    "In torch and keras.optimizers the learning rate multiplies the decay, here it does not: "
    "convert_weight_decay({}, learning_rate) gives the number for here."
)


def explanation(optimizer: Any, given: Any, steps_per_epoch: int | None) -> Explanation:
    """Explain an optimizer; see `Decoupled.explain`."""
    registry, clock = optimizer._kd.registry, optimizer._kd.clock
    updates_per_epoch = None
    if steps_per_epoch is not None:
        cure = "It counts batches, as in fit."
        steps = checks.integer("steps_per_epoch", steps_per_epoch, minimum=1, cure=cure)
        updates_per_epoch = steps / (optimizer.gradient_accumulation_steps or 1)
    if given is None and optimizer.built:
        variables = registry.variables
    else:
        variables = explain.variables_of(given)
        check_variables(variables, registry.rules.key_of)
    clock.check_state()
    k = int(as_number(clock.counts(optimizer._kd.update.on)[0])) if optimizer.built else 0
    rows, overridden, told = registry.foreseen(variables)
    found = explain.explain(
        f"{optimizer.name} ({type(optimizer).__name__}): each variable's decay at η = 1",
        variables,
        rows,
        registry.uniform_now(),
        clock.timing.first_normalization(),
        updates_per_epoch,
        overridden,
        k,
    )
    found.warnings.extend(told)
    found.settings.extend(_of_settings(optimizer))
    return found


def _of_settings(optimizer: Any) -> Iterator[str]:
    settings = optimizer._kd.settings
    for name, now in optimizer._kd.update.moving().items():
        given = settings[name].given
        if settings[name].scheduled:
            yield f"{name} follows a {type(given).__name__}; the next update uses {now:.6g}."
        else:
            yield f"{name} is {now:.6g} now; the optimizer was made with {given:.6g}."


def call_of(optimizer: Any) -> str:
    """Return the call that makes this optimizer as it is now, without defaults.

    It has "…" for the arguments where they cannot be read: in a compiled step, and inside an epoch
    on JAX.
    """
    cls, kd = type(optimizer), optimizer._kd
    rules, timing = kd.registry.rules, kd.timing
    rate = getattr(timing.rate, "function", getattr(timing.rate, "schedule", None))
    try:
        if rate is None or timing.use_cosine_annealing:
            base, factor = timing.rate.base, as_number(kd.clock.factor(kd.update.on))
            # 1e-4, where float32 makes it 1.0000000474974513e-4
            rate = base if factor == 1 else float(f"{factor * base:.6g}")
        uniform = kd.registry.uniform_now()
        own = {name: getattr(optimizer, name) for name in optimizer._kd_own_config()}
    except Exception:  # each backend raises another error, and a repr must not raise
        return f"{cls.__name__}(…)"
    base, names = timing.rate.known_base, ("initial_learning_rate", "warmup_target")
    usual = [rate, *(getattr(rate, name, None) for name in names)]
    shared = {
        "weight_decays": rules.weight_decays_as_given,
        "lr_multipliers": rules.lr_multipliers,
        "matrix_axes": rules.split.axes,
    }
    arguments = {
        "learning_rate": rate,
        **({} if base in usual else {"base_learning_rate": base}),
        "weight_decay": uniform.l2 if uniform and uniform.plain and not uniform.l1 else uniform,
        **own,
        **{name: value for name, value in shared.items() if value},
        **({} if rules.decay_vectors else {"decay_vectors": False}),
        **timing.get_config(),
        **{name: getattr(optimizer, name) for name in KERAS_ARGUMENTS},
    }
    return calls.call(cls, arguments)


def warnings_of(optimizer: Any, variables: Sequence[Any], rows: Sequence[Row]) -> list[str]:
    """Return the warnings of a build on these variables, if it is the first, without a file."""
    kd = optimizer._kd
    if optimizer.built or kd.registry.table:
        return []
    return [
        *_of_no_decay(optimizer, rows),
        *_of_strong_decays(kd, rows),
        *_of_penalties(variables, rows),
        *_of_equal_paths(variables),
        *_of_rates(kd.timing.rate.known_base, kd.registry.rules),
    ]


def _of_no_decay(optimizer: Any, rows: Sequence[Row]) -> Iterator[str]:
    decay = optimizer._kd.registry.decay
    if rows and not (decay and decay.given == 0) and all(row.decay.zero for row in rows):
        yield (
            f"{type(optimizer).__name__} decays no variable: its weight_decay, weight_decays and "
            "model give no decay above 0, or exclude_from_weight_decay() excludes what they hit. "
            f"Give `weight_decay`, or weight_decay=0 if you want no decay. {explain.START}"
        )


def _of_strong_decays(kd: Any, rows: Sequence[Row]) -> Iterator[str]:
    normalization, strong = kd.timing.first_normalization(), defaultdict(list)
    for row, l2 in zip(rows, at_update([row.decay.l2 for row in rows]), strict=True):
        decay = normalization * l2
        least = 1 if kd.registry.rules.meant(row.decay) else _COPIED
        if row.rule != "model" and decay >= least:
            strong[decay].append(row.path)
    for decay, paths in strong.items():
        number, names = f"{decay:.3g}", first(paths)
        if decay >= 1:
            yield (
                f"A weight decay of {number} removes the whole weight at every update: {names}. "
                f"{explain.START} {_CONVERT.format(number)}"
            )
            continue
        if decay >= 0.5:  # it was meant for another argument
            yield (
                f"A weight decay of {number} removes {decay:.1%} of the weight at every update: "
                f"{names}. `weight_decay` is the second argument of AdamW, and betas are `beta_1` "
                f"and `beta_2`. {explain.START}"
            )
            continue
        yield (
            f"A weight decay of {number} halves the weight every {half_life(decay):.0f} updates: "
            f"{names}. {_CONVERT.format(number)} If {number} is what you want here, write "
            f"Decay({number})."
        )


def _of_penalties(variables: Sequence[Any], rows: Sequence[Row]) -> Iterator[str]:
    both = [
        row.path
        for variable, row in zip(variables, rows, strict=True)
        if row.rule != "model" and not row.decay.zero and regularizers.in_loss(variable)
    ]
    if both:
        yield explain.PENALIZED.format(first(both))


def _of_equal_paths(variables: Sequence[Any]) -> Iterator[str]:
    if keras.backend.backend() != "torch":
        return
    equal = [path for path, count in Counter(map(path_of, variables)).items() if count > 1]
    if equal:
        yield (
            f"Several variables have the path {first(equal)}. On torch, Keras keeps parameters by "
            "path: `zero_grad` forgets some of these, and their gradients add up from step to "
            "step. Give the layers different names."
        )


def _of_rates(base: float | None, rules: Rules) -> Iterator[str]:
    """Tell if all multipliers look like learning rates, which the groups of torch have."""
    if base is None:  # the rate is 0
        return
    values = at_update(list(rules.lr_multipliers.values()))
    given = {shown(k): m for k, m in zip(rules.lr_multipliers, values, strict=True) if 0 < m != 1}
    most = max(given.values(), default=1.0)
    if most <= 1e-3 or most <= base < 0.01:  # usual multipliers are larger
        rates, divided = (
            first([f'"{key}": {m / by:g}' for key, m in given.items()]) for by in (1, base)
        )
        key, multiplier = next(iter(given.items()))
        yield (
            f"`lr_multipliers` are multiplied by the learning rate ({base:g}), but these look like "
            f"learning rates: {rates}. As it stands, the rate of {key} is {multiplier * base:g}. "
            f"If you meant rates, write {divided} (each divided by {base:g}). If you meant "
            f"multipliers, ignore this warning."
        )
