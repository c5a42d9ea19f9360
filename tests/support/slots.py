"""What each optimizer variable is and holds, by what the optimizer itself writes into a file."""

import json

import numpy as np

import stock
import training
from cases import OPTIMIZERS, VARIANTS, make_variable, numpy

EVERY = [*VARIANTS, *stock.STOCK]
SHAPES = {"a": (2, 2), "b": (2, 2), "c": (2, 2), "d": (3,)}  # a swap within one shape is silent
# Lists of variables, by name, built one after the other.
HISTORIES = {
    "unfrozen later": ["c", "abcd"],
    "one by one": ["b", "bc", "abcd"],
    "frozen and back": ["abcd", "b", "abcd"],
    "in another order": ["dcba", "abcd"],
    "swapped": ["ad", "bc", "abcd"],
}


def make(name, /, **arguments):
    """An optimizer of one of the two tables."""
    return (training if name in OPTIMIZERS else stock).make(name, **arguments)


def pool(dtype="float32"):
    """{name: variable}; no two are equal."""
    return {
        name: make_variable(f"net/{name}/w", np.full(shape, 1.0 + i), dtype)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def train(optimizer, ours, names, updates=2):
    """Updates on these variables, each with gradients of its own."""
    for k in range(updates):
        rng = np.random.default_rng(k)
        grads = {name: 0.3 + rng.normal(size=shape) for name, shape in SHAPES.items()}
        given = [training.tensors([grads[name]], ours[name].dtype)[0] for name in names]
        optimizer.apply(given, [ours[name] for name in names])


def with_history(optimizer, history, ours, updates=2):
    """The optimizer, built on each of these lists in turn, and trained."""
    for names in history:
        optimizer.build([ours[name] for name in names])
        train(optimizer, ours, names, updates)
    return optimizer


def saved(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def contents(optimizer):
    """{(slot, label of its variable or None): value}, in the order of `optimizer.variables`."""
    layout = json.loads(saved(optimizer)["layout"].tobytes())["variables"]
    found = {tuple(place): numpy(v) for place, v in zip(layout, optimizer.variables, strict=True)}
    assert len(found) == len(optimizer.variables), "two optimizer variables of one place"
    return found


def of_slot(optimizer, slot):
    """{label: value} of one slot."""
    return {label: value for (name, label), value in contents(optimizer).items() if name == slot}


def assert_same(found, expected, in_order=True):
    """All that is expected is there, to the bit; `in_order`: nothing else, and in this order."""
    assert expected
    if in_order:
        assert list(found) == list(expected)
    for place, value in expected.items():
        np.testing.assert_array_equal(found[place], value, err_msg=str(place))
