"""The built wheel, installed with one backend alone."""

import importlib.metadata
import importlib.util
from pathlib import Path

import keras_decoupled

BACKENDS = ("jax", "tensorflow", "torch")
RUN_IT = "run the integration tests with `nox -s integration`"

FLOW = """
import sys
from pathlib import Path

import keras
import numpy as np

import keras_decoupled
from keras_decoupled import AdamW

assert "site-packages" in Path(keras_decoupled.__file__).parts, keras_decoupled.__file__

rng = np.random.default_rng(0)
x = rng.normal(size=(64, 5)).astype("float32")
y = x @ rng.normal(size=(5, 1)).astype("float32")


def make_model():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    optimizer = AdamW(
        0.01,
        weight_decay=1e-3,
        weight_decays={"bias": 0},
        total_iterations=10,
        use_cosine_annealing=True,
    )
    model.compile(optimizer, loss="mse")
    return model


def fit(model):
    return model.fit(x, y, batch_size=16, epochs=1, shuffle=False, verbose=0).history["loss"][0]


model = make_model()
first = fit(model)
model.save("half.keras")
loaded = keras.models.load_model("half.keras")
assert type(loaded.optimizer) is AdamW
assert int(loaded.optimizer.t_cur) == int(model.optimizer.t_cur) == 4
assert float(loaded.optimizer.eta_t) == float(model.optimizer.eta_t) < 1
went_on, resumed = fit(model), fit(loaded)
assert resumed == went_on < first, (first, went_on, resumed)
for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)
others = [name for name in {others} if name in sys.modules]
assert not others, others
print("flow done")
"""


def test_the_wheel_and_one_backend_are_installed(backend):
    """Tests see the installed package, and not the checkout."""
    folder = Path(keras_decoupled.__file__).parent
    assert folder.parent.name == "site-packages", RUN_IT
    assert {name for name in BACKENDS if importlib.util.find_spec(name)} == {backend}, RUN_IT


def test_what_the_wheel_holds_and_says():
    files = importlib.metadata.files("keras_decoupled")
    top = {file.parts[0] for file in files if "__pycache__" not in file.parts}
    version = importlib.metadata.version("keras_decoupled")
    assert top == {"keras_decoupled", f"keras_decoupled-{version}.dist-info"}, RUN_IT
    assert "keras_decoupled/py.typed" in {file.as_posix() for file in files}
    assert any(file.name == "LICENSE" for file in files)
    citation = (Path(__file__).parents[1] / "CITATION.cff").read_text(encoding="utf-8")
    assert keras_decoupled.__version__ == version
    assert f"\nversion: {version}\n" in citation
    metadata = importlib.metadata.metadata("keras_decoupled")
    assert metadata["License-Expression"] == "MIT"
    # No backend but by an extra.
    assert sorted(metadata.get_all("Provides-Extra")) == sorted([*BACKENDS, "plot"])
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(required) == ["keras>=3.12", "numpy"]


def test_build_fit_save_load_and_go_on(run_script, backend):
    others = [name for name in BACKENDS if name != backend]
    assert "flow done" in run_script(FLOW.replace("{others}", repr(others)))
