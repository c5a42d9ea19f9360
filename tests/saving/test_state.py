"""State and rows go to the variables they belong to, through builds, saves and loads."""

import contextlib
import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_decoupled import SGDW, AdamW, CosineWarmRestarts

BACKEND = keras.backend.backend()


def variable(path, value=1.0, shape=(2,)):
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        return keras.Variable(np.full(shape, value, "float32"), name=name)


def body_and_head(n=3):
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4) for _ in range(n))], name="seq")
    for layer in model.layers[:-1]:
        layer.trainable = False
    return model


def unfreeze(model):
    for layer in model.layers:
        layer.trainable = True
    model.compile(model.optimizer, loss="mse")
    if BACKEND == "jax":
        model.optimizer.build(model.trainable_variables)


def train(model):
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.random((8, 4), "float32"), rng.random((8, 4), "float32"))


def slots(optimizer):
    """{label of the variable: its momentum}"""
    layout = optimizer._slots.layout(optimizer.variables)["variables"]
    return {
        label: keras.ops.convert_to_numpy(v.value)
        for (name, label), v in zip(layout, optimizer.variables, strict=True)
        if name == "momentum"
    }


def test_head_first_then_all_then_a_load(tmp_path):
    """The head's slots were made first; its moments must not move to the first layer."""
    model = body_and_head()
    model.compile(AdamW(weight_decay=1e-3), loss="mse")
    train(model)
    unfreeze(model)
    train(model)
    wanted = slots(model.optimizer)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    # Before 3.16 Keras gives a loaded Sequential paths without its name.
    found = {label.removeprefix("seq/"): m for label, m in slots(loaded.optimizer).items()}
    for label, momentum in wanted.items():
        np.testing.assert_array_equal(found[label.removeprefix("seq/")], momentum, err_msg=label)
    assert len({m.tobytes() for m in wanted.values()}) == 6


def test_all_first_then_a_part_frozen_then_a_load(tmp_path):
    """What left does not stand in the way of what is lined up by order."""
    model = body_and_head()
    for layer in model.layers:
        layer.trainable = True
    model.compile(AdamW(weight_decay=1e-3), loss="mse")
    train(model)
    model.layers[0].trainable = False
    model.compile(model.optimizer, loss="mse")
    model.optimizer.build(model.trainable_variables)
    train(model)
    store = {}
    model.optimizer.save_own_variables(store)
    config = model.optimizer.get_config()
    ours = [variable(f"m/dense_{i}/{n}", shape=s) for i in (7, 8) for n, s in NAMES]
    loaded = AdamW.from_config(config)
    loaded.build(ours)
    with pytest.warns(UserWarning, match="In the file only: momentum of seq/dense/kernel"):
        loaded.load_own_variables(store)
    wanted = slots(model.optimizer)
    for new, old in (("m/dense_7/", "seq/dense_1/"), ("m/dense_8/", "seq/dense_2/")):
        np.testing.assert_array_equal(slots(loaded)[new + "kernel"], wanted[old + "kernel"])


NAMES = [("kernel", (4, 4)), ("bias", (4,))]


def test_a_variable_that_left_keeps_its_moments_beside_a_twin():
    first, second = variable("p"), variable("p")
    optimizer = SGDW(1.0, momentum=0.9, weight_decay=0)
    optimizer.build([first, second])
    optimizer.apply([keras.ops.full((2,), x) for x in (0.1, 0.2)], [first, second])
    optimizer.build([second])
    assert slots(optimizer)["p"][0] == pytest.approx(-0.2)
    optimizer.build([first])
    assert slots(optimizer)["p"][0] == pytest.approx(-0.1)
    store = {}
    optimizer.save_own_variables(store)
    loaded = SGDW(1.0, momentum=0.9, weight_decay=0)
    loaded.build([variable("p")])
    with pytest.warns(UserWarning, match="In the file only: momentum of p#2"):
        loaded.load_own_variables(store)
    assert slots(loaded)["p"][0] == pytest.approx(-0.1)


