"""Keys and what they hit: each rule and each message as a table, and a matcher written again by brute force."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_decoupled.paths.match import (
    components,
    deciding_keys,
    labels,
    nearest,
)

PATHS = [
    "lstm_1/lstm_cell/kernel",
    "lstm_1/lstm_cell/bias",
    "lstm_10/lstm_cell/kernel",
    "enc/conv1d_0/kernel",
    "enc/conv1d_1/kernel",
    "enc/conv1d_1/bias",
    "head/kernel",
    "head/kernel#2",
    "scale",
]


def resolve(rules, names, **options):
    """The value that the rules give to each variable."""
    keys = deciding_keys(rules, names, **options)
    return [None if key is None else rules[key] for key in keys]


def hit(key, names=PATHS, **options):
    """What one key hits."""
    values = resolve({key: 1.0}, names, argument="weight_decays", **options)
    return [name for name, value in zip(names, values, strict=True) if value is not None]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["a", "b"], ["a", "b"]),
        (["a", "b", "a", "a"], ["a", "b", "a#2", "a#3"]),
        (["a", "a", "a#2"], ["a", "a#3", "a#2"]),
        (["a#2", "a", "a"], ["a#2", "a", "a#3"]),
        (["a#2", "a#2", "a"], ["a#2", "a#2#2", "a"]),
    ],
)
def test_labels(paths, expected):
    assert labels(paths) == expected


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["a", "b", "a#2", "a#3", "a#2#2"])))
def test_labels_are_unique_and_the_first_of_a_path_keeps_it(paths):
    names = labels(paths)
    assert len(set(names)) == len(names)
    for path in paths:
        assert names[paths.index(path)] == path
    assert all(
        re.fullmatch(re.escape(path) + r"(#\d+)?", name)
        for path, name in zip(paths, names, strict=True)
    )


def test_components():
    assert components("a/kernel#2") == ("a", "kernel")
    assert components("a#b/kernel") == ("a#b", "kernel")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        # exact
        ("lstm_1/lstm_cell/kernel", PATHS[0:1]),
        ("head/kernel", ["head/kernel"]),
        ("head/kernel#2", ["head/kernel#2"]),
        ("scale", ["scale"]),
        # whole components
        ("lstm_1", PATHS[0:2]),
        ("bias", [PATHS[1], PATHS[5]]),
        ("lstm_cell/kernel", [PATHS[0], PATHS[2]]),
        ("enc/conv1d_1", PATHS[4:6]),
        ("head", ["head/kernel", "head/kernel#2"]),
        ("head/kernel/", ["head/kernel", "head/kernel#2"]),
        ("enc/", PATHS[3:6]),
        ("scale/", ["scale"]),
        # substrings
        ("conv1d", PATHS[3:6]),
        ("conv1", PATHS[3:6]),
        ("lstm_1/lstm", PATHS[0:2]),
        ("_cell", PATHS[0:3]),
        ("0/", None),  # no component, and a trailing "/" asks for one
        ("ern", [path for path in PATHS if "kernel" in path]),
        ("d_1/k", [PATHS[4]]),
        ("lstm", PATHS[0:3]),
        ("conv1d_", PATHS[3:6]),
        # nothing
        ("lstm/", None),
        ("conv1d/", None),
        ("kernel#2", None),
        ("lstm_1/kernel", None),
        ("/head", None),
        ("head//", None),
    ],
)
def test_a_key_hits(key, expected):
    if expected is None:
        with pytest.raises(ValueError, match="match the path of at least one variable"):
            hit(key)
        assert hit(key, strict=False) == []
    else:
        assert hit(key) == expected


@pytest.mark.parametrize(
    ("key", "path", "expected"),
    [
        ("dense_1", "dense_10/kernel", False),
        ("0/kernel", "dense_10/kernel", False),
        ("2dense", "x2dense/kernel", True),
        ("2dense", "x12dense/kernel", False),
        (
            "dense_1",
            "dense_10/dense_1x",
            True,
        ),  # an occurrence that cuts a number hides none that cuts none
        ("dense_1", "dense_1x/dense_10", True),
        ("11", "111_11a", True),
        ("1_1", "1_1_11/x", True),
        ("1_1", "11_1/x", False),
    ],
)
def test_a_number_is_never_cut(key, path, expected):
    assert bool(hit(key, [path], strict=False)) == expected


def test_frozen_variables_count():
    names, others = ["dense_10/kernel", "x_dense_1y/kernel"], ["dense_1/kernel"]
    assert hit("dense_1", names) == ["x_dense_1y/kernel"]
    assert (
        hit("dense_1", names, others=others) == []
    )  # a whole component of the frozen one: no substring
    assert hit("dense_1/kernel", names, others=others) == []
    assert hit("ense_1/", names, others=["ense_1/w"]) == []
    assert hit("zz", names, others=["zzz/w"]) == []
    with pytest.raises(ValueError, match="auto-numbered"):
        hit("dense", ["dense/kernel"], others=others)


def test_others_may_repeat_the_names():
    for key in "b", "b/w":
        assert hit(key, ["b/w", "c/w"], others=["a/w", "b/w", "c/w"]) == ["b/w"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"enc": 1, "bias": 0}, [1, 0, None]),
        ({"bias": 0, "enc": 1}, [1, 1, None]),
        ({"enc/bias": 5, "enc": 1, "bias": 0}, [1, 5, None]),
        ({"head": 1, "ker": 2}, [2, None, 2]),
        ({"ker": 2, "head": 1}, [2, None, 1]),
        ({}, [None, None, None]),
    ],
)
def test_which_key_wins(rules, expected):
    names = ["enc/kernel", "enc/bias", "head/kernel"]
    assert resolve(rules, names, argument="weight_decays") == expected


@pytest.mark.parametrize("key", ["dense", "dense_1"])
def test_siblings(key):
    names = ["dense/kernel", "m/dense_1/kernel", "dense_1_2/kernel", "dense_x/kernel"]
    with pytest.raises(ValueError, match=re.escape(f"Received: {key!r}, beside ")) as error:
        hit(key, names)
    assert "weight_decays" in str(error.value)
    assert f"{key + '/'!r} for exactly this component" in str(error.value)
    expected = {"dense": ["dense/kernel"], "dense_1": ["m/dense_1/kernel"]}[key]
    assert hit(key + "/", names) == expected
    assert hit(expected[0], names) == expected
    assert hit(expected[0].removeprefix("m/")[1:], names)  # a substring is no component


def test_what_is_no_sibling():
    assert hit(
        "dense", ["dense/kernel", "dense_a/kernel", "dense10/kernel", "my_dense_1/kernel"]
    ) == ["dense/kernel"]
    assert hit("dense", ["dense_1/kernel", "dense_2/kernel"]) == [
        "dense_1/kernel",
        "dense_2/kernel",
    ]
    assert hit("scale", ["scale", "scale_1"]) == ["scale"]  # exact
    assert hit("dense/kernel", ["m/dense/kernel", "m/dense_1/kernel"]) == ["m/dense/kernel"]


def test_after_a_load_only_rules_that_decide_something_may_fail():
    assert (
        hit("dense", ["head/kernel"], others=["dense/kernel", "dense_1/kernel"], strict=False) == []
    )
    assert hit("gone", ["head/kernel"], strict=False) == []
    assert resolve({"gone": 1.0}, [], argument="weight_decays", strict=False) == []
    with pytest.raises(ValueError, match="auto-numbered"):
        hit("dense", ["dense/kernel"], others=["dense_1/kernel"], strict=False)


@pytest.mark.parametrize(
    ("key", "kind", "parts"),
    [
        (
            "lstm_1/kernal",
            ValueError,
            ["`weight_decays`", "Received: 'lstm_1/kernal'", "nearest paths: 'lstm_1"],
        ),
        ("HEADS", ValueError, ["nearest paths: 'head/kernel', 'head/kernel#2'."]),
        ("model/lstm_1/lstm_cell/kernel", ValueError, ["nearest paths: 'lstm_1/lstm_cell/kernel'"]),
        (
            "qqq",
            ValueError,
            [
                "No path is near it; there are: 'lstm_1/lstm_cell/kernel', ",
                ", …. A key",
                "leave it out",
            ],
        ),
        (
            "",
            ValueError,
            ["`weight_decays`", "at least one component", "Received: ''", "leave this key out"],
        ),
        ("//", ValueError, ["Received: '//'"]),
        (
            3,
            TypeError,
            ["`weight_decays`", "strings", "Received: 3 of type int", "`variable.path`"],
        ),
        (None, TypeError, ["Received: None of type NoneType"]),
    ],
)
def test_messages(key, kind, parts):
    with pytest.raises(kind) as error:
        hit(key)
    for part in parts:
        assert part in str(error.value)


def test_a_message_shows_at_most_five_paths():
    with pytest.raises(ValueError, match="nearest") as error:
        resolve({"denes": 1}, [f"dense_{i}/kernel" for i in range(50)], argument="lr_multipliers")
    assert str(error.value).count("/kernel") == 5
    assert "`lr_multipliers`" in str(error.value)


def test_a_key_that_hits_nothing_may_mean_a_layer():
    """A frozen layer, or a nested model, whose name is in no variable's path."""
    with pytest.raises(ValueError, match=r"the key itself: \{model\.get_layer\('backbone'\): …\}"):
        hit("backbone")


