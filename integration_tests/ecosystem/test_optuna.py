"""optuna: a study over rate and decay, with pruning; an optimizer is for one trial."""

import keras
import optuna
import pytest

from keras_decoupled import AdamW


def test_the_study_of_the_page(page):
    trials = page["study"].trials
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") >= 2  # the pruner waits for two
    assert set(states) <= {"COMPLETE", "PRUNED"}
    assert len({(t.params["learning_rate"], t.params["weight_decay"]) for t in trials}) == 6


def test_pruning(page):
    """A trial that must be worse than those before ends after its first epoch."""
    storage = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=0))
    storage.optimize(page["objective"], n_trials=1)
    [trial] = storage.trials
    assert trial.state.name == "PRUNED"
    assert list(trial.intermediate_values) == [0]


def test_one_optimizer_for_all_trials(page):
    shared = AdamW(1e-3, weight_decay=1e-4)

    def objective(trial):
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])
        model.compile(shared, loss="mse")
        return model.fit(page["x"], page["y"], verbose=0).history["loss"][0]

    study = optuna.create_study()
    with pytest.raises(ValueError, match="`apply` cannot train another model after its first upd"):
        study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]
