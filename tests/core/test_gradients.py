"""Gradients and variables out of the ordinary: none, sparse, overwriting, constrained, frozen, raw."""

import warnings
from functools import partial

import keras
import numpy as np
import pytest

from cases import BACKEND, RUNNERS, VARIANTS, eager, make_variable, numpy
from training import X, linear, make, oracle_of, state, tensors, values

G = np.array([0.5, -1.0], "float32")
START = np.array([1.0, -2.0])
every_optimizer = pytest.mark.parametrize("name", VARIANTS)
every_runner = pytest.mark.parametrize("runner", RUNNERS)
two_types = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def two():
    return [make_variable("a/w", START), make_variable("b/w", START)]


def assert_close(variable, expected):
    np.testing.assert_allclose(numpy(variable), expected, atol=1e-6)


# --- no gradient ---


@pytest.mark.parametrize("accumulate", [None, 2])
@every_optimizer
def test_without_a_gradient_neither_updated_nor_decayed(name, accumulate):
    variables, optimizer = two(), make(name, gradient_accumulation_steps=accumulate)
    run = oracle_of(name, values(variables[:1]))
    optimizer.build(variables)
    fresh = state(optimizer)
    for _ in range(3):
        for _ in range(accumulate or 1):
            with pytest.warns(UserWarning, match=r"Gradients do not exist for variables \['b/w'\]"):
                optimizer.apply(tensors([G, None]), variables)
        run.step([G])
        assert_close(variables[0], run.values[0])
    assert np.array_equal(numpy(variables[1]), START)
    for path, value in state(optimizer).items():
        assert "b_w" not in path or np.array_equal(value, fresh[path])
    assert int(numpy(optimizer.iterations)) == 3


@every_optimizer
def test_no_gradient_at_all(name):
    variables, optimizer = two(), make(name)
    optimizer.build(variables)
    before = state(optimizer)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None], variables)
    optimizer.apply([], [])  # a no-op in Keras
    assert all(np.array_equal(before[path], value) for path, value in state(optimizer).items())
    assert all(np.array_equal(v, START) for v in values(variables))


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
def test_gradients_of_some_variables(name):
    """A list of some of the variables is an update of these."""
    variables, optimizer = two(), make(name)
    run = oracle_of(name, values(variables[1:]))
    optimizer.build(variables)
    for _ in range(2):
        optimizer.apply(tensors([G]), variables[1:])
        run.step([G])
    assert_close(variables[1], run.values[0])
    assert np.array_equal(numpy(variables[0]), START)


# --- frozen, overwritten, constrained ---


@every_runner
@two_types
@every_optimizer
def test_a_multiplier_of_zero_freezes(name, dtype, runner):
    variables = [keras.Variable(START, name=n, dtype=dtype) for n in "ab"]
    optimizer = make(name, weight_decays={"b": (0.1, 0.1)}, lr_multipliers={"b": 0})
    step = RUNNERS[runner](optimizer, variables)
    for _ in range(2):
        step(tensors([G, G], dtype))
    assert np.array_equal(numpy(variables[1]), START)
    assert np.all(numpy(variables[0]) != START)


@pytest.mark.parametrize("accumulate", [None, 2])
@every_runner
@pytest.mark.parametrize("name", ["adamw-amsgrad", "nadamw", "sgdw", "sgdw-momentum"])
def test_overwrite_with_gradient(name, runner, accumulate):
    """float8's scales: the "gradient" is the new value; no step, no decay, whatever the rules say."""
    variables = two()
    variables[0].overwrite_with_gradient = True
    optimizer = make(name, weight_decays={"w": (0.1, 0.1)}, gradient_accumulation_steps=accumulate)
    optimizer.build(variables)
    run = oracle_of(name, values(variables[1:]))
    run.decays = [(0.1, 0.1)]
    step = RUNNERS[runner](optimizer, variables)
    for k in range(2):
        for _ in range(accumulate or 1):
            step([np.array([7.0 + k, 3.0], "float32"), G])
        run.step([G])
        assert np.array_equal(numpy(variables[0]), [7.0 + k, 3.0])
        assert_close(variables[1], run.values[0])
    assert "a/w" not in optimizer.weight_decays


CONSTRAINTS = {
    "NonNeg": (keras.constraints.NonNeg, lambda w: np.all(w >= 0)),
    "MaxNorm": (
        partial(keras.constraints.MaxNorm, 0.5),
        lambda w: np.all(np.linalg.norm(w, axis=0) <= 0.504),
    ),
}
every_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS)


@two_types
@every_constraint
@every_optimizer
def test_constraints_hold_after_each_update(name, constraint, dtype):
    make_constraint, holds = CONSTRAINTS[constraint]
    layer = keras.layers.Dense(2, kernel_constraint=make_constraint(), dtype=dtype)
    layer.build((None, 3))
    step = eager(make(name, learning_rate=0.5), layer.trainable_variables)
    rng = np.random.default_rng(0)
    for _ in range(4):
        step(tensors([rng.normal(size=(3, 2)), rng.normal(size=2)], dtype))
        assert holds(numpy(layer.kernel))


