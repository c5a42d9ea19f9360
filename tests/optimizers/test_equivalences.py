"""Two implementations side by side: the stock optimizers compute what ours and the oracle do, where they can.

β is dyadic (0.875, 1 − 2⁻⁷) in most of these: stock Keras takes 1 − β^k in float32, where 0.999 is wrong by 3e-5 at
first.
"""

import itertools
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
    COMPILED,
    PATHS,
    RUNNERS,
    allowance,
    assert_follows,
    assert_within,
    eager,
    gradients,
    initial_values,
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
UPDATES = 25

# ours, the stock optimizer that equals it without decay, the arguments of both, arguments of ours alone
STOCK = {
    "adam": ("AdamW", "Adam", BETAS, {}),
    "adam, large epsilon": ("AdamW", "Adam", {**BETAS, "epsilon": 0.1}, {}),
    "amsgrad": ("AdamW", "Adam", {**BETAS, "amsgrad": True}, {}),
    "nadam": ("NadamW", "Nadam", BETAS, AS_KERAS),
    "nadam, large epsilon": ("NadamW", "Nadam", {**BETAS, "epsilon": 0.1}, AS_KERAS),
    "sgd": ("SGDW", "SGD", {}, {}),
    "momentum": ("SGDW", "SGD", {"momentum": 0.9}, {}),
    "nesterov": ("SGDW", "SGD", {"momentum": 0.9, "nesterov": True}, {}),
}
# With a decay: λ = α·w, under a schedule as well, as both decays follow it.
DECAYED = {
    "adamw": ("AdamW", "AdamW", BETAS, {}),
    "adamw, amsgrad": ("AdamW", "AdamW", {**BETAS, "amsgrad": True}, {}),
}
# Defaults of both, where float32 1 − 0.999^k of stock Keras allows only for some digits.
USUAL = {
    "usual adamw": ("AdamW", "AdamW", {}, {}),
    "usual nadam": ("NadamW", "Nadam", {}, AS_KERAS),
    "usual sgd": ("SGDW", "SGD", {}, {}),
}
TABLE = STOCK | DECAYED | USUAL

# schedules by name: (made anew for each optimizer, the oracle's)
SCHEDULES = {
    "constant": (lambda: ALPHA, oracle.constant),
    "keras": (
        lambda: keras.optimizers.schedules.ExponentialDecay(ALPHA, 10, 0.5),
        lambda k: oracle.At(0.5 ** (k / 10), k, None),
    ),
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


CLIPPED = {"global_clipnorm": 1.0}
EAGER = ["constant"] if BACKEND == "tensorflow" else list(SCHEDULES)  # there each operation is slow


@pytest.mark.parametrize(
    ("name", "schedule", "runner", "clipping"),
    [(name, s, "eager", {}) for name in STOCK | DECAYED for s in EAGER]
    # One schedule is enough for compiled code, and for the usual arguments.
    + [(name, "keras", list(COMPILED)[-1], {}) for name in STOCK]
    + [(name, "constant", "eager", {}) for name in USUAL]
    + [(name, "constant", "eager", CLIPPED) for name in ("adam", "nadam", "nesterov")],
)
def test_ours_is_the_stock_optimizer(name, schedule, runner, clipping):
    cls, stock, arguments, more = TABLE[name]
    make_rate, at = SCHEDULES[schedule]
    w, arguments = 0.0 if name in STOCK else W, {**arguments, **clipping}
    theirs = getattr(keras.optimizers, stock)(make_rate(), weight_decay=w or None, **arguments)
    mine = ours(cls, learning_rate=make_rate(), weight_decay=ALPHA * w, **arguments, **more)
    run = run_of(cls, ALPHA * w, at, **TABLE[name][2], **more)
    variables, others = make_variables(), make_variables()
    steps = RUNNERS[runner](mine, variables), RUNNERS[runner](theirs, others)
    guard = runner == "eager" and name not in USUAL and not clipping
    slack = 50.0 if name in USUAL else 1.0
    side_by_side(*steps, variables, others, run, slack, guard)


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
        *(
            ("NadamW", {"momentum_decay": d, "epsilon": e}, partial(NADAM, momentum_decay=d, eps=e))
            for d, e in itertools.product([0.004, 1.0], [1e-8, 0.1])
        ),
        *(
            ("AdamW", {"epsilon": e, "amsgrad": amsgrad}, partial(ADAMW, amsgrad=amsgrad))
            for e, amsgrad in itertools.product([1e-8, 0.01], [False, True])
        ),
        *(
            ("SGDW", {"momentum": m, "nesterov": n}, partial(SGD, momentum=m, nesterov=n))
            for m, n in [(0.0, False), (0.9, False), (0.9, True)]
        ),
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
