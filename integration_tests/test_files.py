"""A file written under one backend goes on under another; `make_files.py` writes them."""

import json

import keras
import numpy as np
import pytest

import keras_decoupled  # noqa: F401 - all that loading needs
from make_files import FOLDER, train

FILES = sorted(FOLDER.glob("*.keras"))


def test_there_are_files_of_each_backend():
    assert {file.stem.split("-")[-1] for file in FILES} == {"jax", "tensorflow", "torch"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_goes_on(file):
    model = keras.models.load_model(file)
    if keras.backend.backend() == "torch":
        # Keras saves "auto" as what it was on the backend; torch.compile fails on Keras' own loss.
        model.jit_compile = False
    assert int(model.optimizer.iterations) == 7
    assert int(model.optimizer.t_cur) == 2  # 7 - 1 of the warm-up - 4 of the first cycle
    assert list(model.optimizer.lr_multipliers.values()) == [0.5, 0.5]
    assert sum(map(float, model.losses)) == 0
    train(model, 7, 12)
    wanted = json.loads(file.with_suffix(".json").read_text())
    for variable, weights in zip(model.trainable_variables, wanted, strict=True):
        value = keras.ops.convert_to_numpy(variable)
        np.testing.assert_allclose(value, weights, rtol=2e-5, atol=2e-6)
