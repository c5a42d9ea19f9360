"""State goes to the variable it belongs to, through files (by path) and by position (`set_weights`, checkpoints)."""

import contextlib
import itertools
import json
import time

import keras
import numpy as np
import pytest
from keras import layers

import stock
from cases import BACKEND, ONE_OF_EACH, eager, make_variable, numpy, warm_restarts
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay
from slots import (
    EVERY,
    HISTORIES,
    assert_same,
    contents,
    make,
    of_slot,
    pool,
    saved,
    train,
    with_history,
)

each = pytest.mark.parametrize("name", EVERY)
histories = pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
ARGUMENTS = {
    "plain": {},
    "EMA, accumulation": {"use_ema": True, "gradient_accumulation_steps": 2},
    "a reference": {"weight_decay": Decay(0.1, towards="initial")},
}
EMA = {"use_ema": True, "ema_momentum": 0.75}


def variable(path, value=1.0, shape=(2,)):
    return make_variable(path, np.full(shape, value, "float32"))


def built(*ours, **arguments):
    optimizer = SGDW(**({"momentum": 0.9, "weight_decay": 0} | arguments))
    optimizer.build(list(ours))
    return optimizer


# --- files: by path ---


@each
def test_a_load_into_another_order(name):
    """Each slot goes to its variable, and scalars are carried over: both go on alike, to the bit."""
    arguments = EMA | {"learning_rate": warm_restarts(0.05, 4, t_mul=2, eta_min=0.1)}
    paths, ours = stock.PATHS, stock.make_variables()
    optimizer, batches = make(name, **arguments), stock.micro_batches(4)
    step = eager(optimizer, ours)
    for grads in batches[:2]:
        step(grads)
    order = [4, 2, 6, 0, 5, 1, 3]
    again = [make_variable(paths[i], numpy(ours[i])) for i in order]
    loaded = make(name, **arguments)
    loaded.build(again)
    loaded.load_own_variables(saved(optimizer))
    for grads in [None, *batches[2:]]:
        if grads is not None:
            step(grads)
            eager(loaded, again)([grads[i] for i in order])
        assert_same(contents(loaded), contents(optimizer), in_order=False)
        for i, v in zip(order, again, strict=True):
            assert np.array_equal(numpy(v), numpy(ours[i])), paths[i]
    dtypes = [
        {place: v.dtype for place, v in zip(contents(one), one.variables, strict=True)}
        for one in (loaded, optimizer)
    ]
    assert dtypes[0] == dtypes[1]


def three(trainable):
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4) for _ in range(3))], name="seq")
    set_trainable(model, trainable)
    model.compile(AdamW(weight_decay=1e-3), loss="mse")
    return model


def set_trainable(model, trainable):
    for layer, flag in zip(model.layers, trainable, strict=True):
        layer.trainable = flag


def retrain(model, trainable=None):
    if trainable is not None:
        set_trainable(model, trainable)
        model.compile(model.optimizer, loss="mse")
        model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.random((8, 4), "float32"), rng.random((8, 4), "float32"))


def test_head_first_then_all_then_a_file(tmp_path):
    """The head's slots were made first; its moments must not move to the first layer."""
    model = three([False, False, True])
    retrain(model)
    retrain(model, [True] * 3)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    wanted, found = (
        # Before 3.16 Keras gives a loaded Sequential paths without its name.
        {label.removeprefix("seq/"): m for label, m in of_slot(one.optimizer, "momentum").items()}
        for one in (model, loaded)
    )
    assert_same(found, wanted)
    assert len({m.tobytes() for m in wanted.values()}) == 6


def test_all_first_then_a_part_frozen_then_a_load():
    """What left does not stand in the way of what is lined up by order."""
    model = three([True] * 3)
    retrain(model)
    retrain(model, [False, True, True])
    loaded = AdamW.from_config(model.optimizer.get_config())
    names = [("kernel", (4, 4)), ("bias", (4,))]
    loaded.build([variable(f"m/dense_{i}/{n}", shape=s) for i in (7, 8) for n, s in names])
    with pytest.warns(UserWarning, match="In the file only: momentum of seq/dense/kernel"):
        loaded.load_own_variables(saved(model.optimizer))
    wanted, found = (of_slot(one, "momentum") for one in (model.optimizer, loaded))
    for new, old in (("m/dense_7/", "seq/dense_1/"), ("m/dense_8/", "seq/dense_2/")):
        np.testing.assert_array_equal(found[new + "kernel"], wanted[old + "kernel"])


