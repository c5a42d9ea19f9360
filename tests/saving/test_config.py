"""Configs: JSON, a fixed point of get_config and from_config, and the table that outlives changed paths."""

import copy
import json
import pickle
import subprocess
import sys
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, regularizers

from cases import eager, numpy
from effort import examples
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, Decay, NadamW
from small import WEAK, again, named, ones

schedules = keras.optimizers.schedules
ZERO = np.zeros((2, 2), "float32")


@keras.saving.register_keras_serializable(package="test_config")
def tenth():
    return 0.1


variables = partial(ones, shape=(2, 2))


def through_json(optimizer):
    return json.loads(json.dumps(optimizer.get_config()))


def same_config(a, b):
    """Equal as JSON, where 0 and 0.0, True and 1 differ."""
    assert json.dumps(a.get_config()) == json.dumps(b.get_config())


# --- a fixed point ---

fractions = st.floats(0, 0.9)
rates = st.floats(1e-6, 10.0)
numbers = fractions | st.sampled_from([0, 1, np.float32(0.1), np.float64(0.2)])
l2s = numbers | st.builds(schedules.PolynomialDecay, rates, st.integers(1, 50), rates)
decays = (
    l2s
    | st.tuples(numbers, l2s)
    | st.builds(
        Decay,
        l2s,
        l1=st.just(0) | fractions,
        towards=st.sampled_from(["zero", "initial"]),
        eta_power=st.sampled_from([0, 1, 2, 0.5]),
        cautious=st.booleans(),
    )
    | st.builds(Decay, l2s, l1=fractions, soft_threshold=st.booleans())
)
KEYS = ["a", "a/kernel", "kernel", "bias", "c/", "d", "ern", "c/d/w"]
PATHS = ["a/kernel", "a/bias", "c/d/w"]

some = partial(st.fixed_dictionaries, {})  # some of these arguments
flags, tristates = st.booleans(), st.sampled_from([None, True, False])
own = {
    AdamW: some(optional={"beta_1": fractions, "amsgrad": flags, "epsilon": numbers}),
    NadamW: some(optional={"beta_2": fractions, "momentum_decay": numbers, "epsilon": fractions}),
    SGDW: some(optional={"momentum": fractions, "nesterov": flags}),
}
shared = {
    "weight_decay": st.none() | decays,
    "weight_decays": st.dictionaries(st.sampled_from(KEYS), decays),
    "lr_multipliers": st.dictionaries(st.sampled_from(KEYS), numbers),
    "init_verbose": st.just(False),
    "base_learning_rate": st.none() | rates,
    "name": st.sampled_from(["mine", None]),
    "clipnorm": st.floats(0.1, 2),
    "use_ema": flags,
    "ema_overwrite_frequency": st.none() | st.integers(1, 9),
    "loss_scale_factor": st.floats(1, 1024),
    "gradient_accumulation_steps": st.none() | st.integers(2, 9),
}
normalizing = {"total_iterations": st.integers(1, 999), "total_iterations_wd": st.integers(1, 9)}
# Without its default -1 and 0 an annealed optimizer may start anywhere in its cycle.
annealing = st.integers(2, 99).flatmap(
    lambda T: st.fixed_dictionaries(
        {
            "learning_rate": rates | st.just(1),
            "total_iterations": st.just(T),
            "use_cosine_annealing": st.just(True),
        },
        optional={
            "t_cur": st.integers(-1, T - 1),
            "eta_min": st.floats(0, 0.5),
            "eta_max": st.floats(0.5, 2),
            "autorestart": tristates,
            "normalize_weight_decay": tristates,
        },
    )
)
cosines = st.builds(
    CosineWarmRestarts,
    rates,
    st.integers(2, 99),
    t_mul=st.sampled_from([1, 1.5, 2]),
    m_mul=st.floats(0.1, 1),
    warmup_steps=st.integers(0, 5),
    endpoint=st.booleans(),
)
schedule = cosines | st.builds(schedules.CosineDecay, rates, st.integers(1, 50))
by_rate = [  # a learning rate, and what may be given beside it
    (rates | st.just(2) | st.just(tenth), normalizing),
    (schedule, {"total_iterations_wd": st.integers(1, 9)}),
    (cosines, {"normalize_weight_decay": tristates}),
]
times = annealing | st.one_of(
    st.fixed_dictionaries({"learning_rate": rate}, optional=more) for rate, more in by_rate
)


