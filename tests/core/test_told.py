"""What is told: warnings of usual mistakes, once, and errors that name the cure."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Lion, RMSprop
from keras_decoupled.callbacks import LogRates
from small import again, named

schedules = keras.optimizers.schedules
KERNEL, BIAS = "net/dense/kernel", "net/dense/bias"


def variables(*paths):
    return [make_variable(path, np.ones(2, "float32")) for path in paths or (KERNEL, BIAS)]


def told(act):
    """The texts of the warnings of ours that this gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in caught if w.category is UserWarning]


def built(optimizer, own=None):
    optimizer.build(variables() if own is None else own)
    return optimizer


# --- decays, at the first build ---


def made(penalty=None, frozen=False, exclude=(), own=None, **arguments):
    """An optimizer, and the variables to build it on; with a penalty, those of a model that has it."""
    own = variables() if own is None else own
    if penalty is not None:
        model = named(penalty, units=1)
        model.layers[0].trainable = not frozen
        arguments["model"], own = model, model.trainable_variables
    optimizer = AdamW(**arguments)
    if exclude:
        optimizer.exclude_from_weight_decay(var_names=exclude)
    return optimizer, own


L2 = regularizers.L2
FALLING = schedules.PolynomialDecay(0.5, 10, 0.0)
NONE = "decays no variable.*weight_decay=0"
COPIED = (
    r"of 0\.01 halves the weight every 69 updates.*convert_weight_decay\(0\.01,.*Decay\(0\.01\)"
)
STRONG = r"net/one/kernel.*0\.01.*\b69 updates"  # its half-life
T, T_WD = "total_iterations", "total_iterations_wd"
# What `made` is given, a pattern that is in the one warning, and one that is not.
TOLD = [
    ({}, NONE),
    ({"weight_decays": {"kernel": 0, "bias": (0, 0)}}, NONE),
    ({"lr_multipliers": {"kernel": 0.5}}, NONE),
    ({"exclude": [""], "weight_decay": 1e-3}, "exclude_from_weight_decay"),
    # as torch has it
    ({"weight_decay": 0.01}, COPIED),
    ({"weight_decays": {"kernel": (0, 0.01)}}, COPIED),
    ({"weight_decay": 1.0, T_WD: 10_000}, COPIED),
    ({"weight_decay": FALLING}, "of 0.5 removes 50.0%.*second argument"),
    ({"weight_decay": 3}, "of 3 removes the whole weight"),
    ({"weight_decay": Decay(3)}, "of 3 removes the whole weight"),
    # rates of torch's groups
    (
        {"weight_decay": 0, "lr_multipliers": {"kernel": 1e-4, "bias": 1e-3}},
        r'"kernel": 0.0001, "bias": 0.001\..* of kernel is 1e-07\..*"kernel": 0.1, "bias": 1 ',
    ),
    (
        {"weight_decay": 0, "lr_multipliers": {"kernel": 1e-3}, "learning_rate": 1e-5},
        r"kernel is 1e-08.*100 ",
    ),
    # a penalty that is taken from the loss
    ({"penalty": L2(0.01)}, STRONG),
    ({"penalty": L2(0.01), "zero_penalties": False}, STRONG),
    ({"penalty": L2(1.0)}, "weight", "every 1 updates"),  # all at once
    ({"penalty": L2(2.0)}, "weight", "every 1 updates"),
    # l1 takes 0.01 away, not 1 %
    ({"penalty": regularizers.L1(0.01)}, r"net/one/kernel.*0\.01", "hal(f|ve)"),
    ({"penalty": L2(0.01), T: 99}, "net/one/kernel"),
    ({"penalty": L2(0.01), T: 1000, T_WD: 9}, "net/one/kernel"),
    ({"penalty": L2(0.01), T: 1000, "normalize_weight_decay": False}, "net/one/kernel"),
    ({"penalty": L2(0.01), "learning_rate": CosineWarmRestarts(0.1, 1000)}, "net/one/kernel"),
    ({"penalty": L2(0.01), "weight_decays": {"two/kernel": 1e-4}}, "net/one/kernel"),
]
CYCLES = {"learning_rate": CosineWarmRestarts(0.1, 101), "normalize_weight_decay": True}
SILENT = [
    {"own": []},  # nothing to decay
    {"weight_decay": 0},
    {"weight_decay": schedules.ExponentialDecay(1e-3, 10, 0.9)},
    {"weight_decay": Decay(0.01)},  # it is meant
    {"weight_decay": 0, "lr_multipliers": {"kernel": 1e-4, "bias": 0.5}},  # of layers
    {"weight_decay": 0, "lr_multipliers": {"bias": 0.01}, "learning_rate": 0.01},
    {"weight_decay": 0, "lr_multipliers": {"bias": 0.002}},  # of a wide model
    {"weight_decay": 0, "lr_multipliers": {"bias": 0}},
    {"weight_decay": 0, "lr_multipliers": {"bias": 1e-4}, "learning_rate": 0.0},  # of no rate
    {"weight_decay": 0.009},
    {"weight_decay": 0.1, T_WD: 10_000},
    {"weight_decay": (0.01, 0)},  # an l1
    {"penalty": L2(1e-3)},  # above, not at
    {"penalty": L2(0.01), T: 101},
    {"penalty": L2(0.01), T_WD: 101},
    {"penalty": L2(0.01), **CYCLES},
    {"penalty": L2(0.01), "weight_decays": {"one/kernel": 1e-4}},
    {"penalty": L2(0.01), "weight_decay": 0, "weight_decays": {"kernel": 0}},
    {"penalty": L2(0.01), "weight_decays": {"one/kernel": 1e-4}, "weight_decay": 0, "frozen": True},
]


