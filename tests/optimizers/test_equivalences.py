"""Two implementations side by side: the stock optimizers compute what ours and the oracle do, where they can.

β is dyadic (0.875, 1 − 2⁻⁷) in most of these: stock Keras takes 1 − β^k in float32, where 0.999 is wrong by 3e-5 at
first.
"""

from functools import partial

import keras
import numpy as np
import pytest

import keras_decoupled
import oracle
from cases import (
    ALGORITHMS,
    ALPHA,
    BACKEND,
    PATHS,
    allowance,
    assert_follows,
    assert_within,
    eager,
    gradients,
    initial_values,
    keras_cosine,
    make_variables,
    numpy,
    warm_restarts,
)

# Keras' own Nadam on torch calls np.array(tensor), which NumPy 2 does not like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

BETAS = {"beta_1": 0.875, "beta_2": 1 - 2.0**-7}
AS_KERAS = {"momentum_decay": 1.0}
W = 0.4  # Keras' and torch's weight decay, λ = α·W of ours
UPDATES = 13

# Ours, the stock optimizer that equals it, the arguments of both, arguments of ours alone, the stock decay.
STOCK = {
    "adam": ("AdamW", "Adam", BETAS, {}, 0.0),
    "amsgrad, large epsilon": ("AdamW", "Adam", BETAS | {"amsgrad": True, "epsilon": 0.1}, {}, 0.0),
    "nadam": ("NadamW", "Nadam", BETAS, AS_KERAS, 0.0),
    "nadam, large epsilon": ("NadamW", "Nadam", {**BETAS, "epsilon": 0.1}, AS_KERAS, 0.0),
    "sgd": ("SGDW", "SGD", {}, {}, 0.0),
    "momentum": ("SGDW", "SGD", {"momentum": 0.9}, {}, 0.0),
    "nesterov": ("SGDW", "SGD", {"momentum": 0.9, "nesterov": True}, {}, 0.0),
    # λ = α·w, under a schedule as well, as both decays follow it.
    "adamw": ("AdamW", "AdamW", BETAS, {}, W),
    "adamw, amsgrad": ("AdamW", "AdamW", {**BETAS, "amsgrad": True}, {}, W),
    # Defaults of both, where float32 1 − 0.999^k of stock Keras allows only for some digits.
    "usual adamw": ("AdamW", "AdamW", {}, {}, W),
    "usual nadam": ("NadamW", "Nadam", {}, AS_KERAS, 0.0),
}
# Schedules by name: made anew for each optimizer, and the oracle's.
SCHEDULES = {
    "keras": (lambda: keras.optimizers.schedules.CosineDecay(ALPHA, 10, alpha=0.1), keras_cosine),
    "restarts": (
        lambda: warm_restarts(ALPHA, 4, t_mul=2, eta_min=0.1),
        partial(oracle.cosine, first=4, t_mul=2, eta_min=0.1),
    ),
}


def ours(cls, **arguments):
    return getattr(keras_decoupled, cls)(**{"learning_rate": ALPHA, "weight_decay": 0, **arguments})


def run_of(cls, l2=0.0, schedule=oracle.constant, **arguments):
    algorithm, values = partial(ALGORITHMS[cls], **arguments), initial_values()
    return oracle.Run(algorithm, values, ALPHA, [(0.0, l2)] * len(values), schedule=schedule)


def side_by_side(step, other_step, variables, others, run, slack=1.0, guard=False):
    """Apply the same gradients to both; at each update they agree up to twice what rounding may do.

    `guard`: the oracle is the other, too, whatever ours is.
    """
    for grads in gradients(UPDATES):
        step(grads)
        other_step(grads)
        run.step(grads)
        if guard:
            assert_follows(others, run)
        for path, a, b, most in zip(PATHS, variables, others, allowance(run), strict=True):
            assert_within(a, numpy(b), 2 * slack * most, f"{path} after {run.k} updates")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", STOCK)
