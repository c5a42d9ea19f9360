"""The keyword arguments that every optimizer of the package takes."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.decay.kinds import Decay

Check: TypeAlias = Callable[[str, Any], Any]  # (name, value) → the value as it is kept


@dataclasses.dataclass(frozen=True)
class Real:
    """The check of a number ≥ minimum and < below. An own argument with this check is a setting."""

    cure: str
    minimum: float | None = None
    below: float = checks.FLOAT32  # an update computes in float32
    or_none: bool = False  # whether the constructor takes None, which stays None

    def __call__(self, name: str, value: Any) -> float:
        """Return the value as a float."""
        return checks.real(name, value, minimum=self.minimum, below=self.below, cure=self.cure)


fraction = functools.partial(Real, minimum=0.0, below=1.0)
at_least_0 = functools.partial(Real, minimum=0.0)


def flag(cure: str) -> Check:
    """Return the check of True or False."""
    return functools.partial(checks.flag, cure=cure)


_norm = at_least_0("None clips nothing.")
_count = functools.partial(checks.integer, minimum=1, below=2**31, cure="None leaves it out.")
KERAS_ARGUMENTS: dict[str, Check] = {
    "name": functools.partial(checks.text, cure="None takes the class's name."),
    "clipnorm": _norm,
    "clipvalue": _norm,
    "global_clipnorm": _norm,
    "use_ema": functools.partial(checks.flag, cure="True keeps moving averages of the weights."),
    "ema_momentum": functools.partial(checks.real, cure="0.99 is Keras' default."),
    "ema_overwrite_frequency": _count,
    "loss_scale_factor": functools.partial(
        checks.real, minimum=1e-30, cure="It is what the loss was multiplied by; None is 1."
    ),
    "gradient_accumulation_steps": _count,
}
_RENAMED = {
    "lr": "It is `learning_rate` in Keras 3, the first argument. The variables come later: with "
    "`model.compile(optimizer)`, or with `optimizer.apply(gradients, variables)`.",
    "decay": "Keras 3 has no `decay`: pass a `LearningRateSchedule` as `learning_rate`.",
    "batch_size": "It is not needed: `total_iterations` is the number of updates.",
    "init_lr": "Pass `base_learning_rate`.",
    "adam_weight_decay": "Muon's parts have one λ: `weight_decay`, or `weight_decays` by key.",
    "param_groups": "Rates and decays of groups are `lr_multipliers` and `weight_decays`, by key.",
    "decoupled_weight_decay": "The decay is always decoupled here: leave it out.",
    **dict.fromkeys(
        ("exclude_from_weight_decay", "no_decay", "exclude", "mask", "decay_var_list"),
        'Write `weight_decays={"bias": 0}`, say, or `weight_decays=no_decay(model)`.',
    ),
    **dict.fromkeys(("fused", "foreach", "capturable"), "The fastest way is chosen: leave it out."),
    "maximize": "Minimize the negative loss.",
    "jit_compile": "It is an argument of `model.compile`.",
    **dict.fromkeys(("ema", "ema_decay"), "Write `use_ema=True` and `ema_momentum`."),
}
# What torch calls the arguments that some classes here have.
_OF_TORCH = {
    "wd": ("weight_decay",),
    "eps": ("epsilon",),
    "betas": ("beta_1", "beta_2"),
    "alpha": ("rho",),
    "b1": ("beta_1",),
    "b2": ("beta_2",),
    "momentum": ("beta_1",),
}


class Shared(TypedDict, total=False):
    """The keyword arguments of every optimizer beside `weight_decay`; see SHARED_ARGUMENTS."""

    weight_decays: (
        Mapping[str | keras.Layer, float | tuple[float, float] | LearningRateSchedule | Decay]
        | None
    )
    lr_multipliers: Mapping[str | keras.Layer, float | LearningRateSchedule] | None
    decay_vectors: bool
    model: keras.Model | None
    zero_penalties: bool
    total_iterations: int | None
    total_iterations_wd: int | None
    normalize_weight_decay: bool | None
    use_cosine_annealing: bool
    autorestart: bool | None
    eta_min: float
    eta_max: float
    t_cur: int
    base_learning_rate: float | None
    init_verbose: bool
    name: str | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None


OURS = Shared.__annotations__.keys() - KERAS_ARGUMENTS


def keras_arguments(cls: type[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return Keras' arguments, with their types checked. Keras checks ranges, too."""
    for name in kwargs.keys() - KERAS_ARGUMENTS.keys():
        rule = "is not recognized as an argument of this optimizer"
        cure = cure_of(cls, name) or "See help() of the class for its arguments."
        checks.refuse(name, kwargs[name], rule, cure)
    return {
        name: None if value is None else KERAS_ARGUMENTS[name](name, value)
        for name, value in kwargs.items()
    }


def parameters_of(cls: type[Any]) -> set[str]:
    """Return the names of all arguments of a class."""
    return {*inspect.signature(cls).parameters, *Shared.__annotations__} - {"shared"}


