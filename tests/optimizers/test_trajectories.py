"""Each optimizer against the float64 oracle, compared after every update, in eager and compiled code."""

import itertools
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
    VARIANTS,
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

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

# On torch, where each class has a kernel, every case for one optimizer of each class, and the arithmetic for all.
# Elsewhere all classes run one code: every case for one of them on JAX, and some for the others.
EVERY_CASE = {"torch": ONE_OF_EACH, "jax": ("adamw",), "tensorflow": ()}[BACKEND]
FEW = ["l1 and l2", "accumulation", "t_mul, normalized per cycle", "all kinds at once"]
OF_OTHERS = ARITHMETIC if BACKEND == "torch" else FEW
MATRIX = [
    ("eager", name, case)
    for name in OPTIMIZERS
    for case in (CASES if name in EVERY_CASE else OF_OTHERS)
]

# In compiled code what matters is that nothing is frozen into the graph: counters, r, cycle_start, decays.
REPRESENTATIVE = {
    "adamw": [
        "multipliers as schedules",
        "weight_decay as a schedule",
        "accumulation",
        "learning rate set on a schedule",
        "kinds by key",
        "eta_power=0, learning rate 0",
        "weight decay set",
        "a decay that begins when it is told",
    ],
    "adamw-amsgrad": ["l1 and l2", "restarts by hand", "all kinds at once"],
    "nadamw": [
        "rules",
        "t_mul, normalized per cycle",
        "accumulation",
        "warmup",
        "soft_threshold, l2",
        "multipliers as schedules, kinds, accumulation",
    ],
    "nadamw-keras": ["t_mul and m_mul", "cautious, l1"],
    "sgdw": ["keras CosineDecay", "learning rate set", "towards initial, reset"],
    "sgdw-momentum": ["accumulation", "total_iterations_wd", "kinds with multipliers"],
    "sgdw-nesterov": [
        "restarts by hand",
        "base_learning_rate",
        "cautious, annealed",
        "weight decay of a kind set",
    ],
}
MATRIX += [
    (runner, name, case)
    for runner, (name, cases) in itertools.product(COMPILED, REPRESENTATIVE.items())
    for case in (cases[:1] if runner == "graph" else cases)  # traced as it is for XLA
]


@pytest.mark.parametrize(("runner", "name", "case"), MATRIX)
def test_every_update(name, case, runner):
    case, values = CASES[case], initial_values()
    variables, run = make_variables(values), case.oracle(name, values)
    assert [v.path for v in variables] == PATHS
    for _ in follow(case, variables, case.optimizer(name), run, COMPILED.get(runner)):
        pass


KINDS = {
    name: case
    for name, case in CASES.items()
    if any(isinstance(decay, oracle.Decay) for decay in case.decays.values())
}


@pytest.mark.parametrize("case", [c for c in KINDS if "soft_threshold" in c or "by key" in c])
@pytest.mark.parametrize("name", VARIANTS)
def test_weights_become_exactly_what_they_go_towards(name, case):
    """To the bit, where the oracle's do, and nowhere else; towards 0 and towards the first value."""
    case, values = KINDS[case], initial_values()
    variables, run = make_variables(values), case.oracle(name, values)
    step, there = eager(case.optimizer(name), variables), 0
    for grads in gradients(12):
        grads = [0.02 * g if name.startswith("sgdw") else g for g in grads]
        step(grads)
        run.step(grads)
        for i, (variable, decay) in enumerate(zip(variables, run.decays, strict=True)):
            decay = oracle.Decay(*decay)
            ref = run.initial[i] if decay.towards == "initial" else 0.0
            expected = run.values[i] == ref
            assert np.array_equal(numpy(variable) == ref, expected)
            there += np.count_nonzero(expected) if decay.soft_threshold else 0
    assert there > 0 or not any(oracle.Decay(*d).l1 for d in run.decays)


CAUTIOUS = [c for c in KINDS if any(d[3:4] == (True,) for d in KINDS[c].decays.values())]


@pytest.mark.parametrize("case", CAUTIOUS)
@every_optimizer
def test_rounding_decides_nothing_in_the_cautious_cases(name, case):
    """What float32 may be off by never turns the sign of u·d, so that each case has one answer."""
    case = KINDS[case]
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


@pytest.mark.parametrize("name", ["adamw", "adamw-amsgrad", "nadamw", "nadamw-keras", "sgdw"])
def test_nothing_moves_at_eta_0(name):
    """The last update of a cycle is at eta_min exactly: at 0 not a bit changes, but for SGDW's momentum."""
    case = uniform(0.1, {"learning_rate": warm_restarts(ALPHA, 4, t_mul=2)})
    variables, still = make_variables(), []
    step = eager(case.optimizer(name), variables)
    for k, grads in enumerate(gradients(13)):
        before = [numpy(v) for v in variables]
        step(grads)
        if all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True)):
            still.append(k)
    assert still == [3, 11]


# --- the zero-gradient property: θ_k = θ_0·Π(1 − η·λ), whatever α ---

DECAY_ONLY = {
    "constant": (lambda alpha: alpha, oracle.constant),
    "annealed": (
        lambda alpha: warm_restarts(alpha, 4, t_mul=2),
        partial(oracle.cosine, first=4, t_mul=2),
    ),
    "keras": (
        lambda alpha: keras.optimizers.schedules.ExponentialDecay(alpha, 10, 0.5),
        lambda s: oracle.At(0.5 ** (s / 10), s, None),
    ),
}


@pytest.mark.parametrize("schedule", DECAY_ONLY)
@pytest.mark.parametrize("name", VARIANTS)
def test_zero_gradient(name, schedule):
    learning_rate, at = DECAY_ONLY[schedule]
    values, ends = initial_values(), []
    for alpha in (1e-4, 7.0):
        optimizer = uniform(0.02, {"learning_rate": learning_rate(alpha)}).optimizer(name)
        variables, left = make_variables(values), 1.0
        step = eager(optimizer, variables)
        for k in range(15):
            if k == 8:
                scale_rate(0.5)(optimizer)
            left *= 1 - (1.0 if k < 8 else 0.5) * at(k).multiplier * 0.02
            step([np.zeros_like(value) for value in values])
            for variable, value in zip(variables, values, strict=True):
                rtol = (3 * k + 6) * 2.0**-24
                np.testing.assert_allclose(numpy(variable), value * left, rtol=rtol)
        ends.append([numpy(v) for v in variables])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- random schedules, and learning rates and restarts at random moments ---


def factors(low, high):
    return st.floats(low, high).map(lambda x: round(x, 3))


@settings(max_examples=examples(200), deadline=None)
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
