"""The example in the help of each public name runs, and prints what it says."""

import inspect

import keras
import pytest

import keras_decoupled
from examples import run_example
from keras_decoupled import callbacks

NAMES = [
    *(getattr(keras_decoupled, name) for name in keras_decoupled.__all__),
    *(getattr(callbacks, name) for name in callbacks.__all__),
    keras_decoupled.AdamW.explain,
    keras_decoupled.AdamW.from_keras,
    keras_decoupled.AdamW.begin_decay,
]
PUBLIC = [named for named in NAMES if not inspect.ismodule(named)]


@pytest.mark.parametrize("named", PUBLIC, ids=lambda named: named.__qualname__)
def test_the_example_runs(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session(free_memory=False)  # names count from the start
    run_example(named)
