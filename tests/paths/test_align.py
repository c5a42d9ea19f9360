"""Which saved entry a variable continues, whatever Keras and people do to paths."""

import itertools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_decoupled.paths.align import align
from keras_decoupled.paths.match import labels

A, B, C = (2, 3), (3,), (3, 5)
HEAD = ("new_head/kernel", (7, 7))  # one more variable, so that nothing goes by position


def entries(paths):
    """Entries of shape A, or of another where a path comes as (path, shape)."""
    pairs = [path if isinstance(path, tuple) else (path, A) for path in paths]
    return list(
        zip(labels([path for path, _ in pairs]), [shape for _, shape in pairs], strict=True)
    )


def aligned(saved, new):
    return align(entries(saved), entries(new), what="the saved decays")


def aligned_or_open(saved, new):
    """None if it stays open."""
    try:
        return aligned(saved, new)
    except ValueError:
        return None


CASES = {
    # 1. the same shapes in the same order
    "the same": (["a", "b"], ["a", "b"], [0, 1]),
    "other names altogether": (["a/k", "b/k"], ["x/y", "z"], [0, 1]),
    "twins get one path": (["f/gru/k", "b/gru/k"], ["gru/k", "gru/k"], [0, 1]),
    "a nested dense loses its model": (["m/d/k", "d/k"], ["d/k", "d/k"], [0, 1]),
    "names swapped, shapes not": ([("d/k", A), ("d_1/k", C)], [("d_1/k", A), ("d/k", C)], [0, 1]),
    # 2. by label
    "layers added": (["a/k", "b/k"], ["a/k", "x/k", "b/k"], [0, None, 1]),
    "layers removed": (["a/k", "x/k", "b/k"], ["a/k", "b/k"], [0, 2]),
    "reordered, with other shapes": ([("a/k", A), ("b/k", C)], [("b/k", C), ("a/k", A)], [1, 0]),
    "resized": ([("a/k", A), ("b/k", A)], [("a/k", A), ("b/k", C)], [0, 1]),
    "one more twin": (["a"], ["a", "a"], [0, None]),
    # 2. by suffix
    "dropped, layers reordered": (["s/a/k", "s/b/k"], ["b/k", HEAD, "a/k"], [1, None, 0]),
    "dropped, one layer gone": (["s/a/k", "s/b/k"], ["b/k"], [1]),
    "a part of a component is no suffix": (["my_a/k"], ["a/k", HEAD], [None, None]),
    "the suffix has to be a whole path": (["m/a/k"], ["n/a/k", HEAD], [None, None]),
    "shapes differ": ([("m/a/k", A)], [("a/k", C), HEAD], [None, None]),
    "shapes tell": ([("m/d/k", A), ("n/d/k", C)], [("d/k", A), ("d/k", C), HEAD], [0, 1, None]),
    "resolved ones stop being ambiguous": (["m/d/k", "d/k", "x"], ["d/k", "m/d/k"], [1, 0]),
    # 2. automatic numbers ignored
    "counted on": (["s/d_4/k", ("s/d_4/b", B)], ["s_1/d_6/k", HEAD], [0, None]),
    "dropped and counted on": (["s/d_4/k"], ["d/k", HEAD], [0, None]),
    "numbers first as they are": (["m/d_1/k", "m/d_2/k"], ["d_2/k", "d_1/k", HEAD], [1, 0, None]),
    "only at the end of a component": (["a_1b/k"], ["a_2b/k", HEAD], [None, None]),
    "one counted on": (["d/k", "d_1/k"], ["d/k", "d_5/k", HEAD], [0, 1, None]),
}


@pytest.mark.parametrize("case", CASES)
def test_align(case):
    saved, new, expected = CASES[case]
    assert aligned(saved, new) == expected
    as_lists = [[(label, list(shape)) for label, shape in entries(side)] for side in (saved, new)]
    assert align(*as_lists, what="the saved decays") == expected  # as they come out of JSON


def test_a_loose_collection_is_not_aligned_by_order():
    assert align([("x/k", A)], [("y/k", A)], what="the saved decays", by_order=False) == [None]


