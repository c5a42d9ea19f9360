"""What may come of hostile input: something that works, or an error that says what is wrong. No code runs.

`assert_clear` looks at an error: where our own code stumbled over something instead of refusing it, that is a bug.
"""

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path

import keras

import keras_decoupled

from .inputs import CANARY, OBJECTS

OURS = str(Path(keras_decoupled.__file__).parent) + os.sep
KERAS = str(Path(keras.__file__).parent) + os.sep


def frames_of(error):
    """(file, function) of each frame of ours and of Keras'."""
    codes = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    frames = [(code.co_filename, code.co_name) for code in codes]
    return [(file, name) for file, name in frames if file.startswith((OURS, KERAS))]


def is_late(frames):
    """Whether an update runs, and our code in it: a value should have been refused long before."""
    names = [name for _, name in frames]
    begins = [i for i, name in enumerate(names) if name in ("apply", "update_step")]
    if not begins or "build" in names[begins[0] :]:
        return False
    files = [file for file, _ in frames[begins[0] :]]
    # What is in a schedule of Keras', nobody asks before it is used.
    asks_keras = any(file.endswith("rate_schedule.py") for file in files)
    return any(file.startswith(OURS) for file in files) and not asks_keras


def assert_clear(error, argument=""):
    """The error is one that our code raises on purpose, naming the argument, or it is another's."""
    frames = frames_of(error)
    late = is_late(frames)
    where = (
        f"{type(error).__name__} in {' > '.join(name for _, name in frames[-4:])}: {error!s:.300}"
    )
    if late or (frames and frames[-1][0].startswith(OURS)):
        assert isinstance(error, (ValueError, TypeError, RuntimeError)), where
        assert "Received" in str(error), where
        assert argument in str(error), where
        assert not late, where
    assert not isinstance(error, (RecursionError, MemoryError, TimeoutError)), where


def outcome(function, *arguments, seconds=20, says=""):
    """Return "works" or the error's name; fail if the error is an accident, code ran or it takes too long.

    `says`: what an error has to say.
    """
    try:
        with watched(), at_most(seconds):
            function(*arguments)
    except AssertionError:
        raise
    except Exception as error:
        refused = error
    else:
        return "works"
    assert_clear(refused)
    assert says in str(refused), refused
    return type(refused).__name__


def keep(record_property, tally):
    """Write down the figures of docs/reliability.md."""
    record_property("tried", sum(tally.values()))
    record_property("worked", tally["works"])


# --- what must not happen ---

_RUNS = {"os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty"}
_RUNS |= {"subprocess.Popen", "socket.connect", "socket.getaddrinfo", "urllib.Request"}
_RUNS |= {"pickle.find_class", "ctypes.dlopen"}
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
