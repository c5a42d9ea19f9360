"""What `exclude_from_weight_decay` says: variables, and regular expressions of their paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keras_decoupled import checks
from keras_decoupled.paths.match import path_of

# A pattern comes back from a file, and Python's `re` knows no time limit: what takes exponential
# time on some path is refused when it is given, so that whatever can be set can be loaded.
_MOST_REPETITIONS, _MOST_CHOICES, _LONGEST_PATH = 4, 16, 256
_ESCAPED = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # \* and [*] repeat nothing
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPETITION = re.compile(r"[*+{]")
_CHOICE = re.compile(r"\||(?<![(*+?}])\?")
# Not comments and verbose mode, in which a repetition may stand far from what it repeats.
_SPECIAL = re.compile(r"\(\?(?!:|=|!|<=|<!|i\)|i:|P<)")


class Exclusions:
    """What `exclude_from_weight_decay` was last told."""

    def __init__(
        self,
        variables: Iterable[Any] = (),
        patterns: Iterable[str] = (),
        paths: Iterable[str] = (),
    ) -> None:
        self.variables = list(variables)
        self.patterns = list(patterns)
        self.paths = list(paths)  # of variables, from a config
        for pattern in self.patterns:
            _check_pattern(pattern)
        for variable in self.variables:
            if not hasattr(variable, "assign"):
                raise TypeError(
                    "`var_list` must be a list of variables. "
                    f"Received: {variable!r}. Patterns of paths go into `var_names`."
                )

    def hits(self, name: str, key: Any, key_of: Callable[[Any], Any]) -> bool:
        """Tell whether the variable of that name and key is excluded."""
        if name in self.paths or any(key_of(variable) == key for variable in self.variables):
            return True
        if self.patterns and len(name) > _LONGEST_PATH:
            raise ValueError(
                f"`var_names` are searched in paths of up to {_LONGEST_PATH} characters. "
                f"Received: a variable with the path {name!r}. Exclude it by `var_list`."
            )
        return any(re.search(pattern, name) for pattern in self.patterns)

    def check(self, names: Sequence[str]) -> None:
        """Refuse a path from a config that several variables have: it meant one of them."""
        for entry in self.paths:
            if f"{entry}#2" in names:
                raise ValueError(
                    "A variable in `exclude_from_weight_decay(var_list=...)` was saved by its "
                    f"path before the optimizer was built, and several have it. Received: {entry}. "
                    "Call exclude_from_weight_decay() again with the variable."
                )

    def get_config(self) -> dict[str, list[str]]:
        """Return the exclusions as JSON; variables by their paths."""
        paths = [*self.paths, *map(path_of, self.variables)]
        return {"var_list": paths, "var_names": self.patterns}

    @classmethod
    def from_config(cls, config: Any, *, name: str) -> Exclusions:
        """Read `get_config`'s dict, of a file; `name` is for messages."""
        paths, patterns = (
            [
                checks.text(f"{name}[{key!r}]", entry)
                for entry in checks.listed(f"{name}[{key!r}]", part)
            ]
            for key, part in zip(
                ("var_list", "var_names"),
                checks.fields(name, config, ("var_list", "var_names")),
                strict=True,
            )
        )
        return cls(patterns=patterns, paths=paths)


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, str):
        raise TypeError(
            "`var_names` must be a list of regular expressions. "
            f"Received: {pattern!r}. Variables go into `var_list`."
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            "`var_names` must be regular expressions, searched in each variable's path. "
            f"Received: {pattern!r} ({error}). Escape what is meant literally: re.escape()."
        ) from error
    bare = _ESCAPED.sub("x", pattern)
    if (
        _REPEATED_GROUP.search(bare)
        or _SPECIAL.search(bare)
        or len(_REPETITION.findall(bare)) > _MOST_REPETITIONS
        or len(_CHOICE.findall(bare)) > _MOST_CHOICES
    ):
        raise ValueError(
            "`var_names` must be regular expressions whose search ends soon, as a file may bring "
            f"any: no repeated group, at most {_MOST_REPETITIONS} of `*`, `+` and `{{`, at most "
            f"{_MOST_CHOICES} of `?` and `|`, and of the forms with `(?` only groups, lookaround "
            f"and `(?i)`. Received: {pattern!r}. A search needs no `.*` at its ends; give what is "
            "joined by `|` as patterns of its own."
        )
