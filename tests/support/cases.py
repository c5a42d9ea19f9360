"""The tables the numeric tests share: optimizers, weights, ways to call `apply`, and cases with the numbers they mean.

Every case names the decay of each weight by hand, so that no matching rule of the package is used to check itself.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import methodcaller
from typing import Any, ClassVar

import keras
import numpy as np

import keras_decoupled
import oracle
from keras_decoupled import CosineWarmRestarts, Decay, WarmupStableDecay

BACKEND = keras.backend.backend()
ALPHA = 0.05

# name: (class, arguments). Some take large ε, where its place shows.
OPTIMIZERS = {
    "adamw": ("AdamW", {}),
    "adamw-amsgrad": ("AdamW", {"amsgrad": True, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01}),
    "nadamw": ("NadamW", {}),
    "nadamw-keras": (
        "NadamW",
        {"momentum_decay": 1.0, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 0.01},
    ),
    "sgdw": ("SGDW", {}),
    "sgdw-momentum": ("SGDW", {"momentum": 0.9}),
    "sgdw-nesterov": ("SGDW", {"momentum": 0.8, "nesterov": True}),
    "muon": ("Muon", {"momentum": 0.8, "adam_lr_ratio": 0.5}),
}
# Those that fast/ has kernels of; on TensorFlow it has none of Muon.
FUSED = [
    name
    for name, (cls, _) in OPTIMIZERS.items()
    if getattr(keras_decoupled, cls)._kd_algorithm.kernel
]
ONE_OF_EACH = ("adamw", "nadamw", "sgdw-momentum")
# On torch each variant has kernels. Elsewhere all run one code, so that one of each class stands for them
# where the mathematics is not the point.
VARIANTS = tuple(OPTIMIZERS) if BACKEND == "torch" else ONE_OF_EACH
ALGORITHMS = {
    "AdamW": oracle.adamw,
    "NadamW": oracle.nadamw,
    "SGDW": oracle.sgdw,
    "Muon": oracle.muon,
}

SHAPES = {
    "encoder/dense_1/kernel": (4, 3),
    "encoder/dense_1/bias": (3,),
    "encoder/dense_10/kernel": (3, 2),
    "head/kernel": (2, 2),
    "head/bias": (2,),
    "scale": (),
}
PATHS = list(SHAPES)
BIASES = [path for path in PATHS if path.endswith("bias")]


def numpy(x):
    """As float64, from any dtype of any backend (keras.ops.convert_to_numpy warns under NumPy 2)."""
    x = keras.ops.convert_to_tensor(x)
    if BACKEND == "torch":
        return x.detach().cpu().double().numpy().copy()
    return np.asarray(x.numpy() if BACKEND == "tensorflow" else x).astype("float64")


def make_variable(path, value, dtype="float32"):
    """A variable that belongs to no model; its path is made by nested name scopes."""
    *scopes, name = path.split("/")
    if scopes:
        with keras.name_scope(scopes[0]):
            return make_variable("/".join([*scopes[1:], name]), value, dtype)
    return keras.Variable(value, name=name, dtype=dtype)


def initial_values(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("float32") for shape in SHAPES.values()]


def make_variables(values=None):
    """The variables of `PATHS`."""
    values = initial_values() if values is None else values
    return [make_variable(path, value) for path, value in zip(PATHS, values, strict=True)]


def gradients(steps, shapes=None, seed=1):
    """Random ones, not centred: moments that stay near 0 would hide mistakes."""
    rng = np.random.default_rng(seed)
    return [
        [(0.3 + rng.normal(size=shape)).astype("float32") for shape in shapes or SHAPES.values()]
        for _ in range(steps)
    ]


# --- ways to call apply: name -> function of (optimizer, variables) that gives step(grads) ---


def eager(optimizer, variables):
    return lambda grads: optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)


def _jax_jit(optimizer, variables):
    import jax

    optimizer.build(variables)
    apply = jax.jit(lambda state, grads, values: optimizer.stateless_apply(state, grads, values))

    def step(grads):
        held = [*variables, *optimizer.variables]
        state, values = [v.value for v in optimizer.variables], [v.value for v in variables]
        values, state = apply(state, grads, values)
        for variable, value in zip(held, [*values, *state], strict=True):
            variable.assign(value)

    return step


def _tf_function(optimizer, variables, jit_compile):
    import tensorflow as tf

    optimizer.build(variables)
    apply = tf.function(lambda grads: optimizer.apply(grads, variables), jit_compile=jit_compile)
    return lambda grads: apply([tf.convert_to_tensor(g) for g in grads])


def _torch_no_grad(optimizer, variables):
    import torch

    return torch.no_grad()(eager(optimizer, variables))


COMPILED = {
    "jax": {"jit": _jax_jit},
    "tensorflow": {
        "graph": partial(_tf_function, jit_compile=False),
        "xla": partial(_tf_function, jit_compile=True),
    },
    "torch": {"no_grad": _torch_no_grad},
}[BACKEND]
RUNNERS = {"eager": eager, **COMPILED}


# Keras calls jax.lax.cond on new functions for gradient accumulation: eager JAX would compile them at every update.
eager_with_cond = COMPILED["jit"] if BACKEND == "jax" else eager


# --- cases ---

kind = oracle.Decay
schedules = keras.optimizers.schedules
warm_restarts = CosineWarmRestarts


def keras_cosine(s, alpha=ALPHA, steps=10, floor=0.1):
    """keras.optimizers.schedules.CosineDecay, as its docstring writes it, over the base learning rate."""
    cosine = 0.5 * (1 + np.cos(np.pi * min(s, steps) / steps))
    return oracle.At((1 - floor) * cosine + floor, s, None)


@dataclass(frozen=True)
class Case:
    """`arguments` for ours, copied for each run; the rest says in numbers what they mean."""

    arguments: Mapping[str, Any]
    decays: Mapping[str, Any] = field(default_factory=dict)  # by path, "*" for the others; (l1, l2)
    multipliers: Mapping[str, float] = field(default_factory=dict)
    alpha: float = ALPHA
    schedule: Callable[[int], oracle.At] = oracle.constant
    normalize: int | str | None = None
    t_cur: int = 0
    warmup: int = 0
    weight_decay: float | None = None  # for an l2 of None: λ, which events set
    accumulate: int = 1
    exclude: tuple[str, ...] = ()
    updates: int = 15
    events: Mapping[int, Callable] = field(default_factory=dict)  # before update k, on both sides

    # What an `oracle.Run` has by the same names.
    SHARED: ClassVar = ("alpha", "schedule", "normalize", "t_cur", "warmup", "weight_decay")

    def make(self, make_optimizer):
        made = make_optimizer(**{"learning_rate": ALPHA, **copy.deepcopy(self.arguments)})
        if self.exclude:
            made.exclude_from_weight_decay(var_names=list(self.exclude))
        return made

    def optimizer(self, name):
        cls, arguments = OPTIMIZERS[name]
        return self.make(partial(getattr(keras_decoupled, cls), **arguments))

    def run(self, make_run, paths):
        """What `make_run` makes of the numbers: an `oracle.Run`."""
        return make_run(
            decays=[self.decays.get(path, self.decays.get("*", (0.0, 0.0))) for path in paths],
            multipliers=[self.multipliers.get(path, 1.0) for path in paths],
            **{name: getattr(self, name) for name in Case.SHARED},
        )

    def oracle(self, name, values):
        cls, arguments = OPTIMIZERS[name]
        algorithm = partial(ALGORITHMS[cls], **arguments)
        return self.run(partial(oracle.Run, algorithm, values), PATHS)


def make_decay(decay):
    """The package's `Decay` of an oracle's."""
    return Decay(**decay._asdict())


def set_rate(rate):
    return lambda optimizer: setattr(optimizer, "learning_rate", rate)


def scale_rate(factor):
    return lambda optimizer: setattr(
        optimizer, "learning_rate", factor * float(numpy(optimizer.learning_rate))
    )


def set_decay(decay):
    return lambda optimizer: setattr(optimizer, "weight_decay", decay)


def restart(position=0):
    return methodcaller("restart", position)


begin_decay, reset_reference = map(methodcaller, ("begin_decay", "reset_reference"))


def case(arguments, decays, rate=None, **fields):
    """`rate`, of `cosine` or `stable`, is a learning rate and its meaning."""
    own, meaning = rate or ({}, {})
    return Case({**own, **arguments}, decays, **meaning, **fields)


def uniform(decay, arguments=None, rate=None, **fields):
    """A case in which every weight has this decay: a number, or one of the oracle's."""
    number = isinstance(decay, float)
    given = {"weight_decay": decay if number else make_decay(decay), **(arguments or {})}
    return case(given, {"*": (0.0, decay) if number else decay}, rate, **fields)


