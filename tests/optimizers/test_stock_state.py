"""What a stock class keeps of each variable: through builds on other variables, saves and loads."""

import keras
import numpy as np
import pytest

from cases import eager, make_variable, numpy, warm_restarts
from stock import (
    FAST,
    PATHS,
    STOCK,
    UNFROZEN_LATER,
    follow_unfreezing,
    make,
    make_stock,
    make_variables,
    micro_batches,
    pair,
)

each = pytest.mark.parametrize("name", STOCK)
FROZEN = [i for i in range(len(PATHS)) if i not in UNFROZEN_LATER]
EMA = {"use_ema": True, "ema_momentum": 0.75}


def contents(optimizer):
    """{(slot, path of its variable or None): value}, in the order of `optimizer.variables`."""
    layout = optimizer._slots.layout(optimizer.variables)["variables"]
    found = {
        tuple(place): (numpy(v), keras.backend.standardize_dtype(v.dtype))
        for place, v in zip(layout, optimizer.variables, strict=True)
    }
    assert len(found) == len(optimizer.variables), "two optimizer variables of one place"
    return found


def assert_same(found, expected, places):
    assert places
    for place in places:
        (value, dtype), (wanted, wanted_dtype) = found[place], expected[place]
        assert dtype == wanted_dtype, place
        assert np.array_equal(value, wanted), place


@pytest.mark.parametrize("fast", FAST)
@each
def test_unfreezing(name, fast):
    """As if all had been known from the start, and the new ones had had no gradient yet."""
    follow_unfreezing(*pair(name, fast), fast=fast)


@each
def test_a_second_build_leaves_no_orphans(name):
    """The optimizer variables are those of a build on all at once, in its order; known ones keep their values."""
    variables, fresh = make_variables(), make(name, **EMA)
    fresh.build(make_variables())
    optimizer = make(name, **EMA)
    part, rest = ([variables[i] for i in members] for members in (UNFROZEN_LATER, FROZEN))
    step = eager(optimizer, part)
    for grads in micro_batches(2):
        step([grads[i] for i in UNFROZEN_LATER])
    before = contents(optimizer)
    optimizer.build(variables)
    after, expected = contents(optimizer), contents(fresh)
    assert list(after) == list(expected)
    assert_same(after, before, list(before))
    assert_same(after, expected, [place for place in expected if place not in before])
    for members in (rest, variables, part, variables):  # what left keeps its values, and comes back
        optimizer.build(members)
        assert_same(contents(optimizer), after, list(after))
    assert list(contents(optimizer)) == list(expected)


@each
def test_a_load_into_another_order(name):
    """Each slot goes to its variable, and scalars are carried over: both go on alike, to the bit."""
    arguments = EMA | {"learning_rate": warm_restarts(0.05, 4, t_mul=2, eta_min=0.1)}
    saved, variables = make(name, **arguments), make_variables()
    step, batches, store = eager(saved, variables), micro_batches(4), {}
    for grads in batches[:2]:
        step(grads)
    saved.save_own_variables(store)
    order = [4, 2, 6, 0, 5, 1, 3]
    again = [make_variable(PATHS[i], numpy(variables[i])) for i in order]
    loaded = make(name, **arguments)
    loaded.build(again)
    loaded.load_own_variables(store)
    same = contents(saved)
    assert_same(contents(loaded), same, list(same))
    for grads in batches[2:]:
        step(grads)
        eager(loaded, again)([grads[i] for i in order])
        for i, variable in zip(order, again, strict=True):
            assert np.array_equal(numpy(variable), numpy(variables[i])), PATHS[i]
    now = contents(saved)
    assert_same(contents(loaded), now, list(now))


@pytest.mark.parametrize("name", ["adafactor", "muon", "nadam"])
def test_weights_are_put_back(name):
    """`set_weights` takes what `variables` gives, scalars included."""
    optimizer, variables = make(name), make_variables()
    step, batches = eager(optimizer, variables), micro_batches(3)
    step(batches[0])
    weights = [numpy(v) for v in variables]
    state = [numpy(v) for v in optimizer.variables]
    ends = []
    for _ in range(2):
        for grads in batches[1:]:
            step(grads)
        ends.append([numpy(v) for v in variables])
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value.astype("float32"))
        optimizer.set_weights(state)
    assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


@each
def test_the_stock_classes_own_state_is_not_taken(name):
    """Its arrays stand in another order: a learning rate would become a moment."""
    stock, store = make_stock(name, learning_rate=0.5), {}
    stock.build(make_variables())
    stock.save_own_variables(store)
    optimizer = make(name)
    optimizer.build(make_variables())
    before = contents(optimizer)
    with pytest.warns(UserWarning, match="was not loaded: another optimizer wrote it"):
        optimizer.load_own_variables(store)
    assert_same(contents(optimizer), before, list(before))
