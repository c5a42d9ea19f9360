"""Two implementations side by side: the stock optimizers compute what ours and the oracle do, where they can.

β is dyadic (0.875, 1 − 2⁻⁷) in most of these: stock Keras takes 1 − β^k in float32, where 0.999 is wrong by 3e-5 at
first.
"""

from functools import partial

import keras
import numpy as np
import pytest

import oracle
from cases import (
    ALPHA,
    BACKEND,
    COMPILED,
    PATHS,
    allowance,
    assert_follows,
    eager,
    gradients,
    initial_values,
    make_variable,
    numpy,
    warm_restarts,
)

# Keras' own Nadam on torch calls np.array(tensor), which NumPy 2 does not like.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)

BETAS = {"beta_1": 0.875, "beta_2": 1 - 2.0**-7}
W = 0.4  # Keras' and torch's weight decay, λ = α·W of ours
UPDATES = 25

# ours, the stock optimizer that equals it without decay, the arguments of both, the oracle, arguments of ours alone
STOCK = {
    "adam": ("AdamW", keras.optimizers.Adam, BETAS, oracle.adamw, {}),
    "adam, large epsilon": (
        "AdamW",
        keras.optimizers.Adam,
        {**BETAS, "epsilon": 0.1},
        oracle.adamw,
        {},
    ),
    "amsgrad": ("AdamW", keras.optimizers.Adam, {**BETAS, "amsgrad": True}, oracle.adamw, {}),
    "nadam": ("NadamW", keras.optimizers.Nadam, BETAS, oracle.nadamw, {"momentum_decay": 1.0}),
    "nadam, large epsilon": (
        "NadamW",
        keras.optimizers.Nadam,
        {**BETAS, "epsilon": 0.1},
        oracle.nadamw,
        {"momentum_decay": 1.0},
    ),
    "sgd": ("SGDW", keras.optimizers.SGD, {}, oracle.sgdw, {}),
    "momentum": ("SGDW", keras.optimizers.SGD, {"momentum": 0.9}, oracle.sgdw, {}),
    "nesterov": (
        "SGDW",
        keras.optimizers.SGD,
        {"momentum": 0.9, "nesterov": True},
        oracle.sgdw,
        {},
    ),
}

# schedules by name: (made anew for each optimizer, multiplier at update k)
SCHEDULES = {
    "constant": (lambda: ALPHA, lambda k: 1.0),
    "keras": (
        lambda: keras.optimizers.schedules.ExponentialDecay(ALPHA, 10, 0.5),
        lambda k: 0.5 ** (k / 10),
    ),
    "restarts": (
        lambda: warm_restarts(ALPHA, 4, t_mul=2, eta_min=0.1),
        lambda k: oracle.cosine(k, 4, t_mul=2, eta_min=0.1).multiplier,
    ),
}


def ours(name, **arguments):
    import keras_decoupled

    return getattr(keras_decoupled, name)(**arguments)


def side_by_side(left, right, run, runner=eager, updates=UPDATES, slack=1.0):
    """Apply the same gradients to both; at each update they agree up to twice what rounding may do to one of them."""
    values = initial_values()
    one, other = (
        [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)] for _ in range(2)
    )
    step_left, step_right = runner(left, one), runner(right, other)
    for grads in gradients(updates):
        step_left(grads)
        step_right(grads)
        run.step(grads)
        for path, a, b, most in zip(PATHS, one, other, allowance(run), strict=True):
            error = np.abs(numpy(a) - numpy(b))
            assert np.all(error <= 2 * slack * most), (
                f"{path} after {run.k} updates: {error}, {2 * slack * most}"
            )


def scale(algorithm, decay=0.0, schedule="constant"):
    """An oracle run, for the size of the weights and of what rounding may do to them."""
    multiplier = SCHEDULES[schedule][1]
    values = initial_values()
    return oracle.Run(
        algorithm,
        values,
        ALPHA,
        [(0.0, decay)] * len(values),
        schedule=lambda s: oracle.At(multiplier(s), s, None),
    )


