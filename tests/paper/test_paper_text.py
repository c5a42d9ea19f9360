"""A run of benchmarks/paper on text, beside the optimizers as a user writes them."""

import inspect
from functools import partial

import keras
import numpy as np
import pytest

from cases import BACKEND
from keras_decoupled import AdamW, Muon

RATE, DECAY = 0.02, 0.3  # α and λ
ETA = (1.0, 0.5)
ADAM = {"beta_2": 0.95, "weight_decay": DECAY}
MUON = {"exclude_layers": ["head/"], "adam_beta_2": 0.95}
AS_WRITTEN = {
    "adamw-scaled": partial(AdamW, RATE, **ADAM, lr_multipliers={"kernel": 2.0}),
    "keras-adamw-scaled": partial(
        AdamW, RATE, **ADAM, lr_multipliers={"kernel": 2.0}, weight_decays={"kernel": 2 * DECAY}
    ),
    "adamw": partial(AdamW, RATE, **ADAM),
    "muon": partial(Muon, RATE, weight_decay=DECAY, **MUON),
    "muon-bfloat16": partial(Muon, RATE, weight_decay=DECAY, ns_dtype="bfloat16", **MUON),
    "keras-muon": partial(
        keras.optimizers.Muon,
        RATE,
        weight_decay=DECAY / RATE,
        adam_weight_decay=DECAY / RATE,
        **MUON,
    ),
}

# The experiments compare with the Muon of Keras 3.15. That of 3.12 has another step.
OF_TODAY = "adam_weight_decay" in inspect.signature(keras.optimizers.Muon).parameters

if BACKEND == "jax":  # what the experiments run on
    import text
    import transformer
    from results import TextCell

    RNG = np.random.default_rng(0)
    PARTS = [RNG.integers(0, 7, 70_000).astype("int32") for _ in range(3)]
    DATA = text.Text(*PARTS, 7)

    def cell(form):
        return TextCell(form, width=32, rate=RATE, decay=DECAY, updates=3, batch=2, seed=0)

    @pytest.mark.parametrize(
        "form", [f for f in transformer.FORMS if OF_TODAY or f != "keras-muon"]
    )
    def test_a_step_is_that_of_the_optimizer(form, monkeypatch):
        monkeypatch.setattr(transformer, "LENGTH", 8)
        program = transformer.Program(cell(form), DATA)
        model, optimizer = program.model, AS_WRITTEN[form]()
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
        start = [np.array(v) for v in model.trainable_variables]
        weights, state = list(start), [np.array(v) for v in program.optimizer.variables]
        x, y = text.windows(PARTS[0], [0, 50], 8)
        for eta in ETA:
            rate, decay = np.float32(RATE * eta), np.float32(DECAY / RATE)
            weights, state = program.step(weights, state, x, y, rate, decay)
        weights = [np.array(w) for w in weights]
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for eta in ETA:
            optimizer.learning_rate = RATE * eta
            model.train_on_batch(x, y)
        for a, v, before in zip(weights, model.trainable_variables, start, strict=True):
            if v.path.endswith("key/bias"):  # moves no logit: its gradient is rounding alone
                continue
            moved = np.linalg.norm(np.array(v) - before)
            # Over the whole variable: Adam makes a step of the rounding of a gradient near 0.
            assert np.linalg.norm(a - np.array(v)) <= 2e-3 * moved + 1e-6, v.path

    def test_a_run_is_a_function_of_its_cell_and_the_first_loss_is_that_of_a_guess(monkeypatch):
        monkeypatch.setattr(transformer, "LENGTH", 8)
        monkeypatch.setattr(transformer, "EVALUATED", 64)
        program = transformer.Program(cell("muon"), DATA)
        first, again = (dict(program.run(cell("muon"))) for _ in range(2))
        assert first == again
        assert list(first) == [3]
        untrained = [np.array(v) for v in program.model.trainable_variables]
        assert program.mean(untrained, PARTS[1]) == pytest.approx(np.log(7), rel=1e-5)

    def test_windows():
        x, y = text.windows(np.arange(10), [2, 5], 3)
        assert x.tolist() == [[2, 3, 4], [5, 6, 7]]
        assert y.tolist() == [[3, 4, 5], [6, 7, 8]]
