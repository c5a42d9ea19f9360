"""keras-rs: tables of embeddings under decay, exempt from it, and saved."""

import keras
import keras_rs
import numpy as np
import pytest

from keras_decoupled import AdamW, no_decay

BATCH = 32
RNG = np.random.default_rng(0)
IDS = RNG.integers(5, size=(BATCH, 3)).astype("int32")  # of 10 rows
Y = RNG.normal(size=(BATCH, 1)).astype("float32")


def reduced():
    ids = keras.Input((3,), dtype="int32")
    return ids, keras_rs.layers.EmbedReduce(10, 4, combiner="mean", name="items")(ids)


def distributed():
    """On a CPU its tables are the model's, and the optimizer of `TableConfig` counts for nothing."""
    ids = keras.Input(batch_shape=(BATCH, 3), dtype="int32")
    table = keras_rs.layers.TableConfig("items", 10, 4, optimizer="sgd", combiner="mean")
    feature = keras_rs.layers.FeatureConfig("ids", table, (BATCH, 3), (BATCH, 4))
    return ids, keras_rs.layers.DistributedEmbedding({"ids": feature})({"ids": ids})["ids"]


def train(make, exempt):
    """Ten updates; give the model, and its table before them and after."""
    inputs, vector = make()
    vector = keras_rs.layers.FeatureCross(name="cross")(vector, vector)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head")(vector))
    decays = no_decay(model, embeddings=exempt)
    model.compile(AdamW(1e-2, weight_decay=1e-3, weight_decays=decays), loss="mse")
    [table] = [v for v in model.trainable_variables if v.path.endswith("/embeddings")]
    before = keras.ops.convert_to_numpy(table)
    fit(model, 10)
    return model, before, keras.ops.convert_to_numpy(table)


def fit(model, epochs):
    model.fit(IDS, Y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0)


each = pytest.mark.parametrize("make", [reduced, distributed])


@each
def test_rows_that_are_in_no_batch(make):
    _, before, after = train(make, exempt=False)
    np.testing.assert_allclose(after[5:], before[5:] * (1 - 1e-3) ** 10, rtol=1e-5)
    assert np.abs(after[:5] - before[:5]).max(axis=1).min() > 0.01
    _, before, after = train(make, exempt=True)
    np.testing.assert_array_equal(after[5:], before[5:])
    assert np.abs(after[:5] - before[:5]).max(axis=1).min() > 0.01


@each
def test_a_run_saved_and_loaded_goes_on(make, tmp_path):
    model, *_ = train(make, exempt=True)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is AdamW
    fit(model, 3)
    fit(loaded, 3)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_page_exempts_its_table(page):
    assert page["ratings"].optimizer.weight_decays.keys() == {"head/kernel"}
