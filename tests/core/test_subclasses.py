"""What a user's class may do: scale the rate, read it, call its own attributes and slots as it likes."""

import keras
import numpy as np
import pytest
from keras import ops

from cases import BACKEND, COMPILED, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Lion, NadamW, decouple

OURS = [AdamW, NadamW, SGDW, Lion]
EAGER = {"eager": eager}
RUNNERS = EAGER | COMPILED if BACKEND == "torch" else COMPILED
RATES = {"constant": float, "schedule": lambda rate: CosineWarmRestarts(rate, 3, t_mul=2)}
every_class = pytest.mark.parametrize("cls", OURS)
every_runner = pytest.mark.parametrize("runner", RUNNERS)


def variables():
    rng = np.random.default_rng(0)
    return [make_variable(f"{n}/w", rng.normal(size=(3, 2)).astype("float32")) for n in "abc"]


def gradients(updates):
    rng = np.random.default_rng(1)
    return [[rng.normal(size=(3, 2)).astype("float32") for _ in "abc"] for _ in range(updates)]


def arguments(cls, **more):
    """One variable has another multiplier, one another kind of decay."""
    decays = {"b": Decay(0.125, cautious=True), "c": (0.01, 0.0)}
    rules = {"weight_decay": 0.0625, "weight_decays": decays, "lr_multipliers": {"c": 0.5}}
    own = {"momentum": 0.5} if cls is SGDW else {}
    return rules | own | more


def train(optimizer, runner="eager", updates=6):
    """The weights after each update."""
    ours = variables()
    optimizer.build(ours)
    step = (EAGER | RUNNERS)[runner](optimizer, ours)
    found = []
    for grads in gradients(updates):
        step(grads)
        found.append([numpy(v) for v in ours])
    return np.array(found)


def assert_same(one, other):
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


# --- the rate ---


class Plain(keras.optimizers.Optimizer):
    """Steps by the rate that it reads, and not by the one that it is given."""

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(self.learning_rate, variable.dtype)
        self.assign_sub(variable, rate * gradient)


@pytest.mark.parametrize(
    ("cls", "rate"),
    [
        (AdamW, "schedule"),
        (NadamW, "constant"),
        (SGDW, "schedule"),
        (Lion, "constant"),
        (Lion, "schedule"),
    ],
)
@every_runner
def test_a_subclass_reads_and_scales_the_rate(cls, rate, runner):
    """`self.learning_rate` in `update_step` is that of this update, and as large as the one that is given.

    Steps by both together are those at twice the rate. The decay is that at the rate itself.
    """

    class Twice(cls):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate + self.learning_rate)

    one = train(Twice(RATES[rate](0.25), **arguments(cls)), runner)
    assert_same(one, train(cls(RATES[rate](0.5), **arguments(cls)), runner))


@pytest.mark.parametrize(("rate", "steps"), [("constant", 1), ("schedule", 2)])
@every_runner
def test_a_decoupled_class_reads_the_rate(runner, rate, steps):
    """There it is the rate of the variable, with its multiplier. Gradients may accumulate."""
    if steps > 1 and runner == "eager" and BACKEND == "jax":
        runner = "jit"  # Keras calls jax.lax.cond, which eager JAX compiles at every update
    more = {"gradient_accumulation_steps": steps} if steps > 1 else {}
    ours = decouple(Plain)(learning_rate=RATES[rate](0.25), **arguments(None, **more))
    assert_same(
        train(ours, runner), train(SGDW(RATES[rate](0.25), **arguments(None, **more)), runner)
    )


def test_update_step_outside_of_an_update_is_an_error(monkeypatch):
    """If Keras renames our hook, its own loop calls `update_step` there. Nothing is computed, and the error says so."""
    optimizer, ours = AdamW(weight_decay=0.1), variables()
    grads = [ops.ones((3, 2)) for _ in ours]
    optimizer.apply(grads, ours)
    before = [numpy(v) for v in ours]
    match = r"`update_step` is called by `apply`.*Received.*this version of Keras does not fit"
    with pytest.raises(RuntimeError, match=match):
        optimizer.update_step(grads[0], ours[0], 0.1)
    for cls in AdamW.__mro__:
        if "_backend_update_step" in vars(cls) and cls.__module__.startswith("keras_decoupled"):
            monkeypatch.delattr(cls, "_backend_update_step")
    with pytest.raises(RuntimeError, match=match):
        optimizer.apply(grads, ours)
    np.testing.assert_array_equal([numpy(v) for v in ours], before)