def test_a_variable_that_left_keeps_its_moments_beside_a_twin():
    first, second = variable("p"), variable("p")
    optimizer = built(first, second, learning_rate=1.0)
    optimizer.apply([keras.ops.full((2,), x) for x in (0.1, 0.2)], [first, second])
    for one, momentum in ((second, -0.2), (first, -0.1)):
        optimizer.build([one])
        assert of_slot(optimizer, "momentum")["p"][0] == pytest.approx(momentum)
    loaded = built(variable("p"), learning_rate=1.0)
    with pytest.warns(UserWarning, match="In the file only: momentum of p#2"):
        loaded.load_own_variables(saved(optimizer))
    assert of_slot(loaded, "momentum")["p"][0] == pytest.approx(-0.1)


def test_a_file_saved_before_the_first_build_with_whole_paths_as_keys(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")], name="seq")
    model.compile(AdamW(weight_decays={"seq/a/kernel": 1e-4}), loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    loaded.optimizer.build(loaded.trainable_variables)
    (kernel, _) = [v.path for v in loaded.trainable_variables]  # before Keras 3.16 without "seq/"
    assert kernel in ("a/kernel", "seq/a/kernel")
    assert loaded.optimizer.weight_decays == {kernel: (0.0, 1e-4)}


def test_a_new_variables_average_starts_at_the_variable():
    """The file does not have it, or has no averages at all and it is frozen at the load."""
    ema = {"use_ema": True, "ema_momentum": 0.9, "momentum": 0.0}
    a, b = variable("a"), variable("b", 7.0, (3,))
    for file, builds in ((built(a, **ema), [[a, b]]), (built(a, b, momentum=0.0), [[a, b], [a]])):
        b.assign([2.0, 3.0, 4.0])
        optimizer = built(**ema)
        for ours in builds:
            optimizer.build(ours)
        b.assign([5.0, 6.0, 7.0])
        with pytest.warns(UserWarning, match="Started fresh: average of"):
            optimizer.load_own_variables(saved(file))
        optimizer.build([a, b])
        np.testing.assert_array_equal(of_slot(optimizer, "average")["b"], [5.0, 6.0, 7.0])


def test_a_boolean_weight_has_its_state_back():
    def masked():
        mask = keras.Variable([True, False], dtype="bool", name="mask", trainable=False)
        return built(variable("a"), mask)

    optimizer, loaded = masked(), masked()
    loaded.load_own_variables(saved(optimizer))
    assert_same(contents(loaded), contents(optimizer))


# --- files that do not fit: nothing is assigned ---


@contextlib.contextmanager
def unchanged(optimizer):
    before = contents(optimizer)
    yield
    assert_same(contents(optimizer), before)


@each
def test_another_optimizers_state(name):
    """Its arrays stand in another order: a learning rate would become a moment, or our factor r."""
    if name in stock.STOCK:
        others = [stock.make_stock(name, learning_rate=0.5)]
    else:
        others = [keras.optimizers.SGD(momentum=0.9), keras.optimizers.Adam()]
    for other in others:
        optimizer = with_history(make(name), ["a"], pool())
        with_history(other, ["a"], pool())
        message = "was not loaded: another optimizer wrote it"
        with unchanged(optimizer), pytest.warns(UserWarning, match=message):
            optimizer.load_own_variables(saved(other))


def test_an_optimizer_that_is_not_built_says_that_it_loads_nothing():
    optimizer = SGDW(momentum=0.9, weight_decay=0)
    message = r"was not loaded: it is not built.*optimizer\.build"
    with unchanged(optimizer), pytest.warns(UserWarning, match=message):
        optimizer.load_own_variables(saved(built(variable("a"))))


NUMBERS = {"iteration": (-5, 2**40)} | dict.fromkeys(
    ["learning_rate", "weight_decay"], (np.nan, -1.0, np.inf)
)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, each in NUMBERS.items() for v in each])
def test_a_number_that_no_run_has(name, value):
    optimizer = built(variable("a"))
    store = saved(optimizer)
    [place] = [i for i, v in enumerate(optimizer.variables) if v.name == name]
    store[str(place)] = np.array(value)
    message = rf"for {name}\. Received: .*array"
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.load_own_variables(store)


