"""Each optimizer against the float64 oracle, compared after every update, in eager and compiled code."""

import itertools
import math

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import example, given, settings

import oracle
from cases import (
    ALGORITHMS,
    ALPHA,
    BACKEND,
    CASES,
    COMPILED,
    OPTIMIZERS,
    PATHS,
    Case,
    allowance,
    assert_follows,
    eager,
    eager_with_cond,
    gradients,
    initial_values,
    make_variable,
    numpy,
    restart,
    scale_rate,
    set_rate,
    warm_restarts,
)


def follow(case, name, runner):
    """Run both sides together; weights and what the optimizer says of itself must agree at every update."""
    values = initial_values()
    variables = [make_variable(path, value) for path, value in zip(PATHS, values, strict=True)]
    assert [v.path for v in variables] == PATHS
    optimizer, run = case.optimizer(name), case.oracle(name, values)
    if 0 not in case.events:  # an event before the first update comes before build
        optimizer.build(variables)
    micro_batches = iter(gradients(case.updates * case.accumulate))
    step = None
    for k in range(case.updates):
        if event := case.events.get(k):
            event(optimizer)
            event(run)
        if step is None:
            step = runner(optimizer, variables)
        grads = list(itertools.islice(micro_batches, case.accumulate))
        for g in grads[:-1]:
            before = [numpy(v) for v in variables]
            step(g)
            assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True))
        step(grads[-1])
        run.step([np.mean(g, axis=0, dtype="float64") for g in zip(*grads, strict=True)])
        assert_follows(variables, run)
        assert_says(optimizer, run)
    assert float(numpy(optimizer.lr_t)) == float(numpy(optimizer.learning_rate))
    for path, variable, value in zip(PATHS, variables, values, strict=True):
        if case.multipliers.get(path) == 0:
            assert np.array_equal(numpy(variable), value), f"{path} is frozen"


def assert_says(optimizer, run):
    """`learning_rate`, `eta_t` and `t_cur` are those of the next update."""
    close = {
        "rel": 1e-6,
        "abs": 1e-7,
    }  # a cosine near its end, π rounded to float32, is right to 1e-7 of its start
    assert float(numpy(optimizer.eta_t)) == pytest.approx(run.eta, **close)
    assert float(numpy(optimizer.learning_rate)) == pytest.approx(run.learning_rate, **close)
    at = run.at
    if at.cycle_steps is None or at.position < at.cycle_steps:  # past its only cycle nobody asks
        assert int(numpy(optimizer.t_cur)) == at.position


# On torch, where each class has a kernel, every case for one optimizer of each class; elsewhere all classes run one
# code, and every case is for one of them. For the others those that reach their own arithmetic.
EVERY_CASE = ("adamw", "nadamw", "sgdw-momentum") if BACKEND == "torch" else ("adamw",)
ARITHMETIC = [
    "plain",
    "l1 and l2",
    "multipliers",
    "t_mul, normalized per cycle",
    "accumulation",
    "learning rate set",
    "restarts by hand",
    "kinds by key",
]
MATRIX = [
    (name, case) for name in OPTIMIZERS for case in (CASES if name in EVERY_CASE else ARITHMETIC)
]


@pytest.mark.parametrize(("name", "case"), MATRIX)
def test_eager(name, case):
    follow(CASES[case], name, eager_with_cond if CASES[case].cond else eager)


# In compiled code what matters is that nothing is frozen into the graph: counters, r, cycle_start, decays.
REPRESENTATIVE = {
    "adamw": [
        "multipliers",
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
        "kinds and accumulation",
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


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in REPRESENTATIVE for case in REPRESENTATIVE[name]]
)
def test_compiled(name, case, runner):
    follow(CASES[case], name, COMPILED[runner])


KINDS = {
    case: CASES[case]
    for case in CASES
    if any(isinstance(d, oracle.Decay) for d in CASES[case].decays.values())
}