# --- attributes and methods ---


def private_names():
    """Every name of ours that a user could not know of."""
    optimizer = AdamW(CosineWarmRestarts(0.25, 3), weight_decay=0.1)
    optimizer.build(variables())
    kd, found = optimizer._kd, set()
    parts = [kd, kd.algorithm, kd.registry, kd.registry.built[0], kd.registry.rules, kd.clock]
    for part in [*parts, kd.clock.timing, kd.clock.rate, kd.update, kd.update.on, kd.inside]:
        found |= {name for name in dir(part) if not name.startswith("__")}
    found |= {"_decay", "_rules", "_slots", "_table", "_timing", "_rate", "_cycle_start", "_change"}
    found |= {"_product", "_given_decay", "_on_tensors", "_fast_update", "_hyperparameters"}
    keras_names = {*dir(keras.optimizers.AdamW()), *dir(keras.optimizers.Lion())}
    return sorted(found - keras_names - {*dir(AdamW)})


@pytest.mark.parametrize(("cls", "rate"), [(AdamW, "schedule"), (Lion, "constant")])
def test_attributes_called_like_ours(cls, rate):
    names = private_names()
    assert {"step", "scalars", "begin", "registry", "_decay", "clock", "counter"} <= {*names}

    class Mine(cls):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            for name in names:
                setattr(self, name, 0.95)

    for kind in (Mine, type("Methods", (cls,), {name: lambda *_: 0.95 for name in names})):
        optimizer = kind(RATES[rate](0.25), **arguments(cls))
        assert_same(train(optimizer), train(cls(RATES[rate](0.25), **arguments(cls))))
        again = kind.from_config(optimizer.get_config())
        assert_same(train(again), train(cls.from_config(optimizer.get_config())))
        if kind is Mine:
            assert {getattr(optimizer, name) for name in names} == {0.95}


def test_attributes_of_a_decoupled_class_called_like_ours():
    """Each as an attribute, and each as a method."""
    names = private_names()

    class Mine(Plain):
        def __init__(self, learning_rate=0.1, **kwargs):
            super().__init__(learning_rate=learning_rate, **kwargs)
            for name in names:
                setattr(self, name, 0.95)

    methods = {name: lambda *_: 0.95 for name in names}
    for cls in (Mine, type("Methods", (Plain,), methods)):
        optimizer = decouple(cls)(learning_rate=0.25, **arguments(None))
        assert_same(train(optimizer), train(SGDW(0.25, **arguments(None))))


@pytest.mark.parametrize("name", ["restart", "fast", "t_cur", "learning_rate"])
def test_a_documented_name_is_refused(name):
    """The error says which one is taken, and what to do."""

    class Attribute(Plain):
        def __init__(self, learning_rate=0.1, **kwargs):
            super().__init__(learning_rate=learning_rate, **kwargs)
            setattr(self, name, 0.95)

    with pytest.raises(ValueError, match=rf"already define.*Received.*`{name}`.*Rename it"):
        decouple(Attribute)(learning_rate=0.1, weight_decay=0.1)
    if name != "learning_rate":  # a method of Keras' own, which any class may override
        method = type("Method", (Plain,), {name: lambda *_: 0.95})
        with pytest.raises(ValueError, match=rf"already define.*Received.*`{name}`.*Rename it"):
            decouple(method)


# --- slots ---

SLOTS = ["learning_rate", "weight_decay", "learning_rate_factor", "iteration", "cycle_start"]
SLOTS += ["average", "master", "reference", "gradient_accumulator", "momentum_product"]


