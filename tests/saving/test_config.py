"""Configs: JSON, a fixed point of get_config and from_config, and the table that outlives changed paths."""

import copy
import json
import pickle
import sys
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from keras import regularizers

import cases
from cases import ALPHA, CASES, OPTIMIZERS, eager, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, NadamW
from small import WEAK, again, named, ones

schedules = keras.optimizers.schedules
HALVED = schedules.ExponentialDecay(0.5, 10, 0.5)


@keras.saving.register_keras_serializable(package="test_config")
def tenth():
    return 0.1


variables = partial(ones, shape=(2, 2))


def through_json(optimizer):
    return json.loads(json.dumps(optimizer.get_config()))


def same_config(a, b):
    """Equal as JSON, where 0 and 0.0, True and 1 differ."""
    assert json.dumps(a.get_config()) == json.dumps(b.get_config())


NET = ["net/one/kernel", "net/one/bias", "net/two/kernel", "net/two/bias"]
SHORTER = [path.removeprefix("net/") for path in NET]


def simple(value):
    """A number, or a `Decay`, which compares schedules by their configs."""
    if not isinstance(value, Decay):
        l1, l2 = value if isinstance(value, tuple) else (0.0, value)
        value = Decay(l2, l1)
    return value.l2 if isinstance(value.l2, float) and value == Decay(value.l2) else value


def rows(optimizer, names=NET):
    """The decay and the multiplier of each of these."""
    decays = [simple(optimizer.weight_decays.get(name, 0.0)) for name in names]
    multipliers = [simple(optimizer.lr_multipliers.get(name, 1.0)) for name in names]
    return list(zip(decays, multipliers, strict=True))


# --- a fixed point ---

CONFIGS = [(case, "adamw-amsgrad", True) for case in CASES if case != "a callable"]  # a lambda
CONFIGS += [("annealing", name, False) for name in OPTIMIZERS] + [("kinds by key", "adamw", False)]


@pytest.mark.parametrize(("case", "name", "moved"), CONFIGS)
def test_a_config_is_a_fixed_point(case, name, moved):
    """As it was made; or built, with a rate and a decay that were set where that goes into the config."""
    optimizer, names = CASES[case].optimizer(name), cases.PATHS
    ours = cases.make_variables()
    if moved:
        optimizer.build(ours)
        if isinstance(optimizer.learning_rate, keras.Variable):
            optimizer.learning_rate = 0.25 * ALPHA
        if isinstance(optimizer.weight_decay, keras.Variable):
            optimizer.weight_decay = 0.07
    config = optimizer.get_config()
    text = json.dumps(config)
    assert json.loads(text) == config  # no tuple, no key but strings
    copied = type(optimizer).from_config(json.loads(text))
    assert json.dumps(copied.get_config()) == text
    assert json.dumps(optimizer.get_config()) == text  # asking changes nothing

    # What it means is the same.
    for one in (copied, optimizer):
        one.build(ours)
    assert rows(copied, names) == rows(optimizer, names)
    for attribute in ("learning_rate", "eta_t", "t_cur"):
        assert numpy(getattr(copied, attribute)) == numpy(getattr(optimizer, attribute))
    same_config(copied, optimizer)


@pytest.mark.parametrize("built", [False, True])
def test_a_config_of_numbers_goes_without_keras_serializer(built, monkeypatch):
    """On every backend it imports TensorFlow, which takes seconds."""

    def refuse(*args, **kwargs):
        raise AssertionError("Keras' serializer was called")

    rules = {"weight_decay": Decay(1e-4, cautious=True), "weight_decays": {"one": (0.1, 0.2)}}
    optimizer = AdamW(1e-3, **rules)
    if built:
        optimizer.build(variables(*NET))
    inside = sys.modules[keras.saving.serialize_keras_object.__module__]
    for module in (keras.saving, inside):
        for name in ("serialize_keras_object", "deserialize_keras_object"):
            monkeypatch.setattr(module, name, refuse)
    with pytest.raises(AssertionError):  # else nothing would be seen
        schedules.serialize(HALVED)
    same_config(again(optimizer), optimizer)


# --- the ways to and fro ---

