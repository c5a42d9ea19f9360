"""The learning rate and the uniform decay λ as in stock Keras: variables that a callback reads, sets and assigns."""

import contextlib
import json
import math

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, NadamW

schedules = keras.optimizers.schedules
CLASSES = pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
X, Y = np.ones((8, 2), "float32"), np.ones((8, 2), "float32")
BATCHES = 2  # per epoch


def number(x):
    return float(numpy(x))


def one(dtype="float32", path="w"):
    return make_variable(path, np.ones(2), dtype)


def left(optimizer, variables, updates=1):
    """What updates without gradients leave of weights of 1."""
    for v in variables:
        v.assign(np.ones(v.shape))
    step = eager(optimizer, variables)
    for _ in range(updates):
        step([np.zeros(v.shape, str(v.dtype)) for v in variables])
    return [float(numpy(v).ravel()[0]) for v in variables]


@contextlib.contextmanager
def floatx(name):
    with contextlib.ExitStack() as stack:
        stack.callback(keras.config.set_floatx, keras.config.floatx())
        keras.config.set_floatx(name)
        if name == "float64" and BACKEND == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield


def net():
    """One kernel, all ones."""
    return keras.Sequential(
        [keras.Input((2,)), layers.Dense(2, use_bias=False, kernel_initializer="ones")], name="net"
    )


def no_loss(y_true, y_pred):
    """It has no gradients: only the decay moves the weights."""
    return 0 * keras.ops.sum(y_pred, axis=-1)


def fit(model, epochs, callbacks=()):
    return model.fit(
        X, Y, batch_size=len(X) // BATCHES, epochs=epochs, verbose=0, callbacks=[*callbacks]
    )


def weight(model):
    return float(numpy(model.trainable_variables[0])[0, 0])


class Do(keras.callbacks.Callback):
    """Do something with the model's optimizer before each of these epochs, or after some batch."""

    def __init__(self, action, epochs=(1,), batch=None):
        super().__init__()
        self.action, self.epochs, self.batch, self.epoch = action, epochs, batch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if epoch in self.epochs and self.batch is None:
            self.action(self.model.optimizer)

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch in self.epochs and batch == self.batch:
            self.action(self.model.optimizer)


# --- the rate ---


@CLASSES
@pytest.mark.parametrize("fast", [True, False])
def test_a_constant_rate_is_a_variable(cls, fast):
    optimizer = cls(0.1, weight_decay=0.5)
    optimizer.fast = fast
    ours = [one()]
    rate = optimizer.learning_rate
    assert isinstance(rate, keras.Variable)
    assert (rate.name, rate.dtype) == ("learning_rate", "float32")
    assert any(v is rate for v in optimizer.variables)
    assert float(rate.numpy()) == number(rate.value) == np.float32(0.1)
    assert left(optimizer, ours) == [0.5]
    for now in (0.05, 0.2, 0.0, 0.1):
        rate.assign(now)
        eta = now / 0.1
        assert float(optimizer.learning_rate.numpy()) == np.float32(now)
        np.testing.assert_allclose(number(optimizer.lr_t), now, rtol=1e-7)
        np.testing.assert_allclose(number(optimizer.eta_t), eta, rtol=2e-7)
        np.testing.assert_allclose(left(optimizer, ours), 1 - 0.5 * eta, rtol=2e-7, atol=1e-7)
    assert optimizer.learning_rate is rate


def test_under_a_schedule_the_variable_is_a_factor():
    for given in (CosineWarmRestarts(0.1, 5), schedules.ExponentialDecay(0.1, 5, 0.5)):
        optimizer = AdamW(given, weight_decay=0.1)
        assert not isinstance(optimizer.learning_rate, keras.Variable)
        names = [v.name for v in optimizer.variables]
        assert "learning_rate_factor" in names
        assert "learning_rate" not in names
    assert "learning_rate_factor" not in [v.name for v in AdamW(0.1).variables]


def test_eta_is_exactly_1_where_nobody_moved_the_rate():
    """Of every rate: α in float32 may be another number, and η is to it what the rate is to α."""
    rates = [10 ** (-e / 7) for e in range(60)] + [0.1, 0.3, 1e-3, 3e-4, 7e-5, 0.7, 1 / 3]
    for rate in rates:
        optimizer = SGDW(rate, weight_decay=0.125)
        assert number(optimizer.eta_t) == 1, rate
        optimizer.learning_rate = float(optimizer.learning_rate.numpy())  # as a callback reads it
        assert number(optimizer.eta_t) == 1, rate
        optimizer.learning_rate.assign(rate)
        assert number(optimizer.eta_t) == 1, rate
    assert left(optimizer, [one()]) == [0.875]


