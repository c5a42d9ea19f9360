"""What a hostile config, state or file may hold, and `changed`, which changes JSON at random places."""

import copy
import dataclasses
import math
import warnings

import hypothesis.strategies as st
import keras

from effort import effort
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.rows import Row
from keras_decoupled.schedule import timing

CANARY = "KERAS_DECOUPLED_CANARY"  # in the environment once code of the input has run
CODE = f"__import__('os').environ.__setitem__('{CANARY}', '1')"
NAN, INF = math.nan, math.inf
NUMBERS = [0, 1, -1, 2, 3, 0.5, -0.5, 1e-3, True, False, None, NAN, INF, -INF]
NUMBERS += [1e300, -1e300, 1e-300, 1e39, 1e-46, 10**40, -(10**40), 10**400, 2**31, 2**63, -(2**31)]
STRINGS = ["", "x", "0.1", "nan", CODE, "../../etc/passwd", "(", "\x00", "é" * 99, "a/w"]
STRINGS += ["lambda: 0"]


def _a_lambda():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': it is unsafe
        return keras.saving.serialize_keras_object(
            lambda *_: __import__("os").environ.__setitem__("KERAS_DECOUPLED_CANARY", "1") or 0.1
        )


def _function(module, name):
    kind = {"class_name": "function", "registered_name": name}
    return {"module": module, "config": name, **kind}


def _object(module, name, registered=None, **config):
    kind = {"module": module, "class_name": name, "registered_name": registered}
    return {**kind, "config": config}


def _schedule(rate, steps, decay):
    config = {"initial_learning_rate": rate, "decay_steps": steps, "decay_rate": decay}
    return _object("keras.optimizers.schedules", "ExponentialDecay", **config)


# Configs of things that are neither numbers nor schedules.
OBJECTS = {
    "lambda": _a_lambda(),
    "os.system": _object("os", "system", command=f"touch {CANARY}"),
    "function os.system": _function("os", "system"),
    "function eval": _function("builtins", "eval"),
    "subprocess.Popen": _object("subprocess", "Popen", args=["touch", CANARY]),
    "builtins.exec": _object("builtins", "exec", object=CODE),
    "Lambda layer": _object("keras.layers", "Lambda", function=_a_lambda()),
    "Lambda layer of a name": _object("keras.layers", "Lambda", function=CODE),
    "Dense layer": _object("keras.layers", "Dense", units=1),
    "stock optimizer": _object("keras.optimizers", "AdamW"),
    "own optimizer": _object("keras_decoupled", "AdamW", "keras_decoupled>AdamW"),
    "relu": _function("builtins", "relu"),
    "keras function": _function("keras.config", "disable_traceback_filtering"),
    "unsafe switch": _function("keras.config", "enable_unsafe_deserialization"),
    "load_model": _function("keras.saving", "load_model"),
    "no such class": _object("keras.optimizers.schedules", "Nothing"),
    "private module": _object("keras.src.utils.python_utils", "func_load", code="x"),
    "empty schedule": _object("keras.optimizers.schedules", "ExponentialDecay"),
    "schedule of strings": _schedule(CODE, "x", None),
    "schedule of a lambda": _schedule(_a_lambda(), 1, 0.5),
    "tensor": {"class_name": "__tensor__", "config": {}},
    "array": {"class_name": "__numpy__", "config": {"value": CODE, "dtype": "object"}},
    "slice": {"class_name": "__slice__", "config": {}},
    "no config": {"class_name": "ExponentialDecay"},
    "numbers for names": {"class_name": 3, "config": [], "module": 4, "registered_name": 5},
}
SOME = effort(
    ["lambda", "function os.system", "Dense layer", "own optimizer", "relu", "keras function"],
    list(OBJECTS),
)


# --- JSON, by ways: the keys from the top to an entry ---


def ways(node, above=()):
    """The ways to all entries."""
    keys = range(len(node)) if isinstance(node, list) else node
    for key in keys if isinstance(node, (dict, list)) else ():
        yield (*above, key)
        yield from ways(node[key], (*above, key))


def at(node, way):
    for key in way:
        node = node[key]
    return node


class _Gone:
    def __repr__(self):
        return "GONE"


GONE = _Gone()
# A config leaves these out where they are the default.
OPTIONAL = {field.name for kind in (Row, Decay) for field in dataclasses.fields(kind)}
OPTIONAL |= {"taken", "waiting", "paths", "exclusions", "weight_decays", "lr_multipliers"}
OPTIONAL |= {*timing.ARGUMENTS}


def put(node, way, value):
    """Put the value in the place of an entry, or take it out. A wrong name would be refused for being unknown."""
    *above, last = way
    node = at(node, above)
    assert isinstance(node, list) or last in {*node, *OPTIONAL}, f"{last!r} is not in {list(node)}"
    if value is GONE:
        del node[last]
    else:
        node[last] = value


# --- random changes ---

leaves = st.sampled_from([*NUMBERS, *STRINGS, *OBJECTS.values()]).map(copy.deepcopy)
garbage = st.recursive(
    leaves,
    lambda some: (
        st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(STRINGS), some, max_size=3)
    ),
    max_leaves=5,
)
KINDS = st.sampled_from(["replace", "replace", "remove", "add", "repeat", "wrap"])


@st.composite
def changed(draw, original, roots=((),), most=3):
    """Return (a copy of the JSON with up to `most` changes, where they are); each is below one of the roots."""
    config, places = copy.deepcopy(original), []
    for _ in range(draw(st.integers(1, most))):
        root, there = draw(st.sampled_from(roots)), list(ways(config))
        # Where an earlier change took the root away, any place will do.
        there = [way for way in there if way[: len(root)] == root != way] or there
        if not there:
            break
        *above, last = way = draw(st.sampled_from(there))
        node, kind = at(config, above), draw(KINDS)
        places.append(way)
        if kind == "replace":
            node[last] = draw(garbage)
        elif kind == "remove":
            del node[last]
        elif kind == "add" and isinstance(node, dict):
            node[draw(st.sampled_from(STRINGS))] = draw(garbage)
        elif kind == "wrap":
            node[last] = draw(st.sampled_from([[node[last]], {"config": node[last]}]))
        elif isinstance(node, list):
            node.insert(last, copy.deepcopy(node[last]) if kind == "repeat" else draw(garbage))
    return config, places
