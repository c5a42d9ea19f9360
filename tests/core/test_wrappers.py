"""Inside LossScaleOptimizer and MultiOptimizer, and as a copy: pickled, deep-copied, with the model's file."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest

from cases import (
    BACKEND,
    COMPILED,
    ONE_OF_EACH,
    eager,
    eager_with_cond,
    make_variable,
    numpy,
    warm_restarts,
)
from keras_decoupled import Lion
from training import X, Y, linear, make, oracle_of, state, values

# Outside jit, Keras' LossScaleOptimizer does not work on JAX: its lax.cond assigns to variables.
RUNNERS = COMPILED if BACKEND == "jax" else {"eager": eager, **COMPILED}
COMPILED_RUNNER = next(iter(COMPILED.values()))
LossScale = keras.optimizers.LossScaleOptimizer
HAS_MULTI = hasattr(keras.optimizers, "MultiOptimizer")  # since Keras 3.15
G = np.array([0.5, -1.0], "float32")


def annealed(name="adamw", /, **arguments):
    schedule = warm_restarts(0.05, 3, t_mul=2, eta_min=0.1)
    return make(name, learning_rate=schedule, normalize_weight_decay=True, **arguments)


def fit(model, epochs):
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0)


def assert_goes_on_the_same(model, again):
    """Two models, one of them come from a file or a copy, make the same updates from here."""
    assert_equal(model, again, atol=0)
    fit(model, 2)
    fit(again, 2)
    assert_equal(model, again, atol=1e-6)


def assert_equal(model, again, atol):
    for a, b in zip(values(model.weights), values(again.weights), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)
    ours, theirs = model.optimizer.variables, again.optimizer.variables
    for a, b in zip(values(ours), values(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5 if atol else 0)


# --- LossScaleOptimizer ---


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_scale_is_taken_out_and_the_rate_passes_through(name):
    variable = make_variable("w", np.array([1.0, -2.0]))
    wrapper = LossScale(make(name), initial_scale=8.0)
    run = oracle_of(name, values([variable]))
    step = COMPILED_RUNNER(wrapper, [variable])
    for rate in (0.05, 0.02, 0.08):
        wrapper.learning_rate = run.learning_rate = rate
        assert float(numpy(wrapper.learning_rate)) == pytest.approx(rate)
        assert float(numpy(wrapper.inner_optimizer.learning_rate)) == pytest.approx(rate)
        step([8 * G])
        run.step([G])
    np.testing.assert_allclose(numpy(variable), run.values[0], atol=1e-6)


ACCUMULATION = {"gradient_accumulation_steps": 2}
AVERAGE_AND_CLIPPING = {"use_ema": True, "ema_overwrite_frequency": 2, "clipnorm": 0.5}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("name", "bad", "more", "dtype"),
    [
        ("adamw-amsgrad", np.inf, {}, "float16"),
        ("nadamw", np.nan, ACCUMULATION, "float32"),
        ("sgdw-momentum", -np.inf, ACCUMULATION | AVERAGE_AND_CLIPPING, "float16"),
    ],
)
def test_a_non_finite_gradient_skips_everything(name, runner, bad, more, dtype):
    """Weights, moments, averages, finer copies, decay, products, position: only the scale moves."""
    variable = make_variable("w", np.array([1.0, -2.0]), dtype)
    wrapper = LossScale(annealed(name, **more), initial_scale=4.0)
    wrapper.build([variable])
    step = RUNNERS[runner](wrapper, [variable])
    step([G])
    before, inner = numpy(variable), state(wrapper.inner_optimizer)
    step([np.array([bad, 1.0], "float32")])
    assert np.array_equal(numpy(variable), before)
    after = state(wrapper.inner_optimizer)
    assert all(np.array_equal(value, after[path]) for path, value in inner.items())
    assert float(numpy(wrapper.dynamic_scale)) == 2.0
    step([G])
    step([G])
    assert np.all(numpy(variable) != before)


SPOILT = X.copy()
SPOILT[3, 0] = np.nan


@pytest.mark.parametrize(
    ("name", "dtype", "scale"),
    [("nadamw", "float32", 1.0), ("Lion", "float32", 1.0), ("sgdw-momentum", "mixed_float16", 4.0)],
)
def test_batches_with_a_nan_are_as_if_they_had_not_been(name, dtype, scale):
    """In float32 under a scale of 1 it is the docs' recipe."""
    own = {"weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.5, "global_clipnorm": 1.0}
    ends = []
    for spoilt in ((4, 9), ()):
        model = linear(dtype=dtype)
        inner = Lion(warm_restarts(0.05, 3), **own) if name == "Lion" else annealed(name, **own)
        model.compile(LossScale(inner, initial_scale=scale), loss="mse")
        for k in range(12):
            if k in spoilt:
                model.train_on_batch(SPOILT, Y)
            model.train_on_batch(X[k % 8 :: 8], Y[k % 8 :: 8])
        assert int(numpy(inner.iterations)) == 12
        assert float(numpy(model.optimizer.dynamic_scale)) == scale * 0.5 ** len(spoilt)
        ends.append([*values(model.weights), *values(inner.variables)])
    for a, b in zip(*ends, strict=True):
        if dtype == "float32":
            np.testing.assert_array_equal(a, b)
        else:  # gradients near 0 lose digits where the scale is lower
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "policy"), [("nadamw", "mixed_float16"), ("sgdw-momentum", "float16")]
)
def test_low_precision_model_through_a_file(name, policy, tmp_path):
    """compile wraps the optimizer of a mixed_float16 model by itself."""
    keras.config.set_dtype_policy(policy)
    try:
        model = linear()
        model.compile(annealed(name, weight_decays={"bias": 0}), loss="mse")
        assert isinstance(model.optimizer, LossScale) == (policy == "mixed_float16")
        fit(model, 2)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        inner = getattr(again.optimizer, "inner_optimizer", again.optimizer)
        # Before 3.16 Keras gives a loaded Sequential paths without its name.
        assert {p.removeprefix("sequential/") for p in inner.weight_decays} == {"linear/kernel"}
        assert type(again.optimizer) is type(model.optimizer)
        assert_goes_on_the_same(model, again)
        again.save(tmp_path / "again.keras")
        assert_equal(again, keras.models.load_model(tmp_path / "again.keras"), atol=0)
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_load_leaves_other_numbers_than_those_of_the_file():
    """The wrapper loads by position, and asks nobody."""

    def make_wrapper(**numbers):
        wrapper = LossScale(make("adamw", **numbers), initial_scale=4.0)
        wrapper.build([make_variable("w", np.array([1.0, -2.0]))])
        return wrapper

    saved, here = make_wrapper(weight_decay=0.25), make_wrapper(weight_decay=0.125, beta_1=0.5)
    saved.inner_optimizer.beta_2 = 0.75
    here.inner_optimizer.beta_1 = 0.25
    stores = {}, {}
    saved.save_own_variables(stores[0])
    saved.inner_optimizer.save_own_variables(stores[1])
    here.load_own_variables(stores[0])
    here.inner_optimizer.load_own_variables(stores[1])
    inner = here.inner_optimizer
    assert (float(numpy(inner.weight_decay)), inner.beta_1, inner.beta_2) == (0.125, 0.25, 0.75)


