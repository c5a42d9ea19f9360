"""The conventions of other libraries, each against the library itself if it is installed."""

import importlib.util
import itertools

import keras
import numpy as np
import pytest

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import AdamW, convert_weight_decay, decay_from_timescale

RATE, DECAY = 0.05, 0.25
COUPLED = ["keras", "torch", "optax"]
DECOUPLED = ["tfa", "composer", "keras_decoupled"]


def one_update(optimizer):
    """The weight 1 after an update without a gradient."""
    variable = make_variable("w", np.ones(1, "float32"))
    eager(optimizer, [variable])([np.zeros(1, "float32")])
    return numpy(variable)[0]


def of_keras():
    return one_update(keras.optimizers.AdamW(RATE, weight_decay=DECAY))


def of_torch():
    import torch

    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], lr=RATE, weight_decay=DECAY).step()
    return weight.item()


def of_optax():
    import jax.numpy as jnp
    import optax

    optimizer, weight = optax.adamw(RATE, weight_decay=DECAY), jnp.ones(1)
    updates, _ = optimizer.update(jnp.zeros(1), optimizer.init(weight), weight)
    return optax.apply_updates(weight, updates).item()


REAL = {"keras": of_keras, "torch": of_torch, "optax": of_optax}
REAL = {name: update for name, update in REAL.items() if importlib.util.find_spec(name)}


@pytest.mark.parametrize("library", REAL)
def test_ours_does_what_the_library_does(library):
    ours = AdamW(RATE, weight_decay=convert_weight_decay(DECAY, RATE, source=library))
    assert one_update(ours) == pytest.approx(REAL[library](), rel=1e-6)


def test_the_real_library_is_here():
    """Each backend has its own."""
    assert {"jax": "optax", "torch": "torch"}.get(BACKEND, "keras") in REAL


def test_between_any_two_libraries():
    for source, target in itertools.product([*COUPLED, *DECOUPLED], repeat=2):
        expected = DECAY * RATE ** ((source in COUPLED) - (target in COUPLED))
        assert convert_weight_decay(DECAY, RATE, source, target) == expected


def test_a_timescale():
    assert decay_from_timescale(0.5, 200) == 0.01


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (convert_weight_decay, (-1, 0.1), "weight_decay"),
        (convert_weight_decay, (1, 0), "learning_rate"),
        (convert_weight_decay, (1, 0.1, "jax"), "source"),
        (convert_weight_decay, (1, 0.1, "keras", "jax"), "target"),
        (decay_from_timescale, (0, 10), "epochs"),
        (decay_from_timescale, (5, 0), "steps_per_epoch"),
        (decay_from_timescale, (5, 1.5), "steps_per_epoch"),
    ],
)
def test_errors(function, arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`.*Received: "):
        function(*arguments)
