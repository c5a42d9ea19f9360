"""keras_tuner searches the learning rate and the weight decay: λ needs no new search for each α."""

import keras
import keras_tuner
import numpy as np
import pytest

from keras_decoupled import AdamW

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = X @ np.array([[1.0], [-1.0], [0.5], [2.0]], "float32")


def build(hp):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="head")])
    learning_rate = hp.Choice("learning_rate", [1e-4, 0.1])
    weight_decay = hp.Choice("weight_decay", [1e-5, 0.5])
    model.compile(AdamW(learning_rate, weight_decay=weight_decay, decay_vectors=False), loss="mse")
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of keras_tuner
def test_a_search_over_rate_and_decay(tmp_path):
    tuner = keras_tuner.GridSearch(
        build, objective=keras_tuner.Objective("val_loss", "min"), directory=tmp_path
    )
    tuner.search(X[:48], Y[:48], validation_data=(X[48:], Y[48:]), epochs=6, verbose=0)
    best = tuner.get_best_hyperparameters()[0]
    assert best.values == {"learning_rate": 0.1, "weight_decay": 1e-5}
    tried = tuner.oracle.get_best_trials(num_trials=4)
    assert len({tuple(trial.hyperparameters.values.values()) for trial in tried}) == 4
    # The weights of the best epoch in a model that is made anew: its optimizer starts fresh, as any
    # optimizer of Keras would, and says so.
    with pytest.warns(UserWarning, match="it is not built"):
        model = tuner.get_best_models()[0]
    optimizer = model.optimizer
    assert isinstance(optimizer, AdamW)
    assert (optimizer.get_config()["learning_rate"], float(optimizer.weight_decay)) == (
        0.1,
        float(np.float32(1e-5)),
    )
    score = tuner.oracle.get_best_trials()[0].score
    assert model.evaluate(X[48:], Y[48:], verbose=0) == pytest.approx(score, rel=1e-5)
    model.fit(X, Y, epochs=1, verbose=0)