# --- MultiOptimizer ---


def encoder_and_head():
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="encoder", activation="tanh"),
            keras.layers.Dense(2, name="head"),
        ],
        name="model",
    )


def multi(**of_encoder):
    """AdamW for the encoder and SGDW for the rest, each with keys of its own."""
    arguments = {"weight_decays": {"encoder/bias": 0}, "lr_multipliers": {"encoder": 0.5}}
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            annealed("sgdw-momentum", weight_decays={"head": (0.01, 0.02)}, name="rest"),
            {".*encoder/.*": make("adamw", **arguments | of_encoder, name="encoder")},
        )
    )


def assert_have_their_rules(optimizer, again):
    for a, b in zip(optimizer.optimizers, again.optimizers, strict=True):
        assert list(a.weight_decays.values()) == list(b.weight_decays.values())
        assert list(a.lr_multipliers.values()) == list(b.lr_multipliers.values())


if HAS_MULTI:

    def test_each_optimizer_has_its_variables_and_keys_through_a_config_and_a_file(tmp_path):
        model, optimizer = encoder_and_head(), multi()
        model.compile(LossScale(optimizer), loss="mse")
        fit(model, 2)
        encoder, rest = optimizer.optimizers
        assert {p.split("/")[-2] for p in encoder.weight_decays} == {"encoder"}
        assert {p.split("/", 1)[-1] for p in encoder.weight_decays} <= {"kernel", "encoder/kernel"}
        assert list(encoder.lr_multipliers.values()) == [0.5, 0.5]
        assert list(rest.weight_decays.values()) == [(0.01, 0.02)] * 2
        assert int(numpy(encoder.iterations)) == int(numpy(rest.iterations)) == 4
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert_have_their_rules(optimizer, again.optimizer.inner_optimizer)
        assert_goes_on_the_same(model, again)
        assert_have_their_rules(optimizer, through_a_config(optimizer))

    def test_a_config_before_training():
        through_a_config(multi())

    def through_a_config(optimizer):
        config = keras.optimizers.serialize(optimizer)
        again = keras.optimizers.deserialize(json.loads(json.dumps(config)))  # it changes its own
        assert keras.optimizers.serialize(again) == config
        again.build(encoder_and_head().trainable_variables)
        return again

    def test_a_key_of_another_optimizers_variables_is_an_error():
        with pytest.raises(ValueError, match="head"):
            multi(weight_decays={"head": 0.1}).build(encoder_and_head().trainable_variables)

    def test_multi_optimizer_computes_what_each_alone_does():
        """Also after a setting of one of them was set."""
        together, alone = (
            [make_variable(p, np.array([1.0, -2.0])) for p in ("encoder/w", "head/w")]
            for _ in range(2)
        )
        inside, outside = make("adamw-amsgrad"), make("adamw-amsgrad")
        inner = keras.optimizers.OptimizerMap(make("nadamw"), {"encoder/w": inside})
        step = COMPILED_RUNNER(keras.optimizers.MultiOptimizer(inner), together)
        ones = eager(outside, alone[:1]), eager(make("nadamw"), alone[1:])
        for k in range(4):
            if k == 2:
                inside.beta_1 = outside.beta_1 = 0.25
            first = G * (k + 1)
            step([first, -G])
            ones[0]([first])
            ones[1]([-G])
        np.testing.assert_allclose(values(together), values(alone), atol=1e-6)


