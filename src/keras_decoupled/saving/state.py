"""Which optimizer variable belongs to which variable; saving and loading by that.

Keras saves an optimizer's variables by position. The same positions are used here, so that any
tool that reads a `.keras` file reads ours; beside them lies one array that says what each is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_decoupled import checks
from keras_decoupled.core.gradients import Wanted
from keras_decoupled.paths.align import align
from keras_decoupled.paths.match import labels, path_of

LAYOUT = "layout"  # a uint8 array with JSON; "a/b" would become a nested HDF5 group
MASTER = "master"
AVERAGE = "average"  # Keras' name of its moving average's slots
ACCUMULATOR = "gradient_accumulator"  # and of its accumulators'
VERSION = 1  # of the layout
# What cannot be below 0, and the most it can be.
_COUNTED = {"iteration": 2**31 - 1, "learning_rate_factor": np.finfo("float32").max}


class Slots:
    """The optimizer variables of each variable, by the variable's key and the slot's name.

    One plain object, so that Keras' tracking of lists and dicts does not copy what is in it.
    Variables that left (frozen by now, say) keep their slots: they may come back.
    """

    def __init__(self) -> None:
        self.keys: list[Any] = []  # in the order of the build
        self.trainable: list[bool] = []  # at the build
        self.wanted: list[Wanted] = []  # by index: what a gradient has to be
        self.rows: list[tuple[tuple[Any, ...], Any]] = []  # (slots, master or None) by index
        self._slots: dict[tuple[Any, str | None], Any] = {}
        self._owners: dict[Any, Any] = {}  # by key, which is an id: so hold on to the variable

    def get(self, key: Any, name: str | None) -> Any:
        """Return a slot that was made already, or None."""
        return self._slots.get((key, name))

    def add(self, key: Any, name: str | None, slot: Any) -> None:
        """Remember a slot."""
        self._slots[key, name] = slot

    def begin(self, keys: Sequence[Any], variables: Sequence[Any]) -> None:
        """Start a build on these variables."""
        self.keys = list(keys)
        self.trainable = [bool(v.trainable) for v in variables]
        self._owners.update(zip(keys, variables, strict=True))

    def finish(self, names: Sequence[str]) -> None:
        """End a build: line up each variable's slots."""
        self.rows = [
            (
                tuple(self._slots.get((key, name)) for name in names),
                self._slots.get((key, MASTER)),
            )
            for key in self.keys
        ]

    def layout(self, variables: Sequence[Any]) -> dict[str, Any]:
        """Return what the optimizer's variables are.

        `built` and `left` are [label, shape] of the model's variables, in the order of the last
        build; `variables` is [name, label or None] of each optimizer variable.
        """
        keys = [*self.keys, *(key for key in self._owners if key not in set(self.keys))]
        names = labels([path_of(self._owners[key]) for key in keys])
        label_of = dict(zip(keys, names, strict=True))
        entries = [
            [name, list(self._owners[key].shape)] for key, name in zip(keys, names, strict=True)
        ]
        slots = {id(slot): [name, label_of[key]] for (key, name), slot in self._slots.items()}
        return {
            "version": VERSION,
            "built": entries[: len(self.keys)],
            "left": entries[len(self.keys) :],
            "variables": [slots.get(id(v), [v.name, None]) for v in variables],
        }


def save(optimizer: Any, store: Any) -> None:
    """Write each variable under its position, and beside them what they are."""
    layout = optimizer._slots.layout(optimizer.variables)
    for i, (variable, (name, _)) in enumerate(
        zip(optimizer.variables, layout["variables"], strict=True)
    ):
        parts = _parts(variable, name)
        store[str(i)] = sum(part.numpy() for part in parts) if parts else variable.numpy()
    store[LAYOUT] = np.frombuffer(json.dumps(layout).encode(), dtype=np.uint8)


def load(optimizer: Any, store: Any) -> None:
    """Read each variable from where the saved layout has it.

    Slots go by the variable that they belong to: reordered layers find their moments, new
    variables start fresh. Nothing is assigned before all is checked.
    """
    if LAYOUT not in store.keys():  # noqa: SIM118 - Keras' stores have no `in`
        # By position, as Keras reads them, a stock learning rate would become our factor r.
        warnings.warn(
            f"The state of optimizer '{optimizer.name}' was not loaded: another optimizer wrote "
            "it, or a tool that left out what its arrays are. It starts fresh.",
            UserWarning,
            stacklevel=3,
        )
        return
    saved = _read_layout(store)
    if saved["built"] and not optimizer.built:
        warnings.warn(
            f"The state of optimizer '{optimizer.name}' was not loaded: it is not built, so it has "
            "no variables to load into. Call `optimizer.build(model.trainable_variables)` first.",
            UserWarning,
            stacklevel=3,
        )
        return
    wanted = optimizer._slots.layout(optimizer.variables)
    continued = _continued(saved, wanted)
    places = {tuple(entry): i for i, entry in enumerate(saved["variables"])}
    sources = [
        places.get((name, None if label is None else continued.get(label)))
        if label is None or label in continued
        else None
        for name, label in wanted["variables"]
    ]
    values = [
        None if source is None else _array(store, source, variable, entry)
        for variable, entry, source in zip(
            optimizer.variables, wanted["variables"], sources, strict=True
        )
    ]
    for variable, value in zip(optimizer.variables, values, strict=True):
        if value is not None:
            variable.assign(value)
    _start_averages(optimizer, wanted["variables"], sources)
    if saved["built"]:  # a file of an optimizer that was not built yet has nothing to find
        _report(saved["variables"], wanted["variables"], sources)