def test_a_saved_row_is_given_once():
    def config():
        head = [variable("m/dense_4/kernel")]
        optimizer = AdamW(weight_decay=1e-4, lr_multipliers={"dense_4": 10.0})
        optimizer.build(head)
        return optimizer.get_config()

    optimizer = AdamW.from_config(config())
    head, body = variable("m/dense_6/kernel"), variable("m/dense_5/kernel")
    optimizer.build([head])
    optimizer.build([body, head])
    assert optimizer.lr_multipliers == {"m/dense_6/kernel": 10.0}


def test_a_shape_that_does_not_fit_is_an_error_and_nothing_is_assigned():
    saved, optimizer = SGDW(momentum=0.9, weight_decay=0), SGDW(momentum=0.9, weight_decay=0)
    saved.build([variable("a"), variable("b")])
    saved.apply([keras.ops.ones((2,))] * 2)
    store = {}
    saved.save_own_variables(store)
    optimizer.build([variable("a"), variable("b", shape=(3,))])
    with pytest.raises(ValueError, match=r"state of b does not fit b, which has shape \(3,\)"):
        optimizer.load_own_variables(store)
    assert int(optimizer.iterations) == 0


@pytest.mark.parametrize("stock", [keras.optimizers.SGD(momentum=0.9), keras.optimizers.Adam()])
def test_another_optimizers_state_is_not_taken_by_position(stock):
    """Of one variable Adam has as many arrays as we: its learning rate would become our factor."""
    ours, store = SGDW(momentum=0.9, weight_decay=0), {}
    for optimizer in (ours, stock):
        optimizer.build([variable("a")])
        optimizer.apply([keras.ops.ones((2,))])
    stock.save_own_variables(store)
    before = [v.numpy() for v in ours.variables]
    with pytest.warns(UserWarning, match="was not loaded: another optimizer wrote it"):
        ours.load_own_variables(store)
    for v, value in zip(ours.variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value, err_msg=v.path)


def test_an_optimizer_that_is_not_built_says_that_it_loads_nothing():
    saved, store = SGDW(momentum=0.9, weight_decay=0), {}
    saved.build([variable("a")])
    saved.save_own_variables(store)
    with pytest.warns(UserWarning, match=r"was not loaded: it is not built.*optimizer\.build"):
        SGDW(momentum=0.9, weight_decay=0).load_own_variables(store)


def test_a_boolean_weight_has_its_state_back():
    def built():
        optimizer = SGDW(momentum=0.9, weight_decay=0)
        optimizer.build(
            [
                variable("a"),
                keras.Variable([True, False], dtype="bool", name="mask", trainable=False),
            ]
        )
        return optimizer

    store = {}
    built().save_own_variables(store)
    built().load_own_variables(store)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("iteration", value) for value in (-5, 2**40)),
        *(
            (name, value)
            for name in ("learning_rate", "weight_decay")
            for value in (np.nan, -1.0, np.inf)
        ),
    ],
)
def test_a_number_that_no_run_has_is_refused(name, value):
    optimizer, store = SGDW(weight_decay=0), {}
    optimizer.build([variable("a")])
    optimizer.save_own_variables(store)
    [place] = [i for i, v in enumerate(optimizer.variables) if v.name == name]
    store[str(place)] = np.array(value)
    with pytest.raises(ValueError, match=rf"for {name}\. Received: .*array"):
        optimizer.load_own_variables(store)
    assert float(optimizer.learning_rate) == pytest.approx(0.01)


def test_a_new_variables_average_starts_at_the_variable():
    saved = SGDW(0.5, weight_decay=0, use_ema=True, ema_momentum=0.9)
    old = variable("a")
    saved.build([old])
    saved.apply([keras.ops.ones((2,))])
    store = {}
    saved.save_own_variables(store)
    for load in (True, False):
        optimizer = SGDW(0.5, weight_decay=0, use_ema=True, ema_momentum=0.9)
        a, b = variable("a"), variable("b", 7.0, (3,))
        if load:
            optimizer.build([a, b])
            with pytest.warns(UserWarning, match="Started fresh: average of b"):
                optimizer.load_own_variables(store)
        else:
            optimizer.build([a])
            optimizer.apply([keras.ops.ones((2,))])
            optimizer.build([a, b])
        optimizer.apply([keras.ops.zeros((2,)), keras.ops.zeros((3,))])
        averages = optimizer._model_variables_moving_average
        np.testing.assert_allclose(averages[1].numpy(), 7.0, rtol=1e-6)