# --- copies ---

COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "config": lambda x: keras.optimizers.deserialize(keras.optimizers.serialize(x)),
}


@pytest.mark.parametrize(("name", "how"), [("nadamw", "pickle"), ("sgdw-momentum", "deepcopy")])
def test_a_copied_model_goes_on_with_its_optimizer(name, how):
    """Keras pickles a model as its .keras file."""
    model = linear()
    model.compile(annealed(name, lr_multipliers={"bias": 0.5}), loss="mse")
    fit(model, 1)
    model.optimizer.restart(1)
    again = COPIES[how](model)
    assert int(numpy(again.optimizer.t_cur)) == 1
    assert list(again.optimizer.lr_multipliers.values()) == [0.5]
    assert_goes_on_the_same(model, again)


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_wrappers(how):
    for wrapper in [LossScale(annealed())] + ([multi()] if HAS_MULTI else []):
        ends = []
        for optimizer in (COPIES[how](wrapper), wrapper):
            ours = encoder_and_head().trainable_variables
            for v in ours:
                v.assign(np.full(v.shape, 0.5))
            eager_with_cond(optimizer, ours)([np.ones(v.shape, "float32") for v in ours])
            ends.append(values(ours))
        for copied, wanted in zip(*ends, strict=True):
            np.testing.assert_array_equal(copied, wanted)
            assert np.all(copied != 0.5)
