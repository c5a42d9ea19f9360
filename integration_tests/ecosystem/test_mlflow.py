"""mlflow: what it logs, and which processes can load what it has logged."""

import keras
import mlflow
import numpy as np
import pytest

from keras_decoupled import AdamW, no_decay

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy


@pytest.fixture
def tracking(page, monkeypatch):
    """The database that the page's code has made; mlflow finds it in the folder."""
    monkeypatch.chdir(page["folder"])
    return mlflow.MlflowClient()


def history(tracking, run, name):
    return [(m.step, m.value) for m in tracking.get_metric_history(run.info.run_id, name)]


def test_what_the_callback_logs(page, tracking):
    run = tracking.get_run(page["tracked"].info.run_id)
    assert run.data.params["optimizer_weight_decay"] == "0.0001"
    assert "'first_decay_steps': 40" in run.data.params["optimizer_learning_rate"]
    assert history(tracking, run, "t_cur") == [(0, 8), (1, 16)]
    for name, value in {"eta": 1.0, "learning_rate": 0.01}.items():
        now = value * 0.5 * (1 + np.cos(np.pi * 16 / 39))
        assert run.data.metrics[name] == pytest.approx(now, rel=1e-5)
    assert run.data.metrics["weight_decay"] == pytest.approx(1e-4)


def test_a_model_that_it_loads_goes_on(page, tracking):
    fresh, logged = page["make_model"](), mlflow.keras.load_model(page["whole"].model_uri)
    assert type(logged.optimizer) is AdamW
    assert int(logged.optimizer.iterations) == int(logged.optimizer.t_cur) == 16
    assert len(fresh.optimizer.variables) < len(logged.optimizer.variables)  # moments are there


LOAD = """
import mlflow
import numpy as np

x = np.ones((2, 8), "float32")
served, whole = {served!r}, {whole!r}
assert mlflow.pyfunc.load_model(served).predict(x).shape == (2, 1)
for load in (mlflow.pyfunc.load_model, mlflow.keras.load_model):
    try:
        load(whole)
    except TypeError as error:
        assert "Could not locate class 'AdamW'" in str(error), error
    else:
        raise AssertionError(load)

import keras_decoupled

assert mlflow.pyfunc.load_model(whole).predict(x).shape == (2, 1)
"""


def test_a_process_that_serves_a_model(page, tracking, run_script, monkeypatch):
    database = page["folder"] / "mlflow.db"
    assert database.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    run_script(LOAD.format(**{name: page[name].model_uri for name in ("served", "whole")}))
    for name, infers in (("served", True), ("whole", False)):
        folder = mlflow.artifacts.download_artifacts(f"models:/{page[name].model_id}")
        with open(f"{folder}/requirements.txt", encoding="utf-8") as file:
            assert ("numpy" in file.read()) == infers


AUTOLOG = """
import keras
import mlflow
import numpy as np

from keras_decoupled import AdamW
from keras_decoupled.callbacks import LogRates

mlflow.keras.autolog(log_models=False)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(AdamW(1e-3, weight_decay=1e-4), loss="mse")
with mlflow.start_run() as run:
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0, callbacks=[LogRates()])
data = mlflow.get_run(run.info.run_id).data
assert data.params["optimizer_weight_decay"] == "0.0001"
assert data.metrics.keys() == {"loss", "learning_rate", "eta", "t_cur", "weight_decay"}
"""


def test_autolog(run_script):
    run_script(AUTOLOG)


def test_a_long_parameter_is_cut(page, tracking):
    layers = [keras.layers.Dense(1, name=f"layer_with_a_long_name_{i}") for i in range(60)]
    model = keras.Sequential([keras.Input((1,)), *layers])
    model.compile(AdamW(1e-3, weight_decay=1e-4, weight_decays=no_decay(model)), loss="mse")
    model.optimizer.build(model.trainable_variables)
    with mlflow.start_run() as run:
        callback = mlflow.keras.MlflowCallback()
        callback.set_model(model)
        callback.on_train_begin()
    params = tracking.get_run(run.info.run_id).data.params
    assert len(str(model.optimizer.get_config()["resolved"])) > 6000
    assert len(params["optimizer_resolved"]) == 6000


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
def test_a_second_fit_at_another_rate(page, tracking, stock):
    """Its parameters are lost, and its metrics are not."""
    make = keras.optimizers.AdamW if stock else AdamW
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
    model.compile(make(1e-3, weight_decay=1e-4), loss="mse")
    with mlflow.start_run() as run:
        for epoch in range(2):
            callbacks = [mlflow.keras.MlflowCallback()]
            options = {"initial_epoch": epoch, "epochs": epoch + 1, "verbose": 0}
            model.fit(page["x"], page["y"], callbacks=callbacks, **options)
            model.optimizer.learning_rate = 5e-4
    assert [step for step, _ in history(tracking, run, "loss")] == [0, 1]
    params = tracking.get_run(run.info.run_id).data.params
    assert float(params["optimizer_learning_rate"]) == pytest.approx(1e-3)
