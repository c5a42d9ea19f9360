"""Which string of `weight_decays` and `lr_multipliers` means which variable."""

import functools
import re

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import example, given, settings

from effort import examples
from keras_decoupled import SGDW

BOTH = ("weight_decays", "lr_multipliers")


class At(keras.Variable):
    """A variable with any path. TensorFlow refuses some of these as name scopes."""

    def __init__(self, path, trainable=True, size=1):
        self.given = path
        super().__init__(np.ones(size, "float32"), name="v", trainable=trainable)

    @property
    def path(self):
        return self.given


@functools.cache
def at(label, trainable=True):
    """The variable of this label. Making one takes TensorFlow longer than everything else here."""
    return At(re.sub(r"#\d+$", "", label), trainable)


class Model(keras.Model):
    """A model of these variables."""

    def __init__(self, variables):
        super().__init__(name="m")
        self.ours, self.built = variables, True


def resolve(rules, names, frozen=(), argument="lr_multipliers"):
    """{label: number} after a build on the names; `model` has the frozen variables too."""
    ours = [at(name) for name in names]
    model = Model([*ours, *(at(name, False) for name in frozen)]) if frozen else None
    optimizer = SGDW(0.5, weight_decay=0, model=model, **{argument: rules})
    optimizer.build(ours)
    if argument == "lr_multipliers":
        return optimizer.lr_multipliers
    return {label: l2 for label, (_, l2) in optimizer.weight_decays.items()}


def hits(key, names, frozen=()):
    """The labels that one key hits."""
    return list(resolve({key: 0.5}, names, frozen))


def hits_after_load(key, names, frozen=()):
    """The labels that a key of a file hits, where all that it was built on is gone."""
    saved = SGDW(0.5, weight_decay=0)
    for ours in ([at(name) for name in frozen], [At("~", size=3)]):
        saved.build(ours)
    loaded = SGDW.from_config(saved.get_config() | {"lr_multipliers": {key: 0.5}})
    loaded.build([at(name) for name in names])
    return list(loaded.lr_multipliers)


REFUSED = {
    "empty": "at least one component",
    "auto-numbered": "has auto-numbered siblings",
    "nothing": "must match the path of at least one variable",
}


def outcome(hits, case):
    """The labels that are hit, or why the key is refused."""
    try:
        return hits(*case)
    except ValueError as error:
        [why] = [why for why, words in REFUSED.items() if words in str(error)]
        return why


# --- labels: variables that share a path ---


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([], []),
        (["a", "b", "a", "a"], ["a", "b", "a#2", "a#3"]),
        (["a", "a", "a#2"], ["a", "a#3", "a#2"]),
        (["a#2", "a", "a"], ["a#2", "a", "a#3"]),
        (["a#2", "a#2", "a"], ["a#2", "a#2#2", "a"]),
    ],
)
def test_labels(paths, expected):
    optimizer = SGDW(weight_decay=0.5)
    optimizer.build([At(path) for path in paths])
    assert list(optimizer.weight_decays) == expected


# --- messages ---

LAYERS = ["lstm_1/cell/kernel", "lstm_10/cell/kernel", "enc/conv1d_0/kernel", "enc/conv1d_1/kernel"]
LAYERS += ["head/kernel", "head/kernel#2", "scale"]
NUMBERED = ["dense/w", "m/dense_1/w", "dense_1_2/w", "dense_x/w"]
MESSAGES = [  # key, variables, words
    ("lstm_1/kernal", LAYERS, ["Received: 'lstm_1/kernal'", "The nearest paths: 'lstm_1"]),
    ("HEADS", LAYERS, ["The nearest paths: 'head/kernel', 'head/kernel#2'."]),
    ("model/lstm_1/cell/kernel", LAYERS, ["The nearest paths: 'lstm_1/cell/kernel'"]),
    (
        "qqq",
        LAYERS,
        ["No path is like it. The paths are: 'lstm_1/c", ", …. Correct", "leave it out"],
    ),
    ("denes", [f"dense/{i}" for i in range(9)], ["The nearest paths: ", "'dense/4', …. Correct"]),
    # A frozen layer, or a nested model, whose name is in no variable's path.
    ("backbone", LAYERS, ["take the object as the key", "{model.get_layer('backbone'): …}"]),
    ("", LAYERS, ["at least one component", "Received: ''", "leave this key out"]),
    ("//", LAYERS, ["Received: '//'"]),
    # Keras counts on from run to run, so "dense" may be another layer next time.
    ("dense", NUMBERED, ["auto-numbered", "Received: 'dense', beside ", "'dense/' for exact"]),
    ("dense_1", NUMBERED, ["auto-numbered", "Received: 'dense_1', beside 'dense_1_2'. "]),
]


@pytest.mark.parametrize("argument", BOTH)
@pytest.mark.parametrize(("key", "names", "words"), MESSAGES)
def test_messages(key, names, words, argument):
    with pytest.raises(ValueError, match=f"`{argument}`") as error:
        resolve({key: 0.5}, names, argument=argument)
    assert [part for part in words if part not in str(error.value)] == []


