"""`from_keras`: the stock optimizer and ours go on from one place, and stay together."""

import warnings
from functools import partial

import keras
import numpy as np
import pytest

import stock as stocks
from cases import eager, eager_with_cond, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Muon, NadamW, decouple, no_decay
from stock import STOCK

schedules = keras.optimizers.schedules
CHOSEN = [0, 1, 5]  # a matrix that Muon steps, and a bias and a matrix that its Adam part steps
PATHS = [stocks.PATHS[i] for i in CHOSEN]
BEFORE, AFTER = 3, 4  # updates
RATE, DECAY = 0.05, 0.4


class MyAdam(keras.optimizers.Adam):
    """A user's."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, learning_rate * gradient)


# name: (ours, stock class, its arguments)
TWINS = {
    "adam": (AdamW, keras.optimizers.Adam, {}),
    "adamw": (AdamW, keras.optimizers.AdamW, {"beta_1": 0.8, "epsilon": 1e-3}),
    "adamw-amsgrad": (AdamW, keras.optimizers.AdamW, {"amsgrad": True}),
    "sgd": (SGDW, keras.optimizers.SGD, {}),
    "sgd-momentum": (SGDW, keras.optimizers.SGD, {"momentum": 0.8, "nesterov": True}),
    "nadamw": (NadamW, keras.optimizers.Nadam, {"beta_2": 0.98}),
}
if Muon._kd_twins:  # Keras 3.12 has another step
    TWINS["muon"] = Muon, keras.optimizers.Muon, {"exclude_layers": ["head"], "adam_lr_ratio": 0.5}
for _name, (_cls, _own) in STOCK.items():
    _stock = getattr(keras.optimizers, _cls)
    TWINS[_name] = decouple(_stock), _stock, _own
EVERY = list(TWINS)
TWINS["of a user"] = decouple(MyAdam), MyAdam, {"beta_1": 0.25}
READS_THE_WEIGHT = ("lamb", "adafactor")


def make_stock(name, /, **arguments):
    _, stock, own = TWINS[name]
    defaults = {"learning_rate": RATE, "weight_decay": DECAY}
    return stock(**defaults | own | arguments)


def make_variables(dtype="float32"):
    every = stocks.make_variables(dtype=dtype)
    return [every[i] for i in CHOSEN]


def micro_batches(steps, seed=1):
    return [[grads[i] for i in CHOSEN] for grads in stocks.micro_batches(steps, seed)]


def trained(name, variables, runner=eager, before=BEFORE, exclude=None, rate_now=None, **arguments):
    """A stock optimizer after some updates, and what steps it."""
    optimizer = make_stock(name, **arguments)
    if exclude:
        optimizer.exclude_from_weight_decay(**exclude)
    step = runner(optimizer, variables)
    for grads in micro_batches(before):
        step(grads)
    if rate_now:
        optimizer.learning_rate = rate_now
    return optimizer, step


def way(step, variables, batches):
    """The weights after each update from here on; they are put back afterwards."""
    start = [numpy(v) for v in variables]
    found = []
    for grads in batches:
        step(grads)
        found.append([numpy(v) for v in variables])
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    return start, found


def assert_together(name, variables, stock, stock_step, new_step, batches=None):
    """Both take the same steps: Keras' own rounding of 1 − β2 is 5e-5 of a step. Ours leaves the stock one alone."""
    batches = batches or micro_batches(AFTER, seed=7)
    before = [numpy(v) for v in stock.variables]
    start, ours = way(new_step, variables, batches)
    assert all(map(np.array_equal, before, map(numpy, stock.variables)))
    _, theirs = way(stock_step, variables, batches)
    share = 3 * RATE * DECAY if name in READS_THE_WEIGHT else 1e-4
    moved = [np.zeros_like(value) for value in start]
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        before = theirs[k - 1] if k else start
        for i, path in enumerate(PATHS):
            moved[i] = moved[i] + np.abs(b[i] - before[i]) + RATE * DECAY * np.abs(before[i])
            most = share * moved[i] + 2.0**-22 * (k + 1) * np.abs(b[i])
            assert np.all(np.abs(a[i] - b[i]) <= most), f"{path} after {k + 1} updates"
    assert all(np.any(value > 0) for value in moved)


