"""λ, the uniform decay: a variable that a user reads and sets, and that moves what it reaches, once."""

import keras
import numpy as np
import pytest
from keras import regularizers

from cases import BACKEND, COMPILED, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, Decay, Lion, NadamW
from small import WEAK, again, left, named, ones

schedules = keras.optimizers.schedules


@pytest.mark.parametrize(
    "given", [0, 0.1, (0.25, 0.1), Decay(0.1), Decay(0.1, cautious=True, eta_power=0)], ids=repr
)
def test_a_number_is_a_variable(given):
    for built in (False, True):
        optimizer = SGDW(0.1, weight_decay=given)
        if built:
            optimizer.build(ones())
        decay = optimizer.weight_decay
        assert isinstance(decay, keras.Variable)
        assert decay.name == "weight_decay"
        assert any(v is decay for v in optimizer.variables)
        assert float(decay) == (np.float32(0.1) if given else 0)
        optimizer.weight_decay = 0.3
        assert float(optimizer.weight_decay) == np.float32(0.3)
        assert optimizer.weight_decay is decay


def test_nothing_and_a_schedule_come_back_as_given():
    schedule = schedules.PolynomialDecay(0.1, 5, 0.01)
    assert AdamW(0.1).weight_decay is None
    for given in (schedule, Decay(schedule, cautious=True), (0.1, schedule)):
        optimizer = AdamW(0.1, weight_decay=given)
        assert optimizer.weight_decay is schedule
        assert "weight_decay" not in [v.name for v in optimizer.variables]


@pytest.mark.parametrize("fast", [True, False])
def test_it_moves_the_decay_and_0_is_no_special_case(fast):
    """An optimizer made with 0 may be given a decay later: nothing may leave it out at build."""
    optimizer, ours = AdamW(0.1, weight_decay=0), ones()
    optimizer.fast = fast
    for now in (None, 0.5, 0.25, 0, 0.125):
        if now is not None:
            optimizer.weight_decay = now
        np.testing.assert_array_equal(left(optimizer, ours, 2), 1 - (now or 0))
        assert optimizer.weight_decays == ({"w": (0.0, now)} if now else {})


def test_it_moves_those_that_it_reaches_and_no_others():
    """Not those with a penalty, a key (even of the same number) or an exclusion."""
    model = named(regularizers.L2(WEAK))
    ours = [*model.trainable_variables, *ones("three/kernel", "three/bias", shape=(2, 2))]
    keys = {"two/kernel": 0.25, "two/bias": 0.5}
    optimizer = SGDW(0.1, weight_decay=0.5, model=model, weight_decays=keys)
    optimizer.exclude_from_weight_decay(var_names=["three/bias"])
    before = [WEAK, 0.5, 0.25, 0.5, 0.5, 0]
    after = [WEAK, 0.125, 0.25, 0.5, 0.125, 0]
    np.testing.assert_array_equal(1 - left(optimizer, ours), before)
    optimizer.weight_decay = 0.125
    np.testing.assert_array_equal(1 - left(optimizer, ours), after)
    rows = {v.path: (0.0, l2) for v, l2 in zip(ours, after, strict=True) if l2}
    assert optimizer.weight_decays == rows
    copied = again(optimizer)
    copied.build(ours)
    assert copied.weight_decays == rows
    np.testing.assert_array_equal(1 - left(copied, ours), after)
    copied.weight_decay = 0.5  # which rows follow it is in the config
    np.testing.assert_array_equal(1 - left(copied, ours), before)


# λ as it is given, what is left of 1 under an l2, and T
KINDS = {
    "a number": (0.5, lambda x: 1 - x, None),
    "before normalization": (0.5, lambda x: 1 - x / 2, 4),
    "a pair": ((0.25, 0.5), lambda x: 1 - x - 0.25, None),
    "without eta": (Decay(0.5, eta_power=0), lambda x: 1 - x, None),
    "soft threshold": (Decay(0.5, 0.25, soft_threshold=True), lambda x: 1 - x - 0.25, None),
    "initial": (Decay(0.5, towards="initial"), lambda x: 1.0, None),
}


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_it_is_the_l2_of_a_decay(case):
    given, expected, total = case
    optimizer, ours = SGDW(0.1, weight_decay=given, total_iterations=total), ones()
    for now in (0.5, 0.0, 0.25):
        optimizer.weight_decay = now
        assert left(optimizer, ours) == expected(now)
        copied = again(optimizer)
        copied.build(ours)
        assert float(copied.weight_decay) == now
        assert left(copied, ours) == expected(now)
        assert copied.get_config() == optimizer.get_config()
    if given == 0.5:
        assert optimizer.weight_decays == {"w": (0.0, 0.25)}
        assert optimizer.get_config()["weight_decay"] == 0.25
    if getattr(given, "towards", "") == "initial":  # the reference stays where it was
        ours[0].assign(np.full(2, 3.0))
        eager(optimizer, ours)([np.zeros(2, "float32")])
        assert numpy(ours[0])[0] == 3 - 0.25 * 2


# A kind of decay, and where one update brings the weights 2 and -4, which began as 1 and -2.
ONCE = {
    "plain": (0.25, [1.5, -3.0]),
    "l1": (Decay(0.25, 0.125), [1.5 - 0.125, -3.0 + 0.125]),
    "of_a_kind": (Decay(0.25, eta_power=2, cautious=True), [1.5, -3.0]),
    "towards_initial": (Decay(0.25, towards="initial"), [1.75, -3.5]),
}


EVERY = (
    [AdamW, NadamW, SGDW, Lion] if BACKEND == "torch" else [AdamW, Lion]
)  # each has a kernel there


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("cls", EVERY)
def test_lambda_is_applied_once(cls, fast):
    """Without a gradient an update is the decay alone: a quarter of the way, not 7/16 of it."""
    start, now = np.array([1.0, -2.0], "float32"), [2.0, -4.0]
    by_key = {f"{kind}/": decay for kind, (decay, _) in ONCE.items()}
    variables = [
        make_variable(f"{path}/{dtype}", start, dtype)
        for path in ("uniform", *ONCE)
        for dtype in ("float32", "bfloat16")
    ]
    optimizer = cls(0.1, weight_decay=0.25, weight_decays=by_key)
    optimizer.fast = fast
    optimizer.build(variables)
    compiled = next(iter(COMPILED.values()))
    for runner in (eager, compiled) if fast else (eager,):
        for variable in variables:
            variable.assign(now)
        runner(optimizer, variables)([np.zeros(2, "float32") for _ in variables])
        for variable in variables:
            _, expected = ONCE.get(variable.path.partition("/")[0], ONCE["plain"])
            np.testing.assert_array_equal(numpy(variable), expected, variable.path)
