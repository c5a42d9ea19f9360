"""Which optimizer variable belongs to which variable; saving and loading by that.

Keras saves an optimizer's variables by position. The same positions are used here, so that any
tool that reads a `.keras` file reads ours; beside them lies one array that says what each is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._align import align

LAYOUT = "layout"  # a uint8 array with JSON; "a/b" would become a nested HDF5 group
MASTER = "master"
AVERAGE = "average"  # Keras' name of its moving average's slots


class Slots:
    """The optimizer variables of each variable, by the variable's key and the slot's name.

    One plain object, so that Keras' tracking of lists and dicts does not copy what is in it.
    """

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.rows: list[tuple[tuple[Any, ...], Any]] = []  # (slots, master or None) by index
        self._slots: dict[tuple[Any, str | None], Any] = {}
        self._paths: dict[Any, str] = {}  # also of variables that left

    def get(self, key: Any, name: str | None) -> Any:
        """Return a slot that was made already, or None."""
        return self._slots.get((key, name))

    def add(self, key: Any, name: str | None, slot: Any) -> None:
        """Remember a slot."""
        self._slots[key, name] = slot

    def begin(self, keys: Sequence[Any], paths: Sequence[str]) -> None:
        """Start a build on these variables."""
        self.keys = list(keys)
        self._paths.update(zip(keys, paths, strict=True))

    def finish(self, names: Sequence[str]) -> None:
        """End a build: line up each variable's slots."""
        self.rows = [
            (
                tuple(self._slots.get((key, name)) for name in names),
                self._slots.get((key, MASTER)),
            )
            for key in self.keys
        ]

    def layout(self, variables: Sequence[Any]) -> list[list[Any]]:
        """Return [name, path or None, shape] of each of the optimizer's variables."""
        owners = {id(slot): (name, self._paths[key]) for (key, name), slot in self._slots.items()}
        return [[*owners.get(id(v), (v.name, None)), list(v.shape)] for v in variables]


def save(optimizer: Any, store: Any) -> None:
    """Write each variable under its position, and beside them what they are."""
    for i, variable in enumerate(optimizer.variables):
        store[str(i)] = variable.numpy()
    layout = {"version": 1, "variables": optimizer._slots.layout(optimizer.variables)}
    store[LAYOUT] = np.frombuffer(json.dumps(layout).encode(), dtype=np.uint8)


def load(optimizer: Any, store: Any) -> None:
    """Read each variable from where the saved layout has it.

    Slots go by the variable that they belong to: reordered layers find their moments, new
    variables start fresh. Nothing is assigned before all is checked.
    """
    saved = json.loads(np.asarray(store[LAYOUT]).tobytes())["variables"]
    if _owners(saved) and not optimizer.built:
        warnings.warn(
            f"The state of optimizer '{optimizer.name}' was not loaded: it is not built, so it has "
            "no variables to load into. Call `optimizer.build(model.trainable_variables)` first.",
            UserWarning,
            stacklevel=3,
        )
        return
    wanted = optimizer._slots.layout(optimizer.variables)
    sources = _sources(saved, wanted)
    for (name, path, shape), source in zip(wanted, sources, strict=True):
        if source is not None and saved[source][2] != shape:
            raise ValueError(
                f"The saved {name} of {path} does not fit: the variable has shape {tuple(shape)}. "
                f"Received: shape {tuple(saved[source][2])}, saved for {saved[source][1]}. Give "
                "the variable's layer another name to start it fresh, or load the weights alone."
            )
    for variable, source in zip(optimizer.variables, sources, strict=True):
        if source is not None:
            variable.assign(np.asarray(store[str(source)]))
    _start_averages(optimizer, wanted, sources)
    _report(saved, wanted, sources)


def _sources(saved: list[list[Any]], wanted: list[list[Any]]) -> list[int | None]:
    """Return, for each wanted entry, the position of the saved one that it continues."""
    old, new = _owners(saved), _owners(wanted)
    pairs = align(list(old.items()), list(new.items()), what="the saved optimizer state")
    old_paths = list(old)
    path_of = {
        path: None if j is None else old_paths[j] for path, j in zip(new, pairs, strict=True)
    }
    places = {(name, path): i for i, (name, path, _) in enumerate(saved)}
    return [
        places.get((name, None)) if path is None else places.get((name, path_of[path]))
        for name, path, _ in wanted
    ]


def _owners(layout: list[list[Any]]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(shape) for _, path, shape in layout if path is not None}


def _start_averages(optimizer: Any, wanted: list[list[Any]], sources: list[int | None]) -> None:
    """Start the moving average of a new variable at the variable: its zeros are no average."""
    values = dict(
        zip(
            (row.path for row in optimizer._table.rows), optimizer._trainable_variables, strict=True
        )
    )
    for variable, (name, path, _), source in zip(optimizer.variables, wanted, sources, strict=True):
        if name == AVERAGE and source is None and path in values:
            variable.assign(values[path])


def _report(saved: list[list[Any]], wanted: list[list[Any]], sources: list[int | None]) -> None:
    fresh = [entry for entry, source in zip(wanted, sources, strict=True) if source is None]
    used = set(sources)
    unused = [entry for i, entry in enumerate(saved) if i not in used]
    # A file of an optimizer that was not built yet has nothing to find.
    if (fresh and _owners(saved)) or unused:
        matched = sum(source is not None for source in sources)
        warnings.warn(
            f"{matched} of {len(wanted)} optimizer variables were found in the file. "
            f"Started fresh: {_names(fresh)}. In the file only: {_names(unused)}.",
            UserWarning,
            stacklevel=2,
        )


def _names(entries: list[list[Any]]) -> str:
    names = [name if path is None else f"{name} of {path}" for name, path, _ in entries]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more
