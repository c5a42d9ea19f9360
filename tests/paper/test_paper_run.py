"""A step of benchmarks/paper, whose rate and decay are inputs, beside the optimizer as a user writes it."""

import functools

import keras
import numpy as np
import pytest

import experiments
from cases import BACKEND
from keras_decoupled import SGDW, AdamW, Decay

RATE, DECAY = 0.02, 0.3  # α, and λ, l1, α·w or the penalty's w
ETA = (1.0, 0.5, 0.25)

AS_WRITTEN = {
    "adamw": functools.partial(AdamW, RATE, weight_decay=DECAY),
    "adamw-eta0": functools.partial(AdamW, RATE, weight_decay=Decay(DECAY, eta_power=0)),
    "adamw-eta2": functools.partial(AdamW, RATE, weight_decay=Decay(DECAY, eta_power=2)),
    "adamw-cautious": functools.partial(AdamW, RATE, weight_decay=Decay(DECAY, cautious=True)),
    "adamw-initial": functools.partial(AdamW, RATE, weight_decay=Decay(DECAY, towards="initial")),
    "adamw-l1": functools.partial(AdamW, RATE, weight_decay=Decay(l1=DECAY)),
    "adamw-soft": functools.partial(AdamW, RATE, weight_decay=Decay(l1=DECAY, soft_threshold=True)),
    "sgdw": functools.partial(SGDW, RATE, momentum=0.9, weight_decay=DECAY),
    "keras-adamw": functools.partial(keras.optimizers.AdamW, RATE, weight_decay=DECAY / RATE),
    "adam-l1": functools.partial(keras.optimizers.Adam, RATE),
    "adam-l2": functools.partial(keras.optimizers.Adam, RATE),
    "sgd-l2": functools.partial(keras.optimizers.SGD, RATE, momentum=0.9),
}
# The penalty's gradient, of a kernel.
PENALTIES = {
    "l1": lambda kernel: DECAY * keras.ops.sign(kernel),
    "l2": lambda kernel: DECAY * kernel,
}

