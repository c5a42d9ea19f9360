"""What a random sequence of calls starts from, and the float64 oracle that follows it: see test_sequences.py."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import numpy as np

import oracle
from cases import (
    ALGORITHMS,
    ALPHA,
    BACKEND,
    OPTIMIZERS,
    cosine,
    keras_cosine,
    make_decay,
    schedules,
)

# a/kernel and b/kernel have one shape: where they are mixed up, nothing but the numbers tells.
LAYERS = {"a": {"kernel": (3,), "bias": ()}, "b": {"kernel": (3,)}, "c": {"kernel": (2, 2)}}
SHAPES = {f"{layer}/{w}": shape for layer, shapes in LAYERS.items() for w, shape in shapes.items()}
PATHS = list(SHAPES)

# Of the stock ones, two whose steps an oracle can follow: Lion's sign would turn by rounding alone.
CLASSES = ALGORITHMS | {"Adagrad": oracle.adagrad, "RMSprop": oracle.rmsprop}
FOLLOWED = OPTIMIZERS | {
    "adagrad": ("Adagrad", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.8}),
}

# --- what is fixed for a sequence, in the package's words and in the oracle's ---


@dataclass(frozen=True)
class Setup:
    """`weight_decay` None stands for a schedule of k; decays of a kind are the oracle's."""

    name: str
    clock: tuple
    frozen: frozenset
    weight_decay: float | None
    weight_decays: Mapping
    lr_multipliers: Mapping
    accumulate: int | None
    ema: tuple | None  # momentum, overwrite frequency
    clipnorm: float | None
    seed: int

    def optimizer(self):
        import keras_decoupled

        cls, own = FOLLOWED[self.name]
        arguments = self.clock[1] | {"gradient_accumulation_steps": self.accumulate}
        if self.ema:
            momentum, frequency = self.ema
            arguments |= {"use_ema": True, "ema_momentum": momentum}
            arguments["ema_overwrite_frequency"] = frequency
        falling = schedules.PolynomialDecay(0.06, 15, 0.01)
        return getattr(keras_decoupled, cls)(
            weight_decay=falling if self.weight_decay is None else package(self.weight_decay),
            weight_decays={key: package(decay) for key, decay in self.weight_decays.items()},
            lr_multipliers=self.lr_multipliers,
            clipnorm=self.clipnorm,
            **arguments,
            **own,
        )

    def values(self):
        rng = np.random.default_rng(self.seed)
        return [rng.normal(size=shape).astype("float32") for shape in SHAPES.values()]

    @property
    def uniform(self):
        """λ at first, which may be set; None where no number was given."""
        kind = isinstance(self.weight_decay, oracle.Decay)
        return self.weight_decay.l2 if kind else self.weight_decay

    def decay(self, path):
        """An l2 of None is λ, as it is now."""
        decay = given(self.weight_decays, path)
        if decay is None and self.weight_decay is None:
            decay = falling_decay
        elif decay is None and isinstance(self.weight_decay, oracle.Decay):
            decay = self.weight_decay._replace(l2=None)
        elif decay is None:
            decay = (0.0, None)
        return oracle.Decay(*(decay if isinstance(decay, tuple) else (0.0, decay)))

    def multiplier(self, path):
        multiplier = given(self.lr_multipliers, path)
        return 1.0 if multiplier is None else multiplier


def package(decay):
    return make_decay(decay) if isinstance(decay, oracle.Decay) else decay


def falling_decay(k):
    return 0.06 - 0.05 * min(k, 15) / 15


def is_falling(decay):
    return isinstance(decay, tuple) and callable(decay[1])


def given(rules, path):
    """The path's own entry, else the last that is a part of it."""
    hits = [value for key, value in rules.items() if key in path.split("/")]
    return rules.get(path, hits[-1] if hits else None)


def one_of(*values):
    return st.sampled_from(values)


