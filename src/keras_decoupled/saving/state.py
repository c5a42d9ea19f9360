"""Saving and loading the optimizer's arrays, each by the variable that it belongs to.

Keras saves an optimizer's variables by position. So do we: any tool that reads a `.keras` file can
read ours. One more array, the layout, says what each array is.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_decoupled import checks
from keras_decoupled.paths.align import align
from keras_decoupled.schedule.exact import INT32_MAX

LAYOUT = "layout"  # key of a uint8 array with JSON; a key "a/b" would become a nested HDF5 group
VERSION = 1  # of the layout
ACCUMULATOR = "gradient_accumulator"  # Keras' name of its gradient accumulators
# Settings that every optimizer has. For each setting except r, the layout has the number that the
# optimizer was made with, as "given".
SETTINGS = ("learning_rate", "learning_rate_factor", "weight_decay")
# Names of our optimizer variables that belong to no variable of the model.
SCALARS = ("iteration", "cycle_start", "decay_start", *SETTINGS)
COUNTER = ("iteration", None)  # of micro-batches
_LEAST_RATE = float(np.finfo("float32").tiny)  # a number divided by it stays finite
# The least and the greatest value of a scalar. The start of a cycle is below 0 if the cycle began
# before the first update.
_RANGES = {
    "iteration": (0, INT32_MAX),
    "cycle_start": (-INT32_MAX, INT32_MAX),
    "decay_start": (0, INT32_MAX),
} | dict.fromkeys(SETTINGS, (0, float(np.finfo("float32").max)))


class Loaded(NamedTuple):
    """What `load` leaves to the optimizer."""

    factor: float | None  # r
    fresh: list[tuple[Any, str, Any]]  # (variable, name, label) of those that the file lacks


def save(store: Any, variables: Sequence[Any], layout: dict[str, Any]) -> None:
    """Write each variable under its position, and the layout."""
    lost = False
    for i, (variable, (name, _)) in enumerate(zip(variables, layout["variables"], strict=True)):
        parts = _parts(variable, name)
        array = sum(part.numpy() for part in parts) if parts else variable.numpy()
        store[str(i)] = array
        lost |= bool(parts and len(parts) < _replicas(variable) and np.any(array))
    # Other processes' parts are not gathered: a process that saves alone would wait forever.
    if lost:
        warnings.warn(
            "The file has only this process' part of the gradients accumulated so far. Save when "
            "there are none: after a multiple of gradient_accumulation_steps batches.",
            UserWarning,
            stacklevel=3,
        )
    text = json.dumps({"version": VERSION, **layout})
    store[LAYOUT] = np.frombuffer(text.encode(), dtype=np.uint8)


def load(
    store: Any,
    variables: Sequence[Any],
    layout: dict[str, Any],
    settings: Mapping[str, Any],
    optimizer: str,
    built: bool,
    part_slot: str,
) -> Loaded | None:
    """Read each variable from its place in the saved layout; None if there is nothing to load.

    A slot is found by its variable: reordered layers find their moments, and new variables start
    fresh. Everything is checked before anything is assigned.

    Args:
        store: Keras' store of the file.
        variables: the optimizer's variables.
        layout: what they are; see `Parts.layout`.
        settings: each `Setting` but the rate, by name.
        optimizer: the optimizer's name, for messages.
        built: whether the optimizer is built.
        part_slot: the slot that only some parts of the optimizer have; "" if it has one part.
    """
    present = set(store.keys())  # once: it is slow for a file in several shards
    if LAYOUT not in present:
        _warn_of_nothing(
            optimizer,
            "another optimizer wrote it, or a tool that left out the layout. The optimizer starts "
            "fresh. To continue from an optimizer of Keras, load it, and pass it to `from_keras`.",
        )
        return None
    saved = _read_layout(store)
    mine, theirs = layout["class"], saved.get("class", layout["class"])  # before 0.3: no name
    if theirs != mine:
        _warn_of_nothing(
            optimizer,
            f"it is of {theirs}, whose moments mean something else to {mine}. {mine} starts fresh, "
            f"with the weights that were loaded. To resume that training, load it into {theirs}.",
        )
        return None
    if saved["built"] and not built:
        _warn_of_nothing(
            optimizer,
            "it is not built, so the optimizer has no variables to load into. Call "
            "`optimizer.build(model.trainable_variables)` first.",
        )
        return None
    places = {tuple(entry): i for i, entry in enumerate(saved["variables"])}
    continued: dict[Any, Any] = {None: None, **_continued(saved, layout)}
    if part_slot:
        _check_parts(part_slot, saved["variables"], layout["variables"], continued)
    steps, steps_now = saved.get("accumulation", layout["accumulation"]), layout["accumulation"]
    read, fresh, used = [], [], set()
    # A setting has no label. A user's slot may have the same name, but it has one.
    moving = {(name, None) for name in (*SETTINGS, *layout["given"], *saved["given"])}
    for variable, (name, label) in zip(variables, layout["variables"], strict=True):
        if (name, label) in moving:
            continue
        source = places.get((name, continued[label])) if label in continued else None
        if source is None:
            fresh.append((variable, name, label))
        else:
            used.add(source)
            array = _array(store, present, source, variable, (name, label))
            if (name, label) == COUNTER:
                array = np.asarray(recounted(int(array), steps, steps_now))
            read.append((variable, array))
    given = saved["given"]
    numbers = {
        entry[0]: float(_array(store, present, places[entry], np.zeros(()), entry))
        for entry in moving & places.keys()
    }
    # In one order: on JAX, several processes have to assign the same variable at the same time.
    for name, setting in settings.items():
        if name in numbers and given.get(name) is not None:
            read.append((setting.variable, setting.loaded(given[name], numbers[name])))
    factor = _factor(numbers, given["learning_rate"])
    for variable, value in read:
        variable.assign(value)
    if saved["built"]:  # a file of an optimizer that was not built has nothing to find
        unused = [e for e, i in places.items() if i not in used and e not in moving]
        _report([(name, label) for _, name, label in fresh], unused, len(variables))
    return Loaded(factor, fresh)


def recounted(count: int, steps: int, steps_now: int) -> int:
    """Return the count of micro-batches after the same updates of `steps_now` micro-batches."""
    updates, waiting = divmod(count, steps)
    if waiting and steps_now != steps:
        checks.refuse(
            "gradient_accumulation_steps",
            checks.Seen(
                f"{steps_now} for an optimizer that has accumulated {waiting} of {steps} gradients"
            ),
            "can be changed only between two updates",
            "Leave it as it is, and train until the next update first.",
        )
    return updates * steps_now + waiting


def check_weights(weights: Sequence[Any], variables: Sequence[Any]) -> None:
    """Raise if `set_weights` got values that do not fit the optimizer's variables."""
    received = [tuple(np.shape(weight)) for weight in weights]
    expected = [tuple(variable.shape) for variable in variables]
    if received == expected:
        return
    both = zip(received, expected, strict=False)
    place = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], both)))
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
        f"The state of optimizer '{optimizer}' was not loaded: {why}", UserWarning, stacklevel=5
    )


