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
from cases import BACKEND, eager, make_decay, numpy
from effort import examples
from keras_decoupled import AdamW, Decay
from keras_decoupled.decay.kinds import decayed
from slots import assert_same, contents, of_slot, saved
from small import ones

schedules = keras.optimizers.schedules
FALLING = partial(schedules.PolynomialDecay, 0.1, 10, 0.01)


# --- the value ---

PLAIN = [Decay(), Decay(1e-4), Decay(l1=0.1), Decay(0.5, 1e-20), Decay(2)]
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


def test_a_decay_comes_back_from_its_repr_and_its_config():
    defaults = r"l[12]=0\.0[,)]|zero|False|eta_power=1[,)]"
    for decay in EVERY:
        config = json.loads(json.dumps(decay.get_config()))
        again = eval(repr(decay))
        assert again == Decay(**config) == decay
        assert again is not decay
        assert hash(again) == hash(decay)
        assert not re.search(defaults, repr(decay))
    for decay in (*EVERY, Decay(FALLING(), cautious=True)):
        assert copy.deepcopy(decay) == pickle.loads(pickle.dumps(decay)) == decay


def test_no_two_of_them_are_equal():
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
    assert (type(Decay(1, 1).l2), type(Decay(1, 1).l1)) == (float, float)
    assert repr(Decay(0.5, eta_power=2.0)) == "Decay(l2=0.5, eta_power=2)"


def test_schedules_are_compared_by_their_config():
    assert Decay(FALLING()) == Decay(FALLING())
    assert hash(Decay(FALLING())) == hash(Decay(FALLING()))
    assert Decay(FALLING()) != Decay(FALLING(power=2.0))
    assert Decay(FALLING()) != Decay(0.1)


def test_it_does_not_change():
    decay = Decay(0.1, 0.3, cautious=True)
    with pytest.raises(AttributeError):
        decay.l2 = 0.2
    with pytest.raises(AttributeError):
        del decay.l1
    assert decay.with_amounts(0.2) == Decay(0.2, 0.3, cautious=True)
    assert decay.with_amounts(0.2, 0.4) == Decay(0.2, 0.4, cautious=True)
    assert decay == Decay(0.1, 0.3, cautious=True)


NAN, INF = float("nan"), float("inf")
REFUSED = {  # field: values of a wrong range, values of a wrong type
    "l2": ([-0.1, NAN, INF, 1e38], [None, "0.1", True, (0.1, 0.2), lambda: 0.1]),
    "l1": ([-0.1, INF], [FALLING(), None]),
    "towards": (["first", None, 0, ["zero"]], []),
    "cautious": ([], [1, None]),
    "soft_threshold": ([], ["yes", 0.1]),
    "eta_power": ([-1, NAN, 100], [None, True]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    """The message names the field, shows what came, and ends with what to do: also from a dict."""
    values, types = REFUSED[name]
    wrong = [({name: x}, ValueError) for x in values] + [({name: x}, TypeError) for x in types]
    if name == "soft_threshold":
        wrong.append(({"l1": 0.1, "soft_threshold": True, "cautious": True}, ValueError))
    for fields, error in wrong:
        for made in (Decay, lambda **fields: AdamW(weight_decay=fields)):
            with pytest.raises(error, match=rf"`{name}`[\s\S]* Received: [\s\S]+\. \S+") as refused:
                made(**fields)
            assert str(refused.value).endswith(".")


@pytest.mark.parametrize("wrong", [(0.1,), (0.1, 0.2, 0.3), [], {"l3": 0.1}, {"l2": 0.1, "eta": 1}])
def test_no_decay_at_all(wrong):
    for name, value in {"weight_decay": wrong, "weight_decays": {"kernel": wrong}}.items():
        with pytest.raises(ValueError, match=f"`{name}.* must be a .*Received: .*Write"):
            AdamW(**{name: value})


SAME = [
    (0.1, Decay(0.1)),
    (Decay(0.1), Decay(0.1)),
    ((0.2, 0.1), Decay(0.1, 0.2)),
    ([0.2, 0.1], Decay(0.1, 0.2)),
    ({"l2": 0.1, "l1": 0.2}, Decay(0.1, 0.2)),
    (FALLING(), Decay(FALLING())),
    ((0.2, FALLING()), Decay(FALLING(), 0.2)),
    ({"l2": FALLING(), "cautious": True}, Decay(FALLING(), cautious=True)),
]


def test_every_way_to_say_it():
    """As the uniform decay and under a key. A plain decay is a pair, however it was given."""
    for said, decay in SAME:
        for arguments in ({"weight_decay": said}, {"weight_decays": {"w": said}}):
            optimizer = AdamW(0.1, **arguments)
            optimizer.build(ones())
            [row] = optimizer.weight_decays.values()
            assert isinstance(row, tuple) == decay.plain
            assert (Decay(row[1], row[0]) if decay.plain else row) == decay


# --- the rule ---

DTYPES = ["float32"] + ["float64"] * (BACKEND != "jax")  # which has it only where it is switched on
ULP = {"float32": 2.0**-23, "float64": 2.0**-52}
numbers = st.lists(st.integers(-(2**20), 2**20).map(lambda n: n / 2**18), min_size=6, max_size=6)
amounts = st.sampled_from([0.0, 2.0**-30, 1e-4, 0.03, 0.5])


@settings(max_examples=examples(160), deadline=None)
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
    exact = [x.astype("float64") for x in (theta, step, initial)]
    reference = exact[2] if towards == "initial" else 0.0
    expected = oracle.decayed(*exact[:2], decay, 1.0, l2, reference)
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


TINY = partial(Decay, 1e-8)


@pytest.mark.parametrize(
    "decay",
    [TINY(), TINY(cautious=True), TINY(towards="initial"), TINY(soft_threshold=True)],
    ids=shown,
)
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


def three_layers():
    """Layers "a", "b" and "head". Their shapes are the same: a swap would be silent."""
    x = y = keras.Input((3,))
    for name in ("a", "b", "head"):
        y = keras.layers.Dense(3, name=name)(y)
    model = keras.Model(x, y)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.weights])
    return model


