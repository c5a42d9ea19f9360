"""What a hostile file may hold, and what may come of it: an optimizer that works, or an error that says what is wrong.

`changed` changes JSON at random places. `assert_clear` looks at an error: where our own code stumbled over something
instead of refusing it, that is a bug. `watched` notices code that runs.
"""

import contextlib
import copy
import math
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import hypothesis.strategies as st
import keras

import keras_decoupled
from effort import effort

OURS = str(Path(keras_decoupled.__file__).parent) + os.sep
KERAS = str(Path(keras.__file__).parent) + os.sep
# In these, what a config held should have been checked long before.
UPDATE = {"_begin_step", "_scalars", "update_step", "update", "step", "scalars", "_eta"}

CANARY = "KERAS_DECOUPLED_CANARY"
CODE = f"__import__('os').environ.__setitem__('{CANARY}', '1')"
ORDINARY = [0, 1, -1, 2, 3, 0.5, -0.5, 1e-3, True, False, None, math.nan, math.inf, -math.inf]
EXTREME = [1e300, -1e300, 1e-300, 1e39, 1e-46, 10**40, -(10**40), 10**400, 2**31, 2**63, -(2**31)]
STRINGS = [
    "",
    "x",
    "0.1",
    "nan",
    CODE,
    "../../etc/passwd",
    "(",
    "\x00",
    "é" * 99,
    "a/w",
    "lambda: 0",
]


def _a_lambda():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': it is unsafe
        return keras.saving.serialize_keras_object(
            lambda *_: __import__("os").environ.__setitem__("KERAS_DECOUPLED_CANARY", "1") or 0.1
        )


def _function(module, name):
    kind = {"class_name": "function", "registered_name": name}
    return {"module": module, "config": name, **kind}


def _object(module, name, **config):
    return {"module": module, "class_name": name, "config": config, "registered_name": None}


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
    "own optimizer": _object("keras_decoupled", "AdamW")
    | {"registered_name": "keras_decoupled>AdamW"},
    "relu": _function("builtins", "relu"),
    "keras function": _function("keras.config", "disable_traceback_filtering"),
    "unsafe switch": _function("keras.config", "enable_unsafe_deserialization"),
    "load_model": _function("keras.saving", "load_model"),
    "no such class": _object("keras.optimizers.schedules", "Nothing"),
    "private module": _object("keras.src.utils.python_utils", "func_load", code="x"),
    "empty schedule": _object("keras.optimizers.schedules", "ExponentialDecay"),
    "schedule of strings": _object(
        "keras.optimizers.schedules",
        "ExponentialDecay",
        initial_learning_rate=CODE,
        decay_steps="x",
        decay_rate=None,
    ),
    "schedule of a lambda": _object(
        "keras.optimizers.schedules",
        "ExponentialDecay",
        initial_learning_rate=_a_lambda(),
        decay_steps=1,
        decay_rate=0.5,
    ),
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

# --- random changes ---

leaves = st.sampled_from([*ORDINARY, *EXTREME, *STRINGS, *OBJECTS.values()]).map(copy.deepcopy)
garbage = st.recursive(
    leaves,
    lambda some: (
        st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(STRINGS), some, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed(draw, original, roots=((),), most=3):
    """Return (a copy of the JSON with up to `most` changes, where they are); each starts at one of the roots."""
    config, places = copy.deepcopy(original), []
    for _ in range(draw(st.integers(1, most))):
        if not config:
            break
        *way, last = _place(draw, config, draw(st.sampled_from(roots)))
        node = _at(config, way)
        places.append((*way, last))
        what = draw(st.sampled_from(["replace", "replace", "remove", "add", "repeat", "wrap"]))
        if what == "replace":
            node[last] = draw(garbage)
        elif what == "remove":
            del node[last]
        elif what == "add" and isinstance(node, dict):
            node[draw(st.sampled_from(STRINGS))] = draw(garbage)
        elif what == "wrap":
            node[last] = draw(st.sampled_from([[node[last]], {"config": node[last]}]))
        elif isinstance(node, list):
            node.insert(last, copy.deepcopy(node[last]) if what == "repeat" else draw(garbage))
    return config, places


def _at(node, way):
    for key in way:
        node = node[key]
    return node


def _place(draw, config, root):
    """A way to some entry below the root, or to one above where an earlier change took the root away."""
    way, node = [], config
    for key in root:
        if not _holds(node, key):
            break
        way.append(key)
        node = node[key]
    while isinstance(node, (dict, list)) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        way.append(draw(st.sampled_from(keys)))
        node = node[way[-1]]
        if draw(st.booleans()):
            break
    return way or [draw(st.sampled_from(list(config)))]


def _holds(node, key):
    if isinstance(node, dict):
        return key in node
    return isinstance(node, list) and isinstance(key, int) and key < len(node)


def numbers(node):
    """All numbers in JSON."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        return [x for part in node for x in numbers(part)]
    return [node] if isinstance(node, (int, float)) else []


# --- errors ---


def assert_clear(error):
    """The error is one that our code raises on purpose, or it is another's."""
    frames = [
        (owner, frame.f_code)
        for frame, _ in traceback.walk_tb(error.__traceback__)
        for owner in (OURS, KERAS)
        if frame.f_code.co_filename.startswith(owner)
    ]
    ours = bool(frames) and frames[-1][0] == OURS
    late = any(owner == OURS and code.co_name in UPDATE for owner, code in frames)
    # What is in a schedule of Keras', nobody asks before it is used.
    late = late and not any(c.co_filename.endswith("rate_schedule.py") for _, c in frames)
    where = f"{type(error).__name__} in {' > '.join(code.co_name for _, code in frames[-4:])}: {error!s:.300}"
    if ours or late:
        assert isinstance(error, (ValueError, TypeError, RuntimeError)), where
        assert "Received" in str(error), where
        assert not late, where
    assert not isinstance(error, (RecursionError, MemoryError)), type(error).__name__


# --- what must not happen ---

_RUNS = {
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "urllib.Request",
    "pickle.find_class",
    "ctypes.dlopen",
}
_seen = None


def _hook(event, arguments):
    if _seen is None:
        return
    if event in _RUNS:
        _seen.append((event, arguments))
    elif event == "marshal.loads" and sys._getframe(1).f_code.co_name == "func_load":
        _seen.append((event, "func_load"))


sys.addaudithook(_hook)  # for good: Python takes none back


@contextlib.contextmanager
def watched():
    """Fail if what is run inside starts a program, connects, unpickles, or runs code that a config brought along."""
    global _seen
    os.environ.pop(CANARY, None)
    safe, filtering = _safe_mode(), keras.config.is_traceback_filtering_enabled()
    _seen = []
    try:
        yield
    finally:  # also where an error came out
        seen, _seen = _seen, None
        ran = os.environ.pop(CANARY, None) is not None
        called = keras.config.is_traceback_filtering_enabled() != filtering
        keras.config.enable_traceback_filtering()
        assert not ran, "code from the config ran"
        assert not seen, seen
        assert not called, "a function that the config names was called"
        assert _safe_mode() == safe, "safe mode was switched off"


def _safe_mode():
    """Whether Keras refuses lambdas outside any scope; it has no public question."""
    try:
        keras.saving.deserialize_keras_object(OBJECTS["lambda"])
    except ValueError:
        return True
    return False


@contextlib.contextmanager
def at_most(seconds):
    """Raise TimeoutError in what takes longer. Needs the main thread, and a system with alarms."""

    def ring(*_):
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
