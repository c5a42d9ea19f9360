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
    VARIANTS,
    eager,
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


@pytest.mark.parametrize("runner", COMPILED)
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_scale_is_taken_out(name, runner):
    """A scale that is a power of 2 changes nothing."""
    plain, scaled = (make_variable("w", np.array([1.0, -2.0])) for _ in range(2))
    wrapper = LossScale(annealed(name), initial_scale=8.0)
    steps = RUNNERS[runner](annealed(name), [plain]), RUNNERS[runner](wrapper, [scaled])
    for _ in range(4):
        steps[0]([G])
        steps[1]([8 * G])
    np.testing.assert_allclose(numpy(scaled), numpy(plain), atol=1e-7)
    assert int(numpy(wrapper.inner_optimizer.t_cur)) == 1


MORE = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "average, clipping": {"use_ema": True, "ema_overwrite_frequency": 2, "clipnorm": 0.5},
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("name", "bad", "more"),
    [
        ("adamw-amsgrad", np.inf, "plain"),
        ("nadamw", np.nan, "average, clipping"),
        ("nadamw", np.nan, "accumulation"),
        ("sgdw-momentum", -np.inf, "accumulation"),
    ],
)
def test_a_non_finite_gradient_skips_everything(name, runner, bad, more, dtype):
    """Weights, moments, averages, finer copies, decay, products, position: only the scale moves."""
    variable = make_variable("w", np.array([1.0, -2.0]), dtype)
    wrapper = LossScale(annealed(name, **MORE[more]), initial_scale=4.0)
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


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_skipped_steps_leave_the_run_as_if_they_had_not_been(name):
    """Scales are powers of two: the good steps of both runs compute the same numbers."""
    ends = []
    for spoilt in (True, False):
        model = linear(dtype="mixed_float16")
        inner = annealed(name, weight_decay=0.1, use_ema=True, ema_momentum=0.5)
        model.compile(LossScale(inner, initial_scale=4.0), loss="mse")
        for k in range(8):
            model.train_on_batch(X[k::8], Y[k::8])
            if spoilt and k % 3 == 0:
                model.train_on_batch(np.full_like(X, np.nan), Y)
        assert int(numpy(inner.iterations)) == 8
        ends.append([*values(model.weights), *values(inner.variables)])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "Lion"])
