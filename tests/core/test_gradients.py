"""Gradients and variables out of the ordinary: none, of any type, sparse, overwriting, constrained, frozen, raw."""

import contextlib
import warnings
from functools import partial

import keras
import numpy as np
import pytest

from cases import BACKEND, COMPILED, RUNNERS, VARIANTS, eager, make_variable, numpy
from small import ones
from training import make, oracle_of, state, tensors, values

G = np.array([0.5, -1.0], "float32")
START = np.array([1.0, -2.0])
# On torch each optimizer has kernels. Elsewhere all run one code around the step.
KERNELS = VARIANTS if BACKEND == "torch" else ("adamw",)
WAYS = [*((name, "eager") for name in KERNELS), *(("adamw", runner) for runner in COMPILED)]
every_way = pytest.mark.parametrize(("name", "runner"), WAYS)
two_types = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def two():
    return [make_variable("a/w", START), make_variable("b/w", START)]


def assert_follows(variables, run):
    for variable, expected in zip(variables, run.values, strict=True):
        np.testing.assert_allclose(numpy(variable), expected, atol=1e-6)


# --- no gradient ---


@pytest.mark.parametrize(
    ("name", "how", "accumulate"),
    [
        *((name, "None", None) for name in VARIANTS),
        ("nadamw", "None", 2),
        ("adamw", "not listed", None),
    ],
)
def test_without_a_gradient_neither_updated_nor_decayed(name, how, accumulate):
    (a, b), optimizer = two(), make(name, gradient_accumulation_steps=accumulate)
    run = oracle_of(name, values([b]))
    optimizer.build([a, b])
    fresh = state(optimizer)
    for _ in range(3):
        for _ in range(accumulate or 1):
            said, given, variables = contextlib.nullcontext(), [G], [b]
            if how == "None":
                said = pytest.warns(UserWarning, match=r"Gradients do not .* variables \['a/w'\]")
                given, variables = [None, G], [a, b]
            with said:
                optimizer.apply(tensors(given), variables)
        run.step([G])
        assert_follows([b], run)
    assert np.array_equal(numpy(a), START)
    for path, value in state(optimizer).items():
        assert "a_w" not in path or np.array_equal(value, fresh[path])
    assert int(numpy(optimizer.iterations)) == 3


def test_an_update_without_any_gradient_does_nothing():
    """Where no variables are given either, it does not even build."""
    variables, optimizer = two(), make("adamw")
    for nothing in (None, []):
        optimizer.apply([], nothing)
        assert not optimizer.built
    optimizer.build(variables)
    before = values(variables), state(optimizer)
    for nothing in (None, [], variables):
        optimizer.apply([], nothing)
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        optimizer.apply([None, None], variables)
    np.testing.assert_equal((values(variables), state(optimizer)), before)


# --- frozen, overwritten, constrained, in another order ---


@every_way
def test_a_multiplier_of_zero_freezes(name, runner):
    """A float32 variable and one below float32: nothing moves them and their slots. The others go on."""
    dtypes = ["float32", "float32", "bfloat16"]
    variables = [keras.Variable(START, name=n, dtype=t) for n, t in zip("abc", dtypes, strict=True)]
    frozen = {"b": (0.1, 0.1), "c": (0.1, 0.1)}
    optimizer = make(name, weight_decays=frozen, lr_multipliers=dict.fromkeys(frozen, 0))
    optimizer.build(variables)
    slots = [v for v in optimizer.variables if v.name.startswith(("b_", "c_"))]
    before = values(slots)
    assert len(before) > 1 or name == "sgdw"
    step, run = RUNNERS[runner](optimizer, variables), oracle_of(name, [START])
    bad = np.array([0.5, np.nan])
    for _ in range(2):
        step([*tensors([G, bad]), *tensors([bad], "bfloat16")])
        run.step([G])
    np.testing.assert_array_equal(values(variables[1:]), [START, START])
    np.testing.assert_equal(values(slots), before)
    assert_follows(variables[:1], run)


@pytest.mark.parametrize(
    ("name", "runner", "accumulate"),
    [*((*way, None) for way in WAYS), *(("nadamw", runner, 2) for runner in COMPILED)],
)
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
        assert_follows(variables[1:], run)
    assert "a/w" not in optimizer.weight_decays


@two_types
def test_a_constrained_weight_goes_on_from_where_the_constraint_put_it(dtype):
    """The float32 copy of a weight below float32 must not bring back what the constraint took away."""
    variable = keras.Variable(np.ones(2, "float32"), name="w", dtype=dtype)
    variable.constraint = keras.constraints.NonNeg()
    step = eager(make("sgdw", learning_rate=1.0, weight_decay=0.5), [variable])
    step(tensors([np.array([8.0, 8.0])], dtype))
    assert np.array_equal(numpy(variable), [0, 0])
    step(tensors([np.array([-0.25, 0.25])], dtype))
    assert np.array_equal(numpy(variable), [0.25, 0])


def test_variables_in_another_order():
    variables = [*ones("a/w"), *ones("b/w", shape=(3,))]
    optimizer, grads = make("adamw", weight_decays={"a": 0.2}), [G, np.array([1.0, -2.0, 0.5])]
    run = oracle_of("adamw", values(variables))
    run.decays[0] = (0.0, 0.2)
    optimizer.build(variables)
    for order in ([0, 1], [1, 0], [0, 1], [1, 0]):
        optimizer.apply(tensors([grads[i] for i in order]), [variables[i] for i in order])
        run.step(grads)
        assert_follows(variables, run)


