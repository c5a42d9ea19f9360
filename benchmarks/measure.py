"""Timing contenders in turns, A B C, B C A, …, so that what disturbs one disturbs all.

Each round begins with another one, as the first one's data and threads may be colder.
"""

import gc
import time
from contextlib import contextmanager
from statistics import median, quantiles
from typing import NamedTuple

import numpy as np


class Effort(NamedTuple):
    """How long to measure."""

    seconds: float  # of alternating rounds per group; ended early by `most`
    least: int  # rounds
    most: int
    warm_up: int  # rounds before these
    first_steps: int  # how often everything is made anew, to time building and the first step


FULL = Effort(seconds=6.0, least=15, most=300, warm_up=3, first_steps=3)
QUICK = Effort(seconds=0.3, least=3, most=30, warm_up=1, first_steps=1)


@contextmanager
def quiet():
    """No garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(function):
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def first_steps(makers, repeats):
    """Build contenders and take their first step, in turns; return them and both times."""
    times = {name: {"build_s": [], "first_step_s": []} for name in makers}
    made = {}
    for _ in range(repeats):
        for name, make in makers.items():
            made.pop(name, None)  # first, as two would not fit into memory everywhere
            made[name] = contender = make()
            with quiet():
                times[name]["build_s"].append(timed(contender.build))
                times[name]["first_step_s"].append(timed(contender.step))
    return made, {name: {k: median(v) for k, v in t.items()} for name, t in times.items()}


def alternate(steps, effort, progress):
    """Seconds of each step in each round, by name; `progress` hears how much is done, 0 to 1."""
    times = {name: [] for name in steps}
    for _ in range(effort.warm_up):
        for step in steps.values():
            step()
    start = time.perf_counter()
    with quiet():
        for done in range(1, effort.most + 1):
            first = done % len(steps)
            for name in [*steps][first:] + [*steps][:first]:
                times[name].append(timed(steps[name]))
            spent = (time.perf_counter() - start) / effort.seconds
            progress(min(1.0, max(done / effort.most, min(spent, done / effort.least))))
            if spent >= 1 and done >= effort.least:
                break
    return times


def copy_times(copy):
    """Seconds of moving as many bytes as a step must, some times."""
    copy.step()
    return [copy.repeats * timed(copy.step) for _ in range(5)]


def spread(seconds):
    """Median and quartiles in ms."""
    low, middle, high = quantiles(seconds, n=4, method="inclusive")
    return {"ms": 1e3 * middle, "ms_quartiles": [1e3 * low, 1e3 * high]}


def ratio(ours, theirs):
    """Median of the ratios within each round."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def group(makers, ours, copy, effort, before, progress):
    """Measure some contenders for the same work: results by name, and the limit in ms.

    Args:
        makers: functions that make them, by name.
        ours: the name of the one that the others are compared with.
        copy: moves as many bytes as the work must; timed before and after the others, as the one
            whose turn comes after it would find cold caches.
        effort: an `Effort`.
        before: initial value of the variable that `Contender.last` returns.
        progress: called with the part that is done, 0 to 1.
    """
    made, results = first_steps(makers, effort.first_steps)
    steps = {name: contender.step for name, contender in made.items()}
    copies = copy_times(copy)
    times = alternate(steps, effort, progress)
    limit = median(copies + copy_times(copy))
    after = {name: contender.last() for name, contender in made.items()}
    moved = np.abs(after[ours] - before).mean()
    for name, contender in made.items():
        results[name] |= spread(times[name]) | {
            "ours_over_this": ratio(times[ours], times[name]),
            "this_over_limit": median(times[name]) / limit,
            # After the same steps, contenders for the same work are at about the same weights.
            "apart": float(np.abs(after[name] - after[ours]).mean() / moved),
            "extra_bytes": contender.extra_bytes(),
        }
    return results, {
        "limit_ms": 1e3 * limit,
        "copy_bytes_per_s": copy.moved / limit,
        "rounds": len(times[ours]),
    }