def _read_layout(store: Any) -> dict[str, Any]:
    """Return the saved layout; a file may hold anything in its place."""
    name = "the layout of the saved optimizer state"
    array = np.asarray(store[LAYOUT])
    try:
        layout = json.loads(array.tobytes()) if array.dtype == np.uint8 else None
    except (ValueError, RecursionError):  # no text, no JSON, or "[[[[[…"
        layout = None
    checks.shallow(name, layout)
    keys = ("version", "built", "left", "variables")
    parts = dict(zip(keys, checks.fields(name, layout, keys), strict=True))
    if parts["version"] != VERSION:
        raise ValueError(
            f"The saved optimizer state must be of version {VERSION}. Received: version "
            f"{parts['version']!r}. A later version of keras_decoupled wrote it: install that one, or load "
            "the weights alone: load_model(compile=False)."
        )

    def each(key: str, read: Callable[[str, Any], list[Any]]) -> list[list[Any]]:
        entries = checks.listed(f"{name}: {key}", parts[key])
        return [read(f"{name}: {key}[{i}]", entry) for i, entry in enumerate(entries)]

    return {
        "built": each("built", _entry),
        "left": each("left", _entry),
        "variables": each("variables", _slot),
    }


def _entry(name: str, entry: Any) -> list[Any]:
    label, shape = checks.listed(name, entry, length=2)
    return [checks.text(name, label), list(checks.shape(name, shape))]


def _slot(name: str, entry: Any) -> list[Any]:
    slot, label = checks.listed(name, entry, length=2)
    return [checks.text(name, slot), None if label is None else checks.text(name, label)]


def _array(store: Any, source: int, variable: Any, entry: list[Any]) -> np.ndarray:
    """Return the saved value of an optimizer variable, once it is seen to fit."""
    wanted = np.dtype(keras.backend.standardize_dtype(variable.dtype))
    found = str(source) in store.keys()  # noqa: SIM118 - Keras' stores have no `in`
    array = np.asarray(store[str(source)] if found else None)
    fits = array.dtype.kind in {"b": "b", "i": "iu", "u": "iu"}.get(wanted.kind, "fiu")
    if fits and entry[0] in _COUNTED:
        fits = bool(np.all((array >= 0) & (array <= _COUNTED[entry[0]])))
    if array.shape != tuple(variable.shape) or not fits:
        received = f"{array.dtype} of shape {array.shape}: {array!r:.100}" if found else "none"
        raise ValueError(
            f"The saved optimizer state must have an array of shape {tuple(variable.shape)} and "
            f"type {wanted}, with a value that there can be, for {_names([entry])}. Received: "
            f"{received}. The file is damaged: load the weights alone, load_model(compile=False)."
        )
    parts = _parts(variable, entry[0])
    return array / len(parts) if parts else array


def _parts(variable: Any, name: str) -> Sequence[Any]:
    """Return the replicas' parts of an accumulator under tf.distribute, whose sum it stands for.

    Of every other variable the replicas have one value.
    """
    parts = getattr(variable.value, "values", ())  # of a torch tensor, a method
    return parts if name == ACCUMULATOR and isinstance(parts, tuple) else ()


def _continued(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """Return, by label, which saved variable each variable continues.

    Those built on are lined up with those built on; one that left, on either side, is known by
    its label alone.
    """
    old, new = saved["built"], wanted["built"]
    pairs = align(old, new, what="the saved optimizer state")
    continued = {new[i][0]: old[j][0] for i, j in enumerate(pairs) if j is not None}
    free = {label for label, _ in (*old, *saved["left"])} - set(continued.values())
    for label, _ in (*new, *wanted["left"]):
        if label in free and label not in continued:
            continued[label] = label
    shapes = dict(map(tuple, (*old, *saved["left"])))
    for label, shape in (*new, *wanted["left"]):
        source = continued.get(label)
        if source is not None and shapes[source] != shape:
            raise ValueError(
                f"The saved optimizer state of {source} does not fit {label}, which has shape "
                f"{tuple(shape)}. Received: shape {tuple(shapes[source])}. Give that layer another "
                "name to start it fresh, or load the weights alone: load_model(compile=False)."
            )
    return continued


def _start_averages(optimizer: Any, wanted: list[list[Any]], sources: list[int | None]) -> None:
    """Start the moving average of a new variable at the variable: its zeros are no average."""
    values = {
        row.path: v
        for row, v in zip(optimizer._table.rows, optimizer._trainable_variables, strict=True)
    }
    for variable, (name, label), source in zip(optimizer.variables, wanted, sources, strict=True):
        if name == AVERAGE and source is None and label in values:
            variable.assign(ops.copy(values[label]))  # on JAX, not the same buffer


def _report(saved: list[list[Any]], wanted: list[list[Any]], sources: list[int | None]) -> None:
    used = set(sources)
    fresh = [entry for entry, source in zip(wanted, sources, strict=True) if source is None]
    unused = [entry for i, entry in enumerate(saved) if i not in used]
    if fresh or unused:
        warnings.warn(
            f"{len(wanted) - len(fresh)} of {len(wanted)} optimizer variables were found in the "
            f"file. Started fresh: {_names(fresh)}. In the file only: {_names(unused)}.",
            UserWarning,
            stacklevel=2,
        )


def _names(entries: list[list[Any]]) -> str:
    names = [name if label is None else f"{name} of {label}" for name, label in entries]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more
