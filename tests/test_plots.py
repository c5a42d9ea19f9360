"""`plot_schedule`: the first line is the rates that training uses, whatever has happened so far."""

import re
import sys
from unittest.mock import patch

import keras
import matplotlib as mpl
import numpy as np
import pytest
from keras.optimizers import schedules

from cases import make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Lion, WarmupStableDecay, plot_schedule

mpl.use("Agg")


@pytest.fixture(autouse=True)
def no_figure_of_another_test():
    mpl.pyplot.close("all")  # a docstring's example leaves one open
    yield
    mpl.pyplot.close("all")


class InPython(schedules.LearningRateSchedule):
    """A user's own, which no compiler takes."""

    def __call__(self, step):
        return 0.1 if int(step) < 5 else 0.05


class Halving(schedules.LearningRateSchedule):
    """A user's own, which nobody can load by name; a Python number where it is told so."""

    def __init__(self, number=False):
        self.number = number

    def __call__(self, step):
        return 0.25 if self.number else 0.5 ** keras.ops.cast(step, "float32")


def lines(*arguments):
    """The y of each line, the first one's x seen to be the updates."""
    ax = plot_schedule(*arguments)
    assert isinstance(ax, mpl.axes.Axes)
    x = ax.lines[0].get_xdata()
    np.testing.assert_array_equal(x, np.arange(arguments[1]))
    return np.asarray(ax.lines[0].get_ydata(), "float64")


def trained_rates(optimizer, updates):
    """The rate before each update of a run."""
    variable, rates = make_variable("w", np.ones(2)), []
    optimizer.build([variable])
    for _ in range(updates):
        rates.append(float(numpy(optimizer.learning_rate)))
        optimizer.apply([keras.ops.ones(2)], [variable])
    return rates


class Floor(CosineWarmRestarts):
    """What a user's class adds to ours counts."""

    def __call__(self, step):
        return keras.ops.maximum(super().__call__(step), 0.04)


