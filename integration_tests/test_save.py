"""What a save and a load keep: models of many kinds, every optimizer, and a user's own."""

import json
import textwrap

import keras
import numpy as np
import pytest

from effort import in_turn
from keras_decoupled import (
    SGDW,
    Adadelta,
    Adafactor,
    Adagrad,
    Adamax,
    AdamW,
    CosineWarmRestarts,
    Decay,
    Lamb,
    Lion,
    Muon,
    NadamW,
    RMSprop,
    decouple,
)
from zoo import MODELS, decays

# Where Keras itself trains another model after a load: it saves the sum of a kernel and its LoRA
# factors and starts the factors anew; on torch, `zero_grad` misses one of two twins, so that one's
# gradients add up from batch to batch.
KERAS_CHANGES = {("lora", "jax"), ("lora", "tensorflow"), ("lora", "torch"), ("twins", "torch")}


def data(shape, n=16):
    rng = np.random.default_rng(0)
    return rng.random((n, *shape), "float32"), rng.random((n, 1), "float32")


def rows(optimizer):
    """Each variable's decay and multiplier, in the order of the variables."""
    rows = [record.row for record in optimizer._kd.registry.built]
    return [(row.shape, row.decay, row.multiplier, row.uniform) for row in rows]


def train(model, shape, updates):
    x, y = data(shape)
    for _ in range(updates):
        model.train_on_batch(x, y)


@pytest.mark.parametrize("make", in_turn(MODELS), ids=lambda make: make.__name__)
def test_zoo_keeps_every_decay_multiplier_and_slot_through_two_loads(make, tmp_path):
    model, shape = make()
    with pytest.warns(UserWarning, match="becomes a weight decay of") as record:
        optimizer = AdamW(
            1e-3,
            model=model,
            **decays(model),
            lr_multipliers={model.trainable_variables[0].path: 0.5, "bias": 2.0},
            use_cosine_annealing=True,
            total_iterations=4,
        )
    assert len(record) == 1
    model.compile(optimizer, loss="mse")
    train(model, shape, 2)
    assert sum(map(float, model.losses)) == 0
    wanted, losses = rows(optimizer), []
    assert len({row[1:] for row in wanted}) >= 3  # there is something to mix up
    for i in range(2):
        file = tmp_path / f"{i}.keras"
        model.save(file)
        loaded = keras.models.load_model(file)
        assert rows(loaded.optimizer) == wanted
        assert sum(map(float, loaded.losses)) == 0
        assert int(loaded.optimizer.t_cur) == int(model.optimizer.t_cur)
        for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
        train(model, shape, 2)
        train(loaded, shape, 2)
        if (make.__name__, keras.backend.backend()) not in KERAS_CHANGES:
            for a, b in zip(model.trainable_variables, loaded.trainable_variables, strict=True):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-6, atol=1e-7)
        losses.append(float(loaded.evaluate(*data(shape), verbose=0)))
        model = loaded
    assert np.all(np.isfinite(losses))


PLAIN = {"weight_decay": 1e-3, "weight_decays": {"bias": 0, "embed": (1e-4, 2e-3)}}
OPTIMIZERS = {
    "adamw": (AdamW, {"amsgrad": True}),
    "nadamw": (NadamW, {}),
    "sgdw": (SGDW, {"momentum": 0.9}),
    "adadelta": (Adadelta, {}),
    "adafactor": (Adafactor, {}),
    "adagrad": (Adagrad, {}),
    "adamax": (Adamax, {}),
    "lamb": (Lamb, {}),
    # The initial weights are of the first run, not of the one that goes on.
    "lion": (Lion, {"weight_decay": Decay(1e-2, towards="initial")}),
    "muon": (Muon, {"exclude_layers": ["head"]}),
    "rmsprop": (RMSprop, {"momentum": 0.8, "centered": True}),
    "nadam": (decouple(keras.optimizers.Nadam), {}),
}
EMA = {"use_ema": True, "ema_momentum": 0.9}
BATCH, STOP, END = 8, 7, 12  # STOP and END are updates, both in the middle of a cycle


def make(name, **more):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(10, 3, name="embed"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, "tanh", name="hidden"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    cls, arguments = OPTIMIZERS[name]
    schedule = CosineWarmRestarts(0.02, 4, t_mul=2, m_mul=0.8, warmup_steps=1)
    arguments = PLAIN | arguments | more
    optimizer = cls(
        schedule, lr_multipliers={"hidden": 0.5}, normalize_weight_decay=True, **arguments
    )
    model.compile(optimizer, loss="mse")
    return model


def fit(model, first, last):
    """The updates number first to last - 1."""
    size = BATCH * (model.optimizer.gradient_accumulation_steps or 1)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 10, (END * size, 4)).astype("int32")
    y = rng.normal(size=(END * size, 1)).astype("float32")
    part = slice(first * size, last * size)
    model.fit(x[part], y[part], batch_size=BATCH, shuffle=False, verbose=0)


