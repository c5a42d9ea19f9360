"""Configs and states from a file are data: whatever they hold, a clear error or a working optimizer comes out.

No code runs, nothing hangs, and what a constructor refuses is refused in a saved table, too.
"""

import copy
import functools
import json
import math
import warnings
from collections import Counter

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from keras import layers, regularizers

import hostile
from cases import eager, make_variable, numpy
from effort import FULL, effort
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW, WarmupStableDecay

schedules = keras.optimizers.schedules
PATHS = ["net/a/kernel", "net/a/bias", "net/b/kernel"]
FUZZ = settings(
    max_examples=effort(20, 1500),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
# Arguments that Keras takes as they are, and what may come of them.
KERAS = {"clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum", "name"}
KERAS |= {"ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps"}


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


MAKERS = {
    "AdamW": lambda: AdamW(0.1, weight_decay=0.5, amsgrad=True, use_ema=True, clipnorm=1.0),
    "AdamW, model": with_a_frozen_layer,
    "NadamW": lambda: NadamW(tenth, weight_decay=0.5, total_iterations=9),
    "NadamW, not built": excluding,
    "SGDW": lambda: SGDW(
        0.1,
        0.9,
        weight_decays={"a": 0.25, "bias": (0.1, 0)},
        lr_multipliers={"b": 0.5},
        total_iterations=9,
        use_cosine_annealing=True,
        eta_min=0.1,
    ),
    "SGDW, not built": lambda: SGDW(
        CosineWarmRestarts(0.1, 5),
        weight_decays={"b": schedules.PolynomialDecay(0.5, 9)},
        normalize_weight_decay=True,
        global_clipnorm=1.0,
    ),
}


@functools.cache
def config_of(name):
    optimizer = MAKERS[name]()
    if "not built" not in name and not optimizer.built:
        optimizer.build(variables())
    text = json.dumps(optimizer.get_config())
    return type(optimizer), text


def saved(name):
    cls, text = config_of(name)
    return cls, json.loads(text)


def try_out(cls, config):
    """Make the optimizer, build it, update with it and save it again; return it and its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = cls.from_config(config)
        ours = variables()
        optimizer.build(ours)
        eager(optimizer, ours)([np.full(v.shape, 0.5, "float32") for v in ours])
        optimizer.get_config()
    return optimizer, [numpy(v) for v in ours]


def outcome(cls, config, places=()):
    """Return "works" or the error's name; fail if it is an accident."""
    try:
        with hostile.watched(), hostile.at_most(20):
            _, weights = try_out(cls, copy.deepcopy(config))
    except AssertionError:
        raise
    except Exception as error:
        hostile.assert_clear(error)
        return type(error).__name__
    # What Keras does not check may make a weight anything; so may a rate or a decay of 1e300.
    excused = any(set(place) & (KERAS | {"config"}) for place in places)
    sizes = [abs(x) for x in hostile.numbers(config) if x and not 0 * x]  # 0 * inf is nan
    if not excused and max(sizes, default=1) < 1e6 and min(sizes, default=1) > 1e-8:
        assert all(np.isfinite(w).all() for w in weights), places
    return "works"


def keep(record_property, tally):
    record_property("tried", sum(tally.values()))
    record_property("worked", tally["works"])


# --- random changes ---


@pytest.mark.reliability
@pytest.mark.parametrize("name", MAKERS)
def test_a_config_with_random_changes(name, record_property):
    cls, config = saved(name)
    roots = [(), (), ("resolved",), ("resolved", "table"), ("resolved", "exclusions")]
    roots += [("learning_rate",), ("weight_decays",), ("lr_multipliers",)]
    tally = Counter()

    @FUZZ
    @given(hostile.changed(config, roots))
    def check(pair):
        tally[outcome(cls, *pair)] += 1

    check()
    keep(record_property, tally)
    assert tally["works"] or not FULL, tally  # else the changes are too wild to say anything
    assert len(tally) > 1, tally


@pytest.mark.reliability
@settings(FUZZ, max_examples=effort(40, 1000))
@given(
    st.sampled_from([AdamW, NadamW, SGDW]), hostile.garbage | st.dictionaries(st.text(), st.none())
)
def test_a_config_of_garbage(cls, config):
    with hostile.watched():
        try:
            cls.from_config(copy.deepcopy(config))
        except Exception as error:
            hostile.assert_clear(error)


# --- one at a time: what a constructor refuses ---

NAN, INF = math.nan, math.inf
OBJECTS = list(hostile.OBJECTS.values())
# Keras makes these; whoever uses one learns from Keras what is wrong with it.
NO_DECAYS = [o for name, o in hostile.OBJECTS.items() if "schedule of" not in name]
DECAYS = [-1, NAN, INF, -INF, "x", None, True, [0.1], {}, hostile.OBJECTS["relu"]]
DECAYS += [hostile.OBJECTS["own optimizer"]]
SCHEDULE = json.loads(json.dumps(schedules.serialize(schedules.ExponentialDecay(0.5, 10, 0.5))))
BAD_ROWS = {
    "path": [None, 3, [], {}, True],
    "shape": [None, 3, "22", [2, "x"], [[2]], {"2": 2}, [2.5, 2], True],
    "l1": [*DECAYS, SCHEDULE],
    "l2": DECAYS,
    "multiplier": [*DECAYS, SCHEDULE],
    "taken": [3, "x", [0.1], [0.1, NAN], [0.1, "x"], [0.1, -1], [0.1, None], {}, [0.1] * 3, True],
}
BAD_RESOLVED = {
    "exclusions": [None, 3, "x", [], {"var_list": []}, {"var_names": []}],
    "table": [None, 3, "x", {}, [3], ["x"], [None], [[]], [{}]],
    "waiting": [None, 3, "x", {}, [3], ["x"], [None], [[]], [{}]],
    "paths": [None, 3, "x", {}, [3], [["a"]]],
    "learning_rate_factor": [None, "x", NAN, INF, -1, [1], {}, True],
}
BAD_EXCLUSIONS = {
    "var_names": [None, 3, "bias", [3], ["("], [None], {"a": 1}],
    "var_list": [None, 3, "net/a/bias", [3], [None], [["a"]], {"a": 1}],
}
BAD_RULES = {
    "weight_decay": [-1, NAN, INF, "x", True, [0.1], {}, {"a": 0.1}, *NO_DECAYS],
    "weight_decays": [3, "x", [0.1], [["a", 0.1]], True, {"a": None}, {"a": []}, {"a": [1]}]
    + [{"a": value} for value in (-1, NAN, "x", True, {}, [0.1, {}], [SCHEDULE, 0.1])]
    + [{"a": [0.1, value]} for value in NO_DECAYS],
    "lr_multipliers": [3, "x", [0.1], True, {"a": None}, {"a": -1}, {"a": NAN}, {"a": SCHEDULE}],
    "learning_rate": [None, "x", -1, NAN, INF, 10**400, [], [0.1], {}, True, {"a": 1}, *OBJECTS],
    "base_learning_rate": ["x", -1, NAN, INF, 0, [], {}, True, SCHEDULE],
    "total_iterations": ["x", -1, NAN, INF, 0, 1.5, [], {}, True, 10**400],
    "t_cur": ["x", -2, NAN, INF, 1.5, None, [], 10**400],
    "model": [3, "x", [], {}, hostile.OBJECTS["Dense layer"]],
    "no such argument": [None, 3],
    "self": [None],
    "clipnorm": ["x", NAN, -1, {}, True],
    "clipvalue": [[1], INF],
    "use_ema": ["False", 1, NAN],
    "ema_momentum": ["x", NAN],
    "ema_overwrite_frequency": ["x", 1.5, 0],
    "loss_scale_factor": ["x", 0, NAN],
    "gradient_accumulation_steps": ["3", 2.5, 0],
}


def each(table, *way):
    return [(*way, key, value) for key, bad in table.items() for value in bad]


def repr_40(value):
    return f"{value!r:.40}"


def refused(cls, config):
    result = outcome(cls, config)
    assert result in ("ValueError", "TypeError"), result


@pytest.mark.parametrize("where", ["table", "waiting"])
@pytest.mark.parametrize(("field", "value"), each(BAD_ROWS), ids=repr_40)
def test_a_bad_row_in_a_saved_table_is_refused(where, field, value):
    cls, config = saved("AdamW, model")
    config["resolved"][where][0][field] = value
    refused(cls, config)


@pytest.mark.parametrize(("field", "value"), each(BAD_RESOLVED), ids=repr_40)
def test_a_bad_part_of_what_was_resolved_is_refused(field, value):
    cls, config = saved("AdamW, model")
    config["resolved"][field] = value
    refused(cls, config)


@pytest.mark.parametrize(("field", "value"), each(BAD_EXCLUSIONS), ids=repr_40)
def test_bad_exclusions_are_refused(field, value):
    cls, config = saved("AdamW, model")
    config["resolved"]["exclusions"][field] = value
    refused(cls, config)


@pytest.mark.parametrize("field", ["table", "exclusions", "learning_rate_factor", "path", "l2"])
def test_a_missing_part_is_refused(field):
    cls, config = saved("AdamW, model")
    resolved = config["resolved"]
    del (resolved if field in resolved else resolved["table"][0])[field]
    refused(cls, config)


@pytest.mark.parametrize("resolved", [3, "x", [], {}, True, [1]], ids=repr)
def test_another_kind_of_resolved_is_refused(resolved):
    cls, config = saved("AdamW, model")
    refused(cls, config | {"resolved": resolved})


@pytest.mark.parametrize("name", ["AdamW, model", "SGDW"])
@pytest.mark.parametrize(("field", "value"), each(BAD_RULES), ids=repr_40)
def test_a_bad_argument_in_a_config_is_refused(name, field, value):
    cls, config = saved(name)
    if name == "SGDW" and field == "learning_rate":
        config["use_cosine_annealing"], config["eta_min"] = False, 0.0
    refused(cls, config | {field: value})


@pytest.mark.parametrize("config", [None, 3, "x", [3], True], ids=repr)
def test_what_is_no_config_is_refused(config):
    with pytest.raises((TypeError, ValueError)):
        AdamW.from_config(config)


def test_a_config_without_a_learning_rate_has_the_default():
    cls, config = saved("AdamW")
    del config["learning_rate"]
    try:
        optimizer, _ = try_out(cls, config)
    except Exception as error:
        hostile.assert_clear(error)
    else:
        assert float(numpy(optimizer.learning_rate)) == np.float32(0.001)


def test_a_whole_number_for_a_learning_rate_is_the_rate():
    """Some writers of JSON leave out the ".0"."""
    cls, config = saved("AdamW")
    config["learning_rate"] = 2
    optimizer, _ = try_out(cls, config)
    assert float(numpy(optimizer.learning_rate)) == 2.0


@pytest.mark.parametrize("most", [2**31, 2**40, 2**63, 10**30])
@pytest.mark.parametrize(
    "field", ["total_iterations", "t_cur", "warmup_steps", "first_decay_steps"]
)
def test_counts_that_no_counter_holds(field, most):
    cls, config = saved("SGDW" if field in ("total_iterations", "t_cur") else "NadamW, not built")
    if field == "t_cur":
        config |= {"total_iterations": most + 1, "t_cur": most}
    elif field == "total_iterations":
        config[field] = most
    else:
        config["learning_rate"]["config"][field] = most
    outcome(cls, config)


# --- no code runs ---

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


def put(config, way, value):
    for key in way[:-1]:
        config = config[key]
    config[way[-1]] = value


@pytest.mark.reliability
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", hostile.SOME)
def test_a_hostile_object_is_refused_and_not_called(what, place):
    cls, config = saved("AdamW, model")
    put(config, PLACES[place], hostile.OBJECTS[what])
    result = outcome(cls, config)
    if "schedule of" not in what:  # Keras makes these, and here a saved row stands in their place
        assert result != "works"


@pytest.mark.parametrize(
    "place", ["learning_rate", "weight_decay", "weight_decays", "the l2 of a pair", "table"]
)
def test_a_lambda_is_refused_as_keras_refuses_it(place):
    cls, config = saved("AdamW, model")
    put(config, PLACES[place], hostile.OBJECTS["lambda"])
    with pytest.raises(ValueError, match="lambda"):
        cls.from_config(config)


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
    eager(optimizer, ours)([np.zeros(v.shape, "float32") for v in ours])
    assert calls


# --- nothing hangs ---


@pytest.mark.parametrize("depth", [300, 900, 20_000])
@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize(
    "place", ["learning_rate", "weight_decay", "weight_decays", "table", "waiting"]
)
def test_deep_nesting(place, kind, depth):
    cls, config = saved("AdamW, model")
    deep = 0.1
    for _ in range(depth):
        deep = [deep] if kind is list else {"a": deep}
    put(config, PLACES[place], deep)
    with pytest.raises((ValueError, TypeError)) as caught:
        cls.from_config(config)
    hostile.assert_clear(caught.value)


def test_a_table_of_many_rows():
    """Tens of thousands of them, none of one number twice."""
    cls, config = saved("SGDW")
    row = config["resolved"]["table"][0]
    config["resolved"]["table"] = [
        row | {"path": f"x{i}/w", "l1": i * 1e-9, "multiplier": 1 + i * 1e-9} for i in range(20_000)
    ]
    with hostile.at_most(20):
        outcome(cls, config)


# --- states ---


def trained(name="AdamW", **more):
    cls, config = saved(name)
    optimizer = cls.from_config(config | more)
    ours = variables()
    optimizer.build(ours)
    for _ in range(2):
        eager(optimizer, ours)([np.full(v.shape, 0.5, "float32") for v in ours])
    return optimizer, ours


@functools.cache
def store_of(name):
    store = {}
    trained(name)[0].save_own_variables(store)
    return store, json.loads(store["layout"].tobytes())


def pack(layout):
    text = layout if isinstance(layout, bytes) else json.dumps(layout).encode()
    return np.frombuffer(text, dtype=np.uint8)


def load(optimizer, ours, store):
    """Load the state; return what came of it, and fail if that is an accident or half a load."""
    before = [v.numpy() for v in optimizer.variables]
    try:
        with hostile.watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.load_own_variables(store)
    except AssertionError:
        raise
    except Exception as error:
        for variable, old in zip(optimizer.variables, before, strict=True):
            np.testing.assert_array_equal(variable.numpy(), old, err_msg=variable.path)
        hostile.assert_clear(error)
        return type(error).__name__
    eager(optimizer, ours)([np.full(v.shape, 0.5, "float32") for v in ours])
    return "works"


ARRAYS = {
    "remove": None,
    "another shape": np.zeros((5, 5), "float32"),
    "a scalar": np.float32(1),
    "text": np.array("x"),
    "objects": np.array([None, "x"], dtype=object),
    "whole numbers": np.zeros((2, 2), "int64"),
    "complex": np.zeros((2, 2), "complex64"),
    "empty": np.zeros((0,), "float32"),
}


@pytest.mark.reliability
@pytest.mark.parametrize("name", ["AdamW", "SGDW"])
def test_a_state_with_random_changes(name, record_property):
    store, layout = store_of(name)
    tally = Counter()
    optimizer, ours = trained(name)

    @FUZZ
    @given(
        hostile.changed(layout, [("built",), ("left",), ("variables",), ()]),
        st.dictionaries(st.sampled_from(list(store)), st.sampled_from(list(ARRAYS)), max_size=2),
        st.booleans(),
    )
    def check(pair, arrays, change_layout):
        hostile_store = dict(store)
        for key, what in arrays.items():
            del hostile_store[key]
            if ARRAYS[what] is not None:
                hostile_store[key] = ARRAYS[what]
        if change_layout:
            hostile_store["layout"] = pack(pair[0])
        tally[load(optimizer, ours, hostile_store)] += 1

    check()
    keep(record_property, tally)
    assert tally["works"] or not FULL, tally
    assert len(tally) > 1, tally


BAD_LAYOUTS = {
    "nothing": b"",
    "no JSON": b"{",
    "no text": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "NaN": b"NaN",
    "an empty object": b"{}",
    "deep": b"[" * 100_000,
    "deep and whole": b"[" * 900 + b"]" * 900,
}


@pytest.mark.parametrize("layout", BAD_LAYOUTS.values(), ids=BAD_LAYOUTS)
def test_what_is_no_layout_is_refused(layout):
    optimizer, ours = trained()
    result = load(optimizer, ours, store_of("AdamW")[0] | {"layout": pack(layout)})
    assert result == "ValueError"


LAYOUTS = {
    "no version": lambda x: x.pop("version"),
    "a later version": lambda x: x.update(version=2),
    "no built": lambda x: x.pop("built"),
    "no left": lambda x: x.pop("left"),
    "no variables": lambda x: x.pop("variables"),
    "built is text": lambda x: x.update(built="abc"),
    "built is a number": lambda x: x.update(built=3),
    "an entry of one": lambda x: x["built"].append(["x"]),
    "an entry of three": lambda x: x["built"].append(["x", [2], 3]),
    "a shape that is a number": lambda x: x["built"][0].__setitem__(1, 4),
    "a shape that is text": lambda x: x["built"][0].__setitem__(1, "22"),
    "a label that is a number": lambda x: x["built"][0].__setitem__(0, 4),
    "a label that is a list": lambda x: x["built"][0].__setitem__(0, ["a"]),
    "variables are text": lambda x: x.update(variables="abc"),
    "a slot of one": lambda x: x["variables"].__setitem__(0, ["iteration"]),
    "a slot of lists": lambda x: x["variables"].__setitem__(0, [["iteration"], [None]]),
    "more slots than arrays": lambda x: x["variables"].insert(0, ["x", None]),
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_that_is_not_as_we_write_it_is_refused(change):
    store, layout = store_of("AdamW")
    layout = copy.deepcopy(layout)
    change(layout)
    optimizer, ours = trained()
    assert load(optimizer, ours, store | {"layout": pack(layout)}) == "ValueError"


MISFITS = [k for k in ARRAYS if k != "whole numbers"]  # of which a moment may be made
SCALARS = ["iteration", "learning_rate", "weight_decay"]


@pytest.mark.parametrize(
    ("which", "what"),
    [
        *((which, what) for which in ("momentum", "velocity") for what in MISFITS),
        *((which, what) for which in SCALARS for what in MISFITS if what != "a scalar"),
    ],
)
def test_an_array_that_does_not_fit_is_refused_before_any_is_assigned(which, what):
    store, layout = store_of("AdamW")
    places = [i for i, (name, _) in enumerate(layout["variables"]) if name == which]
    store = dict(store)
    del store[str(places[-1])]
    if ARRAYS[what] is not None:
        store[str(places[-1])] = ARRAYS[what]
    cls, config = saved("AdamW")
    optimizer, ours = cls.from_config(config), variables()
    optimizer.build(ours)
    assert load(optimizer, ours, store) in ("ValueError", "TypeError")


@pytest.mark.parametrize(
    ("which", "count"),
    [
        *(("iteration", count) for count in (-1, 2**31)),
        *(("cycle_start", count) for count in (-(2**31), 2**31)),
        *(("decay_start", count) for count in (-1, 2**31)),
    ],
)
def test_a_count_that_there_cannot_be_is_refused(which, count):
    schedule = WarmupStableDecay(0.1, stable_steps=None, decay_steps=10)
    optimizer, ours = AdamW(schedule, weight_decay=0.1), variables()
    optimizer.build(ours)
    store = {}
    optimizer.save_own_variables(store)
    names = [name for name, _ in json.loads(store["layout"].tobytes())["variables"]]
    store[str(names.index(which))] = np.array(count, "int64")
    assert load(optimizer, ours, store) == "ValueError"
