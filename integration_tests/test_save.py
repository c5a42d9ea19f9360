"""What a save and a load keep: models of many kinds, optimizers of each form of state, and a user's own."""

import keras
import numpy as np
import pytest

from effort import in_turn
from keras_decoupled import (
    SGDW,
    AdamW,
    CosineWarmRestarts,
    Decay,
    Lion,
    Muon,
    NadamW,
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


def saved_and_loaded(model, file):
    """The same model from a file: with every decay, multiplier and optimizer variable."""
    model.save(file)
    loaded = keras.models.load_model(file)
    assert rows(loaded.optimizer) == rows(model.optimizer)
    assert sum(map(float, loaded.losses)) == 0
    assert int(loaded.optimizer.t_cur) == int(model.optimizer.t_cur)
    for a, b in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=a.path)
    return loaded


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
    assert len({row[1:] for row in rows(optimizer)}) >= 3  # there is something to mix up
    loaded = saved_and_loaded(model, tmp_path / "m.keras")
    train(model, shape, 2)
    train(loaded, shape, 2)
    for a, b in zip(model.trainable_variables, loaded.trainable_variables, strict=True):
        assert np.all(np.isfinite(b.numpy()))
        if (make.__name__, keras.backend.backend()) not in KERAS_CHANGES:
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-6, atol=1e-7)
    saved_and_loaded(loaded, tmp_path / "m.keras")


EMA = {"use_ema": True, "ema_momentum": 0.9}
# For each form of state; `test_files.py` goes on with files of every class.
OPTIMIZERS = {
    "adamw": (AdamW, {"amsgrad": True, **EMA, "gradient_accumulation_steps": 2}),
    "nadamw": (NadamW, EMA),
    "sgdw": (SGDW, {"momentum": 0.9, **EMA}),
    # The initial weights are of the first run, not of the one that goes on.
    "lion": (Lion, {"weight_decay": Decay(1e-2, towards="initial")}),
    "muon": (Muon, {"exclude_layers": ["head"]}),
    "nadam": (decouple(keras.optimizers.Nadam), {}),
}
PLAIN = {"weight_decay": 1e-3, "weight_decays": {"bias": 0, "embed": (1e-4, 2e-3)}}
BATCH, STOP, END = 8, 7, 12  # STOP and END are updates, both in the middle of a cycle


def make(name):
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
    arguments = PLAIN | arguments
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_saved_and_loaded_is_the_run_that_never_stopped(name, tmp_path):
    straight = make(name)
    fit(straight, 0, STOP)
    straight.optimizer.learning_rate = 0.5 * float(straight.optimizer.learning_rate)
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


class Sign(keras.optimizers.Optimizer):
    """A user's: a step by the sign of the momentum."""

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


def test_a_model_trained_with_a_class_of_ones_own_loads_once_it_is_decoupled(tmp_path):
    """In a process that has not called `decouple`, Keras does not know the class."""
    file, cls = tmp_path / "m.keras", decouple(Sign)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    decays = {"weight_decay": 1e-2, "weight_decays": {"bias": 0}}
    model.compile(cls(CosineWarmRestarts(0.01, 4), 0.8, **decays), loss="mse")
    train(model, (3,), 3)
    model.save(file)
    known, name = keras.saving.get_custom_objects(), keras.saving.get_registered_name(cls)
    del known[name]
    with pytest.raises(TypeError, match=r"Could not locate class 'decouple\(Sign\)'"):
        keras.models.load_model(file)
    known[name] = cls
    loaded = keras.models.load_model(file)
    assert type(loaded.optimizer) is cls
    assert loaded.optimizer.momentum == 0.8
    for one in (model, loaded):
        train(one, (3,), 3)
    for a, b in zip(model.trainable_variables, loaded.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-8)