def slots(optimizer, name):
    """The optimizer's variables of this name, in the order of its weights."""
    return [v for v in optimizer.variables if v.path.endswith(name)]


def went_on(name, runner=eager, batches=None, **arguments):
    """The stock optimizer and ours, which took the same steps."""
    variables = make_variables()
    stock, stock_step = trained(name, variables, runner, **arguments)
    new = TWINS[name][0].from_keras(stock)
    assert new.built
    assert int(numpy(new.iterations)) == int(numpy(stock.iterations)) > 0
    averages = [[numpy(v) for v in slots(one, "_average")] for one in (new, stock)]
    assert all(np.array_equal(a, b) for a, b in zip(*averages, strict=True))
    assert len(averages[0]) == len(PATHS) * new.use_ema
    assert_together(name, variables, stock, stock_step, runner(new, variables), batches)
    return stock, new


@pytest.mark.parametrize("name", EVERY)
def test_it_goes_on(name):
    stock, new = went_on(name)
    assert type(new) is TWINS[name][0]
    assert new.name == stock.name
    # Stock Muon has another decay for its Adam part, 0.004.
    assert new.get_config()["weight_decay"] == pytest.approx(RATE * DECAY)


SCHEDULE = {"learning_rate": schedules.CosineDecay(RATE, 12, alpha=0.1)}
EMA = {"use_ema": True, "ema_momentum": 0.75}
# From the middle of an accumulation: what was summed up goes on, too.
ACCUMULATION = {"gradient_accumulation_steps": 2, "runner": eager_with_cond, "before": 5}
ACCUMULATION |= {"batches": micro_batches(6, seed=7)}
CARRIED = [
    ("adamw", {"weight_decay": 0.0}),
    ("adamw", {"clipnorm": 0.5}),
    ("adamw", EMA | {"ema_overwrite_frequency": 4}),
    *(
        (name, SCHEDULE | EMA)
        for name in ("adamw", "sgd-momentum", "nadamw", "lion", "muon")
        if name in TWINS
    ),
    *((name, ACCUMULATION) for name in ("adamw", "adafactor")),
]


@pytest.mark.parametrize(("name", "carried"), CARRIED)
def test_what_is_carried(name, carried):
    went_on(name, **carried)


def test_a_schedule_that_rises():
    """Its top is the rate at which the decay acts in full."""
    rising = schedules.PiecewiseConstantDecay([2, 5], [0.01, RATE, 0.02])
    with pytest.warns(UserWarning, match="rises"):
        went_on("adamw", learning_rate=rising)


def test_excluded_variables():
    """They stay out of another decay, too."""
    variables = make_variables()
    stock, step = trained("adamw", variables, exclude={"var_list": variables[:2]})
    new = AdamW.from_keras(stock)
    assert_together("adamw", variables, stock, step, eager(new, variables))
    assert set(new.weight_decays) == set(PATHS[2:])
    assert set(AdamW.from_keras(stock, weight_decay=0.25).weight_decays) == set(PATHS[2:])
    stock, _ = trained("adam", variables, exclude={"var_names": ["bias"]}, weight_decay=None)
    new = AdamW.from_keras(stock, weight_decay=0.25)
    assert set(PATHS) - set(new.weight_decays) == {"encoder/dense_1/bias"}
    assert not AdamW.from_keras(stock).weight_decays  # which is what its user wanted: no warning


@pytest.mark.parametrize("pattern", ["bias", "one/bias"])
def test_a_pattern_excludes_what_it_excludes_in_keras(pattern):
    """Keras searches a variable's name, and on TensorFlow its path. Asked before the first update."""
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((2,)), dense(2, name="one"), dense(2, name="two")])
    variables = model.trainable_variables
    asked, stepped = (make_stock("adamw", weight_decay=0.5) for _ in range(2))
    for stock in (asked, stepped):
        stock.exclude_from_weight_decay(var_names=[pattern])
        stock.build(variables)
    new = AdamW.from_keras(asked)
    for v in variables:
        v.assign(keras.ops.ones(v.shape))
    stepped.apply([keras.ops.zeros(v.shape) for v in variables], variables)
    assert set(new.weight_decays) == {v.path for v in variables if (numpy(v) != 1).all()}


