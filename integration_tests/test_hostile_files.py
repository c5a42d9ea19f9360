"""`.keras` files as data: cut off, with bytes flipped, with another config or state than was written.

A file loads and trains, or `load_model` says what is wrong with it. No code of the file runs.
"""

import copy
import functools
import io
import json
import random
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import hostile
from effort import FULL, effort
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW

CONFIG, WEIGHTS = "config.json", "model.weights.h5"
OPTIMIZER = ("compile_config", "optimizer", "config")
FUZZ = {"suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
X, Y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
MAKERS = {
    "adamw": lambda model: AdamW(
        CosineWarmRestarts(0.01, 5), model=model, weight_decays={"bias": (0.1, 0.2)}, use_ema=True
    ),
    "nadamw": lambda model: NadamW(
        0.01, weight_decay=keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    ),
    "sgdw": lambda model: SGDW(
        0.01, 0.9, weight_decay=1e-3, use_cosine_annealing=True, total_iterations=5
    ),
}


def network():
    keras.utils.clear_session(free_memory=False)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, kernel_regularizer="l2", name="body"),
            keras.layers.Dense(1, name="head"),
        ],
        name="net",
    )


@functools.cache
def members(name):
    """{member: bytes} of a file that was trained for two updates."""
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a strong decay
        model.compile(MAKERS[name](model), loss="mse")
    for _ in range(2):
        model.train_on_batch(X, Y)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "m.keras"
        model.save(file)
        with zipfile.ZipFile(file) as archive:
            return {member: archive.read(member) for member in archive.namelist()}


def config_of(name):
    return json.loads(members(name)[CONFIG])


def pack(content):
    """A .keras file of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    return file.getvalue()


def outcome(content, folder):
    """Load and train: "works", or the error's name. Fail if the error is an accident of ours, or code ran."""
    file = Path(folder) / "hostile.keras"
    file.write_bytes(content)
    try:
        with hostile.watched(), hostile.at_most(60), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = keras.models.load_model(file)
            if getattr(model, "compiled", False) and model.optimizer is not None:
                model.run_eagerly = False
                if keras.backend.backend() == "torch":
                    model.jit_compile = False
                model.optimizer.apply(
                    [keras.ops.zeros(v.shape, v.dtype) for v in model.trainable_variables],
                    model.trainable_variables,
                )
    except AssertionError:
        raise
    except Exception as error:
        hostile.assert_clear(error)
        return type(error).__name__
    return "works"


def keep(record_property, tally):
    record_property("tried", sum(tally.values()))
    record_property("worked", tally["works"])


# --- bytes ---