# Words: saved, new, the variable that may continue several, these entries, and its rivals.
OPEN = {
    "one for two": ("m/d/k n/d/k", "d/k", "d/k", "m/d/k n/d/k", ""),
    "two for one": ("m/d/k", "d/k d/k", "d/k", "m/d/k", "d/k#2"),
    "two for two": ("f/k b/k", "k k HEAD", "k", "f/k b/k", "k#2"),
    "counted on": ("d_1/k d_2/k", "d_7/k d_8/k HEAD", "d_7/k", "d_1/k d_2/k", "d_8/k"),
    # Going on would swap the two: the labels and the order contradict each other.
    "counted on by one": ("d_1/k d_2/k", "d_2/k d_3/k HEAD", "d_3/k", "d_1/k d_2/k", "d_2/k"),
    "and dropped": ("s/d_1/k s/d_2/k", "d_2/k d_3/k HEAD", "d_3/k", "s/d_1/k s/d_2/k", "d_2/k"),
    "five of many are shown": (
        " ".join(f"m/d_{i}/k" for i in range(20)),
        " ".join(f"d_{i}/k" for i in range(30, 60)),
        "d_30/k",
        "m/d_0/k m/d_1/k m/d_2/k m/d_3/k m/d_4/k …",
        "d_31/k d_32/k d_33/k d_34/k d_35/k …",
    ),
}


@pytest.mark.parametrize("case", OPEN)
def test_what_stays_open_is_an_error(case):
    saved, new, [variable], olds, rivals = map(str.split, OPEN[case])
    old, rival = (", ".join(w if w == "…" else repr(w) for w in words) for words in (olds, rivals))
    with pytest.raises(ValueError, match="entry of the saved decays") as error:
        aligned(saved, [HEAD if path == "HEAD" else path for path in new])
    assert (
        f"Received: {variable!r} of shape (2, 3), which may continue the saved {old}"
        f"{', as may ' if rivals else ''}{rival}. Give these layers names of their own (`name=...`)"
    ) in str(error.value)


def test_twenty_thousand_variables_of_one_shape():
    many = [f"m/dense_{i}/k" for i in range(20_000)]
    start = time.process_time()
    assert aligned(many, many) == [*range(20_000)]
    one_more = [*many[:50], "m/head/k", *many[50:]]
    assert aligned(many, one_more) == [*range(50), None, *range(50, 20_000)]
    dropped = [*(path.removeprefix("m/") for path in many), "head/k"]
    assert aligned(many, dropped) == [*range(20_000), None]
    assert time.process_time() - start < 10


def test_layers_counted_on_are_never_swapped():
    """dense_1 … dense_n come back as dense_(1+shift) …: each continues its own, or it is open."""
    for count, shift in itertools.product(range(1, 6), range(7)):
        saved, new = ([f"dense_{i + by}/k" for i in range(count)] for by in (0, shift))
        assert aligned(saved, new) == [*range(count)]
        assert aligned_or_open(saved, [*new, HEAD]) in (None, [*range(count), None])


# Properties. Few letters, so that paths are often tails of one another.
part = st.sampled_from(["a", "b", "d", "d_1", "d_2"])
shape = st.sampled_from([A, A, A, B])
path = st.lists(part, min_size=1, max_size=4).map("/".join)
paths = st.lists(path, max_size=6, unique=True)


@settings(max_examples=150)
@given(st.lists(st.tuples(part, shape)), st.lists(st.tuples(part, shape)))
def test_no_entry_is_used_twice_and_only_a_label_excuses_a_shape(saved, new):
    found = aligned_or_open(saved, new)
    if found is not None:
        used = [j for j in found if j is not None]
        assert len(found) == len(new)
        assert len(set(used)) == len(used)
        saved, new = entries(saved), entries(new)
        pairs = [(saved[j], new[i]) for i, j in enumerate(found) if j is not None]
        assert all(old[0] == now[0] or old[1] == now[1] for old, now in pairs)


@settings(max_examples=150)
@given(paths, st.randoms(use_true_random=False), st.data())
def test_reordered_layers_align_by_label(names, random, data):
    saved = [(name, data.draw(shape)) for name in names]
    new = random.sample(saved, len(saved))
    # Shapes equal in order beside the same labels: see "names swapped, shapes not".
    assert aligned(saved, new) == [saved.index(entry) for entry in new]


@settings(max_examples=150)
@given(paths, st.lists(st.sampled_from("xyz"), min_size=1, max_size=3), st.booleans(), st.data())
def test_a_wrapping_model_aligns_to_the_identity(names, prefix, wrapped_now, data):
    """Added to or dropped from all paths, beside a new head."""
    bare = [(name, data.draw(shape)) for name in names]
    wrapped = [("/".join([*prefix, name]), shape) for name, shape in bare]
    saved, new = (bare, wrapped) if wrapped_now else (wrapped, bare)
    assert aligned(saved, [*new, HEAD]) == [*range(len(names)), None]


@settings(max_examples=300)
@given(paths, st.data())
def test_dropped_components_never_align_to_another_variable(names, data):
    """Each path loses some leading components. With a new head, it may stay open which is which."""
    parts = [name.split("/") for name in names]
    short = ["/".join(one[data.draw(st.integers(0, len(one) - 1)) :]) for one in parts]
    assert aligned(names, short) == [*range(len(names))]
    assert aligned_or_open(names, [*short, HEAD]) in (None, [*range(len(names)), None])
