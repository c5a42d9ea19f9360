"""The value `Decay` and the rule `decayed`; what an optimizer keeps of them, the reference above all.

That each kind computes what it should in every optimizer is in optimizers/test_trajectories.py.
"""

import copy
import json
import pickle
import re
from functools import partial

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given, settings

import oracle
from cases import BACKEND, eager, make_decay, make_variable, numpy
from effort import examples
from keras_decoupled import AdamW, Decay
from keras_decoupled.decay.kinds import decayed
from slots import assert_same, contents, of_slot, saved
from training import X, Y, make

schedules = keras.optimizers.schedules
FALLING = partial(schedules.PolynomialDecay, 0.1, 10, 0.01)


# --- the value ---

PLAIN = [
    Decay(),
    Decay(1e-4),
    Decay(l1=0.1),
    Decay(0.5, 1e-20),
    Decay(2),
]
EVERY = [
    *PLAIN,
    Decay(0.1, towards="initial"),
    Decay(0.1, cautious=True),
    Decay(0.1, eta_power=0),
    Decay(0.1, eta_power=2),
    Decay(0.1, eta_power=0.5),
    Decay(0.1, 0.2, soft_threshold=True),
    Decay(0.1, towards="initial", cautious=True, eta_power=0, soft_threshold=True),
]


def shown(value):
    """A test's name: without addresses, which differ from process to process."""
    return re.sub(r"<[^>]*?(\w+) object at 0x[0-9a-f]+>", r"\1", repr(value))[:60]


@pytest.mark.parametrize("decay", EVERY, ids=shown)
def test_the_repr_makes_it_again(decay):
    again = eval(repr(decay))
    assert again == decay
    assert again is not decay
    assert hash(again) == hash(decay)

    defaults = r"l[12]=0\.0[,)]|zero|False|eta_power=1[,)]"
    assert not re.search(defaults, repr(decay))


def test_each_of_them_is_another():
    assert [decay for decay in EVERY if decay.plain] == PLAIN
    assert [decay for decay in EVERY if not decay.in_words] == PLAIN
    assert len(set(EVERY)) == len(EVERY)
    for decay in EVERY:
        assert [other == decay for other in EVERY].count(True) == 1
        assert decay != 0.1
        assert decay != (decay.l1, decay.l2)


def test_numbers_of_any_type_are_the_same():
    assert Decay(np.float32(0.5), np.int64(1), eta_power=2.0) == Decay(0.5, 1, eta_power=2)
    assert Decay(1e-4) == Decay(l2=1e-4, l1=0, towards="zero", cautious=np.False_, eta_power=1.0)
    assert isinstance(Decay(1, 1).l2, float)
    assert isinstance(Decay(1, 1).l1, float)
    assert repr(Decay(0.5, eta_power=2.0)) == "Decay(l2=0.5, eta_power=2)"


def test_schedules_are_compared_by_their_config():
    assert Decay(FALLING()) == Decay(FALLING())
    assert hash(Decay(FALLING())) == hash(Decay(FALLING()))
    assert Decay(FALLING()) != Decay(FALLING(power=2.0))
    assert Decay(FALLING()) != Decay(0.1)


def test_it_does_not_change():
    decay = Decay(0.1)
    with pytest.raises(AttributeError):
        decay.l2 = 0.2
    with pytest.raises(AttributeError):
        del decay.l1
    assert decay.with_amounts(0.2, 0.3) == Decay(0.2, 0.3)
    assert Decay(0.1, 0.3, cautious=True).with_amounts(0.2) == Decay(0.2, 0.3, cautious=True)
    assert decay == Decay(0.1)


@pytest.mark.parametrize("decay", [*EVERY, Decay(FALLING(), cautious=True)], ids=shown)
def test_copies_and_json(decay):
    assert copy.deepcopy(decay) == pickle.loads(pickle.dumps(decay)) == decay
    config = json.loads(json.dumps(decay.get_config()))
    if isinstance(decay.l2, float):
        assert Decay(**config) == decay
        one, other = (AdamW(weight_decay=given, name="one") for given in (config, decay))
        assert one.get_config() == other.get_config()