if BACKEND == "jax":  # what the experiments run on
    import jax

    import fine_tuning
    import one_run
    from fashion import Part
    from one_run import ALGORITHMS, Program, course, decay_input
    from results import Cell

    def images(count):
        rng = np.random.default_rng(0)
        pictures = rng.standard_normal((count, 28, 28, 1)).astype("float32")
        return Part(pictures, rng.integers(0, 10, count).astype("int32"))

    def cell(algorithm, schedule="cosine", epochs=1):
        return Cell(algorithm, schedule, RATE, DECAY, 12, epochs, epochs, batch=4, seed=0)

    @functools.cache
    def gradient():
        """The compiled gradient of the loss without a penalty."""
        model = one_run.network()

        def loss(weights, averages, x, y):
            logits, averages = model.stateless_call(weights, averages, x, training=True)
            crossed = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
            return keras.ops.mean(crossed), averages

        return jax.jit(jax.grad(loss, has_aux=True))

    def written_out(model, optimizer, penalty, x, y):
        """Train a model with an optimizer whose learning rate is set, as a callback does."""
        kernels = [variable.name == "kernel" for variable in model.trainable_variables]
        for eta in ETA:
            optimizer.learning_rate = eta * RATE
            weights, averages = (
                [variable.value for variable in variables]
                for variables in (model.trainable_variables, model.non_trainable_variables)
            )
            grads, averages = gradient()(weights, averages, x, y)
            grads = [
                grad + penalty(weight) if kernel else grad
                for grad, weight, kernel in zip(grads, weights, kernels, strict=True)
            ]
            optimizer.apply(grads, model.trainable_variables)
            for variable, value in zip(model.non_trainable_variables, averages, strict=True):
                variable.assign(value)
        return [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]

    @pytest.mark.parametrize("algorithm", ALGORITHMS)
    def test_a_step_is_that_of_the_optimizer(algorithm):
        x, y = images(4)
        program = Program(cell(algorithm), (Part(x, y),) * 3)
        model, optimizer = program.model, AS_WRITTEN[algorithm]()
        penalized = algorithm in one_run.PENALTIES
        if not penalized:
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        optimizer.build(model.trainable_variables)
        start = weights = [v.value for v in model.trainable_variables]
        averages = [v.value for v in model.non_trainable_variables]
        state = [v.value for v in program.optimizer.variables]
        decay = np.float32(decay_input(cell(algorithm)))
        for eta in ETA:
            rate = np.float32(eta * RATE)
            weights, averages, state = program.step(weights, averages, state, x, y, rate, decay)
        penalty = PENALTIES[algorithm[-2:]] if penalized else keras.ops.zeros_like
        wanted = written_out(model, optimizer, penalty, x, y)
        for a, b, before in zip(weights, wanted, start, strict=True):
            # Over the whole variable: Adam makes a step of the rounding of a gradient near 0.
            assert np.linalg.norm(a - b) <= 1e-3 * np.linalg.norm(b - before)

    def test_a_run_is_a_function_of_its_cell():
        program = Program(cell("adamw"), (images(12),) * 3)
        first, again = (dict(program.run(cell("adamw"))) for _ in range(2))
        assert first == again
        assert list(first) == [1]

    def test_fine_tuning_starts_from_pretrained_weights_and_decays_towards_them(monkeypatch):
        """Without a gradient only the decay moves the body, and the head stays."""
        pretrained, others = one_run.network(), one_run.network()
        known = [v.value + 1 for v in pretrained.trainable_variables]
        averages = [v.value for v in pretrained.non_trainable_variables]
        monkeypatch.setattr(fine_tuning, "pretrained", lambda seed: (known, averages))
        monkeypatch.setattr(fine_tuning, "APART", 4)
        x, _ = images(12)
        data = (Part(x, np.tile(np.arange(10, dtype="int32"), 2)[:12]),) * 3
        ends = {}
        for algorithm in experiments.FINE_TUNING:
            run = cell(algorithm + experiments.FINE_TUNED)._replace(images=4)
            program = fine_tuning.Program(run, data)
            assert set(program.training.labels) == set(fine_tuning.NEW)
            weights, _, state = program.start(run)
            for got, wanted in zip(weights[:-2], known[:-2], strict=True):
                np.testing.assert_array_equal(got, wanted)
            assert not np.array_equal(weights[-2], known[-2])
            still = [np.zeros_like(w) for w in weights]
            step = jax.jit(program.optimizer.stateless_apply)
            state = [*state[: program.rate_at], RATE, *state[program.rate_at + 1 :]]
            program.given.value = decay_input(run)
            moved = [2 * np.asarray(w) for w in weights]
            ends[algorithm], _ = step(state, still, moved)
        for v, start, zero, initial in zip(
            others.trainable_variables, weights, ends["adamw"], ends["adamw-initial"], strict=True
        ):
            decayed = v.name == "kernel" and "head" not in v.path
            np.testing.assert_allclose(zero, start * (2 - 2 * DECAY * decayed), rtol=1e-5)
            np.testing.assert_allclose(initial, start * (2 - DECAY * decayed), rtol=1e-5)

    def test_the_share_of_exact_zeros_is_counted():
        program = Program(cell("adamw"), (images(12),) * 3)
        weights, averages, _ = program.start(cell("adamw"))
        assert program.scores(weights, averages).zeros == 0
        weights = [w * (np.arange(w.shape[-1]) % 2) if w.ndim > 1 else w for w in weights]
        assert program.scores(weights, averages).zeros == 0.5

    def test_restarts_normalize_the_decay_of_each_cycle():
        """Cycles of 2, 4 and 8 epochs of 3 updates: λ·√(T of all/T of the cycle)."""
        eta, factors = course(cell("adamw", "restarts 2", epochs=14))
        np.testing.assert_allclose(eta[[0, 6, 18]], 1)
        np.testing.assert_allclose(eta[[5, 17, 41]], 0, atol=1e-7)
        np.testing.assert_allclose(factors[[0, 6, 18, 41]], np.sqrt(14 / np.array([2, 4, 8, 8])))

    def test_other_courses_leave_the_decay():
        for schedule, last in (("cosine", 0), ("constant", 1)):
            eta, factors = course(cell("adamw", schedule, epochs=2))
            assert eta[0] == 1
            assert eta[-1] == pytest.approx(last, abs=1e-7)
            np.testing.assert_array_equal(factors, 1)