# --- of any type; other floats are in test_precision.py ---


@pytest.mark.parametrize("runner", RUNNERS)
def test_numbers_of_any_kind_are_gradients(runner):
    """Whole numbers and booleans in arrays; where nothing is compiled, lists too."""
    number = [1, 0, 1]
    given = [np.array(number, dtype) for dtype in ("int32", "uint8", "bool", "float64")]
    if runner == "eager":
        given += [list(map(float, number)), tuple(number)]
    variables, optimizer = ones(*"abcdef"[: len(given)], shape=(3,)), make("adamw")
    run = oracle_of("adamw", values(variables))
    optimizer.build(variables)
    step = optimizer.apply if runner == "eager" else RUNNERS[runner](optimizer, variables)
    for _ in range(3):
        step(given)
        run.step([number] * len(given))
    assert_follows(variables, run)


# --- a sparse gradient is the dense one that it stands for: rows given twice add up, decay reaches every row ---

# It is made dense before anything else happens, so that all of Keras' arguments can be tried at once.
EVERYTHING = {"gradient_accumulation_steps": 2, "global_clipnorm": 0.5, "loss_scale_factor": 2.0}
EVERYTHING |= {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 2}
ROWS, DIM = 5, 2
# A row may come more than once; 2 never does.
INDICES = [[0, 3, 0], [1, 1, 3], [4, 0, 4], [3, 3, 3]]
# In bfloat16 a sum of duplicates may be rounded before or after: each row once.
ONCE = [sorted(set(rows)) for rows in INDICES]

if BACKEND == "tensorflow":
    import tensorflow as tf

    COMPILERS = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}
    SPARSE = [("sgdw", "eager", {}, "float32"), ("sgdw", "graph", {}, "bfloat16")]
    SPARSE += [("adamw", "graph", EVERYTHING, "float32"), ("adamw", "xla", {}, "float32")]

    def sparse(indices, rows, dtype):
        shape = tf.constant([ROWS, DIM])
        return tf.IndexedSlices(tf.cast(rows, dtype), tf.constant(indices), shape)

else:
    COMPILERS = {"eager": lambda f: f}
    SPARSE = [(name, "eager", {}, "float32") for name in dict.fromkeys([*KERNELS, "sgdw"])]
    SPARSE += [("adamw", "eager", EVERYTHING, "float32")]

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
        optimizer = make(name, **arguments)
        apply = COMPILERS[runner](apply_to(optimizer, [embeddings, bias]))
        for parts in zip(batches, rows, strict=True):
            apply(make_gradient(*parts, dtype), *tensors([G], dtype))
        ends.append(values([embeddings, bias]))
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    if name == "sgdw":  # row 2 had no gradient: it decays
        np.testing.assert_allclose(ends[1][0][2], (1 - 0.03) ** 4 * start[2], rtol=1e-2)


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("jit_compile", [False, True])
    def test_embedding_in_fit(jit_compile):
        """An embedding is a dense layer of one-hot rows."""
        ids, targets = np.array([[0], [3], [1], [0], [3], [3]]), np.arange(12.0).reshape(6, 2)
        start = np.random.default_rng(0).normal(size=(ROWS, DIM))
        embedding = [keras.layers.Embedding(ROWS, DIM, name="e"), keras.layers.Flatten()]
        one_hot = [keras.layers.Dense(DIM, use_bias=False, name="e")]
        final = []
        for x, layers in [(ids, embedding), (np.eye(ROWS)[ids[:, 0]], one_hot)]:
            model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
            model.set_weights([start])
            optimizer = make("adamw", gradient_accumulation_steps=2)
            model.compile(optimizer, loss="mse", jit_compile=jit_compile)
            model.fit(x, targets, batch_size=3, epochs=2, shuffle=False, verbose=0)
            final.append(numpy(model.weights[0]))
        np.testing.assert_allclose(*final, atol=1e-5)

    # --- raw variables ---

    @pytest.mark.parametrize(("name", "runner"), [("adamw", "eager"), ("sgdw-momentum", "graph")])
    def test_raw_tf_variables(name, runner):
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
        step = COMPILERS[runner](lambda: optimizer.apply_gradients(pairs))
        for _ in range(3):
            step()
            run.step([G, 0.25])
        for variable, expected in zip(variables, run.values, strict=True):
            np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)

    def test_raw_tf_variables_of_the_same_name():
        optimizer = make("adamw", weight_decays={"Variable#2": 0})
        optimizer.build([tf.Variable(START), tf.Variable(START)])
        assert optimizer.weight_decays == {"Variable": (0.0, 0.03)}


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

    def test_torch_compile_has_nothing_to_warn_of():
        """Of nothing in this package, that is. Without Inductor, whose half minute traces nothing."""
        variables, optimizer = two(), make("adamw")
        optimizer.build(variables)
        update = torch.compile(partial(optimizer.apply, tensors([G, G])), backend="eager")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            update(variables)
        ours = [str(w.message) for w in caught if "keras_decoupled" in f"{w.filename} {w.message}"]
        assert ours == []
