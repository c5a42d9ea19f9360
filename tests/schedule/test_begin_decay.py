"""`begin_decay()` of an optimizer with a WarmupStableDecay: when the decay begins, and who knows it."""

import copy
import json
import math

import keras
import numpy as np
import pytest
from keras.optimizers import schedules

import oracle
from cases import ALPHA, COMPILED, eager, gradients, make_variable, numpy
from keras_decoupled import AdamW, CosineWarmRestarts, WarmupStableDecay

RUNNERS = {"eager": eager, **COMPILED}
SHAPES = [(3, 2), (2,)]


def make(stable=None, decay=5, warmup=2, cls=AdamW, shape="1-sqrt", eta_min=0.0, **arguments):
    schedule = WarmupStableDecay(ALPHA, stable, decay, warmup, shape, eta_min)
    return cls(schedule, weight_decay=0.1, **arguments)


def variables():
    rng = np.random.default_rng(0)
    return [make_variable(f"v{i}/kernel", rng.normal(size=s)) for i, s in enumerate(SHAPES)]


def run(optimizer, updates, events=None, runner=eager):
    """η and position before each update, and the weights after the last; `events` come before updates."""
    weights, etas, positions = variables(), [], []
    optimizer.build(weights)
    step = runner(optimizer, weights)
    for k, grads in enumerate(gradients(updates, SHAPES)):
        if event := (events or {}).get(k):
            event(optimizer)
        etas.append(float(numpy(optimizer.eta_t)))
        positions.append(int(numpy(optimizer.t_cur)))
        step(grads)
    return etas, positions, np.concatenate([numpy(w).ravel() for w in weights])


def begin(optimizer):
    optimizer.begin_decay()


def expected(updates, **arguments):
    arguments = {"stable": None, "decay": 5, "warmup": 2} | arguments
    return [oracle.stable(s, **arguments).multiplier for s in range(updates)]


# --- when it begins -----------------------------------------------------------------------------


@pytest.mark.parametrize("runner", RUNNERS)
def test_begun_after_n_updates_is_a_stable_part_of_n(runner):
    events = {6: begin, 8: begin, 13: begin}  # again: no effect
    told = run(make(eta_min=0.125), 14, events, RUNNERS[runner])
    known = run(make(4, eta_min=0.125), 14, runner=RUNNERS[runner])
    for a, b in zip(told, known, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(told[0], expected(14, stable=4, eta_min=0.125), rtol=1e-6)
    assert told[1] == [0, 0, *range(12)]


@pytest.mark.parametrize(
    ("stable", "calls", "wanted"),
    [
        *((None, [k], 0) for k in (0, 1, 2)),  # in the warm-up: the decay comes after it
        (10, [5], 3),  # a known stable part ends early
        (2, [6, 11], 2),  # and never late
    ],
)
def test_the_stable_part_that_it_leaves(stable, calls, wanted):
    etas, _, _ = run(make(stable), 12, dict.fromkeys(calls, begin))
    np.testing.assert_allclose(etas, expected(12, stable=wanted), rtol=1e-6)


def test_before_the_build():
    optimizer = make(warmup=0)
    optimizer.begin_decay()
    np.testing.assert_allclose(run(optimizer, 7)[0], expected(7, stable=0, warmup=0), rtol=1e-6)


@pytest.mark.parametrize(("stable", "back"), [(None, "restart"), (None, "t_cur"), (4, "restart")])
def test_restart_goes_back_to_the_stable_part(stable, back):
    def restart(optimizer):
        if back == "restart":
            optimizer.restart(1)
        else:
            optimizer.t_cur = 1

    etas, positions, _ = run(make(stable), 20, {4: begin, 7: restart, 9: begin, 17: restart})
    once = expected(20, stable=2)
    again = expected(20, stable=3)
    np.testing.assert_allclose(etas, [*once[:7], *again[3:13], *[1.0] * 3], rtol=1e-6)
    assert positions == [0, 0, *range(5), *range(1, 11), 1, 2, 3]
    assert int(numpy(make(stable).t_cur)) == 0


@pytest.mark.parametrize("runner", COMPILED)
def test_counts_weight_updates_under_accumulation(runner):
    """Called between two micro-batches, the update that they are part of is the decay's first."""
    optimizer, weights = make(gradient_accumulation_steps=3), variables()
    optimizer.build(weights)
    step, etas = COMPILED[runner](optimizer, weights), []
    for micro, grads in enumerate(gradients(33, SHAPES)):
        if micro in (13, 17):  # in update 4, of which 12 … 14 are the micro-batches; and in 5
            optimizer.begin_decay()
        etas.append(float(numpy(optimizer.eta_t)))
        step(grads)
    np.testing.assert_allclose(etas[::3], expected(11, stable=2), rtol=1e-6)
    assert etas[::3] == etas[2::3]


def test_a_rate_that_was_set_stays_a_factor():
    def half(optimizer):
        optimizer.learning_rate = float(numpy(optimizer.learning_rate)) / 2

    etas, _, _ = run(make(), 14, {3: half, 4: begin, 6: half})
    r = np.repeat([1, 0.5, 0.25], [3, 3, 8])
    np.testing.assert_allclose(etas, r * expected(14, stable=2), rtol=1e-6)
    optimizer = make(stable=0, decay=2, warmup=0)
    run(optimizer, 1)
    with pytest.raises(ValueError, match="the schedule is at 0"):
        optimizer.learning_rate = 0.1


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
    optimizer, theta = make(warmup=0, total_iterations_wd=25), variables()
    optimizer.apply([keras.ops.zeros(s) for s in SHAPES], theta)
    left = numpy(theta[0]) / numpy(variables()[0])
    np.testing.assert_allclose(left, 1 - 0.1 / math.sqrt(25), rtol=1e-6)


# --- who knows it -------------------------------------------------------------------------------


def test_its_start_is_an_optimizer_variable():
    optimizer = make()
    (start,) = (v for v in optimizer.variables if v.path.endswith("decay_start"))
    optimizer.begin_decay()
    assert int(numpy(start)) == 2
    others = (AdamW(0.1, weight_decay=0), AdamW(CosineWarmRestarts(0.1, 9), weight_decay=0))
    assert not any("decay_start" in v.path for other in others for v in other.variables)


def test_a_config_has_the_schedule_and_no_state():
    optimizer = make(None, 7, shape="cosine", eta_min=0.25)
    run(optimizer, 5, {3: begin})
    config = json.loads(json.dumps(optimizer.get_config()))
    for again in (AdamW.from_config(config), copy.deepcopy(optimizer)):
        assert again.get_config() == optimizer.get_config()
        np.testing.assert_allclose(
            run(again, 12, {6: begin})[0],
            expected(12, stable=4, decay=7, shape="cosine", eta_min=0.25),
            rtol=1e-6,
        )


@pytest.mark.parametrize(
    "rate", [0.1, lambda: 0.1, CosineWarmRestarts(0.1, 9), schedules.ExponentialDecay(0.1, 9, 0.5)]
)
def test_other_learning_rates_have_no_decay_to_begin(rate):
    words = r"^`begin_decay\(\)` needs a `WarmupStableDecay`.*Received: .*Make the op"
    with pytest.raises(ValueError, match=words):
        AdamW(rate, weight_decay=0).begin_decay()
    annealed = AdamW(0.1, weight_decay=0, use_cosine_annealing=True, total_iterations=9)
    with pytest.raises(ValueError, match=r"Received: schedule=.*CosineWarmRestarts"):
        annealed.begin_decay()