def test_a_moved_rate():
    _, new = went_on("adamw", rate_now=0.02)
    assert new.get_config()["base_learning_rate"] == 0.02
    assert float(numpy(new.eta_t)) == 1.0


def test_in_a_loss_scale_optimizer(monkeypatch):
    variables = make_variables()
    stock = keras.optimizers.LossScaleOptimizer(make_stock("adamw"), 64.0, dynamic_growth_steps=4)
    stock.build(variables)
    step = eager_with_cond(stock, variables)
    scaled = [[(64 * g).astype("float32") for g in grads] for grads in micro_batches(3)]
    for grads in scaled:
        step(grads)
    new = AdamW.from_keras(stock)
    assert isinstance(new, keras.optimizers.LossScaleOptimizer)
    assert isinstance(new.inner_optimizer, AdamW)
    assert int(numpy(new.step_counter)) == 3
    # Keras' wrapper does not look whether it is built: it would make its variables anew.
    monkeypatch.setattr(new, "build", lambda variables: None)
    new_step = eager_with_cond(new, variables)
    assert_together("adamw", variables, stock, step, new_step, scaled[:1])  # and doubles the scale
    assert float(numpy(new.dynamic_scale)) == float(numpy(stock.dynamic_scale)) == 128.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changes_replace_arguments_and_keep_the_state(dtype):
    """Of low precision too: the moments are in float32."""
    variables = make_variables(dtype)
    stock, _ = trained("adamw", variables, before=1)
    new = AdamW.from_keras(
        stock, learning_rate=0.01, weight_decays={"bias": 0}, gradient_accumulation_steps=3
    )
    config = new.get_config()
    assert (config["learning_rate"], config["base_learning_rate"]) == (0.01, 0.01)
    assert config["weight_decay"] == RATE * DECAY  # the decay that it had
    assert int(numpy(new.iterations)) == 1
    assert list(new.weight_decays) == [PATHS[0], PATHS[2]]
    for name in ("_momentum", "_velocity"):
        for here, there in zip(slots(new, name), slots(stock, name), strict=True):
            assert keras.backend.standardize_dtype(here.dtype) == "float32"
            np.testing.assert_array_equal(numpy(here), numpy(there))
        assert len(slots(new, name)) == len(PATHS)
    assert AdamW.from_keras(stock, weight_decay=0.25).get_config()["weight_decay"] == 0.25


@pytest.mark.parametrize(
    "name", [name for name in ("adamw", "sgd-momentum", "muon", "of a user") if name in TWINS]
)
def test_not_built(name):
    adam = {"adam_weight_decay": DECAY} if name == "muon" else {}
    new = TWINS[name][0].from_keras(make_stock(name, clipnorm=2.0, name="one", **adam))
    config = new.get_config()
    assert type(new) is TWINS[name][0]
    assert not new.built
    assert (config["name"], config["clipnorm"], config["learning_rate"]) == ("one", 2.0, RATE)
    assert config["weight_decay"] == pytest.approx(RATE * DECAY)
    assert {name: config[name] for name in TWINS[name][2]} == TWINS[name][2]


def excluding():
    optimizer = make_stock("adamw")
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


