"""Saving and loading the optimizer's arrays, each by the variable that it belongs to.

Keras saves an optimizer's variables by position. The same positions are used here, so that any
tool that reads a `.keras` file reads ours; beside them lies one array that says what each is.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_decoupled import checks
from keras_decoupled.paths.align import align
from keras_decoupled.schedule.exact import INT32_MAX

LAYOUT = "layout"  # a uint8 array with JSON; "a/b" would become a nested HDF5 group
VERSION = 1  # of the layout
ACCUMULATOR = "gradient_accumulator"  # Keras' name of its gradient accumulators
# Numbers that a user may set. A file has them relative to what the optimizer was made with.
SETTINGS = ("learning_rate", "learning_rate_factor", "weight_decay")
# Names of our optimizer variables that belong to no variable of the model.
SCALARS = ("iteration", "cycle_start", "decay_start", *SETTINGS)
_LEAST_RATE = float(np.finfo("float32").tiny)  # what is divided by it stays a number
# The least and the most that a scalar can be. A cycle that began before the first update has a
# start below 0.
_RANGES = {
    "iteration": (0, INT32_MAX),
    "cycle_start": (-INT32_MAX, INT32_MAX),
    "decay_start": (0, INT32_MAX),
} | dict.fromkeys(SETTINGS, (0, float(np.finfo("float32").max)))


class Loaded(NamedTuple):
    """What `load` did not assign itself."""

    factor: float | None  # r
    weight_decay: tuple[float, float] | None  # λ (given, now)
    fresh: list[tuple[Any, str, Any]]  # (variable, name, label) that the file does not have


def save(store: Any, variables: Sequence[Any], layout: dict[str, Any]) -> None:
    """Write each variable under its position, and beside them the layout."""
    lost = False
    for i, (variable, (name, _)) in enumerate(zip(variables, layout["variables"], strict=True)):
        parts = _parts(variable, name)
        array = sum(part.numpy() for part in parts) if parts else variable.numpy()
        store[str(i)] = array
        lost |= bool(parts and len(parts) < _replicas(variable) and np.any(array))
    if lost:  # not gathered from the other processes: where only one saves, it would wait forever
        warnings.warn(
            "The file has only this process' part of the gradients accumulated so far. Save where "
            "none are: after a multiple of gradient_accumulation_steps batches.",
            UserWarning,
            stacklevel=3,
        )
    text = json.dumps({"version": VERSION, **layout})
    store[LAYOUT] = np.frombuffer(text.encode(), dtype=np.uint8)


def load(
    store: Any, variables: Sequence[Any], layout: dict[str, Any], optimizer: str, built: bool
) -> Loaded | None:
    """Read each variable from where the saved layout has it; None where there is nothing to load.

    Slots go by the variable that they belong to: reordered layers find their moments, new
    variables start fresh. Nothing is assigned before all is checked.

    Args:
        store: Keras' store of the file.
        variables: the optimizer's variables.
        layout: what they are, see `Slots.layout`.
        optimizer: the optimizer's name, for messages.
        built: whether the optimizer is built.
    """
    present = set(store.keys())  # once: of a file in several shards it takes its time
    if LAYOUT not in present:
        _warn_of_nothing(
            optimizer,
            "another optimizer wrote it, or a tool that left out what its arrays are. It starts "
            "fresh.",
        )
        return None
    saved = _read_layout(store)
    if saved["built"] and not built:
        _warn_of_nothing(
            optimizer,
            "it is not built, so it has no variables to load into. Call "
            "`optimizer.build(model.trainable_variables)` first.",
        )
        return None
    entries = layout["variables"]
    continued = _continued(saved, layout)
    places = {tuple(entry): i for i, entry in enumerate(saved["variables"])}
    sources = [
        places.get((name, None if label is None else continued.get(label)))
        if not _is_setting(name, label) and (label is None or label in continued)
        else None
        for name, label in entries
    ]
    values = [
        None if source is None else _array(store, present, source, variable, entry)
        for variable, entry, source in zip(variables, entries, sources, strict=True)
    ]
    settings = _settings(store, present, saved)
    for variable, value in zip(variables, values, strict=True):
        if value is not None:
            variable.assign(value)
    fresh = [
        (variable, name, label)
        for variable, (name, label), source in zip(variables, entries, sources, strict=True)
        if source is None and not _is_setting(name, label)
    ]
    if saved["built"]:  # a file of an optimizer that was not built yet has nothing to find
        used = set(sources)
        unused = [
            entry
            for i, entry in enumerate(saved["variables"])
            if i not in used and not _is_setting(*entry)
        ]
        _report([[name, label] for _, name, label in fresh], unused, len(entries))
    return Loaded(*settings, fresh)


def _is_setting(name: str, label: str | None) -> bool:
    """Tell whether a scalar is a setting of ours; a user's slot may be called alike."""
    return label is None and name in SETTINGS