def references(optimizer):
    """{path: reference}"""
    return of_slot(optimizer, "reference")


def weights(model, *layers):
    """{path: value} in these layers, or in all."""
    parts = map(model.get_layer, layers) if layers else [model]
    return {v.path: numpy(v) for part in parts for v in part.weights}


def build_and_train(optimizer, model, updates=1):
    """The gradients are random, and the same on every call."""
    optimizer.build(model.trainable_variables)
    step, rng = eager(optimizer, model.trainable_variables), np.random.default_rng(1)
    for _ in range(updates):
        step([rng.normal(size=v.shape).astype("float32") for v in model.trainable_variables])


def test_the_rows_and_a_file(tmp_path):
    """Rows, references and all that follows are those of the run that was not interrupted."""
    model, optimizer = three_layers(), AdamW(0.01, **MIXED)
    assert optimizer.weight_decays == MIXED["weight_decays"]
    first = weights(model, "a")
    build_and_train(optimizer, model)
    rows = {
        "a/kernel": MIXED["weight_decays"]["a"],
        "a/bias": MIXED["weight_decays"]["a"],
        "b/kernel": MIXED["weight_decays"]["b/kernel"],
        "head/kernel": MIXED["weight_decay"],
        "head/bias": (0.001, 0.0),
    }
    model.compile(optimizer, loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for one in (optimizer, loaded.optimizer):
        assert one.weight_decays == rows
        assert_same(references(one), first)
    assert loaded.optimizer.get_config() == optimizer.get_config()
    for one in (model, loaded):
        build_and_train(one.optimizer, one, 2)
    assert_same(weights(loaded), weights(model))
    assert_same(contents(loaded.optimizer), contents(optimizer))


def test_the_reference_is_the_value_at_the_first_build():
    """For a layer that is frozen at first, it is the value at the build that trains the layer."""
    model = three_layers()
    optimizer = AdamW(0.1, weight_decay=TOWARDS_INITIAL, weight_decays={"head": 0.1})
    optimizer.reset_reference()  # before build there is nothing to reset
    model.get_layer("b").trainable = False
    expected = weights(model, "a")
    build_and_train(optimizer, model)
    for layer in ("a", "b"):
        model.get_layer(layer).trainable ^= True
    model.get_layer("b").set_weights([np.ones((3, 3)), np.zeros(3)])
    expected |= weights(model, "b")
    build_and_train(optimizer, model)
    model.get_layer("a").trainable = True
    build_and_train(optimizer, model)
    assert_same(references(optimizer), expected)
    optimizer.reset_reference()  # to the weights as they are now
    expected = weights(model, "a", "b")
    build_and_train(optimizer, model)
    assert_same(references(optimizer), expected)


def test_a_file_without_references_and_one_that_nobody_wants():
    """Missing ones start at the weights that are there. The load says so, both ways."""
    ours = ones("a", "b")
    plain, optimizer = (AdamW(weight_decay=decay) for decay in (0.1, TOWARDS_INITIAL))
    for made in (plain, optimizer):
        made.build(ours)
    with pytest.warns(UserWarning, match="In the file only: reference of a"):
        plain.load_own_variables(saved(optimizer))
    ours[0].assign([3.0, 4.0])
    with pytest.warns(UserWarning, match=r"found in the file\. Started fresh: reference of a"):
        optimizer.load_own_variables(saved(plain))
    assert_same(references(optimizer), {"a": [3.0, 4.0], "b": [1.0, 1.0]})


@pytest.mark.parametrize("decay", [EVERY[1], *EVERY[-2:]], ids=shown)
def test_what_is_frozen_stays(decay):
    """With the multiplier 0 not a bit changes, whatever the kind."""
    variables = ones("v", "w")
    optimizer = AdamW(0.1, weight_decay=decay, lr_multipliers={"v": 0})
    step = eager(optimizer, variables)
    for _ in range(2):
        step([np.ones(2, "float32")] * 2)
    assert np.array_equal(numpy(variables[0]), [1, 1])
    assert not np.array_equal(numpy(variables[1]), [1, 1])