def cosine(first, warmup=0, normalized=False, **schedule):
    """`warm_restarts`, from ALPHA."""
    own = {"learning_rate": warm_restarts(ALPHA, first, warmup_steps=warmup, **schedule)}
    meaning = {"schedule": partial(oracle.cosine, first=first, warmup=warmup, **schedule)}
    if normalized:
        own["normalize_weight_decay"], meaning["normalize"] = True, "cycle"
    return own, meaning | {"warmup": warmup}


def stable(steps, decay, warmup, **schedule):
    own = {"learning_rate": WarmupStableDecay(ALPHA, steps, decay, warmup, **schedule)}
    of = partial(oracle.stable, stable=steps, decay=decay, warmup=warmup, **schedule)
    return own, {"schedule": of, "warmup": warmup}


def each(*numbers, paths=PATHS):
    """{path: number}, in the order of `paths`."""
    return dict(zip(paths, numbers, strict=True))


def l2(*decays, paths=PATHS):
    """A decay for each path, by its l2 where that is all it has."""
    pairs = ((0.0, decay) if isinstance(decay, float) else decay for decay in decays)
    return each(*pairs, paths=paths)


def thawing(k):
    """A multiplier of a layer that is frozen for four updates."""
    return [0.0, 1.0, 0.25][(k > 3) + (k > 6)]