@two_types
def test_a_constrained_weight_goes_on_from_where_the_constraint_put_it(dtype):
    variable = keras.Variable(np.ones(2, "float32"), name="w", dtype=dtype)
    variable.constraint = keras.constraints.NonNeg()
    step = eager(make("sgdw", learning_rate=1.0, weight_decay=0.5), [variable])
    step(tensors([np.array([8.0, 8.0])], dtype))
    assert np.array_equal(numpy(variable), [0, 0])
    step(tensors([np.array([-0.25, 0.25])], dtype))
    assert np.array_equal(numpy(variable), [0.25, 0])


# --- a sparse gradient is the dense one that it stands for: rows given twice add up, decay reaches every row ---

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
# A row may come more than once; 2 never does.
INDICES = [[0, 3, 0], [1, 1, 3], [4, 0, 4], [3, 3, 3]]
# In bfloat16 a sum of duplicates may be rounded before or after: each row once.
ONCE = [sorted(set(rows)) for rows in INDICES]
IN_BFLOAT16 = ("plain", "accumulation, clipnorm")

if BACKEND == "tensorflow":
    import tensorflow as tf

    COMPILERS = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}
    WAYS = [("adamw", "eager"), ("nadamw", "graph"), ("sgdw-momentum", "xla")]
    SPARSE = [(*way, arguments, "float32") for way in WAYS for arguments in CLIPPING]
    SPARSE += [(name, "graph", "plain", "float32") for name in VARIANTS if name != "nadamw"]
    SPARSE += [("sgdw", "graph", arguments, "bfloat16") for arguments in IN_BFLOAT16]

    def sparse(indices, rows, dtype):
        shape = tf.constant([ROWS, DIM])
        return tf.IndexedSlices(tf.cast(rows, dtype), tf.constant(indices), shape)

else:
    COMPILERS = {"eager": lambda f: f}
    SPARSE = [(name, "eager", "plain", "float32") for name in VARIANTS]
    SPARSE += [
        ("adamw", "eager", arguments, "float32") for arguments in CLIPPING if arguments != "plain"
    ]

    def sparse(indices, rows, dtype):
        """Of keras.layers.Embedding on JAX, of `torch.nn.Embedding(sparse=True)`."""
        if BACKEND == "jax":
            from jax.experimental.sparse import BCOO

            return BCOO((rows, np.array(indices)[:, None]), shape=(ROWS, DIM))
        import torch

        shape, rows = (ROWS, DIM), torch.as_tensor(rows)
        return torch.sparse_coo_tensor([list(indices)], rows, shape, check_invariants=True)


def apply_to(optimizer, variables):
    optimizer.build(variables)
    return lambda *grads: optimizer.apply(grads, variables)


def dense(indices, rows, dtype):
    gradient = np.zeros((ROWS, DIM), "float32")
    np.add.at(gradient, indices, rows)
    return keras.ops.convert_to_tensor(gradient, dtype)


