"""Which of the user's keys decides for which variable. Knows nothing of Keras.

A string is tried in three ways. The first way that hits a variable is its meaning:

    exact       the label of one variable              "lstm_1/lstm_cell/kernel", "dense/kernel#2"
    component   consecutive components of a path       "lstm_1", "bias", "dense/", "cell/kernel"
    substring   a part of a path that cuts no number   "conv1d" hits conv1d_0 and conv1d_1;
                one or two letters must be a word      "bn" hits bn2a_branch

A tuple of labels stands for the variables of a layer, and hits exactly these.

A label is the variable's path, or "path#2", "path#3" if variables share a path. For each variable,
an exact key beats every other key. Among the others the key given last wins.
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
_SCALE = re.compile(r"(^|_)(bias|scale)$|^(gamma|beta|alpha)$")  # alpha: of PReLU
SHOWN = 5  # paths in a message


def labels(paths: Sequence[str]) -> list[str]:
    """Return unique names for paths: variables that share one are "path", "path#2", "path#3"."""
    given = set(paths)  # a path that is "x#2" itself keeps its name, and the second x is "x#3"
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
    """Return a variable's path. A raw `tf.Variable` has only a name."""
    return getattr(variable, "path", None) or str(variable.name).removesuffix(":0")


def path_in(label: str) -> str:
    """Return the path in a label: "a/kernel#2" gives "a/kernel"."""
    return _ORDINAL.sub("", label)


def after_load(path: str, known: Container[str]) -> str:
    """Return a saved path as one of the known ones: a load may shorten it at the front."""
    tails = (path.split("/", i)[-1] for i in range(path.count("/") + 1))
    return next((tail for tail in tails if tail in known), path)


def components(label: str) -> tuple[str, ...]:
    """Return the components of a label's path: "a/kernel#2" gives ("a", "kernel")."""
    return tuple(path_in(label).split("/"))


def decide(
    keys: Iterable[K],
    names: Sequence[str],
    *,
    argument: str,
    others: Sequence[str] = (),
    strict: bool = True,
    by_own_name: Container[int] = (),
) -> tuple[list[K | None], dict[K, list[int]]]:
    """Return the key that decides for each variable (or None), and what overridden keys hit.

    A key is overridden if it hits variables and decides for none of them.

    Args:
        keys: the user's keys, in order; the module's docstring says what a key hits. A tuple may
            hit nothing: its layer may be frozen.
        names: labels of the variables to decide for, as `labels` makes them.
        argument: the name of the keys' dict, for the messages.
        others: labels of other variables that exist, such as frozen ones. A key may hit only
            these. They also help to decide what a key means.
        strict: whether a string that hits no variable at all is an error. After a load it is not,
            because paths may have changed.
        by_own_name: positions of variables for which only a key that ends in their last component
            counts: "bias" and "head/bias", but not "head".

    Raises:
        ValueError: a key is empty, hits nothing (if `strict`), or is a component with auto-numbered
            siblings.
    """
    keys = list(keys)
    paths = _Paths([*names, *others] if keys else ())  # to index many paths takes time
    exact: dict[int, K] = {}
    general: dict[int, K] = {}
    hitting: dict[K, list[int]] = {}
    for key in keys:
        hits, is_path = _hits(key, paths, argument, strict, len(names))
        if hits:
            hitting[key] = hits
        for i in hits:
            if is_path:
                exact[i] = key
            elif i not in by_own_name or _names_itself(key, names[i]):
                general[i] = key
    deciding = general | exact
    won = set(deciding.values())
    overridden = {key: hits for key, hits in hitting.items() if key not in won}
    return [deciding.get(i) for i in range(len(names))], overridden


def _hits(
    key: str | tuple[str, ...], paths: _Paths, argument: str, strict: bool, count: int
) -> tuple[list[int], bool]:
    """Return which of the first `count` variables a key hits, and whether it is a label."""
    is_path = False
    if isinstance(key, tuple):
        hits = [paths.position[label] for label in key if label in paths.position]
    elif key in paths.position:
        hits, is_path = [paths.position[key]], True
    elif not key.strip("/"):
        cure = "Use a layer's or a variable's name, or leave this key out."
        refuse(f"a key of `{argument}`", key, "must name at least one component of a path", cure)
    else:
        hits = paths.with_components(key)
        if not hits and not key.endswith("/"):
            hits = paths.with_substring(key)
        # If not strict, an ambiguous key is accepted while it decides nothing.
        elif hits and (strict or hits[0] < count):
            _check_siblings(key, paths, argument)
        if strict and not hits:
            _refuse_unknown(key, paths, argument)
    return [i for i in hits if i < count], is_path