@pytest.mark.parametrize("case", [c for c in KINDS if "soft_threshold" in c or "by key" in c])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_become_exactly_what_they_go_towards(name, case):
    """To the bit, where the oracle's do, and nowhere else; towards 0 and towards the first value."""
    case, values = KINDS[case], initial_values()
    variables = [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)]
    optimizer, run = case.optimizer(name), case.oracle(name, values)
    step, there = eager(optimizer, variables), 0
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


@pytest.mark.parametrize(
    "case", [c for c in KINDS if any(d[3:4] == (True,) for d in KINDS[c].decays.values())]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
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
        grads = list(itertools.islice(micro_batches, case.accumulate))
        run.step([np.mean(g, axis=0, dtype="float64") for g in zip(*grads, strict=True)])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_accumulation_equals_the_averaged_gradient(name):
    """Two of ours side by side: four micro-batches, or their mean at once."""

    def arguments(**more):
        return {"learning_rate": warm_restarts(ALPHA, 3, t_mul=2), "weight_decay": 0.03, **more}

    values = initial_values()
    one, other = (
        [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)] for _ in range(2)
    )
    micro = eager_with_cond(
        Case(lambda: arguments(gradient_accumulation_steps=4)).optimizer(name), one
    )
    whole = eager(Case(arguments).optimizer(name), other)
    run = Case(arguments, {"*": (0.0, 0.03)}).oracle(name, values)  # for the size of rounding only
    micro_batches = gradients(40)
    for k in range(10):
        grads = micro_batches[4 * k : 4 * k + 4]
        for g in grads:
            micro(g)
        mean = [
            np.mean(g, axis=0, dtype="float64").astype("float32") for g in zip(*grads, strict=True)
        ]
        whole(mean)
        run.step(mean)
        for a, b, most in zip(one, other, allowance(run), strict=True):
            assert np.all(np.abs(numpy(a) - numpy(b)) <= 2 * most)


@pytest.mark.parametrize("name", ["adamw", "adamw-amsgrad", "nadamw", "nadamw-keras", "sgdw"])
def test_nothing_moves_at_eta_0(name):
    """The last update of a cycle is at eta_min exactly: at 0 not a bit changes, but for SGDW's momentum."""
    case = Case(lambda: {"learning_rate": warm_restarts(ALPHA, 4, t_mul=2), "weight_decay": 0.1})
    variables = [make_variable(p, v) for p, v in zip(PATHS, initial_values(), strict=True)]
    step = eager(case.optimizer(name), variables)
    still = []
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
        lambda s: oracle.cosine(s, 4, t_mul=2),
    ),
    "keras": (
        lambda alpha: keras.optimizers.schedules.ExponentialDecay(alpha, 10, 0.5),
        lambda s: oracle.At(0.5 ** (s / 10), s, None),
    ),
}


@pytest.mark.parametrize("schedule", DECAY_ONLY)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zero_gradient(name, schedule):
    learning_rate, at = DECAY_ONLY[schedule]
    values, ends = initial_values(), []
    for alpha in (1e-4, 7.0):
        case = Case(
            lambda alpha=alpha: {"learning_rate": learning_rate(alpha), "weight_decay": 0.02}
        )
        variables = [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)]
        optimizer = case.optimizer(name)
        step = eager(optimizer, variables)
        left = 1.0
        for k in range(15):
            if k == 8:
                optimizer.learning_rate = 0.5 * float(numpy(optimizer.learning_rate))
            left *= 1 - (1.0 if k < 8 else 0.5) * at(k).multiplier * 0.02
            step([np.zeros_like(value) for value in values])
            for variable, value in zip(variables, values, strict=True):
                np.testing.assert_allclose(
                    numpy(variable), value * left, rtol=(3 * k + 6) * 2.0**-24
                )
        ends.append([numpy(v) for v in variables])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# --- random hyperparameters, and learning rates and restarts at random moments ---

