"""Which key of the user speaks for which variable. Knows nothing of Keras.

A string is tried in three ways. The first that hits anything is what it means:

    exact       the label of one variable              "lstm_1/lstm_cell/kernel", "dense/kernel#2"
    component   a run of whole components of a path    "lstm_1", "bias", "lstm_cell/kernel", "dense/"
    substring   a part of a path, no number cut        "conv1d" hits conv1d_0 and conv1d_1

A tuple of labels stands for the variables of a layer, and hits exactly these.

A label is the variable's path, or "path#2", "path#3" where variables share one. For one variable
an exact key beats every other. Among the rest the key given last wins.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

from keras_decoupled.checks import Seen, refuse

K = TypeVar("K", bound=str | tuple[str, ...])

_ORDINAL = re.compile(r"#\d+$")
_AUTO_NUMBERED = re.compile(r"(.+)_\d+")
SHOWN = 5  # paths in a message


def labels(paths: Sequence[str]) -> list[str]:
    """Return unique names for paths: variables that share one are "path", "path#2", "path#3"."""
    given = set(paths)  # a path that itself reads "x#2" keeps its name, and the second x is "x#3"
    ordinals = dict.fromkeys(paths, 1)
    seen: set[str] = set()
    names = []
    for path in paths:
        name = path
        while name in seen or (name != path and name in given):
            ordinals[path] += 1
            name = f"{path}#{ordinals[path]}"
        seen.add(name)
        names.append(name)
    return names


def path_of(variable: Any) -> str:
    """Return a variable's path; a raw `tf.Variable` has a name only."""
    return getattr(variable, "path", None) or str(variable.name).removesuffix(":0")


def path_in(label: str) -> str:
    """The path in a label: "a/kernel#2" gives "a/kernel"."""
    return _ORDINAL.sub("", label)


def components(label: str) -> tuple[str, ...]:
    """The components of a label's path: "a/kernel#2" gives ("a", "kernel")."""
    return tuple(path_in(label).split("/"))


def deciding_keys(keys: Iterable[K], names: Sequence[str], **options: Any) -> list[K | None]:
    """Return the key that decides for each variable, None where none hits it; see `decide`."""
    return decide(keys, names, **options)[0]


def decide(
    keys: Iterable[K],
    names: Sequence[str],
    *,
    argument: str,
    others: Sequence[str] = (),
    strict: bool = True,
    by_own_name: Container[int] = (),
) -> tuple[list[K | None], list[K]]:
    """Return the key that decides for each variable, and the keys that others override everywhere.

    A key that hits nothing is not overridden.

    Args:
        keys: as the user gave them, in order; the module's docstring says what a key hits. A tuple
            may hit nothing: a layer that is frozen.
        names: labels of the variables to be resolved, as `labels` makes them.
        argument: what the user calls the keys' dict, for the messages.
        others: labels of variables that exist but are not resolved now (frozen ones). A key that
            hits only these is accepted, and they count where a key is compared with what else
            there is.
        strict: whether a string that hits no variable at all is an error. After a load it is not,
            as paths may have changed.
        by_own_name: positions of variables for which only a key that ends in their last component
            counts: "bias" and "head/bias", but not "head".

    Raises:
        TypeError: a key is neither a string nor a tuple.
        ValueError: a key is empty, hits nothing (if `strict`), or is a component with auto-numbered
            siblings.
    """
    keys = list(keys)
    paths = _Paths([*names, *others] if keys else ())  # the index of many paths takes its time
    exact: dict[int, K] = {}
    general: dict[int, K] = {}
    hitting: dict[K, None] = {}
    for key in keys:
        hits, is_path = _hits(key, paths, argument, strict, len(names))
        if hits:
            hitting[key] = None
        (exact if is_path else general).update(
            {
                i: key
                for i in hits
                if is_path or i not in by_own_name or _names_itself(key, names[i])
            }
        )
    deciding = general | exact
    won = set(deciding.values())
    overridden = [key for key in hitting if key not in won]
    return [deciding.get(i) for i in range(len(names))], overridden


def _hits(
    key: Any, paths: _Paths, argument: str, strict: bool, count: int
) -> tuple[list[int], bool]:
    """Return which of the first `count` variables a key hits, and whether it is one's label."""
    is_path = False
    if isinstance(key, tuple):
        # None of them may be here: of a frozen layer, say, in a config.
        hits = [paths.position[label] for label in key if label in paths.position]
    else:
        _check(key, argument)
        if key in paths.position:
            hits, is_path = [paths.position[key]], True
        else:
            hits = paths.with_components(key)
            if not hits and not key.endswith("/"):
                hits = paths.with_substring(key)
            # If not strict, a key that decides nothing now may be as unclear as it likes.
            elif hits and (strict or hits[0] < count):
                _check_siblings(key, paths, argument)
            if strict and not hits:
                _refuse_unknown(key, paths, argument)
    return [i for i in hits if i < count], is_path


