"""Each optimizer against the float64 oracle, compared after every update, in eager and compiled code."""

from functools import partial

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given, settings

import oracle
from cases import (
    ALGORITHMS,
    ALPHA,
    ARITHMETIC,
    BACKEND,
    CASES,
    COMPILED,
    ONE_OF_EACH,
    OPTIMIZERS,
    PATHS,
    allowance,
    assert_within,
    eager,
    follow,
    gradients,
    initial_values,
    make_variables,
    numpy,
    restart,
    scale_rate,
    uniform,
    warm_restarts,
)
from effort import examples

# In compiled code what matters is that nothing is frozen into the graph: counters, r, cycle_start, decays. Every case
# is compiled with one optimizer.
REPRESENTATIVE = {
    "adamw": [
        "multipliers as schedules",
        "weight decay set",
        "a decay that begins when it is told",
        "eta_power=0, rate 0",
    ],
    "adamw-amsgrad": ["all kinds at once", "l1 and l2", "a callable"],
    "nadamw": ["accumulation", "rules", "warmup", "soft_threshold"],
    "nadamw-keras": ["cautious", "soft_threshold towards initial", "stable, then a decay"],
    "sgdw": ["towards initial", "learning rate set", "multipliers"],
    "sgdw-momentum": ["kinds by key", "keras CosineDecay"],
    "sgdw-nesterov": ["restarts by hand", "annealing"],
}
# TensorFlow runs one part of an optimizer's cases without XLA, and the other part under XLA.
PART = {"graph": slice(1, None), "xla": slice(0, 2)}
MATRIX = [
    (runner, name, case)
    for runner in COMPILED
    for name, cases in REPRESENTATIVE.items()
    for case in cases[PART.get(runner, slice(None))]
]
# torch runs eagerly. There each class has a kernel: every case for one optimizer of each class, and the arithmetic for
# all. Elsewhere all classes run one code, whether or not it is compiled.
if BACKEND == "torch":
    MATRIX = [(None, name, case) for name in ONE_OF_EACH for case in CASES]
    MATRIX += [(None, n, case) for n in OPTIMIZERS if n not in ONE_OF_EACH for case in ARITHMETIC]
else:
    MATRIX += [(None, name, "l1 and l2") for name in OPTIMIZERS]


@pytest.mark.parametrize(("runner", "name", "case"), MATRIX)
def test_every_update(name, case, runner):
    case, values = CASES[case], initial_values()
    variables, run = make_variables(values), case.oracle(name, values)
    assert [v.path for v in variables] == PATHS
    for _ in follow(case, variables, case.optimizer(name), run, COMPILED.get(runner)):
        pass


def test_every_case_is_compiled():
    assert sorted(case for cases in REPRESENTATIVE.values() for case in cases) == sorted(CASES)


SOFT = ["soft_threshold", "soft_threshold towards initial", "kinds by key"]


@pytest.mark.parametrize("case", SOFT)
@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_weights_become_exactly_what_they_go_towards(name, case):
    """To the bit, where the oracle's do, and nowhere else; towards 0 and towards the first value."""
    case, values = CASES[case], initial_values()
    variables, run = make_variables(values), case.oracle(name, values)
    step, there = eager(case.optimizer(name), variables), 0
    for grads in gradients(12):
        grads = [0.02 * g if name == "sgdw" else g for g in grads]
        step(grads)
        run.step(grads)
        for i, (variable, decay) in enumerate(zip(variables, run.decays, strict=True)):
            decay = oracle.Decay(*decay)
            ref = run.initial[i] if decay.towards == "initial" else 0.0
            expected = run.values[i] == ref
            assert np.array_equal(numpy(variable) == ref, expected)
            there += np.count_nonzero(expected) if decay.soft_threshold else 0
    assert there > 0


CAUTIOUS = [c for c in CASES if any(d[3:4] == (True,) for d in CASES[c].decays.values())]