@st.composite
def clocks(draw):
    """The length of the first cycle (0: a constant rate), the arguments, and what they mean to the oracle."""
    kind = draw(one_of("constant", "cosine", "cosine", "annealing", "keras"))
    first, arguments, meaning = 0, {}, {}
    if kind == "keras":
        first = draw(st.integers(3, 12))
        arguments["learning_rate"] = schedules.CosineDecay(ALPHA, first, alpha=0.25)
        meaning["schedule"] = partial(keras_cosine, steps=first, floor=0.25)
    elif kind != "constant":
        first = draw(st.integers(2, 6))
        shape = {
            "eta_min": draw(one_of(0.0, 0.1)),
            "eta_max": draw(one_of(1.0, 0.6)),
            "autorestart": draw(st.booleans()),
        }
        if kind == "annealing":
            t_cur = draw(st.integers(0, first - 1))
            arguments = {"use_cosine_annealing": True, "total_iterations": first, "t_cur": t_cur}
            arguments |= shape
            meaning = {"t_cur": t_cur, "normalize": "cycle"}
            meaning["schedule"] = partial(oracle.cosine, first=first, **shape)
        else:
            shape |= {
                "t_mul": draw(one_of(1, 1.5, 2)),
                "m_mul": draw(one_of(1.0, 0.7)),
                "endpoint": draw(st.booleans()),
            }
            arguments, meaning = cosine(
                first, draw(st.integers(0, 3)), draw(st.booleans()), **shape
            )
    if draw(st.booleans()):
        arguments["total_iterations_wd"] = meaning["normalize"] = 7
    return first, {"learning_rate": ALPHA} | arguments, meaning


@st.composite
def kinds(draw):
    decay = oracle.Decay(
        draw(one_of(0.0, 0.004)),
        draw(one_of(0.0, 0.02, 0.1)),
        draw(one_of("zero", "initial", "initial")),
        draw(st.booleans()),
        draw(one_of(0, 1, 2)),
        draw(st.booleans()),
    )
    refused = decay.cautious and decay.soft_threshold and decay.l1
    return decay._replace(l1=0.0) if refused else decay


@st.composite
def setups(draw, names):
    frozen = draw(st.frozensets(one_of("b", "c")))
    # A key that hits nothing at the first build is an error.
    keys = st.permutations(["kernel", "bias", "a", "a/kernel"] + ["b"] * ("b" not in frozen))
    decays = one_of(0, 0.01, 0.1, (0.004, 0.0), (0.01, 0.05)) | kinds()

    def rules(values):
        return {key: draw(values) for key in draw(keys)[: draw(st.integers(0, 3))]}

    return Setup(
        name=draw(st.sampled_from(names)),
        clock=draw(clocks()),
        frozen=frozen,
        weight_decay=draw(one_of(0, 0.03, None) | kinds()),
        weight_decays=rules(decays),
        lr_multipliers=rules(one_of(0, 0.1, 0.5, 2)),
        accumulate=draw(one_of(None, None, 2, 3)),
        ema=draw(one_of(None, None, (0.9, None), (0.8, 3))),
        clipnorm=draw(one_of(None, None, None, 1.0)),
        seed=draw(seeds),
    )


seeds = st.integers(0, 2**16)


def micro_batch(rng):
    """Gradients that are multiples of 1/64: sums of them are no rounding. Some are 0."""
    grads = [np.round(64 * (0.3 + rng.normal(size=shape))) / 64 for shape in SHAPES.values()]
    return [(g * (rng.random(g.shape) > 0.1)).astype("float32") for g in grads]


# --- the oracle, with what Keras does around an update ---


def measured(algorithm):
    """The algorithm, which also adds up how far steps would go if no gradient stood against another.

    A moment in which gradients cancel is as rounded as one in which they do not.
    """

    def step(g, own, k, rate):
        apart = algorithm(np.abs(g), own.setdefault("apart", {}), k, rate)
        own["way"] = own.get("way", 0.0) + np.abs(apart)
        return algorithm(g, own, k, rate)

    return step


