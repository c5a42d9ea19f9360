"""The results on disk: one CSV for the runs' ends, one for the curves of the restarts.

A run's lines are written when it ends, so that a killed experiment goes on where it was.
"""

import csv
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from training import Cell, Scores

FIELDS = (*Cell._fields, "epoch", *Scores._fields)


class Results:
    """The lines of a folder's `runs.csv`."""

    def __init__(self, folder):
        self.file = Path(folder) / "runs.csv"
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def done(self):
        """Return {cell: {epoch: Scores}} of all runs that came to their end."""
        found = {}
        for line in self._lines():
            cell = Cell(*(kind(line[name]) for name, kind in Cell.__annotations__.items()))
            scores = Scores(*(float(line[name]) for name in Scores._fields))
            found.setdefault(cell, {})[int(line["epoch"])] = scores
        return {cell: scores for cell, scores in found.items() if cell.epochs in scores}

    def add(self, cell, scores):
        """Write a run's {epoch: Scores}."""
        new = not self.file.exists()
        with self.file.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(FIELDS)
            for epoch, values in scores.items():
                rounded = [f"{value:.5g}" for value in values]
                writer.writerow([*cell, epoch, *rounded])

    def _lines(self):
        if not self.file.exists():
            return []
        with self.file.open(newline="", encoding="utf-8") as file:
            # A kill may have cut the last line off.
            return [line for line in csv.DictReader(file) if None not in line.values()]

    def describe(self):
        """Write what made the results beside them."""
        packages = ("keras", "jax", "numpy", "keras-decoupled")
        about = {
            "command": " ".join(["python", "benchmarks/paper/run.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).date().isoformat(),
            "python": platform.python_version(),
            "processor": _processor(),
            "versions": {name: version(name) for name in packages},
        }
        text = json.dumps(about, indent=2) + "\n"
        self.file.with_name("about.json").write_text(text, encoding="utf-8")


def _processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()
