"""What the tests that train share: optimizers by name, one least-squares problem, and ways to train a model on it."""

import contextlib
from functools import partial

import keras
import numpy as np

import oracle
from cases import ALGORITHMS, ALPHA, BACKEND, OPTIMIZERS, numpy

DECAY = 0.03

_rng = np.random.default_rng(3)
X = _rng.normal(size=(16, 3)).astype("float32")
Y = (X @ np.array([[1.0, -2.0], [0.5, 1.5], [-1.0, 0.3]]) + np.array([0.7, -0.4])).astype("float32")


def make(name, /, **arguments):
    """An optimizer of the table `OPTIMIZERS`, with a learning rate and a decay where none is given."""
    import keras_decoupled

    cls, own = OPTIMIZERS[name]
    defaults = {"learning_rate": ALPHA, "weight_decay": DECAY}
    return getattr(keras_decoupled, cls)(**defaults | own | arguments)


def oracle_of(name, values, l2=DECAY, alpha=ALPHA, **arguments):
    cls, own = OPTIMIZERS[name]
    return oracle.Run(
        partial(ALGORITHMS[cls], **own), values, alpha, [(0.0, l2)] * len(values), **arguments
    )


def linear(**arguments):
    """X → Y in one layer, "linear"; starts where the optimum is not."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="linear", **arguments)])
    model.layers[0].set_weights([np.full((3, 2), 0.5, "float32"), np.full(2, -0.5, "float32")])
    return model


def mse(kernel, bias):
    return np.mean((X @ kernel + bias - Y) ** 2)


def mse_gradients(kernel, bias):
    error = 2 * (X @ kernel + bias - Y) / Y.size
    return [X.T @ error, error.sum(0)]


def values(variables):
    return [numpy(v) for v in variables]


def state(optimizer):
    """Every optimizer variable by its path, exactly."""
    found = {v.path: numpy(v) for v in optimizer.variables}
    assert len(found) == len(optimizer.variables), "two optimizer variables of one path"
    return found


def tensors(grads, dtype="float32"):
    return [None if g is None else keras.ops.convert_to_tensor(g, dtype) for g in grads]


def assert_no_graph(optimizer, variables):
    """On torch variables stay leaves; nothing hangs on a graph that would grow at each step."""
    if BACKEND == "torch":
        assert all(v.value.is_leaf and v.value.requires_grad for v in variables)
        assert not any(v.value.requires_grad or v.value.grad_fn for v in optimizer.variables)


class Weights(keras.callbacks.Callback):
    """The weights after each batch, from the first on, and how many updates there were."""

    def __init__(self):
        super().__init__()
        self.seen, self.updates = [None], [0]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())
        self.updates.append(int(self.model.optimizer.iterations))


# --- ways to train: name -> function of (optimizer, model, updates) ---


def by_apply(optimizer, model, updates):
    for _ in range(updates):
        optimizer.apply(tensors(mse_gradients(*values(model.weights))), model.trainable_variables)


def by_apply_gradients(optimizer, model, updates):
    for _ in range(updates):
        grads = tensors(mse_gradients(*values(model.weights)))
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))


def by_train_on_batch(optimizer, model, updates, **arguments):
    model.compile(optimizer, loss="mse", **arguments)
    for _ in range(updates):
        model.train_on_batch(X, Y)


def by_fit(optimizer, model, updates, **arguments):
    model.compile(optimizer, loss="mse", **arguments)
    model.fit(X, Y, batch_size=len(X), epochs=updates, shuffle=False, verbose=0)


def _tape(optimizer, model, updates, wrap=lambda f: f):
    import tensorflow as tf

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(X) - Y) ** 2)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))

    step = wrap(step)
    for _ in range(updates):
        step()


def _tape_in_a_function(optimizer, model, updates):
    import tensorflow as tf

    _tape(optimizer, model, updates, tf.function)


def _backward(optimizer, model, updates, no_grad):
    import torch

    for _ in range(updates):
        model.zero_grad()
        loss = torch.mean((model(X) - torch.as_tensor(Y)) ** 2)
        loss.backward()
        with torch.no_grad() if no_grad else contextlib.nullcontext():
            grads = [v.value.grad for v in model.trainable_variables]
            optimizer.apply(grads, model.trainable_variables)


def _stateless(optimizer, model, updates):
    import jax

    optimizer.build(model.trainable_variables)

    def loss(weights):
        prediction, _ = model.stateless_call(weights, [], X)
        return jax.numpy.mean((prediction - Y) ** 2)

    @jax.jit
    def step(weights, variables):
        _, grads = jax.value_and_grad(loss)(weights)
        return optimizer.stateless_apply(variables, grads, weights)

    weights = [v.value for v in model.trainable_variables]
    variables = [v.value for v in optimizer.variables]
    for _ in range(updates):
        weights, variables = step(weights, variables)
    assert step._cache_size() == 1  # traced once
    for variable, value in zip(
        [*model.trainable_variables, *optimizer.variables], [*weights, *variables], strict=True
    ):
        variable.assign(value)


LOOPS = {
    "apply": by_apply,
    "apply_gradients": by_apply_gradients,
    "train_on_batch": by_train_on_batch,
} | {
    "jax": {"stateless_apply": _stateless},
    "tensorflow": {"tape": _tape, "tape in a function": _tape_in_a_function},
    "torch": {
        "backward": partial(_backward, no_grad=False),
        "backward, no_grad": partial(_backward, no_grad=True),
    },
}[BACKEND]

FITS = {"fit": by_fit, "fit, eager": partial(by_fit, run_eagerly=True)}
if BACKEND != "torch":  # there is no compilation, and no steps_per_execution
    FITS |= {
        "fit, jit": partial(by_fit, jit_compile=True),
        "fit, no jit": partial(by_fit, jit_compile=False),
    }


def batches_of_syncs(model, monkeypatch):
    """Give a list, to which the optimizer's count is added each time that JAX brings the model's state back."""
    batches = []
    name = "state_sync" if hasattr(model, "state_sync") else "jax_state_sync"  # to Keras 3.15
    sync = getattr(model, name)

    def counted():
        state = getattr(model, "_jax_state", None)
        if state and not model._jax_state_synced:
            batches.append(int(state["optimizer_variables"][0]))
        sync()

    monkeypatch.setattr(model, name, counted)
    return batches