LAYER = ("enc/conv1d_0/kernel", "head/kernel#2")


def test_a_layer_hits_exactly_its_variables():
    assert hit(LAYER) == [*LAYER]
    assert hit(("head/kernel",)) == ["head/kernel"]
    assert hit(("head",), strict=False) == hit(("ernel",), strict=False) == []
    assert hit(("dense",), ["dense", "dense/kernel", "dense_1/kernel"]) == ["dense"]
    assert hit(("dense/kernel",), ["dense/kernel", "dense_1/kernel"]) == ["dense/kernel"]
    assert hit((*LAYER, "gone/kernel")) == [*LAYER]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({LAYER: 1, "kernel": 2}, [2, 2]),
        ({"kernel": 2, LAYER: 1}, [1, 1]),
        ({LAYER: 1, LAYER[:1]: 3}, [3, 1]),
        ({LAYER[0]: 4, LAYER: 1}, [4, 1]),
    ],
)
def test_a_layer_ranks_below_an_exact_path_and_else_by_order(rules, expected):
    assert resolve(rules, LAYER, argument="weight_decays") == expected


def test_a_layer_of_no_variable():
    """It may be frozen: its variables wait for a later build."""
    for layer in (("a/b", "a/c"), ()):
        assert hit(layer) == hit(layer, others=["a/c"]) == hit(layer, strict=False) == []