@pytest.mark.parametrize("row", TOLD, ids=lambda row: "-".join(row[0]) or "nothing")
def test_one_warning_at_the_first_build(row):
    given, pattern, *absent = row
    (text,) = told(lambda: built(*made(**given)))
    assert re.search(pattern, text)
    assert not any(re.search(word, text) for word in absent)


@pytest.mark.parametrize("given", SILENT, ids="-".join)
def test_no_warning(given):
    assert told(lambda: built(*made(**given))) == []


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.01}, {"penalty": L2(0.01)}])
def test_a_later_build_and_a_load_are_silent(given):
    with warnings.catch_warnings(action="ignore"):
        optimizer, own = made(**given)
        optimizer.build(own)
    loaded = again(optimizer)
    assert told(lambda: built(loaded, own)) == []
    assert told(lambda: optimizer.build([*own, *variables("net/new/kernel")])) == []


def test_the_strongest_of_three_penalties_is_told():
    three = [layers.Dense(2, kernel_regularizer=L2(x)) for x in (0.002, 0.1, 0.01)]
    model = keras.Sequential([keras.Input((2,)), *three])
    (text,) = told(lambda: AdamW(model=model).build(model.trainable_variables))
    assert re.search(r"dense_1/kernel.*\b7 updates", text)


def test_each_decay_is_told_once_with_its_variables():
    optimizer = AdamW(weight_decay=0.05, weight_decays={"bias": 0.02})
    own = variables(*[f"net/{i}/{name}" for i in range(5) for name in ("w", "bias")])
    first, second = told(lambda: built(optimizer, own))
    assert "net/0/w, net/1/w, net/2/w and 2 more" in first
    assert "net/0/bias" in second


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_a_penalty_in_the_loss_beside_a_decay(penalty):
    model = named(penalty)
    (text,) = told(lambda: AdamW(weight_decay=1e-3).build(model.trainable_variables))
    assert re.search("also penalized.*net/one/kernel.*`model=`", text)
    undecayed = AdamW(weight_decays={"kernel": 0, "bias": 1e-3})
    assert told(lambda: undecayed.build(model.trainable_variables)) == []
    silent = {"weight_decay": 1e-3, "model": model, T: 10_000}
    assert told(lambda: AdamW(**silent).build(model.trainable_variables)) == []