THAWING = schedules.PiecewiseConstantDecay([3, 6], [0.0, 1.0, 0.25])


def falling(k):
    """A decay."""
    return 0.2 - 0.19 * min(k, 6) / 6


FALLING = schedules.PolynomialDecay(0.2, 6, 0.01)

CASES = {
    "rules": Case(
        {
            "weight_decay": 0.03,
            "weight_decays": {"encoder": 0.01, "encoder/dense_10/kernel": 0.05}
            | {"dense_1": 0.02, "bias": 0},
        },
        l2(0.02, 0.0, 0.05, 0.03, 0.0, 0.03),
        updates=6,
    ),
    "l1 and l2": Case(
        {
            "weight_decays": {"kernel": (0.01, 0.05), "bias": (0.02, 0.0), "scale": 0.1},
            "total_iterations": 9,
        },
        l2(*[(0.01, 0.05), (0.02, 0.0), (0.01, 0.05)] * 2) | {"scale": (0.0, 0.1)},
        normalize=9,
        updates=6,
    ),
    "multipliers": uniform(
        0.03,
        {"lr_multipliers": {"dense_1": 0.5, "head": 2, "head/bias": 0, "scale": 0.0}},
        multipliers=each(0.5, 0.5, 1.0, 2.0, 0.0, 0.0),
        updates=6,
    ),
    "multipliers as schedules": case(
        {
            "weight_decay": Decay(FALLING, cautious=True, eta_power=2),
            "weight_decays": {"head": Decay(l1=0.05, soft_threshold=True)},
            "lr_multipliers": {"dense_1": THAWING, "head": THAWING, "head/bias": 0.5}
            | {"scale": schedules.PolynomialDecay(1.0, 8, 0.0)},
            "gradient_accumulation_steps": 2,
        },
        {"*": kind(0.0, falling, cautious=True, eta_power=2)}
        | dict.fromkeys(["head/kernel", "head/bias"], kind(l1=0.05, soft_threshold=True)),
        cosine(6, t_mul=2),
        multipliers=each(thawing, thawing, 1.0, thawing, 0.5, lambda k: 1 - min(k, 8) / 8),
        accumulate=2,
        events={7: restart(1)},  # moves s, not k
        updates=10,
    ),
    "annealing": uniform(
        0.1,
        {"total_iterations": 8, "total_iterations_wd": 25, "use_cosine_annealing": True}
        | {"t_cur": 5, "eta_min": 0.1, "eta_max": 0.8},
        schedule=partial(oracle.cosine, first=8, eta_min=0.1, eta_max=0.8),
        normalize=25,
        t_cur=5,
    ),
    "warmup": uniform(0.1, rate=cosine(6, 5, True, eta_max=0.9), events={12: restart(2)}),
    "stable, then a decay": uniform(
        0.1,
        {"total_iterations_wd": 16},
        stable(3, 6, 2, eta_min=0.1),
        normalize=16,
        events={8: scale_rate(0.5), 13: restart(4)},
    ),
    "a decay that begins when it is told": uniform(
        0.03,
        rate=stable(None, 4, 1, shape="linear"),
        events={4: begin_decay, 10: restart(), 11: scale_rate(0.5), 12: begin_decay},
    ),
    "keras CosineDecay": uniform(
        0.03,
        {"learning_rate": schedules.CosineDecay(ALPHA, 10, alpha=0.1), "base_learning_rate": 0.1},
        alpha=0.1,
        schedule=lambda s: keras_cosine(s)._replace(multiplier=0.5 * keras_cosine(s).multiplier),
        events={11: restart(), 13: scale_rate(0.5)},
    ),
    "a callable": uniform(0.03, {"learning_rate": lambda: ALPHA}, updates=6),
    "accumulation": case(
        {"weight_decay": FALLING, "weight_decays": {"bias": 0}, "gradient_accumulation_steps": 3},
        {"*": (0.0, falling)} | dict.fromkeys(BIASES, (0.0, 0.0)),
        cosine(3, normalized=True, t_mul=2),
        accumulate=3,
        events={5: restart(1), 7: scale_rate(0.5)},
    ),
    "learning rate set": uniform(
        0.03,
        {"learning_rate": 0.02, "base_learning_rate": 0.1},
        alpha=0.1,
        schedule=lambda s: oracle.At(0.2, s, None),
        events={4: set_rate(0.01), 7: set_rate(0.0), 10: set_rate(0.1), 13: scale_rate(0.3)},
    ),
    "restarts by hand": uniform(
        0.03,
        rate=cosine(6, t_mul=2, m_mul=0.5),
        events={0: restart(2), 7: restart(), 9: restart(5), 12: scale_rate(0.5)},
    ),
}

