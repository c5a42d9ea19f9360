"""Which saved entry a variable continues, although Keras changes paths between saving and loading.

`load_model` and `clone_model` drop leading components ("sequential/dense_1/kernel" comes back as "dense_1/kernel"),
a wrapping model adds some, and automatic numbers depend on what else the process has made ("sub/dense_4" becomes
"sub_1/dense_6"). Order and shapes stay. So:

    1. same number, every shape equal in order   by position; by label where the same labels come in another order
    2. else                                      the same label; then a unique suffix; then one with automatic numbers
                                                 ignored
    3. candidates left on both sides             an error: moments and decays of the wrong layer would go unnoticed

Pure Python; knows nothing of Keras. No `:=` here: a TensorFlow step that builds runs this, and
AutoGraph, which cannot read it, would say so at length.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from .match import components

Entry = tuple[str, tuple[int, ...]]  # (label, shape); labels as `_rules.labels` makes them
_Shapes = Sequence[tuple[int, ...]]
_Pairs = dict[tuple[int, int], int]  # (new, saved): number of components that agree

_AUTOMATIC_NUMBER = re.compile(r"_\d+$")


def align(
    saved: Sequence[Entry], new: Sequence[Entry], *, what: str, by_order: bool = True
) -> list[int | None]:
    """For each new variable the index of the saved entry that it continues, None where there is none.

    No saved entry is used twice. A variable aligned by its label may have another shape than the entry (the layer was
    resized); every other alignment is between equal shapes.

    Args:
        saved: label and shape of each saved entry, in the order of saving.
        new: label and shape of each variable now.
        what: what was saved, for the message ("the saved weight decays").
        by_order: whether equal shapes in equal order are enough (rule 1). They are not where `saved` is a loose
            collection and not a whole list of variables.

    Raises:
        ValueError: names and shapes leave open which entry a variable continues.
    """
    by_label = {label: j for j, (label, _) in enumerate(saved)}
    old_shapes, shapes = [tuple(shape) for _, shape in saved], [tuple(shape) for _, shape in new]
    found = {i: by_label[label] for i, (label, _) in enumerate(new) if label in by_label}

    if by_order and shapes == old_shapes:
        # Reordered layers take their shapes along. Where the shapes stay, automatic names have changed places.
        reordered = [shapes[i] == old_shapes[j] for i, j in found.items()] == [True] * len(new)
        return [found[i] if reordered else i for i in range(len(new))]

    for simplify in _as_it_is, _without_number:
        old_tails = [tuple(map(simplify, components(label))) for label, _ in saved]
        tails = [tuple(map(simplify, components(label))) for label, _ in new]
        agreeing = {
            (i, j): _common_suffix(tails[i], old_tails[j]) for i, j in _same(shapes, old_shapes)
        }
        pairs = {pair: length for pair, length in agreeing.items() if length}
        matched = _mutually_best(_open(pairs, found))
        while matched:
            for i, j in matched:
                crossing = _against_the_order(i, j, pairs, found)
                if crossing:
                    raise _ambiguous(what, crossing, saved, new)
                found[i] = j
            matched = _mutually_best(_open(pairs, found))
    left = _open(pairs, found)
    if left:
        raise _ambiguous(what, left, saved, new)
    return [found.get(i) for i in range(len(new))]


def _as_it_is(component: str) -> str:
    return component


def _without_number(component: str) -> str:
    return _AUTOMATIC_NUMBER.sub("", component)


def _same(shapes: _Shapes, old_shapes: _Shapes) -> Iterable[tuple[int, int]]:
    """The pairs (new, saved) of one shape."""
    having = defaultdict(list)
    for j, shape in enumerate(old_shapes):
        having[shape].append(j)
    return ((i, j) for i, shape in enumerate(shapes) for j in having[shape])


def _common_suffix(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """The length of the shorter path, if it is the tail of the longer; else 0."""
    length = min(len(a), len(b))
    return length if a[-length:] == b[-length:] else 0


def _open(pairs: _Pairs, found: dict[int, int]) -> _Pairs:
    """The pairs of which neither side is aligned yet."""
    used = set(found.values())
    return {
        (i, j): agreeing for (i, j), agreeing in pairs.items() if i not in found and j not in used
    }


def _mutually_best(pairs: _Pairs) -> list[tuple[int, int]]:
    """The pairs in which each side is the other's only candidate.

    A longer suffix goes first: "m/sub/dense/kernel" continues "sub/dense/kernel" rather than "dense/kernel".
    """
    of_new: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    of_saved: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for (i, j), agreeing in pairs.items():
        of_new[i].append((agreeing, j))
        of_saved[j].append((agreeing, i))
    best = {j: _best(candidates) for j, candidates in of_saved.items()}
    return [
        (i, mate)
        for i, candidates in of_new.items()
        if (mate := _best(candidates)) is not None and best[mate] == i
    ]


def _best(candidates: list[tuple[int, int]]) -> int | None:
    """The candidate of the longest suffix, None where two are equally long."""
    longest = max(candidates)[0]
    first, *rest = [candidate for agreeing, candidate in candidates if agreeing == longest]
    return None if rest else first


def _against_the_order(
    i: int, j: int, pairs: _Pairs, found: dict[int, int]
) -> list[tuple[int, int]]:
    """The pair (i, j) and those it stands against: an aligned pair with which it could change partners, to keep order.

    dense_1, dense_2 that come back as dense_2, dense_3 are the case: the label says that saved dense_2 is the first of
    them, the order says the second, and dense_3 would be left with saved dense_1.
    """
    for a, b in found.items():
        if (i - a) * (j - b) < 0 and (i, b) in pairs and (a, j) in pairs:
            return [(i, j), (i, b), (a, j), (a, b)]
    return []


def _ambiguous(
    what: str, left: Iterable[tuple[int, int]], saved: Sequence[Entry], new: Sequence[Entry]
) -> ValueError:
    """The error for the first variable left, with its saved candidates and the other variables that may be theirs."""
    left = list(left)
    i = left[0][0]
    olds = dict.fromkeys(b for a, b in left if a == i)
    rivals = dict.fromkeys(a for a, b in left if b in olds and a != i)
    received = f"{new[i][0]!r} of shape {tuple(new[i][1])}, which may continue the saved {_listed(saved, list(olds))}"
    if rivals:
        received += f", as may {_listed(new, list(rivals))}"
    return ValueError(
        f"Each variable has to continue one entry of {what}, found by path and shape, and here they leave open which. "
        f"Received: {received}. Give these layers names of their own (`name=...`) before saving and after it, or build "
        "on the same variables in the same order as when saving."
    )


def _listed(entries: Sequence[Entry], which: Sequence[int]) -> str:
    return ", ".join(repr(entries[i][0]) for i in which[:5]) + (", …" if len(which) > 5 else "")