@pytest.mark.parametrize("schedule", ["constant", "keras"])
@pytest.mark.parametrize("name", STOCK)
def test_the_oracle_is_the_stock_optimizer(name, schedule):
    """Who guards the guard: no code of ours here."""
    _, stock, arguments, algorithm, more = STOCK[name]
    values = initial_values()
    variables = [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)]
    run = scale(partial(algorithm, **arguments, **more), schedule=schedule)
    step = eager(stock(SCHEDULES[schedule][0](), **arguments), variables)
    for grads in gradients(UPDATES):
        step(grads)
        run.step(grads)
        assert_follows(variables, run)


@pytest.mark.parametrize("schedule", ["constant", "keras"])
def test_the_oracle_is_keras_adamw(schedule):
    values = initial_values()
    variables = [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)]
    run = scale(partial(oracle.adamw, **BETAS), ALPHA * W, schedule)
    step = eager(
        keras.optimizers.AdamW(SCHEDULES[schedule][0](), weight_decay=W, **BETAS), variables
    )
    for grads in gradients(UPDATES):
        step(grads)
        run.step(grads)
        assert_follows(variables, run)


@pytest.mark.parametrize("runner", ["eager", *COMPILED])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", STOCK)
def test_without_decay_ours_is_the_stock_optimizer(name, schedule, runner):
    cls, stock, arguments, algorithm, more = STOCK[name]
    if runner != "eager" and schedule != "keras":
        return  # one schedule is enough for compiled code
    make = SCHEDULES[schedule][0]
    side_by_side(
        ours(cls, learning_rate=make(), weight_decay=0, **arguments, **more),
        stock(make(), **arguments),
        scale(partial(algorithm, **arguments, **more), schedule=schedule),
        {"eager": eager, **COMPILED}[runner],
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_keras_adamw(schedule, amsgrad):
    """λ = α·w, under a schedule as well: both decays follow it."""
    arguments, make = {**BETAS, "amsgrad": amsgrad}, SCHEDULES[schedule][0]
    side_by_side(
        ours("AdamW", learning_rate=make(), weight_decay=ALPHA * W, **arguments),
        keras.optimizers.AdamW(make(), weight_decay=W, **arguments),
        scale(partial(oracle.adamw, **arguments), ALPHA * W, schedule),
    )


@pytest.mark.parametrize(
    ("cls", "stock", "more"),
    [("AdamW", "AdamW", {}), ("NadamW", "Nadam", {"momentum_decay": 1.0}), ("SGDW", "SGD", {})],
)
def test_with_the_usual_arguments(cls, stock, more):
    """Defaults of both, where float32 1 − 0.999^k of stock Keras allows only for some digits."""
    algorithm = {
        "AdamW": oracle.adamw,
        "NadamW": partial(oracle.nadamw, **more),
        "SGDW": oracle.sgdw,
    }[cls]
    side_by_side(
        ours(cls, learning_rate=ALPHA, weight_decay=ALPHA * W, **more),
        getattr(keras.optimizers, stock)(ALPHA, weight_decay=W),
        scale(algorithm, ALPHA * W),
        slack=50.0,
    )


@pytest.mark.parametrize("name", ["adam", "nadam", "nesterov"])
def test_clipping_is_that_of_keras(name):
    cls, stock, arguments, algorithm, more = STOCK[name]
    side_by_side(
        ours(cls, learning_rate=ALPHA, weight_decay=0, global_clipnorm=1.0, **arguments, **more),
        stock(ALPHA, global_clipnorm=1.0, **arguments),
        scale(partial(algorithm, **arguments, **more)),
    )


if BACKEND == "torch":
    import torch

    def torch_beside(optimizer, make_torch, run, before_update=None):
        """Ours on Keras variables, torch's on float32 parameters."""
        values = initial_values()
        variables = [make_variable(p, v) for p, v in zip(PATHS, values, strict=True)]
        parameters = [torch.nn.Parameter(torch.tensor(value)) for value in values]
        theirs, step = make_torch(parameters), eager(optimizer, variables)
        for grads in gradients(UPDATES):
            if before_update:
                before_update(theirs, run.k)
            for parameter, g in zip(parameters, grads, strict=True):
                parameter.grad = torch.tensor(g)
            theirs.step()
            step(grads)
            run.step(grads)
            for path, a, b, most in zip(PATHS, variables, parameters, allowance(run), strict=True):
                error = np.abs(numpy(a) - b.detach().numpy())
                assert np.all(error <= 2 * most), (
                    f"{path} after {run.k} updates: {error}, {2 * most}"
                )

    class TestTorch:
        """torch computes its scalars in Python floats, so that its own defaults serve."""

        @pytest.mark.parametrize("epsilon", [1e-8, 0.1])
        @pytest.mark.parametrize("momentum_decay", [0.004, 1.0])
        def test_nadam(self, momentum_decay, epsilon):
            arguments = {"momentum_decay": momentum_decay, "epsilon": epsilon}
            torch_beside(
                ours("NadamW", learning_rate=ALPHA, weight_decay=ALPHA * W, **arguments),
                lambda p: torch.optim.NAdam(
                    p,
                    lr=ALPHA,
                    eps=epsilon,
                    weight_decay=W,
                    momentum_decay=momentum_decay,
                    decoupled_weight_decay=True,
                ),
                scale(partial(oracle.nadamw, **arguments), ALPHA * W),
            )

        @pytest.mark.parametrize("amsgrad", [False, True])
        @pytest.mark.parametrize("epsilon", [1e-8, 0.01])
        def test_adamw(self, epsilon, amsgrad):
            """torch has √(v/(1−β2^i)) + ε, ours √v + ε beside √(1−β2^i): ε/√(1−β2^i) in torch's place is ours."""

            def set_epsilon(theirs, k):
                theirs.param_groups[0]["eps"] = epsilon / np.sqrt(1 - 0.999 ** (k + 1))

            arguments = {"epsilon": epsilon, "amsgrad": amsgrad}
            torch_beside(
                ours("AdamW", learning_rate=ALPHA, weight_decay=ALPHA * W, **arguments),
                lambda p: torch.optim.AdamW(p, lr=ALPHA, weight_decay=W, amsgrad=amsgrad),
                scale(partial(oracle.adamw, **arguments), ALPHA * W),
                set_epsilon,
            )

        @pytest.mark.parametrize(
            ("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)]
        )
        def test_sgd(self, momentum, nesterov):
            """torch keeps the rate outside the buffer: the same as ours while the rate is constant."""
            arguments = {"momentum": momentum, "nesterov": nesterov}
            torch_beside(
                ours("SGDW", learning_rate=ALPHA, weight_decay=0, **arguments),
                lambda p: torch.optim.SGD(p, lr=ALPHA, **arguments),
                scale(partial(oracle.sgdw, **arguments)),
            )

        @pytest.mark.parametrize("cls", ["AdamW", "NadamW"])
        def test_under_a_torch_schedule(self, cls):
            """torch's CosineAnnealingWarmRestarts is CosineWarmRestarts(endpoint=False), decay included."""
            theirs = {
                "AdamW": torch.optim.AdamW,
                "NadamW": partial(torch.optim.NAdam, decoupled_weight_decay=True),
            }[cls]
            algorithm = {"AdamW": oracle.adamw, "NadamW": oracle.nadamw}[cls]
            run = scale(algorithm, ALPHA * W)
            run.schedule = partial(oracle.cosine, first=5, t_mul=2, endpoint=False)

            def advance(theirs, k):
                if not hasattr(theirs, "schedule"):
                    theirs.schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
                        theirs, 5, T_mult=2
                    )
                elif k:
                    theirs.schedule.step()
                if cls == "AdamW":
                    theirs.param_groups[0]["eps"] = 1e-7 / np.sqrt(1 - 0.999 ** (k + 1))

            torch_beside(
                ours(
                    cls,
                    learning_rate=warm_restarts(ALPHA, 5, t_mul=2, endpoint=False),
                    weight_decay=ALPHA * W,
                ),
                lambda p: theirs(p, lr=ALPHA, weight_decay=W, eps=1e-7),
                run,
                advance,
            )
