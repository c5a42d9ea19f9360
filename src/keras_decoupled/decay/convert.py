"""Converts other libraries' weight decays and timescales to this package's number."""

from __future__ import annotations

from keras_decoupled import checks

_COUPLED = ("keras", "torch", "optax")  # the learning rate multiplies the weight decay
_LIBRARIES = (*_COUPLED, "tfa", "composer", "keras_decoupled")


def convert_weight_decay(
    weight_decay: float,
    learning_rate: float,
    source: str = "keras",
    target: str = "keras_decoupled",
) -> float:
    """Return the number that decays in one library as `weight_decay` does in another.

    keras, torch and optax multiply their weight decay w by the learning rate. tfa (TensorFlow
    Addons), composer (MosaicML) and keras_decoupled do not: their λ is the fraction of the weight
    removed per update. With α the base learning rate,

        λ = α·w

    In tfa a learning-rate schedule does not change the decay. `Decay(λ, eta_power=0)` does the same
    here.

    Args:
        weight_decay: as given to the source's AdamW or SGDW; ≥ 0.
        learning_rate: α, the base learning rate (a schedule's peak); > 0.
        source: "keras", "torch", "optax", "tfa", "composer" or "keras_decoupled". Defaults to
            `"keras"`.
        target: one of the same names. Defaults to `"keras_decoupled"`.

    Raises:
        ValueError: a number is out of range, or a library is unknown.
        TypeError: an argument has the wrong type.

    Example:
    >>> from keras_decoupled import convert_weight_decay
    >>> convert_weight_decay(0.01, learning_rate=0.001)
    1e-05
    >>> round(convert_weight_decay(1e-5, 0.001, source="keras_decoupled", target="torch"), 12)
    0.01

    Source: Loshchilov & Hutter, arXiv 1711.05101; Schaipp, arXiv 2510.19093 (the conventions).
    """
    decay = checks.real(
        "weight_decay", weight_decay, minimum=0.0, cure="It is a number, as given to the source."
    )
    cure = "It is the base learning rate, the peak of a schedule."
    rate = checks.real("learning_rate", learning_rate, minimum=1e-38, cure=cure)
    for name, library in (("source", source), ("target", target)):
        cure = "For other libraries: 'torch' if the rate multiplies the decay, else 'composer'."
        checks.text(name, library, cure=cure)
        if library not in _LIBRARIES:
            checks.refuse(name, library, f"must be one of {', '.join(map(repr, _LIBRARIES))}", cure)
    if (source in _COUPLED) == (target in _COUPLED):
        return decay
    return decay * rate if source in _COUPLED else decay / rate


def decay_from_timescale(epochs: float, steps_per_epoch: int) -> float:
    """Return the weight decay λ with which a weight remembers this many epochs.

        λ = 1/(epochs·steps_per_epoch)

    A decayed weight is a moving average of its steps over 1/λ updates. Measured in epochs, the best
    timescale hardly changes with the size of the model, the data or the batch.

    Args:
        epochs: the timescale, in epochs; > 0.
        steps_per_epoch: weight updates per epoch; ≥ 1.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
    >>> from keras_decoupled import decay_from_timescale
    >>> decay_from_timescale(epochs=50, steps_per_epoch=200)
    0.0001

    Source: Wang & Aitchison, arXiv 2405.13698; Bergsma et al., arXiv 2505.13738.
    """
    epochs = checks.real("epochs", epochs, minimum=1e-30, cure="It is a number, such as 50 epochs.")
    steps = checks.integer(
        "steps_per_epoch", steps_per_epoch, minimum=1, cure="It counts weight updates per epoch."
    )
    return 1 / (epochs * steps)
