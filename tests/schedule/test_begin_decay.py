"""`begin_decay()` of an optimizer with a WarmupStableDecay: when the decay begins, and who knows it.

That the weights follow, compiled too, is in optimizers/test_trajectories.py.
"""

import copy
import json

import numpy as np
import pytest
from keras.optimizers import schedules

import oracle
from cases import ALPHA, begin_decay, eager, eager_with_cond, gradients, make_variable, numpy
from keras_decoupled import AdamW, CosineWarmRestarts, WarmupStableDecay


def make(stable=None, decay=5, warmup=2, shape="1-sqrt", eta_min=0.0, **arguments):
    schedule = WarmupStableDecay(ALPHA, stable, decay, warmup, shape, eta_min)
    return AdamW(schedule, weight_decay=0.1, **arguments)


def run(optimizer, calls, events=None, runner=eager):
    """η and position before each call of `apply`; `events` come before calls."""
    weights, etas, positions = [make_variable("kernel", np.ones(2))], [], []
    optimizer.build(weights)
    step = runner(optimizer, weights)
    for k, grads in enumerate(gradients(calls, [(2,)])):
        if event := (events or {}).get(k):
            event(optimizer)
        etas.append(float(numpy(optimizer.eta_t)))
        positions.append(int(numpy(optimizer.t_cur)))
        step(grads)
    return etas, positions


def expected(updates, **arguments):
    arguments = {"stable": None, "decay": 5, "warmup": 2} | arguments
    return [oracle.stable(s, **arguments).multiplier for s in range(updates)]


# --- when it begins -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stable", "calls", "wanted"),
    [
        (None, [6, 8, 13], 4),  # the later calls change nothing
        *((None, [k], 0) for k in (0, 1, 2)),  # in the warm-up: the decay comes after it
        (10, [5], 3),  # a known stable part ends early
        (2, [6, 11], 2),  # and never late
    ],
)
def test_the_stable_part_that_it_leaves(stable, calls, wanted):
    etas, positions = run(make(stable, eta_min=0.125), 14, dict.fromkeys(calls, begin_decay))
    np.testing.assert_allclose(etas, expected(14, stable=wanted, eta_min=0.125), rtol=1e-6)
    assert positions == [0, 0, *range(12)]


def test_before_the_build_its_start_is_an_optimizer_variable():
    optimizer = make()
    (start,) = (v for v in optimizer.variables if v.path.endswith("decay_start"))
    optimizer.begin_decay()
    assert int(numpy(start)) == 2
    np.testing.assert_allclose(run(optimizer, 9)[0], expected(9, stable=0), rtol=1e-6)
    others = (AdamW(0.1, weight_decay=0), AdamW(CosineWarmRestarts(0.1, 9), weight_decay=0))
    assert not any("decay_start" in v.path for other in others for v in other.variables)


@pytest.mark.parametrize(("stable", "back"), [(None, "t_cur"), (4, "restart")])
def test_restart_goes_back_to_the_stable_part(stable, back):
    def restart(optimizer):
        if back == "restart":
            optimizer.restart(1)
        else:
            optimizer.t_cur = 1

    events = {4: begin_decay, 7: restart, 9: begin_decay, 17: restart}
    etas, positions = run(make(stable), 20, events)
    once, again = expected(20, stable=2), expected(20, stable=3)
    np.testing.assert_allclose(etas, [*once[:7], *again[3:13], *[1.0] * 3], rtol=1e-6)
    assert positions == [0, 0, *range(5), *range(1, 11), 1, 2, 3]


def test_counts_weight_updates_under_accumulation():
    """Called between two micro-batches, the update that they are part of is the decay's first."""
    # In update 4, of which 12 … 14 are the micro-batches, and in 5.
    events = {13: begin_decay, 17: begin_decay}
    etas, _ = run(make(gradient_accumulation_steps=3), 33, events, eager_with_cond)
    np.testing.assert_allclose(etas[::3], expected(11, stable=2), rtol=1e-6)
    assert etas[::3] == etas[2::3]


# --- what else knows of it ----------------------------------------------------------------------


def test_the_base_is_the_stable_rate():
    assert make(warmup=9).get_config()["base_learning_rate"] == ALPHA
    optimizer = make(stable=0, warmup=0, decay=3, shape="linear", base_learning_rate=2 * ALPHA)
    assert run(optimizer, 4)[0] == [0.5, 0.25, 0, 0]
    with pytest.warns(UserWarning, match=r"the rate will peak at 0\.1 "):
        make().learning_rate = 2 / 3 * ALPHA  # in the warm-up, where 1/3 of it is due


def test_it_has_no_cycle_to_normalize_by():
    with pytest.raises(ValueError, match=r"finds no T.*Give one of them"):
        make(normalize_weight_decay=True)
    with pytest.raises(ValueError, match=r"must be a number: `use_cosine_annealing=True`"):
        make(use_cosine_annealing=True, total_iterations=9)


def test_a_config_has_the_schedule_and_no_state():
    arguments = {"decay": 7, "shape": "cosine", "eta_min": 0.25}
    optimizer = make(None, **arguments)
    run(optimizer, 5, {3: begin_decay})
    config = json.loads(json.dumps(optimizer.get_config()))
    for again in (AdamW.from_config(config), copy.deepcopy(optimizer)):
        assert again.get_config() == optimizer.get_config()
        etas, _ = run(again, 12, {6: begin_decay})
        np.testing.assert_allclose(etas, expected(12, stable=4, **arguments), rtol=1e-6)


ANNEALED = {"use_cosine_annealing": True, "total_iterations": 9}


@pytest.mark.parametrize(
    ("rate", "more"),
    [(0.1, {}), (lambda: 0.1, {}), (schedules.ExponentialDecay(0.1, 9, 0.5), {}), (0.1, ANNEALED)],
)
def test_other_learning_rates_have_no_decay_to_begin(rate, more):
    words = r"^`begin_decay\(\)` needs a `WarmupStableDecay`.*Received: schedule=.*Make the op"
    with pytest.raises(ValueError, match=words):
        AdamW(rate, weight_decay=0, **more).begin_decay()