@pytest.mark.parametrize("given", ["by the constructor", "by assign", "by the setter"])
def test_a_rate_from_another_base(given):
    optimizer = SGDW(0.05 if "constr" in given else 0.1, base_learning_rate=0.1, weight_decay=0.5)
    if given == "by assign":
        optimizer.learning_rate.assign(0.05)
    elif given == "by the setter":
        optimizer.learning_rate = 0.05
    np.testing.assert_allclose(number(optimizer.eta_t), 0.5, rtol=1e-7)
    config = optimizer.get_config()
    assert (config["learning_rate"], config["base_learning_rate"]) == (0.05, 0.1)
    again = SGDW.from_config(json.loads(json.dumps(config)))
    assert number(again.learning_rate) == number(optimizer.learning_rate)
    assert number(again.eta_t) == number(optimizer.eta_t)


def test_float64():
    """The variable is float32 as ever; where nobody moved it, α itself is used, with all its digits."""
    with floatx("float64"):
        optimizer, ours = SGDW(0.1, weight_decay=0.1), [one("float64")]
        assert optimizer.learning_rate.dtype == "float32"
        eager(optimizer, ours)([np.ones(2)])
        np.testing.assert_allclose(numpy(ours[0]), 1 - 0.1 - 0.1, rtol=1e-15)
        optimizer.learning_rate.assign(0.05)
        eta = float(np.float32(0.05)) / float(np.float32(0.1))
        ours[0].assign(np.ones(2))
        eager(optimizer, ours)([np.ones(2)])
        np.testing.assert_allclose(numpy(ours[0]), 1 - eta * 0.1 - eta * 0.1, rtol=1e-15)


def test_a_bfloat16_floatx_leaves_both_in_float32():
    with floatx("bfloat16"):
        optimizer, ours = SGDW(0.1, weight_decay=2.0**-10), [one("bfloat16")]
        assert optimizer.learning_rate.dtype == optimizer.weight_decay.dtype == "float32"
        assert float(optimizer.learning_rate.numpy()) == np.float32(0.1)
        assert number(optimizer.eta_t) == 1
        optimizer.weight_decay = 2.0**-9  # with 1 it is no number of bfloat16: a master copy has it
        [value] = left(optimizer, ours, 4)
        assert value == pytest.approx((1 - 2.0**-9) ** 4, abs=2.0**-9)


# --- λ ---


@CLASSES
@pytest.mark.parametrize(
    "given", [0, 0.1, (0.25, 0.1), Decay(0.1), Decay(0.1, cautious=True, eta_power=0)], ids=repr
)
def test_a_number_is_a_variable(cls, given):
    for built in (False, True):
        optimizer = cls(0.1, weight_decay=given)
        if built:
            optimizer.build([one()])
        decay = optimizer.weight_decay
        assert isinstance(decay, keras.Variable)
        assert decay.name == "weight_decay"
        assert any(v is decay for v in optimizer.variables)
        assert float(decay) == (np.float32(0.1) if given else 0)
        optimizer.weight_decay = 0.3
        assert float(optimizer.weight_decay) == np.float32(0.3)
        assert optimizer.weight_decay is decay


def test_nothing_and_a_schedule_come_back_as_given():
    schedule = schedules.PolynomialDecay(0.1, 5, 0.01)
    assert AdamW(0.1).weight_decay is None
    for given in (schedule, Decay(schedule, cautious=True), (0.1, schedule)):
        optimizer = AdamW(0.1, weight_decay=given)
        assert optimizer.weight_decay is schedule
        assert "weight_decay" not in [v.name for v in optimizer.variables]


SET = {
    "float": lambda x: x,
    "np.float32": np.float32,
    "np.float64": np.float64,
    "array": np.array,
    "tensor": lambda x: keras.ops.convert_to_tensor(x, "float32"),
    "Variable": lambda x: keras.Variable(x, dtype="float32"),
}


@pytest.mark.parametrize("make", SET.values(), ids=SET)
def test_any_real_number_is_accepted(make):
    optimizer = SGDW(0.1, weight_decay=0.1)
    optimizer.weight_decay = make(0.25)
    assert left(optimizer, [one()]) == [0.75]
    optimizer.weight_decay = optimizer.weight_decay
    assert left(optimizer, [one()]) == [0.75]
    optimizer.weight_decay = 1
    assert left(optimizer, [one()]) == pytest.approx([0], abs=1e-7)


