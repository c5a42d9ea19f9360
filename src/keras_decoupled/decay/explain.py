"""What `explain()` returns: how much each variable decays, and why, as data, text and HTML."""

from __future__ import annotations

import dataclasses
import html
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import calls, checks
from keras_decoupled.decay import kinds, regularizers
from keras_decoupled.decay.kinds import Decay, Number
from keras_decoupled.decay.rows import Row, at_update
from keras_decoupled.paths import match, matrices

_WIDTH = 80  # of the summary
_ALWAYS = object()  # equals no value: a column with it is always shown


def _amount(x: float) -> str:
    return f"{x:.3g}" if x else "0"


def _count(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if 100 <= x < 1e7 else f"{x:.3g}"


# Each column of numbers: its title, its key in a row, how to write a value, and the usual value. A
# column is shown only if it has another value than the usual one.
_COLUMNS: tuple[tuple[str, str, Callable[[Any], str], Any], ...] = (
    ("decay", "decay_per_update", _amount, _ALWAYS),
    ("l1", "l1_per_update", _amount, 0.0),
    ("half-life", "half_life_updates", _count, _ALWAYS),
    ("epochs", "half_life_epochs", _count, None),
    ("rate", "multiplier", lambda x: f"×{x:.3g}", 1.0),
)
# What the variables of a group have in common.
_ALIKE = (
    *("decay_per_update", "l1_per_update", "multiplier", "multiplier_schedule"),
    *("rule", "kind", "part", "matrix", "dtype"),
)
START = "Start with 20 / number of weight updates, or with the learning rate if it is smaller."
PENALIZED = (
    "Decayed, and also penalized in the loss by an L1 or L2 regularizer: {}. Remove the "
    "regularizer from the layer. Or give the optimizer `model=` in place of `weight_decay`: that "
    "makes the penalty a decay."
)
_BEATEN = (
    "A key of `{}` changes nothing, because other keys or rules beat it for each variable: {}. A "
    "variable's whole path beats all other keys, and of these the last one wins. For a key to beat "
    "what `no_decay` or a function such as `layerwise_lr_multipliers` gave, write whole paths: "
    "`given | {{v.path: value for v in layer.trainable_variables}}`."
)
_LEGEND = "(decay: share removed per update; half-life: updates, if no gradient acts)"


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """What each variable gets, with warnings. `print` it, or show it in a notebook.

    A line stands for all variables that get the same; `table()` prints a line for each variable.

    Attributes:
        title: the first line, which names the optimizer.
        rows: one dict per variable, with path, shape, dtype, rule, l1, l2, decay_per_update,
            l1_per_update, half_life_updates, half_life_epochs, multiplier and kind. For Muon also
            part ("muon" or "adam") and matrix (rows × columns, None in the Adam part). For a
            multiplier that is a schedule also multiplier_schedule. A schedule counts with its value
            at the next update.
        warnings: sentences about what may be a mistake.
        settings: sentences about arguments such as beta_1 that follow a schedule or were set.
    """

    title: str
    rows: list[dict[str, Any]]
    warnings: list[str]
    settings: list[str] = dataclasses.field(default_factory=list)

    @property
    def _groups(self) -> list[list[dict[str, Any]]]:
        """The rows of each group, the largest group first."""
        groups = defaultdict(list)
        for row in self.rows:
            groups[tuple((row | _by_path(row)).get(name) for name in _ALIKE)].append(row)
        return sorted(groups.values(), key=_weights, reverse=True)

    def _numbers(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """The titles of the columns to show, then the numbers of these rows."""
        shown = [c for c in _COLUMNS if any(row.get(c[1], c[3]) != c[3] for row in self.rows)]
        lines = [[write(row.get(key, x)) for _, key, write, x in shown] for row in rows]
        return [[title for title, *_ in shown], *lines]

    @property
    def _summary(self) -> str:
        decayed = list(filter(_is_decayed, self.rows))
        return (
            f"{len(decayed)} of {len(self.rows)} variables are decayed, "
            f"{_weights(decayed):,} of {_weights(self.rows):,} parameters."
        )

    def _lines(self) -> tuple[list[list[str]], list[str]]:
        """Return the titles and the numbers of each group, and a text about each group."""
        groups = self._groups
        head, *lines = self._numbers([group[0] for group in groups])
        head += ["variables", "weights"]
        for line, group in zip(lines, groups, strict=True):
            line += [f"{len(group):,}", f"{_weights(group):,}"]
        return [head, *lines], [f"{_words(g[0])}: {_pattern(g)}" for g in groups]

    def __str__(self) -> str:
        """Return the summary, in 80 columns."""
        numbers, names = self._lines()
        head, *lines = _aligned(numbers)
        out = [self.title, "", head]
        for line, name in zip(lines, names, strict=True):
            cut = name if len(name) <= _WIDTH - 4 else f"{name[: _WIDTH - 5]}…"
            out += [line, f"    {cut}"]
        return "\n".join([*out, *self._end()])

    __repr__ = __str__

    def table(self) -> None:
        """Print a line for each variable."""
        numbers = _aligned(self._numbers(self.rows))
        names = ["variable", *(f"{r['path']}  {_shape(r)}  {_words(r)}" for r in self.rows)]
        lines = (f"{line}  {name}" for line, name in zip(numbers, names, strict=True))
        print("\n".join([self.title, "", *lines, *self._end()]))

    def _end(self) -> list[str]:
        warnings = [textwrap.fill(f"Warning: {text}", _WIDTH) for text in self.warnings]
        return ["", _LEGEND, self._summary, *self.settings, *warnings]

    def _repr_html_(self) -> str:
        """Return the summary for a notebook, which has its own colours."""

        def row(tag: str, entries: Sequence[str]) -> str:
            cells = (f'<{tag} style="text-align: left">{html.escape(e)}</{tag}>' for e in entries)
            return f"<tr>{''.join(cells)}</tr>"

        (titles, *lines), names = self._lines()
        head = row("th", [*titles, "which"])
        body = "".join(row("td", [*e, name]) for e, name in zip(lines, names, strict=True))
        end = "".join(f"<p>{html.escape(line)}</p>" for line in self._end() if line)
        title = f"<p><strong>{html.escape(self.title)}</strong></p>"
        return f"{title}<table><thead>{head}</thead><tbody>{body}</tbody></table>{end}"


def _by_path(row: Mapping[str, Any]) -> dict[str, str]:
    """Return one rule for all variables whose own path decides, as after `no_decay`."""
    return {"rule": "its path"} if row["rule"] == row["path"] else {}


def _weights(rows: Sequence[Mapping[str, Any]]) -> int:
    return sum(math.prod(row["shape"]) for row in rows)


def _shape(row: Mapping[str, Any]) -> str:
    return "×".join(map(str, row["shape"])) or "scalar"


def _words(row: Mapping[str, Any]) -> str:
    """Return what is unusual, and the rule that decides."""
    dtype = "" if row["dtype"] == "float32" else row["dtype"]
    rate = row.get("multiplier_schedule", "").partition("(")[0]
    rate = f"rate by a {rate}" if rate else ""
    part = " ".join(filter(None, (row.get("part"), row.get("matrix"))))
    rule = _by_path(row).get("rule", row["rule"])
    words = [row["kind"], rate, part, dtype, rule or "no rule"]
    return ", ".join(filter(None, words))


def _pattern(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the paths of these rows in short: "encoder/layer_*/query/kernel"."""
    paths = [row["path"] for row in rows]
    if len(paths) > 1:
        paths = list(dict.fromkeys(re.sub(r"\d+", "*", path) for path in paths))
    if len(paths) == 1 or len(", ".join(paths)) <= _WIDTH // 2:
        return ", ".join(paths)
    # What they begin and end with.
    split = [path.split("/") for path in paths]
    begin = _common(split)
    end = _common([parts[len(begin) :][::-1] for parts in split])[::-1]
    return "/".join([*begin, "…", *end])


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    """Return the first parts that all lists share."""
    shared = []
    for parts in zip(*lists, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines with their columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(entry.rjust(width) for entry, width in zip(line, widths, strict=True))
        for line in lines
    ]


def explain(
    title: str,
    variables: Sequence[Any],
    rows: Sequence[Row],
    uniform: Decay | None,
    normalization: float,
    updates_per_epoch: float | None,
    overridden: Sequence[tuple[str, str]],
    k: int,
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
        k: the number of the next update, of which the schedules are asked.
    """
    entries = []
    amounts = at_update([row.decay.l2 for row in rows], k)
    multipliers = at_update([row.multiplier for row in rows], k)
    for variable, row, l2, multiplier in zip(variables, rows, amounts, multipliers, strict=True):
        factor = 0.0 if row.multiplier == 0 else normalization  # the number 0 freezes
        decay = factor * l2
        half_life = kinds.half_life(decay) if decay else None
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
                "l1_per_update": factor * row.decay.l1,
                "half_life_updates": half_life,
                "half_life_epochs": epochs,
                "multiplier": multiplier,
                "kind": row.decay.in_words,
                **_part(row),
                **_schedule(row.multiplier),
            }
        )
    return Explanation(title, entries, _warnings(variables, entries, overridden))


def _part(row: Row) -> dict[str, str | None]:
    """Return Muon's part, "muon" or "adam", and its rows × columns, None in the Adam part."""
    matrix = matrices.in_words(row.axes, row.shape) if row.axes else None
    return {"part": row.part, "matrix": matrix} if row.part else {}


def _schedule(multiplier: Number) -> dict[str, str]:
    scheduled = isinstance(multiplier, LearningRateSchedule)
    return {"multiplier_schedule": calls.written(multiplier)} if scheduled else {}


def _warnings(
    variables: Sequence[Any],
    entries: Sequence[Mapping[str, Any]],
    overridden: Sequence[tuple[str, str]],
) -> list[str]:
    decayed = [(v, e) for v, e in zip(variables, entries, strict=True) if _is_decayed(e)]
    found = [
        (
            PENALIZED,
            [e["path"] for v, e in decayed if regularizers.in_loss(v)],
        ),
        (
            "Biases or scales of a normalization are decayed: {}. Usually they are not decayed: "
            "decay_vectors=False leaves them out.",
            [e["path"] for _, e in decayed if match.is_vector(e["path"], e["shape"])],
        ),
        (
            f"A decay of 1 or more per update removes the whole weight at once: {{}}. {START}",
            [e["path"] for _, e in decayed if e["decay_per_update"] >= 1],
        ),
        (
            "A decay smaller than the rounding of the weight may be lost: {}. Below 6e-8 per "
            "update, float32 cannot hold the change.",
            [e["path"] for _, e in decayed if 0 < e["decay_per_update"] < _half_ulp(e["dtype"])],
        ),
    ]
    return [sentence.format(match.first(paths)) for sentence, paths in found if paths] + [
        _BEATEN.format(*beaten) for beaten in overridden
    ]


def _is_decayed(entry: Mapping[str, Any]) -> bool:
    moves = entry["multiplier"] > 0 or "multiplier_schedule" in entry
    return moves and (entry["l1"] > 0 or entry["l2"] > 0)


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
