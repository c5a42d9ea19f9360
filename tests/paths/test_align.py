"""Which saved entry a variable continues: what Keras does to paths, what people do to models, and what stays open."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_decoupled.paths.align import align
from keras_decoupled.paths.match import labels

A, B, C = (2, 3), (3,), (3, 5)


def entries(*paths, shape=A):
    """Entries of one shape, or of their own where a path comes as (path, shape)."""
    pairs = [path if isinstance(path, tuple) else (path, shape) for path in paths]
    return list(
        zip(labels([path for path, _ in pairs]), [shape for _, shape in pairs], strict=True)
    )


def aligned(saved, new):
    return align(entries(*saved), entries(*new), what="the saved decays")


HEAD = ("new_head/kernel", (7, 7))  # one more variable, so that nothing goes by position

CASES = {
    # 1. the same shapes in the same order
    "nothing": ([], [], []),
    "the same": (["a", "b"], ["a", "b"], [0, 1]),
    "other names altogether": (["a/k", "b/k"], ["x/y", "z"], [0, 1]),
    "leading components dropped": (
        ["bi/forward_gru/k", "seq/dense_1/k"],
        ["forward_gru/k", "dense_1/k"],
        [0, 1],
    ),
    "counted on, and overlapping": (["dense/k", "dense_1/k"], ["dense_1/k", "dense_2/k"], [0, 1]),
    "twins get one path": (["f/gru/k", "b/gru/k"], ["gru/k", "gru/k"], [0, 1]),
    "a nested dense loses its model": (["m/dense/k", "dense/k"], ["dense/k", "dense/k"], [0, 1]),
    "layers reordered": (["a/k", "b/k", "c/k"], ["c/k", "a/k", "b/k"], [2, 0, 1]),
    "names swapped, shapes not": ([("d/k", A), ("d_1/k", C)], [("d_1/k", A), ("d/k", C)], [0, 1]),
    # 2. by label
    "layers added": (["a/k", "b/k"], ["a/k", "x/k", "b/k"], [0, None, 1]),
    "layers removed": (["a/k", "x/k", "b/k"], ["a/k", "b/k"], [0, 2]),
    "reordered, with other shapes": ([("a/k", A), ("b/k", C)], [("b/k", C), ("a/k", A)], [1, 0]),
    "resized": ([("a/k", A), ("b/k", A)], [("a/k", A), ("b/k", C)], [0, 1]),
    "saved nothing": ([], ["a"], [None]),
    "twins": (["a", "a", "b"], ["a", "a"], [0, 1]),
    "one more twin": (["a"], ["a", "a"], [0, None]),
    # 2. by suffix
    "dropped, new head": (
        ["seq/dense_1/k", "seq/dense_2/k"],
        ["dense_1/k", "dense_2/k", HEAD],
        [0, 1, None],
    ),
    "wrapped, new head": (
        ["dense/k", "sub/dense/k"],
        ["m/dense/k", "m/sub/dense/k", HEAD],
        [0, 1, None],
    ),
    "dropped, layers reordered": (["seq/a/k", "seq/b/k"], ["b/k", HEAD, "a/k"], [1, None, 0]),
    "dropped, one layer gone": (["seq/a/k", "seq/b/k"], ["b/k"], [1]),
    "a part of a component is no suffix": (["my_a/k"], ["a/k", HEAD], [None, None]),
    "the suffix has to be a whole path": (["m/a/k"], ["n/a/k", HEAD], [None, None]),
    "shapes differ": ([("m/a/k", A)], [("a/k", C), HEAD], [None, None]),
    "shapes tell twins apart": (
        [("m/d/k", A), ("n/d/k", C)],
        [("d/k", A), ("d/k", C), HEAD],
        [0, 1, None],
    ),
    "resolved ones stop being ambiguous": (["m/d/k", "d/k", "x"], ["d/k", "m/d/k"], [1, 0]),
    # 2. automatic numbers ignored
    "counted on, new head": (
        ["sub/dense_4/k", ("sub/dense_4/b", B)],
        ["sub_1/dense_6/k", HEAD],
        [0, None],
    ),
    "dropped and counted on": (["sub/dense_4/k"], ["dense/k", HEAD], [0, None]),
    "numbers first as they are": (["m/d_1/k", "m/d_2/k"], ["d_2/k", "d_1/k", HEAD], [1, 0, None]),
    "only at the end of a component": (["a_1b/k"], ["a_2b/k", HEAD], [None, None]),
    "a layer counted on, its siblings kept": (
        ["d/k", "d_1/k", "d_2/k"],
        ["d/k", "d_1/k", "d_5/k", HEAD],
        [0, 1, 2, None],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_align(case):
    saved, new, expected = CASES[case]
    assert aligned(saved, new) == expected


OPEN = {
    "one for two": (
        ["m/dense/k", "n/dense/k"],
        ["dense/k"],
        "'dense/k'",
        ["'m/dense/k', 'n/dense/k'"],
    ),
    "two for one": (
        ["m/dense/k"],
        ["dense/k", "dense/k"],
        "'dense/k'",
        ["'m/dense/k'", "as may 'dense/k#2'"],
    ),
    "two for two": (
        ["f/gru/k", "b/gru/k"],
        ["gru/k", "gru/k", HEAD],
        "'gru/k'",
        ["'f/gru/k', 'b/gru/k'", "'gru/k#2'"],
    ),
    "counted on": (
        ["d_1/k", "d_2/k"],
        ["d_7/k", "d_8/k", HEAD],
        "'d_7/k'",
        ["'d_1/k', 'd_2/k'", "as may 'd_8/k'"],
    ),
    # Going on would swap the two: the labels and the order contradict each other.
    "counted on by one": (
        ["d_1/k", "d_2/k"],
        ["d_2/k", "d_3/k", HEAD],
        "'d_3/k'",
        ["'d_1/k', 'd_2/k'", "as may 'd_2/k'"],
    ),
    "a block shifted": (
        ["d_1/k", "d_2/k", "d_3/k"],
        ["d_2/k", "d_3/k", "d_4/k", HEAD],
        "'d_4/k'",
        ["'d_1/k'"],
    ),
    "dropped and counted on": (
        ["s/d_1/k", "s/d_2/k"],
        ["d_2/k", "d_3/k", HEAD],
        "'d_3/k'",
        ["'s/d_1/k', 's/d_2/k'"],
    ),
    "the nested one takes the outer's path": (
        ["m/dense/k", "dense/k"],
        ["dense/k", "dense/k", HEAD],
        "'dense/k#2'",
        ["'m/dense/k', 'dense/k'", "as may 'dense/k'"],
    ),
}


@pytest.mark.parametrize("case", OPEN)
def test_what_stays_open_is_an_error(case):
    saved, new, variable, parts = OPEN[case]
    with pytest.raises(ValueError, match="the saved decays") as error:
        aligned(saved, new)
    message = str(error.value)
    assert f"Received: {variable} of shape (2, 3), which may continue the saved " in message
    assert "names of their own (`name=...`)" in message
    for part in parts:
        assert part in message


def test_a_message_shows_at_most_five():
    with pytest.raises(ValueError, match="…") as error:
        aligned([f"m/d_{i}/k" for i in range(20)], [f"d_{i}/k" for i in range(30, 60)])
    assert str(error.value).count("'m/") == 5


def test_shapes_may_be_lists():
    """As they come out of JSON."""
    assert align([("m/a", [2, 3]), ("x", [1])], [("a", (2, 3))], what="the saved decays") == [0]


MANY = [f"m/dense_{i}/k" for i in range(20_000)]


@pytest.mark.parametrize(
    ("saved", "new", "expected"),
    [
        (MANY, MANY, [*range(20_000)]),
        (MANY, [*MANY[:50], "m/head/k", *MANY[50:]], [*range(50), None, *range(50, 20_000)]),
        ([*MANY, "m/head/k"], MANY, [*range(20_000)]),
        (MANY, [*(path[2:] for path in MANY), "head/k"], [*range(20_000), None]),
    ],
    ids=["the same", "one more", "one less", "dropped, new head"],
)
def test_twenty_thousand_variables_of_one_shape(saved, new, expected):
    start = time.process_time()
    assert aligned(saved, new) == expected
    assert time.process_time() - start < 5


# Properties. Few letters, so that paths are often tails of one another.
part = st.sampled_from(["a", "b", "d", "d_1", "d_2"])
shape = st.sampled_from([A, A, A, B])


def paths(min_parts=1, max_parts=4, min_size=0):
    parts = st.lists(part, min_size=min_parts, max_size=max_parts)
    return st.lists(parts.map("/".join), min_size=min_size, max_size=6, unique=True)


@settings(max_examples=300)
@given(st.lists(st.tuples(part, shape)), st.lists(st.tuples(part, shape)))
def test_no_entry_is_used_twice_and_only_a_label_excuses_a_shape(saved, new):
    saved, new = entries(*saved), entries(*new)
    try:
        result = align(saved, new, what="the saved decays")
    except ValueError:
        return
    used = [j for j in result if j is not None]
    assert len(result) == len(new)
    assert len(set(used)) == len(used)
    for (label, shape), j in zip(new, result, strict=True):
        assert j is None or saved[j][0] == label or saved[j][1] == shape


@settings(max_examples=300)
@given(paths(), st.randoms(use_true_random=False), st.data())
def test_reordered_layers_align_by_label(names, random, data):
    saved = [(name, data.draw(shape)) for name in names]
    new = random.sample(saved, len(saved))
    # Shapes equal in order beside the same labels: see "names swapped, shapes not".
    assert align(saved, new, what="the saved decays") == [saved.index(entry) for entry in new]


@settings(max_examples=300)
@given(paths(), st.lists(st.sampled_from("xyz"), min_size=1, max_size=3), st.booleans(), st.data())
def test_a_wrapping_model_aligns_to_the_identity(names, prefix, wrapped_now, data):
    """Added to or dropped from all paths, beside a new head."""
    wrapped, bare = ["/".join([*prefix, name]) for name in names], names
    old, now = (bare, wrapped) if wrapped_now else (wrapped, bare)
    shapes = [data.draw(shape) for _ in names]
    saved, new = list(zip(old, shapes, strict=True)), list(zip(now, shapes, strict=True))
    assert align(saved, [*new, HEAD], what="the saved decays") == [*range(len(names)), None]


@settings(max_examples=1000)
@given(paths(min_size=1), st.data())
def test_dropped_components_never_align_to_another_variable(names, data):
    """Each path loses some of its own leading components. Alone that goes by position; beside a head it may be open."""
    parts = [name.split("/") for name in names]
    short = labels(["/".join(one[data.draw(st.integers(0, len(one) - 1)) :]) for one in parts])
    saved, new = [(name, A) for name in names], [(name, A) for name in short]
    identity = [*range(len(names))]
    assert align(saved, new, what="the saved decays") == identity
    try:
        result = align(saved, [*new, HEAD], what="the saved decays")
    except ValueError:
        return
    assert result == [*identity, None]


@settings(max_examples=500)
@given(st.integers(1, 5), st.integers(0, 6), st.booleans())
def test_layers_counted_on_are_never_swapped(count, shift, more):
    """dense_1 … dense_n come back as dense_(1+shift) …: each continues its own, or it is an error."""
    saved = [(f"dense_{i}/kernel", A) for i in range(count)]
    new = [(f"dense_{i + shift}/kernel", A) for i in range(count)] + [HEAD] * more
    try:
        result = align(saved, new, what="the saved decays")
    except ValueError:
        assert more
    else:
        assert result == [*range(count)] + [None] * more