factors = st.floats(0.0, 1.2).map(lambda x: round(x, 3))


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(list(OPTIMIZERS)),
    alpha=st.floats(1e-4, 0.5),
    l1=st.floats(0, 0.05),
    l2=st.floats(0, 0.3),  # with η < 6 no |1 − η·λ| is above 1: rounding errors stay what they are
    multiplier=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
    total=st.none() | st.integers(1, 100),
    happens=st.lists(
        st.none() | st.tuples(st.sampled_from(["set", "scale"]), factors), min_size=1, max_size=7
    ),
)
@example(
    "sgdw-momentum",
    0.1,
    0.0,
    0.1,
    1.0,
    None,
    [None, ("set", 0.0), None, ("set", 0.5), ("scale", 1.2)],
)
def test_any_sequence_of_learning_rates(name, alpha, l1, l2, multiplier, total, happens):
    case = Case(
        lambda: {
            "learning_rate": alpha,
            "weight_decay": 0,
            "weight_decays": {"v": (l1, l2)},
            "lr_multipliers": {"v": multiplier},
            "total_iterations_wd": total,
        }
    )
    events = [
        e and (set_rate(e[1] * alpha) if e[0] == "set" else scale_rate(e[1])) for e in happens
    ]
    follow_events(case, name, events, oracle_of(name, alpha, l1, l2, multiplier, normalize=total))


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    name=st.sampled_from(list(OPTIMIZERS)),
    alpha=st.floats(1e-4, 0.5),
    l2=st.floats(0, 0.5),
)
def test_any_sequence_of_restarts(data, name, alpha, l2):
    first, t_mul = data.draw(st.integers(2, 6)), data.draw(st.sampled_from([1, 1.5, 2, 3]))
    schedule = {
        "t_mul": t_mul,
        "m_mul": data.draw(st.sampled_from([0.5, 0.7, 1.0])),
        "eta_min": data.draw(st.sampled_from([0.01, 0.1])),  # at 0 a learning rate can't be set
        "eta_max": data.draw(st.sampled_from([1.0, 0.6])),
        "endpoint": data.draw(st.booleans()),
        "autorestart": data.draw(st.booleans()),
    }
    warmup = data.draw(st.integers(0, 3))
    restarts = st.integers(0, first - 1).map(restart)
    scaling = st.floats(0.1, 1.0).map(lambda x: round(x, 3)).map(scale_rate)
    happens = data.draw(st.lists(st.none() | restarts | scaling, min_size=1, max_size=6))
    normalize = data.draw(st.booleans())
    case = Case(
        lambda: {
            "learning_rate": warm_restarts(alpha, first, warmup_steps=warmup, **schedule),
            "weight_decay": l2,
            "normalize_weight_decay": normalize,
        }
    )
    run = oracle_of(
        name,
        alpha,
        0.0,
        l2,
        1.0,
        schedule=lambda s: oracle.cosine(s, first, warmup=warmup, **schedule),
        normalize="cycle" if normalize else None,
        warmup=warmup,
    )
    follow_events(case, name, happens, run)


def oracle_of(name, alpha, l1, l2, multiplier, **arguments):
    cls, hyperparameters = OPTIMIZERS[name]

    def algorithm(*args):
        return ALGORITHMS[cls](*args, **hyperparameters)

    return oracle.Run(
        algorithm, [np.array([1.0, -0.5, 0.0])], alpha, [(l1, l2)], [multiplier], **arguments
    )


def follow_events(case, name, happens, run):
    variable = keras.Variable(np.array([1.0, -0.5, 0.0], "float32"), name="v")
    optimizer = case.optimizer(name)
    optimizer.build([variable])
    step = eager(optimizer, [variable])
    for event, grads in zip(happens, gradients(len(happens), [(3,)]), strict=True):
        if event:
            event(optimizer)
            event(run)
        step(grads)
        run.step(grads)
        # relative to all of the variable: where θ crosses 0, sign θ is decided by rounding, so l1 is left out there
        error, most = np.abs(numpy(variable) - run.values[0]), allowance(run)[0]
        crossed = np.abs(run.values[0]) < 4 * most
        if run.decays[0][0] and crossed.any():
            return
        assert np.all(error <= most), (
            f"off by {error} after {run.k} updates, at most {most} is rounding"
        )
        assert math.isclose(float(numpy(optimizer.eta_t)), run.eta, rel_tol=2e-6, abs_tol=1e-7)