@pytest.mark.parametrize("case", CAUTIOUS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rounding_decides_nothing_in_the_cautious_cases(name, case):
    """What float32 may be off by never turns the sign of u·d, so that each case has one answer."""
    case = CASES[case]
    micro_batches = iter(gradients(case.updates * case.accumulate))
    run = case.oracle(name, initial_values())

    def decide(i, u, decay):
        if decay.cautious:
            d = run.values[i] - (run.initial[i] if decay.towards == "initial" else 0.0)
            roundings = (64 * 2.0**-24 * np.max(np.abs(u)), allowance(run)[i])  # of a step, of θ
            for x, most in zip((u, d), roundings, strict=True):
                assert not np.any((x != 0) & (np.abs(x) <= most)), (PATHS[i], run.k)

    run.decide = decide
    for k in range(case.updates):
        if event := case.events.get(k):
            event(run)
        grads = [next(micro_batches) for _ in range(case.accumulate)]
        run.step([np.mean(g, axis=0, dtype="float64") for g in zip(*grads, strict=True)])


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
def test_nothing_moves_at_eta_0(name):
    """The last update of a cycle is at eta_min exactly: at 0 not a bit changes, but for SGDW's momentum."""
    case = uniform(0.1, {"learning_rate": warm_restarts(ALPHA, 3, t_mul=2)})
    variables, still = make_variables(), []
    step = eager(case.optimizer(name), variables)
    for k, grads in enumerate(gradients(10)):
        before = [numpy(v) for v in variables]
        step(grads)
        if all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True)):
            still.append(k)
    assert still == [2, 8]


@pytest.mark.parametrize("alpha", [1e-4, 7.0])
@pytest.mark.parametrize("name", OPTIMIZERS if BACKEND == "torch" else ["sgdw-momentum"])
def test_zero_gradient(name, alpha):
    """θ_k = θ_0·Π(1 − η·λ), whatever α."""
    optimizer = uniform(0.02, {"learning_rate": warm_restarts(alpha, 4, t_mul=2)}).optimizer(name)
    variables, values, left = make_variables(), initial_values(), 1.0
    step = eager(optimizer, variables)
    for k in range(8):
        if k == 6:
            scale_rate(0.5)(optimizer)
        left *= 1 - (1.0 if k < 6 else 0.5) * oracle.cosine(k, 4, 2).multiplier * 0.02
        step([np.zeros_like(value) for value in values])
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_allclose(numpy(variable), value * left, rtol=(3 * k + 6) * 2.0**-24)


# --- random schedules, and learning rates and restarts at random moments ---


def factors(low, high):
    return st.floats(low, high).map(lambda x: round(x, 3))


@settings(max_examples=examples(80), deadline=None)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    alpha=st.floats(1e-4, 0.5),
    l2=st.floats(0, 0.5),
    first=st.integers(2, 6),
    warmup=st.integers(0, 3),
    schedule=st.fixed_dictionaries(
        {
            "t_mul": st.sampled_from([1, 1.5, 2, 3]),
            "m_mul": st.sampled_from([0.5, 0.7, 1.0]),
            "eta_min": st.sampled_from([0.01, 0.1]),  # at 0 a learning rate can't be set
            "eta_max": st.sampled_from([1.0, 0.6]),
            "endpoint": st.booleans(),
            "autorestart": st.booleans(),
        }
    ),
    # Where to, or by how much.
    happens=st.lists(st.none() | st.integers(0, 5) | factors(0.1, 1.0), min_size=1, max_size=6),
    normalized=st.booleans(),
)
def test_any_sequence_of_restarts(name, alpha, l2, first, warmup, schedule, happens, normalized):
    case = uniform(
        float(l2),
        {
            "learning_rate": warm_restarts(alpha, first, warmup_steps=warmup, **schedule),
            "normalize_weight_decay": normalized,
        },
        alpha=alpha,
        schedule=partial(oracle.cosine, first=first, warmup=warmup, **schedule),
        normalize="cycle" if normalized else None,
        warmup=warmup,
    )
    events = [restart(e % first) if isinstance(e, int) else e and scale_rate(e) for e in happens]
    start = np.array([1.0, -0.5, 0.0], "float32")
    variable, optimizer = keras.Variable(start, name="v"), case.optimizer(name)
    cls, hyperparameters = OPTIMIZERS[name]
    run = case.run(partial(oracle.Run, partial(ALGORITHMS[cls], **hyperparameters), [start]), ["v"])
    optimizer.build([variable])
    step = eager(optimizer, [variable])
    for event, grads in zip(events, gradients(len(events), [(3,)]), strict=True):
        if event:
            event(optimizer)
            event(run)
        step(grads)
        run.step(grads)
        assert_within(variable, run.values[0], allowance(run)[0], f"after {run.k} updates")
        np.testing.assert_allclose(numpy(optimizer.eta_t), run.eta, rtol=2e-6, atol=1e-7)