@CLASSES
@pytest.mark.parametrize("fast", [True, False])
def test_it_moves_the_decay_and_0_is_no_special_case(cls, fast):
    """An optimizer made with 0 may be given a decay later: nothing may leave it out at build."""
    optimizer, ours = cls(0.1, weight_decay=0), [one()]
    optimizer.fast = fast
    for now in (None, 0.5, 0.25, 0, 0.125):
        if now is not None:
            optimizer.weight_decay = now
        assert left(optimizer, ours) == [1 - (now or 0)]
        assert left(optimizer, ours, 3) == [(1 - (now or 0)) ** 3]
        assert optimizer.weight_decays == ({"w": (0.0, now)} if now else {})


@pytest.mark.parametrize("fast", [True, False])
def test_it_moves_those_that_it_reaches_and_no_others(fast):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, name="one", kernel_regularizer=regularizers.L2(2.0**-10)),
            layers.Dense(2, name="two"),
            layers.Dense(2, name="three"),
        ],
        name="net",
    )
    optimizer = SGDW(
        0.1, weight_decay=0.5, model=model, weight_decays={"two/kernel": 0.25, "two/bias": 0.5}
    )
    optimizer.fast = fast
    optimizer.exclude_from_weight_decay(var_names=["three/bias"])
    ours = model.trainable_variables
    before = [1 - 2.0**-10, 0.5, 0.75, 0.5, 0.5, 1]
    after = [1 - 2.0**-10, 0.875, 0.75, 0.5, 0.875, 1]
    assert left(optimizer, ours) == before
    optimizer.weight_decay = 0.125
    assert left(optimizer, ours) == after
    rows = {f"net/{path}": (0.0, l2) for path, l2 in ROWS.items()}
    assert optimizer.weight_decays == rows
    again = SGDW.from_config(json.loads(json.dumps(optimizer.get_config())))
    again.build(ours)
    assert again.weight_decays == rows
    assert left(again, ours) == after
    again.weight_decay = 0.5  # which rows follow it is in the config
    assert left(again, ours) == before


ROWS = {
    "one/kernel": 2.0**-10,
    "one/bias": 0.125,
    "two/kernel": 0.25,
    "two/bias": 0.5,
    "three/kernel": 0.125,
}


def test_it_is_before_normalization():
    optimizer, ours = SGDW(0.1, weight_decay=0.25, total_iterations=4), [one()]
    assert left(optimizer, ours) == [0.875]
    optimizer.weight_decay = 0.5
    assert left(optimizer, ours) == [0.75]
    assert optimizer.weight_decays == {"w": (0.0, 0.5)}
    assert optimizer.get_config()["weight_decay"] == 0.5


KINDS = {
    "with l1": (Decay(0.5, 0.25), lambda x: 1 - x - 0.25),
    "a pair": ((0.25, 0.5), lambda x: 1 - x - 0.25),
    "without eta": (Decay(0.5, eta_power=0), lambda x: 1 - x),
    "cautious": (Decay(0.5, cautious=True), lambda x: 1 - x),
    "soft threshold": (Decay(0.5, 0.25, soft_threshold=True), lambda x: 1 - x - 0.25),
    "initial": (Decay(0.5, towards="initial"), lambda x: 1.0),
}


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS)
def test_it_is_the_l2_of_a_decay(case):
    given, expected = case
    optimizer = SGDW(0.1, weight_decay=given)
    ours = [one()]
    for now in (0.5, 0.125, 0.0, 0.25):
        optimizer.weight_decay = now
        assert left(optimizer, ours) == [expected(now)]
        config = json.loads(json.dumps(optimizer.get_config()))
        again = SGDW.from_config(config)
        again.build(ours)
        assert float(again.weight_decay) == now
        assert left(again, ours) == [expected(now)]
        assert again.get_config() == optimizer.get_config()


def test_a_reference_is_kept_where_only_the_amount_moves():
    optimizer, ours = SGDW(0.1, weight_decay=Decay(0.5, towards="initial")), [one()]
    optimizer.build(ours)
    optimizer.weight_decay = 0.25
    ours[0].assign(np.full(2, 3.0))
    eager(optimizer, ours)([np.zeros(2, "float32")])
    assert numpy(ours[0])[0] == 3 - 0.25 * 2


def test_it_is_exact_in_float64_where_nobody_set_it():
    """Also where float64 is the model's alone, and the variable λ has float32."""
    with floatx("float64"):
        optimizer = SGDW(0.1, weight_decay=0.1)
        assert left(optimizer, [one("float64")]) == [1 - 0.1]
        optimizer.weight_decay = 0.3
        assert left(optimizer, [one("float64")]) == pytest.approx([0.7], rel=1e-15)
    if BACKEND != "jax":
        optimizer = SGDW(0.1, weight_decay=0.1)
        assert left(optimizer, [one("float64")]) == [1 - 0.1]
        optimizer.weight_decay = 0.3
        assert left(optimizer, [one("float64")]) == pytest.approx([0.7], rel=1e-7)