def test_ours_is_the_stock_optimizer(name, schedule):
    cls, stock, arguments, more, w = STOCK[name]
    make_rate, at = SCHEDULES[schedule]
    theirs = getattr(keras.optimizers, stock)(make_rate(), weight_decay=w or None, **arguments)
    mine = ours(cls, learning_rate=make_rate(), weight_decay=ALPHA * w, **arguments, **more)
    run = run_of(cls, ALPHA * w, at, **arguments, **more)
    variables, others = make_variables(), make_variables()
    steps = eager(mine, variables), eager(theirs, others)
    usual = name.startswith("usual")
    side_by_side(*steps, variables, others, run, slack=50.0 if usual else 1.0, guard=not usual)


if BACKEND == "torch":
    import torch

    def torch_beside(optimizer, make_torch, run, before_update=lambda theirs, k: None):
        """Ours on Keras variables, torch's on float32 parameters.

        torch computes its scalars in Python floats, so that its own defaults serve.
        """
        parameters = [torch.nn.Parameter(torch.tensor(value)) for value in initial_values()]
        theirs, variables = make_torch(parameters), make_variables()

        def step(grads):
            before_update(theirs, run.k)
            for parameter, g in zip(parameters, grads, strict=True):
                parameter.grad = torch.tensor(g)
            theirs.step()

        side_by_side(eager(optimizer, variables), step, variables, parameters, run)

    def epsilon_of_ours(theirs, k, epsilon):
        """torch has √(v/(1−β2^i)) + ε, ours √v + ε beside √(1−β2^i): ε/√(1−β2^i) in torch's place is ours."""
        theirs.param_groups[0]["eps"] = epsilon / np.sqrt(1 - 0.999 ** (k + 1))

    NADAM = partial(torch.optim.NAdam, decoupled_weight_decay=True)
    ADAMW, SGD = torch.optim.AdamW, torch.optim.SGD
    # Our class, its arguments, and torch's. SGD keeps the rate outside the buffer: the same as ours
    # while the rate is constant and nothing decays.
    TORCH = [
        ("NadamW", {"momentum_decay": 0.004, "epsilon": 0.1}, partial(NADAM, eps=0.1)),
        ("NadamW", {"momentum_decay": 1.0, "epsilon": 1e-8}, partial(NADAM, momentum_decay=1.0)),
        ("AdamW", {"epsilon": 1e-8}, ADAMW),
        ("AdamW", {"epsilon": 0.01, "amsgrad": True}, partial(ADAMW, amsgrad=True)),
        ("SGDW", {}, SGD),
        ("SGDW", {"momentum": 0.9}, partial(SGD, momentum=0.9)),
        ("SGDW", {"momentum": 0.9, "nesterov": True}, partial(SGD, momentum=0.9, nesterov=True)),
    ]

    @pytest.mark.parametrize(("cls", "arguments", "stock"), TORCH)
    def test_torch(cls, arguments, stock):
        w = 0.0 if cls == "SGDW" else W
        torch_beside(
            ours(cls, weight_decay=ALPHA * w, **arguments),
            partial(stock, lr=ALPHA, weight_decay=w),
            run_of(cls, ALPHA * w, **arguments),
            *([partial(epsilon_of_ours, epsilon=arguments["epsilon"])] if cls == "AdamW" else []),
        )

    @pytest.mark.parametrize("cls", ["AdamW", "NadamW"])
    def test_under_a_torch_schedule(cls):
        """torch's CosineAnnealingWarmRestarts is CosineWarmRestarts(endpoint=False), decay included."""
        stock = {"AdamW": ADAMW, "NadamW": NADAM}[cls]
        schedules = []

        def advance(theirs, k):
            if not schedules:
                make_schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
                schedules.append(make_schedule(theirs, 5, T_mult=2))
            elif k:
                schedules[0].step()
            if cls == "AdamW":
                epsilon_of_ours(theirs, k, 1e-7)

        rate = warm_restarts(ALPHA, 5, t_mul=2, endpoint=False)
        torch_beside(
            ours(cls, learning_rate=rate, weight_decay=ALPHA * W),
            partial(stock, lr=ALPHA, weight_decay=W, eps=1e-7),
            run_of(cls, ALPHA * W, partial(oracle.cosine, first=5, t_mul=2, endpoint=False)),
            advance,
        )