def state(model):
    """The weights and the optimizer's variables, by path."""
    return [
        (v.path, keras.ops.convert_to_numpy(v))
        for v in (*model.trainable_variables, *model.optimizer.variables)
    ]


OURS = list(OPTIMIZERS)[:3]
RUNS = [(name, EMA if name in OURS else {}) for name in OPTIMIZERS]
RUNS += [(name, EMA | {"gradient_accumulation_steps": 2}) for name in OURS]


@pytest.mark.parametrize(("name", "more"), RUNS)
def test_a_run_saved_and_loaded_is_the_run_that_never_stopped(name, more, tmp_path):
    straight = make(name, **more)
    fit(straight, 0, STOP)
    for factor in (0.5, 2):
        straight.optimizer.learning_rate = factor * float(straight.optimizer.learning_rate)
    straight.save(tmp_path / "m.keras")
    middle = state(straight)
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is OPTIMIZERS[name][0]
    assert int(loaded.optimizer.t_cur) == 2  # 7 - 1 of the warm-up - 4 of the first cycle
    assert float(loaded.optimizer.eta_t) == float(straight.optimizer.eta_t)
    for (path, a), (_, b) in zip(middle, state(loaded), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    assert list(loaded.optimizer.lr_multipliers.values()) == [0.5, 0.5]
    decays = list(straight.optimizer.weight_decays.values())
    assert len(set(decays)) == 2  # the embedding's and that of the kernels; a bias has none
    assert list(loaded.optimizer.weight_decays.values()) == decays
    for model in (straight, loaded):
        fit(model, STOP, END)
        assert int(model.optimizer.iterations) == END
    for (path, a), (_, b) in zip(state(straight), state(loaded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8, err_msg=path)


def test_an_optimizer_never_built_loads_without_a_word(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(AdamW(weight_decay=1e-3), loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    train(loaded, (4,), 1)


# A module of a user: without a name in Keras' registry, and with a slot.
SIGN = '''
import keras
import numpy as np


class Sign(keras.optimizers.Optimizer):
    """A step by the sign of the momentum."""

    def __init__(self, learning_rate=0.01, momentum=0.9, name="sign", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self.moments = self.add_optimizer_variables(variables, "moment")

    def update_step(self, gradient, variable, learning_rate):
        moment = self.moments[self._get_variable_index(variable)]
        self.assign(moment, self.momentum * moment + (1 - self.momentum) * gradient)
        self.assign_sub(variable, learning_rate * keras.ops.sign(moment))

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum}


def fit(model, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(24, 3)).astype("float32"), rng.normal(size=(24, 1)).astype("float32")
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)


def weights(model):
    return [keras.ops.convert_to_numpy(v).tolist() for v in model.trainable_variables]
'''


def test_a_model_trained_with_a_class_of_ones_own_loads_once_it_is_decoupled(tmp_path, run_script):
    """Another process loads it: there nothing is known of the class at first."""
    (tmp_path / "mine.py").write_text(SIGN, encoding="utf-8")
    saving = """
        import json
        import keras
        from keras_decoupled import CosineWarmRestarts, decouple
        from mine import Sign, fit, weights

        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        schedule = CosineWarmRestarts(0.01, 4)
        decays = {"weight_decay": 1e-2, "weight_decays": {"bias": 0}}
        model.compile(decouple(Sign)(schedule, 0.8, **decays), loss="mse")
        fit(model, 0)
        model.save("m.keras")
        fit(model, 1)
        print("RESULT", json.dumps(weights(model)))
    """
    loading = """
        import json
        import keras
        from keras_decoupled import decouple
        from mine import Sign, fit, weights

        try:
            keras.models.load_model("m.keras")
        except TypeError as error:
            print("ERROR", json.dumps(str(error)))
        decouple(Sign)
        model = keras.models.load_model("m.keras")
        assert type(model.optimizer) is decouple(Sign)
        assert model.optimizer.momentum == 0.8
        fit(model, 1)
        print("RESULT", json.dumps(weights(model)))
    """
    wanted = printed(run_script(textwrap.dedent(saving), "save.py"))["RESULT"]
    found = printed(run_script(textwrap.dedent(loading), "load.py"))
    assert "Could not locate class 'decouple(Sign)'" in found["ERROR"]
    for a, b in zip(wanted, found["RESULT"], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-8)


def printed(output):
    """What a script printed, by the word that its line begins with."""
    lines = [line.split(" ", 1) for line in output.splitlines()]
    return {line[0]: json.loads(line[1]) for line in lines if line[0] in ("ERROR", "RESULT")}
