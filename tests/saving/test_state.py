"""State goes to the variable it belongs to, through files (by path) and by position (`set_weights`, checkpoints).

What a state may not hold is in `tests/hostile/test_configs.py`.
"""

import contextlib
import time

import keras
import numpy as np
import pytest
from keras import layers

import stock
from cases import BACKEND, eager, make_variable, numpy, warm_restarts
from keras_decoupled import SGDW, AdamW, Decay
from slots import HISTORIES, assert_same, contents, make, of_slot, pool, saved, train, with_history

EMA = {"use_ema": True, "ema_momentum": 0.75}
EVERYTHING = EMA | {"weight_decay": Decay(0.1, towards="initial")}


def variable(path, value=1.0, shape=(2,)):
    return make_variable(path, np.full(shape, value, "float32"))


def built(*ours, **arguments):
    optimizer = SGDW(**({"momentum": 0.9, "weight_decay": 0} | arguments))
    optimizer.build(list(ours))
    return optimizer


# --- files: by path ---


# The last three are Keras' own: with a scalar, with slots of other shapes, with slots for some variables alone.
@pytest.mark.parametrize("name", ["adamw-amsgrad", "nadamw", "nadam", "adafactor", "muon"])
def test_a_load_into_another_order(name):
    """Each slot goes to its variable, and scalars are carried over: both go on alike, to the bit."""
    arguments = EMA | {"learning_rate": warm_restarts(0.05, 4, t_mul=2, eta_min=0.1)}
    optimizer, loaded = make(name, **arguments), make(name, **arguments)
    ours, theirs = pool(), pool()
    train(optimizer, ours, "abcd")
    for n, v in theirs.items():
        v.assign(numpy(ours[n]))
    loaded.build([theirs[n] for n in "dbca"])
    loaded.load_own_variables(saved(optimizer))
    assert_same(contents(loaded), contents(optimizer), in_order=False)
    dtypes = [
        {place: v.dtype for place, v in zip(contents(one), one.variables, strict=True)}
        for one in (loaded, optimizer)
    ]
    assert dtypes[0] == dtypes[1]
    train(optimizer, ours, "abcd")
    train(loaded, theirs, "dbca")
    assert_same(contents(loaded), contents(optimizer), in_order=False)
    for n, v in theirs.items():
        assert np.array_equal(numpy(v), numpy(ours[n])), n


def test_head_first_then_all_then_a_file(tmp_path):
    """The head's slots were made first; its moments must not move to the first layer."""
    dense = [layers.Dense(4, trainable=i == 2) for i in range(3)]
    model = keras.Sequential([keras.Input((4,)), *dense], name="seq")
    optimizer = AdamW(weight_decay=1e-3)
    for _ in range(2):
        model.compile(optimizer, loss="mse", run_eagerly=True)
        optimizer.build(model.trainable_variables)
        model.train_on_batch(*np.random.default_rng(0).random((2, 8, 4), "float32"))
        for layer in dense:
            layer.trainable = True
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    wanted, found = (
        # Before 3.16 Keras gives a loaded Sequential paths without its name.
        {label.removeprefix("seq/"): m for label, m in of_slot(one, "momentum").items()}
        for one in (optimizer, loaded.optimizer)
    )
    assert_same(found, wanted)
    assert len({m.tobytes() for m in wanted.values()}) == 6


def test_all_first_then_a_part_frozen_then_a_load():
    """What left does not stand in the way of what is lined up by order."""
    shapes = {"kernel": (4, 4), "bias": (4,)}

    def dense(*numbers):
        return [variable(f"m/dense_{i}/{n}", shape=s) for i in numbers for n, s in shapes.items()]

    ours = dense(0, 1, 2)
    optimizer, loaded = make("adamw"), make("adamw")
    eager(optimizer, ours)([np.full(v.shape, 1.0 + i) for i, v in enumerate(ours)])
    optimizer.build(ours[2:])
    loaded.build(dense(7, 8))
    with pytest.warns(UserWarning, match="In the file only: momentum of m/dense_0/kernel"):
        loaded.load_own_variables(saved(optimizer))
    found = list(of_slot(loaded, "momentum").values())
    wanted = [of_slot(optimizer, "momentum")[v.path] for v in ours[2:]]
    assert len({value.tobytes() for value in found}) == 4
    assert all(map(np.array_equal, found, wanted))


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
    both = built(variable("p"), variable("p"), learning_rate=1.0)
    both.load_own_variables(saved(optimizer))  # what left is found by its label
    assert [of_slot(both, "momentum")[p][0] for p in ("p", "p#2")] == pytest.approx([-0.1, -0.2])