ERRORS = (ValueError, TypeError)
NAN, INF = float("nan"), float("inf")
REFUSED = [  # field, values of a wrong range, values of a wrong type
    ("l2", [-0.1, NAN, INF, 1e38], [None, "0.1", True, (0.1, 0.2), lambda: 0.1]),
    ("l1", [-0.1, INF], [FALLING(), None]),
    ("towards", ["first", None, 0, ["zero"]], []),
    ("cautious", [], [1, None]),
    ("soft_threshold", [], ["yes", 0.1]),
    ("eta_power", [-1, NAN, 100], [None, True]),
]


@pytest.mark.parametrize(("name", "values", "types"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_refused(name, values, types):
    """The message names the field, shows what came, and ends with what to do: also from a dict."""
    wrong = [
        ({name: x}, error) for error, of in zip(ERRORS, (values, types), strict=True) for x in of
    ]
    if name == "soft_threshold":
        wrong.append(({"l1": 0.1, "soft_threshold": True, "cautious": True}, ValueError))
    for fields, error in wrong:
        for made in (Decay, lambda **fields: AdamW(weight_decay=fields)):
            with pytest.raises(error, match=rf"`{name}`[\s\S]* Received: [\s\S]+\. \S+") as refused:
                made(**fields)
            assert str(refused.value).endswith(".")


@pytest.mark.parametrize("given", [(0.1,), (0.1, 0.2, 0.3), [], {"l3": 0.1}, {"l2": 0.1, "eta": 1}])
@pytest.mark.parametrize("argument", ["weight_decay", "weight_decays"])
def test_no_decay_at_all(argument, given):
    with pytest.raises(ValueError, match=f"`{argument}.* must be a .*Received: .*Write"):
        AdamW(**{argument: given if argument == "weight_decay" else {"kernel": given}})


def test_what_is_by_position():
    with pytest.raises(TypeError, match="positional"):
        Decay(0.1, 0.2, "initial")


SAME = [
    (0.1, Decay(0.1)),
    ((0.2, 0.1), Decay(0.1, 0.2)),
    ([0.2, 0.1], Decay(0.1, 0.2)),
    ({"l2": 0.1, "l1": 0.2}, Decay(0.1, 0.2)),
    (FALLING(), Decay(FALLING())),
    ((0.2, FALLING()), Decay(FALLING(), 0.2)),
    ({"l2": FALLING(), "cautious": True}, Decay(FALLING(), cautious=True)),
]


@pytest.mark.parametrize(("given", "decay"), SAME, ids=shown)
def test_every_way_to_say_it(given, decay):
    """As the uniform decay and under a key: the same rows and the same updates."""
    found = []
    for value in (given, decay):
        for arguments in ({"weight_decay": value}, {"weight_decays": {"w": value}}):
            variable = make_variable("w", np.array([1.0, -2.0]))
            optimizer = AdamW(0.1, **arguments)
            step = eager(optimizer, [variable])
            for _ in range(2):
                step([np.array([0.5, -0.25], "float32")])
            [row] = optimizer.weight_decays.values()
            row = row if isinstance(row, Decay) else Decay(row[1], row[0])
            found.append((row, numpy(variable).tolist()))
    assert found[0][0] == decay
    assert all(other == found[0] for other in found)


# --- the rule ---

DTYPES = ["float32"] + ["float64"] * (BACKEND != "jax")  # which has it only where it is switched on
ULP = {"float32": 2.0**-23, "float64": 2.0**-52}
numbers = st.lists(st.integers(-(2**20), 2**20).map(lambda n: n / 2**18), min_size=6, max_size=6)
amounts = st.sampled_from([0.0, 2.0**-30, 1e-4, 0.03, 0.5])


@settings(max_examples=examples(300), deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    theta=numbers,
    step=numbers,
    initial=numbers,
    l2=amounts,
    l1=amounts,
    towards=st.sampled_from(["zero", "initial"]),
    cautious=st.booleans(),
    soft_threshold=st.booleans(),
)
def test_the_rule(dtype, theta, step, initial, l2, l1, towards, cautious, soft_threshold):
    if cautious and soft_threshold:
        l1 = 0.0
    l2, l1 = (float(np.asarray(x, dtype)) for x in (l2, l1))
    # Some elements are where they go, and some steps are 0.
    theta, step, initial = (np.array(x, dtype) for x in (theta, step, initial))
    theta[0], theta[1], step[1], step[2] = initial[0], 0, 0, 0
    decay = oracle.Decay(l1, l2, towards, cautious, 1, soft_threshold)
    expected = oracle.decayed(
        theta.astype("float64"),
        step.astype("float64"),
        decay,
        1.0,
        l2,
        initial.astype("float64") if towards == "initial" else 0.0,
    )
    tensor = partial(keras.ops.convert_to_tensor, dtype=dtype)
    found = decayed(
        tensor(theta),
        tensor(step),
        make_decay(decay),
        tensor(l2) if l2 else None,
        tensor(l1) if l1 else None,
        tensor(initial) if towards == "initial" else None,
    )
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    size = np.abs(theta) + np.abs(step) + np.abs(initial) + l1
    assert np.all(np.abs(numpy(found) - expected) <= 4 * ULP[dtype] * size)


def test_cautious_where_the_product_is_no_float32():
    """1e-30 times −1e-30 is −0, of which −0 ≥ 0 is true; a step against the decay still is one."""
    theta, step = (keras.ops.convert_to_tensor(np.float32([x, -x])) for x in (1e-30, -1e-30))
    found = decayed(theta, step, Decay(0.5, cautious=True), l2=0.5)
    np.testing.assert_allclose(numpy(found), [2e-30, -2e-30])


TINY = [
    Decay(1e-8),
    Decay(1e-8, cautious=True),
    Decay(1e-8, towards="initial"),
    Decay(1e-8, soft_threshold=True),
]


@pytest.mark.parametrize("decay", TINY, ids=shown)
def test_a_tiny_decay_beside_a_step_is_not_lost(decay):
    """Taken from 1, float32 loses 1e-8 each time; in one sum with the step it is there on average."""
    rng = np.random.default_rng(0)
    theta = np.float32(1 + 0.7 * rng.random(10**5))
    # Steps are spread evenly over four of the distances between float32 numbers there.
    step, ref = np.float32(2.0**-21 * rng.random(theta.shape)), np.float32(0.2)
    ref = ref if decay.towards == "initial" else None
    theta, step = map(keras.ops.convert_to_tensor, (theta, step))
    lost = numpy(theta) - numpy(decayed(theta, step, decay, l2=np.float32(1e-8), reference=ref))
    expected = 1e-8 * np.mean(numpy(theta) - (0 if ref is None else ref))
    np.testing.assert_allclose(np.mean(lost) - np.mean(numpy(step)), expected, rtol=0.1)


# --- in an optimizer ---


def two_layers(**arguments):
    """Layers "a" and "b" of the same shapes."""
    x = y = keras.Input((3,))
    for name, units in {"a": 3, "b": 3, "head": 2}.items():
        y = keras.layers.Dense(units, name=name, **arguments)(y)
    model = keras.Model(x, y)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype("float32") for w in model.weights])
    return model


