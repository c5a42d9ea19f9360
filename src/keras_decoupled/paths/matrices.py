"""Which variables are matrices, their rows and columns, and Newton-Schulz. No Keras here.

A letter stands for each axis: r for rows, c for columns, b where each index is a matrix of its own.
The kernel of an attention's query (model, heads, head size) is "rcc": one matrix with as many rows
as the model has features. As "rbc" it is a matrix for each head.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from keras_decoupled.checks import refuse
from keras_decoupled.paths import match

Shape = Sequence[int]

_NO_MATRIX = re.compile(r"^reverse_embeddings$|^lora_")
_PROJECTION = re.compile(r"^(query|key|value|gate|query_key_value)(_dense)?$")
_QUERY = re.compile(r"^query(_key_value)?(_dense)?/kernel$")
_OUTPUT = ("attention_output", "kernel")
_LETTERS = re.compile(r"(?=.*r)(?=.*c)[rcb]+")


def checked_axes(
    name: str, value: object, *, shape: Shape | None = None, cure: str = 'A plain matrix is "rc".'
) -> str:
    """Return the letters of an array's axes; `shape` is the array's, where it is known."""
    rule = "must have one letter for each axis: r for rows, c for columns, b for an axis whose "
    rule += "indices are matrices of their own; at least one r and one c"
    if not isinstance(value, str):
        refuse(name, value, rule, cure, TypeError)
    if not _LETTERS.fullmatch(value) or (shape is not None and len(value) != len(shape)):
        refuse(name, value, rule, cure)
    return value


def vectors(labels: Iterable[str]) -> set[int]:
    """Return the positions of biases, scales and others whose names say they are not matrices."""
    return {
        i
        for i, label in enumerate(labels)
        if match.is_scale(label) or _NO_MATRIX.search(match.components(label)[-1])
    }


def axes_of(label: str, shape: Shape, attentions: Mapping[tuple[str, ...], int]) -> str:
    """Return the letters of a variable's axes, "" if it is not a matrix.

    Args:
        label: the variable's label.
        shape: its shape.
        attentions: `attentions` of the model.
    """
    path = match.components(label)
    longer = sum(length > 1 for length in shape)
    depthwise = any("depthwise" in part for part in path)
    if longer < 2 or shape[-1] == 1 or depthwise or vectors([label]):
        return ""
    of_attention = len(path) > 1 and path[:-2] in attentions
    if len(shape) == 3 and of_attention and _PROJECTION.match(path[-2]):
        features = attentions[path[:-2]]
        row = shape.index(features) if features in shape[:-1] else 0
        axes = "".join("r" if axis == row else "c" for axis in range(3))
        return axes if shape[row] > 1 else ""  # one row is a vector
    return "r" * (len(shape) - 1) + "c"


def attentions(shapes: Iterable[tuple[str, Shape]]) -> dict[tuple[str, ...], int]:
    """Return the features of each attention layer, by its path; 0 if they are not known.

    An attention has a query or an output. So a `Conv1D` with the name "gate" is none.
    """
    paths = [(match.components(label), shape) for label, shape in shapes]
    queries = {path[:-2]: 0 for path, _ in paths if _QUERY.match("/".join(path[-2:]))}
    outputs = {path[:-2]: shape[-1] for path, shape in paths if path[-2:] == _OUTPUT and shape}
    return queries | outputs


class Layout(NamedTuple):
    """How an array is reshaped to a stack of matrices, and back."""

    order: tuple[int, ...]  # the axes in the order b, r, c
    ordered: tuple[int, ...]  # the shape in that order
    stack: tuple[int, ...]  # (rows, columns); where there is a b, (matrices, rows, columns)
    back: tuple[int, ...]  # the axes of `ordered` in the order of the array

    @property
    def turned(self) -> bool:
        """Whether the axes have to change places."""
        return self.order != tuple(sorted(self.order))


@functools.cache
def layout(axes: str, shape: tuple[int, ...]) -> Layout:
    """Return the layout of an array of this shape."""
    every = range(len(axes))
    order = tuple(sorted(every, key=lambda axis: "brc".index(axes[axis])))
    pairs = list(zip(axes, shape, strict=True))
    letters = "brc" if "b" in axes else "rc"
    stack = tuple(math.prod(n for x, n in pairs if x == letter) for letter in letters)
    return Layout(order, tuple(shape[i] for i in order), stack, tuple(map(order.index, every)))


def newton_schulz(
    x: Any,
    steps: int,
    dtype: str | None,
    polynomial: Callable[[Any], Any],
    turned: Callable[[Any], Any],
) -> Any:
    """Return x after iterations x ← p·x, where p is a polynomial of the Gram matrix x·xᵀ.

    For a tall x the iteration is x ← x·p, with the smaller Gram matrix xᵀ·x. Powers of one matrix
    commute. So if one side of x is at least twice the other, several iterations are done on the
    Gram matrix r alone: r ← p·r·p. This takes less time. Then x is multiplied by the product of
    their polynomials p.

    Rounding makes small eigenvalues of r negative, and each iteration on r alone makes them up to
    twelve times as large. So the number of iterations on r alone has a limit: 3 in float32, and 2
    if `dtype` is bfloat16. In bfloat16, 3 of them sometimes give singular values of 20, and
    infinity if there are more steps.
    """
    rows, columns = x.shape[-2:]
    tall = rows > columns
    at_once = 3 if dtype is None else 2
    if max(rows, columns) < 2 * min(rows, columns):
        at_once = 1
    for start in range(0, steps, at_once):
        r = turned(x) @ x if tall else x @ turned(x)
        p = product = polynomial(r)
        for _ in range(min(at_once, steps - start) - 1):
            r = p @ r @ p
            p = polynomial(r)
            product = product @ p
        x = x @ product if tall else product @ x
    return x


def in_words(axes: str, shape: Shape) -> str:
    """Return the size for a reader: "64×512", or "8 of 64×512"."""
    *count, rows, columns = layout(axes, tuple(shape)).stack
    return "".join(f"{n} of " for n in count) + f"{rows}×{columns}"
