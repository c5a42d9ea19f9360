"""Files whose names have a number in them: `snapshots/{cycle:03d}.weights.h5`."""

from __future__ import annotations

import glob
import os
import re
from string import Formatter
from typing import Any


class NumberedFiles:
    """The files of one pattern, by number.

    Args:
        argument: what the pattern is called where the user gives it.
        pattern: a path with `{field}` in it, which a format may follow, as in "{field:03d}".
        field: the number's name in the pattern.
        ending: how the path has to end.
    """

    def __init__(self, argument: str, pattern: Any, field: str, ending: str) -> None:
        if not isinstance(pattern, (str, os.PathLike)):
            raise TypeError(
                f"`{argument}` must be a path. Received: {argument}={pattern!r} of type "
                f'{type(pattern).__name__}. Pass "{{{field}}}{ending}", say.'
            )
        self.field = field
        self.pattern = os.path.normpath(os.fspath(pattern))  # as glob has it, on Windows too
        self._wildcard = self._regex = ""
        try:
            for text, name, _, _ in Formatter().parse(self.pattern):
                self._wildcard += glob.escape(text)
                self._regex += re.escape(text)
                if name is not None:
                    self._wildcard += "*"
                    self._regex += r"(\d+)"
            known = all(self._number(self.path(number)) == number for number in (0, 12345))
        except (ValueError, KeyError, IndexError):  # no such format; another field
            known = False
        if not known or not self.pattern.endswith(ending):
            raise ValueError(
                f'`{argument}` must have "{{{field}}}" in it, for a number, no other field, and '
                f'"{ending}" at its end. Received: {argument}={os.fspath(pattern)!r}. Pass '
                f'"{{{field}}}{ending}" or "{{{field}:03d}}{ending}", say.'
            )

    def path(self, number: int) -> str:
        """Return the path of the file with this number."""
        return self.pattern.format(**{self.field: number})

    def found(self) -> dict[int, str]:
        """Return the files that there are, lowest number first."""
        numbers = map(self._number, glob.glob(self._wildcard))
        return {number: self.path(number) for number in sorted(n for n in numbers if n is not None)}

    def _number(self, path: str) -> int | None:
        """Return the number of a path, None where it is none of these."""
        match = re.fullmatch(self._regex, path)
        if match is None or not match.groups():
            return None
        number = int(match[1])
        return number if self.path(number) == path else None
