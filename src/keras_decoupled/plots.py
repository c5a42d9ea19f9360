"""`plot_schedule`: a picture of the learning rates to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.keras_hooks import Inside
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.core.settings import as_number
from keras_decoupled.schedule.exact import ExactSchedule
from keras_decoupled.schedule.rates import CallableRate, ConstantRate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UPDATES = "weight update (from 0)"


def plot_schedule(
    schedule_or_optimizer: LearningRateSchedule | keras.Optimizer,
    steps: int,
    ax: Axes | None = None,
) -> Axes:
    """Plot the learning rate of the updates 0 … steps − 1.

    An optimizer is shown as it was made: from update 0 on, without restarts, without `begin_decay`
    and without rates that were set later. The axes' first line has the rates. It needs
    matplotlib.

    Args:
        schedule_or_optimizer: a `LearningRateSchedule`, or an optimizer of this package or of
            Keras. In place of a `LossScaleOptimizer`, pass its `inner_optimizer`.
        steps: number of updates; ≥ 1.
        ax: matplotlib Axes to draw into, to compare several schedules. Defaults to `None`: a new
            figure.

    Returns:
        The Axes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: an argument has the wrong type.
        ValueError: `steps` is not an integer ≥ 1, or the learning rate is a callable, which has no
            future values to plot.

    Example:
    >>> from keras_decoupled import CosineWarmRestarts, plot_schedule
    >>> ax = plot_schedule(CosineWarmRestarts(1e-3, 100, t_mul=2), steps=700)
    >>> ax.figure.savefig("schedule.png")
    """
    steps = checks.integer("steps", steps, minimum=1, cure="It counts weight updates.")
    rates, name = _rates(schedule_or_optimizer, steps)
    ax, new = axes("plot_schedule", ax, (6.4, 3.2))
    if new:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        count_updates(ax)
    # Each update has one rate, so the line has steps and no slopes.
    ax.plot(np.arange(steps), rates, drawstyle="steps-mid", label=name)
    ax.set_xlabel(UPDATES)
    ax.set_ylabel("learning rate")
    ax.update_datalim([(0, 0)])  # show 0; whatever else is drawn may still move the limits
    ax.autoscale_view()
    return ax


def axes(name: str, ax: Axes | None, size: tuple[float, float]) -> tuple[Axes, bool]:
    """Return the Axes that the function of this name draws into, and whether they are new."""
    try:
        from matplotlib import pyplot as plt
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            f"`{name}` needs matplotlib. Install it: pip install matplotlib."
        ) from error
    if not (ax is None or isinstance(ax, Axes)):
        refuse("ax", ax, "must be matplotlib Axes or None", "Leave it out.", TypeError)
    if ax is not None:
        return ax, False
    return plt.subplots(figsize=size, layout="constrained")[1], True


def count_updates(ax: Any) -> None:
    """Write whole numbers of updates below the Axes."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _rates(given: Any, steps: int) -> tuple[np.ndarray, str]:
    """Return the rates of the first updates, and a name for them."""
    rate, first, each, factor = given, 0, 1, 1.0
    name = type(given).__name__  # `given.name` may be "adam_1"
    if isinstance(given, Decoupled):
        timing = given._kd.timing
        rate, first = getattr(timing.rate, "schedule", timing.rate), timing.t_cur
        factor = timing.rate_factor
    elif isinstance(given, LearningRateSchedule):
        name = getattr(given, "name", None) or name
    elif hasattr(given, "inner_optimizer") or hasattr(given, "optimizers"):
        rule = "has no learning rate of its own"
        refuse(name, Seen(repr(given)), rule, "Plot an optimizer inside it.")
    elif isinstance(given, keras.optimizers.Optimizer):
        rate, each = Inside(given).rate, given.gradient_accumulation_steps or 1
        first = each - 1  # there, a schedule counts micro-batches
    else:
        rule = "must be a `LearningRateSchedule` or an optimizer"
        cure = "Plot an instance of one of the two."
        refuse("schedule_or_optimizer", given, rule, cure, TypeError)
    if isinstance(rate, (ConstantRate, keras.Variable)):
        return np.full(steps, as_number(getattr(rate, "given", rate))), name
    if not isinstance(rate, LearningRateSchedule) or isinstance(rate, CallableRate):
        rule = "must be a `LearningRateSchedule`: a callable has no future values to plot"
        refuse("learning_rate", Seen(repr(given)), rule, "Plot a schedule.")
    counts = ops.convert_to_tensor(first + each * np.arange(steps, dtype="int32"))
    if isinstance(rate, ExactSchedule):
        return factor * ops.convert_to_numpy(rate(counts)), name

    def ask(step: Any) -> Any:
        return ops.cast(rate(step), "float32")

    # A Keras schedule takes one step at a time. On JAX a call for each step takes many seconds.
    try:
        return factor * ops.convert_to_numpy(ops.vectorized_map(ask, counts)), name
    except (TypeError, ValueError, RuntimeError):  # the schedule needs the step as a number
        return factor * np.array([as_number(ask(step)) for step in counts]), name