@pytest.mark.parametrize("argument", BOTH)
@pytest.mark.parametrize("key", [3, None, ("a", "b"), b"w"])
def test_what_is_neither_a_string_nor_a_layer(key, argument):
    with pytest.raises(TypeError, match=rf"`{argument}`.*Received: .*variable\.path"):
        SGDW(**{argument: {key: 0.25}})


# --- properties. Few letters and digits, so that keys and paths meet often ---

part = st.text("ab12_", min_size=1, max_size=4) | st.sampled_from(["a", "a_1", "a_12"])
path = st.lists(part, min_size=1, max_size=3).map("/".join)


def labeled(paths):
    return [p + f"#{n}" * (n > 1) for i, p in enumerate(paths) for n in [paths[: i + 1].count(p)]]


variables = st.lists(path, min_size=1, max_size=6).map(labeled)


@st.composite
def key_and_variables(draw):
    """Variables, some of them frozen, and a key that is often cut from one of them."""
    names = draw(variables)
    split = draw(st.integers(0, len(names)))
    origin = draw(st.sampled_from(names))
    start, stop = sorted((draw(st.integers(0, len(origin))), draw(st.integers(0, len(origin)))))
    slash = draw(st.sampled_from(["", "", "/"]))
    key = draw(st.sampled_from([origin, origin[start:stop], draw(part), draw(path)])) + slash
    return key, names[:split], names[split:]


def by_definition(key, names, frozen):
    """What `outcome` has to be: the specification, written down naively."""

    def whole(label):
        return ("/" + label.split("#")[0] + "/").find("/" + key.removesuffix("/") + "/") >= 0

    def partly(label):
        text, n = label.split("#")[0], len(key)
        short = n < 3 and key.isalpha()  # has to be a word
        return any(
            text[at : at + n] == key
            and not (text[at - 1 : at].isdigit() and key[0].isdigit())
            and not (key[-1].isdigit() and text[at + n :][:1].isdigit())
            and not (short and (text[at - 1 : at].isalpha() or text[at + n :][:1].isalpha()))
            for at in range(len(text) - n + 1)
        )

    everything = [*names, *frozen]
    if key.strip("/") == "":
        return "empty"
    if key in everything:
        return [name for name in names if name == key]
    found = [label for label in everything if whole(label)]
    if found and "/" not in key:
        all_parts = {part for label in everything for part in label.split("#")[0].split("/")}
        if any(part.startswith(key + "_") and part[len(key) + 1 :].isdigit() for part in all_parts):
            return "auto-numbered"
    if not found and not key.endswith("/"):
        found = [label for label in everything if partly(label)]
    return [name for name in names if name in found] if found else "nothing"


@settings(max_examples=examples(300))
@given(key_and_variables())
@example(("dense_1", ["dense_10/kernel", "x_dense_1y/kernel"], ["dense_1/kernel"]))
@example(("2dense", ["x12dense/kernel", "x2dense/kernel"], []))
@example(("dense_1", ["dense_10/dense_1x"], []))
@example(("scale", ["scale", "scale_1"], []))
@example(("dense/", ["dense/w", "m/dense_1/w"], []))
@example(("dense", ["dense/kernel"], ["dense_1/kernel"]))
@example(("dense", ["head/w"], ["dense/w", "dense_1/w"]))
@example(("1111/1", ["1111/11", "1"], []))
@example(("bn", ["bn2a_branch/w", "abn/w"], []))
def test_one_key_as_by_definition(case):
    assert outcome(hits, case) == by_definition(*case)


@settings(max_examples=examples(200))
@given(key_and_variables())
@example(("dense", ["head/w"], ["dense/w", "dense_1/w"]))
@example(("dense", ["dense/w"], ["dense_1/w"]))
def test_one_key_of_a_file_as_by_definition(case):
    """A load drops leading components: of a whole path the longest tail that is a label counts."""
    key, names, frozen = case
    tails = [key.split("/", i)[-1] for i in range(key.count("/") + 1)]
    meant = next((tail for tail in tails if tail in names), key)
    expected = by_definition(meant, names, frozen)
    if expected == "auto-numbered" and by_definition(f"{meant}/", names, frozen) == []:
        expected = []  # a key that decides nothing may be unclear
    if names:  # a build on nothing resolves nothing
        assert outcome(hits_after_load, case) == ([] if expected == "nothing" else expected)


@settings(max_examples=examples(150))
@given(
    variables,
    st.lists(st.one_of(part, path), max_size=6, unique=True),
    st.randoms(use_true_random=False),
    st.sampled_from(BOTH),
)
def test_many_keys_as_by_definition(names, keys, random, argument):
    """The last that hits decides; a variable's own label before all others."""
    keys = list(dict.fromkeys([*keys, *random.sample(names, len(names) // 2)]))
    random.shuffle(keys)
    keys = [key for key in keys if isinstance(by_definition(key, names, []), list)]
    expected = {}
    for name in names:
        hitting = [key for key in keys if name in by_definition(key, names, [])]
        if hitting:
            expected[name] = 2.0 + keys.index(name if name in keys else hitting[-1])
    assert resolve({key: 2.0 + i for i, key in enumerate(keys)}, names, (), argument) == expected
