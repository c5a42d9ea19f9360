"""What is refused: by which exception, with which words, and with nothing changed before it; and the warnings.

Every message names the argument and has `Received: …` and a cure: at least one sentence after what was received.
"""

import re
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import (
    SGDW,
    AdamW,
    CosineWarmRestarts,
    Decay,
    NadamW,
    fill_dict_in_order,
    get_weight_decays,
)

schedules = keras.optimizers.schedules
NAN, INF = float("nan"), float("inf")
A_CURE = r"Received: (?s:.*?)\. \S"  # some sentence after "Received: …."
A_FLAG = "must be True or False"  # a rule that is its own cure


def check(message, argument, cure):
    assert re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", message), (argument, message)
    assert "Received: " in message, message
    assert re.search(cure, message), (cure, message)
    assert "  " not in message, message
    assert message == message.strip(), message
    assert message.endswith("."), message


def net(penalty=1e-4, name="net"):
    """Two layers; the first has a penalty."""
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, kernel_regularizer=regularizers.L2(penalty), name="one"),
            layers.Dense(1, name="two"),
        ],
        name=name,
    )


def rate():
    return 0.1


COSINE = CosineWarmRestarts(0.1, 10)
DECAY = schedules.ExponentialDecay(0.1, 10, 0.9)
RISING = schedules.PiecewiseConstantDecay([50], [0.1, 0.102])
STARTS_AT_0 = schedules.PiecewiseConstantDecay([5], [0.0, 0.1])
ALWAYS_0 = schedules.PiecewiseConstantDecay([5], [0.0, 0.0])
ANNEALING = {"use_cosine_annealing": True, "total_iterations": 10}