counting_micro_batches = partial(make_stock, "adamw", **SCHEDULE, gradient_accumulation_steps=2)
REFUSED = {
    "another class": (SGDW, partial(make_stock, "adamw"), {}, TypeError, "decouple"),
    "a class of a user": (AdamW, MyAdam, {}, TypeError, "decouple"),
    "for a class without twins": (
        type("Mine", (AdamW,), {"_kd_twins": ()}),
        partial(make_stock, "adamw"),
        {},
        TypeError,
        "cannot continue an optimizer",
    ),
    "one of ours": (SGDW, AdamW, {}, TypeError, "decouple"),
    "a name": (AdamW, lambda: "adamw", {}, TypeError, r"keras\.optimizers\.Adam"),
    "a class": (AdamW, lambda: keras.optimizers.AdamW, {}, TypeError, r"keras\.optimizers\.Adam"),
    "exclusions, not built": (AdamW, excluding, {}, ValueError, r"optimizer\.build"),
    "accumulation": (AdamW, counting_micro_batches, {}, ValueError, "micro-batches"),
    "an unknown argument": (AdamW, partial(make_stock, "adamw"), {"beta": 1}, ValueError, "`beta`"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused(case):
    cls, make, changes, error, words = case
    with pytest.raises(error, match=words) as caught:
        cls.from_keras(make(), **changes)
    assert "Received: " in str(caught.value)


def test_another_accumulation_in_the_middle_of_one_is_refused():
    variables = [make_variable("w", np.ones(3, "float32"))]
    stock = make_stock("adamw", gradient_accumulation_steps=2)
    eager_with_cond(stock, variables)([np.ones(3, "float32")])
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps.*Received: "):
        AdamW.from_keras(stock, gradient_accumulation_steps=4)


# --- from one of ours ---


def ours(rate):
    """After three updates, in the middle of whatever it does."""
    variables = [make_variable(f"net/{n}", np.ones(3, "float32")) for n in ("kernel", "bias")]
    optimizer = AdamW(rate, weight_decay=0.001, weight_decays={"bias": 0.002}, use_ema=True)
    step = eager(optimizer, variables)
    for _ in range(3):
        step([np.ones(3, "float32")] * 2)
    return optimizer


def state_of(optimizer):
    return {v.path: numpy(v) for v in optimizer.variables if "learning_rate" not in v.path}


@pytest.mark.parametrize("kind", ["constant", "schedule", "moved"])
def test_another_rate_with_all_state(kind):
    make = (lambda rate: CosineWarmRestarts(rate, 10)) if kind == "schedule" else float
    before = ours(make(0.1))
    if kind == "moved":
        before.learning_rate = 0.025
    after = AdamW.from_keras(before, learning_rate=make(0.5))
    eta = float(numpy(before.eta_t))
    assert float(numpy(after.eta_t)) == pytest.approx(eta, rel=1e-6)
    assert float(numpy(after.learning_rate)) == pytest.approx(0.5 * eta, rel=1e-6)
    assert after.weight_decays == before.weight_decays
    found, wanted = state_of(after), state_of(before)
    assert len(found) == len(wanted) > 8
    for a, b in zip(found.values(), wanted.values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 0.1, "base_learning_rate": 0.2}, {"base_learning_rate": 0.2}],
    ids=["both rates", "the base rate"],
)
def test_another_base_rate_leaves_the_rate(changes):
    after = AdamW.from_keras(ours(0.1), **changes)
    assert float(numpy(after.learning_rate)) == pytest.approx(0.1, rel=1e-6)
    assert float(numpy(after.eta_t)) == pytest.approx(0.5, rel=1e-6)


def test_a_change_back_to_the_first_number_is_a_change():
    before = ours(0.1)
    before.weight_decay, before.beta_1, before.beta_2 = 0.005, 0.75, 0.5
    after = AdamW.from_keras(before, weight_decay=0.001, beta_1=0.9)
    assert after.get_config()["weight_decay"] == 0.001
    assert (after.beta_1, after.beta_2) == (0.9, 0.5)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (3, 1), (3, 2)])
