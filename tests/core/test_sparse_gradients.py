"""A sparse gradient is the dense gradient that it stands for: rows given twice add up, decay reaches every row."""

import keras
import numpy as np
import pytest

from cases import BACKEND, OPTIMIZERS, make_variable, numpy
from training import make, tensors, values

G = np.array([0.5, -1.0], "float32")
CLIPPING = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.2},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
    "accumulation, clipnorm": {"gradient_accumulation_steps": 2, "clipnorm": 0.5},
    "loss_scale_factor": {"loss_scale_factor": 2.0},
    "EMA": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2},
}
ROWS, DIM = 5, 2
INDICES = [
    [0, 3, 0],
    [1, 1, 3],
    [4, 0, 4],
    [3, 3, 3],
]  # a row may come more than once; 2 never does


def assert_sparse_is_dense(name, arguments, runner, sparse, dtype="float32"):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(ROWS, DIM)).astype("float32")
    final = []
    rows = rng.normal(size=(len(INDICES), 3, DIM)).astype("float32")
    for make_gradient in (_dense, sparse):
        variables = [
            keras.Variable(start, name="embeddings", dtype=dtype),
            keras.Variable(np.ones(2, "float32"), name="bias", dtype=dtype),
        ]
        optimizer = make(name, **arguments)
        apply = runner(_apply_to(optimizer, variables))
        for indices, values_ in zip(INDICES, rows, strict=True):
            apply(make_gradient(indices, values_, dtype), *tensors([G], dtype))
        final.append(values(variables))
    np.testing.assert_allclose(final[1][0], final[0][0], atol=1e-6)
    np.testing.assert_allclose(final[1][1], final[0][1], atol=1e-6)
    if name.startswith("sgdw") and not arguments:  # row 2 had no gradient: it decays all the same
        np.testing.assert_allclose(final[1][0][2], (1 - 0.03) ** 4 * start[2], rtol=1e-2)


def _apply_to(optimizer, variables):
    optimizer.build(variables)
    return lambda *grads: optimizer.apply(grads, variables)


def _dense(indices, rows, dtype):
    gradient = np.zeros((ROWS, DIM), "float32")
    np.add.at(gradient, indices, rows)
    return keras.ops.convert_to_tensor(gradient, dtype)


if BACKEND == "tensorflow":

    def indexed_slices(indices, rows, dtype):
        import tensorflow as tf

        return tf.IndexedSlices(
            tf.cast(rows, dtype), tf.constant(indices), tf.constant([ROWS, DIM])
        )

    def tf_runners():
        import tensorflow as tf

        return {
            "eager": lambda f: f,
            "graph": tf.function,
            "xla": tf.function(jit_compile=True),
        }

    @pytest.mark.parametrize(
        ("name", "runner"), [("adamw", "eager"), ("nadamw", "graph"), ("sgdw-momentum", "xla")]
    )
    @pytest.mark.parametrize("arguments", CLIPPING)
    def test_sparse_gradients(name, arguments, runner):
        assert_sparse_is_dense(name, CLIPPING[arguments], tf_runners()[runner], indexed_slices)

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_sparse_gradients_of_every_optimizer(name):
        assert_sparse_is_dense(name, {}, tf_runners()["graph"], indexed_slices)

    @pytest.mark.parametrize("arguments", ["plain", "accumulation, clipnorm"])
    def test_sparse_gradients_in_low_precision(arguments):
        runner = tf_runners()["graph"]
        rough = {"weight_decay": 0.03, **CLIPPING[arguments]}
        # a sum of duplicates may be rounded before or after: compare powers of two
        assert_sparse_is_dense("sgdw", rough, runner, _whole(indexed_slices), "bfloat16")

    def _whole(sparse):
        """Each row given once, so that no duplicates are summed in bfloat16."""

        def make_gradient(indices, rows, dtype):
            dense = numpy(_dense(indices, rows, dtype)).astype("float32")
            unique = sorted(set(indices))
            return sparse(unique, dense[unique], dtype)

        return make_gradient

    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("arguments", ["plain", "global_clipnorm", "accumulation"])
    def test_embedding_in_fit(arguments, jit_compile):
        """An embedding is a dense layer of one-hot rows."""
        ids = np.array([[0], [3], [1], [0], [3], [3]])
        targets = np.arange(12.0).reshape(6, 2)
        one_hot = np.eye(ROWS)[ids[:, 0]]
        start = np.random.default_rng(0).normal(size=(ROWS, DIM))
        final = []
        for x, layers in [
            (ids, [keras.layers.Embedding(ROWS, DIM, name="e"), keras.layers.Flatten()]),
            (one_hot, [keras.layers.Dense(DIM, use_bias=False, name="e")]),
        ]:
            model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
            model.set_weights([start])
            optimizer = make("adamw", **CLIPPING[arguments])
            model.compile(optimizer, loss="mse", jit_compile=jit_compile)
            model.fit(x, targets, batch_size=3, epochs=2, shuffle=False, verbose=0)
            final.append(numpy(model.weights[0]))
        np.testing.assert_allclose(*final, atol=1e-5)

    def test_embedding_in_a_mixed_precision_model():
        """LossScaleOptimizer hands sparse gradients on."""
        model = keras.Sequential(
            [
                keras.Input((2,), dtype="int32"),
                keras.layers.Embedding(ROWS, DIM, dtype="mixed_float16"),
                keras.layers.Flatten(),
                keras.layers.Dense(1, dtype="mixed_float16"),
            ]
        )
        before = numpy(model.weights[0])
        model.compile(
            keras.optimizers.LossScaleOptimizer(make("adamw"), initial_scale=2.0), loss="mse"
        )
        model.fit(np.array([[0, 1], [1, 1]]), np.ones((2, 1)), verbose=0, epochs=2)
        assert np.all(numpy(model.weights[0]) != before)


if BACKEND == "jax":

    @pytest.mark.parametrize("arguments", ["plain", "clipnorm", "global_clipnorm", "accumulation"])
    def test_sparse_gradients(arguments):
        """JAX's own sparse type, as keras.layers.Embedding and Keras' tests of optimizers know it."""
        from jax.experimental import sparse

        def bcoo(indices, rows, dtype):
            return sparse.BCOO((rows, np.array(indices)[:, None]), shape=(ROWS, DIM))

        assert_sparse_is_dense("adamw", CLIPPING[arguments], lambda f: f, bcoo)


if BACKEND == "torch":

    @pytest.mark.parametrize("arguments", ["plain", "clipnorm", "global_clipnorm", "accumulation"])
    def test_sparse_gradients(arguments):
        """Of `torch.nn.Embedding(sparse=True)`."""
        import torch

        def coo(indices, rows, dtype):
            rows = torch.as_tensor(rows)
            return torch.sparse_coo_tensor(
                [list(indices)], rows, (ROWS, DIM), check_invariants=True
            )

        assert_sparse_is_dense("adamw", CLIPPING[arguments], lambda f: f, coo)

    def test_a_sparse_gradient_after_a_dense_one():
        """They have one type, dtype and shape."""
        import torch

        variable, twin = (make_variable("e", np.ones((ROWS, DIM))) for _ in range(2))
        optimizer, alone = make("adamw"), make("adamw")
        gradient = torch.ones((ROWS, DIM))
        for g in (gradient, gradient.to_sparse(), gradient):
            optimizer.apply([g], [variable])
            alone.apply([gradient], [twin])
        assert np.array_equal(numpy(variable), numpy(twin))
