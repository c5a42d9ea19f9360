"""Checks of arguments: each names the argument, the rule, what it received and the cure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import keras
import numpy as np

FLOAT32 = 1e38  # below it, what an update computes with is finite in float32
_SHOWN = 500  # characters of what was received


def real(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    below: float | None = None,
    cure: str,
) -> float:
    """`value` as a float: a finite real number, `minimum` ≤ value < `below`."""
    bounds = [f"≥ {minimum:g}"] if minimum is not None else []
    bounds += [f"< {below:g}"] if below is not None else []
    rule = " ".join(["a finite number", " and ".join(bounds)]).rstrip()
    number = _number(name, value, rule, cure)
    too_low = minimum is not None and number < minimum
    too_high = below is not None and number >= below
    if not math.isfinite(number) or too_low or too_high:
        raise ValueError(_message(name, _short(value), rule, cure))
    return number


def integer(name: str, value: Any, *, minimum: int, cure: str) -> int:
    """`value` as an int ≥ `minimum`; a float that holds an integer, as in 10.0, is one."""
    rule = f"an integer ≥ {minimum}"
    number = _number(name, value, rule, cure)
    if not number.is_integer() or number < minimum:  # inf and nan are no integers
        raise ValueError(_message(name, _short(value), rule, cure))
    return int(value)


def flag(name: str, value: Any, *, cure: str) -> bool:
    """`value` as a bool; 0 and 1 are numbers."""
    if not isinstance(value, (bool, np.bool_)):
        raise _type_error(name, value, "True or False", cure)
    return bool(value)


def of_one_number(name: str, schedule: Any) -> None:
    """Refuse a schedule that returns an array; one that fails says itself what is wrong with it."""
    try:
        shape = np.shape(keras.ops.convert_to_numpy(schedule(0)))
    except Exception:
        return
    if shape != ():
        received = f"{schedule!r}, which returns an array of shape {shape} for step 0"
        rule = "a schedule that returns one number"
        raise ValueError(_message(name, received, rule, "Give one schedule for each number."))


# What a file holds. It may be anything, so that each part is looked at before it is used.

OF_A_FILE = "It is part of a saved config or state, and not as this package writes it."


def shallow(name: str, value: Any, most: int = 64) -> None:
    """Refuse lists and dicts inside each other beyond any sense: code that follows them is recursive."""
    layer = [value] if isinstance(value, (Mapping, list, tuple)) else []
    for _ in range(most):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, (Mapping, list, tuple))
        ]
        if not layer:
            return
    raise ValueError(
        f"`{name}` must not nest lists and dicts more than {most} deep. "
        f"Received: more than that. {OF_A_FILE}"
    )


def fields(name: str, value: Any, keys: Sequence[str]) -> list[Any]:
    """The entries of a dict that has these keys at least."""
    rule = f"a dict with {', '.join(map(repr, keys))}" if keys else "a dict"
    if not isinstance(value, Mapping) or not all(key in value for key in keys):
        raise ValueError(_message(name, _short(value), rule, OF_A_FILE))
    return [value[key] for key in keys]


def listed(name: str, value: Any, *, length: int | None = None) -> list[Any]:
    """`value` as a list, of that length where one is given."""
    rule = "a list" if length is None else f"a list of {length}"
    if not isinstance(value, (list, tuple)) or length not in (None, len(value)):
        raise ValueError(_message(name, _short(value), rule, OF_A_FILE))
    return list(value)


def text(name: str, value: Any, *, cure: str = OF_A_FILE) -> str:
    """`value`, a string."""
    if not isinstance(value, str):
        raise ValueError(_message(name, _short(value), "a string", cure))
    return value


def shape(name: str, value: Any) -> tuple[int, ...]:
    """`value`, a list of sizes, as a tuple."""
    sizes = listed(name, value)
    return tuple(integer(f"{name}[{i}]", n, minimum=0, cure=OF_A_FILE) for i, n in enumerate(sizes))


def _number(name: str, value: Any, rule: str, cure: str) -> float:
    """`value` as a float, infinite where float64 cannot hold it."""
    if isinstance(value, bool) or not isinstance(value, Real):  # Python counts a bool as an int
        raise _type_error(name, value, rule, cure)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _type_error(name: str, value: Any, rule: str, cure: str) -> TypeError:
    kind = type(value).__name__
    return TypeError(_message(name, f"{_short(value)} of type {kind}", rule, cure))


def _short(value: Any) -> str:
    """The value's text: all of a number's or a name's, the beginning of a long one's."""
    try:
        shown = repr(value)
    except ValueError:  # an int of thousands of digits
        return f"a {type(value).__name__} that is too long to show"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _message(name: str, received: str, rule: str, cure: str) -> str:
    return f"`{name}` must be {rule}. Received: {name}={received}. {cure}"
