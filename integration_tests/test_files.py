"""A file written under one backend goes on under another; `make_files.py` writes them."""

import json

import keras
import numpy as np
import pytest
from keras.optimizers.schedules import LearningRateSchedule

import keras_decoupled
from keras_decoupled import Decay  # the import is all that loading needs, but for `decouple`
from make_files import FOLDER, OPTIMIZERS, train

keras_decoupled.decouple(keras.optimizers.Nadam)

FILES = sorted(FOLDER.glob("*.keras"))


def test_there_are_files_of_each_backend():
    stems = [file.stem.split("-") for file in FILES]
    names = {"0.1.0": ("adamw", "nadamw", "sgdw"), "0.2.0": MOVES, "0.3.0": OPTIMIZERS}
    assert sorted(stems) == [
        [version, name, backend]
        for version in names
        for name in sorted(names[version])
        for backend in ("jax", "tensorflow", "torch")
    ]


def a_cosine(optimizer, name):
    assert list(optimizer.lr_multipliers.values()) == [0.5, 0.5]
    assert int(optimizer.t_cur) == 2  # 7 - 1 of the warm-up - 4 of the first cycle


def kinds_and_what_was_set(optimizer, name):
    assert list(optimizer.lr_multipliers.values()) == [0.5, 0.5]
    kinds(optimizer)


def kinds(optimizer):
    assert float(optimizer.learning_rate) == np.float32(0.01)
    assert float(optimizer.eta_t) == 0.5
    assert float(optimizer.weight_decay) == np.float32(0.05)
    assert list(optimizer.weight_decays.values()) == [
        (0.0, 0.01),
        (1e-4, 0.0),
        Decay(0.05, cautious=True),
        (1e-4, 0.0),
        Decay(0.05, 0.002, towards="initial", eta_power=2),
        (1e-4, 0.0),
        Decay(0.01, 0.02, soft_threshold=True, eta_power=0),
        (1e-4, 0.0),
    ]


def settings(optimizer, name):
    kinds(optimizer)
    _, arguments, moved = OPTIMIZERS[name]
    for argument, number in moved.items():
        assert getattr(optimizer, argument) == number
    for argument, given in arguments.items():
        if argument not in moved:
            assert repr(as_config(getattr(optimizer, argument))) == repr(as_config(given))
    *first, kernel, bias = optimizer.lr_multipliers.values()
    assert first == [0.5, 0.5]
    assert [multiplier.get_config()["end_learning_rate"] for multiplier in (kernel, bias)] == [
        0.5,
        0.5,
    ]


def as_config(value):
    return value.get_config() if isinstance(value, LearningRateSchedule) else value


HELD = {"0.1.0": a_cosine, "0.2.0": kinds_and_what_was_set, "0.3.0": settings}


def load(file):
    model = keras.models.load_model(file)
    if keras.backend.backend() == "torch":
        # Keras saves "auto" as what it was on the backend; torch.compile fails on Keras' own loss.
        model.jit_compile = False
    return model


@pytest.mark.reliability
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_goes_on(file):
    model = load(file)
    assert int(model.optimizer.iterations) == 7
    version, name, _ = file.stem.split("-")
    HELD[version](model.optimizer, name)
    assert sum(map(float, model.losses)) == 0
    train(model, 7, 12)
    wanted = json.loads(file.with_suffix(".json").read_text())
    for variable, weights in zip(model.trainable_variables, wanted, strict=True):
        value = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(value, weights, rtol=2e-5, atol=2e-6)


MOVES = {
    "adamw": {"beta_1": 0.6, "beta_2": 0.9, "epsilon": 0.01},
    "nadamw": {"beta_1": 0.6, "beta_2": 0.9, "epsilon": 0.01},
    "sgdw": {"momentum": 0.5},
    "adadelta": {"epsilon": 2.0},
    "adafactor": {"clip_threshold": 0.1},
    "adagrad": {"epsilon": 0.5},
    "adamax": {"beta_1": 0.6},
    "lamb": {"beta_1": 0.6},
    "rmsprop": {"rho": 0.5},
    "lion": {"beta_1": 0.6},
    "muon": {"momentum": 0.5},
    "nadam": {"beta_1": 0.6},
}


OF_THIS_BACKEND = [file for file in FILES if file.stem.endswith(keras.backend.backend())]


@pytest.mark.parametrize("file", OF_THIS_BACKEND, ids=lambda file: file.stem)
def test_a_setting_moves_what_an_old_file_goes_on_with(file):
    """It goes on as an optimizer that was made with these numbers and was given the file's state."""
    models = [load(file), load(file)]
    first, second = (model.optimizer for model in models)
    moves = {
        name: number
        for name, number in MOVES[file.stem.split("-")[1]].items()
        if not isinstance(getattr(first, name), LearningRateSchedule)
    }
    for name, number in moves.items():
        setattr(first, name, number)
    made = type(second).from_config(second.get_config() | moves)
    made.build(models[1].trainable_variables)
    state = {}
    second.save_own_variables(state)
    made.load_own_variables(state)
    models[1].compile(made, loss="mse", jit_compile=models[1].jit_compile)
    unmoved = json.loads(file.with_suffix(".json").read_text())
    for model in models:
        train(model, 7, 12)
    moved = 0.0
    for one, other, still in zip(*(m.get_weights() for m in models), unmoved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        moved = max(moved, np.max(np.abs(one - np.array(still))))
    assert moved > 1e-4