def test_two_batches_with_a_nan_are_as_if_they_had_not_been(name):
    """20 updates in float32 under a scale of 1, the docs' recipe: the same numbers as without these two."""
    own = {"weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.5, "global_clipnorm": 1.0}
    ends = []
    for spoilt in ((4, 13), ()):
        model = linear()
        inner = Lion(warm_restarts(0.05, 3), **own) if name == "Lion" else annealed(name, **own)
        model.compile(LossScale(inner, initial_scale=1.0), loss="mse")
        for k in range(18):
            if k in spoilt:
                x = X.copy()
                x[3, 0] = np.nan
                model.train_on_batch(x, Y)
            model.train_on_batch(X[k % 8 :: 8], Y[k % 8 :: 8])
        assert int(numpy(inner.iterations)) == 18
        assert float(numpy(model.optimizer.dynamic_scale)) == 0.5 ** len(spoilt)
        ends.append([*values(model.weights), *values(inner.variables)])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_rate_passes_through_and_the_inner_optimizer_restarts():
    variable = make_variable("w", np.array([1.0, -2.0]))
    wrapper = LossScale(make("sgdw"), initial_scale=1.0)
    run = oracle_of("sgdw", values([variable]))
    step = COMPILED_RUNNER(wrapper, [variable])
    for rate in (0.05, 0.02, 0.08):
        wrapper.learning_rate = run.learning_rate = rate
        assert float(numpy(wrapper.learning_rate)) == pytest.approx(rate)
        assert float(numpy(wrapper.inner_optimizer.learning_rate)) == pytest.approx(rate)
        step([G])
        run.step([G])
    np.testing.assert_allclose(numpy(variable), run.values[0], atol=1e-6)

    wrapper = LossScale(annealed())
    step, inner = COMPILED_RUNNER(wrapper, [variable]), wrapper.inner_optimizer
    for expected in (1, 2):
        step([G])
        assert int(numpy(inner.t_cur)) == expected
    inner.restart()
    assert int(numpy(inner.t_cur)) == 0
    step([G])
    assert int(numpy(inner.t_cur)) == 1


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("adamw-amsgrad", "mixed_float16"),
        ("nadamw", "mixed_bfloat16"),
        ("sgdw-momentum", "float16"),
    ],
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
        assert_goes_on_the_same(again, keras.models.load_model(tmp_path / "again.keras"))
    finally:
        keras.config.set_dtype_policy("float32")


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

    def test_each_optimizer_has_its_variables_and_keys_through_a_file_too(tmp_path):
        model, optimizer = encoder_and_head(), multi()
        model.compile(optimizer, loss="mse")
        fit(model, 2)
        encoder, rest = optimizer.optimizers
        assert {p.split("/")[-2] for p in encoder.weight_decays} == {"encoder"}
        assert {p.split("/", 1)[-1] for p in encoder.weight_decays} <= {"kernel", "encoder/kernel"}
        assert list(encoder.lr_multipliers.values()) == [0.5, 0.5]
        assert list(rest.weight_decays.values()) == [(0.01, 0.02)] * 2
        assert int(numpy(encoder.iterations)) == int(numpy(rest.iterations)) == 4
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        assert_have_their_rules(optimizer, again.optimizer)
        assert_goes_on_the_same(model, again)

    def test_a_key_of_another_optimizers_variables_is_an_error():
        with pytest.raises(ValueError, match="head"):
            multi(weight_decays={"head": 0.1}).build(encoder_and_head().trainable_variables)

    @pytest.mark.parametrize("runner", COMPILED)
    def test_multi_optimizer_computes_what_each_alone_does(runner):
        together, alone = (
            [make_variable(p, np.array([1.0, -2.0])) for p in ("encoder/w", "head/w")]
            for _ in range(2)
        )
        inner = keras.optimizers.OptimizerMap(make("nadamw"), {"encoder/w": make("adamw-amsgrad")})
        step = RUNNERS[runner](keras.optimizers.MultiOptimizer(inner), together)
        ones = eager(make("adamw-amsgrad"), alone[:1]), eager(make("nadamw"), alone[1:])
        for _ in range(3):
            step([G, -G])
            ones[0]([G])
            ones[1]([-G])
        np.testing.assert_allclose(values(together), values(alone), atol=1e-6)

    @pytest.mark.parametrize("trained", [False, True])
    def test_multi_optimizer_config(trained):
        model, optimizer = encoder_and_head(), multi()
        if trained:
            model.compile(optimizer, loss="mse")
            fit(model, 1)
        config = keras.optimizers.serialize(optimizer)
        again = keras.optimizers.deserialize(json.loads(json.dumps(config)))  # it changes its own
        assert keras.optimizers.serialize(again) == config
        again.build(encoder_and_head().trainable_variables)
        if trained:
            assert_have_their_rules(optimizer, again)

    def test_a_multi_optimizer_in_a_loss_scale_optimizer():
        model = encoder_and_head()
        model.compile(LossScale(multi()), loss="mse")
        fit(model, 2)
        encoder, rest = model.optimizer.inner_optimizer.optimizers
        assert int(numpy(encoder.iterations)) == int(numpy(rest.iterations)) == 4
        assert all(np.isfinite(w).all() for w in values(model.weights))


# --- copies ---

COPIES = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "config": lambda x: keras.optimizers.deserialize(keras.optimizers.serialize(x)),
}


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("name", ONE_OF_EACH)
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
        copied = COPIES[how](wrapper)
        model = encoder_and_head()
        model.compile(copied, loss="mse", run_eagerly=BACKEND == "tensorflow")  # else it compiles
        fit(model, 1)
        assert all(np.isfinite(w).all() for w in values(model.weights))