def references(optimizer):
    """The references by the variable's path."""
    return of_slot(optimizer, "reference")


def weights(model):
    return {v.path: numpy(v) for v in model.weights}


def train(model, updates=2):
    for _ in range(updates):
        model.train_on_batch(X, Y)


TOWARDS_INITIAL = Decay(0.1, towards="initial")
MIXED = {
    "weight_decay": Decay(0.02, cautious=True),
    "weight_decays": {
        "bias": (0.001, 0.0),
        "a": Decay(FALLING(), 0.01, towards="initial", eta_power=0),
        "b/kernel": Decay(0.03, 0.02, soft_threshold=True),
        "b/bias": 0,
    },
}


def test_the_tables_after_build():
    optimizer = AdamW(0.01, **MIXED)
    assert optimizer.weight_decays == MIXED["weight_decays"]
    optimizer.build(two_layers().trainable_variables)
    assert optimizer.weight_decays == {
        "a/kernel": MIXED["weight_decays"]["a"],
        "a/bias": MIXED["weight_decays"]["a"],
        "b/kernel": MIXED["weight_decays"]["b/kernel"],
        "head/kernel": MIXED["weight_decay"],
        "head/bias": (0.001, 0.0),
    }
    assert set(references(optimizer)) == {"a/kernel", "a/bias"}
    # A plain decay is a pair however it was given.
    optimizer = AdamW(0.01, weight_decay=Decay(0.1), weight_decays={"bias": Decay(0, 0.2)})
    optimizer.build(two_layers().trainable_variables[:2])
    assert optimizer.weight_decays == {"a/kernel": (0.0, 0.1), "a/bias": (0.2, 0.0)}