def test_equal_paths_are_told_on_torch():
    own = variables("a/kernel", "a/kernel", "b/kernel")
    found = told(lambda: built(AdamW(weight_decay=1e-3), own))
    assert len(found) == (BACKEND == "torch")
    assert all("a/kernel" in text and "b/kernel" not in text for text in found)


# --- η above 1 ---

BASE = "base_learning_rate"
COSINE = CosineWarmRestarts(0.1, 10)  # 0.0413 at position 5
DECAY = schedules.ExponentialDecay(0.1, 10, 0.9)
ANNEALED = {"learning_rate": 0.1, "use_cosine_annealing": True, "total_iterations": 10}
RISING = schedules.PolynomialDecay(1e-6, 1000, 1e-3)
# The arguments, the position, the rate that is set, and where the schedule will then be at its top.
PEAKS = {
    "cosine": ({"learning_rate": COSINE}, 5, 0.1, "0.242"),
    "annealing": (ANNEALED | {"eta_max": 0.5}, 5, 0.1, "0.242"),
    "keras": ({"learning_rate": DECAY}, 0, 0.3, "0.3"),
    "keras, α given": ({"learning_rate": DECAY, BASE: 0.4}, 0, 0.3, "0.3"),
    "cosine, α given": ({"learning_rate": COSINE, BASE: 0.4}, 0, 0.3, "0.3"),
    "rising, α given": ({"learning_rate": RISING, BASE: 1e-3}, 0, 2e-6, "0.00199"),
}


@pytest.mark.parametrize("case", PEAKS.values(), ids=PEAKS)
def test_a_factor_above_1_is_told_once_with_the_peak(case):
    arguments, position, rate, peak = case
    optimizer = AdamW(**arguments)
    optimizer.restart(position)
    (text,) = told(lambda: setattr(optimizer, "learning_rate", rate))
    assert f"will peak at {peak}" in text
    assert float(numpy(optimizer.learning_rate)) == pytest.approx(rate)
    assert told(lambda: setattr(optimizer, "learning_rate", 2 * rate)) == []


def test_a_rate_far_above_the_base():
    optimizer = AdamW(1e-5, weight_decay=1e-3)
    (text,) = told(lambda: setattr(optimizer, "learning_rate", 1e-3))
    assert re.search(r"0\.001.*100 times.*base_learning_rate= the highest", text)
    assert told(lambda: setattr(optimizer, "learning_rate", 1e-2)) == []  # once
    known = AdamW(1e-5, weight_decay=1e-3, base_learning_rate=1e-3)
    assert told(lambda: setattr(known, "learning_rate", 1e-3)) == []
    for rate, texts in ((1.009e-3, 0), (1.011e-3, 1)):  # rounding is no step up
        assert len(told(lambda rate=rate: setattr(known, "learning_rate", rate))) == texts


# --- LogRates after what writes the logs ---