def _factor(numbers: Mapping[str, float], given: float | None) -> float | None:
    """Return r, the factor that the saved optimizer had.

    The rate itself is not loaded, so an optimizer made with another learning rate keeps its own
    rate.
    """
    rate = numbers.get("learning_rate")
    if rate is None or given is None:
        return numbers.get("learning_rate_factor")
    return checks.real(
        "the saved learning rate over that of the saved optimizer",
        rate / float(np.float32(given)),
        minimum=0.0,
        below=checks.FLOAT32,
        cure=checks.OF_A_FILE,
    )


def _read_layout(store: Any) -> dict[str, Any]:
    """Return the saved layout, checked: a file may hold anything in its place."""
    name = "the layout of the saved optimizer state"
    array = np.asarray(store[LAYOUT])
    layout: Any = None
    with contextlib.suppress(ValueError, RecursionError):  # not text, not JSON, or "[[[[[…"
        layout = json.loads(array.tobytes()) if array.dtype == np.uint8 else None
    version, *lists = checks.fields(name, layout, ("version", "built", "left", "variables"))
    if version != VERSION:
        checks.refuse(
            name,
            checks.Seen(f"version {version!r}"),
            f"must be of version {VERSION}",
            "A later version of keras_decoupled wrote it: install that one, or load the weights "
            "alone: load_model(compile=False).",
        )
    for key, entries in zip(("built", "left", "variables"), lists, strict=True):
        for i, entry in enumerate(checks.listed(f"{name}: {key}", entries)):
            where = f"{name}: {key}[{i}]"
            label, rest = checks.listed(where, entry, length=2)
            checks.text(where, label)
            if key != "variables":
                checks.shape(where, rest)
            elif rest is not None:
                checks.text(where, rest)
    checks.text(f"{name}: class", layout.get("class", ""))
    accumulation = layout.get("accumulation", 1)  # before 0.3: none
    checks.integer(f"{name}: accumulation", accumulation, minimum=1, cure=checks.OF_A_FILE)
    names = ("learning_rate", "weight_decay")
    given = layout.get("given", dict.fromkeys(names))  # a file of 0.1 has no such numbers
    checks.fields(f"{name}: given", given, names)
    for key, number in given.items():
        if number is not None:
            least = {"learning_rate": _LEAST_RATE, "weight_decay": 0.0}.get(key)
            checks.real(f"{name}: given[{key!r}]", number, minimum=least, cure=checks.OF_A_FILE)
    return {**layout, "given": given}


