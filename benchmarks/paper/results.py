"""The results on disk: a line of CSV per run, and per epoch where a run is followed.

A run's lines are written when it ends, so that a killed experiment goes on where it was.
"""

import csv
import math
import os
from pathlib import Path
from typing import NamedTuple


class Cell(NamedTuple):
    """What a run on images is, and its key in the results."""

    algorithm: str  # of one_run.ALGORITHMS
    schedule: str  # of one_run.course
    rate: float  # α
    decay: float  # λ, per update, for ours; α·w for keras.optimizers.AdamW; w of w/2·‖θ‖²
    images: int  # to train on
    epochs: int
    scored: int  # every so many epochs
    batch: int
    seed: int

    @property
    def per_epoch(self):
        """Updates of an epoch; what is left of the images makes none."""
        return self.images // self.batch

    @property
    def updates(self):
        """T: updates of the run."""
        return self.epochs * self.per_epoch

    @property
    def last(self):
        """The epoch after which it has ended."""
        return self.epochs


class Scores(NamedTuple):
    """Mean cross-entropy and share of errors, and what became of the weights."""

    validation_loss: float
    validation_error: float
    test_loss: float
    test_error: float
    zeros: float = (
        math.nan
    )  # share of exact zeros in the kernels; the first runs did not count them


class TextCell(NamedTuple):
    """What a run on text is."""

    form: str  # of transformer.FORMS
    width: int
    rate: float  # α
    decay: float  # λ, per update
    updates: int
    batch: int  # windows
    seed: int

    @property
    def last(self):
        """The update after which it has ended."""
        return self.updates


class Losses(NamedTuple):
    """Mean cross-entropy of a character, in nats."""

    validation_loss: float
    test_loss: float


# File: a run, when it was scored, its scores.
TABLES = {
    "runs.csv": (Cell, "epoch", Scores),
    "text.csv": (TextCell, "update", Losses),
}


class Results:
    """The lines of a folder's tables."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def done(self):
        """Return {cell: {epoch or update: scores}} of all runs that came to their end."""
        found = {}
        for name, (kind, when, scored) in TABLES.items():
            for line in csv.DictReader(self._whole_lines(name).splitlines(), restval="nan"):
                cell, scores = _read(kind, line), _read(scored, line)
                found.setdefault(cell, {})[int(line[when])] = scores
        return {cell: scores for cell, scores in found.items() if cell.last in scores}

    def mend(self):
        """Take away what a kill left of a line, before more are added."""
        for name in TABLES:
            file = self.folder / name
            if file.exists():
                os.truncate(file, len(self._whole_lines(name).encode()))

    def add(self, cell, scores):
        """Write a run's {epoch or update: scores}."""
        [(name, fields)] = [
            (name, (*kind._fields, when, *scored._fields))
            for name, (kind, when, scored) in TABLES.items()
            if isinstance(cell, kind)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / name).open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(fields)
            for when, values in scores.items():
                rounded = [f"{value:.5g}" for value in values]
                writer.writerow([*cell, when, *rounded])

    def _whole_lines(self, name):
        file = self.folder / name
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        return text[: text.rfind("\n") + 1]


def _read(kind, line):
    return kind(*(convert(line[name]) for name, convert in kind.__annotations__.items()))
