"""Random sequences of what users do to one optimizer, compared with the float64 oracle after each of them.

Updates in eager and in compiled code by turns, gradients that are missing, rates set, restarts, files, layers frozen
and unfrozen, recompilations: alone each has its tests; here they meet, in the middle of an accumulation too.
"""

import contextlib
import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import oracle
from cases import (
    ALGORITHMS,
    ALPHA,
    BACKEND,
    COMPILED,
    OPTIMIZERS,
    cosine,
    keras_cosine,
    make_decay,
    numpy,
    schedules,
)
from effort import effort
from exact import model_of, output, row
from training import state, tensors

# a/kernel and b/kernel have one shape: where they are mixed up, nothing but the numbers tells.
LAYERS = {"a": {"kernel": (3,), "bias": ()}, "b": {"kernel": (3,)}, "c": {"kernel": (2, 2)}}
SHAPES = {f"{layer}/{w}": shape for layer, shapes in LAYERS.items() for w, shape in shapes.items()}
PATHS = list(SHAPES)

SEQUENCES = effort(5 if BACKEND == "torch" else 2, 100)  # for each class
# Of the stock ones, two whose steps an oracle can follow: Lion's sign would turn by rounding alone.
CLASSES = ALGORITHMS | {"Adagrad": oracle.adagrad, "RMSprop": oracle.rmsprop}
FOLLOWED = OPTIMIZERS | {
    "adagrad": ("Adagrad", {}),
    "rmsprop": ("RMSprop", {}),
    "rmsprop-momentum": ("RMSprop", {"momentum": 0.8}),
}
# Compiling takes most of the time. A sequence that has done it as often as drawn goes on eagerly.
TRACES = 10**6 if BACKEND == "torch" else 2

MISSING = "Gradients do not exist"
NO_DECAY = r"\w+ decays no variable"
PEAK = "`learning_rate` was set to"
FOUND = "optimizer variables were found in the file"


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


# --- the machine ---


@contextlib.contextmanager
def ignoring(message):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=message)
        yield


def compiled(optimizer, variables, xla):
    """A compiled `apply`, as a function of gradients of which some may be None."""
    if BACKEND == "jax":
        return COMPILED["jit"](optimizer, variables)
    optimizer.build(variables)

    def apply(grads):
        optimizer.apply(grads, variables)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        apply = tf.function(apply, jit_compile=xla)
    else:
        import torch

        apply = torch.no_grad()(apply)
    return lambda grads: apply(tensors(grads))