# (class, arguments, exception, the argument that the message names, the cure in it)
REFUSED = [
    # learning_rate and α
    (AdamW, {"learning_rate": -0.1}, ValueError, "learning_rate", A_CURE),
    (AdamW, {"learning_rate": NAN}, ValueError, "learning_rate", A_CURE),
    (AdamW, {"learning_rate": INF}, ValueError, "learning_rate", A_CURE),
    (AdamW, {"learning_rate": 10**400}, ValueError, "learning_rate", A_CURE),
    (AdamW, {"learning_rate": None}, TypeError, "learning_rate", "LearningRateSchedule"),
    (AdamW, {"learning_rate": "0.1"}, TypeError, "learning_rate", "LearningRateSchedule"),
    (AdamW, {"learning_rate": True}, TypeError, "learning_rate", "LearningRateSchedule"),
    (AdamW, {"learning_rate": 0}, ValueError, "learning_rate", "Pass `base_learning_rate`"),
    (
        SGDW,
        {"learning_rate": CosineWarmRestarts(0.0, 10)},
        ValueError,
        "initial_learning_rate",
        "Pass `base_learning_rate`",
    ),
    (
        SGDW,
        {"learning_rate": schedules.CosineDecay(0.0, 10)},
        ValueError,
        "initial_learning_rate",
        "Pass `base_learning_rate`",
    ),
    (
        SGDW,
        {"learning_rate": schedules.CosineDecay(0.1, 10, warmup_target=0.0, warmup_steps=2)},
        ValueError,
        "warmup_target",
        "Pass `base_learning_rate`",
    ),
    (
        SGDW,
        {"learning_rate": ALWAYS_0},
        ValueError,
        "value at step 0",
        "Pass `base_learning_rate`",
    ),
    (AdamW, {"base_learning_rate": 0.0}, ValueError, "base_learning_rate", A_CURE),
    (AdamW, {"base_learning_rate": -1}, ValueError, "base_learning_rate", A_CURE),
    (AdamW, {"base_learning_rate": NAN}, ValueError, "base_learning_rate", A_CURE),
    (AdamW, {"base_learning_rate": INF}, ValueError, "base_learning_rate", A_CURE),
    (AdamW, {"base_learning_rate": "0.1"}, TypeError, "base_learning_rate", A_CURE),
    (AdamW, {"base_learning_rate": True}, TypeError, "base_learning_rate", A_CURE),
    # decays and multipliers
    (AdamW, {"weight_decay": -1e-4}, ValueError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": NAN}, ValueError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": INF}, ValueError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": "1e-4"}, TypeError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": True}, TypeError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": rate}, TypeError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": (0.0, -1e-4)}, ValueError, "weight_decay", A_CURE),
    (AdamW, {"weight_decay": (1, 2, 3)}, ValueError, "weight_decay", "l1, l2"),
    (AdamW, {"weight_decay": {}}, ValueError, "weight_decay", "Decay"),
    (AdamW, {"weight_decay": {"kernel": 1e-4}}, ValueError, "weight_decay", "Decay"),
    (AdamW, {"weight_decays": {"one": -1}}, ValueError, "weight_decays['one']", A_CURE),
    (AdamW, {"weight_decays": {"one": NAN}}, ValueError, "weight_decays['one']", A_CURE),
    (AdamW, {"weight_decays": {"one": (0, INF)}}, ValueError, "weight_decays['one']", A_CURE),
    (AdamW, {"weight_decays": {"one": (-1e-5, 0)}}, ValueError, "weight_decays['one']", A_CURE),
    (AdamW, {"weight_decays": {"one": (1, 2, 3)}}, ValueError, "weight_decays['one']", "l1, l2"),
    (AdamW, {"weight_decays": {"one": ()}}, ValueError, "weight_decays['one']", "l1, l2"),
    (AdamW, {"weight_decays": {"one": "l2"}}, TypeError, "weight_decays['one']", A_CURE),
    (AdamW, {"weight_decays": {"one": None}}, TypeError, "weight_decays['one']", A_CURE),
    (AdamW, {"weight_decays": {"one": (DECAY, 0)}}, TypeError, "weight_decays['one']", "l1"),
    (AdamW, {"weight_decays": [("one", 0.1)]}, TypeError, "weight_decays", "dict"),
    (AdamW, {"weight_decays": 0.1}, TypeError, "weight_decays", "dict"),
    (AdamW, {"lr_multipliers": {"one": -1}}, ValueError, "lr_multipliers['one']", "0 freezes"),
    (AdamW, {"lr_multipliers": {"one": NAN}}, ValueError, "lr_multipliers['one']", "0 freezes"),
    (AdamW, {"lr_multipliers": {"one": INF}}, ValueError, "lr_multipliers['one']", "0 freezes"),
    (AdamW, {"lr_multipliers": {"one": "x"}}, TypeError, "lr_multipliers['one']", "0 freezes"),
    (AdamW, {"lr_multipliers": {"one": (1, 2)}}, TypeError, "lr_multipliers['one']", "0 freezes"),
    (AdamW, {"lr_multipliers": {"one": DECAY}}, TypeError, "lr_multipliers['one']", "0 freezes"),
    (AdamW, {"lr_multipliers": 0.5}, TypeError, "lr_multipliers", "dict"),
    # each optimizer's own
    (AdamW, {"beta_1": 1}, ValueError, "beta_1", A_CURE),
    (AdamW, {"beta_1": -0.1}, ValueError, "beta_1", A_CURE),
    (AdamW, {"beta_2": 1.0}, ValueError, "beta_2", A_CURE),
    (AdamW, {"beta_2": NAN}, ValueError, "beta_2", A_CURE),
    (AdamW, {"beta_2": "0.9"}, TypeError, "beta_2", A_CURE),
    (AdamW, {"beta_1": True}, TypeError, "beta_1", A_CURE),
    (AdamW, {"epsilon": -1e-7}, ValueError, "epsilon", A_CURE),
    (AdamW, {"epsilon": INF}, ValueError, "epsilon", A_CURE),
    (AdamW, {"epsilon": None}, TypeError, "epsilon", A_CURE),
    (AdamW, {"amsgrad": "no"}, TypeError, "amsgrad", A_FLAG),
    (NadamW, {"beta_1": 1}, ValueError, "beta_1", A_CURE),
    (NadamW, {"beta_2": -0.1}, ValueError, "beta_2", A_CURE),
    (NadamW, {"epsilon": -1}, ValueError, "epsilon", A_CURE),
    (NadamW, {"momentum_decay": -0.004}, ValueError, "momentum_decay", A_CURE),
    (NadamW, {"momentum_decay": INF}, ValueError, "momentum_decay", A_CURE),
    (NadamW, {"momentum_decay": "x"}, TypeError, "momentum_decay", A_CURE),
    (SGDW, {"momentum": 1}, ValueError, "momentum", A_CURE),
    (SGDW, {"momentum": -0.1}, ValueError, "momentum", A_CURE),
    (SGDW, {"momentum": None}, TypeError, "momentum", A_CURE),
    (SGDW, {"nesterov": "no"}, TypeError, "nesterov", A_FLAG),
    # time
    (AdamW, {"total_iterations": 0}, ValueError, "total_iterations", A_CURE),
    (AdamW, {"total_iterations": -5}, ValueError, "total_iterations", A_CURE),
    (AdamW, {"total_iterations": 2.5}, ValueError, "total_iterations", A_CURE),
    (AdamW, {"total_iterations": INF}, ValueError, "total_iterations", A_CURE),
    (AdamW, {"total_iterations": "10"}, TypeError, "total_iterations", A_CURE),
    (AdamW, {"total_iterations": True}, TypeError, "total_iterations", A_CURE),
    (AdamW, {"total_iterations_wd": 0}, ValueError, "total_iterations_wd", A_CURE),
    (AdamW, {"total_iterations_wd": 1.5}, ValueError, "total_iterations_wd", A_CURE),
    (AdamW, {"total_iterations_wd": "1"}, TypeError, "total_iterations_wd", A_CURE),
    (
        AdamW,
        {"learning_rate": COSINE, "total_iterations": 10},
        ValueError,
        "total_iterations",
        r"normalize_weight_decay.*total_iterations_wd",
    ),
    (AdamW, {"use_cosine_annealing": True}, ValueError, "total_iterations", A_CURE),
    (AdamW, {**ANNEALING, "total_iterations": 1}, ValueError, "total_iterations", A_CURE),
    (AdamW, {**ANNEALING, "learning_rate": DECAY}, ValueError, "use_cosine_annealing", A_CURE),
    (AdamW, {**ANNEALING, "learning_rate": rate}, ValueError, "use_cosine_annealing", A_CURE),
    (
        AdamW,
        {"use_cosine_annealing": True, "learning_rate": COSINE},
        ValueError,
        "use_cosine_annealing",
        A_CURE,
    ),
    (
        AdamW,
        {"use_cosine_annealing": "no", "total_iterations": 9},
        TypeError,
        "use_cosine_annealing",
        A_FLAG,
    ),
    (AdamW, {"autorestart": True}, ValueError, "autorestart", "use_cosine_annealing=True"),
    (
        AdamW,
        {"autorestart": True, "learning_rate": COSINE},
        ValueError,
        "autorestart",
        "CosineWarmRestarts",
    ),
    (AdamW, {**ANNEALING, "autorestart": "no"}, TypeError, "autorestart", "must be True"),
    (AdamW, {**ANNEALING, "autorestart": 0}, TypeError, "autorestart", "must be True"),
    (AdamW, {**ANNEALING, "eta_min": 0.5, "eta_max": 0.4}, ValueError, "eta_min", A_CURE),
    (AdamW, {**ANNEALING, "eta_min": 1.5}, ValueError, "eta_min", A_CURE),
    (AdamW, {**ANNEALING, "eta_min": -0.1}, ValueError, "eta_min", A_CURE),
    (AdamW, {**ANNEALING, "eta_max": NAN}, ValueError, "eta_max", A_CURE),
    (AdamW, {**ANNEALING, "eta_max": "1"}, TypeError, "eta_max", A_CURE),
    (AdamW, {"eta_min": 0.1}, ValueError, "eta_min", "use_cosine_annealing=True"),
    (AdamW, {"eta_max": 0.9}, ValueError, "eta_max", "use_cosine_annealing=True"),
    (AdamW, {"t_cur": 1}, ValueError, "t_cur", "use_cosine_annealing=True"),
    (AdamW, {"t_cur": 1, "learning_rate": COSINE}, ValueError, "t_cur", "use_cosine_annealing"),
    (AdamW, {**ANNEALING, "t_cur": 10}, ValueError, "t_cur", A_CURE),
    (AdamW, {**ANNEALING, "t_cur": -2}, ValueError, "t_cur", A_CURE),
    (AdamW, {**ANNEALING, "t_cur": 1.5}, ValueError, "t_cur", A_CURE),
    (AdamW, {**ANNEALING, "t_cur": "1"}, TypeError, "t_cur", A_CURE),
    (AdamW, {"normalize_weight_decay": True}, ValueError, "normalize_weight_decay", A_CURE),
    (
        AdamW,
        {"normalize_weight_decay": True, "learning_rate": DECAY},
        ValueError,
        "normalize_weight_decay",
        A_CURE,
    ),
    (
        AdamW,
        {"normalize_weight_decay": False, "total_iterations_wd": 10},
        ValueError,
        "normalize_weight_decay",
        A_CURE,
    ),
    (AdamW, {"normalize_weight_decay": "yes"}, TypeError, "normalize_weight_decay", "True"),
    (
        AdamW,
        {"normalize_weight_decay": 0, "total_iterations": 9},
        TypeError,
        "normalize_weight_decay",
        "True",
    ),
    # others
    (AdamW, {"init_verbose": "no"}, TypeError, "init_verbose", A_FLAG),
    (AdamW, {"zero_penalties": "no"}, TypeError, "zero_penalties", A_FLAG),
    (AdamW, {"lr": 0.1}, ValueError, "lr", "learning_rate"),
    (AdamW, {"decay": 0.1}, ValueError, "decay", "LearningRateSchedule"),
    (AdamW, {"momentum_decay": 0.1}, ValueError, "momentum_decay", A_CURE),
    (SGDW, {"beta_1": 0.9}, ValueError, "beta_1", A_CURE),
    (SGDW, {"wieght_decay": 0.1}, ValueError, "wieght_decay", A_CURE),
]


