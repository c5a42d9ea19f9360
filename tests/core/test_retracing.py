"""Nothing is traced again after the first update: a compiled train step stays compiled.

The loss counts its own traces. Keras traces more than once at the first call; from then on the count must stand still,
whatever is done to rates and positions between updates.
"""

from functools import partial

import keras
import numpy as np
import pytest

from cases import BACKEND, VARIANTS, make_variable, restart, scale_rate, set_decay, warm_restarts
from keras_decoupled import Decay
from training import X, Y, linear, make

RESTARTS = {
    "learning_rate": warm_restarts(0.05, 3, t_mul=2, eta_min=0.1),
    "normalize_weight_decay": True,
}
CONFIGURATIONS = {
    "numbers": {
        "weight_decays": {"bias": (0.01, 0.0)},
        "lr_multipliers": {"kernel": 0.5},
        "clipnorm": 1.0,
    },
    "schedules": {
        **RESTARTS,
        "weight_decay": keras.optimizers.schedules.PolynomialDecay(0.1, 5, 0.01),
        "weight_decays": {"kernel": Decay(0.1, cautious=True, towards="initial")},
        "gradient_accumulation_steps": 2,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
    },
}


def read(optimizer):
    _ = optimizer.learning_rate, optimizer.eta_t, optimizer.t_cur, optimizer.get_config()


CHANGES = {
    "numbers read": read,
    "a rate set": scale_rate(0.5),
    "a rate assigned": lambda optimizer: optimizer.learning_rate.assign(0.01),
    "a decay set": set_decay(0.02),
    "a restart": restart(1),
}
OF_NUMBERS = ["numbers read", "a rate set", "a rate assigned", "a decay set"]
OF_SCHEDULES = ["numbers read", "a rate set", "a restart"]


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
        CHANGES[change](optimizer)
        step(X, Y)
        step(X, Y)
        assert len(traces) == first, f"traced again after {change}"


class Mover(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        for change in ("a rate set", "a restart"):
            CHANGES[change](self.model.optimizer)


if BACKEND != "torch":  # which runs everything as it is
    # on JAX without jit everything runs in Python, and nothing is traced
    @pytest.mark.parametrize(
        ("name", "configuration", "changes", "jit_compile", "dtype"),
        [
            ("adamw", "numbers", OF_NUMBERS, True, "float32"),
            ("nadamw", "schedules", OF_SCHEDULES, True, "bfloat16"),
            (
                "sgdw-momentum",
                "schedules",
                OF_SCHEDULES,
                "auto" if BACKEND == "jax" else False,
                "float32",
            ),
            ("adamw", "numbers", OF_NUMBERS[:1], True, "mixed_float16"),
        ],
    )
    def test_train_on_batch(name, configuration, changes, jit_compile, dtype):
        """A mixed_float16 model wraps the optimizer in a LossScaleOptimizer."""
        optimizer = make(name, **CONFIGURATIONS[configuration])
        assert_traced_once(optimizer, linear(dtype=dtype), changes, jit_compile=jit_compile)

    def test_fit():
        """Over epochs and calls of fit, with a callback that changes rate and position inside."""
        model, optimizer = linear(), make("nadamw", **RESTARTS)
        fit = partial(model.fit, batch_size=8, epochs=2, verbose=0, callbacks=[Mover()])
        assert_traced_once(optimizer, model, OF_SCHEDULES[1:], fit)


if BACKEND == "jax":

    @pytest.mark.parametrize(
        ("name", "configuration"),
        [*((name, "schedules") for name in VARIANTS), ("adamw", "numbers")],
    )
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


if BACKEND == "torch":

    def test_nothing_grows():
        """There is no tracing; instead no update keeps a tensor of the one before alive."""
        import gc

        import torch

        model, optimizer = linear(), make("adamw", **RESTARTS)
        counts = []
        gc.freeze()  # what is here already need not be looked through
        for _ in range(4):
            model.zero_grad()
            torch.mean((model(X) - torch.as_tensor(Y)) ** 2).backward()
            optimizer.apply([v.value.grad for v in model.trainable_variables], model.weights)
            gc.collect()
            kinds = map(type, gc.get_objects())
            counts.append(sum(kind in (torch.Tensor, torch.nn.Parameter) for kind in kinds))
        gc.unfreeze()
        assert 0 < counts[1] == counts[-1]