@st.composite
def optimizers(draw):
    cls = draw(st.sampled_from(list(own)))
    arguments = draw(own[cls]) | draw(some(optional=shared)) | draw(times)
    optimizer = cls(**arguments)
    if draw(st.booleans()):
        patterns = draw(st.lists(st.sampled_from(["bias$", "^a/", "nowhere"]), unique=True))
        optimizer.exclude_from_weight_decay(var_names=patterns)
    # Of a number r goes along, as in Keras; beside a schedule it is state, like the position.
    is_number = not callable(arguments["learning_rate"])
    if is_number and numpy(optimizer.learning_rate) > 0 and draw(st.booleans()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*the rate will peak")
            optimizer.learning_rate = draw(rates)
    if isinstance(optimizer.weight_decay, keras.Variable) and draw(st.booleans()):
        optimizer.weight_decay = draw(fractions)
    return optimizer


def as_decay(value):
    """Schedules in a `Decay` are compared by their configs."""
    return value if isinstance(value, Decay) else Decay(value[1], value[0])


def build(optimizer, ours):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(decays no variable|these exclude nothing)")
        optimizer.build(ours)


@settings(max_examples=examples(200))
@given(optimizer=optimizers(), built=st.booleans())
def test_a_config_is_a_fixed_point(optimizer, built):
    ours = variables(*PATHS)
    if built:
        build(optimizer, ours)
    config = optimizer.get_config()
    text = json.dumps(config)
    assert json.loads(text) == config  # no tuple, no key but strings
    copied = type(optimizer).from_config(json.loads(text))
    assert json.dumps(copied.get_config()) == text
    assert json.dumps(optimizer.get_config()) == text  # asking changes nothing

    # What it means is the same.
    for one in (copied, optimizer):
        build(one, ours)
    assert list(copied.weight_decays) == list(optimizer.weight_decays)
    for path, decay in optimizer.weight_decays.items():
        assert as_decay(copied.weight_decays[path]) == as_decay(decay)
    assert copied.lr_multipliers == optimizer.lr_multipliers
    assert numpy(copied.learning_rate) == numpy(optimizer.learning_rate)
    assert numpy(copied.eta_t) == numpy(optimizer.eta_t)
    assert numpy(copied.t_cur) == numpy(optimizer.t_cur)
    same_config(copied, optimizer)


WITHOUT_TENSORFLOW = """
import sys

class Watch:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tensorflow":
            self.asked.append(name)

sys.meta_path.insert(0, Watch())
import keras
from keras_decoupled import AdamW, Decay, NadamW, SGDW

for cls in (AdamW, NadamW, SGDW):
    for decay in (1e-4, Decay(1e-4, cautious=True)):
        optimizer = cls(1e-3, weight_decay=decay, weight_decays={"w": (0.1, 0.2)})
        for built in (False, True):
            Watch.asked.clear()
            cls.from_config(optimizer.get_config())
            assert not Watch.asked, Watch.asked
            optimizer.build([keras.Variable([1.0, 2.0], name="w")])
assert "tensorflow" not in sys.modules
keras.saving.serialize_keras_object(keras.optimizers.schedules.PolynomialDecay(0.1, 9))
assert Watch.asked  # Keras' serializer does ask, so the watch would have seen it
"""


if keras.backend.backend() != "tensorflow":  # there it is imported already

    def test_a_config_of_numbers_does_not_import_tensorflow():
        """Keras' serializer does, which takes seconds."""
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TENSORFLOW], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


# --- the ways to and fro ---

