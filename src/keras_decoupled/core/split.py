"""`Split`: which part of an optimizer steps a variable. Only Muon has two parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.keras_hooks import part_of
from keras_decoupled.decay import exclusions

# The arguments of Muon that decide which part steps a variable. The first build reads them.
ARGUMENTS = ("matrix_axes", "exclude_layers", "exclude_embeddings")


class Split:
    """What `decay/rules.py` asks of an optimizer, to write a variable's part into its row."""

    def __init__(self, optimizer: Any, algorithm: Algorithm) -> None:
        self._optimizer, self._algorithm = optimizer, algorithm

    @property
    def axes(self) -> Mapping[Any, str]:
        """The user's `matrix_axes`."""
        own = "matrix_axes" in self._algorithm.arguments
        return vars(self._optimizer).get("matrix_axes", {}) if own else {}

    def of(self, variables: Sequence[Any], *described: Any) -> list[tuple[str, str]]:
        """Return (part, axes) of each variable; for `described` see `Algorithm.parts`."""
        parts = self._algorithm.parts(self._optimizer, *described)
        return parts or [(part_of(self._optimizer, variable), "") for variable in variables]

    def warn_of_missed(self, labels: Sequence[str]) -> None:
        """Warn of the user's `exclude_layers` that match no variable's path."""
        if "exclude_layers" in self._algorithm.arguments:
            patterns = self._optimizer.exclude_layers
            exclusions.warn_of_missed("exclude_layers", patterns, labels)

    def fits(self, row: Any) -> bool:
        """Tell whether a row, from a file say, has a part that its variable can have."""
        return self._algorithm.fits(row)