@pytest.mark.parametrize("given", [0, 1e-60, 1e-37])
@pytest.mark.parametrize("rate", [0.1, CosineWarmRestarts(0.1, 10)], ids=["constant", "schedule"])
def test_a_learning_rate_that_nobody_gave(given, rate):
    """A damaged file: the rate over such a number would be no number, or an infinite factor."""
    store = saved(built(variable("a/w"), learning_rate=1000.0, weight_decay=1e-3))
    layout = json.loads(store["layout"].tobytes())
    layout["given"]["learning_rate"] = given
    store["layout"] = np.frombuffer(json.dumps(layout).encode(), dtype=np.uint8)
    optimizer = built(variable("a/w"), learning_rate=rate, weight_decay=1e-3)
    with unchanged(optimizer), pytest.raises(ValueError, match="not as this package writes it"):
        optimizer.load_own_variables(store)


# --- set_weights: by position ---


@pytest.mark.parametrize(
    ("name", "arguments", "history"),
    [
        *itertools.product(["adamw"], ARGUMENTS, HISTORIES),
        *((name, "plain", "frozen and back") for name in EVERY if name != "adamw"),
    ],
)
def test_each_variable_has_its_own_state_back(name, arguments, history):
    """Freeze, build, unfreeze, build; then its values into an optimizer that was built at once."""
    arguments, ours, theirs = ARGUMENTS[arguments], pool(), pool()
    optimizer = with_history(make(name, **arguments), HISTORIES[history], ours)
    fresh = with_history(make(name, **arguments), ["abcd"], theirs, updates=0)
    fresh.set_weights([numpy(v) for v in optimizer.variables])
    assert_same(contents(fresh), contents(optimizer))
    moments = [value.tobytes() for value in of_slot(fresh, "momentum").values()]
    assert len(set(moments)) == len(moments)  # so a swap would have been seen
    assert len(moments) == 4 or name != "adamw"
    for n, v in theirs.items():
        v.assign(numpy(ours[n]))
    for one, its in ((optimizer, ours), (fresh, theirs)):
        train(one, its, "abcd")
    for n, v in theirs.items():
        np.testing.assert_array_equal(numpy(v), numpy(ours[n]))


OTHERS = {
    "SGD": {},
    "SGD, momentum": {"momentum": 0.9},
    "Adam": {},
    "AdamW": {},
    "Nadam": {},
    "Adam, amsgrad": {"amsgrad": True},
}


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
@pytest.mark.parametrize("other", OTHERS)
def test_set_weights_refuses_another_optimizers_state(other, names):
    """Its learning rate would become ours, or our factor r; or it would fail half-way."""
    theirs = getattr(keras.optimizers, other.split(",")[0])(0.1, **OTHERS[other])
    ours = pool()
    theirs.build([ours[n] for n in names])
    values = [v.numpy() + 7 for v in theirs.variables]
    for name in ONE_OF_EACH:
        optimizer = with_history(make(name), [names], ours, updates=0)
        before = contents(optimizer)
        with pytest.raises(ValueError, match=r"`set_weights` needs .* Received: .*do not fit"):
            optimizer.set_weights(values)
        assert_same(contents(optimizer), before)


def test_set_weights_checks_everything_before_it_assigns_anything():
    optimizer = with_history(make("adamw"), ["abc"], pool())
    before, good = contents(optimizer), [v.numpy() + 1 for v in optimizer.variables]
    bad = {
        r"number 9, where .*c_w_velocity is expected": [
            [*good[:9], np.zeros(3, "float32"), *good[10:]],
            [*good[:9], np.zeros((2, 2, 1), "float32"), *good[10:]],
            good[:9],
        ],
        r"number 13, where nothing more is expected": [[*good, np.zeros(2, "float32")]],
        r"number 0, where .* is expected": [[], [np.zeros(1, "int32"), *good[1:]]],
    }
    for message, examples in bad.items():
        for values in examples:
            with pytest.raises(ValueError, match=f"`set_weights` needs .*{message}"):
                optimizer.set_weights(values)
            assert_same(contents(optimizer), before)
    optimizer.set_weights(good)
    assert_same(contents(optimizer), {k: np.float32(v) + np.float32(1) for k, v in before.items()})


