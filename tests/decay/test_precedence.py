"""What decides a variable's decay: an exclusion, then a key, then the model's regularizer, then `weight_decay`."""

import keras
import numpy as np
import pytest
from keras import regularizers

from keras_decoupled import SGDW
from small import WEAK, left, named, ones

schedules = keras.optimizers.schedules


PATHS = ["net/one/kernel", "net/one/bias", "net/two/kernel", "net/two/bias"]


# --- key, regularizer, weight_decay ---


@pytest.mark.parametrize(
    ("penalty", "arguments", "expected"),
    [
        (WEAK, {"weight_decay": 0.25}, [WEAK, 0.25, 0.25, WEAK]),
        (WEAK, {"weight_decay": 0.25, "weight_decays": {"two": 0.5}}, [WEAK, 0.25, 0.5, 0.5]),
        (WEAK, {"weight_decay": 0.25, "weight_decays": {"one/kernel": 0}}, [0, 0.25, 0.25, WEAK]),
        (WEAK, {"weight_decays": {"one/kernel": (0.5, 0)}}, [(0.5, 0), 0, 0, WEAK]),
        (WEAK, {"lr_multipliers": {"one": 0.5}}, [WEAK, 0, 0, WEAK]),
        (0.0, {"weight_decay": 0.25}, [0.25] * 4),  # a penalty of 0 is none
    ],
    ids=["penalty", "key", "a key of 0", "a key of l1", "multiplier", "penalty of 0"],
)
def test_a_key_beats_a_regularizer_and_that_beats_weight_decay(penalty, arguments, expected):
    """All of the pair (l1, l2) comes from one source; the penalty is taken out all the same."""
    model = named(*[regularizers.L2(penalty)] * 2)
    for _ in range(2):  # a second optimizer finds the same decays
        optimizer = SGDW(0.1, model=model, **arguments)
        optimizer.build(model.trainable_variables)
        pairs = [decay if isinstance(decay, tuple) else (0.0, decay) for decay in expected]
        assert optimizer.weight_decays == {
            path: pair for path, pair in zip(PATHS, pairs, strict=True) if any(pair)
        }
        assert model.losses == [] or penalty == 0


def test_penalties_may_stay():
    model = named(*[regularizers.L2(WEAK)] * 2)
    optimizer = SGDW(0.1, model=model, zero_penalties=False)
    optimizer.build(model.trainable_variables)
    assert len(model.losses) == 2
    assert optimizer.weight_decays == dict.fromkeys([PATHS[0], PATHS[3]], (0.0, WEAK))


def test_weight_decay_may_be_a_schedule():
    model = named(*[regularizers.L2(WEAK)] * 2)
    decay = schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer = SGDW(0.1, model=model, weight_decay=decay, weight_decays={"two/bias": 0})
    for kept in (0.5, 0.75):
        found = left(optimizer, model.trainable_variables)
        np.testing.assert_allclose(found, [1 - WEAK, kept, kept, 1.0], rtol=1e-6)


# --- exclusions ---


def excluding(*calls, regularized=False, **arguments):
    """{path: the decay's l2 after a build}, and what an update leaves."""
    model = named(*[regularizers.L2(WEAK) if regularized else None] * 2)
    ours = model.trainable_variables
    optimizer = SGDW(0.1, weight_decay=0.5, model=model, **arguments)
    for variables, patterns in calls:
        optimizer.exclude_from_weight_decay([ours[i] for i in variables], patterns)
    optimizer.build(ours)
    decays = [l2 for path in PATHS for _, l2 in [optimizer.weight_decays.get(path, (0.0, 0.0))]]
    assert list(left(optimizer, ours)) == [1 - l2 for l2 in decays]
    return decays


def test_an_exclusion_beats_every_rule():
    """A whole path, a key and a regularizer."""
    rules = {"net/one/bias": 0.5, "one": 0.25, "two": 0.125}
    assert excluding(([], ["bias$", "one/kern"]), regularized=True, weight_decays=rules) == [
        0,
        0,
        0.125,
        0,
    ]