def refusal_id(case):
    cls, arguments, *_ = case
    shown = ", ".join(f"{k}={v!r:.20}" for k, v in arguments.items())
    return f"{cls.__name__}({shown})"


@pytest.mark.parametrize("case", REFUSED, ids=map(refusal_id, REFUSED))
def test_an_argument_is_refused(case):
    cls, arguments, error, argument, cure = case
    with pytest.raises(error) as caught:
        cls(**arguments)
    assert type(caught.value) is error
    check(str(caught.value), argument, cure)


# Keras' own errors come later than ours, and still before the model is touched.
KERAS_REFUSES = [
    {"clipnorm": 1.0, "clipvalue": 1.0},
    {"gradient_accumulation_steps": 1},
    {"use_ema": True, "ema_momentum": 2.0},
]
MODEL_REFUSES = [{"weight_decays": {"none": 0.1}}, {"lr_multipliers": {"none": 0.1}}]


def test_a_failing_constructor_leaves_the_model_as_it_was():
    model = net()
    kernel = model.trainable_variables[0]
    regularizer, loss = kernel.regularizer, float(numpy(model.losses[0]))
    assert loss > 0
    calls = [(cls, arguments) for cls, arguments, *_ in REFUSED]
    calls += [(AdamW, arguments) for arguments in KERAS_REFUSES + MODEL_REFUSES]
    left = []
    for cls, arguments in calls:
        with pytest.raises((ValueError, TypeError)):  # noqa: PT012 - collected, to name them all
            cls(**{"model": model, **arguments})
            left.append(arguments)
        assert kernel.regularizer is regularizer, arguments
        assert model.layers[0].kernel_regularizer is regularizer, arguments
        assert not hasattr(kernel, "_keras_decoupled_penalty"), arguments
    assert [float(numpy(x)) for x in model.losses] == [loss]
    AdamW(model=model)
    assert model.losses == []


