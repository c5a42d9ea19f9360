"""Checks of arguments. An error names the argument, the rule, the value received and the cure."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn

import keras
import numpy as np
from keras import ops

FLOAT32 = 1e38  # a number below it is finite in float32
_SHOWN = 500  # characters of what was received


def real(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    below: float | None = None,
    cure: str,
) -> float:
    """Return `value`, a finite number with `minimum` ≤ value < `below`, as a float."""
    bounds = [f"≥ {minimum:g}"] if minimum is not None else []
    bounds += [f"< {below:g}"] if below is not None else []
    rule = " ".join(["a finite number", " and ".join(bounds)]).rstrip()
    number = _number(name, value, rule, cure)
    too_low = minimum is not None and number < minimum
    too_high = below is not None and number >= below
    if not math.isfinite(number) or too_low or too_high:
        refuse(name, value, f"must be {rule}", cure)
    return number


def integer(name: str, value: Any, *, minimum: int, below: int | None = None, cure: str) -> int:
    """Return `value` as an int. It is an integer (10.0 is one) with `minimum` ≤ value < `below`."""
    rule = f"an integer ≥ {minimum}" + (f" and < {below}" if below is not None else "")
    number = _number(name, value, rule, cure)
    too_high = below is not None and number >= below
    if not number.is_integer() or number < minimum or too_high:  # inf and nan are not integers
        refuse(name, value, f"must be {rule}", cure)
    return int(value)


def flag(name: str, value: Any, *, cure: str) -> bool:
    """Return `value`, a Python or NumPy bool, as a bool. The numbers 0 and 1 are refused."""
    if not isinstance(value, (bool, np.bool_)):
        refuse(name, value, "must be True or False", cure, TypeError)
    return bool(value)


# A schedule's values are checked at these steps, and the peak of a rising schedule is searched
# among them. Each step is about 7% larger than the one before.
STEPS = sorted({0, *(round(10 ** (6 * i / 199)) for i in range(200))})
# The errors that a schedule may raise after its end: its table has no such entry, or its formula
# overflows.
_ENDED = (LookupError, ArithmeticError, ValueError)


def values_of(schedule: Any, steps: Sequence[int]) -> dict[int, float]:
    """Return a schedule's values at these steps, up to its end if it has one."""
    found: dict[int, float] = {}
    with warnings.catch_warnings(action="ignore"):
        for step in steps:
            try:  # with a tensor, as in an update: in Python, 0 ** -0.5 is an error
                value = schedule(ops.convert_to_tensor(step, "int32"))
                found[step] = float(ops.convert_to_numpy(value))
            except Exception as error:
                if not found or not _is_end(error):
                    raise
                break
    return found


def _is_end(error: Exception) -> bool:
    """Tell whether a schedule may raise this after its end."""
    # TensorFlow's error for a table that is a tensor. Only fast/ imports TensorFlow.
    of_a_tensor = type(error).__name__ == "InvalidArgumentError"
    return of_a_tensor or isinstance(error, _ENDED)


def schedule(name: str, value: Any, check: Callable[[str, Any], Any]) -> Any:
    """Return `value`, a schedule whose values at all of `STEPS` pass the check."""
    of_one_number(name, value)
    for step, number in values_of(value, STEPS).items():
        check(f"`{name}` at update {step}", number)
    return value


def of_one_number(name: str, schedule: Any) -> None:
    """Refuse a schedule that returns an array. Errors of the schedule itself are left for later."""
    try:
        shape = np.shape(keras.ops.convert_to_numpy(schedule(0)))
    except Exception:
        return
    if shape != ():
        rule = f"must be a schedule that returns one number, not an array of shape {shape}"
        refuse(name, schedule, rule, "Give one schedule for each number.")


# A file may hold anything, so each part of it is checked before it is used.

OF_A_FILE = "It is part of a saved config or state, and it is not as this package writes it."


def fields(name: str, value: Any, keys: Sequence[str]) -> list[Any]:
    """Return the entries of a dict under these keys."""
    if not isinstance(value, Mapping) or not all(key in value for key in keys):
        rule = f"must be a dict with {', '.join(map(repr, keys))}" if keys else "must be a dict"
        refuse(name, value, rule)
    return [value[key] for key in keys]


def listed(name: str, value: Any, *, length: int | None = None) -> list[Any]:
    """Return `value`, a list or a tuple (of that length, if given), as a list."""
    if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
        refuse(name, value, "must be a list" if length is None else f"must be a list of {length}")
    return value if isinstance(value, list) else list(value)


def text(name: str, value: Any, *, cure: str = OF_A_FILE) -> str:
    """Return `value`, a string."""
    if not isinstance(value, str):
        refuse(name, value, "must be a string", cure)
    return value


def texts(name: str, value: Any) -> list[str]:
    """Return `value`, a list of strings."""
    return [text(f"{name}[{i}]", part) for i, part in enumerate(listed(name, value))]


def shape(name: str, value: Any) -> tuple[int, ...]:
    """Return `value`, a list of sizes, as a tuple."""
    sizes = listed(name, value)
    return tuple(integer(f"{name}[{i}]", n, minimum=0, cure=OF_A_FILE) for i, n in enumerate(sizes))


def _number(name: str, value: Any, rule: str, cure: str) -> float:
    """Return `value` as a float, or inf if float64 cannot hold it."""
    if isinstance(value, bool) or not isinstance(value, Real):  # in Python a bool is an int
        refuse(name, value, f"must be {rule}", cure, TypeError)
    try:
        return float(value)
    except OverflowError:
        return math.inf


class Seen(str):
    """Words about what was received, if the value itself would say too little or too much."""


def refuse(
    name: str,
    value: Any,
    rule: str,
    cure: str = OF_A_FILE,
    error: type[Exception] = ValueError,
) -> NoReturn:
    """Raise "`name` rule. Received: value. cure". Nearly all errors of the package come from here.

    Args:
        name: the argument or method that is wrong, or a description of several words.
        value: what was received, or `Seen` words about it.
        rule: what must hold, beginning with a verb: "must be a number".
        cure: a sentence that says what to do.
        error: the class of the error. A TypeError also names the type of the value.
    """
    received: str = value if isinstance(value, Seen) else _shown(value)
    if error is TypeError and not isinstance(value, Seen):
        received += f" of type {type(value).__name__}"
    words = " " in name
    if not (words or isinstance(value, Seen)):
        received = f"{name}={received}"
    subject = f"{name[0].upper()}{name[1:]}" if words else f"`{name}`"
    raise error(f"{subject} {rule}. Received: {received}. {cure}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
