"""Random sequences of what users do to one optimizer, compared with the float64 oracle after each of them.

Updates in eager and in compiled code by turns, gradients that are missing, rates set, restarts, files, layers frozen
and unfrozen, recompilations: alone each has its tests; here they meet, in the middle of an accumulation too.
"""

import contextlib
import json
import shutil
import tempfile
import warnings
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
from cases import ALPHA, BACKEND, COMPILED, make_decay, numpy
from effort import effort
from exact import model_of, output, row
from training import state, tensors

from .sequences import (
    CLASSES,
    FOLLOWED,
    LAYERS,
    PATHS,
    Reference,
    falling_decay,
    is_falling,
    micro_batch,
    one_of,
    seeds,
    setups,
)

SEQUENCES = effort(5 if BACKEND == "torch" else 2, 100)  # for each class
# Compiling takes most of the time. A sequence that has done it as often as drawn goes on eagerly.
TRACES = 10**6 if BACKEND == "torch" else 2

MISSING = "Gradients do not exist"
NO_DECAY = r"\w+ decays no variable"
PEAK = "`learning_rate` was set to"
FOUND = "optimizer variables were found in the file"


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
        if set(listed).isdisjoint(self.reference.built):  # it would take them for another model's
            self.build(self.listed)
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

    @rule(r=one_of(0.0, 0.25, 0.5, 1.0, 1.5), how=one_of("set", "scaled", "assigned"))
    def set_rate(self, r, how):
        """`scaled`: to r times what it is. `assigned`: what callbacks do to a stock optimizer with a constant rate."""
        optimizer, reference = self.optimizer, self.reference
        rate = r * ALPHA * reference.at.multiplier
        if how == "scaled":
            rate, r = r * float(numpy(optimizer.learning_rate)), r * reference.r
        if r > 2:  # η·λ stays far below 1
            return
        with ignoring(PEAK):
            if how == "assigned" and not self.setup.clock[0]:
                optimizer.learning_rate.assign(rate)
            else:
                optimizer.learning_rate = rate
        if reference.at.multiplier:
            reference.r = r
            reference.rates_set += 1
        else:
            with pytest.raises(ValueError, match="while the schedule is at 0"):
                optimizer.learning_rate = ALPHA

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
        """Without `build`, the next `apply` or train step has to see that there are other variables.

        If the optimizer knows none of them, it takes them for another model's. `build` has to come first.
        """
        layer = self.model.get_layer(layer)
        layer.trainable = not layer.trainable
        if not self.listed:
            layer.trainable = True
        self.compile(self.optimizer)
        if build or set(self.listed).isdisjoint(self.reference.built):
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
