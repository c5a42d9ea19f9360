"""Muon with independent weight decay: matrices are stepped by an orthogonalized momentum."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled import checks
from keras_decoupled.core.algorithm import Algorithm, Described
from keras_decoupled.core.arguments import Real, Shared, at_least_0, flag, fraction
from keras_decoupled.core.numbers import cast
from keras_decoupled.core.optimizer import Decoupled
from keras_decoupled.decay import arguments as keys
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.optimizers.adamw import adam, adam_scalars
from keras_decoupled.paths import blocks, match, matrices


def orthogonalized(
    x: Any, coefficients: tuple[Any, Any, Any], steps: int, dtype: str | None = None
) -> Any:
    """Return matrices with the same singular vectors, and singular values near 1.

    The products of the Newton-Schulz iteration are computed in `dtype`.
    """
    precise, low = x.dtype, dtype or x.dtype
    x = x / (ops.sqrt(ops.sum(ops.square(x), (-2, -1), keepdims=True)) + 1e-7)
    a, b, c = coefficients
    constant = a * ops.eye(min(x.shape[-2:]), dtype=precise)

    def polynomial(r: Any) -> Any:
        return cast(constant + b * cast(r, precise) + c * cast(r @ r, precise), low)

    turned = functools.partial(ops.swapaxes, axis1=-2, axis2=-1)
    x = matrices.newton_schulz(cast(x, low), steps, dtype, polynomial, turned)
    return cast(x, precise)


def _patterns(name: str, value: Any) -> list[str]:
    """Return regular expressions, checked."""
    cure = "A regular expression is searched in the path of each variable."
    given = [] if value is None else value
    if not isinstance(given, list | tuple):
        checks.refuse(name, value, "must be a list of regular expressions", cure, TypeError)
    for i, pattern in enumerate(given):
        checks.text(f"{name}[{i}]", pattern, cure=cure)
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            checks.refuse(f"{name}[{i}]", pattern, f"is not a regular expression: {error}", cure)
    return list(given)


def _ns_dtype(name: str, value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value == "bfloat16"):
        checks.refuse(name, value, 'must be None or "bfloat16"', "None uses float32 or wider.")
    return value


_USUAL = "See help() of Muon for the usual value."


class OfMatrix(Algorithm):
    """The part that steps matrices."""

    def __init__(self, layout: matrices.Layout) -> None:
        self.layout = layout

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """The momentum."""
        return ("momentum",)

    def step(
        self, h: Any, g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Muon's step."""
        (m,), layout = slots, self.layout
        g = ops.reshape(g, m.shape)  # in a traced step, TensorFlow may not know a gradient's shape
        m = h.momentum * m + g
        x = g + h.momentum * m if h.nesterov else m
        if layout.turned:
            x = ops.transpose(x, layout.order)
        x = ops.reshape(x, layout.stack)
        x = orthogonalized(x, (h.muon_a, h.muon_b, h.muon_c), h.ns_steps, h.ns_dtype)
        x = ops.reshape(x, layout.ordered)
        if layout.turned:
            x = ops.transpose(x, layout.back)
        if h.rms_rate is not None:
            rate = rate * h.rms_rate * math.sqrt(max(layout.stack[-2:]))
        return rate * x, (m,)


