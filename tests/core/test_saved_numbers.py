"""The rate, λ and the settings in files: a run goes on with them, and another optimizer takes what fits."""

import json

import keras
import numpy as np
import pytest

import training
from cases import make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Lion, NadamW
from slots import of_slot, saved
from small import again, ones

schedules = keras.optimizers.schedules


def number(x):
    return float(numpy(x))


def built(*args, cls=SGDW, **kwargs):
    optimizer = cls(*args, **kwargs)
    optimizer.build(ones())
    return optimizer


def trained(model, updates):
    for k in range(updates):
        rng = np.random.default_rng(k)
        model.train_on_batch(rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW, Lion])
def test_a_model_goes_on_bit_for_bit(cls, tmp_path):
    """After the rate, λ and a setting were set."""
    setting = "momentum" if cls is SGDW else "beta_1"
    model = training.linear()
    model.compile(cls(0.1, weight_decay=0.3, **{setting: 0.75}), loss="mse")
    trained(model, 3)
    model.optimizer.learning_rate.assign(0.07)
    model.optimizer.weight_decay = 0.013
    setattr(model.optimizer, setting, 0.25)
    trained(model, 3)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    config = loaded.optimizer.get_config()
    names = ("learning_rate", "base_learning_rate", "weight_decay", setting)
    assert [config[name] for name in names] == [0.07, 0.1, 0.013, 0.25]
    assert number(loaded.optimizer.learning_rate) == np.float32(0.07)
    assert number(loaded.optimizer.weight_decay) == np.float32(0.013)
    assert set(loaded.optimizer.weight_decays.values()) == {(0.0, 0.013)}
    assert again(loaded.optimizer).get_config() == config
    for one in (model, loaded):
        trained(one, 3)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# The rates that the two runs were made with, the one that is set in the first, and η. The rate is η times the α of the
# optimizer that loads: in a fine-tuning at 1e-4, the rate of a run at 1e-3 would make η 10.
LOADS = {
    "the same": (0.1, 0.1, 0.025, 0.25),
    "nobody moved it": (1e-3, 1e-4, 1e-3, 1),
    "another": (1e-3, 1e-4, 2.5e-4, 0.25),
    "a schedule": (CosineWarmRestarts(0.1, 9), CosineWarmRestarts(0.3, 9), 0.025, 0.25),
    "into a constant rate": (CosineWarmRestarts(0.2, 9), 0.1, 0.05, 0.25),
    "into a schedule": (0.1, CosineWarmRestarts(0.2, 9), 0.05, 0.5),
}


@pytest.mark.parametrize("case", LOADS.values(), ids=LOADS)
def test_a_load_keeps_eta(case):
    first, second, rate, eta = case
    run, other = built(first, weight_decay=0.5), built(second, weight_decay=0.5)
    run.learning_rate = rate
    other.load_own_variables(saved(run))
    alpha = second if isinstance(second, float) else second.initial_learning_rate
    assert number(other.eta_t) == pytest.approx(eta, rel=1e-6)
    assert number(other.learning_rate) == pytest.approx(eta * alpha, rel=1e-6)
    assert (number(other.eta_t) == 1) == (eta == 1)


@pytest.mark.parametrize("r", [1.0, 0.5])
def test_a_constant_rate_in_a_file_of_0_1(r):
    """There r was the variable, λ was none, and nothing said what the optimizer was made with."""
    store = saved(built(0.1, weight_decay=0.5))
    layout = json.loads(store.pop("layout").tobytes())
    names = [name for name, _ in layout["variables"]]
    store[str(names.index("learning_rate"))] = np.float32(r)
    layout["variables"][names.index("learning_rate")][0] = "learning_rate_factor"
    last = names.index("weight_decay")  # in 0.1 there was none
    arrays = [array for i, array in store.items() if int(i) != last]
    del layout["variables"][last], layout["given"]
    store = {str(i): array for i, array in enumerate(arrays)}
    store["layout"] = np.frombuffer(json.dumps(layout).encode(), "uint8")

    optimizer = built(0.3, weight_decay=0.25)
    optimizer.load_own_variables(store)
    assert number(optimizer.eta_t) == r
    assert number(optimizer.learning_rate) == np.float32(np.float32(0.3) * r)
    assert float(optimizer.weight_decay) == 0.25


def test_a_files_decay_is_taken_where_it_was_made_with_the_constructors():
    run = built(0.1, weight_decay=0.5)
    run.weight_decay = 0.125
    schedule = schedules.PolynomialDecay(0.5, 9)
    for given, now in ((0.5, 0.125), (0.25, 0.25), (0, 0), (schedule, schedule)):
        optimizer = built(0.1, weight_decay=given)
        optimizer.load_own_variables(saved(run))
        assert optimizer.weight_decay is now or float(optimizer.weight_decay) == now
    fresh = built(0.1, weight_decay=0.5)
    fresh.load_own_variables(saved(optimizer))  # a file without a number is not in the way of one
    assert float(fresh.weight_decay) == 0.5


@pytest.mark.parametrize("cls", [AdamW, Lion])
def test_a_files_setting_is_taken_where_it_was_made_with_the_constructors(cls):
    make = {"cls": cls, "weight_decay": 0.01}
    run, schedule = built(**make), schedules.PolynomialDecay(0.9, 10, 0.5)
    run.beta_1 = 0.5
    for given, now in ((0.9, 0.5), (0.75, 0.75), (0.5, 0.5), (schedule, schedule)):
        other = built(**make, beta_1=given)
        other.load_own_variables(saved(run))
        assert other.beta_1 == now
    damaged, other = saved(run), built(**make)
    layout = json.loads(damaged["layout"].tobytes())
    place = [name for name, _ in layout["variables"]].index("beta_1")
    damaged[str(place)] = np.array(1.5, "float32")
    with pytest.raises(ValueError, match=r"The saved beta_1 must.*1\.5"):
        other.load_own_variables(damaged)
    assert other.beta_1 == 0.9


def test_a_slot_is_lined_up_with_its_own_variable():
    """By its variable's path, and not by its place: all have one shape, so nothing else would tell."""

    def trained_on(names, factor):
        variables = [make_variable(f"net/{name}/w", np.ones(2, "float32")) for name in names]
        optimizer = AdamW(0.1, weight_decay=0.1)
        grads = [np.full(2, factor * (1.0 + "abcd".index(name)), "float32") for name in names]
        optimizer.apply(training.tensors(grads), variables)
        return optimizer

    one, other = trained_on("abc", 1.0), trained_on("dcba", 100.0)
    wanted = of_slot(other, "momentum") | of_slot(one, "momentum")
    with pytest.warns(match="Started fresh: momentum of net/d/w"):
        other.load_own_variables(saved(one))
    found = of_slot(other, "momentum")
    assert {path: m[0] for path, m in found.items()} == {path: m[0] for path, m in wanted.items()}


def test_a_load_assigns_in_one_order(monkeypatch):
    """Not in that of a set: on JAX several processes load, and each has to assign the same one at a time."""
    arguments = {"weight_decay": 0.01, "cls": NadamW}
    store, assigned = saved(built(0.1, **arguments)), []
    optimizer = built(0.1, **arguments)
    assign = keras.Variable.assign

    def watched(variable, value):
        assigned.append(variable.name)
        return assign(variable, value)

    monkeypatch.setattr(keras.Variable, "assign", watched)
    optimizer.load_own_variables(store)
    names = ["beta_1", "beta_2", "epsilon", "momentum_decay", "weight_decay"]
    assert [name for name in assigned if name in names] == names