WAYS = {
    "from_config": again,
    "optimizers.serialize": lambda o: keras.optimizers.deserialize(
        json.loads(json.dumps(keras.optimizers.serialize(o)))
    ),
    "optimizers.get": lambda o: keras.optimizers.get(keras.optimizers.serialize(o)),
    "saving": lambda o: keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(o)))
    ),
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
BUILT_LIKE = {
    "plain": lambda: AdamW(0.1, weight_decay=0.5),
    "rules": lambda: NadamW(
        0.1,
        weight_decay=1e-4,
        weight_decays={"net": 0.5, "bias": (0.1, 0), "one/kernel": (0, 0.2)},
        lr_multipliers={"net/two": 0.25, "net/two/bias": 0},
    ),
    "decay as a schedule": lambda: SGDW(
        0.1,
        0.9,
        weight_decay=schedules.ExponentialDecay(0.5, 10, 0.5),
        weight_decays={"net/one": (0.1, schedules.ExponentialDecay(0.25, 10, 0.5))},
    ),
    "annealing": lambda: AdamW(
        0.1, weight_decay=0.5, use_cosine_annealing=True, total_iterations=9, t_cur=4
    ),
    "cosine": lambda: AdamW(CosineWarmRestarts(0.1, 9, t_mul=2), weight_decay=0.5),
    "keras schedule": lambda: AdamW(schedules.ExponentialDecay(0.1, 10, 0.5), weight_decay=0.5),
    "callable": lambda: AdamW(tenth, weight_decay=0.5),
    "kinds": lambda: AdamW(
        0.1,
        weight_decay=Decay(0.02, cautious=True),
        weight_decays={
            "bias": Decay(schedules.ExponentialDecay(0.5, 10, 0.5), 0.01, towards="initial"),
            "two/kernel": Decay(0.03, 0.02, soft_threshold=True),
        },
    ),
}
NET = ["net/one/kernel", "net/one/bias", "net/two/kernel", "net/two/bias"]
SHORTER = [path.removeprefix("net/") for path in NET]


def rows(optimizer, names=NET):
    """The decay and the multiplier of each of these: a number for an l2 alone."""
    decays = [as_decay(optimizer.weight_decays.get(name, (0.0, 0.0))) for name in names]
    decays = [d.l2 if isinstance(d.l2, float) and d == Decay(d.l2) else d for d in decays]
    return list(zip(decays, [optimizer.lr_multipliers.get(n, 1.0) for n in names], strict=True))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("make", BUILT_LIKE.values(), ids=BUILT_LIKE)
def test_there_and_back(make, way):
    optimizer = make()
    fresh = way(optimizer)
    assert type(fresh) is type(optimizer)
    assert fresh is not optimizer
    same_config(fresh, optimizer)
    optimizer.build(variables(*NET))
    copied = way(optimizer)
    same_config(copied, optimizer)
    copied.build(variables(*SHORTER))  # the table, not the keys: the paths are others now
    assert rows(copied, SHORTER) == rows(optimizer)
    fresh.build(variables(*NET))
    assert rows(fresh) == rows(optimizer)


def test_the_registered_names():
    """`keras.optimizers.get("AdamW")` stays theirs."""
    for cls in (AdamW, NadamW, SGDW):
        optimizer, name = cls(), f"keras_decoupled>{cls.__name__}"
        assert keras.optimizers.get(optimizer) is optimizer
        assert keras.saving.get_registered_name(cls) == name
        saved = keras.optimizers.serialize(optimizer)
        assert saved["registered_name"] == name
        assert type(keras.optimizers.deserialize(saved)) is cls
    assert type(keras.optimizers.get("AdamW")).__module__.startswith("keras.")


def test_the_arguments_as_given_are_in_the_config():
    """Those that are not the defaults; what else a config has is a default."""
    arguments = {
        "learning_rate": 0.5,
        "weight_decay": 0.25,
        "weight_decays": {"one": 0.5, "two": [0.25, 0.0]},
        "lr_multipliers": {"one": 0.5},
        "decay_vectors": False,
        "total_iterations": 10,
        "total_iterations_wd": 20,
        "use_cosine_annealing": True,
        "autorestart": False,
        "eta_min": 0.25,
        "eta_max": 0.75,
        "t_cur": 3,
        "init_verbose": True,
        "beta_1": 0.5,
        "beta_2": 0.75,
        "epsilon": 0.125,
        "amsgrad": True,
        "clipnorm": 1.0,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 3,
        "loss_scale_factor": 2.0,
        "gradient_accumulation_steps": 4,
        "name": "mine",
    }
    config = through_json(AdamW(**arguments, model=None))
    assert {key: config.get(key) for key in arguments} == arguments
    more = {key: config[key] for key in config.keys() - arguments.keys() - {"resolved"}}
    same_config(AdamW(**arguments, **more), AdamW(**arguments))
    assert not config.keys() & {"model", "zero_penalties"}


