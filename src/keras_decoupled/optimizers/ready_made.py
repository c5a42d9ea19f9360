"""Seven optimizers of Keras with independent weight decay. The step of each is Keras' own.

A docstring here has only what differs between the classes: the step u, the class's own arguments
and its source. `core.arguments.shared_docstring` adds what all share.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, TypeVar, Unpack, cast

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.core.arguments import Shared
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.optimizers.stock import Stock

registered = keras.saving.register_keras_serializable(package="keras_decoupled")
Constructor = TypeVar("Constructor", bound=Callable[..., None])


def passes_all_on(declared: Constructor, inherited: Collection[str] = ()) -> Constructor:
    """Return a constructor that passes all its arguments on to `Stock`.

    The constructor keeps the signature of `declared`: the object itself, `learning_rate`,
    `weight_decay`, `**shared`, and the stock class's own arguments. Those that are `inherited` are
    passed on only if they are given: a user's class may pass them to its base itself.
    """
    signature = inspect.signature(declared)

    @functools.wraps(declared)
    def constructor(*args: Any, **kwargs: Any) -> None:
        declared(*args, **kwargs)  # Python's own error for a wrong call
        bound = signature.bind(*args, **kwargs)
        given = {*bound.arguments}
        bound.apply_defaults()
        own = {n: x for n, x in bound.arguments.items() if n in given or n not in inherited}
        self = own.pop(next(iter(own)))  # a user's class may not call it `self`
        names = ("learning_rate", "weight_decay", "shared")
        learning_rate, decay, shared = map(own.pop, names)
        Stock.__init__(self, learning_rate, own, weight_decay=decay, **shared)

    return cast(Constructor, constructor)


@registered
class Adadelta(Stock, keras.optimizers.Adadelta):
    r"""Adadelta with independent weight decay: steps as large as the steps before them.

    With gradient g, its mean square v and the mean square d of δ, both 0 at first:

        v ← ρ·v + (1−ρ)·g²
        δ = √(d + ε)/√(v + ε) · g
        d ← ρ·d + (1−ρ)·δ²
        u = η·α·m_v · δ

    The paper has no learning rate, which means α = 1. The first steps are about as large as √ε.

    Args:
        rho: ρ, the fraction of v and d kept per update, in [0, 1). Defaults to `0.95`.
        epsilon: ε > 0, added to v and d under the root, in units of g² and of θ². A larger ε makes
            the first steps larger. Defaults to `1e-7`.
        **shared: the arguments that all optimizers share.

    Source: Zeiler, *ADADELTA: An Adaptive Learning Rate Method*, arXiv 1212.5701, Algorithm 1.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        rho: float | LearningRateSchedule = 0.95,
        epsilon: float | LearningRateSchedule = 1e-7,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...


@registered
class Adafactor(Stock, keras.optimizers.Adafactor):
    r"""Adafactor with independent weight decay: steps relative to the size of the weights.

    At update k, with i = k + 1, gradient g, β = 1 − i^beta_2_decay and rms(x) = √mean(x²), for a
    variable of two or more dimensions:

        r ← β·r + (1−β)·(mean of g² + ε1 over the last axis)
        c ← β·c + (1−β)·(mean of g² + ε1 over the last axis but one)
        v = r·c/(mean of r over its last axis), as an outer product of rows r and columns c

    for other variables v ← β·v + (1−β)·(g² + ε1), and for all variables

        s = g/√v
        u = min(η·α·m_v, 1/√i) · max(ε2, rms(θ)) · s/max(1, rms(s)/clip_threshold)

    The paper has α = 0.01. The rate in u is at most 1/√(k+1), which is 0.001 after a million
    updates. The decay has no such bound, here or in Keras. With weight_decay=w, Keras decays the
    weight before it takes rms(θ), so its steps are shorter by up to the fraction η·α·w.

    Args:
        beta_2_decay: exponent of β = 1 − (k+1)^beta_2_decay, < 0. Defaults to `-0.8`.
        epsilon_1: ε1 > 0, added to g², in its units. Defaults to `1e-30`.
        epsilon_2: ε2 ≥ 0, used instead of a smaller rms(θ), in units of θ. Without it, weights
            that start at 0 would stay at 0. Defaults to `1e-3`.
        clip_threshold: the largest rms(s), > 0. Keras' `clipnorm`, `clipvalue` and
            `global_clipnorm` clip the gradient instead. Defaults to `1.0`.
        relative_step: has no effect, as in Keras: the rate always has its bound, under a schedule
            too. Defaults to `True`.
        **shared: the arguments that all optimizers share.

    Source: Shazeer & Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, arXiv
    1804.04235, Algorithms 4 (matrices) and 5 (vectors), with the hyperparameters of Algorithm 6
    except α. Keras stores v, too.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        beta_2_decay: float | LearningRateSchedule = -0.8,
        epsilon_1: float | LearningRateSchedule = 1e-30,
        epsilon_2: float | LearningRateSchedule = 1e-3,
        clip_threshold: float | LearningRateSchedule = 1.0,
        relative_step: bool = True,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...


@registered
class Adagrad(Stock, keras.optimizers.Adagrad):
    r"""Adagrad with independent weight decay: gradients over the root of the sum of their squares.

    With gradient g and the sum v of its squares, which starts at initial_accumulator_value:

        v ← v + g²
        u = η·α·m_v · g/√(v + ε)

    Learning rates of 0.01 to 1 are usual. The steps get smaller as v grows, but the decay does not.
    In a long run the decay wins, unless a schedule lowers η.

    Args:
        initial_accumulator_value: v before the first update, ≥ 0, in units of g². It is fixed.
            Defaults to `0.1`.
        epsilon: ε ≥ 0, added to v under the root, in units of g². Defaults to `1e-7`.
        **shared: the arguments that all optimizers share.

    Source: Duchi, Hazan & Singer, *Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization*, JMLR 12 (2011), Figure 1, with ε under the root in place of δ beside it.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float | LearningRateSchedule = 1e-7,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...


