"""The numbers of a weight decay: among the libraries' conventions, and from a timescale."""

from __future__ import annotations

from keras_decoupled import checks

# Whether the learning rate multiplies the weight decay.
_COUPLED = {
    "keras": True,
    "torch": True,
    "optax": True,
    "tfa": False,
    "composer": False,
    "keras_decoupled": False,
}


def convert_weight_decay(
    weight_decay: float,
    learning_rate: float,
    source: str = "keras",
    target: str = "keras_decoupled",
) -> float:
    """Return the weight decay that does in one library what a weight decay does in another.

    With w in keras, torch and optax, λ in tfa (TensorFlow Addons), composer (MosaicML) and
    keras_decoupled, and α the learning rate, the fraction of the weight removed per update at the
    base learning rate is

        λ = α·w

    In tfa no schedule of the learning rate moves the decay; that is `Decay(λ, eta_power=0)` here.

    Args:
        weight_decay: as given to the source's AdamW or SGDW; ≥ 0.
        learning_rate: α, the base learning rate (the peak of a schedule); > 0.
        source: "keras", "torch", "optax", "tfa", "composer" or "keras_decoupled". Defaults to
            `"keras"`.
        target: one of the same. Defaults to `"keras_decoupled"`.

    Raises:
        ValueError: a number is out of its range, or a library is not among these.
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
    coupled = []
    for name, library in (("source", source), ("target", target)):
        checks.text(name, library, cure="It is the name of a library.")
        if library not in _COUPLED:
            raise ValueError(
                f"`{name}` must be one of {', '.join(map(repr, _COUPLED))}. "
                f"Received: {name}={library!r}. For another library, see whether its learning rate "
                "multiplies the decay, as in 'torch', or not, as here."
            )
        coupled.append(_COUPLED[library])
    if coupled[0] == coupled[1]:
        return decay
    return decay * rate if coupled[0] else decay / rate


def decay_from_timescale(epochs: float, steps_per_epoch: int) -> float:
    """Return the weight decay λ with which a weight remembers that many epochs.

        λ = 1/(epochs·steps_per_epoch)

    A decayed weight is a moving average of its steps, over 1/λ updates. In epochs, the best such
    timescale hardly changes with the size of model, data and batch.

    Args:
        epochs: the timescale, in epochs; > 0.
        steps_per_epoch: weight updates per epoch; ≥ 1.

    Raises:
        ValueError: a number is out of its range.
        TypeError: an argument has the wrong type.

    Example:
    >>> from keras_decoupled import decay_from_timescale
    >>> decay_from_timescale(epochs=50, steps_per_epoch=200)
    0.0001

    Source: Wang & Aitchison, arXiv 2405.13698; Bergsma et al., arXiv 2505.13738.
    """
    epochs = checks.real("epochs", epochs, minimum=1e-30, cure="It is a number of epochs, as 50.")
    steps = checks.integer(
        "steps_per_epoch", steps_per_epoch, minimum=1, cure="It counts weight updates per epoch."
    )
    return 1 / (epochs * steps)