def cure_of(cls: type[Any], name: str, near: bool = True) -> str | None:
    """Return advice about an argument that is unknown here; None if there is none.

    `near`: whether the name may be a misspelled one.
    """
    known = parameters_of(cls)
    if name in _RENAMED:
        return _RENAMED[name]
    names: Sequence[str] = _OF_TORCH.get(name, ())
    if not known.issuperset(names):
        names = ()
    if not names and near:
        names = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    if not names:
        return None
    return f"Write {' and '.join(f'`{name}`' for name in names)}."


def shared_docstring(own: str, name: str) -> str:
    """Return a class's docstring, completed by what the docstrings of all optimizers share.

    The docstring of a ready-made class has its step, its own arguments and its source, and may have
    an example. Others have an entry for `weight_decay`, and get only the shared arguments.
    """
    own = inspect.cleandoc(own)  # up to Python 3.12 it is indented
    parts = _PARTS.fullmatch(own)
    if parts is None or " weight_decay:" in own:
        return f"{own}\n\n{SHARED_ARGUMENTS}"
    texts = parts.groupdict(default=_EXAMPLE.format(name=name))
    return _READY_MADE.format(name=name, shared_arguments=SHARED_ARGUMENTS, **texts)


_PARTS = re.compile(
    r"(?P<step>.*)\n\nArgs:\n(?P<arguments>.*)\n    \*\*shared: [^\n]*"
    r"(\n\nExample:\n(?P<example>.*))?\n\nSource: (?P<source>.*)",
    re.DOTALL,
)
_READY_MADE = """\
{step}

The step u is that of `keras.optimizers.{name}`. Then

    θ ← θ − η·(l2·θ + l1·sign θ) − u

with θ on the right the value before the update, η = (learning rate now)/α, m_v the variable's
learning-rate multiplier and (l1, l2) its decay. The base learning rate α never multiplies the
decay: `keras.optimizers.{name}(α, weight_decay=w)` decays as this does with weight_decay = α·w.
`Decay` has other kinds of decay.

Args:
{arguments}
    learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
    weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
        schedule, a `Decay` or None. Defaults to `None`, no decay.
    **shared: the arguments that all optimizers share; see below.

{shared_arguments}
Raises:
    ValueError: `learning_rate`, `weight_decay` or a shared argument is out of its range, a number
        is not finite, or a key matches no variable (at build). Keras checks few other arguments.
    TypeError: one of these has the wrong type.

Example:
{example}

Source: {source}
The decay: Loshchilov & Hutter, *Decoupled Weight Decay Regularization*, arXiv 1711.05101.
"""
_EXAMPLE = """\
>>> import keras, numpy as np
>>> from keras_decoupled import {name}
>>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
>>> optimizer = {name}(1e-3, weight_decay=1e-4, weight_decays={{"bias": 0}})
>>> model.compile(optimizer, loss="mse")
>>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)"""
SHARED_ARGUMENTS = """\
Each real number among the arguments above may also be a `LearningRateSchedule` of the number of
updates, and may be set at any time: `optimizer.beta_1 = 0.85`, say, counts from the next update on.
Flags, counts, and numbers that are called fixed above can be set only before the build.

Shared arguments, by keyword:
    weight_decays: `{key: decay}`. A decay is a number l2, a pair (l1, l2), a schedule or a `Decay`.
        A key is a variable's path, whole components of it ("lstm_1", "bias", "lstm_cell/kernel",
        "dense/") or, failing that, a part of it; or a built layer or model, which means all its
        variables. An exact path beats other keys. Of the other keys, the one given last wins.
        Variables that no key matches get `weight_decay`.
    lr_multipliers: `{key: multiplier}` of the learning rate, not of the decay; 0 freezes. A
        multiplier may be a `LearningRateSchedule` of the number of updates: while it is 0, the
        variable stays as it is, and its moments are still updated.
    decay_vectors: False leaves variables of fewer than two dimensions, and biases and scales of
        any shape, without decay, except where a key names them by their own name. Defaults to
        `True`.
    model: a built model whose L1, L2 and L1L2 regularizers become decays.
    zero_penalties: whether to take these penalties out of the model's loss. A layer that two
        models share loses its penalty in both. Defaults to `True`.
    total_iterations: T, updates per cycle. When given, decays are multiplied by √(1/T).
    total_iterations_wd: T for this normalization alone.
    normalize_weight_decay: None (normalized if total_iterations or total_iterations_wd is given),
        True (with a `CosineWarmRestarts`, T is that of its current cycle) or False (never).
    use_cosine_annealing: whether to make a `CosineWarmRestarts` over `total_iterations`.
    autorestart: whether this schedule starts again after a cycle, or stays at eta_min.
    eta_min: η at the end of a cycle. Defaults to `0.0`.
    eta_max: η at the start of a cycle. Defaults to `1.0`.
    t_cur: position of the first update in its cycle. Defaults to `0`.
    base_learning_rate: α, the rate at which η = 1. Defaults to the number given. For a schedule it
        defaults to its `warmup_target`, else to its `initial_learning_rate`, else to its value at
        step 0, and to its highest value if it rises far above that. For a callable it defaults to
        the value at build.
    init_verbose: whether to print `explain()` at build. Defaults to `False`.
    name, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
        loss_scale_factor, gradient_accumulation_steps: as in `keras.optimizers.Optimizer`.
"""
