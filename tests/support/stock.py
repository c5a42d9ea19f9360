"""The reference for decoupled stock classes: the stock class itself, without a decay, and the decay by hand.

`StockRun` is a `Run` of the float64 oracle, so decays, multipliers, schedules and events are the oracle's. Only the
step is another: the stock class gets the weights, the gradients and the rate η·α·m_v of the update, and u is what it
takes from the weights.
"""

from functools import partial

import keras
import numpy as np

import cases
import oracle
from cases import ALPHA, BACKEND, assert_follows, eager, gradients, make_variable, numpy, uniform

# name: (class of keras.optimizers, arguments). At the rate ALPHA their steps are some hundredths, or, where they are
# proportional to the weight, a hundredth.
STOCK = {
    "adadelta": ("Adadelta", {"epsilon": 0.25}),
    "adafactor": ("Adafactor", {}),
    "adagrad": ("Adagrad", {}),
    "adamax": ("Adamax", {}),
    "lamb": ("Lamb", {}),
    "lion": ("Lion", {}),
    "nadam": ("Nadam", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.8, "centered": True, "epsilon": 0.01}),
}

# Where the last two dimensions are equal, Adafactor's averages over rows and columns have one shape.
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
    return cls(**own | {"weight_decay": None} | arguments)


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


def sides(case, ours, stock, fast=True):
    """Ours, made anew, and its reference: (variables, optimizer, run)."""
    values, optimizer = initial_values(), case.make(ours)
    optimizer.fast = fast
    clipping = {name: case.arguments[name] for name in CLIPPING if name in case.arguments}
    reference = partial(StockRun, partial(stock, **clipping), PATHS, values)
    return make_variables(values), optimizer, case.run(reference, PATHS)


def steps(case, ours, stock, runner=None, fast=True):
    """Run both sides together. The weights must agree after each update, when (optimizer, variables, run) is given."""
    grads = micro_batches(case.updates * case.accumulate)
    return cases.follow(case, *sides(case, ours, stock, fast), runner, grads)


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
    variables, optimizer, run = sides(uniform(0.03, arguments), ours, stock, fast)
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
                run.values[i] = run.initial[i].copy()
        assert_follows(variables, run, PATHS)
    return optimizer, variables, run