def test_no_refusal_changes_anything():
    optimizer, ours = SGDW(0.1, weight_decay=0.25), [one()]
    schedule = schedules.PolynomialDecay(0.1, 5)
    for bad in (None, schedule, Decay(0.1), (0.1, 0.1), "0.1", True, [0.1], np.ones(2)):
        with pytest.raises(TypeError, match="`weight_decay` must be"):
            optimizer.weight_decay = bad
    for bad in (-0.1, math.nan, math.inf, 1e39):
        with pytest.raises(ValueError, match="`weight_decay` must be"):
            optimizer.weight_decay = bad
    assert left(optimizer, ours) == [0.75]
    for given in (None, schedule):
        optimizer = SGDW(0.1, weight_decay=given)
        with pytest.raises(ValueError, match=r"made with a number.*weight_decay=0"):
            optimizer.weight_decay = 0.1
        assert optimizer.weight_decay is given


# --- in fit ---


@CLASSES
def test_learning_rate_scheduler(cls):
    model = net()
    model.compile(cls(0.1, weight_decay=0.5), loss=no_loss)
    seen = []
    scheduler = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: seen.append(rate) or 0.1 / 2**epoch
    )
    history = fit(model, 3, [scheduler])
    np.testing.assert_allclose(seen, [0.1, 0.1, 0.05], rtol=1e-6)
    np.testing.assert_allclose(history.history["learning_rate"], [0.1, 0.05, 0.025], rtol=1e-6)
    assert weight(model) == pytest.approx((0.5 * 0.75 * 0.875) ** BATCHES, rel=1e-6)
    assert number(model.optimizer.learning_rate) == pytest.approx(0.025, rel=1e-6)


@CLASSES
def test_reduce_lr_on_plateau(cls):
    model = net()
    model.compile(cls(0.1, weight_decay=0.5), loss=no_loss)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, cooldown=0)
    fit(model, 3, [plateau])  # at the ends of the second epoch and the third
    assert weight(model) == pytest.approx((0.5 * 0.5 * 0.75) ** BATCHES, rel=1e-6)
    assert number(model.optimizer.learning_rate) == pytest.approx(0.025, rel=1e-6)
    assert number(model.optimizer.eta_t) == pytest.approx(0.25, rel=1e-6)


ACTIONS = {
    "assign": (lambda o: o.learning_rate.assign(0.05), 0.75),
    "set": (lambda o: setattr(o, "learning_rate", 0.05), 0.75),
    "assign by its value": (lambda o: o.learning_rate.assign(o.learning_rate.numpy() / 2), 0.75),
    "assign by itself": (lambda o: o.learning_rate.assign(o.learning_rate * 0.5), 0.75),
    "decay": (lambda o: setattr(o, "weight_decay", 0.25), 0.75),
    "decay by itself": (lambda o: setattr(o, "weight_decay", float(o.weight_decay) / 2), 0.75),
    "decay assigned": (lambda o: o.weight_decay.assign(0.25), 0.75),
}


@CLASSES
@pytest.mark.parametrize("batch", [None, 0])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
def test_an_own_callback(cls, action, batch):
    do, then = action
    model = net()
    model.compile(cls(0.1, weight_decay=0.5), loss=no_loss)
    fit(model, 3, [Do(do, batch=batch)])
    before = BATCHES if batch is None else BATCHES + 1
    expected = 0.5**before * then ** (3 * BATCHES - before)
    assert weight(model) == pytest.approx(expected, rel=1e-6)


def test_through_a_loss_scale_optimizer():
    model = net()
    inner = SGDW(0.1, weight_decay=0.5)
    model.compile(keras.optimizers.LossScaleOptimizer(inner), loss=no_loss)

    def both(optimizer):
        optimizer.inner_optimizer.weight_decay = 0.25
        optimizer.inner_optimizer.learning_rate.assign(0.05)

    fit(model, 2, [Do(both)])
    assert weight(model) == pytest.approx((0.5 * 0.875) ** BATCHES, rel=1e-6)


# --- saved ---