def check_weights(weights: Sequence[Any], variables: Sequence[Any]) -> None:
    """Refuse values that do not fit the optimizer's variables, for `set_weights`."""
    received = [tuple(np.shape(weight)) for weight in weights]
    expected = [tuple(variable.shape) for variable in variables]
    if received == expected:
        return
    pairs = enumerate(zip(received, expected, strict=False))
    shorter = min(len(received), len(expected))
    place = next((i for i, (a, b) in pairs if a != b), shorter)
    what = variables[place].path if place < len(variables) else "nothing more"
    checks.refuse(
        "set_weights",
        checks.Seen(
            f"{len(received)} values; the first that does not fit is number {place}, where {what} "
            "is expected"
        ),
        f"needs {len(expected)} values with the shapes of `optimizer.variables`",
        "Values of another optimizer, or of this one built on other variables, do not fit.",
    )


def _warn_of_nothing(optimizer: str, why: str) -> None:
    warnings.warn(
        f"The state of optimizer '{optimizer}' was not loaded: {why}", UserWarning, stacklevel=4
    )


def _settings(
    store: Any, present: set[str], saved: dict[str, Any]
) -> tuple[float | None, tuple[float, float] | None]:
    """Return r, and λ as it was given and as it was when it was saved.

    So the state of a run at one learning rate goes on in an optimizer made with another: it brings
    the factor that callbacks left, and not the rate.
    """
    found: dict[str, float] = {}
    for i, entry in enumerate(saved["variables"]):
        if _is_setting(*entry):
            found[entry[0]] = float(_array(store, present, i, np.zeros(()), entry))
    given = saved["given"]
    factor = found.get("learning_rate_factor")
    if "learning_rate" in found and given["learning_rate"] is not None:
        factor = checks.real(
            "the saved learning rate over that of the saved optimizer",
            found["learning_rate"] / float(np.float32(given["learning_rate"])),
            minimum=0.0,
            below=checks.FLOAT32,
            cure=checks.OF_A_FILE,
        )
    decay = None
    if "weight_decay" in found and given["weight_decay"] is not None:
        decay = (given["weight_decay"], found["weight_decay"])
    return factor, decay