# --- tf.train.Checkpoint: by position, in lists that TensorFlow tracks ---

if BACKEND == "tensorflow":
    import tensorflow as tf

    @histories
    @pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
    def test_a_checkpoint_of_tensorflow(tmp_path, arguments, history):
        optimizer = with_history(make("adamw", **arguments), history, pool())
        path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "c")
        fresh = with_history(make("adamw", **arguments), ["abcd"], pool(), updates=0)
        status = tf.train.Checkpoint(optimizer=fresh).restore(path)
        status.assert_existing_objects_matched()
        assert_same(contents(fresh), contents(optimizer))

    def test_a_checkpoint_before_and_after_a_rebuild(tmp_path):
        ours = pool()
        optimizer = with_history(make("adamw"), ["c"], ours)
        checkpoint = tf.train.Checkpoint(optimizer=optimizer)
        checkpoint.save(tmp_path / "before")
        with_history(optimizer, ["abc"], ours)
        expected = contents(optimizer)
        path = checkpoint.save(tmp_path / "after")
        train(optimizer, ours, "abc")
        checkpoint.restore(path).assert_consumed()
        assert_same(contents(optimizer), expected)

    def test_a_checkpoint_of_a_model(tmp_path):
        model, again = three([False, True, True]), three([True] * 3)
        retrain(model)
        retrain(model, [True] * 3)
        path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
        again.optimizer.build(again.trainable_variables)
        tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(path).assert_consumed()
        for one in (model, again):
            retrain(one)
        for a, b in zip(model.weights, again.weights, strict=True):
            np.testing.assert_array_equal(numpy(a), numpy(b))


# --- how it grows ---


def cost(action, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def many(count):
    return [keras.Variable(np.ones(1, "float32"), name=f"w{i}") for i in range(count)]


def test_a_schedule_that_variables_share_is_asked_once():
    asked = []

    class Noted(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            asked.append(step)
            return 1e-3

    ours, optimizer = many(100), AdamW(1e-3, weight_decay=Noted())
    asked.clear()
    optimizer.explain(ours)
    optimizer.build(ours)
    assert len(asked) == 2


def test_no_part_is_quadratic_in_the_number_of_variables():
    """4 times the variables: 4 times the time, 16 where it is quadratic. In between there is room for noise."""
    times = {}
    for count in (250, 1000):
        ours, rules = many(count), {f"w{i}": Decay(0.1) for i in range(count)}
        optimizer = AdamW(1e-3, weight_decay=0.1, weight_decays=rules)
        build = cost(lambda o=optimizer, v=ours: o.build(v), repeats=1)
        store, config = saved(optimizer), optimizer.get_config()
        times[count] = {
            "build": build,
            "build again": cost(lambda o=optimizer, v=ours: (o.build(v[1:]), o.build(v)), 2),
            "save": cost(lambda o=optimizer: saved(o)),
            "load": cost(lambda o=optimizer, s=store: o.load_own_variables(s)),
            "get_config": cost(optimizer.get_config),
            "from_config": cost(lambda c=config: AdamW.from_config(c)),
        }
    for what, time_of_1000 in times[1000].items():
        assert time_of_1000 < 12 * times[250][what] + 0.05, (what, times)


if BACKEND == "torch":  # rules know no backend, and 20,000 variables take the others seconds

    def test_many_rules_for_many_variables():
        """Each key or exclusion compared with each variable would take minutes."""
        ours, times = many(20_000), []
        rules = {f"w{i}" + "/" * (i % 8 > 0): 0.5 for i in range(0, 20_000, 4)} | {"w": 0.25}
        for ruled in (False, True):
            optimizer = AdamW(1e-3, weight_decay=0.1, weight_decays=rules if ruled else None)
            if ruled:
                optimizer.exclude_from_weight_decay(ours[::2], ["w1.*7$", "2$"])
            times.append(cost(lambda o=optimizer: o.explain(ours), repeats=1))
        assert times[1] < 3 * times[0] + 1, times
