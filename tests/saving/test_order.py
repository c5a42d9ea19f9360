"""The order of `optimizer.variables`: what goes by position (`set_weights`, `tf.train.Checkpoint`) has nothing else."""

import itertools
import time

import keras
import numpy as np
import pytest

from cases import BACKEND, OPTIMIZERS, make_variable, numpy
from keras_decoupled import SGDW, AdamW, Decay
from training import make, tensors

ARGUMENTS = {
    "plain": {},
    "EMA, accumulation": {"use_ema": True, "gradient_accumulation_steps": 2},
    "a reference": {"weight_decay": Decay(0.1, towards="initial")},
}
# Lists of variables, by name, built one after the other; the last of all three.
HISTORIES = {
    "unfrozen later": ["c", "abc"],
    "one by one": ["b", "bc", "abc"],
    "frozen and back": ["abc", "b", "abc"],
    "in another order": ["cba", "abc"],
    "swapped": ["a", "bc", "abc"],
}


def pool(dtype="float32"):
    """Three of one shape: what is given to the wrong one is not refused."""
    return {n: make_variable(f"net/{n}/w", np.full(2, 1.0 + i), dtype) for i, n in enumerate("abc")}


def train(optimizer, ours, names, updates=2):
    for k in range(updates):
        grads = [np.full(2, 1.0 + "abc".index(n) + 0.1 * k, str(ours[n].dtype)) for n in names]
        optimizer.apply(tensors(grads), [ours[n] for n in names])


def with_history(name, history, ours, updates=2, **arguments):
    """An optimizer that was built on each of these lists in turn, and trained."""
    optimizer = make(name, **arguments)
    for names in history:
        optimizer.build([ours[n] for n in names])
        train(optimizer, ours, names, updates)
    return optimizer


def slots(optimizer):
    """{(slot, variable): value}, by what each optimizer variable says of itself."""
    layout = optimizer._slots.layout(optimizer.variables)["variables"]
    return {
        (name, label): numpy(v)
        for (name, label), v in zip(layout, optimizer.variables, strict=True)
    }


def assert_same(one, other):
    assert list(one) == list(other)
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=str(key))


# --- the order ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_depends_on_the_last_build_alone(name, arguments, dtype):
    ours = pool(dtype)
    at_once = make(name, **arguments)
    at_once.build(list(ours.values()))
    expected = list(slots(at_once))
    for history in HISTORIES.values():
        optimizer = with_history(name, history, pool(dtype), updates=0, **arguments)
        assert list(slots(optimizer)) == expected
    names = [slot for slot, _ in expected]
    assert names[0] == "iteration"
    count = sum(label is None for _, label in expected)  # scalars first, then slot by slot
    assert all(label is None for _, label in expected[:count])
    assert [label for _, label in expected[count:]] == ["net/a/w", "net/b/w", "net/c/w"] * (
        (len(expected) - count) // 3
    )
    for slot in names[count::3]:
        assert names.count(slot) == 3


def test_what_left_comes_last():
    ours = pool()
    optimizer = with_history("adamw", ["abc", "b"], ours)
    names = [label for _, label in slots(optimizer) if label]
    assert names == ["net/b/w"] * 2 + ["net/a/w", "net/c/w"] * 2
    assert len(optimizer.variables) == len({id(v) for v in optimizer.variables})


@keras.saving.register_keras_serializable(package="test_order")
class WithMore(SGDW):
    """A subclass with a slot that the mechanism does not know, and a scalar."""

    def add_scalars(self):
        super().add_scalars()
        self.add_variable((), name="more")

    def build(self, variables):
        super().build(variables)
        self.more = self.add_optimizer_variables(list(variables), "more_slot")


def test_a_subclass_keeps_its_variables():
    ours = pool()
    optimizer = WithMore(0.1, momentum=0.9, weight_decay=0.1)
    for names in ("c", "abc"):
        optimizer.build([ours[n] for n in names])
        names = [name for name, _ in slots(optimizer)]
        assert names.count("more") == 1
        assert names.count("more_slot") == names.count("momentum") == len(optimizer.more)


# --- set_weights ---


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [*(("adamw", name) for name in ARGUMENTS), ("nadamw", "plain"), ("sgdw-momentum", "plain")],
)
def test_each_variable_has_its_own_state_back(name, arguments, history):
    """Freeze, build, unfreeze, build; then its values into an optimizer that was built at once."""
    arguments, ours, theirs = ARGUMENTS[arguments], pool(), pool()
    optimizer = with_history(name, history, ours, **arguments)
    fresh = make(name, **arguments)
    fresh.build(list(theirs.values()))
    fresh.set_weights([numpy(v) for v in optimizer.variables])
    assert_same(slots(fresh), slots(optimizer))
    values = {label: v[0] for (slot, label), v in slots(fresh).items() if slot == "momentum"}
    assert len(set(values.values())) == len(values) == 3  # so that a swap would have been seen

    for n, variable in theirs.items():
        variable.assign(numpy(ours[n]))
    train(optimizer, ours, "abc")
    train(fresh, theirs, "abc")
    for n, variable in theirs.items():
        np.testing.assert_array_equal(numpy(variable), numpy(ours[n]))