def is_vector(label: str, shape: Sequence[int]) -> bool:
    """Tell whether a variable is a bias or the scale of a normalization, as far as its shape and its name say.

    These have fewer than two dimensions; a bias of an attention layer has two, but says "bias".
    """
    last = components(label)[-1]
    return len(shape) < 2 or last == "bias" or last.endswith("_bias")


def nearest(text: str, names: Iterable[str]) -> str:
    """A sentence with the labels among `names` that look most like the text."""
    return _Paths(names).nearest(text)


class _Paths:
    """The variables' labels, indexed once, so that a key looks only at those that may match."""

    def __init__(self, names: Iterable[str]) -> None:
        self.labels = list(dict.fromkeys(names))
        self.position = {label: i for i, label in enumerate(self.labels)}
        self.components = [components(label) for label in self.labels]
        self._having: defaultdict[str, list[int]] = defaultdict(list)
        for i, parts in enumerate(self.components):
            for part in dict.fromkeys(parts):
                self._having[part].append(i)
        # "dense": ["dense_1", "dense_2"]
        self.siblings: defaultdict[str, list[str]] = defaultdict(list)
        for part in self._having:
            if numbered := _AUTO_NUMBERED.fullmatch(part):
                self.siblings[numbered[1]].append(part)

    def with_components(self, key: str) -> list[int]:
        """The variables, in order, whose path has the key as a run of whole components."""
        run = tuple(key.removesuffix("/").split("/"))
        return [
            i for i in self._having.get(run[0], ()) if run in _runs(self.components[i], len(run))
        ]

    def with_substring(self, key: str) -> list[int]:
        """The variables whose path has the key somewhere, beginning and ending inside no number."""
        begin = r"(?<!\d)" if key[0].isdecimal() else ""
        end = r"(?!\d)" if key[-1].isdecimal() else ""
        search = re.compile(begin + re.escape(key) + end).search
        return [i for i, label in enumerate(self.labels) if search(path_in(label))]

    def nearest(self, key: str) -> str:
        if not self.labels:
            return "There are no variables."
        # "dens_1" is nowhere near "model/dense_1/kernel", but near one of its components.
        length = len(key.strip("/").split("/"))
        similar: defaultdict[str, list[str]] = defaultdict(list)
        for label, parts in zip(self.labels, self.components, strict=True):
            for run in _runs(parts, min(length, len(parts))):
                similar["/".join(run).casefold()].append(label)
        near = difflib.get_close_matches(key.strip("/").casefold(), similar, n=SHOWN)
        found = list(dict.fromkeys(label for run in near for label in similar[run]))
        if found:
            return f"The nearest paths: {listed(found)}."
        return f"No path is near it; there are: {listed(self.labels)}."


def _runs(parts: tuple[str, ...], length: int) -> list[tuple[str, ...]]:
    return [parts[i : i + length] for i in range(len(parts) - length + 1)]


def _names_itself(key: str | tuple[str, ...], label: str) -> bool:
    return isinstance(key, str) and key.removesuffix("/").split("/")[-1] == components(label)[-1]


def _check(key: Any, argument: str) -> None:
    what = f"a key of `{argument}`"
    if not isinstance(key, str):
        cure = "Use `variable.path` for one variable, or a part of it for several."
        rule = "must be a string that matches `variable.path`, or a layer"
        refuse(what, key, rule, cure, TypeError)
    if not key.strip("/"):
        cure = "Use a layer's or a variable's name, or leave this key out."
        refuse(what, key, "must name at least one component of a path", cure)


def _check_siblings(key: str, paths: _Paths, argument: str) -> None:
    """Keras counts a class's layers from run to run (dense, dense_1, …): "dense" may be another layer."""
    if key in paths.siblings:
        refuse(
            f"a key of `{argument}`",
            Seen(f"{key!r}, beside {listed(paths.siblings[key])}"),
            "must not be a component that has auto-numbered siblings: automatic names differ from "
            "run to run",
            "Give the layer a name and use that, or a whole path, or "
            f"{key + '/'!r} for exactly this component.",
        )


def _refuse_unknown(key: str, paths: _Paths, argument: str) -> NoReturn:
    refuse(
        f"a key of `{argument}`",
        Seen(repr(key)),
        "must match the path of at least one variable",
        f"{paths.nearest(key)} A key is a path, whole components of one, or a part of one that does "
        "not cut a number in two: correct this key or leave it out. A frozen layer can be the key "
        "itself, and so can a model inside the model, whose name is in no path: "
        "{model.get_layer('backbone'): …}.",
    )


def listed(names: Sequence[str]) -> str:
    """The first of these, for a message."""
    return ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
