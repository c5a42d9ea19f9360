"""Nothing is traced again after the first update: a compiled train step stays compiled.

The loss counts its own traces. Keras traces more than once at the first call; from then on the count must stand still,
whatever is done to rates and positions between updates.
"""

from functools import partial

import keras
import numpy as np
import pytest

from cases import BACKEND, VARIANTS, make_variable, numpy, warm_restarts
from keras_decoupled import Decay
from training import X, Y, linear, make

schedules = keras.optimizers.schedules

CONFIGURATIONS = {
    "plain": {},
    "rules": {"weight_decays": {"bias": (0.01, 0.0)}, "lr_multipliers": {"kernel": 0.5}},
    "restarts": {
        "learning_rate": warm_restarts(0.05, 3, t_mul=2, eta_min=0.1),
        "normalize_weight_decay": True,
    },
    "accumulation, EMA, clipping": {
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "clipnorm": 1.0,
    },
    "decay by a schedule": {"weight_decay": schedules.PolynomialDecay(0.1, 5, 0.01)},
    "a kind of decay": {"weight_decay": Decay(0.1, cautious=True, towards="initial")},
}


def move_rate(optimizer):
    optimizer.learning_rate = 0.5 * float(numpy(optimizer.learning_rate))


def assign_rate(optimizer):
    optimizer.learning_rate.assign(0.01)


def move_decay(optimizer):
    optimizer.weight_decay = 0.5 * float(optimizer.weight_decay)


def restart(optimizer):
    optimizer.restart(1)


def move_and_restart(optimizer):
    move_rate(optimizer)
    restart(optimizer)


def read(optimizer):
    _ = optimizer.learning_rate, optimizer.eta_t, optimizer.t_cur, optimizer.get_config()


def assert_traced_once(optimizer, model, changes, step=None, jit_compile="auto"):
    traces = []

    def loss(y_true, y_pred):
        traces.append(None)
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)

    model.compile(optimizer, loss=loss, jit_compile=jit_compile)
    step = step or model.train_on_batch
    step(X, Y)
    first = len(traces)
    assert first > 0
    step(X, Y)
    assert len(traces) == first, "the second update was traced again"
    for change in changes:
        change(optimizer)
        step(X, Y)
        step(X, Y)
        assert len(traces) == first, f"traced again after {change.__name__}"


class Mover(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        move_and_restart(self.model.optimizer)


if BACKEND != "torch":  # which runs everything as it is
    # on JAX without jit everything runs in Python, and nothing is traced
    @pytest.mark.parametrize(
        ("name", "jit_compile"),
        [("adamw", True), ("nadamw", "auto" if BACKEND == "jax" else False)],
    )
    @pytest.mark.parametrize("configuration", CONFIGURATIONS)
    def test_train_on_batch(name, configuration, jit_compile):
        optimizer = make(name, **CONFIGURATIONS[configuration])
        own = [restart, move_and_restart] if configuration == "restarts" else [assign_rate]
        own += [move_decay] * (configuration != "decay by a schedule")
        changes = [read, move_rate, *own]
        assert_traced_once(optimizer, linear(), changes, jit_compile=jit_compile)

    @pytest.mark.parametrize("name", VARIANTS)
    def test_fit(name):
        """Over epochs and calls of fit, with a callback that changes rate and position inside."""
        model, optimizer = linear(), make(name, **CONFIGURATIONS["restarts"])
        fit = partial(model.fit, batch_size=8, epochs=2, verbose=0, callbacks=[Mover()])
        assert_traced_once(optimizer, model, [move_rate, restart], fit)

    @pytest.mark.parametrize("name", ["adamw", "sgdw-momentum"])
    @pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16"])
    def test_low_precision(name, dtype):
        optimizer = make(name)
        if dtype == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        assert_traced_once(optimizer, linear(dtype=dtype), [move_rate])


if BACKEND == "jax":

    @pytest.mark.parametrize("configuration", CONFIGURATIONS)
    @pytest.mark.parametrize("name", VARIANTS)
    def test_stateless_apply(name, configuration):
        """What comes out has the types of what goes in, weak ones too, so that it can go in again."""
        import jax

        variables = [make_variable("kernel", np.ones((3, 2))), make_variable("bias", np.ones(2))]
        optimizer = make(name, **CONFIGURATIONS[configuration])
        optimizer.build(variables)
        apply = jax.jit(optimizer.stateless_apply)
        weights = [v.value for v in variables]
        state = [v.value for v in optimizer.variables]
        grads = [np.ones((3, 2), "float32"), np.ones(2, "float32")]
        for _ in range(3):
            new_weights, new_state = apply(state, grads, weights)
            for before, after in zip([*weights, *state], [*new_weights, *new_state], strict=True):
                assert (before.dtype, before.weak_type) == (after.dtype, after.weak_type)
            weights, state = new_weights, new_state
        assert apply._cache_size() == 1


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("name", VARIANTS)
    def test_tf_function(name, jit_compile):
        import tensorflow as tf

        variable = make_variable("kernel", np.ones((3, 2)))
        optimizer = make(name, **CONFIGURATIONS["restarts"])
        optimizer.build([variable])
        step = tf.function(lambda g: optimizer.apply([g], [variable]), jit_compile=jit_compile)
        for change in [read, move_rate, restart, move_and_restart]:
            step(tf.ones((3, 2)))
            change(optimizer)
        step(tf.ones((3, 2)))
        assert step.experimental_get_tracing_count() == 1


if BACKEND == "torch":

    def test_nothing_grows():
        """There is no tracing; instead no update keeps a tensor of the one before alive."""
        import gc

        import torch

        def alive():
            gc.collect()
            return sum(type(x) in (torch.Tensor, torch.nn.Parameter) for x in gc.get_objects())

        model, optimizer = linear(), make("adamw", **CONFIGURATIONS["restarts"])
        counts = []
        for _ in range(4):
            model.zero_grad()
            torch.mean((model(X) - torch.as_tensor(Y)) ** 2).backward()
            optimizer.apply([v.value.grad for v in model.trainable_variables], model.weights)
            counts.append(alive())
        assert counts[1] == counts[-1]