MODELS = [
    ("net", TypeError, "keras.Model"),
    (layers.Dense(1), TypeError, "keras.Model"),
    (0, TypeError, "keras.Model"),
    (keras.Sequential([layers.Dense(1)], name="unbuilt"), ValueError, r"model\.build\("),
]


@pytest.mark.parametrize(("model", "error", "cure"), MODELS)
def test_what_is_no_built_model_is_refused(model, error, cure):
    for call in (
        partial(AdamW, model=model),
        partial(AdamW, model=model, zero_penalties=False),
        partial(get_weight_decays, model),
    ):
        with pytest.raises(error) as caught:
            call()
        check(str(caught.value), "model", cure)


def test_get_weight_decays_of_none_is_refused():
    with pytest.raises(TypeError) as caught:
        get_weight_decays(None)
    check(str(caught.value), "model", "keras.Model")


SCHEDULES = [
    ({"initial_learning_rate": -0.1}, ValueError, "initial_learning_rate"),
    ({"initial_learning_rate": NAN}, ValueError, "initial_learning_rate"),
    ({"initial_learning_rate": None}, TypeError, "initial_learning_rate"),
    ({"first_decay_steps": 0}, ValueError, "first_decay_steps"),
    ({"first_decay_steps": 1}, ValueError, "first_decay_steps"),
    ({"first_decay_steps": 0, "endpoint": False}, ValueError, "first_decay_steps"),
    ({"first_decay_steps": 2.5}, ValueError, "first_decay_steps"),
    ({"first_decay_steps": "10"}, TypeError, "first_decay_steps"),
    ({"t_mul": 0.5}, ValueError, "t_mul"),
    ({"t_mul": INF}, ValueError, "t_mul"),
    ({"t_mul": 1 + 1e-9}, ValueError, "t_mul"),  # more than 100,000 cycles
    ({"m_mul": -0.1}, ValueError, "m_mul"),
    ({"eta_min": 0.5, "eta_max": 0.4}, ValueError, "eta_min"),
    ({"eta_max": INF}, ValueError, "eta_max"),
    ({"warmup_steps": -1}, ValueError, "warmup_steps"),
    ({"warmup_steps": 1.5}, ValueError, "warmup_steps"),
    ({"endpoint": "no"}, TypeError, "endpoint"),
    ({"autorestart": None}, TypeError, "autorestart"),
    ({"name": 3}, TypeError, "name"),
]


@pytest.mark.parametrize(("arguments", "error", "argument"), SCHEDULES)
def test_a_schedule_is_refused(arguments, error, argument):
    with pytest.raises(error) as caught:
        CosineWarmRestarts(**{"initial_learning_rate": 0.1, "first_decay_steps": 3, **arguments})
    check(str(caught.value), argument, f"{A_CURE}|{A_FLAG}")


@pytest.mark.parametrize("values", [[], [(0, 1e-4)], [(0, 1e-4)] * 3])
def test_another_number_of_values_is_refused(values):
    with pytest.raises(ValueError, match="keys") as caught:
        fill_dict_in_order({"a": (0.0, 0.0), "b": (0.0, 0.0)}, values)
    check(str(caught.value), "values", A_CURE)


# --- at build ---


def variables(*paths):
    return [make_variable(path, np.ones((2, 2), "float32")) for path in paths]


PATHS = ["net/dense/kernel", "net/dense_1/kernel", "net/head/kernel"]
# (arguments, exception, the argument, the cure)
REFUSED_AT_BUILD = [
    ({"weight_decays": {"haed": 0.1}}, ValueError, "weight_decays", "'net/head/kernel'"),
    ({"lr_multipliers": {"dense_2": 0.1}}, ValueError, "lr_multipliers", "'net/dense_1/kernel'"),
    ({"weight_decays": {"net/head/kernl": 0}}, ValueError, "weight_decays", "'net/head/kernel'"),
    ({"weight_decays": {"dense": 0.1}}, ValueError, "weight_decays", "'dense/'"),
    ({"lr_multipliers": {"dense": 0.1}}, ValueError, "lr_multipliers", "'dense/'"),
    ({"weight_decays": {"": 0.1}}, ValueError, "weight_decays", "layer's"),
    ({"weight_decays": {"/": 0.1}}, ValueError, "weight_decays", "layer's"),
    ({"weight_decays": {3: 0.1}}, TypeError, "weight_decays", "variable.path"),
    ({"lr_multipliers": {None: 0.1}}, TypeError, "lr_multipliers", "variable.path"),
    ({"learning_rate": lambda: 0.0}, ValueError, "callable's value", "Pass `base_learning_rate`"),
    ({"learning_rate": lambda: NAN}, ValueError, "callable's value", "Pass `base_learning_rate`"),
]


