"""Exclusions: what the patterns, variables and paths of `exclude_from_weight_decay` mean."""

import time
import warnings

import numpy as np
import pytest

from cases import make_variable
from keras_decoupled.decay.exclusions import Exclusions

LABELS = ["net/conv/kernel", "net/conv/bias", "net/norm/gamma", "net/norm/gamma#2"]


def excluded(exclusions, labels=LABELS):
    """The labels that are excluded, where no variable is."""
    return [label for label in labels if exclusions.hits(label, None, id)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("bias", LABELS[1:2]),
        ("gamma$", LABELS[2:]),  # a pattern is searched in the path, which has no "#2"
        ("#2", []),
        (r"^(\w+/)+(bias|gamma)$", LABELS[1:]),
        ("m{2}.*.*.*.*.*.*", LABELS[2:]),
        ("", LABELS),
    ],
)
def test_patterns(pattern, expected):
    assert excluded(Exclusions(patterns=[pattern])) == expected


def test_a_path_may_be_long():
    assert excluded(Exclusions(patterns=["b$"]), ["a" * 5000 + "b", "a"]) == ["a" * 5000 + "b"]


def test_paths_and_variables():
    assert excluded(Exclusions(paths=["net/conv/bias", "gone"])) == LABELS[1:2]
    variables = [make_variable("w", np.ones(2)) for _ in range(3)]
    exclusions = Exclusions(variables[1:2])
    labels = ["w", "w#2", "w#3"]
    hits = [exclusions.hits(*pair, id) for pair in zip(labels, map(id, variables), strict=True)]
    assert hits == [False, True, False]


def test_twenty_thousand_variables():
    class Stub:
        assign = None

    variables = [Stub() for _ in range(20_000)]
    pairs = [(f"m/dense_{i}/kernel", id(variable)) for i, variable in enumerate(variables)]
    exclusions = Exclusions(variables[::2], ["bias", "gamma$"], [label for label, _ in pairs[:99]])
    start = time.process_time()
    found = [exclusions.hits(label, key, id) for label, key in pairs]
    exclusions.check([label for label, _ in pairs])
    assert time.process_time() - start < 5
    assert sum(found) == 10_000 + 49


def test_a_pattern_that_hits_nothing_warns_once_and_names_the_nearest():
    with pytest.warns(UserWarning, match="var_names") as caught:
        Exclusions(patterns=["bias", "^gama$", r"\bnrom\b"]).warn_of_missed(LABELS)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "Received: '^gama$'. The nearest paths: 'net/norm/gamma', 'net/norm/gamma#2'." in message
    assert r"'\\bnrom\\b'. The nearest paths: 'net/norm" in message
    assert "'bias'" not in message


def test_patterns_that_hit_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Exclusions(patterns=["bias", "gamma$", ""]).warn_of_missed(LABELS)
        Exclusions().warn_of_missed(LABELS)


def test_a_path_that_several_variables_have():
    with pytest.raises(ValueError, match=r"several have it\. Received: net/norm/gamma\."):
        Exclusions(paths=["net/norm/gamma"]).check(LABELS)
    Exclusions(paths=["net/conv/bias"]).check(LABELS)