if BACKEND == "jax":  # elsewhere `apply` gets the variables themselves

    def test_layers_swapped_between_frozen_and_not_are_refused_without_their_names():
        model = body_and_head(2)
        model.compile(AdamW(weight_decay=0), loss="mse")
        train(model)
        model.layers[0].trainable, model.layers[1].trainable = True, False
        model.compile(model.optimizer, loss="mse")
        with pytest.raises(ValueError, match=r"frozen by now.*optimizer\.build"):
            train(model)
        model.optimizer.build(model.trainable_variables)
        train(model)
        assert list(slots(model.optimizer)) == [
            f"seq/{name}"
            for name in ("dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias")
        ]


def test_a_copy_on_another_model_leaves_that_models_penalties():
    def net(l2):
        return keras.Sequential([keras.Input((4,)), layers.Dense(4, kernel_regularizer=l2)])

    optimizer = AdamW(model=net(keras.regularizers.L2(1e-4)))
    other = net(keras.regularizers.L2(5e-2))
    AdamW.from_config(optimizer.get_config()).build(other.trainable_variables)
    assert len(other.losses) == 1
    with pytest.raises(ValueError, match="none is that model's"):
        optimizer.build(other.trainable_variables)


def test_a_file_saved_before_the_first_build_with_whole_paths_as_keys(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")], name="seq")
    model.compile(AdamW(weight_decays={"seq/a/kernel": 1e-4}), loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    loaded.optimizer.build(loaded.trainable_variables)
    (kernel, _) = [v.path for v in loaded.trainable_variables]  # before Keras 3.16 without "seq/"
    assert kernel in ("a/kernel", "seq/a/kernel")
    assert loaded.optimizer.weight_decays == {kernel: (0.0, 1e-4)}


@pytest.mark.parametrize("given", [0, 1e-60, 1e-37])
@pytest.mark.parametrize("rate", ["constant", "schedule"])
def test_a_learning_rate_that_nobody_gave(given, rate):
    """A damaged file: the rate over such a number would be no number, or an infinite factor."""
    store = {}
    saved = AdamW(1000.0, weight_decay=1e-3)
    saved.build([variable("a/w")])
    saved.save_own_variables(store)
    layout = json.loads(store["layout"].tobytes())
    layout["given"]["learning_rate"] = given
    store["layout"] = np.frombuffer(json.dumps(layout).encode(), dtype=np.uint8)
    learning_rate = 0.1 if rate == "constant" else CosineWarmRestarts(0.1, 10)
    optimizer = AdamW(learning_rate, weight_decay=1e-3)
    optimizer.build([variable("a/w")])
    before = [np.array(v) for v in optimizer.variables]
    with pytest.raises(ValueError, match="not as this package writes it"):
        optimizer.load_own_variables(store)
    for v, value in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(v), value)


def test_the_average_of_a_variable_that_left_starts_at_it():
    """The file is of a run without averages. The variable is frozen now, and thawed later."""
    x, y = variable("x/w", 1.0), variable("y/w", 2.0)
    saved = AdamW(weight_decay=1e-3)
    saved.build([x, y])
    store = {}
    saved.save_own_variables(store)
    optimizer = AdamW(weight_decay=1e-3, use_ema=True)
    optimizer.build([x, y])
    optimizer.build([x])
    y.assign([5.0, 6.0])
    with pytest.warns(UserWarning, match="Started fresh: average"):
        optimizer.load_own_variables(store)
    optimizer.build([x, y])
    np.testing.assert_array_equal(np.array(optimizer.averages[1]), [5.0, 6.0])
