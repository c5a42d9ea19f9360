"""Keras' scikit-learn wrappers with this package's optimizers: cloned, cross-validated, searched."""

import keras
import numpy as np
import pytest
from keras.wrappers import SKLearnClassifier
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score

from keras_decoupled import AdamW, CosineWarmRestarts, Lion

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def model(optimizer, classes=2):
    layers = [keras.layers.Dense(8, "relu", name="body"), keras.layers.Dense(classes, "softmax")]
    net = keras.Sequential([keras.Input((4,)), *layers])
    net.compile(optimizer, loss="categorical_crossentropy", metrics=["accuracy"])
    return net


def make(X, y, learning_rate=0.02, weight_decay=1e-3):
    keras.utils.set_random_seed(0)
    return model(AdamW(learning_rate, weight_decay=weight_decay, decay_vectors=False))


EPOCHS = {"epochs": 15, "verbose": 0}  # for each `fit`: a clone forgets what the wrapper was given


def test_a_function_that_makes_the_model():
    scores = cross_val_score(SKLearnClassifier(make), X, Y, cv=3, params=EPOCHS)
    assert scores.mean() > 0.75  # by chance: 0.5


def test_a_search_over_rate_and_decay():
    """Each candidate is trained with its own numbers."""
    candidates = [
        {"learning_rate": 1e-6, "weight_decay": 0.0},
        {"learning_rate": 0.05, "weight_decay": 1e-3},
    ]
    search = GridSearchCV(SKLearnClassifier(make), {"model_kwargs": candidates}, cv=2)
    search.fit(X, Y, **EPOCHS)
    best = search.best_estimator_.model_.optimizer
    assert isinstance(best, AdamW)
    assert best.get_config()["learning_rate"] == 0.05
    assert float(best.weight_decay) == np.float32(1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: AdamW(CosineWarmRestarts(0.02, 20), weight_decay=1e-3, decay_vectors=False),
        lambda: Lion(0.02, weight_decays={"body": 1e-3}, lr_multipliers={"body": 0.5}),
    ],
    ids=["adamw", "lion"],
)
def test_a_compiled_model_is_cloned_with_its_optimizer(optimizer):
    """Each fit trains a copy that has the optimizer's config; the model that was given stays as it was."""
    given = model(optimizer())
    fitted = clone(SKLearnClassifier(given)).fit(X, Y, **EPOCHS)
    made, kept = fitted.model_.optimizer, given.optimizer
    assert type(made) is type(kept)
    assert int(made.iterations) == 30  # 15 epochs of 2 batches
    assert int(kept.iterations) == 0
    names = ("weight_decay", "weight_decays", "lr_multipliers", "decay_vectors", "learning_rate")
    made_config, kept_config = made.get_config(), kept.get_config()
    assert {n: made_config.get(n) for n in names} == {n: kept_config.get(n) for n in names}
    assert fitted.score(X, Y) > 0.75
