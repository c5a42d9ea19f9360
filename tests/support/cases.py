"""The tables the numeric tests share: optimizers, weights, ways to call `apply`, and cases with the numbers they mean.

Every case names the decay of each weight by hand, so that no matching rule of the package is used to check itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

import oracle

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
}
ALGORITHMS = {"AdamW": oracle.adamw, "NadamW": oracle.nadamw, "SGDW": oracle.sgdw}

SHAPES = {
    "encoder/dense_1/kernel": (4, 3),
    "encoder/dense_1/bias": (3,),
    "encoder/dense_10/kernel": (3, 2),
    "head/kernel": (2, 2),
    "head/bias": (2,),
    "scale": (),
}
PATHS = list(SHAPES)


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
        values, state = apply(
            [v.value for v in optimizer.variables], grads, [v.value for v in variables]
        )
        for variable, value in zip(
            [*variables, *optimizer.variables], [*values, *state], strict=True
        ):
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


# Keras calls jax.lax.cond on new functions for gradient accumulation and for a warm-up: eager JAX would compile them
# at every update.
eager_with_cond = COMPILED["jit"] if BACKEND == "jax" else eager


# --- cases ---


def warm_restarts(*args, **kwargs):
    from keras_decoupled import CosineWarmRestarts

    return CosineWarmRestarts(*args, **kwargs)


def warmup_stable_decay(*args, **kwargs):
    from keras_decoupled import WarmupStableDecay

    return WarmupStableDecay(*args, **kwargs)


def keras_cosine(s, alpha=ALPHA, steps=10, floor=0.1):
    """keras.optimizers.schedules.CosineDecay, as its docstring writes it, over the base learning rate."""
    return oracle.At(
        (1 - floor) * 0.5 * (1 + np.cos(np.pi * min(s, steps) / steps)) + floor, s, None
    )


def keras_warmup_cosine(s, warmup=4):
    """CosineDecay with a warm-up from 0 to warmup_target, which is the base learning rate."""
    return oracle.At(s / warmup if s < warmup else keras_cosine(s - warmup).multiplier, s, None)


@dataclass(frozen=True)
class Case:
    """`arguments` for ours, made anew for each run; the rest says in numbers what they mean."""

    arguments: Callable[[], Mapping[str, Any]]
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
    cond: bool = False
    updates: int = 15
    events: Mapping[int, Callable[[Any], Any]] = field(
        default_factory=dict
    )  # before update k, on both sides

    def optimizer(self, name):
        import keras_decoupled

        cls, arguments = OPTIMIZERS[name]
        optimizer = getattr(keras_decoupled, cls)(
            **{"learning_rate": ALPHA, **arguments, **self.arguments()}
        )
        if self.exclude:
            optimizer.exclude_from_weight_decay(var_names=list(self.exclude))
        return optimizer

    def oracle(self, name, values):
        cls, arguments = OPTIMIZERS[name]
        return oracle.Run(
            partial(ALGORITHMS[cls], **arguments),
            values,
            self.alpha,
            [self.decays.get(path, self.decays.get("*", (0.0, 0.0))) for path in PATHS],
            [self.multipliers.get(path, 1.0) for path in PATHS],
            self.schedule,
            self.normalize,
            self.t_cur,
            self.warmup,
            self.weight_decay,
        )


def make_decay(decay):
    """The package's `Decay` of an oracle's."""
    from keras_decoupled import Decay

    return Decay(**decay._asdict())


def set_rate(rate):
    return lambda optimizer: setattr(optimizer, "learning_rate", rate)


def scale_rate(factor):
    return lambda optimizer: setattr(
        optimizer, "learning_rate", factor * float(numpy(optimizer.learning_rate))
    )


def set_decay(decay):
    return lambda optimizer: setattr(optimizer, "weight_decay", decay)


def reset_reference(optimizer):
    optimizer.reset_reference()


def restart(position=0):
    return lambda optimizer: optimizer.restart(position)


def begin_decay(optimizer):
    optimizer.begin_decay()


def restart_and_scale_rate(factor):
    def event(optimizer):
        optimizer.restart()
        scale_rate(factor)(optimizer)

    return event


def uniform(decay, **more):
    """A case in which every weight has this decay."""
    return Case(
        lambda: {**(more.get("arguments") or dict)(), "weight_decay": make_decay(decay)},
        {"*": decay},
        **{name: value for name, value in more.items() if name != "arguments"},
    )


def annealed(first=5, **arguments):
    """Arguments of `uniform` for a cosine that ends each cycle at 0."""
    rate = partial(warm_restarts, ALPHA, first, t_mul=2)
    return {
        "arguments": lambda: {"learning_rate": rate(), **arguments},
        "schedule": partial(oracle.cosine, first=first, t_mul=2),
    }


def falling(k):
    return 0.2 - 0.19 * min(k, 6) / 6


def _scheduled(**fields):
    from keras_decoupled import Decay

    return Decay(schedules.PolynomialDecay(0.2, 6, 0.01), **fields)


UNIFORM = {"*": (0.0, 0.03)}
kind = oracle.Decay
schedules = keras.optimizers.schedules

CASES = {
    "no decay": Case(lambda: {"weight_decay": 0}),
    "plain": Case(lambda: {"weight_decay": 0.03}, UNIFORM),
    "rules": Case(
        lambda: {
            "weight_decay": 0.03,
            "weight_decays": {
                "encoder": 0.01,
                "encoder/dense_10/kernel": 0.05,
                "dense_1": 0.02,
                "bias": 0,
            },
        },
        {
            "encoder/dense_1/kernel": (0.0, 0.02),
            "encoder/dense_1/bias": (0.0, 0.0),
            "encoder/dense_10/kernel": (0.0, 0.05),
            "head/bias": (0.0, 0.0),
            "*": (0.0, 0.03),
        },
    ),
    "exact path beats later rules": Case(
        lambda: {"weight_decays": {"head/bias": (0.01, 0.04), "bias": 0.02, "kernel": 0.03}},
        {
            "head/bias": (0.01, 0.04),
            "encoder/dense_1/bias": (0.0, 0.02),
            "scale": (0.0, 0.0),
            "*": (0.0, 0.03),
        },
    ),
    "exclusions": Case(
        lambda: {"weight_decay": 0.03, "weight_decays": {"encoder/dense_1/bias": 0.5}},
        {"encoder/dense_1/bias": (0.0, 0.0), "head/bias": (0.0, 0.0), **UNIFORM},
        exclude=("bias$",),
    ),
    "l1 and l2": Case(
        lambda: {"weight_decays": {"kernel": (0.004, 0.02), "bias": (0.01, 0.0), "scale": 0.05}},
        {
            "encoder/dense_1/bias": (0.01, 0.0),
            "head/bias": (0.01, 0.0),
            "scale": (0.0, 0.05),
            "*": (0.004, 0.02),
        },
    ),
    "multipliers": Case(
        lambda: {
            "weight_decay": 0.03,
            "lr_multipliers": {"dense_1": 0.5, "head": 2, "head/bias": 0, "scale": 0.0},
        },
        UNIFORM,
        {
            "encoder/dense_1/kernel": 0.5,
            "encoder/dense_1/bias": 0.5,
            "head/kernel": 2.0,
            "head/bias": 0.0,
            "scale": 0.0,
        },
    ),
    "normalized": Case(
        lambda: {"weight_decays": {"kernel": (0.01, 0.1)}, "total_iterations": 16},
        {path: (0.01, 0.1) for path in PATHS if path.endswith("kernel")},
        normalize=16,
    ),
    "total_iterations_wd": Case(
        lambda: {
            "weight_decay": 0.1,
            "total_iterations": 9,
            "total_iterations_wd": 25,
            "use_cosine_annealing": True,
        },
        {"*": (0.0, 0.1)},
        schedule=partial(oracle.cosine, first=9),
        normalize=25,
    ),
    "annealing": Case(
        lambda: {
            "weight_decay": 0.1,
            "total_iterations": 8,
            "use_cosine_annealing": True,
            "eta_min": 0.1,
            "eta_max": 0.8,
            "t_cur": 5,
        },
        {"*": (0.0, 0.1)},
        schedule=partial(oracle.cosine, first=8, eta_min=0.1, eta_max=0.8),
        normalize=8,
        t_cur=5,
    ),
    "autorestart=False": Case(
        lambda: {
            "weight_decay": 0.03,
            "total_iterations": 7,
            "use_cosine_annealing": True,
            "autorestart": False,
            "eta_min": 0.25,
            "normalize_weight_decay": False,
        },
        UNIFORM,
        schedule=partial(oracle.cosine, first=7, eta_min=0.25, autorestart=False),
    ),
    "t_mul, normalized per cycle": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 4, t_mul=2),
            "weight_decay": 0.1,
            "normalize_weight_decay": True,
        },
        {"*": (0.0, 0.1)},
        schedule=partial(oracle.cosine, first=4, t_mul=2),
        normalize="cycle",
    ),
    "t_mul and m_mul": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 3, t_mul=2, m_mul=0.7, eta_min=0.05),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=partial(oracle.cosine, first=3, t_mul=2, m_mul=0.7, eta_min=0.05),
    ),
    "fractional t_mul, endpoint=False": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 4, t_mul=1.5, endpoint=False),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=partial(oracle.cosine, first=4, t_mul=1.5, endpoint=False),
    ),
    "warmup": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 6, warmup_steps=5, eta_max=0.9),
            "weight_decay": 0.1,
            "normalize_weight_decay": True,
        },
        {"*": (0.0, 0.1)},
        schedule=partial(oracle.cosine, first=6, warmup=5, eta_max=0.9),
        normalize="cycle",
        warmup=5,
        events={12: restart(2)},
    ),
    "stable, then a decay": Case(
        lambda: {
            "learning_rate": warmup_stable_decay(ALPHA, 3, 6, 2, eta_min=0.1),
            "weight_decay": 0.1,
            "total_iterations_wd": 16,
        },
        {"*": (0.0, 0.1)},
        schedule=partial(oracle.stable, stable=3, decay=6, warmup=2, eta_min=0.1),
        normalize=16,
        warmup=2,
        events={8: scale_rate(0.5), 13: restart(4)},
    ),
    "a decay that begins when it is told": Case(
        lambda: {
            "learning_rate": warmup_stable_decay(ALPHA, None, 4, 1, shape="linear"),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=partial(oracle.stable, stable=None, decay=4, warmup=1, shape="linear"),
        warmup=1,
        events={4: begin_decay, 10: restart(), 11: scale_rate(0.5), 12: begin_decay},
    ),
    "keras CosineDecay": Case(
        lambda: {
            "learning_rate": schedules.CosineDecay(ALPHA, 10, alpha=0.1),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=keras_cosine,
        events={11: restart(), 13: scale_rate(0.5)},
    ),
    "keras CosineDecay with a warm-up": Case(
        lambda: {
            "learning_rate": schedules.CosineDecay(
                0.0, 10, alpha=0.1, warmup_target=ALPHA, warmup_steps=4
            ),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=keras_warmup_cosine,
        cond=True,
        updates=7,
    ),
    "a schedule that has no initial value": Case(
        lambda: {
            "learning_rate": schedules.PiecewiseConstantDecay([4, 9], [ALPHA, 0.03, 0.01]),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=lambda s: oracle.At([1.0, 0.6, 0.2][(s > 4) + (s > 9)], s, None),
    ),
    "a callable": Case(lambda: {"learning_rate": lambda: ALPHA, "weight_decay": 0.03}, UNIFORM),
    "weight_decay as a schedule": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 6),
            "weight_decay": schedules.PolynomialDecay(0.06, 15, 0.01),
            "weight_decays": {"bias": 0},
        },
        {
            "encoder/dense_1/bias": (0.0, 0.0),
            "head/bias": (0.0, 0.0),
            "*": (0.0, lambda k: 0.06 - 0.05 * min(k, 15) / 15),
        },
        schedule=partial(oracle.cosine, first=6),
        events={8: restart(3)},  # moves s, not k
    ),
    "accumulation": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 3, t_mul=2),
            "weight_decay": schedules.PolynomialDecay(0.2, 6, 0.01),
            "normalize_weight_decay": True,
            "gradient_accumulation_steps": 3,
        },
        {"*": (0.0, falling)},
        schedule=partial(oracle.cosine, first=3, t_mul=2),
        normalize="cycle",
        accumulate=3,
        cond=True,
        events={5: restart(1), 7: scale_rate(0.5)},
    ),
    "learning rate set": Case(
        lambda: {"weight_decay": 0.03},
        UNIFORM,
        events={4: set_rate(0.01), 7: set_rate(0.0), 10: set_rate(0.1), 13: scale_rate(0.3)},
    ),
    "learning rate set on a schedule": Case(
        lambda: {"learning_rate": warm_restarts(ALPHA, 5, eta_min=0.1), "weight_decay": 0.03},
        UNIFORM,
        schedule=partial(oracle.cosine, first=5, eta_min=0.1),
        events={2: scale_rate(0.5), 7: scale_rate(0.5), 13: scale_rate(3.0)},
    ),
    "restarts by hand": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 6, t_mul=2, m_mul=0.5),
            "weight_decay": 0.03,
        },
        UNIFORM,
        schedule=partial(oracle.cosine, first=6, t_mul=2, m_mul=0.5),
        events={0: restart(2), 7: restart(), 9: restart(5), 12: restart_and_scale_rate(0.5)},
    ),
    "base_learning_rate": Case(
        lambda: {"learning_rate": 0.02, "base_learning_rate": 0.1, "weight_decay": 0.1},
        {"*": (0.0, 0.1)},
        alpha=0.1,
        schedule=lambda s: oracle.At(0.2, s, None),
        events={10: set_rate(0.05)},
    ),
    "base_learning_rate of a schedule": Case(
        lambda: {
            "learning_rate": schedules.CosineDecay(ALPHA, 10, alpha=0.1),
            "base_learning_rate": 0.1,
            "weight_decay": 0.1,
        },
        {"*": (0.0, 0.1)},
        alpha=0.1,
        schedule=lambda s: oracle.At(0.5 * keras_cosine(s).multiplier, s, None),
    ),
}

# The kinds of decay.
CASES |= {
    "eta_power=0": uniform(kind(0.002, 0.03, eta_power=0), **annealed()),
    "eta_power=2": uniform(kind(0.002, 0.03, eta_power=2), **annealed()),
    "eta_power=0.5": uniform(
        kind(l2=0.03, eta_power=0.5), events={4: set_rate(0.01), 9: set_rate(0.1)}
    ),
    "eta_power=0, learning rate 0": uniform(
        kind(l2=0.03, eta_power=0), events={3: set_rate(0.0), 8: set_rate(0.05)}
    ),
    "cautious": uniform(kind(l2=0.05, cautious=True)),
    "cautious, l1": uniform(kind(l1=0.01, cautious=True)),
    "cautious, annealed": uniform(kind(0.005, 0.05, cautious=True, eta_power=0), **annealed()),
    "towards initial": uniform(kind(l2=0.1, towards="initial")),
    "towards initial, l1": uniform(kind(l1=0.01, towards="initial")),
    "towards initial, reset": uniform(
        kind(0.002, 0.1, towards="initial"), events={5: reset_reference}
    ),
    "soft_threshold": uniform(kind(l1=0.06, soft_threshold=True)),
    "soft_threshold, l2": uniform(kind(0.06, 0.02, soft_threshold=True, eta_power=2), **annealed()),
    "soft_threshold towards initial": uniform(
        kind(0.04, 0.05, towards="initial", soft_threshold=True)
    ),
    "all kinds at once": uniform(
        kind(0.0, 0.05, towards="initial", cautious=True, eta_power=0, soft_threshold=True),
        **annealed(),
    ),
    "kinds by key": Case(
        lambda: {
            "weight_decay": make_decay(kind(0.001, 0.03, cautious=True)),
            "weight_decays": {
                "kernel": make_decay(kind(l1=0.05, soft_threshold=True)),
                "bias": 0.02,  # a number does not inherit the kind of `weight_decay`
                "head/kernel": make_decay(kind(0.002, 0.05, towards="initial")),
                "dense_10": make_decay(kind(l2=0.04, eta_power=0)),
                "head/bias": (0.002, 0.01),
            },
            "learning_rate": warm_restarts(ALPHA, 4, t_mul=2),
        },
        {
            "encoder/dense_1/kernel": kind(l1=0.05, soft_threshold=True),
            "encoder/dense_1/bias": (0.0, 0.02),
            "encoder/dense_10/kernel": kind(l2=0.04, eta_power=0),
            "head/kernel": kind(0.002, 0.05, towards="initial"),
            "head/bias": (0.002, 0.01),
            "*": kind(0.001, 0.03, cautious=True),
        },
        schedule=partial(oracle.cosine, first=4, t_mul=2),
    ),
    "kinds with multipliers": Case(
        lambda: {
            "weight_decay": make_decay(kind(l2=0.05, cautious=True, eta_power=0)),
            "weight_decays": {"dense_1": make_decay(kind(l1=0.01, soft_threshold=True))},
            "lr_multipliers": {"dense_1/kernel": 0.5, "dense_1/bias": 0, "head": 2, "scale": 0},
            "learning_rate": warm_restarts(ALPHA, 5, t_mul=2),
        },
        {
            "encoder/dense_1/kernel": kind(l1=0.01, soft_threshold=True),
            "encoder/dense_1/bias": kind(l1=0.01, soft_threshold=True),
            "*": kind(l2=0.05, cautious=True, eta_power=0),
        },
        {
            "encoder/dense_1/kernel": 0.5,
            "encoder/dense_1/bias": 0.0,
            "head/kernel": 2.0,
            "head/bias": 2.0,
            "scale": 0.0,
        },
        schedule=partial(oracle.cosine, first=5, t_mul=2),
    ),
    "a kind, normalized": uniform(
        kind(0.02, 0.3, towards="initial", eta_power=2),
        **annealed(4, normalize_weight_decay=True),
        normalize="cycle",
    ),
    "kinds and accumulation": Case(
        lambda: {
            "learning_rate": warm_restarts(ALPHA, 3, t_mul=2),
            "weight_decay": _scheduled(cautious=True, eta_power=2),
            "weight_decays": {
                "head": _scheduled(towards="initial"),
                "bias": make_decay(kind(0.1, soft_threshold=True)),
            },
            "normalize_weight_decay": True,
            "gradient_accumulation_steps": 3,
        },
        {
            "encoder/dense_1/bias": kind(0.1, soft_threshold=True),
            "head/kernel": kind(0.0, falling, towards="initial"),
            "head/bias": kind(0.1, soft_threshold=True),
            "*": kind(0.0, falling, cautious=True, eta_power=2),
        },
        schedule=partial(oracle.cosine, first=3, t_mul=2),
        normalize="cycle",
        accumulate=3,
        cond=True,
        events={5: restart(1), 7: scale_rate(0.5)},
    ),
    "weight decay set": Case(
        lambda: {"weight_decay": 0.03, "weight_decays": {"bias": 0.01}},
        {"encoder/dense_1/bias": (0.0, 0.01), "head/bias": (0.0, 0.01), "*": (0.0, None)},
        weight_decay=0.03,
        events={3: set_decay(0.1), 7: set_decay(0.0), 10: set_decay(0.05)},
    ),
    "weight decay of a kind set": Case(
        lambda: {"weight_decay": make_decay(kind(0.01, 0.0, cautious=True))},
        {"*": kind(0.01, None, cautious=True)},
        weight_decay=0.0,
        events={3: set_decay(0.1), 10: set_decay(0.05), 12: set_rate(0.02)},
    ),
}


def allowance(run, ulp=2.0**-24, per_update=3, per_step=16):
    """How far float32 may be from float64 after `run.k` updates, for each weight: its rounding and nothing else.

    An update rounds θ about three times (decay, subtraction, and a start from another neighbour of the oracle's θ),
    half an ulp each, and the scalars and moments of a step carry about sixteen roundings.
    """
    return [
        ulp * (per_update * (run.k + 1) * (np.abs(theta) + path) + per_step * path)
        for theta, path in zip(run.values, run.path, strict=True)
    ]


def assert_follows(variables, run, **precision):
    for path, variable, expected, most in zip(
        PATHS, variables, run.values, allowance(run, **precision), strict=False
    ):
        error = np.abs(numpy(variable) - expected)
        assert np.all(error <= most), (
            f"{path} after {run.k} updates: off by {error}, at most {most} is rounding"
        )