@pytest.mark.parametrize(("name", "runner", "arguments", "dtype"), SPARSE)
def test_sparse_gradients(name, runner, arguments, dtype):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(ROWS, DIM)).astype("float32")
    batches = INDICES if dtype == "float32" else ONCE
    rows = [rng.normal(size=(len(indices), DIM)).astype("float32") for indices in batches]
    ends = []
    for make_gradient in (dense, sparse):
        embeddings = keras.Variable(start, name="embeddings", dtype=dtype)
        bias = keras.Variable(np.ones(2, "float32"), name="bias", dtype=dtype)
        optimizer = make(name, **CLIPPING[arguments])
        apply = COMPILERS[runner](apply_to(optimizer, [embeddings, bias]))
        for parts in zip(batches, rows, strict=True):
            apply(make_gradient(*parts, dtype), *tensors([G], dtype))
        ends.append(values([embeddings, bias]))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    if name.startswith("sgdw") and arguments == "plain":  # row 2 had no gradient: it decays
        np.testing.assert_allclose(ends[1][0][2], (1 - 0.03) ** 4 * start[2], rtol=1e-2)


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("jit_compile", [False, True])
    @pytest.mark.parametrize("arguments", ["plain", "global_clipnorm", "accumulation"])
    def test_embedding_in_fit(arguments, jit_compile):
        """An embedding is a dense layer of one-hot rows."""
        ids, targets = np.array([[0], [3], [1], [0], [3], [3]]), np.arange(12.0).reshape(6, 2)
        start = np.random.default_rng(0).normal(size=(ROWS, DIM))
        embedding = [keras.layers.Embedding(ROWS, DIM, name="e"), keras.layers.Flatten()]
        one_hot = [keras.layers.Dense(DIM, use_bias=False, name="e")]
        final = []
        for x, layers in [(ids, embedding), (np.eye(ROWS)[ids[:, 0]], one_hot)]:
            model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
            model.set_weights([start])
            optimizer = make("adamw", **CLIPPING[arguments])
            model.compile(optimizer, loss="mse", jit_compile=jit_compile)
            model.fit(x, targets, batch_size=3, epochs=2, shuffle=False, verbose=0)
            final.append(numpy(model.weights[0]))
        np.testing.assert_allclose(*final, atol=1e-5)

    def test_embedding_in_a_mixed_precision_model():
        """LossScaleOptimizer hands sparse gradients on."""
        layers = [
            keras.Input((2,), dtype="int32"),
            keras.layers.Embedding(ROWS, DIM, dtype="mixed_float16"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, dtype="mixed_float16"),
        ]
        model = keras.Sequential(layers)
        before = numpy(model.weights[0])
        scaled = keras.optimizers.LossScaleOptimizer(make("adamw"), initial_scale=2.0)
        model.compile(scaled, loss="mse")
        model.fit(np.array([[0, 1], [1, 1]]), np.ones((2, 1)), verbose=0, epochs=2)
        assert np.all(numpy(model.weights[0]) != before)

    # --- raw variables ---

    @pytest.mark.parametrize("graph", [False, True])
    @every_optimizer
    def test_raw_tf_variables(name, graph):
        """They have no path: rules go by their name."""
        variables = [tf.Variable([1.0, -2.0], name="a/kernel"), tf.Variable(3.0, name="b/bias")]
        optimizer = make(name, weight_decays={"bias": 0.5}, lr_multipliers={"a": 2})
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
        optimizer.build(variables)
        assert optimizer.weight_decays == {"b/bias": (0.0, 0.5)}
        assert optimizer.lr_multipliers == {"a/kernel": 2.0}
        run = oracle_of(name, [START, 3.0], multipliers=[2.0, 1.0])
        run.decays = [(0.0, 0.0), (0.0, 0.5)]
        pairs = list(zip([tf.constant(G), tf.constant(0.25)], variables, strict=True))
        step = COMPILERS["graph" if graph else "eager"](lambda: optimizer.apply_gradients(pairs))
        for _ in range(3):
            step()
            run.step([G, 0.25])
        for variable, expected in zip(variables, run.values, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)

    @pytest.mark.parametrize("name", ["adamw", "sgdw"])
    def test_raw_tf_variables_of_the_same_name(name):
        optimizer = make(name, weight_decays={"Variable#2": 0})
        optimizer.build([tf.Variable(START), tf.Variable(START)])
        assert optimizer.weight_decays == {"Variable": (0.0, 0.03)}


# --- what is no variable of Keras ---


class NoVariable:
    value = 1.0


@pytest.mark.parametrize("wrong", [np.ones(2), NoVariable(), keras.ops.ones(2), None], ids=type)
def test_what_is_no_variable_is_refused(wrong):
    cure = r"keras variables.*model\.trainable_variables\. Received: a "
    with pytest.raises(TypeError, match=rf"{cure}{type(wrong).__module__}\."):
        make("adamw").build([make_variable("w", np.ones(2)), wrong])
    with pytest.raises(TypeError, match=rf"{cure}{type(wrong).__module__}\."):  # the first build
        make("adamw").apply([np.ones(2)] * 2, [make_variable("w", np.ones(2)), wrong])


if BACKEND == "torch":
    import torch

    def test_a_sparse_gradient_after_a_dense_one():
        """They have one type, dtype and shape."""
        variable, twin = (make_variable("e", np.ones((ROWS, DIM))) for _ in range(2))
        optimizer, alone = make("adamw"), make("adamw")
        gradient = torch.ones((ROWS, DIM))
        for g in (gradient, gradient.to_sparse(), gradient):
            optimizer.apply([g], [variable])
            alone.apply([gradient], [twin])
        assert np.array_equal(numpy(variable), numpy(twin))

    def test_torch_parameters_are_refused():
        parameter = torch.nn.Parameter(torch.ones(2))
        for call in (make("adamw").build, partial(make("adamw").apply, [torch.ones(2)])):
            with pytest.raises(
                TypeError, match=r"Received: a torch.*\.Parameter.*`variable.value.grad`"
            ):
                call([parameter])

    def test_torch_compile_has_nothing_to_warn_of(monkeypatch):
        """Of nothing in this package, that is. Without Inductor, whose half minute traces nothing."""
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        model = linear()
        model.compile(make("adamw"), loss="mse", jit_compile=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X, X[:, :2], verbose=0, batch_size=len(X))
        ours = [str(w.message) for w in caught if "keras_decoupled" in f"{w.filename} {w.message}"]
        assert ours == []
