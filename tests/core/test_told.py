"""What is told: warnings of usual mistakes, once, and errors that name the cure."""

import re
import warnings

import keras
import numpy as np
import pytest

from cases import BACKEND, eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, Lion, RMSprop
from keras_decoupled.callbacks import LogRates
from small import again

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
    optimizer.build(own or variables())
    return optimizer


# --- decays at build ---

FALLING = keras.optimizers.schedules.PolynomialDecay(0.5, 10, 0.0)
COPIED = (
    r"of 0\.01 halves the weight every 69 updates.*convert_weight_decay\(0\.01,.*Decay\(0\.01\)"
)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ({"weight_decay": 0.01}, COPIED),
        ({"weight_decays": {"kernel": 0.01}}, COPIED),
        ({"weight_decays": {"kernel": (0, 0.01)}}, COPIED),
        ({"weight_decay": 1.0, "total_iterations_wd": 10_000}, COPIED),
        ({"weight_decay": FALLING}, "of 0.5 removes 50.0%.*second argument"),
        ({"weight_decay": 3}, "of 3 removes the whole weight"),
        ({"weight_decay": Decay(3)}, "of 3 removes the whole weight"),
        ({"weight_decay": Decay(0.01)}, None),  # it is meant
        ({"weight_decays": {"kernel": Decay(0.01)}}, None),
        ({"weight_decay": 0.009}, None),
        ({"weight_decay": 0.1, "total_iterations_wd": 10_000}, None),
        ({"weight_decay": (0.01, 0)}, None),  # an l1
    ],
)
def test_a_decay_that_looks_like_torchs(arguments, pattern):
    optimizer = AdamW(1e-3, **arguments)
    found = told(lambda: built(optimizer))
    assert len(found) == (pattern is not None), found
    assert pattern is None or re.search(pattern, found[0])
    # A load and a later build are silent.
    loaded = again(optimizer)
    assert told(lambda: built(loaded)) == []
    assert told(lambda: optimizer.build([*variables(), *variables("net/new/kernel")])) == []


def test_each_decay_is_told_once_with_its_variables():
    optimizer = AdamW(weight_decay=0.05, weight_decays={"bias": 0.02})
    own = [make_variable(f"net/{i}/{name}", np.ones(2)) for i in range(5) for name in ("w", "bias")]
    first, second = told(lambda: built(optimizer, own))
    assert "net/0/w, net/1/w, net/2/w and 2 more" in first
    assert "net/0/bias" in second


@pytest.mark.parametrize("penalty", ["l1", "l2"])
def test_a_penalty_in_the_loss_beside_a_decay(penalty):
    def model():
        dense = keras.layers.Dense(1, kernel_regularizer=penalty, name="dense")
        return keras.Sequential([keras.Input((2,)), dense], name="net")

    trained = model()
    (text,) = told(lambda: AdamW(weight_decay=1e-3).build(trained.trainable_variables))
    assert re.search("also penalized.*net/dense/kernel.*`model=`", text)
    silent = {"weight_decay": 1e-3, "model": trained, "total_iterations": 10_000}
    assert told(lambda: AdamW(**silent).build(trained.trainable_variables)) == []
    undecayed = AdamW(weight_decays={"kernel": 0, "bias": 1e-3})
    assert told(lambda: undecayed.build(model().trainable_variables)) == []


def test_equal_paths_are_told_on_torch():
    own = variables("a/kernel", "a/kernel", "b/kernel")
    found = told(lambda: built(AdamW(weight_decay=1e-3), own))
    assert len(found) == (BACKEND == "torch")
    assert all("a/kernel" in text and "b/kernel" not in text for text in found)


# --- η above 1 ---


def test_a_rate_far_above_the_base():
    optimizer = AdamW(1e-5, weight_decay=1e-3)

    def set_rate(rate):
        optimizer.learning_rate = rate

    (text,) = told(lambda: set_rate(1e-3))
    assert re.search(r"0\.001.*100 times.*base_learning_rate= the highest", text)
    assert told(lambda: set_rate(1e-2)) == []  # once
    known = AdamW(1e-5, weight_decay=1e-3, base_learning_rate=1e-3)
    assert told(lambda: setattr(known, "learning_rate", 1e-3)) == []


# --- LogRates after what writes the logs ---


@pytest.mark.parametrize("first", [True, False])
def test_log_rates_after_a_csv_logger(first, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(AdamW(weight_decay=1e-3), "mse", run_eagerly=BACKEND == "tensorflow")
    callbacks = [LogRates(), keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    x = np.ones((4, 2))
    fit = {"verbose": 0, "callbacks": callbacks if first else callbacks[::-1]}
    found = [text for text in told(lambda: model.fit(x, x[:, :1], **fit)) if "LogRates" in text]
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
    def model():
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    x, optimizer = np.ones((4, 2)), AdamW(weight_decay=1e-3)
    first, second = model(), model()
    first.compile(optimizer, "mse")
    first.fit(x, x[:, :1], verbose=0)
    second.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="new optimizer for each model"):
        second.fit(x, x[:, :1], verbose=0)


# --- a learning rate of 0 ---


@pytest.mark.parametrize("cls", [AdamW, SGDW, Lion])
def test_at_a_rate_of_0_nothing_moves(cls):
    own = variables()
    optimizer = cls(0.0, weight_decay=1e-3)
    eager(optimizer, own)(ones(own))
    np.testing.assert_array_equal(numpy(own[0]), np.ones(2))
    assert float(numpy(optimizer.learning_rate)) == float(numpy(optimizer.eta_t)) == 0
    loaded = again(optimizer)
    for one in (optimizer, loaded):
        one.learning_rate = 0.0
        with pytest.raises(ValueError, match="base_learning_rate"):
            one.learning_rate = 0.1
    known = cls(0.0, weight_decay=1e-3, base_learning_rate=0.1)
    known.learning_rate = 0.05
    assert float(numpy(known.eta_t)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="use_cosine_annealing"):
        cls(0.0, use_cosine_annealing=True, total_iterations=10)


# --- errors that help ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdamW(eps=1e-8), "`epsilon`"),
        (lambda: SGDW(eps=1e-8), r"See help\(\)"),  # it has none
        (lambda: AdamW(betas=(0.9, 0.999)), "`beta_1` and `beta_2`"),
        (lambda: AdamW(wd=0.1), "`weight_decay`"),
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

    def made(cls):
        return built(cls(weight_decay=1e-3, **({"momentum": 0.9} if cls is SGDW else {})))

    store, other, untouched = {}, made(loaded), made(loaded)
    one = made(saved)
    one.apply([np.ones(2, "float32")] * 2, None)
    one.save_own_variables(store)
    texts = told(lambda: other.load_own_variables(store))
    assert len(texts) == 1
    assert re.search(f"of {saved.__name__}, .*{loaded.__name__} starts", texts[0])
    for a, b in zip(other.variables, untouched.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    derived = built(
        type("Mine", (saved,), {})(
            **({"momentum": 0.9} if saved is SGDW else {}), weight_decay=1e-3
        )
    )
    assert told(lambda: derived.load_own_variables(store)) == []
    assert int(numpy(derived.iterations)) == 1


@pytest.mark.parametrize(
    ("key", "path"),
    [("bn", "net/bn2a_branch/gamma"), ("bn", "net/block-bn.x/w"), ("a", "net/res_2a/w")],
)
def test_two_letters_that_are_a_word_are_a_key(key, path):
    optimizer = AdamW(weight_decays={key: 1e-3})
    assert optimizer.explain(variables(path)).rows[0]["rule"] == key