@registered
class Adamax(Stock, keras.optimizers.Adamax):
    r"""Adamax with independent weight decay: Adam with a fading maximum in place of the root.

    At update k, with i = k + 1, gradient g, momentum m and a fading maximum n of |g|:

        m ← m + (1−β1)·(g − m)
        n ← max(β2·n, |g|)
        u = η·α·m_v · m/((1−β1^i)·(n + ε))

    Args:
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of n, in [0, 1). Defaults to `0.999`.
        epsilon: ε > 0, added to n, in units of g. Defaults to `1e-7`.
        **shared: the arguments that all optimizers share.

    Source: Kingma & Ba, *Adam: A Method for Stochastic Optimization*, arXiv 1412.6980, Algorithm 2,
    with ε added.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float | LearningRateSchedule = 0.999,
        epsilon: float | LearningRateSchedule = 1e-7,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...


@registered
class Lamb(Stock, keras.optimizers.Lamb):
    r"""Lamb with independent weight decay: Adam's direction, scaled by the norm of the weights.

    At update k, with i = k + 1, gradient g, moments m and v, and the norm ‖·‖ of a whole variable:

        m ← m + (1−β1)·(g − m)
        v ← v + (1−β2)·(g² − v)
        r = m/(1−β1^i) / (√(v/(1−β2^i)) + ε)
        u = η·α·m_v · ‖θ‖/‖r‖ · r, and η·α·m_v · r where one of the norms is 0

    So α is the length of a step divided by the length of the weights. The decay enters neither
    norm; in the paper it enters ‖r‖. With weight_decay=w, Keras decays the weight before it takes
    ‖θ‖, so its steps are shorter by the fraction η·α·w.

    Args:
        beta_1: β1, decay rate of m, in [0, 1). Defaults to `0.9`.
        beta_2: β2, decay rate of v, in [0, 1). Defaults to `0.999`.
        epsilon: ε > 0, added to the root of v after its bias correction, in units of g.
            Defaults to `1e-7`.
        **shared: the arguments that all optimizers share.

    Source: You et al., *Large Batch Optimization for Deep Learning: Training BERT in 76 minutes*,
    arXiv 1904.00962, Algorithm 2 without its λ, φ the identity.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float | LearningRateSchedule = 0.999,
        epsilon: float | LearningRateSchedule = 1e-7,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...


@registered
class Lion(Stock, keras.optimizers.Lion):
    r"""Lion with independent weight decay: every step is the sign of a momentum.

    With gradient g and momentum m:

        u = η·α·m_v · sign(β1·m + (1−β1)·g)
        m ← β2·m + (1−β2)·g

    Its steps are larger than Adam's: a third to a tenth of Adam's learning rate is usual.

    Args:
        beta_1: β1, share of m in the step, in (0, 1]. Defaults to `0.9`.
        beta_2: β2, decay rate of m. Defaults to `0.99`.
        **shared: the arguments that all optimizers share.

    Source: Chen et al., *Symbolic Discovery of Optimization Algorithms*, arXiv 2302.06675,
    Algorithm 2.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        beta_1: float | LearningRateSchedule = 0.9,
        beta_2: float | LearningRateSchedule = 0.99,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...


@registered
class RMSprop(Stock, keras.optimizers.RMSprop):
    r"""RMSprop with independent weight decay: gradients divided by their root mean square.

    With gradient g, its mean square v and momentum b:

        v ← ρ·v + (1−ρ)·g²
        b ← momentum·b + η·α·m_v · g/√(v + ε)
        u = b

    With `centered`, a ← ρ·a + (1−ρ)·g is the mean of the gradient, and v − a² + ε is under the
    root. b includes the rate: with momentum, the steps follow a change of the rate slowly, but the
    decay follows at once.

    Args:
        rho: ρ, the fraction of v (and a) kept per update, in [0, 1). Defaults to `0.9`.
        momentum: fraction of b kept per update, in [0, 1). It is fixed. Defaults to `0.0`, plain
            steps.
        epsilon: ε > 0, added under the root, in units of g². Defaults to `1e-7`.
        centered: whether to divide by the gradient's deviation from its mean, not by its size.
            Defaults to `False`.
        **shared: the arguments that all optimizers share.

    Source: Tieleman & Hinton, *Neural Networks for Machine Learning*, Coursera (2012), lecture 6e,
    slide 29; centered and with momentum: Graves, arXiv 1308.0850, p. 23.
    """

    @passes_all_on
    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        rho: float | LearningRateSchedule = 0.9,
        momentum: float = 0.0,
        epsilon: float | LearningRateSchedule = 1e-7,
        centered: bool = False,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Unpack[Shared],
    ) -> None: ...