def stock(name, ours):
    makers = {
        "SGD": lambda: keras.optimizers.SGD(0.1),
        "SGD, momentum": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        "Adam": lambda: keras.optimizers.Adam(0.1),
        "AdamW": lambda: keras.optimizers.AdamW(0.1),
        "Nadam": lambda: keras.optimizers.Nadam(0.1),
        "Adam, amsgrad": lambda: keras.optimizers.Adam(0.1, amsgrad=True),
    }
    optimizer = makers[name]()
    optimizer.build(list(ours.values()))
    return optimizer


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "other", ["SGD", "SGD, momentum", "Adam", "AdamW", "Nadam", "Adam, amsgrad"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimizers_state_is_refused(name, other, count):
    """Its learning rate would become ours, or our factor r; or it would fail half-way."""
    ours = dict(itertools.islice(pool().items(), count))
    optimizer = make(name)
    optimizer.build(list(ours.values()))
    train(optimizer, ours, list(ours))
    before = slots(optimizer)
    theirs = [v.numpy() + 7 for v in stock(other, ours).variables]
    with pytest.raises(ValueError, match=r"`set_weights` needs .* Received: .*do not fit"):
        optimizer.set_weights(theirs)
    assert_same(slots(optimizer), before)


def test_everything_is_checked_before_anything_is_assigned():
    ours = pool()
    optimizer = with_history("adamw", ["abc"], ours)
    good = [v.numpy() + 1 for v in optimizer.variables]
    before = slots(optimizer)
    bad = {
        "too few": good[:-1],
        "too many": [*good, np.zeros(2, "float32")],
        "none": [],
        "the last of another shape": [*good[:-1], np.zeros(3, "float32")],
        "the last of another rank": [*good[:-1], np.zeros((2, 1), "float32")],
        "the first of another shape": [np.zeros(1, "int32"), *good[1:]],
    }
    for values in bad.values():
        with pytest.raises(ValueError, match="`set_weights` needs"):
            optimizer.set_weights(values)
        assert_same(slots(optimizer), before)
    with pytest.raises(ValueError, match=r"number 9, where .*c_w_velocity is expected"):
        optimizer.set_weights(bad["the last of another shape"])
    with pytest.raises(ValueError, match=r"number 10, where nothing more is expected"):
        optimizer.set_weights(bad["too many"])
    optimizer.set_weights(good)
    assert_same(slots(optimizer), {k: np.float32(v) + np.float32(1) for k, v in before.items()})


# --- tf.train.Checkpoint ---

if BACKEND == "tensorflow":

    @pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
    @pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
    def test_a_checkpoint_of_tensorflow(tmp_path, arguments, history):
        """It goes by position in lists that TensorFlow tracks, and a rebuild makes one anew."""
        import tensorflow as tf

        ours = pool()
        optimizer = with_history("adamw", history, ours, **arguments)
        path = tf.train.Checkpoint(optimizer=optimizer).save(tmp_path / "c")
        fresh = make("adamw", **arguments)
        fresh.build(list(pool().values()))
        status = tf.train.Checkpoint(optimizer=fresh).restore(path)
        status.assert_existing_objects_matched()
        assert_same(slots(fresh), slots(optimizer))

    def test_a_checkpoint_before_and_after_a_rebuild(tmp_path):
        import tensorflow as tf

        ours = pool()
        optimizer = with_history("adamw", ["c"], ours)
        checkpoint = tf.train.Checkpoint(optimizer=optimizer)
        checkpoint.save(tmp_path / "before")
        optimizer.build(list(ours.values()))
        train(optimizer, ours, "abc")
        expected = slots(optimizer)
        path = checkpoint.save(tmp_path / "after")
        train(optimizer, ours, "abc")
        checkpoint.restore(path).assert_consumed()
        assert_same(slots(optimizer), expected)

    def test_a_checkpoint_of_a_model(tmp_path):
        import tensorflow as tf

        def net():
            return keras.Sequential(
                [keras.Input((2,)), *(keras.layers.Dense(2, name=n) for n in "ab")]
            )

        x = np.random.default_rng(0).random((4, 2), "float32")
        model = net()
        model.layers[0].trainable = False
        model.compile(AdamW(0.1, weight_decay=0.1), loss="mse")
        model.fit(x, x, verbose=0)
        model.layers[0].trainable = True
        model.compile(model.optimizer, loss="mse")
        model.fit(x, x, verbose=0)
        path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(tmp_path / "c")
        again = net()
        again.compile(AdamW(0.1, weight_decay=0.1), loss="mse")
        again.optimizer.build(again.trainable_variables)
        tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(path).assert_consumed()
        for one in (model, again):
            one.fit(x, x, verbose=0)
        for a, b in zip(model.weights, again.weights, strict=True):
            np.testing.assert_array_equal(numpy(a), numpy(b))


# --- how it grows ---


def many(count):
    return [keras.Variable(np.ones(1, "float32"), name=f"w{i}") for i in range(count)]


def cost(action, repeats=3):
    times = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


def test_no_part_is_quadratic_in_the_number_of_variables():
    """4 times the variables: 4 times the time, 16 where it is quadratic. In between there is room for noise."""
    times = {}
    for count in (500, 2000):
        ours = many(count)
        store, config = {}, None
        optimizer = AdamW(1e-3, weight_decay=0.1)
        build = cost(lambda o=optimizer, v=ours: o.build(v), repeats=1)
        config = optimizer.get_config()
        times[count] = {
            "build": build,
            "build again": cost(
                lambda o=optimizer, v=ours: (o.build(v[1:]), o.build(v)), repeats=2
            ),
            "save": cost(lambda o=optimizer, s=store: o.save_own_variables(s)),
            "load": cost(lambda o=optimizer, s=store: o.load_own_variables(s)),
            "get_config": cost(optimizer.get_config),
            "from_config": cost(lambda c=config: AdamW.from_config(c)),
        }
    for what, time_of_2000 in times[2000].items():
        assert time_of_2000 < 12 * times[500][what] + 0.05, (what, times)
