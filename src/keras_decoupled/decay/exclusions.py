"""What `exclude_from_weight_decay` excludes: variables, and regular expressions of paths."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keras_decoupled import checks
from keras_decoupled.paths.match import after_load, nearest, path_in, path_of

_SYNTAX = re.compile(r"\\[A-Za-z]|[^\w/]")  # the parts of a pattern that no path has


class Exclusions:
    """What the calls of `exclude_from_weight_decay` exclude."""

    def __init__(
        self,
        variables: Iterable[Any] = (),
        patterns: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> None:
        self.variables = list(variables)
        self.patterns = list(patterns)
        self.paths = dict.fromkeys(paths)  # of variables, from a config
        self._searches = [_compiled(pattern).search for pattern in self.patterns]
        self._keys: set[Any] | None = None  # of the variables
        for variable in self.variables:
            if not hasattr(variable, "assign"):
                cure = "Patterns of paths go into `var_names`."
                checks.refuse("var_list", variable, "must be a list of variables", cure, TypeError)

    def __add__(self, more: Exclusions) -> Exclusions:
        """Return what both exclude."""
        return Exclusions(
            [*self.variables, *more.variables],
            dict.fromkeys([*self.patterns, *more.patterns]),
            [*self.paths, *more.paths],
        )

    def hits(self, label: str, key: Any, key_of: Callable[[Any], Any]) -> bool:
        """Tell whether the variable of that label and key is excluded."""
        if self._keys is None:
            self._keys = set(map(key_of, self.variables))
        path = path_in(label)
        return (
            label in self.paths
            or key in self._keys
            or any(search(path) for search in self._searches)
        )

    def find(self, labels: Iterable[str], asked: Iterable[str]) -> None:
        """Find the paths of a config among the labels.

        A path that several of the asked variables have is refused: only one of them was excluded.
        """
        labels, asked = set(labels), set(asked)
        self.paths = dict.fromkeys(after_load(path, labels) for path in self.paths)
        for path in self.paths:
            if f"{path}#2" in asked:
                checks.refuse(
                    "exclude_from_weight_decay(var_list=...)",
                    checks.Seen(path),
                    "was saved before the optimizer was built, as a path that several variables "
                    "have",
                    "Call exclude_from_weight_decay() again with the variable.",
                )

    def warn_of_missed(self, labels: Sequence[str]) -> None:
        """Give one warning about all patterns that match no variable's path."""
        warn_of_missed("exclude_from_weight_decay(var_names=...)", self.patterns, labels)

    def get_config(self) -> dict[str, list[str]]:
        """Return the exclusions as JSON, with paths in place of variables."""
        paths = [*self.paths, *map(path_of, self.variables)]
        return {"var_list": paths, "var_names": self.patterns}

    @classmethod
    def from_config(cls, config: Any, *, name: str) -> Exclusions:
        """Read the dict of `get_config` from a file; `name` is for messages."""
        keys = ("var_list", "var_names")
        paths, patterns = (
            checks.texts(f"{name}[{key!r}]", part)
            for key, part in zip(keys, checks.fields(name, config, keys), strict=True)
        )
        return cls(patterns=patterns, paths=paths)


def _compiled(pattern: Any) -> re.Pattern[str]:
    rule = "must be a list of regular expressions, which are searched in each variable's path"
    if not isinstance(pattern, str):
        checks.refuse("var_names", pattern, rule, "Variables go into `var_list`.", TypeError)
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        cure = f"Escape literal text with re.escape(): {error}."
        checks.refuse("var_names", pattern, rule, cure)


def warn_of_missed(argument: str, patterns: Sequence[str], labels: Sequence[str]) -> None:
    """Give one warning about all patterns of an argument that match no variable's path."""
    paths = list(map(path_in, labels))
    missed = [
        f"{pattern!r}. {nearest(_SYNTAX.sub('', pattern), labels)}"
        for pattern in patterns
        if not any(map(re.compile(pattern).search, paths))
    ]
    if missed:
        warnings.warn(
            f"Each pattern in `{argument}` should match a variable's path; these exclude nothing. "
            f"Received: {' '.join(missed)} Correct them or leave them out.",
            UserWarning,
            stacklevel=2,
        )


def check_call(built: bool, copied: bool, **given: Any) -> None:
    """Check a call of `exclude_from_weight_decay`, whose arguments are lists or None."""
    if copied and not built:
        checks.refuse(
            "exclude_from_weight_decay()",
            checks.Seen("a call on a copy, or on an optimizer from a file"),
            "must be called before the first build: the copy has each variable's decay already",
            "from_keras(optimizer, weight_decays={key: 0}) of its class makes an optimizer with "
            "other rules. It has the same state.",
        )
    if built:
        checks.refuse(
            "exclude_from_weight_decay()",
            checks.Seen("a call after build"),
            "must be called before the optimizer is built: its rules are read then",
            "Call it right after making the optimizer, before `model.compile` or the first update.",
        )
    for name, value in given.items():
        if value is not None and not isinstance(value, list | tuple | set):
            checks.refuse(name, value, "must be a list", f"Write {name}=[...].", TypeError)
