"""What `explain()` returns: who is decayed by how much, and why, as data, text and HTML."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.checks import Seen, refuse
from keras_decoupled.decay import kinds, regularizers
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.rows import Row
from keras_decoupled.paths import match

_SHOWN = 3  # variables in a warning

# Title, the key of a row, how an entry is written, and whether the column is always shown: others
# only where they tell variables apart from one another, or from the usual.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str], bool], ...] = (
    ("variable", "path", str, True),
    ("shape", "shape", lambda shape: "×".join(map(str, shape)) or "scalar", True),
    ("dtype", "dtype", str, False),
    ("rule", "rule", str, True),
    ("decay", "decay_per_update", lambda x: f"{x:.3g}" if x else "", True),
    ("l1", "l1", lambda x: f"{x:.3g}" if x else "", False),
    ("kind", "kind", str, False),
    ("half-life", "half_life_updates", lambda x: "" if x is None else _number(x), True),
    ("epochs", "half_life_epochs", lambda x: "" if x is None else _number(x), False),
    ("rate", "multiplier", lambda x: f"×{x:.3g}", False),
    ("part", "part", str, False),
)
_TEXT = ("variable", "shape", "dtype", "rule", "kind", "part")  # the other columns are numbers
_LEGEND = "decay: the fraction removed per update; half-life: updates, if no gradient acts"
_USUAL = {"dtype": "float32", "l1": 0.0, "kind": "", "half_life_epochs": None, "multiplier": 1.0}


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """A table of what each variable gets, with warnings; `print` it, or show it in a notebook.

    Attributes:
        title: a line that says of what.
        rows: one dict per variable, with path, shape, dtype, rule, l1, l2, decay_per_update,
            half_life_updates, half_life_epochs, multiplier and kind; for Muon also part.
        warnings: sentences about what may not be meant.
    """

    title: str
    rows: list[dict[str, Any]]
    warnings: list[str]

    @property
    def _columns(self) -> list[tuple[str, list[str]]]:
        shown = []
        for title, key, write, always in _COLUMNS:
            entries = [row[key] for row in self.rows if key in row]
            if always or any(entry != _USUAL.get(key) for entry in entries):
                shown.append((title, list(map(write, entries))))
        return [column for column in shown if column[1]]

    @property
    def _summary(self) -> str:
        sizes = [math.prod(row["shape"]) for row in self.rows]
        decayed = list(map(_is_decayed, self.rows))
        parameters = sum(
            size for size, is_decayed in zip(sizes, decayed, strict=True) if is_decayed
        )
        return (
            f"{sum(decayed)} of {len(decayed)} variables are decayed, "
            f"{parameters:,} of {sum(sizes):,} parameters."
        )

    def __rich__(self) -> Any:
        """Return what rich prints, in the width of its console."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for title, _ in self._columns:
            # Paths are the long ones: they are folded before anything else is.
            table.add_column(
                title,
                justify="left" if title in _TEXT else "right",
                no_wrap=title not in ("variable", "kind"),
                overflow="fold",
            )
        for entries in zip(*(entries for _, entries in self._columns), strict=True):
            table.add_row(*map(Text, entries))
        warnings = [Text(f"Warning: {warning}", style="bold") for warning in self.warnings]
        title = Text(self.title, style="bold")
        return Group(title, table, Text(f"({_LEGEND})"), Text(self._summary), *warnings)

    def __str__(self) -> str:
        """Return the table as wide as the terminal, without colours."""
        from rich.console import Console

        file, width = io.StringIO(), shutil.get_terminal_size((100, 24)).columns
        Console(file=file, width=width, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in file.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table for a notebook, which gives it its own colours."""

        def cells(tag: str, entries: Sequence[str]) -> str:
            style = "text-align: left; white-space: pre-wrap"
            return "".join(
                f'<{tag} style="{style}">{html.escape(entry)}</{tag}>' for entry in entries
            )

        head = cells("th", [title for title, _ in self._columns])
        lines = zip(*(entries for _, entries in self._columns), strict=True)
        body = "".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
        warnings = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        return (
            f"<p><strong>{html.escape(self.title)}</strong></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>({html.escape(_LEGEND)})<br>{html.escape(self._summary)}</p>"
            + (f"<p>Warnings:</p><ul>{warnings}</ul>" if warnings else "")
        )


def explain(
    title: str,
    variables: Sequence[Any],
    rows: Sequence[Row],
    uniform: Decay | None,
    normalization: float,
    updates_per_epoch: float | None,
    overridden: Sequence[tuple[str, str]],
) -> Explanation:
    """Explain the rows of these variables.

    Args:
        title: the table's first line.
        variables: in the order of the rows.
        rows: with the uniform decay as it is now.
        uniform: that decay.
        normalization: √(1/T) of the first cycle.
        updates_per_epoch: for half-lives in epochs.
        overridden: (argument, key) of each key that others override for all of its variables.
    """
    entries = []
    for variable, row in zip(variables, rows, strict=True):
        l2 = _at_start(row.decay.l2)
        decay = normalization * l2
        half_life = kinds.half_life(decay) if decay and row.multiplier else None
        epochs = half_life and updates_per_epoch and half_life / updates_per_epoch
        entries.append(
            {
                "path": row.path,
                "shape": row.shape,
                "dtype": keras.backend.standardize_dtype(variable.dtype),
                "rule": row.rule or ("weight_decay" if row.uniform and uniform else ""),
                "l1": row.decay.l1,
                "l2": l2,
                "decay_per_update": decay,
                "half_life_updates": half_life,
                "half_life_epochs": None if updates_per_epoch is None else epochs,
                "multiplier": row.multiplier,
                "kind": _kind(row.decay),
                **({"part": row.part} if row.part else {}),
            }
        )
    return Explanation(title, entries, _warnings(variables, entries, overridden))


def _at_start(number: kinds.Number) -> float:
    if not isinstance(number, LearningRateSchedule):
        return number
    return float(keras.ops.convert_to_numpy(number(keras.ops.convert_to_tensor(0, "int32"))))


def _kind(decay: Decay) -> str:
    words = [
        ("cautious", decay.cautious),
        ("towards initial", decay.towards == "initial"),
        (f"η^{decay.eta_power}", decay.eta_power != 1),
        ("soft threshold", decay.soft_threshold),
        ("a schedule", isinstance(decay.l2, LearningRateSchedule)),
    ]
    return ", ".join(word for word, holds in words if holds)


def _warnings(
    variables: Sequence[Any],
    entries: Sequence[Mapping[str, Any]],
    overridden: Sequence[tuple[str, str]],
) -> list[str]:
    def those(holds: Callable[[Any, Mapping[str, Any]], bool]) -> str:
        found = [e["path"] for v, e in zip(variables, entries, strict=True) if holds(v, e)]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return ", ".join(found[:_SHOWN]) + more

    def twice(variable: Any, entry: Mapping[str, Any]) -> bool:
        in_loss = getattr(variable, "regularizer", None) is not None
        return in_loss and _is_decayed(entry) and any(regularizers.read_penalty(variable) or ())

    def lost(variable: Any, entry: Mapping[str, Any]) -> bool:
        # Weights below float32 have a copy in float32.
        half_ulp = 2.0**-53 if entry["dtype"] == "float64" else 2.0**-24
        return _is_decayed(entry) and 0 < entry["decay_per_update"] < half_ulp

    found = [
        (
            those(twice),
            "Decayed, and penalized in the loss by an L1 or L2 regularizer as well: {}. Pass "
            "`model=` to turn the penalty into the decay, or take the regularizer out.",
        ),
        (
            those(lambda v, e: _is_decayed(e) and match.is_vector(e["path"], e["shape"])),
            "Biases or scales of a normalization are decayed: {}. Usually they are left out: "
            "decay_vectors=False.",
        ),
        (
            those(lambda v, e: _is_decayed(e) and e["decay_per_update"] >= 1),
            "A decay of 1 or more per update takes the whole weight at once: {}. Usual values are "
            "far below 0.01.",
        ),
        (
            those(lost),
            "A decay smaller than the rounding of the weight may be lost: {}. Below 6e-8 per "
            "update, float32 cannot hold the change.",
        ),
        *(
            (
                key,
                f"A key of `{argument}` decides for no variable, as other rules beat it wherever it "
                "hits: {}. Of several keys the last one wins, so put exceptions last.",
            )
            for argument, key in overridden
        ),
    ]
    return [sentence.format(names) for names, sentence in found if names]


def _is_decayed(entry: Mapping[str, Any]) -> bool:
    return entry["multiplier"] > 0 and (entry["l1"] > 0 or entry["l2"] > 0)


def _number(x: float) -> str:
    return f"{x:,.0f}" if 100 <= x < 1e7 else f"{x:.3g}"


def variables_of(given: Any) -> list[Any]:
    """Return the variables that `explain()` was asked about: a model's, or a list."""
    cure = "Call optimizer.explain(model)."
    if given is None:
        rule = "needs a model or variables before the optimizer is built"
        refuse("explain()", Seen("nothing"), rule, cure)
    if isinstance(given, keras.Layer):
        if not given.weights:
            seen = Seen(f"{given.name!r}, which has none")
            rule = "needs a built model, with weights"
            refuse("explain()", seen, rule, "Call model.build(input_shape) first.")
        return list(given.trainable_variables)
    if not isinstance(given, list | tuple):
        refuse("explain()", given, "takes a model or a list of variables", cure, TypeError)
    return list(given)