# The kinds of decay.
ANNEALED = cosine(5, t_mul=2)  # each cycle ends at 0
CASES |= {
    "eta_power=0, rate 0": uniform(
        kind(l2=0.03, eta_power=0), events={3: set_rate(0.0), 8: set_rate(0.05)}
    ),
    "cautious": uniform(kind(0.005, 0.05, cautious=True, eta_power=0), rate=ANNEALED),
    "towards initial": uniform(kind(0.002, 0.1, towards="initial"), events={5: reset_reference}),
    "soft_threshold": uniform(kind(0.06, 0.02, soft_threshold=True, eta_power=2), rate=ANNEALED),
    "soft_threshold towards initial": uniform(kind(0.04, 0.05, "initial", soft_threshold=True)),
    "all kinds at once": uniform(
        kind(0.0, 0.05, towards="initial", cautious=True, eta_power=0, soft_threshold=True),
        rate=ANNEALED,
    ),
    "kinds by key": case(
        {
            "weight_decay": make_decay(kind(0.001, 0.03, cautious=True)),
            "weight_decays": {
                "kernel": make_decay(kind(l1=0.05, soft_threshold=True)),
                "bias": 0.02,  # a number does not inherit the kind of `weight_decay`
                "head/kernel": make_decay(kind(0.002, 0.05, towards="initial")),
                "dense_10": make_decay(kind(l2=0.04, eta_power=0)),
                "head/bias": (0.002, 0.01),
            },
            "lr_multipliers": {"dense_1": 0.5, "head/kernel": 2},
        },
        l2(
            kind(l1=0.05, soft_threshold=True),
            0.02,
            kind(l2=0.04, eta_power=0),
            kind(0.002, 0.05, towards="initial"),
            (0.002, 0.01),
            kind(0.001, 0.03, cautious=True),
        ),
        cosine(4, normalized=True, t_mul=2),
        multipliers=each(0.5, 0.5, 1.0, 2.0, 1.0, 1.0),
    ),
    "weight decay set": Case(
        {
            "weight_decay": make_decay(kind(0.01, 0.03, cautious=True, eta_power=0.5)),
            "weight_decays": {"bias": 0.01},
        },
        {"*": kind(0.01, None, cautious=True, eta_power=0.5)} | dict.fromkeys(BIASES, (0.0, 0.01)),
        weight_decay=0.03,
        events={3: set_decay(0.1), 7: set_decay(0.0), 10: set_decay(0.05), 12: set_rate(0.02)},
    ),
}