def is_vector(label: str, shape: Sequence[int]) -> bool:
    """Tell from its shape and name whether a variable is a bias or a scale.

    Most of these have fewer than two dimensions. A bias of an attention layer has two, and so has
    a scale of a normalization over two axes. Such a variable is known by its name.
    """
    return len(shape) < 2 or is_scale(label)


def is_scale(label: str) -> bool:
    """Tell from its name whether a variable is a bias or a scale, of any shape."""
    return bool(_SCALE.search(components(label)[-1]))


def nearest(text: str, names: Iterable[str]) -> str:
    """Return a sentence with the labels among `names` that are most like the text."""
    return _Paths(names).nearest(text)


class _Paths:
    """The variables' labels, indexed, so that a key is compared only with those it may match."""

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
            numbered = _AUTO_NUMBERED.fullmatch(part)
            if numbered:
                self.siblings[numbered[1]].append(part)

    def with_components(self, key: str) -> list[int]:
        """Return the variables, in order, whose path has the key as whole components in a row."""
        run = tuple(key.removesuffix("/").split("/"))
        return [
            i for i in self._having.get(run[0], ()) if run in _runs(self.components[i], len(run))
        ]

    def with_substring(self, key: str) -> list[int]:
        """Return the variables whose path has the key, without cutting a number in two.

        One or two letters must be a word: "bn" is in "bn2a_branch", "l" is not one in "kernel".
        """
        digit, letter = r"\d", r"[^\W\d_]" if key.isalpha() and len(key) < 3 else "(?!)"
        first, last = (digit if c.isdecimal() else letter for c in (key[0], key[-1]))
        begin, end = f"(?<!{first})", f"(?!{last})"
        search = re.compile(begin + re.escape(key) + end).search
        return [i for i, label in enumerate(self.labels) if search(path_in(label))]

    def nearest(self, key: str) -> str:
        if not self.labels:
            return "There are no variables."
        # "dens_1" is not like "model/dense_1/kernel", but like one of its components.
        length = len(key.strip("/").split("/"))
        similar: defaultdict[str, list[str]] = defaultdict(list)
        for label, parts in zip(self.labels, self.components, strict=True):
            for run in _runs(parts, min(length, len(parts))):
                similar["/".join(run).casefold()].append(label)
        near = difflib.get_close_matches(key.strip("/").casefold(), similar, n=SHOWN)
        found = list(dict.fromkeys(label for run in near for label in similar[run]))
        if found:
            return f"The nearest paths: {listed(found)}."
        return f"No path is like it. The paths are: {listed(self.labels)}."


def _runs(parts: tuple[str, ...], length: int) -> list[tuple[str, ...]]:
    return [parts[i : i + length] for i in range(len(parts) - length + 1)]


def _names_itself(key: str | tuple[str, ...], label: str) -> bool:
    return isinstance(key, str) and key.removesuffix("/").split("/")[-1] == components(label)[-1]


def _check_siblings(key: str, paths: _Paths, argument: str) -> None:
    """Refuse "dense" beside "dense_1": Keras' numbers differ from run to run."""
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
    old = "Drop the ':0', which no path of Keras 3 has. " if key.endswith(":0") else ""
    refuse(
        f"a key of `{argument}`",
        Seen(repr(key)),
        "must match the path of at least one variable",
        f"{old}{paths.nearest(key)} Correct this key or leave it out. A key is a path, whole "
        "components of a path, or a part of a path. A part must not cut a number, and one or two "
        "letters must be a word. For a frozen layer, or a model inside the model, whose name is in "
        "no path, take the object as the key: {model.get_layer('backbone'): …}.",
    )


def listed(names: Sequence[str]) -> str:
    """Return the first of these names, for a message."""
    return ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")


def first(names: Sequence[str]) -> str:
    """Return three of these names and how many more there are, for a warning."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