def _read_layout(store: Any) -> dict[str, Any]:
    """Return the saved layout; a file may hold anything in its place."""
    name = "the layout of the saved optimizer state"
    array = np.asarray(store[LAYOUT])
    try:
        layout = json.loads(array.tobytes()) if array.dtype == np.uint8 else None
    except (ValueError, RecursionError):  # no text, no JSON, or "[[[[[…"
        layout = None
    keys = ("version", "built", "left", "variables")
    parts = dict(zip(keys, checks.fields(name, layout, keys), strict=True))
    if parts["version"] != VERSION:
        checks.refuse(
            name,
            checks.Seen(f"version {parts['version']!r}"),
            f"must be of version {VERSION}",
            "A later version of keras_decoupled wrote it: install that one, or load the weights "
            "alone: load_model(compile=False).",
        )

    def each(key: str, read: Callable[[str, Any], list[Any]]) -> list[list[Any]]:
        entries = checks.listed(f"{name}: {key}", parts[key])
        return [read(f"{name}: {key}[{i}]", entry) for i, entry in enumerate(entries)]

    no_settings = {"learning_rate": None, "weight_decay": None}  # in a file of 0.1
    given = (layout or {}).get("given", no_settings)
    given = dict(
        zip(no_settings, checks.fields(f"{name}: given", given, [*no_settings]), strict=True)
    )
    for key, number in given.items():
        if number is not None:
            least = _LEAST_RATE if key == "learning_rate" else 0.0
            checks.real(f"{name}: given[{key!r}]", number, minimum=least, cure=checks.OF_A_FILE)
    return {
        "given": given,
        "built": each("built", _entry),
        "left": each("left", _entry),
        "variables": each("variables", _slot),
    }


def _entry(name: str, entry: Any) -> list[Any]:
    label, shape = entry = checks.listed(name, entry, length=2)
    checks.text(name, label)
    checks.shape(name, shape)
    return entry


def _slot(name: str, entry: Any) -> list[Any]:
    slot, label = entry = checks.listed(name, entry, length=2)
    checks.text(name, slot)
    if label is not None:
        checks.text(name, label)
    return entry


def _array(
    store: Any, present: set[str], source: int, variable: Any, entry: list[Any]
) -> np.ndarray:
    """Return the saved value of an optimizer variable, once it is seen to fit."""
    wanted = str(variable.dtype)
    found = str(source) in present
    array = np.asarray(store[str(source)] if found else None)
    fits = array.dtype.kind in ("b" if wanted == "bool" else "iu" if "int" in wanted else "fiu")
    if fits and entry[1] is None and entry[0] in _RANGES:
        least, most = _RANGES[entry[0]]
        fits = bool(np.all((array >= least) & (array <= most)))
    if array.shape != tuple(variable.shape) or not fits:
        received = f"{array.dtype} of shape {array.shape}: {array!r:.100}" if found else "none"
        checks.refuse(
            "the saved optimizer state",
            checks.Seen(received),
            f"must have an array of shape {tuple(variable.shape)} and type {wanted}, with a value "
            f"in its range, for {_names([entry])}",
            "The file is damaged: load the weights alone, load_model(compile=False).",
        )
    return array / _replicas(variable) if _parts(variable, entry[0]) else array


def _parts(variable: Any, name: str) -> Sequence[Any]:
    """Return the replicas' parts of an accumulator under tf.distribute, whose sum it stands for.

    Of every other variable the replicas have one value.
    """
    if name != ACCUMULATOR:
        return ()
    parts = getattr(getattr(variable, "value", None), "values", ())  # of a torch tensor, a method
    return parts if isinstance(parts, tuple) else ()


def _replicas(variable: Any) -> int:
    """Return how many replicas have a part of an accumulator, those of other processes too."""
    return int(variable.value.distribute_strategy.num_replicas_in_sync)


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
            checks.refuse(
                "the saved optimizer state",
                checks.Seen(f"shape {tuple(shapes[source])}"),
                f"of {source} does not fit {label}, which has shape {tuple(shape)}",
                "Give that layer another name to start it fresh, or load the weights alone: "
                "load_model(compile=False).",
            )
    return continued


def _report(fresh: list[list[Any]], unused: list[list[Any]], count: int) -> None:
    if fresh or unused:
        warnings.warn(
            f"{count - len(fresh)} of {count} optimizer variables were found in the "
            f"file. Started fresh: {_names(fresh)}. In the file only: {_names(unused)}.",
            UserWarning,
            stacklevel=3,
        )


def _names(entries: list[list[Any]]) -> str:
    names = [name if label is None else f"{name} of {label}" for name, label in entries]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more