class OfRest(Algorithm):
    """The part that steps all else, as Adam does."""

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """m and v."""
        return ("momentum", "velocity")

    def step(
        self, h: Any, g: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Adam's step, at adam_lr_ratio times the rate."""
        return adam(g, slots, rate * h.adam_lr_ratio, scalars, h.epsilon)


class MuonAlgorithm(Algorithm):
    """Matrices have a part of their own; Adam steps the rest."""

    arguments: ClassVar = {
        "adam_beta_1": fraction("0.9 is usual."),
        "adam_beta_2": fraction("0.999 is usual."),
        "epsilon": at_least_0("1e-7 is Keras' default."),
        "exclude_layers": _patterns,
        "exclude_embeddings": flag("True gives them to the Adam part."),
        "muon_a": Real(_USUAL),
        "muon_b": Real(_USUAL),
        "muon_c": Real(_USUAL),
        "adam_lr_ratio": Real("1 is usual."),
        "momentum": fraction("0.95 is usual."),
        "ns_steps": functools.partial(checks.integer, minimum=1, below=101, cure="5 is usual."),
        "nesterov": flag("False is plain momentum."),
        "rms_rate": Real("0.2 is usual; None scales no step.", or_none=True),
        "matrix_axes": functools.partial(keys.mapping, check=matrices.checked_axes),
        "ns_dtype": _ns_dtype,
    }
    kernel = "muon"
    part_slot = "velocity"
    twin_names: ClassVar = {"momentum": "momentums", "velocity": "adam_velocities"}
    _rest = OfRest()

    def slot_names(self, h: Any) -> tuple[str, ...]:
        """The slots of the Adam part; a matrix has only the first one, the momentum."""
        return self._rest.slot_names(h)

    def parts(
        self, h: Any, asked: Described, axes: Sequence[str], every: Described
    ) -> list[tuple[str, str]]:
        """Return ("muon", axes) of a matrix and ("adam", "") of all else."""
        attentions = matrices.attentions(every)
        searches = [re.compile(pattern).search for pattern in h.exclude_layers]
        found = []
        for (label, shape), letters in zip(asked, axes, strict=True):
            if not letters and not (h.exclude_embeddings and blocks.is_embedding(label)):
                letters = matrices.axes_of(label, shape, attentions)
            if any(search(match.path_in(label)) for search in searches):
                letters = ""
            found.append(("muon" if letters else "adam", letters))
        return found

    def fits(self, row: Any) -> bool:
        """Tell whether a row is of the Adam part, or has a letter for each axis of a matrix."""
        return row.part == "adam" or (row.part == "muon" and len(row.axes) == len(row.shape))

    def part(self, row: Any) -> Algorithm:
        """Return the part that steps a variable with this row."""
        if row.part == "adam":
            return self._rest
        return OfMatrix(matrices.layout(row.axes, tuple(row.shape)))

    def scalars(self, h: Any, i: Any, on: Any, state: Mapping[str, Any]) -> tuple[Any, ...]:
        """The scalars of the Adam part; the matrices need none."""
        return adam_scalars(h, i, on, "adam_beta_1", "adam_beta_2")


# Before Keras 3.13 its Muon has another step.
_STOCK = keras.optimizers.Muon
_TWINS = (_STOCK,) if "rms_rate" in inspect.signature(_STOCK).parameters else ()


@keras.saving.register_keras_serializable(package="keras_decoupled")
class Muon(Decoupled):
    r"""Muon with independent weight decay: matrices are stepped by an orthogonalized momentum.

    With gradient g and momentum m, a matrix is stepped by

        m ← momentum·m + g
        u = η·α·m_v · rms_rate·√max(rows, columns) · orthogonalized(g + momentum·m)
        θ ← θ − η·(l2·θ + l1·sign θ) − u

    with θ on the right the value before the update, η = (learning rate now)/α, m_v the variable's
    learning-rate multiplier and (l1, l2) its decay. With nesterov=False, m itself is
    orthogonalized. With rms_rate=None, the factor rms_rate·√max is left out.

    Adam updates vectors, embeddings, depthwise kernels and what `exclude_layers` finds, at
    adam_lr_ratio times the rate. Both parts have one λ, unless `weight_decays` says otherwise.

    The last axis of a kernel is its columns, and the others together are its rows. The kernels of
    an attention's query, key and value have the model's features as rows. `explain()` shows the
    part of each variable, and its rows × columns. The first build decides the part, and saved
    models keep it.

    Args:
        learning_rate: α, or a `LearningRateSchedule`, or a callable. Defaults to `0.001`.
        adam_beta_1: β1 of the Adam part. Defaults to `0.9`.
        adam_beta_2: β2 of the Adam part. Defaults to `0.999`.
        epsilon: ε of the Adam part, in units of g. Defaults to `1e-7`.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a number, a
            schedule, a `Decay` or None. Defaults to `None`, no decay.
        exclude_layers: regular expressions. A variable goes to the Adam part if one of them is
            found in its path. Name the output layer here, as "head/": "head" alone is also found
            in "multi_head_attention". Defaults to `None`, no expression.
        exclude_embeddings: whether embeddings go to the Adam part: tables of tokens, positions and
            classes, found by name. Defaults to `True`.
        muon_a: first coefficient of the Newton-Schulz iteration. Defaults to `3.4445`.
        muon_b: second coefficient. Defaults to `-4.775`.
        muon_c: third coefficient. Defaults to `2.0315`.
        adam_lr_ratio: the Adam part's learning rate over that of the matrices. Defaults to `1`.
        momentum: fraction of m kept per update. Defaults to `0.95`.
        ns_steps: number of Newton-Schulz iterations. Defaults to `5`.
        nesterov: whether to orthogonalize g + momentum·m. Defaults to `True`.
        rms_rate: about the root mean square of a step at rate 1; Adam's is 0.2 to 0.4. None leaves
            the orthogonalized matrix as it is. Defaults to `0.2`.
        matrix_axes: `{key: letters}` for kernels with other rows and columns. Each axis has one
            letter: r for rows, c for columns, b if each index is a matrix of its own. With "rbc",
            each head of a query is a matrix; with "brc", each expert. A variable that a key hits
            is a matrix, also an embedding, unless `exclude_layers` finds it. Defaults to `None`.
        ns_dtype: "bfloat16" computes the products of the iteration in that type, which is faster
            if the hardware supports it. Defaults to `None`: float32, or float64 if the variable is.
        **shared: the arguments that all optimizers share; see below.

    Raises:
        ValueError: an argument is out of its range, or a key matches no variable (at build).
        TypeError: an argument has the wrong type.

    Example:
    >>> import keras, numpy as np
    >>> from keras_decoupled import Muon
    >>> layers = [keras.layers.Dense(8), keras.layers.Dense(1, name="head")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> model.compile(Muon(1e-3, weight_decay=1e-4, exclude_layers=["head/"]), loss="mse")
    >>> _ = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Source: Jordan et al., *Muon: An optimizer for hidden layers in neural networks* (2024); the
    factor rms_rate: Liu et al., arXiv 2502.16982.
    """

    _kd_algorithm = MuonAlgorithm()
    _kd_twins = _TWINS
    adam_beta_1: float | LearningRateSchedule
    adam_beta_2: float | LearningRateSchedule
    epsilon: float | LearningRateSchedule
    exclude_layers: list[str]
    exclude_embeddings: bool
    muon_a: float | LearningRateSchedule
    muon_b: float | LearningRateSchedule
    muon_c: float | LearningRateSchedule
    adam_lr_ratio: float | LearningRateSchedule
    momentum: float | LearningRateSchedule
    ns_steps: int
    nesterov: bool
    rms_rate: float | LearningRateSchedule | None
    matrix_axes: Mapping[str | keras.Layer, str]
    ns_dtype: str | None

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float] = 0.001,
        adam_beta_1: float | LearningRateSchedule = 0.9,
        adam_beta_2: float | LearningRateSchedule = 0.999,
        *,
        epsilon: float | LearningRateSchedule = 1e-7,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        exclude_layers: Sequence[str] | None = None,
        exclude_embeddings: bool = True,
        muon_a: float | LearningRateSchedule = 3.4445,
        muon_b: float | LearningRateSchedule = -4.7750,
        muon_c: float | LearningRateSchedule = 2.0315,
        adam_lr_ratio: float | LearningRateSchedule = 1,
        momentum: float | LearningRateSchedule = 0.95,
        ns_steps: int = 5,
        nesterov: bool = True,
        rms_rate: float | LearningRateSchedule | None = 0.2,
        matrix_axes: Mapping[str | keras.Layer, str] | None = None,
        ns_dtype: str | None = None,
        **shared: Unpack[Shared],
    ) -> None:
        given = {**locals()}
        own = {name: given[name] for name in self._kd_algorithm.arguments}
        super().__init__(learning_rate, own, weight_decay=weight_decay, **shared)
