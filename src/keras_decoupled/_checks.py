"""Checks of arguments: each names the argument, the rule, what it received and the cure."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np


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
        raise ValueError(_message(name, repr(value), rule, cure))
    return number


def integer(name: str, value: Any, *, minimum: int, cure: str) -> int:
    """`value` as an int ≥ `minimum`; a float that holds an integer, as in 10.0, is one."""
    rule = f"an integer ≥ {minimum}"
    number = _number(name, value, rule, cure)
    if not number.is_integer() or number < minimum:  # inf and nan are no integers
        raise ValueError(_message(name, repr(value), rule, cure))
    return int(value)


def flag(name: str, value: Any, *, cure: str) -> bool:
    """`value` as a bool; 0 and 1 are numbers."""
    if not isinstance(value, (bool, np.bool_)):
        raise _type_error(name, value, "True or False", cure)
    return bool(value)


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
    return TypeError(_message(name, f"{value!r} of type {kind}", rule, cure))


def _message(name: str, received: str, rule: str, cure: str) -> str:
    return f"`{name}` must be {rule}. Received: {name}={received}. {cure}"