def test_log_rates_after_a_csv_logger(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(AdamW(weight_decay=1e-3), "mse", run_eagerly=BACKEND == "tensorflow")
    x = np.ones((4, 2))
    for first in (True, False):
        callbacks = [LogRates(), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
        fit = {"verbose": 0, "callbacks": callbacks if first else callbacks[::-1]}
        found = [text for text in told(lambda f=fit: model.fit(x, x, **f)) if "LogRates" in text]
        assert ["CSVLogger" in text for text in found] == [True] * (not first)
        columns = (tmp_path / "log.csv").read_text().splitlines()[0]
        assert ("eta" in columns) == first


# --- exclusions add up ---


def test_exclusions_add_up():
    own = variables("gamma", "beta", "bias", "kernel")
    optimizer = AdamW(weight_decay=1e-3)
    for name in ("bias", "gamma", "bias"):
        optimizer.exclude_from_weight_decay(var_names=[name])
    optimizer.exclude_from_weight_decay(var_list=[own[1]])
    for one in (optimizer, again(optimizer)):
        rules = [row["rule"] for row in one.explain(own).rows]
        assert rules == ["excluded"] * 3 + ["weight_decay"]


# --- one optimizer, one training ---


def ones(own):
    return [np.ones(2, "float32")] * len(own)


def test_another_model_after_an_update_is_refused():
    mine, others = variables(), variables("other/kernel")
    optimizer = AdamW(CosineWarmRestarts(0.1, 10), weight_decay=1e-3)
    optimizer.build(mine)
    optimizer.apply(ones(others), others)  # before the first update it is built on both
    assert set(optimizer.weight_decays) == {KERNEL, BIAS, "other/kernel"}
    eager(optimizer, mine)(ones(mine))
    third = variables("third/kernel")
    before = numpy(third[0])
    with pytest.raises(ValueError, match=r"new optimizer for each model.*optimizer\.build"):
        optimizer.apply(ones(third), third)
    np.testing.assert_array_equal(numpy(third[0]), before)
    optimizer.build(third)  # never refused
    optimizer.apply(ones(third), third)
    assert np.all(numpy(third[0]) != before)


def test_another_model_in_fit_is_refused():
    x, optimizer = np.ones((4, 2)), AdamW(weight_decay=1e-3)
    first, second = (keras.Sequential([keras.Input((2,)), layers.Dense(1)]) for _ in range(2))
    first.compile(optimizer, "mse")
    first.fit(x, x[:, :1], verbose=0)
    second.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="new optimizer for each model"):
        second.fit(x, x[:, :1], verbose=0)


# --- a learning rate of 0 ---


def test_at_a_rate_of_0_nothing_moves():
    own = variables()
    optimizer = AdamW(0.0, weight_decay=1e-3)
    eager(optimizer, own)(ones(own))
    np.testing.assert_array_equal(numpy(own[0]), np.ones(2))
    assert float(numpy(optimizer.learning_rate)) == float(numpy(optimizer.eta_t)) == 0
    for one in (optimizer, again(optimizer)):
        one.learning_rate = 0.0
        with pytest.raises(ValueError, match="base_learning_rate"):
            one.learning_rate = 0.1
    known = AdamW(0.0, weight_decay=1e-3, base_learning_rate=0.1)
    known.learning_rate = 0.05
    assert float(numpy(known.eta_t)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="use_cosine_annealing"):
        AdamW(0.0, use_cosine_annealing=True, total_iterations=10)


# --- errors that help ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamW(eps=1e-8), "`epsilon`"),
        (lambda: SGDW(eps=1e-8), r"See help\(\)"),  # it has none
        (lambda: AdamW(betas=(0.9, 0.999)), "`beta_1` and `beta_2`"),
        (lambda: AdamW(wd=0.1), "`weight_decay`"),
        (lambda: AdamW(momentum=0.9), "Write `beta_1`"),
        (lambda: AdamW(weight_decy=0.1), "Write `weight_decay`"),
        (lambda: AdamW(beta1=0.1), "Write `beta_1`"),
        (lambda: RMSprop(alpha=0.9), "`rho`"),
        (lambda: AdamW(variables(), lr=1e-3), r"`learning_rate`.*variables come later"),
        (lambda: AdamW(variables()), "as in torch"),
        (lambda: AdamW(iter(variables())), "as in torch.*`lr_multipliers` and `weight_decays`"),
        (lambda: AdamW(maximize=True), "negative loss"),
        (lambda: AdamW(fused=True), "leave it out"),
        (lambda: AdamW(exclude_from_weight_decay=["bias"]), r"weight_decays=\{\"bias\": 0\}"),
        (lambda: AdamW(ema=True), "`use_ema=True`"),
        (lambda: AdamW.from_keras(keras.Sequential()), "model.optimizer"),
        (lambda: AdamW(CosineWarmRestarts(0.1, 9), autorestart=False), "`CosineWarmRestarts`"),
        (lambda: AdamW(weight_decays={"bias": None}), "0 is no decay"),
        (lambda: AdamW(weight_decay=keras.regularizers.L2(1e-4)), "`model=model`"),
        (lambda: AdamW(total_iterations=0), "Leave it out"),
        (lambda: built(AdamW(weight_decays={"dense/kernel:0": 0.1})), "Drop the ':0'"),
        (lambda: built(AdamW(weight_decays={"l": 0.1})), "must match"),
        (lambda: built(AdamW(weight_decays={"ke": 0.1})), "must match"),
    ],
)
def test_the_cure_is_named(make, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        make()
    assert "Received: " in str(caught.value)


# What is set, and a word of the error. Nothing would change otherwise.
IN_VAIN = {
    "lr": (0.1, "`learning_rate`"),
    "eps": (1e-8, "`epsilon`"),
    "betas": ((0.9, 0.99), "`beta_1` and `beta_2`"),
    "learing_rate": (0.1, "`learning_rate`"),
    "decay_vectors": (False, "constructor"),
    "base_learning_rate": (0.1, "constructor"),
    "total_iterations": (9, "constructor"),
    "weight_decays": ({"bias": 0}, "read only"),
    "eta_t": (0.5, "read only"),
    "use_ema": (True, "before the optimizer is built"),
    "gradient_accumulation_steps": (4, "before the optimizer is built"),
}


@pytest.mark.parametrize("name", IN_VAIN)
def test_what_is_set_in_vain_is_refused(name):
    value, words = IN_VAIN[name]
    optimizer = built(AdamW(weight_decay=1e-3))
    with pytest.raises((ValueError, AttributeError), match=f"`{name}` .*{words}"):
        setattr(optimizer, name, value)
    optimizer.note = value  # a name that means nothing here is the user's
    mine = built(type("Mine", (AdamW,), {"__module__": "mine"})(weight_decay=1e-3))
    if words not in ("read only", "before the optimizer is built"):
        setattr(mine, name, value)  # and in a class of the user's each is


@pytest.mark.parametrize("name", ["weight_decays", "lr_multipliers"])
def test_a_change_of_a_copy_is_refused(name):
    optimizer = AdamW(weight_decay=1e-3, **{name: {"kernel": 0.5}})
    for _ in range(2):
        with pytest.raises(ValueError, match=f"`{name}` can be read only.*constructor"):
            getattr(optimizer, name)["kernel"] = 0.25
        with pytest.raises(ValueError, match=f"`{name}` can be read only"):
            getattr(optimizer, name).update(kernel=0.25)
        optimizer.build(variables())
    assert "net/dense/kernel" in dict(getattr(optimizer, name))


@pytest.mark.parametrize(("saved", "loaded"), [(AdamW, SGDW), (SGDW, AdamW), (Lion, SGDW)])
def test_the_state_of_another_class_is_not_taken(saved, loaded):
    """Adam's moments would be SGD's buffer: steps a hundred times too large."""

    def built_of(cls):
        momentum = {"momentum": 0.9} if issubclass(cls, SGDW) else {}
        return built(cls(weight_decay=1e-3, **momentum))

    store, other, untouched = {}, built_of(loaded), built_of(loaded)
    one = built_of(saved)
    one.apply(ones(variables()), None)
    one.save_own_variables(store)
    (text,) = told(lambda: other.load_own_variables(store))
    assert re.search(f"of {saved.__name__}, .*{loaded.__name__} starts", text)
    for a, b in zip(other.variables, untouched.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    derived = built_of(type("Mine", (saved,), {}))
    assert told(lambda: derived.load_own_variables(store)) == []
    assert int(numpy(derived.iterations)) == 1


@pytest.mark.parametrize(
    ("key", "path"),
    [("bn", "net/bn2a_branch/gamma"), ("bn", "net/block-bn.x/w"), ("a", "net/res_2a/w")],
)
def test_two_letters_that_are_a_word_are_a_key(key, path):
    optimizer = AdamW(weight_decays={key: 1e-3})
    assert optimizer.explain(variables(path)).rows[0]["rule"] == key
