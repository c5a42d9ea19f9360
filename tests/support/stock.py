"""The reference for decoupled stock classes: the stock class itself, without a decay, and the decay by hand.

`StockRun` is a `Run` of the float64 oracle, so decays, multipliers, schedules and events are the oracle's. Only the
step is another: the stock class gets the weights, the gradients and the rate η·α·m_v of the update, and u is what it
takes from the weights.
"""

import itertools
import math
from functools import partial

import keras
import numpy as np

import cases
import oracle
from cases import ALPHA, BACKEND, Case, eager, eager_with_cond, gradients, make_variable, numpy

# name: (class of keras.optimizers, arguments). At the rate ALPHA their steps are some hundredths, or, where they are
# proportional to the weight, a hundredth.
STOCK = {
    "adadelta": ("Adadelta", {"epsilon": 0.25}),
    "adafactor": ("Adafactor", {}),
    "adagrad": ("Adagrad", {}),
    "adamax": ("Adamax", {}),
    "lamb": ("Lamb", {}),
    "lion": ("Lion", {}),
    "muon": ("Muon", {"exclude_layers": ["head"], "adam_lr_ratio": 0.5}),
    "nadam": ("Nadam", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.8, "centered": True, "epsilon": 0.01}),
}

# Two matrices for Muon, and two that go to its Adam part. Where the last two dimensions are equal, Adafactor's averages
# over rows and columns have one shape.
SHAPES = {
    "encoder/dense_1/kernel": (4, 3),
    "encoder/dense_1/bias": (3,),
    "encoder/dense_10/kernel": (2, 2),
    "conv/kernel": (2, 3, 3),
    "embedding/embeddings": (4, 2),
    "head/kernel": (2, 3),
    "scale": (),
}
PATHS = list(SHAPES)
FAST = [True, False] if BACKEND == "torch" else [True]  # `fast`, where it says how they are stepped
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")


def initial_values(seed=0):
    """Small ones: rounding is a share of the weight, and steps are to be large beside it."""
    rng = np.random.default_rng(seed)
    return [(0.25 * rng.normal(size=shape)).astype("float32") for shape in SHAPES.values()]


def make_variables(values=None, dtype="float32"):
    values = initial_values() if values is None else values
    return [make_variable(path, value, dtype) for path, value in zip(PATHS, values, strict=True)]


def micro_batches(steps, seed=1):
    return gradients(steps, list(SHAPES.values()), seed)


def make(name, /, **arguments):
    """An optimizer of the table `STOCK`, decoupled, with a learning rate and a decay where none is given."""
    from keras_decoupled import decouple

    cls, own = STOCK[name]
    defaults = {"learning_rate": ALPHA, "weight_decay": 0.03}
    return decouple(getattr(keras.optimizers, cls))(**defaults | own | arguments)


def make_stock(name, /, fast=True, **arguments):
    """The same of Keras, without a decay.

    On torch Keras steps many variables at once by other code, whose rounding is another (2e-5 of a step in Nadam, which
    divides by 1 − β2 there as it is, and else by its float32). It does so for its own classes alone: one derived from
    them is stepped variable by variable, as ours is with fast=False.
    """
    name, own = STOCK[name]
    cls = getattr(keras.optimizers, name)
    cls = cls if fast else type(name, (cls,), {})
    no_decay = {"weight_decay": None} | ({"adam_weight_decay": None} if name == "Muon" else {})
    return cls(**own | no_decay | arguments)


def pair(name, /, fast=True):
    """What makes ours and what makes Keras' one, for `steps` and the like."""
    return partial(make, name), partial(make_stock, name, fast=fast)


class StockRun(oracle.Run):
    """A run of a stock class, with the decay done by hand in float64.

    There is one stock optimizer for each multiplier, since it has one rate for all of its variables. A schedule in it
    would count micro-batches: its rate is a number that is set before each update.
    """

    def __init__(self, make_stock, paths, values, *more, dtype="float32", **arguments):
        super().__init__(lambda g, state, k, rate: state.get("u", 0.0), values, *more, **arguments)
        self.dtype, self.parts = dtype, []
        for multiplier in sorted(set(self.multipliers) - {0.0}):
            members = [i for i, m in enumerate(self.multipliers) if m == multiplier]
            variables = [make_variable(paths[i], self.values[i], dtype) for i in members]
            optimizer = make_stock(learning_rate=0.5)
            optimizer.build(variables)
            self.parts.append((multiplier, members, variables, optimizer))

    def step(self, grads):
        for multiplier, members, variables, optimizer in self.parts:
            for i, variable in zip(members, variables, strict=True):
                variable.assign(self.values[i].astype(self.dtype))
            before = [numpy(variable) for variable in variables]
            optimizer.learning_rate = self.eta * self.alpha * multiplier
            own = [np.asarray(grads[i]).astype(self.dtype) for i in members]
            optimizer.apply(list(map(keras.ops.convert_to_tensor, own)), variables)
            for i, theta, variable in zip(members, before, variables, strict=True):
                self.states[i]["u"] = theta - numpy(variable)
        super().step(grads)