def test_the_nearest_paths_of_a_text():
    assert nearest("kernal", PATHS[:2]) == "The nearest paths: 'lstm_1/lstm_cell/kernel'."
    assert nearest("qqq", ["a/b"]) == "No path is near it; there are: 'a/b'."
    assert nearest("qqq", []) == "There are no variables."


def test_no_variables():
    assert resolve({}, [], argument="weight_decays") == []
    with pytest.raises(ValueError, match=r"Received: 'kernel'\. There are no variables\."):
        hit("kernel", [])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("key", "kind"), [("", ValueError), ("/", ValueError), (1.5, TypeError)])
def test_a_key_that_is_none_is_never_accepted(key, kind, strict):
    with pytest.raises(kind, match="Received"):
        hit(key, strict=strict)


def test_a_thousand_variables_under_two_hundred_rules():
    names = [f"model/block_{i // 10}/dense_{i}/kernel" for i in range(1000)]
    rules = {f"dense_{i}": i for i in range(100)} | {f"ck_{i}/dense": i for i in range(100)}
    start = time.process_time()
    values = resolve(rules, names, argument="weight_decays")
    assert time.process_time() - start < 5
    assert values[:3] == [0, 0, 0]
    assert values[999] == 99


def test_twenty_thousand_variables_under_five_rules():
    names = [f"m/block_{i // 10}/dense_{i}/{'kernel' if i % 2 else 'bias'}" for i in range(20_000)]
    rules = {"kernel": 1, "block_7": 2, "se_19": 3, names[30]: 4, tuple(names[100:9000]): 5}
    start = time.process_time()
    values = resolve(rules, names, argument="weight_decays", others=names)
    assert time.process_time() - start < 5  # each key against each variable would take minutes
    assert [values[i] for i in (19, 30, 70, 101, 19_100, 19_901)] == [3, 4, 2, 5, None, 1]