class WithSlots(keras.optimizers.Optimizer):
    """Rprop, say, has a slot "learning_rate" for each variable. Each has another value here."""

    def build(self, variables):
        super().build(variables)
        self.own = [self.add_optimizer_variables(variables, name) for name in SLOTS]
        if not hasattr(self, "scalar"):
            self.scalar = [self.add_variable((), name=name) for name in SLOTS]

    def update_step(self, gradient, variable, learning_rate):
        place = self._get_variable_index(variable)
        for i, (slots, scalar) in enumerate(zip(self.own, self.scalar, strict=True)):
            self.assign_add(slots[place], (i + 1.0) * gradient)
            self.assign_add(scalar, i + 1.0)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * gradient)


class Direct(WithSlots, AdamW):
    """The same, derived from a class of ours."""

    def update_step(self, gradient, variable, learning_rate):
        WithSlots.update_step(self, gradient, variable, learning_rate)


@pytest.mark.parametrize("make", [decouple(WithSlots), Direct], ids=["decoupled", "derived"])
@pytest.mark.parametrize(("use_ema", "rate"), [(False, "schedule"), (True, "constant")])
def test_slots_called_like_ours(make, use_ema, rate):
    """Each comes back from a file, into the variable that it belongs to, and without a word."""
    decay = {"weight_decay": Decay(0.1, towards="initial"), "use_ema": use_ema}
    optimizer = make(learning_rate=RATES[rate](0.25), **decay)
    train(optimizer, updates=2)
    store = {}
    optimizer.save_own_variables(store)
    loaded = make(learning_rate=RATES[rate](0.25), **decay)
    loaded.build(variables())
    loaded.load_own_variables(store)
    assert len(loaded.variables) == len(optimizer.variables)
    for a, b in zip(loaded.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b), err_msg=b.path)
    for i, (slots, scalar) in enumerate(zip(loaded.own, loaded.scalar, strict=True)):
        expected = sum(np.array(gradients(2)))
        np.testing.assert_allclose([numpy(s) for s in slots], (i + 1) * expected, rtol=1e-6)
        assert numpy(scalar) == 3 * 2 * (i + 1)


# --- the faster paths ---


@every_class
def test_a_class_that_changes_nothing_keeps_the_faster_paths(cls):
    """They go by what a class does, and not by its name."""

    class Documented(cls):
        """A user's own words."""

        def __init__(self, *args, mine=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.mine = mine

        def get_config(self):
            return super().get_config() | {"mine": self.mine}

    class Stepping(cls):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, learning_rate)

    class Assigning(cls):
        def assign(self, variable, value):
            super().assign(variable, value)

    def paths(kind):
        optimizer = kind(0.1, weight_decay=0.1)
        optimizer.build(variables())
        update = optimizer._kd.update
        return update.fast is not None, update.fast_step is not None

    of_ours = {
        "torch": (True, False),
        "tensorflow": (False, cls is not Lion),
        "jax": (False, False),
    }[BACKEND]
    assert paths(cls) == paths(Documented) == of_ours
    assert paths(Assigning) == (False, False)
    assert paths(Stepping) == (False, of_ours[1])  # an op for each variable is under `update_step`
    assert_same(train(Documented(0.25, **arguments(cls))), train(Stepping(0.25, **arguments(cls))))


# --- before the first build ---


def test_set_weights_before_build_is_keras_own_error():
    with pytest.raises(ValueError, match="has not yet been built"):
        AdamW(weight_decay=0.1).set_weights([np.ones(2)])


@pytest.mark.parametrize(
    ("cls", "policy"), [(AdamW, "mixed_bfloat16"), (Lion, "bfloat16"), (NadamW, "bfloat16")]
)
def test_a_model_that_fit_builds(cls, policy):
    """Averages, references and float32 copies start at the weights that `fit` has just made."""
    layer = keras.layers.Dense(4, name="one", dtype=policy, kernel_initializer="ones")
    model = keras.Sequential([layer])
    optimizer = cls(0.25, weight_decay=Decay(0.1, towards="initial"), use_ema=True)
    model.compile(optimizer, loss="mse")
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    model.fit(x, np.zeros((8, 4)), batch_size=4, epochs=1, verbose=0)
    for record in optimizer._kd.registry.built:
        for slot in record.slots.values():
            assert tuple(slot.shape) == tuple(record.variable.shape)
            assert np.all(np.isfinite(numpy(slot)))
        first = 0.0 if record.row.path.endswith("bias") else 1.0
        np.testing.assert_array_equal(numpy(record.reference), first)