@pytest.mark.parametrize(("arguments", "error", "argument", "cure"), REFUSED_AT_BUILD)
def test_a_build_is_refused(arguments, error, argument, cure):
    optimizer = None
    with pytest.raises(error) as caught:  # noqa: PT012 - a bad key may be found earlier
        optimizer = AdamW(**arguments)
        optimizer.build(variables(*PATHS))
    check(str(caught.value), argument, cure)
    assert optimizer is None or not optimizer.built
    assert optimizer is None or len(optimizer.variables) == 3  # as before the build


def test_a_failed_build_can_be_made_good():
    optimizer = SGDW(0.5, momentum=0.9, weight_decays={"later": 0.5})
    theirs, ours = variables("net/head/kernel"), variables("net/later/kernel")
    with pytest.raises(ValueError, match="weight_decays"):
        optimizer.apply([keras.ops.zeros((2, 2))], theirs)
    assert not optimizer.built
    assert optimizer.weight_decays == {"later": 0.5}  # as given
    np.testing.assert_array_equal(numpy(theirs[0]), 1)
    eager(optimizer, ours)([np.zeros((2, 2), "float32")])
    assert optimizer.weight_decays == {"net/later/kernel": (0.0, 0.5)}
    np.testing.assert_array_equal(numpy(ours[0]), 0.5)
    assert int(numpy(optimizer.iterations)) == 1


def test_a_failed_rebuild_leaves_what_was_built():
    optimizer = SGDW(0.5, momentum=0.9, weight_decays={"dense": 0.5})
    old = variables("dense/kernel")
    optimizer.build(old)
    state = optimizer.variables
    with pytest.raises(ValueError, match="'dense/'"):
        optimizer.build([*old, *variables("dense/bias", "dense_1/kernel")])
    assert optimizer.built
    assert list(map(id, optimizer.variables)) == list(map(id, state))
    assert optimizer.weight_decays == {"dense/kernel": (0.0, 0.5)}
    eager(optimizer, old)([np.zeros((2, 2), "float32")])
    np.testing.assert_array_equal(numpy(old[0]), 0.5)


def test_with_a_model_the_constructor_checks_the_keys():
    with pytest.raises(ValueError, match="'net/one/kernel'") as caught:
        AdamW(model=net(), weight_decays={"onee": 0.1})
    check(str(caught.value), "weight_decays", "nearest paths")
    with pytest.raises(ValueError, match="'net/two/kernel'") as caught:
        AdamW(model=net(), lr_multipliers={"twoo": 0.1})
    check(str(caught.value), "lr_multipliers", "nearest paths")


# --- on an optimizer ---


def cosine(**arguments):
    return AdamW(0.1, **ANNEALING, **arguments)


EXCLUDE = "exclude_from_weight_decay"
# (optimizer, what is done with it, exception, the argument, the cure)
REFUSED_LATER = {
    "rate -1": (AdamW, lambda o: setattr(o, "learning_rate", -1), ValueError, "learning_rate"),
    "rate nan": (AdamW, lambda o: setattr(o, "learning_rate", NAN), ValueError, "learning_rate"),
    "rate inf": (cosine, lambda o: setattr(o, "learning_rate", INF), ValueError, "learning_rate"),
    "rate str": (AdamW, lambda o: setattr(o, "learning_rate", "1"), TypeError, "learning_rate"),
    "rate None": (AdamW, lambda o: setattr(o, "learning_rate", None), TypeError, "learning_rate"),
    "rate True": (AdamW, lambda o: setattr(o, "learning_rate", True), TypeError, "learning_rate"),
    "rate schedule": (
        AdamW,
        lambda o: setattr(o, "learning_rate", DECAY),
        TypeError,
        "learning_rate",
    ),
    "rate callable": (
        cosine,
        lambda o: setattr(o, "learning_rate", rate),
        TypeError,
        "learning_rate",
    ),
    "rate at 0": (
        partial(cosine, t_cur=9),
        lambda o: setattr(o, "learning_rate", 0.1),
        ValueError,
        "learning_rate",
    ),
    "restart without a schedule": (AdamW, lambda o: o.restart(), ValueError, "restart"),
    "restart of a callable": (partial(AdamW, rate), lambda o: o.restart(), ValueError, "restart"),
    "t_cur without a schedule": (AdamW, lambda o: setattr(o, "t_cur", 0), ValueError, "restart"),
    "restart(T)": (cosine, lambda o: o.restart(10), ValueError, "position"),
    "restart(-2)": (cosine, lambda o: o.restart(-2), ValueError, "position"),
    "restart(1.5)": (cosine, lambda o: o.restart(1.5), ValueError, "position"),
    "restart('1')": (cosine, lambda o: o.restart("1"), TypeError, "position"),
    "restart(None)": (cosine, lambda o: o.restart(None), TypeError, "position"),
    "restart(T of the second cycle)": (
        partial(AdamW, CosineWarmRestarts(0.1, 5, t_mul=2)),
        lambda o: o.restart(5),
        ValueError,
        "position",
    ),
    "t_cur = T": (cosine, lambda o: setattr(o, "t_cur", 10), ValueError, "position"),
    "late exclusion": (
        AdamW,
        lambda o: (o.build([]), o.exclude_from_weight_decay(var_names=["bias"])),
        ValueError,
        EXCLUDE,
    ),
    "exclude by a bad pattern": (
        AdamW,
        lambda o: o.exclude_from_weight_decay(var_names=["("]),
        ValueError,
        "var_names",
    ),
    "exclude by a number": (
        AdamW,
        lambda o: o.exclude_from_weight_decay(var_names=[3]),
        TypeError,
        "var_names",
    ),
    "exclude by a string": (
        AdamW,
        lambda o: o.exclude_from_weight_decay(var_names="bias"),
        TypeError,
        "var_names",
    ),
    "exclude what is no list": (
        AdamW,
        lambda o: o.exclude_from_weight_decay(var_names=3),
        TypeError,
        "var_names",
    ),
    "exclude a string as variables": (
        AdamW,
        lambda o: o.exclude_from_weight_decay("bias"),
        TypeError,
        "var_list",
    ),
    "exclude names as variables": (
        AdamW,
        lambda o: o.exclude_from_weight_decay(["bias"]),
        TypeError,
        "var_list",
    ),
    **{
        f"weight_decay set to {value!r:.20}": (
            lambda: AdamW(weight_decay=0.1),
            lambda o, value=value: setattr(o, "weight_decay", value),
            error,
            "weight_decay",
        )
        for error, values in (
            (TypeError, (None, DECAY, Decay(0.1), (0.0, 0.1), "0.1", True)),
            (ValueError, (NAN, INF, -0.1, 1e40)),
        )
        for value in values
    },
    **{
        f"weight_decay set where the constructor got {given!r:.20}": (
            lambda given=given: AdamW(weight_decay=given),
            lambda o: setattr(o, "weight_decay", 0.1),
            ValueError,
            "weight_decay",
        )
        for given in (None, DECAY, Decay(DECAY, cautious=True))
    },
}