def run_of(case, stock, values, paths=PATHS, **arguments):
    """The reference of a case, on the variables of these paths."""
    given = case.arguments()
    return StockRun(
        partial(stock, **{name: given[name] for name in CLIPPING if name in given}),
        paths,
        values,
        case.alpha,
        [case.decays.get(path, case.decays.get("*", (0.0, 0.0))) for path in paths],
        [case.multipliers.get(path, 1.0) for path in paths],
        case.schedule,
        case.normalize,
        weight_decay=case.weight_decay,
        **arguments,
    )


def optimizer_of(case, ours, fast):
    optimizer = ours(**{"learning_rate": ALPHA, **case.arguments()})
    if case.exclude:
        optimizer.exclude_from_weight_decay(var_names=list(case.exclude))
    optimizer.fast = fast
    return optimizer


def assert_follows(variables, run, paths=PATHS, rounded=None, ulp=2.0**-24):
    """Ours is where the reference is, to rounding: after one update that is 1e-7 of the weight and 2e-6 of the step.

    `rounded` gives half the distance of two neighbours, for weights that are rounded to less than the step is.
    """
    for path, variable, expected, most in zip(
        paths, variables, run.values, cases.allowance(run, ulp), strict=True
    ):
        most = most if rounded is None else most + rounded(expected)
        error = np.abs(numpy(variable) - expected)
        assert np.all(error <= most), (
            f"{path} after {run.k} updates: off by {error}, at most {most} is rounding"
        )


def steps(case, ours, stock, runner=None, fast=True):
    """Run both sides together. The weights must agree after each update, when (optimizer, variables, run) is given."""
    runner = runner or (eager_with_cond if case.cond else eager)
    values = initial_values()
    variables, optimizer = make_variables(values), optimizer_of(case, ours, fast)
    optimizer.build(variables)
    run, step = run_of(case, stock, values), runner(optimizer, variables)
    batches = iter(micro_batches(case.updates * case.accumulate))
    for k in range(case.updates):
        if event := case.events.get(k):
            event(optimizer)
            event(run)
        grads = list(itertools.islice(batches, case.accumulate))
        for g in grads[:-1]:
            before = [numpy(v) for v in variables]
            step(g)
            assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True))
        step(grads[-1])
        run.step([np.mean(g, axis=0, dtype="float64") for g in zip(*grads, strict=True)])
        assert_follows(variables, run)
        assert math.isclose(float(numpy(optimizer.eta_t)), run.eta, rel_tol=1e-6, abs_tol=1e-7)
        yield optimizer, variables, run
    for path, variable, value in zip(PATHS, variables, values, strict=True):
        if case.multipliers.get(path) == 0:
            assert np.array_equal(numpy(variable), value), f"{path} is frozen"


def follow(case, ours, stock, runner=None, fast=True):
    """Run both sides together to the end."""
    for _ in steps(case, ours, stock, runner, fast):
        pass


UNFROZEN_LATER = [0, 3, 5, 6]  # positions in PATHS


def follow_unfreezing(ours, stock, fast=True, **arguments):
    """Build on a part, update, build on all, update: all are where those of a run are that knew all from the start.

    In that run a gradient of 0 keeps the state of a variable as it was made, in every optimizer here; its weight and
    its decay wait. Returns both sides.
    """
    case = Case(lambda: {"weight_decay": 0.03, **arguments}, {"*": (0.0, 0.03)})
    values = initial_values()
    variables, optimizer = make_variables(values), optimizer_of(case, ours, fast)
    run = run_of(case, stock, values)
    known = [i for i in range(len(PATHS)) if i not in UNFROZEN_LATER]
    for k, grads in enumerate(micro_batches(5)):
        if k == 2:
            known = list(range(len(PATHS)))
        own = [variables[i] for i in known]
        optimizer.build(own)
        eager(optimizer, own)([grads[i] for i in known])
        run.step([g if i in known else np.zeros_like(g) for i, g in enumerate(grads)])
        if k < 2:
            for i in UNFROZEN_LATER:
                run.values[i] = values[i].astype("float64")
        assert_follows(variables, run)
    return optimizer, variables, run
