"""Which saved entry a variable continues, although Keras changes paths between saving and loading.

`load_model` and `clone_model` drop leading components ("sequential/dense_1/kernel" comes back as "dense_1/kernel"),
a wrapping model adds some, and automatic numbers depend on what else the process has made ("sub/dense_4" becomes
"sub_1/dense_6"). Order and shapes stay. So:

    1. same number, every shape equal in order   by position; by label where the same labels come in another order
    2. else                                      the same label; then a unique suffix; then one with automatic numbers
                                                 ignored
    3. candidates left on both sides             an error: moments and decays of the wrong layer would go unnoticed

Pure Python; knows nothing of Keras. No `:=` here: AutoGraph, which reads this in a TensorFlow step that builds, warns.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice

from keras_decoupled.paths.match import SHOWN, components, listed

Entry = tuple[str, tuple[int, ...]]  # (label, shape); labels as `match.labels` makes them
_Place = tuple[tuple[int, ...], tuple[str, ...]]  # (shape, path)

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
    if not saved:
        return [None] * len(new)
    by_label = {label: j for j, (label, _) in enumerate(saved)}
    old_shapes, shapes = [tuple(shape) for _, shape in saved], [tuple(shape) for _, shape in new]
    found = {i: by_label[label] for i, (label, _) in enumerate(new) if label in by_label}

    if by_order and shapes == old_shapes:
        # Reordered layers take their shapes along. Where the shapes stay, automatic names have changed places.
        reordered = [shapes[i] == old_shapes[j] for i, j in found.items()] == [True] * len(new)
        return [found[i] if reordered else i for i in range(len(new))]

    for numbers in True, False:
        old_places = [_place(entry, numbers) for entry in saved]
        places = [_place(entry, numbers) for entry in new]
        open_saved = _Index(old_places, leave_out=set(found.values()))
        open_new = _Index(places, leave_out=found)
        if not (open_saved.which and open_new.which):
            break
        all_saved = _Index(old_places)
        matched = _only_candidates(open_new, open_saved)
        while matched:
            new_of = {j: i for i, j in found.items()}
            for i, j in matched:
                rival = _against_the_order(i, j, places, new_of, all_saved)
                if rival is not None:
                    raise _ambiguous(what, new[i], [saved[j], saved[found[rival]]], [new[rival]])
                found[i], new_of[j] = j, i
                open_new.remove(i)
                open_saved.remove(j)
            matched = _only_candidates(open_new, open_saved)
    for i in open_new.which:
        olds = set(open_saved.agreeing(places[i]))
        if olds:
            others = (a for a in open_new.which if a != i)
            rivals = (a for a in others if not olds.isdisjoint(open_saved.agreeing(places[a])))
            shown = [new[a] for a in islice(rivals, SHOWN + 1)]
            raise _ambiguous(what, new[i], [saved[j] for j in sorted(olds)], shown)
    return [found.get(i) for i in range(len(new))]


def _place(entry: Entry, numbers: bool) -> _Place:
    label, shape = entry
    path = components(label)
    if not numbers:
        path = tuple(_AUTOMATIC_NUMBER.sub("", part) for part in path)
    return tuple(shape), path


def _tails(place: _Place) -> list[_Place]:
    shape, path = place
    return [(shape, path[k:]) for k in range(len(path))]


class _Index:
    """Entries of one side by shape and path. Two entries agree if the path of one is a tail of the other's."""

    def __init__(self, places: Sequence[_Place], leave_out: Collection[int] = ()) -> None:
        self.places = places
        self.which = {k: None for k in range(len(places)) if k not in leave_out}  # in order
        self._of_path: defaultdict[_Place, dict[int, None]] = defaultdict(dict)
        self._of_tail: defaultdict[_Place, dict[int, None]] = defaultdict(dict)
        for k in self.which:
            self._of_path[places[k]][k] = None
            for tail in _tails(places[k]):
                self._of_tail[tail][k] = None

    def remove(self, k: int) -> None:
        del self.which[k], self._of_path[self.places[k]][k]
        for tail in _tails(self.places[k]):
            del self._of_tail[tail][k]

    def _groups(self, place: _Place) -> Iterator[dict[int, None]]:
        """The entries that agree with this one, in groups; those that share the longest tail first."""
        yield self._of_tail.get(place, {})
        for tail in _tails(place)[1:]:
            yield self._of_path.get(tail, {})

    def agreeing(self, place: _Place) -> Iterator[int]:
        return (k for group in self._groups(place) for k in group)

    def only_candidate(self, place: _Place) -> int | None:
        """The entry that shares the longest tail with this one, None where there are several or none."""
        # "m/sub/dense/kernel" continues "sub/dense/kernel" rather than "dense/kernel".
        group = next(filter(None, self._groups(place)), {})
        return next(iter(group)) if len(group) == 1 else None


def _only_candidates(new: _Index, saved: _Index) -> list[tuple[int, int]]:
    """The pairs in which each side is the other's only candidate."""
    pairs = [(i, saved.only_candidate(new.places[i])) for i in new.which]
    return [(i, j) for i, j in pairs if j is not None and new.only_candidate(saved.places[j]) == i]


def _against_the_order(
    i: int, j: int, places: Sequence[_Place], new_of: Mapping[int, int], saved: _Index
) -> int | None:
    """An aligned variable that could swap saved entries with i, which would restore the order; None if there is none.

    Example: saved dense_1, dense_2; loaded dense_2, dense_3. The label matches dense_2 to dense_2, the order matches
    it to dense_1. Ambiguous.
    """
    for b in saved.agreeing(places[i]):
        a = new_of.get(b)
        if a is not None and (i - a) * (j - b) < 0 and j in saved.agreeing(places[a]):
            return a
    return None


def _ambiguous(
    what: str, variable: Entry, olds: Sequence[Entry], rivals: Sequence[Entry]
) -> ValueError:
    label, shape = variable
    received = f"{label!r} of shape {tuple(shape)}, which may continue the saved {listed([name for name, _ in olds])}"
    if rivals:
        received += f", as may {listed([name for name, _ in rivals])}"
    return ValueError(
        f"Each variable has to continue one entry of {what}, found by path and shape, and here they leave open which. "
        f"Received: {received}. Give these layers names of their own (`name=...`) before saving and after it, or build "
        "on the same variables in the same order as when saving."
    )