@pytest.mark.parametrize("case", REFUSED_LATER.values(), ids=REFUSED_LATER)
def test_what_is_done_later_is_refused(case):
    make, action, error, argument = case
    optimizer = make()
    with pytest.raises(error) as caught:
        action(optimizer)
    check(str(caught.value), argument, f"{A_CURE}|needs a schedule to restart: `use_cosine")
    fresh = make()
    assert float(numpy(optimizer.learning_rate)) == float(numpy(fresh.learning_rate))
    assert int(numpy(optimizer.t_cur)) == int(numpy(fresh.t_cur))


def test_a_late_exclusion_leaves_the_decays():
    optimizer = AdamW(weight_decay=0.1)
    optimizer.build(variables("a"))
    for arguments in ({"var_names": ["a"]}, {"var_list": []}, {}):
        with pytest.raises(ValueError, match="before the optimizer is built"):
            optimizer.exclude_from_weight_decay(**arguments)
    assert optimizer.weight_decays == {"a": (0.0, 0.1)}


def test_a_refused_pattern_keeps_the_exclusion_before_it():
    optimizer = AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=["a"])
    with pytest.raises(ValueError, match="var_names"):
        optimizer.exclude_from_weight_decay(var_names=["b", "("])
    optimizer.build(variables("a", "b"))
    assert optimizer.weight_decays == {"b": (0.0, 0.1)}


def test_another_number_of_variables_in_stateless_apply_is_refused():
    optimizer = SGDW(0.1, weight_decay=0.1)
    ours = variables("a", "b")
    optimizer.build(ours[:1])
    with pytest.raises(ValueError, match="2 trainable variables") as caught:
        optimizer.stateless_apply(
            [v.value for v in optimizer.variables],
            [keras.ops.zeros((2, 2))] * 2,
            [v.value for v in ours],
        )
    check(
        str(caught.value), "trainable variables", r"optimizer\.build\(model\.trainable_variables\)"
    )


class FromAClosure(keras.callbacks.Callback):
    def __init__(self, optimizer):
        super().__init__()
        self.own, self.errors = optimizer, {}

    def on_train_batch_end(self, batch, logs=None):
        actions = {
            "restart": lambda: self.own.restart(1),
            "t_cur": lambda: setattr(self.own, "t_cur", 1),
            "learning_rate": lambda: setattr(self.own, "learning_rate", 0.05),
            "read learning_rate": lambda: float(numpy(self.own.learning_rate)),
            "read lr_t": lambda: float(numpy(self.own.lr_t)),
            "read t_cur": lambda: int(numpy(self.own.t_cur)),
            "read eta_t": lambda: float(numpy(self.own.eta_t)),
            "weight_decay": lambda: setattr(self.own, "weight_decay", 0.2),
            "read weight_decay": lambda: float(self.own.weight_decay),
            "get_config": lambda: self.own.get_config(),
        }
        for name, action in actions.items():
            try:
                action()
            except Exception as error:
                self.errors[name] = error