@pytest.mark.filterwarnings("ignore:SGDW decays no variable")
@pytest.mark.parametrize(
    ("pattern", "excluded"),
    [
        ("one", [0, 1]),
        ("one|nowhere", [0, 1]),
        ("^net/one", [0, 1]),
        ("o/b", [3]),
        ("kernel$|two", [0, 2, 3]),
        (r"(one|two)\w*/b[a-z]+$", [1, 3]),
        ("(?i:BIAS)", [1, 3]),
        (r"t[^/]*/bias", [3]),
        (r"t{1}.*.*.*.*.*.*/bias", [1, 3]),
        ("^([a-z]+/)+bias$", [1, 3]),
        ("", [0, 1, 2, 3]),
    ],
)
def test_a_pattern_is_searched_in_the_path(pattern, excluded):
    expected = [0 if i in excluded else 0.5 for i in range(4)]
    assert excluding(([], [pattern])) == expected


@pytest.mark.parametrize(
    ("calls", "excluded"),
    [
        ([([1, 2], [])], [1, 2]),
        ([([0], ["two/bias"])], [0, 3]),
        ([([0], []), ([], ["two"])], [0, 2, 3]),
        ([([], ["two"]), ([], [])], [2, 3]),
    ],
    ids=["variables", "both", "a later call adds", "a later call may add nothing"],
)
def test_variables_and_patterns(calls, excluded):
    assert excluding(*calls) == [0 if i in excluded else 0.5 for i in range(4)]


def test_variables_that_share_a_path():
    """A variable is itself; a pattern knows paths only, and means all of them."""
    ours = ones("m/w", "m/w", "m/w", "m/b")
    for variables, patterns, expected in (
        (ours[1:2], [], [0.5, 1.0, 0.5, 0.5]),
        ([], ["w$"], [1.0, 1.0, 1.0, 0.5]),
    ):
        optimizer = SGDW(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(variables, patterns)
        assert list(left(optimizer, ours)) == expected
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["#2"])
    with pytest.warns(UserWarning, match="'#2'"):
        assert list(left(optimizer, ours)) == [0.5] * 4


def test_a_path_may_be_long():
    ours = ones("a" * 5000 + "b", "a")
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["b$"])
    assert list(left(optimizer, ours)) == [1.0, 0.5]


def test_a_pattern_that_excludes_nothing_gives_one_warning():
    """A user who mistypes "gamma" would decay it, and never learn of it."""
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    patterns = ["two/kernal", "bias$", "^one", r"\bkrenel\b"]
    optimizer.exclude_from_weight_decay(var_names=patterns)
    with pytest.warns(UserWarning, match="`exclude_from.*var_names.*exclude nothing") as caught:
        optimizer.build(model.trainable_variables)
    (message,) = (str(w.message) for w in caught if "exclude nothing" in str(w.message))
    assert "Received: 'two/kernal'. The nearest paths: 'net/two/kernel'" in message
    assert "'^one'. The nearest paths: 'net/one/kernel', 'net/one/bias'" in message
    assert r"'\\bkrenel\\b'. The nearest paths: 'net/one/kernel'" in message
    assert "bias$" not in message
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/two/kernel"]
    # Nothing is said twice: not by a later build, not by a load.
    optimizer.build(model.trainable_variables[:2])
    SGDW.from_config(optimizer.get_config()).build(model.trainable_variables)


def test_a_pattern_that_excludes_what_is_frozen_gives_none():
    """Where `model` says that there is such a variable."""
    model = named()
    model.get_layer("one").trainable = False
    optimizer = SGDW(0.1, weight_decay=0.5, model=model)
    optimizer.exclude_from_weight_decay(var_names=["one/bias"])
    for expected in (PATHS[2:], [PATHS[0], *PATHS[2:]]):
        optimizer.build(model.trainable_variables)
        assert list(optimizer.weight_decays) == expected
        model.get_layer("one").trainable = True