@CLASSES
def test_both_are_saved_and_the_run_goes_on_bit_for_bit(cls, tmp_path):
    def train(model, first, last):
        for k in range(first, last):
            rng = np.random.default_rng(k)
            model.train_on_batch(rng.normal(size=(8, 2)), rng.normal(size=(8, 2)))

    model = net()
    optimizer = cls(0.1, weight_decay=0.3)
    model.compile(optimizer, loss="mse")
    train(model, 0, 3)
    optimizer.learning_rate.assign(0.07)
    optimizer.weight_decay = 0.013
    train(model, 3, 6)
    model.save(tmp_path / "m.keras")
    train(model, 6, 9)
    expected = numpy(model.trainable_variables[0])

    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert float(loaded.optimizer.weight_decay) == np.float32(0.013)
    assert float(loaded.optimizer.learning_rate.numpy()) == np.float32(0.07)
    config = loaded.optimizer.get_config()
    assert config["learning_rate"] == 0.07
    assert config["base_learning_rate"] == 0.1
    assert config["weight_decay"] == 0.013
    assert list(loaded.optimizer.weight_decays.values()) == [(0.0, 0.013)]
    train(loaded, 6, 9)
    np.testing.assert_array_equal(numpy(loaded.trainable_variables[0]), expected)
    loaded.save(tmp_path / "again.keras")
    again = keras.models.load_model(tmp_path / "again.keras")
    assert again.optimizer.get_config() == loaded.optimizer.get_config()
    assert number(again.optimizer.eta_t) == number(optimizer.eta_t)


def state(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def built(*args, **kwargs):
    optimizer = SGDW(*args, **kwargs)
    optimizer.build([one()])
    return optimizer


def test_state_in_an_optimizer_of_another_rate_keeps_eta():
    """Weights of a run at 1e-3 in a fine-tuning at 1e-4: the rate of the file would make η 10."""
    run = built(1e-3, weight_decay=0.5)
    for eta, rate in ((1, 1e-3), (0.25, 2.5e-4)):
        run.learning_rate = rate
        tuned = built(1e-4, weight_decay=0.5)
        tuned.load_own_variables(state(run))
        assert number(tuned.eta_t) == pytest.approx(eta, rel=1e-6)
        assert number(tuned.learning_rate) == pytest.approx(eta * 1e-4, rel=1e-6)
        assert (number(tuned.eta_t) == 1) == (eta == 1)


def test_state_between_a_constant_rate_and_a_schedule():
    cosine = built(CosineWarmRestarts(0.2, 9), weight_decay=0.5)
    cosine.learning_rate = 0.05
    constant = built(0.1, weight_decay=0.5)
    constant.load_own_variables(state(cosine))
    assert number(constant.learning_rate) == pytest.approx(0.025, rel=1e-6)
    constant.learning_rate = 0.05
    cosine.load_own_variables(state(constant))
    assert number(cosine.learning_rate) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("r", [1.0, 0.5])
def test_a_constant_rate_in_a_file_of_0_1(r):
    """There r was the variable, λ was none, and nothing said what the optimizer was made with."""
    store = state(built(0.1, weight_decay=0.5))
    layout = json.loads(store.pop("layout").tobytes())
    names = [name for name, _ in layout["variables"]]
    store[str(names.index("learning_rate"))] = np.float32(r)
    layout["variables"][names.index("learning_rate")][0] = "learning_rate_factor"
    last = names.index("weight_decay")  # in 0.1 there was none
    arrays = [array for i, array in store.items() if int(i) != last]
    del layout["variables"][last], layout["given"]
    store = {str(i): array for i, array in enumerate(arrays)}
    store["layout"] = np.frombuffer(json.dumps(layout).encode(), "uint8")

    optimizer = built(0.3, weight_decay=0.25)
    optimizer.load_own_variables(store)
    assert number(optimizer.eta_t) == r
    assert number(optimizer.learning_rate) == np.float32(np.float32(0.3) * r)
    assert float(optimizer.weight_decay) == 0.25


def test_a_files_decay_is_taken_where_it_was_made_with_the_constructors():
    run = built(0.1, weight_decay=0.5)
    run.weight_decay = 0.125
    store = state(run)
    for given, now in ((0.5, 0.125), (0.25, 0.25), (0, 0)):
        optimizer = built(0.1, weight_decay=given)
        optimizer.load_own_variables(store)
        assert float(optimizer.weight_decay) == now
    # Neither one without a number, nor a file of one, is in the way of the other.
    schedule = schedules.PolynomialDecay(0.5, 9)
    scheduled = built(0.1, weight_decay=schedule)
    scheduled.load_own_variables(store)
    assert scheduled.weight_decay is schedule
    optimizer = built(0.1, weight_decay=0.5)
    optimizer.load_own_variables(state(scheduled))
    assert float(optimizer.weight_decay) == 0.5