def test_the_accumulation_changes_and_the_updates_stay(before, after):
    """Of k, and so of the schedule and of Adam's corrections; from a file too."""

    def make(steps):
        rate = CosineWarmRestarts(0.1, 10)
        steps = None if steps == 1 else steps
        return AdamW(rate, weight_decay=0.01, gradient_accumulation_steps=steps)

    variables = [make_variable("w", np.ones(3, "float32"))]
    optimizer, store = make(before), {}
    step = eager(optimizer, variables)
    for _ in range(3 * before):
        step([np.ones(3, "float32")])
    optimizer.save_own_variables(store)
    loaded = make(after)
    loaded.build(variables)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the accumulators start fresh
        loaded.load_own_variables(store)
        steps = None if after == 1 else after
        continued = AdamW.from_keras(optimizer, gradient_accumulation_steps=steps)
    for new in (loaded, continued):
        assert int(numpy(new.iterations)) == 3
        assert int(numpy(new.t_cur)) == 3
    step([np.ones(3, "float32")])
    if before > 1:
        optimizer.save_own_variables(store)
        with pytest.raises(ValueError, match=r"accumulated 1 of 3 gradients"):
            loaded.load_own_variables(store)


def test_the_position_is_what_is_given():
    stock, _ = trained("adamw", make_variables(), before=3)
    cosine = {"use_cosine_annealing": True, "total_iterations": 8, "autorestart": False}
    first = AdamW.from_keras(stock, **cosine, t_cur=5)
    assert int(numpy(first.t_cur)) == 5
    assert int(numpy(AdamW.from_keras(first, t_cur=2).t_cur)) == 2
    assert int(numpy(AdamW.from_keras(first, beta_1=0.8).t_cur)) == 5


def network(l2=None):
    regularizer = l2 and keras.regularizers.L2(l2)
    dense = partial(keras.layers.Dense, 3, kernel_regularizer=regularizer)
    frozen = dense(name="frozen", trainable=False)
    layers = [keras.Input((3,)), frozen, dense(name="a"), keras.layers.BatchNormalization()]
    return keras.Sequential([*layers, dense(name="b")], name="net")


@pytest.mark.parametrize("when", ["not built", "built", "loaded", "unfrozen"])
def test_other_rules_keep_the_decays_of_the_model(when):
    model = network(l2=1e-4)
    before = AdamW(0.1, model=model, weight_decay=0.001, total_iterations=50)
    if when in ("built", "unfrozen"):
        before.build(model.trainable_variables)
    if when == "unfrozen":
        model.layers[0].trainable = True
        before.build(model.trainable_variables)
    if when == "loaded":
        before = AdamW.from_config(before.get_config())
    rules = {"lr_multipliers": {"net/b/kernel": 2.0}, "weight_decays": {"net/a": 0.003}}
    after = AdamW.from_keras(before, **rules)
    model.layers[0].trainable = True
    after.build(model.trainable_variables)
    found = {path.removeprefix("net/"): l2 for path, (_, l2) in after.weight_decays.items()}
    others = {"bias", "gamma", "beta"}
    by_model = {path: l2 for path, l2 in found.items() if path.split("/")[-1] not in others}
    assert by_model == {"frozen/kernel": 1e-4, "a/kernel": 0.003, "b/kernel": 1e-4}
    removed = [r.row.removed_penalty for r in after._kd.registry.built if r.row.removed_penalty]
    assert len(removed) == 3


def test_rules_of_the_model_by_path():
    """They name variables that are never trained, too."""
    model = network()
    before = AdamW(0.1, weight_decay=0.001)
    before.build(model.trainable_variables)
    after = AdamW.from_keras(before, weight_decays=no_decay(model))
    assert sorted(after.weight_decays) == ["net/a/kernel", "net/b/kernel"]


def test_other_rules_with_all_state():
    before = ours(0.1)
    rules = {"weight_decay": 0.004, "weight_decays": {"kernel": 0.003}}
    after = AdamW.from_keras(before, **rules, lr_multipliers={"bias": 2})
    assert sorted(after.weight_decays.values()) == [(0.0, 0.003), (0.0, 0.004)]
    assert list(after.lr_multipliers.values()) == [2]
    assert int(numpy(after.iterations)) == 3
    assert AdamW.from_keras(before, beta_1=0.5).beta_1 == 0.5
    with pytest.raises(ValueError, match="must match the path"):
        AdamW.from_keras(before, weight_decays={"kernle": 0.1})
