"""The results on disk: a line of CSV per run, and per epoch where a run is followed.

A run's lines are written when it ends, so that a killed experiment goes on where it was.
"""

import csv
import math
import os
from pathlib import Path
from typing import NamedTuple


class Cell(NamedTuple):
    """What a run is, and its key in the results."""

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


class Scores(NamedTuple):
    """Mean cross-entropy and share of errors, and what became of the weights."""

    validation_loss: float
    validation_error: float
    test_loss: float
    test_error: float
    zeros: float = (
        math.nan
    )  # share of exact zeros in the kernels; the first runs did not count them


FIELDS = (*Cell._fields, "epoch", *Scores._fields)


class Results:
    """The lines of a folder's `runs.csv`."""

    def __init__(self, folder):
        self.file = Path(folder) / "runs.csv"

    def done(self):
        """Return {cell: {epoch: Scores}} of all runs that came to their end."""
        found = {}
        for line in csv.DictReader(self._whole_lines().splitlines(), restval="nan"):
            cell, scores = _read(Cell, line), _read(Scores, line)
            found.setdefault(cell, {})[int(line["epoch"])] = scores
        return {cell: scores for cell, scores in found.items() if cell.epochs in scores}

    def mend(self):
        """Take away what a kill left of a line, before more are added."""
        if self.file.exists():
            os.truncate(self.file, len(self._whole_lines().encode()))

    def add(self, cell, scores):
        """Write a run's {epoch: Scores}."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(FIELDS)
            for epoch, values in scores.items():
                rounded = [f"{value:.5g}" for value in values]
                writer.writerow([*cell, epoch, *rounded])

    def _whole_lines(self):
        text = self.file.read_text(encoding="utf-8") if self.file.exists() else ""
        return text[: text.rfind("\n") + 1]


def _read(kind, line):
    return kind(*(convert(line[name]) for name, convert in kind.__annotations__.items()))
