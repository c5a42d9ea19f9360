"""What `explain()` returns: how much each variable decays, and why, as data, text and HTML."""

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

from keras_decoupled import checks
from keras_decoupled.decay import kinds, regularizers
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.rows import Row
from keras_decoupled.paths import match

_SHOWN = 3  # variables in a warning
_ALWAYS = object()  # equals no value: a column with it is always shown


def _amount(x: float) -> str:
    return f"{x:.3g}" if x else ""


def _count(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if 100 <= x < 1e7 else f"{x:.3g}"


# Each column: its title, its key in a row, how to write a value, and the usual value. A column is
# shown only if it has another value than the usual one.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str], Any], ...] = (
    ("variable", "path", str, _ALWAYS),
    ("shape", "shape", lambda shape: "×".join(map(str, shape)) or "scalar", _ALWAYS),
    ("dtype", "dtype", str, "float32"),
    ("rule", "rule", str, _ALWAYS),
    ("decay", "decay_per_update", _amount, _ALWAYS),
    ("l1", "l1", _amount, 0.0),
    ("kind", "kind", str, ""),
    ("half-life", "half_life_updates", _count, _ALWAYS),
    ("epochs", "half_life_epochs", _count, None),
    ("rate", "multiplier", lambda x: f"×{x:.3g}", 1.0),
    ("part", "part", str, ""),
)
_TEXT = ("variable", "shape", "dtype", "rule", "kind", "part")  # other columns have numbers
_LEGEND = "decay: the fraction removed per update; half-life: updates, if no gradient acts"


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """A table of what each variable gets, with warnings. `print` it, or show it in a notebook.

    Attributes:
        title: the table's first line, which names the optimizer.
        rows: one dict per variable, with path, shape, dtype, rule, l1, l2, decay_per_update,
            half_life_updates, half_life_epochs, multiplier and kind; for Muon also part.
        warnings: sentences about what may be a mistake.
    """

    title: str
    rows: list[dict[str, Any]]
    warnings: list[str]

    @property
    def _table(self) -> tuple[list[str], list[list[str]]]:
        """The titles of the columns to show, and the entries of each line."""
        shown = [c for c in _COLUMNS if any(row.get(c[1], c[3]) != c[3] for row in self.rows)]
        lines = [[write(row.get(key, x)) for _, key, write, x in shown] for row in self.rows]
        return [title for title, *_ in shown], lines

    @property
    def _summary(self) -> str:
        decayed = list(filter(_is_decayed, self.rows))
        part, whole = (sum(math.prod(r["shape"]) for r in rows) for rows in (decayed, self.rows))
        return (
            f"{len(decayed)} of {len(self.rows)} variables are decayed, "
            f"{part:,} of {whole:,} parameters."
        )

    def __rich__(self) -> Any:
        """Return what rich prints, in the width of its console."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        titles, lines = self._table
        for title in titles:
            table.add_column(
                title,
                justify="left" if title in _TEXT else "right",
                no_wrap=title not in ("variable", "kind"),  # long ones, which fold first
                overflow="fold",
            )
        for line in lines:
            table.add_row(*map(Text, line))
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
        """Return the table for a notebook, which has its own colours."""

        def cells(tag: str, entries: Sequence[str]) -> str:
            start = f'<{tag} style="text-align: left; white-space: pre-wrap">'
            return "".join(f"{start}{html.escape(entry)}</{tag}>" for entry in entries)

        titles, lines = self._table
        head = cells("th", titles)
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
        rows: the variables' rows, with the uniform decay as it is now.
        uniform: the uniform decay as it is now.
        normalization: √(1/T) of the first cycle.
        updates_per_epoch: for half-lives in epochs.
        overridden: (argument, key) of each key that hits variables and decides for none.
    """
    entries = []
    for variable, row in zip(variables, rows, strict=True):
        l2 = _at_start(row.decay.l2)
        decay = normalization * l2
        half_life = kinds.half_life(decay) if decay and row.multiplier else None
        epochs = None
        if half_life is not None and updates_per_epoch is not None:
            epochs = half_life / updates_per_epoch
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
                "half_life_epochs": epochs,
                "multiplier": row.multiplier,
                "kind": row.decay.in_words,
                **({"part": row.part} if row.part else {}),
            }
        )
    return Explanation(title, entries, _warnings(variables, entries, overridden))


def _at_start(number: kinds.Number) -> float:
    if not isinstance(number, LearningRateSchedule):
        return number
    return float(keras.ops.convert_to_numpy(number(keras.ops.convert_to_tensor(0, "int32"))))


def _warnings(
    variables: Sequence[Any],
    entries: Sequence[Mapping[str, Any]],
    overridden: Sequence[tuple[str, str]],
) -> list[str]:
    decayed = [(v, e) for v, e in zip(variables, entries, strict=True) if _is_decayed(e)]
    found = [
        (
            "Decayed, and also penalized in the loss by an L1 or L2 regularizer: {}. Pass `model=` "
            "to make the penalty a decay, or remove the regularizer.",
            [e["path"] for v, e in decayed if _is_penalized(v)],
        ),
        (
            "Biases or scales of a normalization are decayed: {}. Usually they are not decayed: "
            "decay_vectors=False leaves them out.",
            [e["path"] for _, e in decayed if match.is_vector(e["path"], e["shape"])],
        ),
        (
            "A decay of 1 or more per update removes the whole weight at once: {}. Usual values "
            "are far below 0.01.",
            [e["path"] for _, e in decayed if e["decay_per_update"] >= 1],
        ),
        (
            "A decay smaller than the rounding of the weight may be lost: {}. Below 6e-8 per "
            "update, float32 cannot hold the change.",
            [e["path"] for _, e in decayed if 0 < e["decay_per_update"] < _half_ulp(e["dtype"])],
        ),
    ]
    return [sentence.format(_first(paths)) for sentence, paths in found if paths] + [
        f"A key of `{argument}` decides for no variable, because other keys or rules beat it for "
        f"each one: {key}. Of several keys the last one wins, so put exceptions last."
        for argument, key in overridden
    ]


def _first(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more


def _is_decayed(entry: Mapping[str, Any]) -> bool:
    return entry["multiplier"] > 0 and (entry["l1"] > 0 or entry["l2"] > 0)


def _is_penalized(variable: Any) -> bool:
    in_loss = getattr(variable, "regularizer", None) is not None
    return in_loss and any(regularizers.read_penalty(variable) or ())


def _half_ulp(dtype: str) -> float:
    return 2.0**-53 if dtype == "float64" else 2.0**-24  # bfloat16 has a float32 copy


def variables_of(given: Any) -> list[Any]:
    """Return the variables that `explain()` was given: a model's, or a list."""
    cure = "Call optimizer.explain(model)."
    if given is None:
        rule = "needs a model or variables before the optimizer is built"
        checks.refuse("explain()", checks.Seen("nothing"), rule, cure)
    if isinstance(given, keras.Layer):
        if not given.weights:
            seen = checks.Seen(f"{given.name!r}, which has none")
            rule = "needs a built model, with weights"
            checks.refuse("explain()", seen, rule, "Call model.build(input_shape) first.")
        return list(given.trainable_variables)
    if not isinstance(given, list | tuple):
        checks.refuse("explain()", given, "takes a model or a list of variables", cure, TypeError)
    return list(given)