def _array(
    store: Any, present: set[str], source: int, variable: Any, entry: tuple[str, str | None]
) -> np.ndarray:
    """Return the saved value of an optimizer variable, checked."""
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
    """Return the replicas' parts of an accumulator under tf.distribute; their sum is its value.

    All replicas have the same value of every other variable.
    """
    if name != ACCUMULATOR:
        return ()
    parts = getattr(getattr(variable, "value", None), "values", ())  # torch has a method `values`
    return parts if isinstance(parts, tuple) else ()


def _replicas(variable: Any) -> int:
    """Return how many replicas have a part of an accumulator, in all processes."""
    return int(variable.value.distribute_strategy.num_replicas_in_sync)


def _continued(saved: dict[str, Any], wanted: dict[str, Any]) -> dict[str, str]:
    """Return, by label, which saved variable each variable continues.

    The variables of both last builds are lined up. A variable that only an earlier build had, here
    or in the file, is found by its label alone.
    """
    old, new = saved["built"], wanted["built"]
    pairs = align(old, new, what="the saved optimizer state")
    continued = {new[i][0]: old[j][0] for i, j in enumerate(pairs) if j is not None}
    shapes = dict(map(tuple, (*old, *saved["left"])))
    free = shapes.keys() - set(continued.values())
    for label, shape in (*new, *wanted["left"]):
        if label in free:
            continued.setdefault(label, label)
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


def _check_parts(
    slot: str, old: Sequence[Any], new: Sequence[Any], continued: Mapping[Any, Any]
) -> None:
    """Refuse a state of variables that another part of the optimizer has stepped."""
    there, here = ({label for name, label in entries if name == slot} for entries in (old, new))
    known = {label for _, label in old}
    for _, label in new:
        source = continued.get(label)
        if source in known and (source in there) != (label in here):
            of_file, of_this = ("a", "no") if source in there else ("no", "a")
            seen = f"{label} with {of_file} {slot}, where this optimizer has {of_this} {slot}"
            checks.refuse(
                "the saved optimizer state",
                checks.Seen(seen),
                "is of an optimizer that steps some variables as matrices where this one does not, "
                "or the other way round",
                "Load the whole model: load_model() keeps the parts. Or make the optimizer with "
                "`exclude_layers` and `matrix_axes` that give the same parts.",
            )


def _report(fresh: Sequence[Any], unused: Sequence[Any], count: int) -> None:
    if fresh or unused:
        warnings.warn(
            f"{count - len(fresh)} of {count} optimizer variables were found in the file. "
            f"Started fresh: {_names(fresh)}. In the file only: {_names(unused)}.",
            UserWarning,
            stacklevel=4,
        )


def _names(entries: Sequence[Any]) -> str:
    names = [name if label is None else f"{name} of {label}" for name, label in entries]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more