def test_a_file_saved_before_the_first_build_with_whole_paths_as_keys(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")], name="seq")
    model.compile(AdamW(weight_decays={"seq/a/kernel": 1e-4}), loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    loaded.optimizer.build(loaded.trainable_variables)
    (kernel, _) = [v.path for v in loaded.trainable_variables]  # before Keras 3.16 without "seq/"
    assert kernel in ("a/kernel", "seq/a/kernel")
    assert loaded.optimizer.weight_decays == {kernel: (0.0, 1e-4)}


def test_a_file_saved_before_the_first_build_with_an_excluded_variable(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")], name="seq")
    optimizer = AdamW(weight_decay=1e-4)
    optimizer.exclude_from_weight_decay(var_list=[model.layers[0].kernel])
    model.compile(optimizer, loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    loaded.optimizer.build(loaded.trainable_variables)
    assert [path.split("/")[-1] for path in loaded.optimizer.weight_decays] == ["bias"]


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
    mask = keras.Variable([True, False], dtype="bool", name="mask", trainable=False)
    optimizer, loaded = (built(variable("a"), mask) for _ in range(2))
    loaded.load_own_variables(saved(optimizer))
    assert_same(contents(loaded), contents(optimizer))


# --- states that do not fit: nothing is assigned ---


@contextlib.contextmanager
def unchanged(optimizer):
    before = contents(optimizer)
    yield
    assert_same(contents(optimizer), before)


@pytest.mark.parametrize("name", ["adamw", "sgdw-momentum", "lion", "muon"])
def test_another_optimizers_state(name):
    """Its arrays stand in another order: a learning rate would become a moment, or our factor r."""
    others = [keras.optimizers.SGD(momentum=0.9), keras.optimizers.Adam()]
    if name in stock.STOCK:
        others = [stock.make_stock(name, learning_rate=0.5)]
    optimizer = with_history(make(name), ["a"], pool())
    for other in others:
        with_history(other, ["a"], pool())
        message = "was not loaded: another optimizer wrote it"
        with unchanged(optimizer), pytest.warns(UserWarning, match=message):
            optimizer.load_own_variables(saved(other))


def test_an_optimizer_that_is_not_built_says_that_it_loads_nothing():
    optimizer = SGDW(momentum=0.9, weight_decay=0)
    message = r"was not loaded: it is not built.*optimizer\.build"
    with unchanged(optimizer), pytest.warns(UserWarning, match=message):
        optimizer.load_own_variables(saved(built(variable("a"))))


def test_set_weights_checks_everything_before_it_assigns_anything():
    """A learning rate of another optimizer would become ours, or our factor r; or it would fail half-way."""
    optimizer = with_history(make("adamw"), ["abc"], pool())
    before, good = contents(optimizer), [v.numpy() + 1 for v in optimizer.variables]
    others = [keras.optimizers.SGD(momentum=0.9), keras.optimizers.Adam(amsgrad=True)]
    for other in others:
        other.build(list(pool().values())[:3])
    bad = {
        r"number 9, where .*c_w_velocity is expected": [
            [*good[:9], np.zeros(3, "float32"), *good[10:]],
            [*good[:9], np.zeros((2, 2, 1), "float32"), *good[10:]],
            good[:9],
        ],
        r"number 13, where nothing more is expected": [[*good, np.zeros(2, "float32")]],
        r"number 0, where .* is expected": [[], [np.zeros(1, "int32"), *good[1:]]],
        r"do not fit": [[v.numpy() for v in other.variables] for other in others],
    }
    for message, examples in bad.items():
        for values in examples:
            needs = pytest.raises(ValueError, match=f"`set_weights` needs .*{message}")
            with unchanged(optimizer), needs:
                optimizer.set_weights(values)
    optimizer.set_weights(good)
    assert_same(contents(optimizer), {k: np.float32(v) + np.float32(1) for k, v in before.items()})


# --- by position: `set_weights`, and tf.train.Checkpoint in lists that TensorFlow tracks ---


@pytest.mark.parametrize(
    ("name", "arguments", "history"),
    [
        *(("adamw", EVERYTHING, history) for history in HISTORIES),
        ("adamw", {"gradient_accumulation_steps": 2}, "frozen and back"),
        *(
            (name, {}, "frozen and back")
            for name in ("sgdw-momentum", "nadam", "adafactor", "muon")
        ),
    ],
)
def test_each_variable_has_its_own_state_back(name, arguments, history):
    """Freeze, build, unfreeze, build; then its values into an optimizer that was built at once."""
    ours, theirs = pool(), pool()
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


if BACKEND == "tensorflow":
    import tensorflow as tf

    @pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
    def test_a_checkpoint_of_tensorflow(tmp_path, history):
        arguments = EVERYTHING | {"gradient_accumulation_steps": 2}
        optimizer = with_history(make("adamw", **arguments), history, pool())
        path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "c")
        fresh = with_history(make("adamw", **arguments), ["abcd"], pool(), updates=0)
        status = tf.train.Checkpoint(optimizer=fresh).restore(path)
        status.assert_existing_objects_matched()
        assert_same(contents(fresh), contents(optimizer))

    @pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-momentum", "muon"])
    def test_a_checkpoint_of_0_2(tmp_path, name):
        """It has no settings. These come last, so that all else has its old place."""
        optimizer = with_history(make(name), ["abcd"], pool())
        settings = [v for v in optimizer.variables if v.name in optimizer._kd.settings]
        assert settings
        assert optimizer.variables[-len(settings) :] == settings
        old = tf.train.Checkpoint(_variables=optimizer._variables[: -len(settings)])
        path = tf.train.Checkpoint(optimizer=old).save(tmp_path / "c")
        fresh = with_history(make(name), ["abcd"], pool(), updates=0)
        tf.train.Checkpoint(optimizer=fresh).restore(path).expect_partial()
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


# --- how it grows ---


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


def cost(action, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


if (
    BACKEND == "torch"
):  # rules and files know no backend, and many variables take the others seconds

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

    def test_many_rules_for_many_variables():
        """Each key or exclusion compared with each variable would take minutes."""
        ours, times = many(4_000), []
        rules = {f"w{i}" + "/" * (i % 8 > 0): 0.5 for i in range(0, 4_000, 4)} | {"w": 0.25}
        for ruled in (False, True):
            optimizer = AdamW(1e-3, weight_decay=0.1, weight_decays=rules if ruled else None)
            if ruled:
                optimizer.exclude_from_weight_decay(ours[::2], ["w1.*7$", "2$"])
            times.append(cost(lambda o=optimizer: o.explain(ours), repeats=1))
        assert times[1] < 3 * times[0] + 0.2, times