class Sequences(RuleBasedStateMachine):
    """One model with one optimizer, and the oracle beside them; both know weights by their index in PATHS."""

    names = tuple(FOLLOWED)

    @initialize(data=st.data())
    def start(self, data):
        keras.utils.clear_session(free_memory=False)
        self.folder = Path(tempfile.mkdtemp())
        self.setup = data.draw(setups(self.names))
        self.reference = Reference(self.setup)
        self.model = model_of(LAYERS, self.setup.values())
        for name in self.setup.frozen:
            self.model.get_layer(name).trainable = False
        self.traces = data.draw(st.integers(0, TRACES))
        self.jit = "auto"
        self.compile(self.setup.optimizer())
        with ignoring(NO_DECAY):  # the keys with a decay may all hit what is frozen
            self.build(self.listed)

    def teardown(self):
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @property
    def variables(self):
        return self.model.weights

    @property
    def listed(self):
        """The model's trainable weights."""
        return [i for i, variable in enumerate(self.variables) if variable.trainable]

    def at(self, indices):
        return [self.variables[i] for i in indices]

    def compile(self, optimizer):
        self.optimizer = optimizer
        self.model.compile(optimizer, loss=output, jit_compile=self.jit)
        self.train_traced = False
        self.steps = {}  # compiled ones, by whether XLA is asked for
        self.patterns = set()

    def build(self, indices):
        if list(indices) != self.reference.built:
            self.steps, self.patterns = {}, set()
        self.optimizer.build(self.at(indices))
        self.reference.build(indices)

    def may_trace(self, traced):
        self.traces -= not traced
        return self.traces >= 0

    def missing_now(self, missing):
        """What may be missing: Keras' backends differ on a sum whose last gradient is missing; one must be there."""
        kept = [i for i in self.listed if PATHS[i] not in missing]
        if self.reference.last_of_update:
            kept = [i for i in self.listed if i in kept or np.any(self.reference.sums[i])]
        return set(self.listed) - set(kept or self.listed)

    def eager(self, grads, missing, sublist=False):
        listed = [i for i in self.listed if not (sublist and i in missing)]
        self.reference.see(listed)
        given = [None if i in missing else grads[i] for i in listed]
        with ignoring(MISSING), self.without_cond():
            self.optimizer.apply(tensors(given), self.at(listed))

    def without_cond(self):
        """Eager JAX compiles the conditions of accumulation anew in each call, unless it compiles nothing."""
        if BACKEND == "jax" and self.setup.accumulate:
            import jax

            return jax.disable_jit()
        return contextlib.nullcontext()

    def count(self, grads, missing=()):
        absent = {*missing, *(set(range(len(PATHS))) - set(self.listed))}
        self.reference.call([None if i in absent else g for i, g in enumerate(grads)])

    @rule(
        seed=seeds,
        times=st.integers(1, 8),
        missing=st.sets(st.sampled_from(PATHS)),
        sublist=st.booleans(),
    )
    def apply(self, seed, times, missing, sublist):
        """`sublist`: what gets no gradient is not in the list, where it would be with None."""
        rng = np.random.default_rng(seed)
        for _ in range(times):
            grads, absent = micro_batch(rng), self.missing_now(missing)
            self.eager(grads, absent, sublist)
            self.count(grads, absent)

    @rule(
        seed=seeds,
        times=st.integers(1, 8),
        missing=st.sampled_from([set(), set(), {"b/kernel"}]),
        xla=st.booleans(),
    )
    def apply_compiled(self, seed, times, missing, xla):
        rng = np.random.default_rng(seed)
        self.build(self.listed)
        for _ in range(times):
            grads, absent = micro_batch(rng), self.missing_now(missing)
            pattern = (xla, *sorted(absent))
            if self.may_trace(pattern in self.patterns):
                self.patterns.add(pattern)
                if xla not in self.steps:
                    self.steps[xla] = compiled(self.optimizer, self.at(self.listed), xla)
                with ignoring(MISSING):
                    self.steps[xla]([None if i in absent else grads[i] for i in self.listed])
            else:
                self.eager(grads, absent)
            self.count(grads, absent)

    @rule(seed=seeds, times=st.integers(1, 8))
    def train_on_batch(self, seed, times):
        rng = np.random.default_rng(seed)
        # A traced TensorFlow step cannot start an average; on JAX no variable can be made in one.
        if BACKEND == "jax" or (BACKEND == "tensorflow" and self.setup.ema):
            self.build(self.listed)
        for _ in range(times):
            grads = micro_batch(rng)
            if self.may_trace(self.train_traced):
                self.train_traced = True
                self.reference.see(self.listed)
                self.model.train_on_batch(row(grads)[None], np.zeros((1, 1), "float32"))
            else:
                self.eager(grads, ())
            self.count(grads)

    @rule(r=one_of(0.0, 0.25, 0.5, 1.0, 1.5), assigned=st.booleans())
    def set_rate(self, r, assigned):
        """`assigned`: what callbacks do to a stock optimizer with a constant rate."""
        multiplier = self.reference.at.multiplier
        with ignoring(PEAK):
            if assigned and not self.setup.clock[0]:
                self.optimizer.learning_rate.assign(r * ALPHA)
            else:
                self.optimizer.learning_rate = r * ALPHA * multiplier
        if multiplier:
            self.reference.r = r
            self.reference.rates_set += 1
        else:
            with pytest.raises(ValueError, match="while the schedule is at 0"):
                self.optimizer.learning_rate = ALPHA

    @rule(decay=one_of(0, 0.01, 0.05), assigned=st.booleans())
    def set_weight_decay(self, decay, assigned):
        if self.setup.uniform is None:
            with pytest.raises(ValueError, match="`weight_decay` can be set only"):
                self.optimizer.weight_decay = decay
            return
        if assigned:
            self.optimizer.weight_decay.assign(decay)
        else:
            self.optimizer.weight_decay = decay
        self.reference.weight_decay = decay

    @rule(factor=one_of(0.5, 0.9, 1.25))
    def scale_rate(self, factor):
        if self.reference.r * factor > 2:  # η·λ stays far below 1
            return
        with ignoring(PEAK):
            self.optimizer.learning_rate = factor * float(numpy(self.optimizer.learning_rate))
        if self.reference.at.multiplier:
            self.reference.r *= factor
            self.reference.rates_set += 1

    @precondition(lambda self: self.setup.clock[0])
    @rule(position=st.integers(0, 5), assigned=st.booleans())
    def restart(self, position, assigned):
        position %= self.setup.clock[0]
        if assigned:
            self.optimizer.t_cur = position
        else:
            self.optimizer.restart(position)
        self.reference.restart(position)

    @rule(whole=st.booleans())
    def load_into_new_optimizer(self, whole):
        """`whole`: built on all that the old one knew first, and so with the state of what was frozen since."""
        config = json.loads(json.dumps(self.optimizer.get_config()))
        store = {}
        self.optimizer.save_own_variables(store)
        optimizer = type(self.optimizer).from_config(config)
        if whole:
            optimizer.build(self.at(self.reference.known))
        optimizer.build(self.at(self.reference.built))
        lost = set() if whole else set(self.reference.known) - set(self.reference.built)
        with self.said_where(lost):
            optimizer.load_own_variables(store)
        if not whole:
            self.reference.forget(self.reference.built)
        self.compile(optimizer)

    @rule()
    def load_file(self):
        file = self.folder / "model.keras"
        self.model.save(file)
        with self.said_where(lost=set(self.reference.known) ^ set(self.listed)):
            self.model = keras.models.load_model(file)
        assert [v.path for v in self.variables] == PATHS
        self.reference.forget(self.listed)
        self.reference.build(self.listed)
        self.optimizer = self.model.optimizer
        self.train_traced, self.steps, self.patterns = False, {}, set()

    @contextlib.contextmanager
    def said_where(self, lost):
        """What a load leaves out or starts fresh is said in one warning, and nothing else is."""
        slots = self.setup.name != "sgdw" or self.setup.ema or self.setup.accumulate
        slots = slots or any(self.setup.decay(PATHS[i]).towards == "initial" for i in lost)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield
        expected = 1 if lost and slots else 0
        messages = [str(w.message) for w in said if "__array__" not in str(w.message)]
        assert len(messages) == expected, messages
        assert all(FOUND in message for message in messages)

    @rule(layer=one_of(*LAYERS), build=st.booleans())
    def freeze_or_unfreeze(self, layer, build):
        """Without `build`, the next `apply` or train step has to see that there are other variables."""
        layer = self.model.get_layer(layer)
        layer.trainable = not layer.trainable
        if not self.listed:
            layer.trainable = True
        self.compile(self.optimizer)
        if build:
            self.build(self.listed)

    @rule(jit=one_of(True, False))
    def recompile(self, jit):
        self.jit = {"tensorflow": jit, "jax": True, "torch": False}[BACKEND]
        self.compile(self.optimizer)

    @precondition(lambda self: self.setup.ema and self.reference.calls)
    @rule()
    def finalize(self):
        """What `fit` does in the end: weights become their averages."""
        self.optimizer.finalize_variable_values(self.at(self.reference.built))
        self.reference.overwrite(self.reference.built)

    # --- after each rule ---

    @invariant()
    def agrees(self):
        self.weights()
        self.frozen_weights()
        self.what_it_says()
        self.tables()

    def weights(self):
        reference = self.reference
        allowed = reference.allowance()
        found = {"weight": [numpy(v) for v in self.variables]}
        expected = {"weight": reference.values}
        if self.setup.ema and reference.calls:
            slots = {path.split("/")[-1]: value for path, value in state(self.optimizer).items()}
            found["average"] = [slots.get(f"{p.replace('/', '_')}_average") for p in PATHS]
            expected["average"] = reference.averages
        for what in found:
            for i, path in enumerate(PATHS):
                if expected[what][i] is None:
                    continue
                error = np.where(
                    reference.undecided[i], 0.0, np.abs(found[what][i] - expected[what][i])
                )
                assert np.all(error <= allowed[i]), (
                    f"{what} of {path} after {reference.calls} calls: off by {error}, "
                    f"at most {allowed[i]} is rounding"
                )

    def frozen_weights(self):
        """Not a bit of what has the multiplier 0 changes, but where averages are written back."""
        if self.setup.ema:
            return
        for variable, path, value in zip(self.variables, PATHS, self.setup.values(), strict=True):
            if self.setup.multiplier(path) == 0:
                assert np.array_equal(numpy(variable), value), path

    def what_it_says(self):
        reference, optimizer, close = self.reference, self.optimizer, {"rel": 2e-6, "abs": 1e-7}
        assert int(numpy(optimizer.iterations)) == reference.k
        assert float(numpy(optimizer.eta_t)) == pytest.approx(reference.eta, **close)
        rate = float(numpy(optimizer.learning_rate))
        assert rate == pytest.approx(reference.learning_rate, **close)
        at = reference.at
        if at.cycle_steps is None or at.position < at.cycle_steps:
            assert int(numpy(optimizer.t_cur)) == at.position

    def tables(self):
        built = [PATHS[i] for i in self.reference.built]
        decays = {p: self.setup.decay(p) for p in built}
        decays = {
            p: decay._replace(l2=self.reference.weight_decay) if decay.l2 is None else decay
            for p, decay in decays.items()
        }
        expected = {
            p: tuple(decay[:2]) if decay[2:] == oracle.Decay()[2:] else make_decay(decay)
            for p, decay in decays.items()
            if decay[:2] != (0, 0)
        }
        found = {
            path: (decay[0], falling_decay) if is_falling(decay) else decay
            for path, decay in self.optimizer.weight_decays.items()
        }
        assert found == expected
        multipliers = {p: self.setup.multiplier(p) for p in built}
        assert self.optimizer.lr_multipliers == {p: m for p, m in multipliers.items() if m != 1}


@pytest.mark.reliability
@pytest.mark.parametrize("cls", CLASSES)
def test_any_sequence(cls, record_property):
    names = tuple(name for name, (of, _) in FOLLOWED.items() if of == cls)
    run_state_machine_as_test(
        type(f"{cls}Sequences", (Sequences,), {"names": names}),
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    record_property("sequences", SEQUENCES)