# For the variants of a class: those that reach their own arithmetic.
ARITHMETIC = ["l1 and l2", "multipliers", "accumulation", "learning rate set", "restarts by hand"]
ARITHMETIC += ["kinds by key", "all kinds at once", "soft_threshold", "eta_power=0, rate 0"]


def allowance(run, ulp=2.0**-24, per_update=3, per_step=16):
    """How far float32 may be from float64 after `run.k` updates, for each weight: its rounding and nothing else.

    An update rounds θ about three times (decay, subtraction, and a start from another neighbour of the oracle's θ),
    half an ulp each, and the scalars and moments of a step carry about sixteen roundings.
    """
    return [
        ulp * (per_update * (run.k + 1) * (np.abs(theta) + path) + per_step * path)
        for theta, path in zip(run.values, run.path, strict=True)
    ]


def assert_within(variable, expected, most, what):
    error = np.abs(numpy(variable) - expected)
    assert np.all(error <= most), f"{what}: off by {error}, at most {most} is rounding"


def assert_follows(variables, run, paths=PATHS, ulp=2.0**-24, rounded=None):
    """Ours is where the oracle is, to rounding: after one update that is 1e-7 of the weight and 2e-6 of the step.

    `rounded` gives half the distance of two neighbours, for weights that are rounded to less than the step is.
    """
    parts = zip(paths, variables, run.values, allowance(run, ulp), strict=True)
    for path, variable, expected, most in parts:
        most = most if rounded is None else most + rounded(expected)
        assert_within(variable, expected, most, f"{path} after {run.k} updates")


def follow(case, variables, optimizer, run, runner=None, grads=None):
    """Run both sides together, weights must agree at every update: gives (optimizer, variables, run) after each.

    Between two updates, under accumulation, no weight moves. A weight of multiplier 0 never does.
    """
    runner = runner or (eager_with_cond if case.accumulate > 1 else eager)
    paths, values = [v.path for v in variables], [numpy(v) for v in variables]
    grads = iter(grads or gradients(case.updates * case.accumulate, [v.shape for v in variables]))
    if 0 not in case.events:  # an event before the first update comes before build
        optimizer.build(variables)
    step = None
    for k in range(case.updates):
        if event := case.events.get(k):
            event(optimizer)
            event(run)
        step = step or runner(optimizer, variables)
        micro_batches = [next(grads) for _ in range(case.accumulate)]
        before = [numpy(v) for v in variables]
        for g in micro_batches[:-1]:
            step(g)
            assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True))
        step(micro_batches[-1])
        run.step([np.mean(g, axis=0, dtype="float64") for g in zip(*micro_batches, strict=True)])
        assert_follows(variables, run, paths)
        assert_says(optimizer, run)
        yield optimizer, variables, run
    for path, variable, value in zip(paths, variables, values, strict=True):
        if case.multipliers.get(path) == 0:
            assert np.array_equal(numpy(variable), value), f"{path} is frozen"


def assert_says(optimizer, run):
    """`learning_rate`, `eta_t` and `t_cur` are those of the next update; `lr_t` is another name of the first."""
    # A cosine near its end, π rounded to float32, is right to 1e-7 of its start.
    for name, expected in (("eta_t", run.eta), ("learning_rate", run.learning_rate)):
        np.testing.assert_allclose(
            numpy(getattr(optimizer, name)), expected, rtol=1e-6, atol=1e-7, err_msg=name
        )
    assert float(numpy(optimizer.lr_t)) == float(numpy(optimizer.learning_rate))
    at = run.at
    if at.cycle_steps is None or at.position < at.cycle_steps:  # past its only cycle nobody asks
        assert int(numpy(optimizer.t_cur)) == at.position