@pytest.mark.reliability
@pytest.mark.parametrize("name", MAKERS)
def test_a_file_that_is_cut_off_is_refused(name, tmp_path, record_property):
    """A zip's list of members is at its end, and half of them."""
    whole, rng = pack(members(name)), random.Random(0)
    assert outcome(whole, tmp_path) == "works"
    ends = [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(effort(3, 200)))]
    tally = Counter(outcome(whole[:end], tmp_path) for end in ends)
    for end in ends:  # and members of it
        for member in (CONFIG, WEIGHTS):
            data = members(name)[member]
            cut = members(name) | {member: data[: end * len(data) // len(whole)]}
            tally[outcome(pack(cut), tmp_path)] += 1
    keep(record_property, tally)
    assert not tally["works"], tally


@pytest.mark.reliability
@pytest.mark.parametrize("where", ["file", CONFIG, WEIGHTS])
def test_flipped_bytes(where, tmp_path, record_property):
    """In a file, where checksums tell, and in a member that is packed anew."""
    rng, tally, names = random.Random(1), Counter(), list(MAKERS)
    for i in range(effort(18, 700)):
        name = names[i % len(names)]
        data = bytearray(pack(members(name)) if where == "file" else members(name)[where])
        for _ in range(rng.choice([1, 1, 2, 8])):
            data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        content = data if where == "file" else pack(members(name) | {where: bytes(data)})
        tally[outcome(bytes(content), tmp_path)] += 1
    keep(record_property, tally)
    assert len(tally) > (where != "file"), tally  # of a whole file each byte is checked


# --- the config ---


@pytest.mark.reliability
@pytest.mark.parametrize("name", MAKERS)
def test_a_config_with_random_changes(name, tmp_path_factory, record_property):
    folder, tally = tmp_path_factory.mktemp("files"), Counter()
    roots = [OPTIMIZER, OPTIMIZER, (*OPTIMIZER, "resolved"), (*OPTIMIZER, "resolved", "table")]
    roots += [OPTIMIZER[:2], ("compile_config",), ("config",), ()]

    @settings(max_examples=effort(12, 700), **FUZZ)
    @given(hostile.changed(config_of(name), roots))
    def check(pair):
        content = members(name) | {CONFIG: json.dumps(pair[0]).encode()}
        tally[outcome(pack(content), folder)] += 1

    check()
    keep(record_property, tally)
    assert tally["works"] or not FULL, tally
    assert len(tally) > 1, tally


PLACES = {
    "optimizer": ("compile_config", "optimizer"),
    "learning_rate": (*OPTIMIZER, "learning_rate"),
    "weight_decay": (*OPTIMIZER, "weight_decay"),
    "table": (*OPTIMIZER, "resolved", "table", 0, "l2"),
    "in a schedule": (*OPTIMIZER, "weight_decay", "config", "initial_learning_rate"),
}


@pytest.mark.reliability
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", hostile.SOME)
def test_a_hostile_object_in_a_file(what, place, tmp_path):
    config = config_of("nadamw")
    node = config
    *way, last = PLACES[place]
    for key in way:
        node = node[key]
    node[last] = hostile.OBJECTS[what]
    result = outcome(pack(members("nadamw") | {CONFIG: json.dumps(config).encode()}), tmp_path)
    if place != "optimizer" and "schedule of" not in what:  # some are optimizers, or schedules
        assert result != "works"
    if what == "lambda":
        assert result == "ValueError"


def test_a_lambda_needs_safe_mode_off(tmp_path):
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.compile(AdamW(lambda: 0.25, weight_decay=1e-3), loss="mse")
        model.optimizer.build(model.trainable_variables)
        model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="lambda"):
        keras.models.load_model(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras", safe_mode=False)
    assert float(again.optimizer.learning_rate) == 0.25
    with pytest.raises(ValueError, match="lambda"):
        keras.models.load_model(tmp_path / "m.keras")


# --- the state ---


def with_state(name, change):
    """The members, after `change` was called on the optimizer's group of the HDF5 file."""
    file = io.BytesIO(members(name)[WEIGHTS])
    with h5py.File(file, "r+") as opened:
        change(opened["optimizer/vars"])
    return members(name) | {WEIGHTS: file.getvalue()}


def layout_of(group):
    return json.loads(group["layout"][...].tobytes())


def put(group, key, array):
    if key in group:
        del group[key]
    if array is not None:
        group[key] = array


def put_layout(group, layout):
    text = layout if isinstance(layout, bytes) else json.dumps(layout).encode()
    put(group, "layout", np.frombuffer(text, dtype=np.uint8))


def layout_in(name):
    found = []
    with_state(name, lambda group: found.append(layout_of(group)))
    return found[0]


@pytest.mark.reliability
@pytest.mark.parametrize("name", MAKERS)
def test_a_state_with_random_changes(name, tmp_path_factory, record_property):
    folder, tally = tmp_path_factory.mktemp("files"), Counter()
    layout = layout_in(name)
    arrays = [None, np.zeros((7, 7), "float32"), np.float32(2), b"text", np.zeros(0, "int8")]

    @settings(max_examples=effort(10, 500), **FUZZ)
    @given(
        hostile.changed(layout, [("built",), ("left",), ("variables",), ()]),
        st.dictionaries(
            st.integers(0, len(layout["variables"])).map(str),
            st.integers(0, len(arrays) - 1),
            max_size=2,
        ),
    )
    def check(pair, other):
        def change(group):
            put_layout(group, pair[0])
            for key, which in other.items():
                put(group, key, arrays[which])

        tally[outcome(pack(with_state(name, change)), folder)] += 1

    check()
    keep(record_property, tally)
    assert tally["works"] or not FULL, tally
    assert tally["ValueError"], tally


def rename(layout):
    """The head's variables are called as the body's, which have another shape, and the other way round."""
    swap = {"body/kernel": "head/kernel", "head/kernel": "body/kernel"}
    for entry in layout["built"]:
        entry[0] = swap.get(entry[0].removeprefix("net/"), entry[0])


def reshape(layout):
    layout["built"][0][1] = [2, 3]


STATES = {
    "no JSON": lambda group: put_layout(group, b"{"),
    "another kind of JSON": lambda group: put_layout(group, []),
    "nothing in it": lambda group: put_layout(group, {}),
    "later version": lambda group: put_layout(group, layout_of(group) | {"version": 99}),
    "no counter": lambda group: put(group, "0", None),
    "a counter that is an array": lambda group: put(group, "0", np.zeros(3)),
    "text for a moment": lambda group: put(group, "4", b"x"),
    "another shape": lambda group: put(group, "4", np.zeros((9, 9), "float32")),
    "floats for a layout": lambda group: put(group, "layout", np.zeros(9, "float32")),
    "text for a layout": lambda group: put(group, "layout", b"{}"),
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_that_cannot_be_is_refused(change, tmp_path):
    assert outcome(pack(with_state("sgdw", change)), tmp_path) == "ValueError"


@pytest.mark.parametrize("change", [rename, reshape])
def test_shapes_that_do_not_fit_are_an_error_that_names_the_variable(change, tmp_path):
    layout = copy.deepcopy(layout_in("sgdw"))
    change(layout)
    file = tmp_path / "m.keras"
    file.write_bytes(pack(with_state("sgdw", lambda group: put_layout(group, layout))))
    with pytest.raises(ValueError, match=r"body/kernel|head/kernel"):
        keras.models.load_model(file)