class Reference(oracle.Run):
    """The oracle over all weights of the model, called once for each micro-batch."""

    def __init__(self, setup):
        cls, own = FOLLOWED[setup.name]
        super().__init__(
            measured(partial(CLASSES[cls], **own)),
            setup.values(),
            ALPHA,
            [setup.decay(path) for path in PATHS],
            [setup.multiplier(path) for path in PATHS],
            weight_decay=setup.uniform,
            **setup.clock[2],
        )
        self.setup = setup
        self.calls = self.rates_set = 0
        self.built = []  # indices, in the order of the last build
        self.sums = [np.zeros_like(value) for value in self.values]
        self.averages = [None] * len(PATHS)  # None: the optimizer has no state of that weight
        # Where rounding decides the sign of a weight or of a step, the decay goes one way or the other.
        self.undecided = [np.zeros(shape, bool) for shape in SHAPES.values()]

    @property
    def known(self):
        return [i for i, average in enumerate(self.averages) if average is not None]

    def build(self, indices):
        for i in indices:
            if self.averages[i] is None:
                self.averages[i] = self.initial[i] = self.values[i]
        self.built = list(indices)

    def see(self, indices):
        """What `apply` does with a list of variables: those that are new are built on, too."""
        if not set(indices) <= set(self.built):
            self.build([i for i in self.built if i not in indices] + list(indices))

    def forget(self, kept):
        """Only these weights' state comes out of a file."""
        for i in set(self.known) - set(kept):
            self.states[i] = {"way": self.states[i].get("way", 0.0)}
            self.sums[i], self.averages[i] = np.zeros_like(self.sums[i]), None

    @property
    def last_of_update(self):
        return (self.calls + 1) % (self.setup.accumulate or 1) == 0

    def call(self, grads):
        """A micro-batch; None for each weight that gets no gradient."""
        k, n = self.k, self.setup.accumulate or 1
        if self.last_of_update:
            self.step(
                [None if g is None else (g + s) / n for g, s in zip(grads, self.sums, strict=True)]
            )
            # What is frozen in the midst of it loses its sum at once, but on JAX keeps it until it is back.
            done = [i for i in self.built if BACKEND != "jax" or grads[i] is not None]
            for i in done:
                self.sums[i] = np.zeros_like(self.sums[i])
        else:
            self.sums = [s if g is None else s + g for g, s in zip(grads, self.sums, strict=True)]
        if self.setup.ema:  # with each micro-batch, as Keras does it
            momentum, frequency = self.setup.ema
            momentum = momentum if k else 0.0
            for i in self.built:
                self.averages[i] = momentum * self.averages[i] + (1 - momentum) * self.values[i]
            if frequency and (k + 1) % frequency == 0:
                self.overwrite(self.built)
        self.calls += 1

    def overwrite(self, indices):
        for i in indices:
            self.path[i] = self.path[i] + np.abs(self.averages[i] - self.values[i])
            self.values[i] = self.averages[i]

    def step(self, grads):
        self.missing = [i for i, g in enumerate(grads) if g is None]
        held = {
            i: (self.values[i], copy.deepcopy(self.states[i]), self.path[i])
            for i, g in enumerate(grads)
            if g is None
        }
        super().step(
            [
                np.zeros(shape) if g is None else self.clipped(g)
                for g, shape in zip(grads, SHAPES.values(), strict=True)
            ]
        )
        for i, (value, own, path) in held.items():
            self.values[i], self.states[i], self.path[i] = value, own, path

    def decide(self, i, step, decay):
        """Exact zeros are no rounding: a step without a rate, a weight that never left its reference."""
        if i in self.missing:
            return
        most, d = self.allowance()[i], self.values[i]
        if decay.towards == "initial":
            d = d - self.initial[i]
            most = np.where((d == 0) & (self.setup.ema is None), -1.0, 2 * most)
        if (decay.l1 and not decay.soft_threshold) or decay.cautious:
            self.undecided[i] |= np.abs(d) <= most
        if decay.cautious:
            self.undecided[i] |= (step != 0) & (np.abs(step) <= most)

    def clipped(self, g):
        most = self.setup.clipnorm
        return g if most is None else g * most / max(np.linalg.norm(g), most)

    def allowance(self):
        """How far float32 may be off by now: rounding and nothing else, each half an ulp.

        θ is rounded three times in an update, and five times more with an average, which is in each call. A step
        carries 24: the cosine, of which a square is taken, r, α, the bias corrections and the moments; 4 more for
        each time that a rate was read and set, 8 for a norm.
        """
        per_call = 8 if self.setup.ema else 3
        per_step = 24 + 4 * self.rates_set + 8 * (self.setup.clipnorm is not None)
        return [
            2.0**-24
            * (
                per_call * (self.calls + 1) * (np.abs(value) + path)
                + per_step * (path + own.get("way", 0.0))
            )
            for value, path, own in zip(self.values, self.path, self.states, strict=True)
        ]