COSINE = {"use_cosine_annealing": True, "total_iterations": 4}
OPTIMIZERS = {
    "number beside a base": lambda: AdamW(0.1, base_learning_rate=0.5, weight_decay=0),
    "restarts": lambda: AdamW(CosineWarmRestarts(0.1, 3, t_mul=2), weight_decay=0),
    "a floor": lambda: AdamW(Floor(0.1, 4), weight_decay=0),
    "annealing": lambda: SGDW(0.1, weight_decay=0, t_cur=2, **COSINE),
    "annealing beside a base": lambda: SGDW(0.1, weight_decay=0, base_learning_rate=0.2, **COSINE),
    "stable": lambda: Lion(WarmupStableDecay(0.1, 2, 3, 2), weight_decay=0),
    "Keras'": lambda: AdamW(schedules.ExponentialDecay(0.1, 5, 0.5), weight_decay=0),
    "Keras' warm-up": lambda: keras.optimizers.SGD(
        schedules.CosineDecay(0.0, 6, warmup_target=0.1, warmup_steps=2)
    ),
    "stock": lambda: keras.optimizers.Adam(0.1),
    "stock, a user's own": lambda: keras.optimizers.Adam(Halving()),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rates_of_a_run(name):
    rates = trained_rates(OPTIMIZERS[name](), 9)
    np.testing.assert_allclose(lines(OPTIMIZERS[name](), 9), rates, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "schedule",
    [schedules.PiecewiseConstantDecay([3, 6], [0.1, 0.05, 0.01]), Halving(number=True), InPython()],
)
def test_a_schedule(schedule):
    expected = [float(schedule(keras.ops.convert_to_tensor(k))) for k in range(9)]
    np.testing.assert_allclose(lines(schedule, 9), expected, rtol=1e-6, atol=1e-9)


def test_counts_weight_updates_and_no_micro_batches():
    optimizer = AdamW(CosineWarmRestarts(0.1, 4), weight_decay=0, gradient_accumulation_steps=2)
    np.testing.assert_array_equal(lines(optimizer, 9), lines(CosineWarmRestarts(0.1, 4), 9))
    assert lines(optimizer, 1) == pytest.approx([0.1])
    falling = schedules.PolynomialDecay(0.1, 10)
    stock = keras.optimizers.SGD(falling, gradient_accumulation_steps=2)  # counts micro-batches
    assert lines(stock, 3) == pytest.approx([float(falling(k)) for k in (1, 3, 5)])


@pytest.mark.parametrize("name", ["number beside a base", "restarts", "annealing", "stable"])
def test_starts_at_update_0_whatever_was_done(name):
    optimizer = OPTIMIZERS[name]()
    expected = lines(optimizer, 9)
    trained_rates(optimizer, 4)
    optimizer.learning_rate = 0.01
    if name != "number beside a base":
        optimizer.restart(1)
    if name == "stable":
        optimizer.begin_decay()
    before = [numpy(v) for v in optimizer.variables]
    np.testing.assert_array_equal(lines(optimizer, 9), expected)
    for value, variable in zip(before, optimizer.variables, strict=True):
        np.testing.assert_array_equal(value, numpy(variable))


def test_labels_and_limits():
    ax = plot_schedule(CosineWarmRestarts(0.1, 5, eta_min=0.5, name="warm"), np.int64(9))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("weight update (from 0)", "learning rate")
    assert -0.01 < ax.get_ylim()[0] < 0  # 0 is shown, and not hidden by the axis
    assert ax.lines[0].get_label() == "warm"
    ax.figure.canvas.draw()
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert all(re.fullmatch(r"\N{MINUS SIGN}?\d+", tick) for tick in ticks), ticks


def test_two_schedules_in_one_picture():
    figure, (left, right) = mpl.pyplot.subplots(1, 2)
    right.set_yscale("log")
    for axes in (left, right):
        assert plot_schedule(AdamW(CosineWarmRestarts(0.1, 5), 0.1), 9, axes) is axes
        plot_schedule(WarmupStableDecay(0.2, 2, 5, eta_min=0.1), 9, ax=axes)
        assert [line.get_label() for line in axes.lines] == ["AdamW", "WarmupStableDecay"]
        assert axes.get_ylim()[1] > 0.2
    assert left.get_ylim()[0] < 0 < right.get_ylim()[0]
    assert len(mpl.pyplot.get_fignums()) == 1
    figure.canvas.draw()


# --- errors -------------------------------------------------------------------------------------


def test_without_matplotlib_it_says_what_to_install():
    with (
        patch.dict(sys.modules, {"matplotlib": None, "matplotlib.pyplot": None}),
        pytest.raises(ImportError, match="pip install matplotlib"),
    ):
        plot_schedule(CosineWarmRestarts(0.1, 5), 9)


def test_a_mistake_in_a_schedule_is_told_as_it_is():
    class Wrong(Halving):
        def __call__(self, step):
            return wramup  # noqa: F821

    with pytest.raises(NameError, match="wramup"):
        plot_schedule(Wrong(), 9)


WRAPPED = [keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())]
if hasattr(keras.optimizers, "MultiOptimizer"):  # since Keras 3.15
    WRAPPED += [keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(*WRAPPED))]
A_TYPE = r"^`schedule_or_optimizer` must be .*Received: .* of type .*\. Plot an instance"
NO_FUTURE = r"^`learning_rate` must be .*a callable has no future.*Received: .*Plot a schedule"
STEPS = r"^`steps` must be an integer ≥ 1\. Received: steps=.*updates"
OURS = CosineWarmRestarts(0.1, 5)


@pytest.mark.parametrize(
    ("given", "steps", "error", "message"),
    [
        *((x, 9, TypeError, A_TYPE) for x in (0.1, None, "adamw", lambda: 0.1, AdamW)),
        *((x, 9, ValueError, r"ptimizer` has no learning rate.*Plot an op") for x in WRAPPED),
        (AdamW(lambda: 0.1, weight_decay=0.1), 9, ValueError, NO_FUTURE),
        (keras.optimizers.SGD(lambda: 0.1), 9, ValueError, NO_FUTURE),
        *((OURS, steps, ValueError, STEPS) for steps in (0, -1, 1.5)),
        *((OURS, steps, TypeError, STEPS) for steps in ("9", None)),
    ],
)
def test_what_it_cannot_plot(given, steps, error, message):
    with pytest.raises(error, match=message):
        plot_schedule(given, steps)


def test_ax():
    figure, axes = mpl.pyplot.subplots(1, 2)
    for wrong in (figure, axes, "left"):
        words = r"^`ax` must be matplotlib Axes or None\. Received: ax="
        with pytest.raises(TypeError, match=words):
            plot_schedule(OURS, 9, wrong)
    assert not any(ax.lines for ax in axes)
