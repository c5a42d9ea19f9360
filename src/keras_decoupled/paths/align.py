"""Which saved entry a variable continues, although Keras changes paths between saving and loading.

`load_model` and `clone_model` drop leading components ("sequential/dense_1/kernel" becomes
"dense_1/kernel"). A wrapping model adds some. Automatic numbers depend on the other layers that the
process has made ("sub/dense_4" becomes "sub_1/dense_6"). Order and shapes stay. So:

    1. same shapes in the same order    by position; by label if the same labels were reordered
    2. else                             the same label; then a unique suffix of the path;
                                        then a unique suffix without automatic numbers
    3. still several candidates         an error: a wrong choice would give a layer the moments
                                        and the decay of another

Knows nothing of Keras.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import NoReturn

from keras_decoupled import checks
from keras_decoupled.paths.match import SHOWN, components, listed

Entry = tuple[str, tuple[int, ...]]  # (label, shape); labels as `match.labels` makes them
_Place = tuple[tuple[int, ...], tuple[str, ...]]  # (shape, path)

_AUTOMATIC_NUMBER = re.compile(r"_\d+$")
_CURE = (
    "Give these layers names of their own (`name=...`) before saving and before loading, or build "
    "on the same variables in the same order as when saving."
)


def align(
    saved: Sequence[Entry], new: Sequence[Entry], *, what: str, by_order: bool = True
) -> list[int | None]:
    """For each new variable, return the index of the saved entry that it continues, or None.

    No saved entry is used twice. Paired variables and entries have equal shapes, except if their
    labels are equal: then the layer was resized.

    Args:
        saved: label and shape of each saved entry, in the order of saving.
        new: label and shape of each variable now.
        what: what was saved, for the message ("the saved weight decays").
        by_order: whether the same shapes in the same order are enough (rule 1). They are not
            enough if `saved` is not the whole list of an optimizer's variables.

    Raises:
        ValueError: paths and shapes allow several entries for a variable.
    """
    old_shapes, shapes = ([tuple(shape) for _, shape in entries] for entries in (saved, new))
    by_label = {label: j for j, (label, _) in enumerate(saved)}
    found = {i: by_label[label] for i, (label, _) in enumerate(new) if label in by_label}

    if by_order and shapes == old_shapes:
        # If each label has its old shape, layers were reordered. Else automatic names were swapped.
        moved = len(found) == len(new) and all(shapes[i] == old_shapes[found[i]] for i in found)
        return [found[i] if moved else i for i in range(len(new))]

    open_saved = open_new = _Index([])
    for numbers in True, False:
        if len(found) == min(len(saved), len(new)):
            break
        old_places, places = ([_place(e, numbers) for e in entries] for entries in (saved, new))
        everything = _Index(old_places)
        matched = [(0, 0)]  # not empty, so that the loop begins
        while matched:
            new_of = {j: i for i, j in found.items()}
            open_saved, open_new = _Index(old_places, new_of), _Index(places, found)
            matched = _only_candidates(open_new, open_saved)
            for i, j in matched:
                a = _against_the_order(i, j, places, new_of, everything)
                if a is not None:
                    _refuse(what, new[i], [saved[j], saved[found[a]]], [new[a]])
                found[i], new_of[j] = j, i
    for i in open_new.open:
        olds = set(open_saved.agreeing(open_new.places[i]))
        if olds:
            rivals = (
                new[a]
                for a in open_new.open
                if a != i and not olds.isdisjoint(open_saved.agreeing(open_new.places[a]))
            )
            _refuse(what, new[i], [saved[j] for j in sorted(olds)], [*islice(rivals, SHOWN + 1)])
    return [found.get(i) for i in range(len(new))]


def _place(entry: Entry, numbers: bool) -> _Place:
    label, shape = entry
    path = components(label)
    return tuple(shape), path if numbers else tuple(_AUTOMATIC_NUMBER.sub("", p) for p in path)


def _tails(place: _Place) -> list[_Place]:
    shape, path = place
    return [(shape, path[k:]) for k in range(len(path))]


class _Index:
    """Entries by shape and path. Two entries agree if one path is a tail of the other."""

    def __init__(self, places: Sequence[_Place], leave_out: Collection[int] = ()) -> None:
        self.places = places
        self.open = [k for k in range(len(places)) if k not in leave_out]
        self._of_path: defaultdict[_Place, list[int]] = defaultdict(list)
        self._of_tail: defaultdict[_Place, list[int]] = defaultdict(list)
        for k in self.open:
            self._of_path[places[k]].append(k)
            for tail in _tails(places[k]):
                self._of_tail[tail].append(k)

    def _groups(self, place: _Place) -> Iterator[list[int]]:
        """Yield the entries that agree with this one, grouped, the longest shared tail first."""
        yield self._of_tail.get(place, [])
        for tail in _tails(place)[1:]:
            yield self._of_path.get(tail, [])

    def agreeing(self, place: _Place) -> Iterator[int]:
        return (k for group in self._groups(place) for k in group)

    def only_candidate(self, place: _Place) -> int | None:
        """Return the entry that shares the longest tail with this one, if it is the only one."""
        # "m/sub/dense/kernel" continues "sub/dense/kernel" rather than "dense/kernel".
        group = next(filter(None, self._groups(place)), [])
        return group[0] if len(group) == 1 else None


def _only_candidates(new: _Index, saved: _Index) -> list[tuple[int, int]]:
    """Return the pairs in which each side is the other's only candidate."""
    pairs = [(i, saved.only_candidate(new.places[i])) for i in new.open]
    return [(i, j) for i, j in pairs if j is not None and new.only_candidate(saved.places[j]) == i]


def _against_the_order(
    i: int, j: int, places: Sequence[_Place], new_of: Mapping[int, int], saved: _Index
) -> int | None:
    """Return a variable that could swap entries with i, if that would put both in order.

    Example: dense_1, dense_2 are saved; dense_2, dense_3 are new. By its label the new dense_2
    continues dense_2, by its order dense_1. If dense_3 took dense_1, the layers would be swapped.
    """
    for b in saved.agreeing(places[i]):
        a = new_of.get(b)
        if a is not None and (i - a) * (j - b) < 0 and j in saved.agreeing(places[a]):
            return a
    return None


def _refuse(what: str, variable: Entry, olds: Sequence[Entry], rivals: Sequence[Entry]) -> NoReturn:
    old, new = (listed([label for label, _ in entries]) for entries in (olds, rivals))
    received = f"{variable[0]!r} of shape {tuple(variable[1])}, which may continue the saved {old}"
    rule = f"must each continue one entry of {what}, but paths and shapes do not say which"
    checks.refuse(
        "variables", checks.Seen(received + (f", as may {new}" if new else "")), rule, _CURE
    )
