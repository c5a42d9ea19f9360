"""Configs and states are data: whatever they hold, what comes out is a clear error or an optimizer that works."""

import copy
import functools
import json
import warnings
from collections import Counter

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from keras import layers, regularizers

from cases import eager, make_variable, numpy
from effort import FULL, effort
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW, WarmupStableDecay

from .inputs import GONE, INF, NAN, OBJECTS, OPTIONAL, SOME, at, changed, garbage, put, ways
from .watch import keep, outcome

schedules = keras.optimizers.schedules
PATHS = ["net/a/kernel", "net/a/bias", "net/b/kernel"]
FUZZ = settings(
    max_examples=effort(20, 1500),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
REFUSED = {"ValueError", "TypeError"}


@keras.saving.register_keras_serializable(package="test_hostile_configs")
def tenth():
    return 0.1


def variables():
    shapes = [(2, 2), (2,), (2, 2)]
    return [make_variable(p, np.ones(s, "float32")) for p, s in zip(PATHS, shapes, strict=True)]


def with_a_frozen_layer():
    """Rows of variables that are not built on yet, and of penalties taken out of the loss."""
    l2 = regularizers.L2(2.0**-12)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, kernel_regularizer=l2, name="a"),
            layers.Dense(2, kernel_regularizer=l2, name="b", use_bias=False, trainable=False),
            layers.LayerNormalization(name="c", trainable=False),
        ],
        name="net",
    )
    decay = schedules.ExponentialDecay(0.5, 10, 0.5)
    optimizer = AdamW(
        schedules.ExponentialDecay(0.1, 10, 0.9),
        model=model,
        weight_decay=decay,
        weight_decays={"a/bias": (0.25, decay), "b": 0.125},
        lr_multipliers={"b": 0.5},
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma$"])
    optimizer.build(model.trainable_variables)
    return optimizer


def excluding():
    optimizer = NadamW(CosineWarmRestarts(0.1, 5, t_mul=2), weight_decay=0.25)
    optimizer.exclude_from_weight_decay(var_names=["bias$"], var_list=variables()[2:])
    return optimizer


SGDW_RULES = {"weight_decays": {"a": 0.25, "bias": (0.1, 0)}, "lr_multipliers": {"b": 0.5}}
ANNEALING = {"total_iterations": 9, "use_cosine_annealing": True, "eta_min": 0.1}
MAKERS = {
    "AdamW": lambda: AdamW(100.0, weight_decay=0.5, amsgrad=True, use_ema=True, clipnorm=1.0),
    "AdamW, model": with_a_frozen_layer,
    "NadamW": lambda: NadamW(tenth, weight_decay=0.5, total_iterations=9),
    "NadamW, not built": excluding,
    "SGDW": lambda: SGDW(0.1, 0.9, **SGDW_RULES, **ANNEALING),
    "AdamW, stable": lambda: AdamW(WarmupStableDecay(0.1, None, 10), weight_decay=0.1),
}


@functools.cache
def _config_of(name):
    optimizer = MAKERS[name]()
    if "not built" not in name and not optimizer.built:
        optimizer.build(variables())
    return type(optimizer), json.dumps(optimizer.get_config())


def saved(name):
    cls, text = _config_of(name)
    return cls, json.loads(text)


def update(optimizer, ours):
    eager(optimizer, ours)([np.full(v.shape, 0.5, "float32") for v in ours])


def try_out(cls, config):
    """Make the optimizer, build it, update with it and save it again; return it and its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = cls.from_config(copy.deepcopy(config))
        ours = variables()
        optimizer.build(ours)
        update(optimizer, ours)
        optimizer.get_config()
    return optimizer, [numpy(v) for v in ours]


# --- random changes ---

# Arguments that Keras takes as they are, and what may come of them.
KERAS = {"clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum", "name"}
KERAS |= {"ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps"}


def try_changed(cls, config, places):
    _, weights = try_out(cls, config)
    # What Keras does not check may make a weight anything; so may a rate or a decay of 1e300.
    excused = any(set(place) & (KERAS | {"config"}) for place in places)
    numbers = [x for way in ways(config) if isinstance(x := at(config, way), (int, float))]
    sizes = [abs(x) for x in numbers if x and not 0 * x]  # 0 * inf is nan
    if not excused and max(sizes, default=1) < 1e6 and min(sizes, default=1) > 1e-8:
        assert all(np.isfinite(w).all() for w in weights), places


@pytest.mark.reliability
@pytest.mark.parametrize("name", MAKERS)
def test_a_config_with_random_changes(name, record_property):
    cls, config = saved(name)
    roots = [(), (), ("resolved",), ("resolved", "table"), ("resolved", "exclusions")]
    roots += [("learning_rate",), ("weight_decays",), ("lr_multipliers",)]
    tally = Counter()

    @FUZZ
    @given(changed(config, roots))
    def check(pair):
        tally[outcome(try_changed, cls, *pair)] += 1

    check()
    keep(record_property, tally)
    assert tally["works"] or not FULL, tally  # else the changes are too wild to say anything
    assert len(tally) > 1, tally
    assert tally.keys() <= {"works", *REFUSED}, tally


@pytest.mark.reliability
@settings(FUZZ, max_examples=effort(40, 1000))
@given(garbage)
def test_a_config_of_garbage(config):
    outcome(AdamW.from_config, copy.deepcopy(config))


# --- one at a time: what a constructor refuses ---

DECAYS = [-1, NAN, INF, -INF, "x", None, True, [0.1], {}]
DECAYS += [OBJECTS["relu"], OBJECTS["own optimizer"]]
SCHEDULE = json.loads(json.dumps(schedules.serialize(schedules.ExponentialDecay(0.5, 10, 0.5))))
LIST = [None, 3, "x", {}, [3], ["x"], [None], [[]], [{}]]
BAD_ROW = {
    "path": [None, 3, [], {}, True, GONE],
    "shape": [None, 3, "22", [2, "x"], [[2]], {"2": 2}, [2.5, 2], True],
    "l1": [*DECAYS, SCHEDULE],
    "l2": DECAYS,
    "multiplier": DECAYS,
    "taken": [3, "x", [0.1], [0.1, NAN], [0.1, "x"], [0.1, -1], [0.1, None], {}, [0.1] * 3, True],
    "towards": ["x", 3],
    "eta_power": [-1, NAN],
    "rule": [3],
    "uniform": [3, "x"],
    "cautious": [3, "x"],
    "soft_threshold": [3, "x"],
}
BAD_RESOLVED = {
    ("exclusions",): [None, 3, "x", [], {"var_list": []}, {"var_names": []}],
    ("exclusions", "var_names"): [None, 3, "bias", [3], ["("], [None], {"a": 1}],
    ("exclusions", "var_list"): [None, 3, "net/a/bias", [3], [None], [["a"]], {"a": 1}],
    ("table",): [*LIST, GONE],
    ("waiting",): LIST,
    ("paths",): [None, 3, "x", {}, [3], [["a"]]],
    ("learning_rate_factor",): [None, "x", NAN, INF, -1, [1], {}, True, GONE],
}
BAD_RESOLVED |= {(): [3, "x", [], {}, True, [1]]}
BAD_RESOLVED |= {("table", 0, field): bad for field, bad in BAD_ROW.items()}
BAD_ARGUMENTS = {
    "weight_decay": [-1, NAN, INF, "x", True, [0.1], {}, {"a": 0.1}],
    "weight_decays": [3, "x", [0.1], [["a", 0.1]], True, {"a": None}, {"a": []}, {"a": [1]}]
    + [{"a": value} for value in (-1, NAN, "x", True, {}, [0.1, {}], [SCHEDULE, 0.1])],
    "lr_multipliers": [3, "x", [0.1], True, {"a": None}, {"a": -1}, {"a": NAN}],
    "learning_rate": [None, "x", -1, NAN, INF, 10**400, [], [0.1], {}, True, {"a": 1}],
    "base_learning_rate": ["x", -1, NAN, INF, 0, [], {}, True, SCHEDULE],
    "total_iterations": ["x", -1, NAN, INF, 0, 1.5, [], {}, True, 10**400],
    "t_cur": ["x", -2, NAN, INF, 1.5, None, [], 10**400],
    "clipnorm": ["x", NAN, -1, {}, True],
    "clipvalue": [[1], INF],
    "use_ema": ["False", 1, NAN],
    "ema_momentum": ["x", NAN],
    "ema_overwrite_frequency": ["x", 1.5, 0],
    "loss_scale_factor": ["x", 0, NAN],
    "gradient_accumulation_steps": ["3", 2.5, 0],
}
NO_CONFIGS = [None, 3, "x", [3], True, {"no such argument": None}, {"self": None}]
NO_CONFIGS += [{"model": value} for value in (3, "x", [], {}, OBJECTS["Dense layer"])]


def each(table):
    return [(key, value) for key, bad in table.items() for value in bad]


def repr_40(value):
    return f"{value!r:.40}"


@pytest.mark.parametrize(("way", "value"), each(BAD_RESOLVED), ids=repr_40)
def test_a_bad_part_of_what_was_resolved_is_refused(way, value):
    cls, config = saved("AdamW, model")
    put(config, ("resolved", *way), value)
    assert outcome(try_out, cls, config) in REFUSED


@pytest.mark.parametrize(("field", "value"), each(BAD_ARGUMENTS), ids=repr_40)
def test_a_bad_argument_in_a_config_is_refused(field, value):
    cls, config = saved("SGDW")
    put(config, (field,), value)
    assert outcome(try_out, cls, config) in REFUSED


@pytest.mark.parametrize("config", NO_CONFIGS, ids=repr_40)
def test_what_is_no_config_is_refused(config):
    assert outcome(AdamW.from_config, config) in REFUSED


def test_a_rate_that_is_left_out_or_a_whole_number():
    """One has the default. Some writers of JSON leave out the ".0" of the other."""
    cls, config = saved("AdamW")
    assert numpy(try_out(cls, config | {"learning_rate": 2})[0].learning_rate) == 2.0
    del config["learning_rate"], config["base_learning_rate"]
    assert numpy(try_out(cls, config)[0].learning_rate) == np.float32(0.001)


# --- no code runs, nothing hangs ---

PLACES = {
    "learning_rate": ("learning_rate",),
    "weight_decay": ("weight_decay",),
    "weight_decays": ("weight_decays", "b"),
    "the l2 of a pair": ("weight_decays", "a/bias", 1),
    "the l1 of a pair": ("weight_decays", "a/bias", 0),
    "lr_multipliers": ("lr_multipliers", "b"),
    "table": ("resolved", "table", 0, "l2"),
    "waiting": ("resolved", "waiting", 0, "l2"),
    "a multiplier": ("resolved", "table", 1, "multiplier"),
    "in a schedule": ("learning_rate", "config", "initial_learning_rate"),
    "in a decay": ("resolved", "table", 1, "l2", "config", "initial_learning_rate"),
    "pattern": ("resolved", "exclusions", "var_names", 0),
    "name": ("name",),
}


ANYWHERE = [(what, "learning_rate") for what in OBJECTS]
ANYWHERE += [(what, place) for place in PLACES if place != "learning_rate" for what in SOME]


@pytest.mark.reliability
@pytest.mark.parametrize(("what", "place"), ANYWHERE)
def test_a_hostile_object_is_refused_and_not_called(what, place):
    cls, config = saved("AdamW, model")
    put(config, PLACES[place], OBJECTS[what])
    result = outcome(try_out, cls, config)
    if "schedule of" not in what:  # Keras makes these, and here a saved row stands in their place
        assert result in REFUSED
    if what == "lambda" and "multiplier" not in place:  # Keras' own error
        assert result == "ValueError"


def test_a_function_that_is_named_in_a_config_is_not_called_when_that_is_read():
    """Not even one that is registered: whoever reads a config has not asked for an update."""
    calls = []

    @keras.saving.register_keras_serializable(package="test_hostile_configs", name="counting")
    def counting():
        calls.append(1)
        return 0.1

    config = json.loads(json.dumps(AdamW(counting, weight_decay=0.5).get_config()))
    config["base_learning_rate"] = 0.1
    calls.clear()
    optimizer = AdamW.from_config(config)
    assert not calls
    ours = variables()
    optimizer.build(ours)
    update(optimizer, ours)
    assert calls


@pytest.mark.parametrize(
    "field", ["total_iterations", "t_cur", "warmup_steps", "first_decay_steps"]
)
def test_counts_that_no_counter_holds(field):
    for most in (2**31, 2**40, 2**63, 10**30):
        cls, config = saved("SGDW" if field in OPTIONAL else "NadamW, not built")
        if field == "t_cur":
            put(config, ("total_iterations",), most + 1)
        place = (field,) if field in OPTIONAL else ("learning_rate", "config", field)
        put(config, place, most)
        outcome(try_out, cls, config)


def test_a_table_of_many_rows():
    """Thousands of them, none of one number twice."""
    cls, config = saved("SGDW")
    row = config["resolved"]["table"][0]
    config["resolved"]["table"] = [
        row | {"path": f"x{i}/w", "l1": i * 1e-9, "multiplier": 1 + i * 1e-9} for i in range(5_000)
    ]
    outcome(try_out, cls, config)


# --- states ---


def trained(name):
    cls, config = saved(name)
    optimizer, ours = cls.from_config(config), variables()
    optimizer.build(ours)
    for _ in range(2):
        update(optimizer, ours)
    return optimizer, ours


@functools.cache
def _store_of(name):
    store = {}
    trained(name)[0].save_own_variables(store)
    return store


def state_of(name):
    """The arrays of a state, and what its layout says."""
    store = dict(_store_of(name))
    return store, json.loads(store["layout"].tobytes())


def pack(layout):
    text = layout if isinstance(layout, bytes) else json.dumps(layout).encode()
    return np.frombuffer(text, dtype=np.uint8)


def load(optimizer, ours, store, says=""):
    """Load the state; return what came of it, and fail if that is an accident or half a load."""
    before = [v.numpy() for v in optimizer.variables]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = outcome(optimizer.load_own_variables, store, says=says)
    if result == "works":
        update(optimizer, ours)
        return result
    for variable, old in zip(optimizer.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old, err_msg=variable.path)
    return result


ARRAYS = {
    "remove": GONE,
    "another shape": np.zeros((5, 5), "float32"),
    "a scalar": np.float32(1),
    "text": np.array("x"),
    "objects": np.array([None, "x"], dtype=object),
    "complex": np.zeros((2, 2), "complex64"),
    "empty": np.zeros((0,), "float32"),
    "whole numbers": np.zeros((2, 2), "int64"),  # of which a moment may be made
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["AdamW", "SGDW"])
def test_a_state_with_random_changes(name, record_property):
    store, layout = state_of(name)
    roots = [("built",), ("left",), ("variables",), ()]
    some = st.dictionaries(st.sampled_from(list(store)), st.sampled_from(list(ARRAYS)), max_size=2)
    tally = Counter()
    optimizer, ours = trained(name)

    @FUZZ
    @given(changed(layout, roots), some, st.booleans())
    def check(pair, arrays, change_layout):
        hostile = dict(store)
        for key, what in arrays.items():
            put(hostile, (key,), ARRAYS[what])
        if change_layout:
            hostile["layout"] = pack(pair[0])
        tally[load(optimizer, ours, hostile)] += 1

    check()
    keep(record_property, tally)
    assert tally["works"] or not FULL, tally
    assert len(tally) > 1, tally
    assert tally.keys() <= {"works", *REFUSED}, tally


NO_LAYOUTS = {
    "nothing": pack(b""),
    "no JSON": pack(b"{"),
    "no UTF-8": pack(b"\xff\xfe\x00"),
    "null": pack(b"null"),
    "a list": pack(b"[]"),
    "a number": pack(b"1"),
    "NaN": pack(b"NaN"),
    "an empty object": pack(b"{}"),
    "deeper than json reads": pack(b"[" * 100_000),
    "deep and whole": pack(b"[" * 900 + b"]" * 900),
    "floats": np.zeros(9, "float32"),
    "text": np.array("{}"),
}
SWAPPED = [["net/a/bias", [2, 2]], ["net/a/kernel", [2]], ["net/b/kernel", [2, 2]]]
BAD_LAYOUTS = {
    ("version",): [2, GONE],
    ("built",): ["abc", 3, GONE],
    ("built", 0): [["x"], ["x", [2], 3]],
    ("built", 0, 0): [4, ["a"]],
    ("built", 0, 1): [4, "22", [2, 3]],
    ("left",): [GONE],
    ("given",): [3, {}],
    ("given", "learning_rate"): [-1, NAN, 0, 1e-60, 1e-37],
    ("given", "weight_decay"): [-1, NAN],
    ("variables",): ["abc", GONE],
    ("variables", 0): [["iteration"], [["iteration"], [None]]],
}
FIT = {("iteration", "a scalar"), ("learning_rate", "a scalar"), ("weight_decay", "a scalar")}
FIT |= {("momentum", "whole numbers"), ("velocity", "whole numbers")}
BAD_ARRAYS = {
    "AdamW": [
        (which, array)
        for which in ("momentum", "velocity", "iteration", "learning_rate", "weight_decay")
        for what, array in ARRAYS.items()
        if (which, what) not in FIT
    ]
    + [("iteration", np.array(count)) for count in (-5, 2**40)]
    + [
        (which, np.array(number))
        for which in ("learning_rate", "weight_decay")
        for number in (NAN, -1.0, INF)
    ],
    "AdamW, stable": [
        *(("iteration", np.array(count)) for count in (-1, 2**31)),
        *(("cycle_start", np.array(count)) for count in (-(2**31), 2**31)),
        *(("decay_start", np.array(count)) for count in (-1, 2**31)),
    ],
}


@pytest.mark.parametrize("layout", NO_LAYOUTS.values(), ids=NO_LAYOUTS)
def test_what_is_no_layout_is_refused(layout):
    store = state_of("AdamW")[0] | {"layout": layout}
    assert load(*trained("AdamW"), store) == "ValueError"


@pytest.mark.parametrize(("way", "value"), each(BAD_LAYOUTS), ids=repr_40)
def test_a_layout_that_is_not_as_we_write_it_is_refused(way, value):
    store, layout = state_of("AdamW")
    put(layout, way, value)
    assert load(*trained("AdamW"), store | {"layout": pack(layout)}) == "ValueError"


@pytest.mark.parametrize(("name", "change"), each(BAD_ARRAYS), ids=repr_40)
def test_an_array_that_cannot_be_is_refused_before_any_is_assigned(name, change):
    which, array = change
    store, layout = state_of(name)
    places = [i for i, (slot, _) in enumerate(layout["variables"]) if slot == which]
    put(store, (str(places[-1]),), array)
    assert load(*trained(name), store, says=f" for {which}") in REFUSED


def test_shapes_that_do_not_fit_are_an_error_that_names_the_variable():
    for built in (SWAPPED, [["net/a/kernel", [2, 3]], *SWAPPED[1:]]):
        store, layout = state_of("AdamW")
        put(layout, ("built",), built)
        assert load(*trained("AdamW"), store | {"layout": pack(layout)}, says="net/a/") in REFUSED