WAYS = {
    "from_config": again,
    "optimizers.serialize": lambda o: keras.optimizers.deserialize(
        json.loads(json.dumps(keras.optimizers.serialize(o)))
    ),
    "saving": lambda o: keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(o)))
    ),
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
MAKERS = {
    "rules of all kinds": lambda: SGDW(
        CosineWarmRestarts(0.1, 9, t_mul=2),
        0.9,
        weight_decay=Decay(0.02, cautious=True),
        weight_decays={
            "net/one": (0.1, HALVED),
            "bias": Decay(HALVED, 0.01, towards="initial"),
            "two/kernel": Decay(0.03, 0.02, soft_threshold=True),
        },
        lr_multipliers={"net/two": 0.25, "net/two/bias": 0, "net/one/bias": HALVED},
    ),
    "annealing": lambda: AdamW(
        0.1, weight_decay=HALVED, use_cosine_annealing=True, total_iterations=9, t_cur=4
    ),
    "a callable": lambda: NadamW(tenth, weight_decay=0.5),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_there_and_back(make, way):
    optimizer = make()
    fresh = way(optimizer)
    assert type(fresh) is type(optimizer)
    assert fresh is not optimizer
    same_config(fresh, optimizer)
    optimizer.build(variables(*NET))
    copied = way(optimizer)
    same_config(copied, optimizer)
    table = through_json(copied)["resolved"]["table"]
    assert [(row["path"], row["shape"]) for row in table] == [(path, [2, 2]) for path in NET]
    fresh.build(variables(*NET))
    copied.build(variables(*SHORTER))  # the table, not the keys: the paths are others now
    assert rows(fresh) == rows(copied, SHORTER) == rows(optimizer)


def test_the_registered_names():
    """`keras.optimizers.get("AdamW")` stays theirs."""
    for cls in (AdamW, NadamW, SGDW):
        optimizer, name = cls(), f"keras_decoupled>{cls.__name__}"
        assert keras.optimizers.get(optimizer) is optimizer
        assert keras.saving.get_registered_name(cls) == name
        assert keras.optimizers.serialize(optimizer)["registered_name"] == name
    assert type(keras.optimizers.get("AdamW")).__module__.startswith("keras.")


def test_the_arguments_as_given_are_in_the_config():
    """Those that are not the defaults; what else a config has is a default."""
    cycle = {"total_iterations": 10, "total_iterations_wd": 20, "use_cosine_annealing": True}
    cycle |= {"autorestart": False, "eta_min": 0.25, "eta_max": 0.75, "t_cur": 3}
    rules = {"weight_decay": 0.25, "weight_decays": {"one": 0.5, "two": [0.25, 0.0]}}
    rules |= {"lr_multipliers": {"one": 0.5}, "decay_vectors": False, "init_verbose": True}
    own = {"beta_1": 0.5, "beta_2": 0.75, "epsilon": 0.125, "amsgrad": True}
    ema = {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3}
    of_keras = {"clipnorm": 1.0, "loss_scale_factor": 2.0, "gradient_accumulation_steps": 4}
    arguments = {"learning_rate": 0.5, "name": "mine", **cycle, **rules, **own, **ema, **of_keras}
    config = through_json(AdamW(**arguments, model=None))
    assert {key: config.get(key) for key in arguments} == arguments
    more = {key: config[key] for key in config.keys() - arguments.keys() - {"resolved"}}
    same_config(AdamW(**arguments, **more), AdamW(**arguments))
    assert not config.keys() & {"model", "zero_penalties"}


def test_a_flag_of_numpy_is_json():
    flags = ("autorestart", "normalize_weight_decay", "amsgrad", "init_verbose")
    numbers = {"total_iterations": np.int64(9), "t_cur": np.int32(2), "eta_min": np.float32(0.5)}
    for flag in (np.True_, np.False_):
        arguments = numbers | dict.fromkeys(flags, flag)
        optimizer = AdamW(use_cosine_annealing=np.True_, **arguments)
        same_config(again(optimizer), optimizer)


def test_a_lambda_in_a_config():
    """It is asked for α at the build, and not before."""
    optimizer = AdamW(lambda: 0.1, weight_decay=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': a lambda should be named and registered
        config = through_json(optimizer)
    assert config["base_learning_rate"] is None


def test_a_schedule_that_many_share_comes_back_as_one():
    optimizer = SGDW(weight_decay=HALVED, weight_decays={"net/one": HALVED})
    optimizer.build(variables(*NET))
    copied = again(optimizer)
    copied.build(variables(*NET))
    assert len({id(l2) for _, l2 in copied.weight_decays.values()}) == 1


def test_custom_objects():
    class Halving(schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.5 ** keras.ops.cast(step, "float32")

        def get_config(self):
            return {}

    optimizer = AdamW(Halving(), weight_decays={"a": (0, Halving())}, weight_decay=Halving())
    serialized = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    for copied in (
        AdamW.from_config(through_json(optimizer), custom_objects={"Halving": Halving}),
        keras.optimizers.deserialize(serialized, custom_objects={"Halving": Halving}),
    ):
        assert isinstance(copied.weight_decay, Halving)
        assert isinstance(copied.weight_decays["a"][1], Halving)


# --- what the table does at the next build ---


L1 = Decay(0.0, 0.125)
RULED = [(0.25, 0.5), (L1, 0.5), (0.5, 1.0), (L1, 1.0)]  # what `ruled` gives NET


def ruled(build=True):
    """Rules of which a key, "net", is gone with the leading components."""
    decays = {"net": 0.25, "bias": L1, "net/two/kernel": 0.5}
    rules = {"weight_decays": decays, "lr_multipliers": {"net/one": 0.5}}
    optimizer = AdamW(0.1, weight_decay=1e-3, **rules)
    if build:
        optimizer.build(variables(*NET))
        assert rows(optimizer) == RULED
    return optimizer


OTHER_PATHS = {
    "shorter": dict(zip(SHORTER, RULED, strict=True)),
    "others": dict(zip(["x/kernel", "y", "z/kernel", "w"], RULED, strict=True)),
    "in another order": dict(zip(NET[::-1], RULED[::-1], strict=True)),
    "a part, shorter": dict(zip(SHORTER[:2], RULED[:2], strict=True)),
}


@pytest.mark.parametrize("expected", OTHER_PATHS.values(), ids=OTHER_PATHS)
def test_rows_go_with_their_variables_where_paths_changed(expected):
    """Twice in a row, as in load, save, load."""
    copied = ruled()
    for _ in range(2):
        copied = again(copied)
        copied.build(variables(*expected))
        assert rows(copied, expected) == list(expected.values())
        same_config(again(copied), copied)


def test_an_added_layer_is_resolved_by_the_rules():
    copied = again(ruled())  # "net" and "net/two/kernel" hit nothing below: no error now
    added = ["three/kernel", "three/bias"]
    copied.build([*variables(*SHORTER), *variables(*added, shape=(3,))])
    assert rows(copied, [*SHORTER, *added]) == [*RULED, (1e-3, 1.0), (L1, 1.0)]


def test_where_nothing_aligns_the_rules_are_read_anew():
    """Keys may hit nothing then: what they hit may be frozen by now."""
    optimizer = ruled()
    other = again(optimizer)
    other.build(variables("other/w", shape=(3,)))
    assert rows(other, ["other/w"]) == [(1e-3, 1.0)]
    ours = ["net/other/w", "net/one/w", "net/two/kernel", "net/two/bias"]
    copied = again(optimizer)
    copied.build([*ones(*ours[:2], shape=(5, 5, 5)), *ones(*ours[2:], shape=(7,))])
    assert rows(copied, ours) == [(0.25, 1.0), (0.25, 0.5), (0.5, 1.0), (L1, 1.0)]


def test_what_is_open_is_an_error():
    optimizer = SGDW(weight_decays={"a": 0.25, "b": 0.5})
    optimizer.build(variables("a/d/kernel", "b/d/kernel"))
    with pytest.raises(ValueError, match="weight decay table") as caught:
        again(optimizer).build([*variables("d/kernel"), *variables("e", shape=(3,))])
    for name in ("Received: 'd/kernel'", "'a/d/kernel'", "'b/d/kernel'", "`name=...`"):
        assert name in str(caught.value)


# --- exclusions and extracted decays ---


@pytest.mark.parametrize("built", [False, True])
def test_exclusions_are_saved(built):
    """They speak for added layers too."""
    ours, optimizer = variables(*NET), ruled(build=False)
    optimizer.exclude_from_weight_decay(var_list=[ours[2]], var_names=["one/.*s$"])
    if built:
        optimizer.build(ours)
    copied = again(optimizer)
    same_config(copied, optimizer)
    copied.build([*variables(*NET), *variables("one/as", shape=(3,))])
    assert copied.weight_decays == {"net/one/kernel": (0.0, 0.25), "net/two/bias": (0.125, 0.0)}


def test_a_later_call_adds_to_the_exclusions_of_a_config():
    optimizer = AdamW(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    copied = again(optimizer)
    copied.exclude_from_weight_decay(var_names=["two/"])
    copied.build(variables(*NET))
    assert list(copied.weight_decays) == NET[:1]


def test_exclusions_of_a_copy_that_has_its_decays_are_refused():
    optimizer = AdamW(weight_decay=0.5)
    optimizer.build(variables(*NET))
    with pytest.raises(ValueError, match=r"before the first build.*Received: .*copy"):
        again(optimizer).exclude_from_weight_decay(var_names=["bias"])


def test_an_excluded_variable_among_those_that_share_its_path():
    ours = variables("w", "w")
    optimizer = AdamW(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[ours[1]])
    copied = again(optimizer)
    # A config has paths only, and before build nobody knows that there are two of this one.
    with pytest.raises(ValueError, match=r"several variables have\. Received: w\. Call exclude"):
        copied.build(ours)
    optimizer.build(ours)
    copied = again(optimizer)  # now the table knows
    copied.build(ours)
    assert [row["rule"] for row in copied.explain().rows] == ["weight_decay", "excluded"]
    again(optimizer).build([*ours, *variables("v")])
    for one in (optimizer, copied):
        assert one.weight_decays == {"w": (0.0, 0.5)}


def net():
    return named(regularizers.L1L2(WEAK, 2 * WEAK), regularizers.L2(WEAK / 2))


EXTRACTED = [(Decay(2 * WEAK, WEAK), 1.0), (0.5, 1.0), (0.25, 1.0), (WEAK / 2, 1.0)]


def extracting(model):
    return AdamW(model=model, weight_decay=0.5, weight_decays={"two/kernel": 0.25})


@pytest.mark.parametrize("built", [False, True])
def test_extracted_decays_are_saved(built):
    model = net()
    optimizer = extracting(model)
    if built:
        optimizer.build(model.trainable_variables)
    copied = again(optimizer)
    same_config(copied, optimizer)
    copied.build(model.trainable_variables)
    assert rows(copied) == EXTRACTED


def test_a_key_for_a_frozen_layer_before_build():
    """As where a wrapper rebuilds its inner optimizer from its config."""
    model = net()
    model.layers[1].trainable = False
    optimizer = AdamW(model=model, weight_decays={"two": 0.5})
    copied = again(optimizer)
    for one in (optimizer, copied):
        one.build(model.trainable_variables)
        assert one.weight_decays == {"net/one/kernel": (WEAK, 2 * WEAK)}
    model.layers[1].trainable = True
    for one in (optimizer, copied):
        one.build(model.trainable_variables)
        assert rows(one)[2:] == [(0.5, 1.0)] * 2


def test_decays_and_penalties_of_a_model_saved_before_it_was_trained(tmp_path):
    model = net()
    model.compile(extracting(model), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.optimizer.build(loaded.trainable_variables)
    assert rows(loaded.optimizer, [v.path for v in loaded.trainable_variables]) == EXTRACTED
    assert loaded.losses == []


def test_a_config_has_no_state():
    """Position and counters are optimizer variables, not config."""
    optimizer = SGDW(0.5, weight_decay=0.5, use_cosine_annealing=True, total_iterations=5)
    ours = variables("w")
    optimizer.build(ours)
    before = json.dumps(optimizer.get_config())
    eager(optimizer, ours)([np.zeros((2, 2), "float32")])
    assert int(numpy(optimizer.t_cur)) == 1
    assert json.dumps(optimizer.get_config()) == before


@pytest.mark.parametrize("bad", ["x", [0.1], None])
def test_a_schedule_of_keras_that_cannot_be_computed_is_refused_when_read(bad):
    """Keras takes it, and its first value is an error: on TensorFlow, of a kind that nobody expects."""
    config = AdamW(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)).get_config()
    config["learning_rate"]["config"]["initial_learning_rate"] = bad
    with pytest.raises((ValueError, TypeError)):
        AdamW.from_config(config)