# Properties. Few letters and digits, so that keys and paths meet often.
part = st.text("ab12_", min_size=1, max_size=4)
path = st.lists(part, min_size=1, max_size=3).map("/".join)
variables = st.lists(path, min_size=1, max_size=6).map(labels)


@st.composite
def key_and_variables(draw):
    """Variables, a number of which is frozen, and a key that is often cut from one of them."""
    names = draw(variables)
    split = draw(st.integers(0, len(names)))
    origin = draw(st.sampled_from(names))
    start, stop = sorted((draw(st.integers(0, len(origin))), draw(st.integers(0, len(origin)))))
    slash = draw(st.sampled_from(["", "", "/"]))
    key = draw(st.sampled_from([origin, origin[start:stop], draw(part), draw(path)])) + slash
    return key, names[:split], names[split:]


def by_definition(key, names, others):
    """The labels among `names` that a key hits, or an exception's word: the specification, written down naively."""

    def whole(label):
        return ("/" + label.split("#")[0] + "/").find("/" + key.removesuffix("/") + "/") >= 0

    def partly(label):
        text = label.split("#")[0]
        for at in range(len(text) - len(key) + 1):
            before, first = text[at - 1 : at], text[at]
            last, after = text[at + len(key) - 1], text[at + len(key) :][:1]
            uncut = not (before.isdigit() and first.isdigit()) and not (
                last.isdigit() and after.isdigit()
            )
            if text[at : at + len(key)] == key and uncut:
                return True
        return False

    everything = [*names, *others]
    if key.strip("/") == "":
        return "at least one component"
    if key in everything:
        return [name for name in names if name == key]
    hits = [label for label in everything if whole(label)]
    if hits and "/" not in key:
        all_parts = {part for label in everything for part in label.split("#")[0].split("/")}
        if any(part.startswith(key + "_") and part[len(key) + 1 :].isdigit() for part in all_parts):
            return "auto-numbered"
    if not hits and not key.endswith("/"):
        hits = [label for label in everything if partly(label)]
    return [name for name in names if name in hits] if hits else "match the path"


@settings(max_examples=1500, deadline=None)
@given(key_and_variables())
def test_one_key_as_by_definition(case):
    key, names, others = case
    expected = by_definition(key, names, others)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            hit(key, names, others=others)
    else:
        assert hit(key, names, others=others) == expected


@settings(max_examples=500, deadline=None)
@given(
    variables,
    st.lists(st.one_of(part, path), max_size=6, unique=True),
    st.randoms(use_true_random=False),
)
def test_many_keys_as_by_definition(names, keys, random):
    keys = list(dict.fromkeys([*keys, *random.sample(names, len(names) // 2)]))
    random.shuffle(keys)
    keys = [key for key in keys if not isinstance(by_definition(key, names, []), str)]
    expected = []
    for name in names:
        hitting = [key for key in keys if name in by_definition(key, names, [])]
        expected.append(name if name in keys else hitting[-1] if hitting else None)
    assert resolve({key: key for key in keys}, names, argument="weight_decays") == expected


@settings(max_examples=300)
@given(variables, st.data())
def test_a_label_hits_its_variable_and_no_other(names, data):
    name = data.draw(st.sampled_from(names))
    assert hit(name, names) == [name]


@settings(max_examples=300)
@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from(["dense", "block_2", "x1y"]))
def test_a_numbered_key_never_hits_another_number(wanted, present, stem):
    hits = hit(f"{stem}_{wanted}", [f"{stem}_{present}/kernel"], strict=False)
    assert bool(hits) == (wanted == present)