def test_state_that_is_elsewhere_inside_an_epoch():
    model = net()
    rate = CosineWarmRestarts(0.1, 10, eta_min=0.1)
    optimizer = AdamW(rate, weight_decay=0.1, model=model)
    model.compile(optimizer, loss="mse")
    callback = FromAClosure(optimizer)
    model.fit(np.ones((4, 2)), np.ones((4, 1)), batch_size=2, verbose=0, callbacks=[callback])
    if BACKEND != "jax":
        assert callback.errors == {}
        return
    assert len(callback.errors) == 10
    for name, error in callback.errors.items():
        assert type(error) is RuntimeError, (name, error)
        assert "self.model.optimizer" in str(error)
    assert int(numpy(optimizer.t_cur)) == 2  # and after the epoch it is back
    assert float(optimizer.weight_decay) == np.float32(0.1)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "eta_t"])
@pytest.mark.parametrize("where", ["loss", "metrics"])
# On JAX the state is not away yet when `train_on_batch` traces: what is read stays as it is then.
@pytest.mark.parametrize("way", ["fit"] if BACKEND == "jax" else ["fit", "train_on_batch"])
def test_a_loss_or_a_metric_that_reads_the_optimizer(way, where, name):
    """On JAX it cannot, and what helps a callback does not help it: the error has a cure for both."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    optimizer = AdamW(0.1, weight_decay=0.1)

    def reading(y_true, y_pred):
        now = keras.ops.convert_to_tensor(getattr(optimizer, name))
        return 0 * keras.ops.mean(y_pred, axis=-1) + now

    given = {"loss": "mse"} | {where: reading if where == "loss" else [reading]}
    model.compile(optimizer, **given)
    train = partial(getattr(model, way), np.ones((2, 2)), np.ones((2, 1)))
    if BACKEND == "jax":
        with pytest.raises(RuntimeError, match=r"loss or a metric.*callback, in on_epoch_end"):
            train()
    else:
        train()


# --- warnings ---


def quietly(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return call(*args, **kwargs)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"weight_decay": None, "weight_decays": {}},
        {"weight_decays": {"a": 0, "b": (0, 0)}},
        {"lr_multipliers": {"a": 0.5}},
    ],
)
def test_a_table_that_decays_nothing_gives_one_warning(arguments):
    optimizer = AdamW(**arguments)
    with pytest.warns(UserWarning, match=r"decays no variable.*weight_decay=0") as caught:
        optimizer.build(variables("a", "b"))
    assert len(caught) == 1
    quietly(optimizer.build, variables("a", "b", "c"))


def test_a_table_that_decays_nothing_because_of_exclusions():
    optimizer = AdamW(weight_decay=0.1)
    optimizer.exclude_from_weight_decay(var_names=[""])
    with pytest.warns(UserWarning, match="decays no variable.*exclude_from_weight_decay"):
        optimizer.build(variables("a"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0},
        {"weight_decay": 0.0, "weight_decays": {"a": 0}},
        {"weight_decay": DECAY},
    ],
)
def test_a_decay_of_0_that_is_meant_gives_none(arguments):
    quietly(AdamW(**arguments).build, variables("a"))


def test_a_build_on_nothing_gives_none():
    quietly(AdamW().build, [])


def test_a_load_gives_none_of_it():
    optimizer = AdamW()
    with pytest.warns(UserWarning, match="decays no variable"):
        optimizer.build(variables("a"))
    quietly(AdamW.from_config(optimizer.get_config()).build, variables("a"))


@pytest.mark.parametrize("zero_penalties", [True, False])
def test_a_strong_extracted_decay_gives_one_warning_with_its_half_life(zero_penalties):
    model = net(0.01)
    with pytest.warns(UserWarning, match=r"net/one/kernel.*0\.01.*\b69 updates") as caught:
        optimizer = AdamW(model=model, zero_penalties=zero_penalties)
    assert len(caught) == 1
    quietly(optimizer.build, model.trainable_variables)
    quietly(AdamW.from_config(optimizer.get_config()).build, model.trainable_variables)


def test_of_several_strong_decays_the_warning_is_one():
    model = keras.Sequential(
        [keras.Input((2,))]
        + [layers.Dense(2, kernel_regularizer=regularizers.L2(x)) for x in (0.002, 0.1, 0.01)]
    )
    with pytest.warns(UserWarning, match=r"dense_1/kernel.*\b7 updates") as caught:
        AdamW(model=model)
    assert len(caught) == 1


@pytest.mark.parametrize("strong", [1.0, 2.0])
def test_a_decay_of_everything_at_once(strong):
    with pytest.warns(UserWarning, match="weight") as caught:
        AdamW(model=net(strong))
    assert "every 1 updates" not in str(caught[0].message)


def test_an_l1_decay_has_no_half_life():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, kernel_regularizer=regularizers.L1(0.01))]
    )
    with pytest.warns(UserWarning, match=r"dense/kernel.*0\.01") as caught:
        AdamW(model=model)
    assert "halves" not in str(caught[0].message)  # l1 takes 0.01 away, not 1 %


@pytest.mark.parametrize(
    ("penalty", "arguments"),
    [
        (1e-3, {}),  # above, not at
        (0.01, {"total_iterations": 101}),
        (0.01, {"total_iterations_wd": 101}),
        (0.01, {"learning_rate": CosineWarmRestarts(0.1, 101), "normalize_weight_decay": True}),
        (0.01, {"weight_decays": {"one/kernel": 1e-4}}),
        (0.01, {"weight_decays": {"kernel": 0}}),
    ],
)
def test_a_weak_or_replaced_extracted_decay_gives_none(penalty, arguments):
    quietly(AdamW, model=net(penalty), **arguments)


def test_a_strong_decay_that_is_replaced_in_a_frozen_layer_gives_none():
    model = net(0.01)
    model.layers[0].trainable = False
    quietly(AdamW, model=model, weight_decays={"one/kernel": 1e-4})


@pytest.mark.parametrize(
    "arguments",
    [
        {"total_iterations": 99},
        {"total_iterations": 1000, "total_iterations_wd": 9},
        {"total_iterations": 1000, "normalize_weight_decay": False},
        {"learning_rate": CosineWarmRestarts(0.1, 1000)},
        {"weight_decays": {"two/kernel": 1e-4}},
    ],
)
def test_what_leaves_an_extracted_decay_strong(arguments):
    with pytest.warns(UserWarning, match="net/one/kernel"):
        AdamW(model=net(0.01), **arguments)


# (schedule, updates before, rate that is set, r, peak)
PEAKS = {
    "cosine": (lambda: {"learning_rate": COSINE}, 5, 0.1, 0.1),
    "annealing": (lambda: {"learning_rate": 0.1, **ANNEALING, "eta_max": 0.5}, 5, 0.1, 0.05),
    "keras": (lambda: {"learning_rate": DECAY}, 0, 0.3, 0.1),
    "keras, α given": (lambda: {"learning_rate": DECAY, "base_learning_rate": 0.4}, 0, 0.3, 0.1),
    "cosine, α given": (lambda: {"learning_rate": COSINE, "base_learning_rate": 0.4}, 0, 0.3, 0.1),
}


@pytest.mark.parametrize("case", PEAKS.values(), ids=PEAKS)
def test_a_factor_above_1_gives_one_warning_with_the_peak(case):
    arguments, position, rate, top = case
    optimizer = AdamW(**arguments())
    optimizer.restart(position)
    r = rate / float(numpy(optimizer.learning_rate))
    peak = f"{r * top:.3g}"
    with pytest.warns(UserWarning, match=re.escape(peak)) as caught:
        optimizer.learning_rate = rate
    assert [w.category for w in caught].count(UserWarning) == 1
    assert abs(float(numpy(optimizer.learning_rate)) - rate) < 1e-6
    quietly(setattr, optimizer, "learning_rate", 2 * rate)  # once


@pytest.mark.parametrize("rate", [1e-4, 0.3, 0.1, 0.7, 1e-3])
def test_setting_the_rate_that_is_scheduled_gives_none(rate):
    optimizer = AdamW(CosineWarmRestarts(rate, 10))
    quietly(setattr, optimizer, "learning_rate", rate)
    quietly(setattr, optimizer, "learning_rate", float(numpy(optimizer.learning_rate)))
    quietly(setattr, optimizer, "learning_rate", rate / 2)
    np.testing.assert_allclose(numpy(optimizer.eta_t), 0.5, rtol=1e-7)


def test_a_factor_above_1_without_a_schedule_gives_none():
    optimizer = AdamW(0.1)
    quietly(setattr, optimizer, "learning_rate", 0.3)
    optimizer = AdamW(rate)
    quietly(setattr, optimizer, "learning_rate", 0.3)


def test_a_schedule_that_rises_by_less_than_a_percent_is_accepted():
    AdamW(schedules.PiecewiseConstantDecay([50], [0.1, 0.1005]))
    AdamW(RISING, base_learning_rate=0.102)
    AdamW(STARTS_AT_0, base_learning_rate=0.1)
    # It says what its base is.
    AdamW(schedules.CosineDecay(0.0, 10, warmup_target=0.1, warmup_steps=5))
    AdamW(schedules.PolynomialDecay(0.1, 10, 0.2))


class Vector(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return keras.ops.ones((1,)) * 0.1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("learning_rate", {"learning_rate": Vector(), "base_learning_rate": 0.1}),
        ("weight_decay", {"weight_decay": Vector()}),
        (r"weight_decays\['kernel'\]", {"weight_decays": {"kernel": (0, Vector())}}),
    ],
)
def test_a_schedule_that_returns_an_array_is_refused(name, arguments):
    with pytest.raises(ValueError, match=rf"`{name}` must be a schedule .* of shape \(1,\)"):
        SGDW(**arguments)


@pytest.mark.parametrize(
    "arguments", [{"weight_decays": {"kernel": (1e300, 0)}}, {"learning_rate": 1e39}]
)
def test_a_number_that_is_infinite_in_float32_is_refused(arguments):
    with pytest.raises(ValueError, match=r"must be a finite number ≥ 0 and < 1e\+38"):
        SGDW(**arguments)


def test_a_number_that_python_does_not_print():
    with pytest.raises(
        ValueError, match=r"`weight_decay` must be a finite number.*int that is too"
    ):
        AdamW(weight_decay=10**5000)
