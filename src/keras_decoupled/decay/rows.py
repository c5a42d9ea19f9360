"""`Row`: what one variable gets, its decay and its multiplier, also as a file stores it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.decay.kinds import Decay, Number, checked_l1, checked_l2, number_to_config
from keras_decoupled.paths import matrices


@dataclasses.dataclass(frozen=True)
class Row:
    """What one variable gets. The decay is the one before normalization."""

    path: str  # its label: "path#2" if variables share a path
    shape: tuple[int, ...]
    decay: Decay
    multiplier: Number = 1.0
    uniform: bool = False  # it gets `weight_decay`: no key and no regularizer decides
    removed_penalty: tuple[float, float] | None = None  # the (l1, l2) that `model=` took out
    part: str = ""  # in Muon: "muon" or "adam"
    axes: str = ""  # and its matrices' axes, as in paths/matrices.py
    rule: str = ""  # the key that decided, "model", "excluded" or "decay_vectors"

    def get_config(self) -> dict[str, Any]:
        """Return the row as JSON: path, shape, and all that is not uniform or the default."""
        config: dict[str, Any] = {"path": self.path, "shape": list(self.shape)}
        if not self.uniform:
            config |= self.decay.changes() | {"uniform": False}
        if self.multiplier != 1:
            config["multiplier"] = number_to_config(self.multiplier)
        if self.removed_penalty:
            config["taken"] = list(self.removed_penalty)
        texts = {"part": self.part, "axes": self.axes, "rule": self.rule}
        return config | {name: text for name, text in texts.items() if text}


def at_update(numbers: Sequence[Number], k: int = 0) -> list[float]:
    """Return the numbers at update k. Each schedule is evaluated only once."""
    values = {
        key: checks.values_of(number, [k])[k]
        if isinstance(number, LearningRateSchedule)
        else number
        for key, number in {id(number): number for number in numbers}.items()
    }
    return [values[id(number)] for number in numbers]


class CheckMultiplier:
    """Checks learning-rate multipliers. Each schedule is checked only once."""

    def __init__(self) -> None:
        self._checked: dict[int, LearningRateSchedule] = {}  # so that ids stay valid

    def __call__(self, name: str, value: Any) -> Number:
        """Return a multiplier as a float or a schedule."""
        if isinstance(value, LearningRateSchedule):
            if id(value) not in self._checked:
                self._checked[id(value)] = checks.schedule(name, value, self)
            return value
        cure = "0 freezes the variable, 1 leaves it alone, and a `LearningRateSchedule` moves it."
        return checks.real(name, value, minimum=0.0, below=checks.FLOAT32, cure=cure)


def read_rows(
    config: Any, read: Callable[[Any], Any], uniform: Decay | None, *, name: str
) -> list[Row]:
    """Read the rows of a config. The config may come from a file, so it may hold anything.

    Args:
        config: the list of rows.
        read: reads a number or a schedule.
        uniform: the uniform decay.
        name: the list's name in a message.
    """
    made: dict[str, Decay] = {}  # equal decays are made once, so a schedule is checked once
    check = CheckMultiplier()
    return [
        _read_row(f"{name}[{i}]", row, read, uniform or Decay(), made, check)
        for i, row in enumerate(checks.listed(name, config))
    ]


def _read_row(
    name: str,
    config: Any,
    read: Callable[[Any], Any],
    uniform: Decay,
    made: dict[str, Decay],
    check: CheckMultiplier,
) -> Row:
    path, shape = checks.fields(name, config, ("path", "shape"))

    def field(key: str, default: Any, check: Callable[..., Any], **how: Any) -> Any:
        value = config.get(key, default)
        return value if value is default else check(f"{name}[{key!r}]", value, **how)

    decay = uniform
    if "l2" in config:
        fields = {f.name: config[f.name] for f in dataclasses.fields(Decay) if f.name in config}
        text = json.dumps(fields, sort_keys=True, default=repr)
        if text not in made:
            l2 = checked_l2(f"{name}['l2']", read(fields.pop("l2")))
            l1 = checked_l1(f"{name}['l1']", fields.pop("l1", 0.0))
            made[text] = Decay(l2, l1, **fields)
        decay = made[text]
    penalty = field("taken", None, checks.listed, length=2)
    if penalty is not None:
        l1, l2 = (checked_l1(f"{name}['taken'][{i}]", part) for i, part in enumerate(penalty))
        penalty = (l1, l2)
    shape, of_a_file = checks.shape(f"{name}['shape']", shape), {"cure": checks.OF_A_FILE}
    part, axes = (
        field("part", "", checks.text),
        field("axes", "", matrices.checked_axes, shape=shape, **of_a_file),
    )
    if part == "muon" and len(shape) == 2:
        axes = axes or "rc"  # version 0.2 had only plain matrices
    return Row(
        path=checks.text(f"{name}['path']", path),
        shape=shape,
        decay=decay,
        multiplier=field("multiplier", 1.0, lambda name, m: check(name, read(m))),
        # A file of 0.1 does not say which rows are uniform: those that have the uniform decay.
        uniform=field("uniform", decay == uniform, checks.flag, **of_a_file),
        removed_penalty=penalty,
        part=part,
        axes=axes,
        rule=field("rule", "", checks.text),
    )