def test_each_variable_has_a_row_in_the_config():
    optimizer = SGDW(weight_decays={"one": (0.25, 0.5)}, lr_multipliers={"two": 0.5})
    optimizer.build([*variables(*NET[:2]), *variables(*NET[2:3], shape=(3,))])
    table = through_json(optimizer)["resolved"]["table"]
    assert [(row["path"], row["shape"]) for row in table] == [
        ("net/one/kernel", [2, 2]),
        ("net/one/bias", [2, 2]),
        ("net/two/kernel", [3]),
    ]


def test_a_flag_of_numpy_is_json():
    for flag in (np.True_, np.False_):
        optimizer = AdamW(
            use_cosine_annealing=np.True_,
            total_iterations=np.int64(9),
            autorestart=flag,
            normalize_weight_decay=flag,
            amsgrad=flag,
            t_cur=np.int32(2),
            eta_min=np.float32(0.5),
            init_verbose=flag,
        )
        same_config(again(optimizer), optimizer)


def test_a_lambda_in_a_config():
    optimizer = AdamW(lambda: 0.1, weight_decay=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': a lambda should be named and registered
        text = json.dumps(optimizer.get_config())
    assert "0.1" not in json.dumps(json.loads(text)["base_learning_rate"])


def test_a_schedule_that_many_share_comes_back_as_one():
    decay = schedules.ExponentialDecay(0.5, 10, 0.5)
    optimizer = SGDW(weight_decay=decay, weight_decays={"net/one": decay})
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
    config = through_json(optimizer)
    copied = AdamW.from_config(config, custom_objects={"Halving": Halving})
    assert isinstance(copied.weight_decay, Halving)
    assert isinstance(copied.weight_decays["a"][1], Halving)
    saved = json.loads(json.dumps(keras.optimizers.serialize(optimizer)))
    copied = keras.optimizers.deserialize(saved, custom_objects={"Halving": Halving})
    assert isinstance(copied.weight_decay, Halving)


# --- what the table does at the next build ---


L1 = Decay(0.0, 0.125)


def ruled():
    """Rules of which a key, "net", is gone with the leading components."""
    decays = {"net": 0.25, "bias": L1, "net/two/kernel": 0.5}
    return AdamW(0.1, weight_decay=1e-3, weight_decays=decays, lr_multipliers={"net/one": 0.5})


OTHER_PATHS = {
    "shorter": (NET, SHORTER),
    "longer": (NET, ["model/" + path for path in NET]),
    "same shapes, in the same order": (NET, ["x/kernel", "y", "z/kernel", "w"]),
    "in another order": (NET[::-1], NET[::-1]),
    "a part": (NET[2:], NET[2:]),
    "a part, shorter": (NET[:2], SHORTER[:2]),
}


@pytest.mark.parametrize("case", OTHER_PATHS.values(), ids=OTHER_PATHS)
def test_rows_go_with_their_variables_where_paths_changed(case):
    """Twice in a row, as in load, save, load."""
    old, new = case
    copied = ruled()
    copied.build(variables(*NET))
    expected = dict(zip(NET, rows(copied), strict=True))
    assert list(expected.values()) == [(0.25, 0.5), (L1, 0.5), (0.5, 1.0), (L1, 1.0)]
    for _ in range(2):
        copied = again(copied)
        copied.build(variables(*new))
        assert rows(copied, new) == [expected[path] for path in old]
        same_config(again(copied), copied)


def test_an_added_layer_is_resolved_by_the_rules():
    optimizer = ruled()
    optimizer.build(variables(*NET))
    copied = again(optimizer)  # "net" and "net/two/kernel" hit nothing below: no error now
    added = ["three/kernel", "three/bias"]
    copied.build([*variables(*SHORTER), *variables(*added, shape=(3,))])
    assert rows(copied, SHORTER) == rows(optimizer)
    assert rows(copied, added) == [(1e-3, 1.0), (L1, 1.0)]


def test_where_nothing_aligns_the_rules_are_read_anew():
    """Keys may hit nothing then: what they hit may be frozen by now."""
    optimizer = ruled()
    optimizer.build(variables(*NET))
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
    ours = variables(*NET)
    optimizer = ruled()
    optimizer.exclude_from_weight_decay(var_list=[ours[2]], var_names=["one/.*s$"])
    if built:
        optimizer.build(ours)
    copied = again(optimizer)
    same_config(copied, optimizer)
    copied.build(variables(*NET))
    assert copied.weight_decays == {"net/one/kernel": (0.0, 0.25), "net/two/bias": (0.125, 0.0)}


def test_exclusions_of_a_config():
    """They speak for added layers too; until the build a later call adds to them."""
    optimizer = AdamW(weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    told_more = again(optimizer)
    told_more.exclude_from_weight_decay(var_names=["b/"])
    optimizer.build(variables("a/kernel", "a/bias"))
    copied, added = again(optimizer), variables("b/kernel", "b/bias", shape=(3,))
    for one, left in ((copied, ["a/kernel", "b/kernel"]), (told_more, ["a/kernel"])):
        one.build([*variables("a/kernel", "a/bias"), *added])
        assert list(one.weight_decays) == left


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
    for one in (optimizer, copied):
        assert one.weight_decays == {"w": (0.0, 0.5)}


def net():
    return named(regularizers.L1L2(WEAK, 2 * WEAK), regularizers.L2(WEAK / 2))


class Twins(keras.Model):
    """Two layers of one name."""

    def __init__(self):
        super().__init__(name="twins")
        self.first = layers.Dense(2, kernel_regularizer=regularizers.L2(2.0**-12), name="d")
        self.second = layers.Dense(2, kernel_regularizer=regularizers.L2(2.0**-13), name="d")

    def call(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize("built", [False, True])
def test_extracted_decays_are_saved(built):
    model = net()
    optimizer = AdamW(model=model, weight_decay=0.5)
    if built:
        optimizer.build(model.trainable_variables)
    copied = again(optimizer)
    same_config(copied, optimizer)
    copied.build(model.trainable_variables)
    found = [(Decay(2 * WEAK, WEAK), 1.0), (0.5, 1.0), (0.5, 1.0), (WEAK / 2, 1.0)]
    assert rows(copied) == found


def test_extracted_decays_of_variables_that_share_a_path():
    model = Twins()
    model(np.ones((1, 2), "float32"))
    paths = [v.path for v in model.trainable_variables]
    assert len(set(paths)) == 2  # kernel and bias, each twice
    optimizer = AdamW(model=model)
    copied = again(optimizer)
    for one in (optimizer, copied, again(optimizer)):
        one.build(model.trainable_variables)
        assert [l2 for _, l2 in one.weight_decays.values()] == [2.0**-12, 2.0**-13]
    same_config(copied, optimizer)


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
    model.compile(AdamW(0.1, model=model, weight_decays={"two/kernel": 0.25}), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    optimizer = loaded.optimizer
    optimizer.build(loaded.trainable_variables)
    decays = [decay for decay, _ in rows(optimizer, [v.path for v in loaded.trainable_variables])]
    assert decays == [Decay(2 * WEAK, WEAK), 0, 0.25, WEAK / 2]
    assert loaded.losses == []


def test_a_config_has_no_state():
    """Position and counters are optimizer variables, not config."""
    optimizer = SGDW(0.5, weight_decay=0.5, use_cosine_annealing=True, total_iterations=5)
    ours = variables("w")
    optimizer.build(ours)
    before = json.dumps(optimizer.get_config())
    step = eager(optimizer, ours)
    step([ZERO])
    step([ZERO])
    assert json.dumps(optimizer.get_config()) == before
    assert int(numpy(again(optimizer).t_cur)) == 0