@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_a_file_goes_on(name, tmp_path):
    """Rows, references and all that follows are those of the run that was not interrupted."""
    model = two_layers()
    first = weights(model)
    model.compile(make(name, learning_rate=0.01, **MIXED), loss="mse")
    train(model)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.weight_decays == model.optimizer.weight_decays
    assert_same(references(loaded.optimizer), {p: first[p] for p in ("a/kernel", "a/bias")})
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    train(model, 3)
    train(loaded, 3)
    assert_same(weights(loaded), weights(model))
    assert_same(contents(loaded.optimizer), contents(model.optimizer))


@pytest.mark.parametrize("name", ["adamw", "sgdw"])
def test_the_reference_is_the_value_at_the_first_build(name):
    """Not that at a later one, and of a layer that is frozen at first, that of when it is no more."""
    model = two_layers()
    optimizer = make(name, weight_decay=TOWARDS_INITIAL)
    model.get_layer("b").trainable = False
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    expected = weights(model)
    train(model)
    for layer in ("a", "b"):
        model.get_layer(layer).trainable ^= True
    model.get_layer("b").set_weights([np.ones((3, 3)), np.zeros(3)])
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    expected |= {p: v for p, v in weights(model).items() if p.startswith("b/")}
    train(model)
    model.get_layer("a").trainable = True
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    train(model)
    assert_same(references(optimizer), expected)


def test_reset_reference():
    model = two_layers()
    optimizer = AdamW(0.01, weight_decay=TOWARDS_INITIAL, weight_decays={"head": 0.1})
    optimizer.reset_reference()  # before build there is nothing to reset
    optimizer.build(model.trainable_variables)
    model.set_weights([w + 1 for w in model.get_weights()])  # pretrained ones, after build
    optimizer.reset_reference()
    expected = {p: v for p, v in weights(model).items() if not p.startswith("head")}
    assert_same(references(optimizer), expected)
    model.compile(optimizer, loss="mse")
    train(model)
    assert_same(references(optimizer), expected)


def test_a_file_without_references_and_one_that_nobody_wants():
    """Missing ones start at the weights that are there. The load says so, both ways."""
    model = two_layers()
    plain, optimizer = (AdamW(weight_decay=decay) for decay in (0.1, TOWARDS_INITIAL))
    for made in (plain, optimizer):
        made.build(model.trainable_variables)
    with pytest.warns(UserWarning, match="In the file only: reference of a/kernel"):
        plain.load_own_variables(saved(optimizer))
    store = saved(plain)
    model.set_weights([w + 1 for w in model.get_weights()])
    with pytest.warns(UserWarning, match=r"found in the file\. Started fresh: reference of a/"):
        optimizer.load_own_variables(store)
    assert_same(references(optimizer), weights(model))


def test_what_is_frozen_stays():
    """With the multiplier 0 not a bit changes, whatever the kind."""
    for decay in EVERY[1:]:
        variables = [make_variable(n, np.array([1.0, -2.0], "float32")) for n in ("v", "w")]
        optimizer = AdamW(0.1, weight_decay=decay, lr_multipliers={"v": 0})
        step = eager(optimizer, variables)
        for _ in range(3):
            step([np.ones(2, "float32")] * 2)
        assert np.array_equal(numpy(variables[0]), [1, -2])
        assert not np.array_equal(numpy(variables[1]), [1, -2])
