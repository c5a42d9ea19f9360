"""`Row`: what one variable gets, its decay and its multiplier, also as a file stores it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.decay.kinds import Decay, checked_l1, checked_l2


@dataclasses.dataclass(frozen=True)
class Row:
    """What one variable gets. The decay is the one before normalization."""

    path: str  # its label: "path#2" if variables share a path
    shape: tuple[int, ...]
    decay: Decay
    multiplier: float = 1.0
    uniform: bool = False  # it gets `weight_decay`: no key and no regularizer decides
    removed_penalty: tuple[float, float] | None = None  # the (l1, l2) that `model=` took out
    part: str = ""  # in Muon: "muon" or "adam"
    rule: str = ""  # the key that decided, "model", "excluded" or "decay_vectors"

    def get_config(self) -> dict[str, Any]:
        """Return the row as JSON: path, shape, and all that is not uniform or the default."""
        config: dict[str, Any] = {"path": self.path, "shape": list(self.shape)}
        if not self.uniform:
            config |= self.decay.changes() | {"uniform": False}
        if self.multiplier != 1:
            config["multiplier"] = self.multiplier
        if self.removed_penalty:
            config["taken"] = list(self.removed_penalty)
        return config | {k: v for k, v in (("part", self.part), ("rule", self.rule)) if v}


def l2_at_start(rows: Sequence[Row]) -> list[float]:
    """Return each row's l2 at the first update. A decay that rows share is asked once."""
    decays = {id(row.decay): row.decay.l2 for row in rows}
    numbers = {
        key: float(ops.convert_to_numpy(l2(ops.convert_to_tensor(0, "int32"))))
        if isinstance(l2, LearningRateSchedule)
        else l2
        for key, l2 in decays.items()
    }
    return [numbers[id(row.decay)] for row in rows]


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
    return [
        _read_row(f"{name}[{i}]", row, read, uniform or Decay(), made)
        for i, row in enumerate(checks.listed(name, config))
    ]


def _read_row(
    name: str, config: Any, read: Callable[[Any], Any], uniform: Decay, made: dict[str, Decay]
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
    of_a_file = {"cure": checks.OF_A_FILE}
    return Row(
        path=checks.text(f"{name}['path']", path),
        shape=checks.shape(f"{name}['shape']", shape),
        decay=decay,
        multiplier=field(
            "multiplier", 1.0, checks.real, minimum=0.0, below=checks.FLOAT32, **of_a_file
        ),
        # A file of 0.1 does not say which rows are uniform: those that have the uniform decay.
        uniform=field("uniform", decay == uniform, checks.flag, **of_a_file),
        removed_penalty=penalty,
        part=field("part", "", checks.text),
        rule=field("rule", "", checks.text),
    )
