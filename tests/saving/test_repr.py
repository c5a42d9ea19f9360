"""A repr is the call that makes the object: run as code, it gives an equal one."""

import json

import keras
import pytest
from keras import ops

import keras_decoupled
import stock
from cases import CASES, OPTIMIZERS, make_variable
from keras_decoupled import AdamW, CosineWarmRestarts, Decay, Muon, WarmupStableDecay, calls
from small import ones

schedules = keras.optimizers.schedules
FALLING = schedules.CosineDecay(0.1, 9)
MADE = {
    **{case: CASES[case].optimizer("adamw") for case in CASES if case != "a callable"},
    **{name: CASES["annealing"].optimizer(name) for name in OPTIMIZERS},
    **{name: stock.make(name, weight_decay=FALLING) for name in stock.STOCK},
    "all at its default": AdamW(),
    "no decay of vectors": AdamW(decay_vectors=False),
    "arguments of Keras'": AdamW(clipnorm=1.0, use_ema=True, ema_momentum=0.5),
    "a base rate": AdamW(FALLING, base_learning_rate=0.5),
    "a setting": AdamW(beta_1=schedules.PiecewiseConstantDecay([3], [0.9, 0.8])),
    "a rate of many digits": AdamW(1 / 3),
    "axes": Muon(matrix_axes={"query/kernel": "rbc"}, exclude_layers=["head/"]),
}


def config_of(optimizer):
    return json.dumps(optimizer.get_config() | {"name": None})


@pytest.mark.parametrize("name", MADE)
def test_an_optimizer(name, monkeypatch):
    monkeypatch.setattr(calls, "_MOST", 100)
    names = vars(keras_decoupled) | vars(schedules)
    names |= {"Nadam": keras_decoupled.decouple(keras.optimizers.Nadam)}
    assert config_of(eval(repr(MADE[name]), dict(names))) == config_of(MADE[name])


class WithoutConfig(schedules.LearningRateSchedule):
    """As in Keras' guide: no `get_config`."""

    def __call__(self, step):
        return 0.1


def test_a_schedule_without_a_config():
    """It is needed to save, and for nothing else."""
    assert (
        repr(AdamW(WithoutConfig()))
        == "AdamW(learning_rate=WithoutConfig(…), base_learning_rate=0.1)"
    )
    rules = {"dense": WithoutConfig(), "kernel": 1e-4, "bias": WithoutConfig()}
    optimizer = AdamW(0.1, weight_decays=rules, lr_multipliers={"bias": WithoutConfig()})
    optimizer.build([make_variable(f"dense/{n}", 1.0) for n in ("kernel", "bias")])
    assert "rate by a WithoutConfig" in str(optimizer.explain())
    assert Decay(WithoutConfig()) != Decay(WithoutConfig())


def test_only_what_was_given():
    assert repr(AdamW()) == "AdamW()"
    assert repr(Muon()) == "Muon()"
    assert repr(AdamW(1e-4, Decay(1e-5), decay_vectors=False)) == (
        "AdamW(learning_rate=0.0001, weight_decay=1e-05, decay_vectors=False)"
    )
    schedule = CosineWarmRestarts(1e-3, 100)
    text = "CosineWarmRestarts(initial_learning_rate=0.001, first_decay_steps=100)"
    assert repr(schedule) == text
    assert repr(AdamW(schedule)) == f"AdamW(learning_rate={text})"
    assert "stable_steps=None" in repr(WarmupStableDecay(1e-3, None, decay_steps=10))


def test_as_it_is_now():
    variables = ones("kernel")
    optimizer = AdamW(0.1, weight_decay=0.001)
    optimizer.build(variables)
    optimizer.learning_rate, optimizer.weight_decay, optimizer.beta_1 = 0.05, 0.003, 0.8
    assert repr(optimizer) == (
        "AdamW(learning_rate=0.05, base_learning_rate=0.1, weight_decay=0.003, beta_1=0.8)"
    )


def test_many_keys_are_counted():
    optimizer = AdamW(lr_multipliers={f"layer_{i}": 0.5 for i in range(40)})
    assert repr(optimizer) == "AdamW(lr_multipliers={… 40 entries})"


def rate_of_mine():
    return 0.1


def test_a_function_has_its_name():
    assert repr(AdamW(rate_of_mine)) == "AdamW(learning_rate=rate_of_mine)"


def test_where_nothing_can_be_read():
    """In a compiled step of `fit`, where a look at the optimizer must not end the training."""
    seen = []

    class Looking(AdamW):
        def update_step(self, gradient, variable, learning_rate):
            seen.append(repr(self))
            super().update_step(gradient, variable, learning_rate)

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(Looking(0.1, 1e-3), loss="mse")
    model.fit(ops.ones((4, 2)), ops.ones((4, 1)), verbose=0)
    assert seen
    assert all(text.startswith("Looking(") for text in seen)
