"""The decay rule and its kinds: `Decay` says what is subtracted, `decayed` subtracts it.

The rule is written here, once. Only the kernels in fast/ have their own code, for θ − l2·θ.
To add a kind, add a field to `Decay`, a line to `decayed` and a line to the tests' oracle.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any, TypeAlias

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.calls import call

Number: TypeAlias = float | LearningRateSchedule
_PENALTY = (
    "A regularizer is a penalty in the loss. Give a number here. Or give the regularizer to a "
    "layer, and `model=model` to the optimizer: then its factor becomes the decay."
)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Decay:
    r"""A weight decay: how much, towards what, and under which condition.

    With θ the weight before the update, u the optimizer's step, ref 0 or the initial value,
    d = θ − ref, η = (learning rate now)/α, and T the updates per cycle where decay is normalized
    (else 1):

        h = η^eta_power · √(1/T)
        c = h·(l2·d + l1·sign d)          cautious: only where u·d ≥ 0, element by element
        θ ← θ − u − c

    and with `soft_threshold`, which sets weights to exactly ref,

        x = d − u − h·l2·d
        θ ← ref + sign(x)·max(|x| − h·l1, 0)

    Wherever a decay is expected, a number λ means `Decay(λ)` and a pair (l1, l2) means
    `Decay(l2, l1)`.

    Args:
        l2: fraction of the weight removed per update at η = 1; ≥ 0. A number, or a
            `LearningRateSchedule` of the update count. Defaults to `0.0`.
        l1: amount that the weight moves towards ref per update at η = 1, in the weight's unit;
            ≥ 0. Defaults to `0.0`.
        towards: "zero", or "initial": the weight's value when the optimizer was first built on it
            (L2-SP, for fine-tuning). Defaults to `"zero"`.
        cautious: decay only where the decay does not work against the step. Defaults to `False`.
        eta_power: power of η in the decay; ≥ 0. 1 is the paper's, 2 the corrected decay of AdamC,
            0 a decay that no schedule moves. Defaults to `1`.
        soft_threshold: apply l1 last, as a proximal step: weights become exactly ref, and stay.
            Defaults to `False`.

    Raises:
        ValueError: a value is out of its range, or `soft_threshold` and `cautious` are combined
            with l1 > 0.
        TypeError: a value has the wrong type.

    Example:
    >>> from keras_decoupled import AdamW, Decay
    >>> optimizer = AdamW(1e-3, weight_decay=Decay(1e-4, cautious=True))

    Sources: arXiv 1711.05101 (the default), 2506.02285 (`eta_power=2`), TensorFlow Addons (0),
    2510.12402 (cautious), 1802.01483 (towards="initial").
    """

    l2: Number = 0.0
    l1: float = 0.0
    _: dataclasses.KW_ONLY
    towards: str = "zero"
    cautious: bool = False
    eta_power: float = 1
    soft_threshold: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and give each field its type."""
        power = checks.real("eta_power", self.eta_power, minimum=0.0, below=100.0, cure="1 is λ·η.")
        checked = {
            "l2": checked_l2("l2", self.l2),
            "l1": checked_l1("l1", self.l1),
            "eta_power": int(power) if power.is_integer() else power,
        }
        for name in ("cautious", "soft_threshold"):
            checked[name] = checks.flag(name, getattr(self, name), cure="False is plain decay.")
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not isinstance(self.towards, str) or self.towards not in ("zero", "initial"):
            checks.refuse(
                "towards",
                self.towards,
                "must be 'zero' or 'initial'",
                "'initial' is the weight's value at the first build.",
            )
        if self.soft_threshold and self.cautious and self.l1 > 0:
            checks.refuse(
                "soft_threshold",
                checks.Seen(f"soft_threshold=True, cautious=True, l1={self.l1}"),
                "cannot be combined with `cautious` and l1 > 0: a soft threshold applies l1 after "
                "the step, when there is no step left to compare it with",
                "Leave one of the three out.",
            )

    @property
    def plain(self) -> bool:
        """Whether l1 and l2 say everything."""
        return self._changed() <= {"l1", "l2"}

    @functools.cached_property  # every update asks
    def linear(self) -> bool:
        """Whether the decay depends on θ alone: fast/ may then apply l2 before the step."""
        return self._changed() <= {"l1", "l2", "eta_power"}

    @property
    def zero(self) -> bool:
        """Whether nothing is decayed."""
        return self.l1 == 0 and not isinstance(self.l2, LearningRateSchedule) and self.l2 == 0

    @property
    def in_words(self) -> str:
        """All but the amounts: "a schedule, towards initial, cautious, η^2"; "" for plain decay."""
        words = ["a schedule"] if isinstance(self.l2, LearningRateSchedule) else []
        for field in dataclasses.fields(self)[2:]:
            value = getattr(self, field.name)
            if field.name == "eta_power" and value != 1:
                words.append(f"η^{value}")
            elif value != field.default:
                word = field.name.replace("_", " ")
                words.append(word if value is True else f"{word} {value}")
        return ", ".join(words)

    def with_amounts(self, l2: Number, l1: float | None = None) -> Decay:
        """Return the same kind of decay with this l2, and with this l1 if it is given."""
        return dataclasses.replace(self, l2=l2, l1=self.l1 if l1 is None else l1)

    kind = functools.cached_property(lambda self: self.with_amounts(0.0, 0.0))

    def get_config(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return dict(self._config)

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        config = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not isinstance(self.l2, float):
            config["l2"] = number_to_config(self.l2)
        return config

    def changes(self) -> dict[str, Any]:
        """Return the fields that are not the default, as JSON, and l2 always."""
        return {k: v for k, v in self._config.items() if k == "l2" or k in self._changed()}

    def to_config(self, pair: bool = False) -> Any:
        """Return JSON that `as_decay` reads: a number, a dict, or if `pair` a list (l1, l2)."""
        if not self.plain:
            return self.get_config()
        l2 = self._config["l2"]
        return [self.l1, l2] if pair or self.l1 else l2

    def __repr__(self) -> str:
        """Return the call that makes this decay, without defaults."""
        return call(
            Decay, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        )

    def _changed(self) -> set[str]:
        """Return the names of the fields that are not the default."""
        fields = dataclasses.fields(self)
        return {field.name for field in fields if getattr(self, field.name) != field.default}

    def __eq__(self, other: object) -> bool:
        """Compare the fields; schedules by their config."""
        return self is other or (isinstance(other, Decay) and self._identity == other._identity)

    def __hash__(self) -> int:
        """Agree with `==`."""
        return hash(self._identity)

    @functools.cached_property
    def _identity(self) -> str:
        try:
            return json.dumps(self.get_config(), sort_keys=True, default=str)
        except NotImplementedError:  # a schedule without a config is equal to itself only
            return f"{self.in_words} {self.l1} {id(self.l2)}"


class Operations:
    """The operations of `decayed`, in `keras.ops`. fast/ has some that work in place on torch."""

    @staticmethod
    def add(x: Any, y: Any, factor: Any) -> Any:
        """Return x + factor·y."""
        return x + factor * y

    @staticmethod
    def subtract(theta: Any, change: Any) -> Any:
        """Return θ − change."""
        return theta - change

    @staticmethod
    def agreeing(d: Any, step: Any) -> Any:
        """Return d where step·d ≥ 0, else 0. The product itself could underflow to 0."""
        return ops.where(step * ops.sign(d) >= 0, d, 0.0)

    @staticmethod
    def shrink(x: Any, amount: Any) -> Any:
        """Return x moved towards 0 by the amount, but not beyond 0."""
        return x - ops.clip(x, -amount, amount)


def decayed(
    theta: Any,
    step: Any,
    decay: Decay,
    l2: Any = None,
    l1: Any = None,
    reference: Any = None,
    using: type[Operations] = Operations,
) -> Any:
    """Return the new weight: θ minus the optimizer's step u and the decay.

    `l2` is h·l2, `l1` is h·l1 and `reference` is ref. None means 0. `using` may work in place: then
    `add` overwrites the step, and `subtract` overwrites θ, which is d where there is no reference.
    """
    d = theta if reference is None else theta - reference
    decaying = using.agreeing(d, step) if decay.cautious else d
    # The decay is added to the step, not to θ. In θ, a small decay would be lost to rounding.
    change = step if l2 is None else using.add(step, decaying, l2)
    if l1 is not None and not decay.soft_threshold:
        change = using.add(change, ops.sign(decaying), l1)
    if not decay.soft_threshold:
        return using.subtract(theta, change)
    x = using.subtract(d, change)
    if l1 is not None:
        x = using.shrink(x, l1)
    return x if reference is None else reference + x


def checked_l2(name: str, value: Any) -> Number:
    """Return an l2, checked, as a float or a schedule."""
    if isinstance(value, LearningRateSchedule):
        checks.of_one_number(name, value)
        return value
    cure = "It is the fraction of the weight removed per update at η = 1: a number or a "
    cure += "`LearningRateSchedule`. 0 is no decay."
    if name == "weight_decay":
        cure += " Decays per variable go into `weight_decays`."
    if isinstance(value, keras.regularizers.Regularizer):
        cure = _PENALTY
    return checks.real(name, value, minimum=0.0, below=checks.FLOAT32, cure=cure)


def checked_l1(name: str, value: Any) -> float:
    """Return an l1, checked, as a float."""
    return checks.real(
        name, value, minimum=0.0, below=checks.FLOAT32, cure="It is the l1 of a decay, a number."
    )


def number_to_config(number: Number) -> Any:
    """Return a number or a schedule as JSON."""
    scheduled = isinstance(number, LearningRateSchedule)
    return keras.saving.serialize_keras_object(number) if scheduled else number


def half_life(decay: float) -> float:
    """Return the number of updates in which a weight loses half of its value, at η = 1."""
    return math.log(0.5) / math.log1p(-decay) if decay < 1 else 0.0
