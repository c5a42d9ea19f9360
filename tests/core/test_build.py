"""What a build makes of the keys on real models: who is hit, what is kept at the next build, and what is printed."""

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import eager, make_variable, numpy
from keras_decoupled import SGDW, AdamW, CosineWarmRestarts, NadamW

schedules = keras.optimizers.schedules
WEAK = 2.0**-12  # of a penalty; a strong one is warned of


def dense(count, **arguments):
    """count layers of one unit, with automatic names."""
    return keras.Sequential(
        [keras.Input((1,)), *(layers.Dense(1, **arguments) for _ in range(count))], name="net"
    )


def named(penalty=None, name="net"):
    regularizer = None if penalty is None else regularizers.L2(penalty)
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, kernel_regularizer=regularizer, name="one"),
            layers.Dense(2, bias_regularizer=regularizer, name="two"),
        ],
        name=name,
    )


def decayed(weight_decays, model, checked_against=None):
    """{path: l2} after a build on the model, without the model's own name."""
    optimizer = SGDW(0.1, weight_decay=0, weight_decays=weight_decays, model=checked_against)
    optimizer.build(model.trainable_variables)
    return {path.removeprefix("net/"): l2 for path, (_, l2) in optimizer.weight_decays.items()}


def zero_update(optimizer, variables):
    """What one update with zero gradients leaves of weights of 1."""
    for variable in variables:
        variable.assign(np.ones(variable.shape, "float32"))
    eager(optimizer, variables)([np.zeros(v.shape, "float32") for v in variables])
    return [float(numpy(v).ravel()[0]) for v in variables]


# --- keys ---


def test_dense_1_is_not_dense_10():
    model = dense(11, use_bias=False)
    assert decayed({"dense_1": 0.5}, model) == {"dense_1/kernel": 0.5}
    assert decayed({"dense_10": 0.5}, model) == {"dense_10/kernel": 0.5}
    assert decayed({"dense/": 0.5}, model) == {"dense/kernel": 0.5}
    assert decayed({"net/dense/kernel": 0.5}, model) == {"dense/kernel": 0.5}
    assert len(decayed({"dense_": 0.5}, model)) == 10
    assert len(decayed({"kernel": 0.5}, model)) == 11
    with pytest.raises(ValueError, match="'dense/'"):
        decayed({"dense": 0.5}, model)


def test_dense_1_is_not_dense_10_where_dense_1_is_frozen():
    model = dense(11, use_bias=False)
    model.get_layer("dense_1").trainable = False
    with pytest.raises(ValueError, match="Received: 'dense_1'"):
        decayed({"dense_1": 0.5}, model)
    assert decayed({"dense_1": 0.5, "dense_2": 0.25}, model, model) == {"dense_2/kernel": 0.25}


def test_a_layer_alone_is_hit_by_its_automatic_name():
    assert decayed({"dense": 0.5}, dense(1)) == {"dense/kernel": 0.5, "dense/bias": 0.5}


def test_the_later_entry_wins():
    model = named()
    assert decayed({"one": 0.25, "bias": 0}, model) == {"one/kernel": 0.25}
    assert decayed({"bias": 0, "one": 0.25}, model) == {"one/kernel": 0.25, "one/bias": 0.25}
    assert decayed({"net": 0.5, "one": 0.25, "kernel": 0.125, "t": 0.75}, model) == dict.fromkeys(
        ["one/kernel", "two/kernel"], 0.125
    ) | {"two/bias": 0.75, "two/kernel": 0.75, "one/bias": 0.75, "one/kernel": 0.75}
    # "t" is no component, and a part of "net": all of them


def test_an_exact_path_beats_every_other_key():
    model = named()
    for weight_decays in (
        {"net/one/bias": 0.5, "bias": 0.25, "one": 0.125},
        {"one": 0.125, "bias": 0.25, "net/one/bias": 0.5},
        {"bias": 0.25, "net/one/bias": 0.5, "one": 0.125},
    ):
        assert decayed(weight_decays, model)["one/bias"] == 0.5
    assert "one/bias" not in decayed({"net/one/bias": 0, "one": 0.5}, model)


def test_multipliers_follow_the_same_rules():
    model = named()
    optimizer = SGDW(
        0.5,
        weight_decay=0,
        lr_multipliers={"net/one/bias": 4, "one": 2, "bias": 0.5, "two/kernel": 1},
    )
    optimizer.build(model.trainable_variables)
    assert optimizer.lr_multipliers == {
        "net/one/kernel": 2.0,
        "net/one/bias": 4.0,
        "net/two/bias": 0.5,
    }
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape, "float32"))
    eager(optimizer, model.trainable_variables)(
        [np.ones(v.shape, "float32") for v in model.trainable_variables]
    )
    found = [float(numpy(v).ravel()[0]) for v in model.trainable_variables]
    assert found == [-1.0, -2.0, -0.5, -0.25]


def test_a_multiplier_scales_no_decay_and_0_freezes():
    model = named()
    optimizer = SGDW(0.5, weight_decay=0.5, lr_multipliers={"one": 0.25, "net/one/bias": 0})
    assert zero_update(optimizer, model.trainable_variables) == [0.5, 1.0, 0.5, 0.5]


ZOO = {
    "nested": (
        lambda: keras.Sequential(
            [
                keras.Input((2,)),
                keras.Sequential([layers.Dense(2, name="d")], name="inner"),
                layers.Dense(1, name="d"),
            ],
            name="net",
        ),
        {"inner": 0.5},
        2,
    ),
    "bidirectional": (
        lambda: keras.Sequential(
            [keras.Input((3, 2)), layers.Bidirectional(layers.GRU(1, name="gru"), name="bi")],
            name="net",
        ),
        {"forward_gru": 0.5},
        3,
    ),
    "rnn cell": (
        lambda: keras.Sequential([keras.Input((3, 2)), layers.LSTM(1, name="lstm_1")], name="net"),
        {"lstm_cell/recurrent_kernel": 0.5},
        1,
    ),
    "stacked cells": (
        lambda: keras.Sequential(
            [
                keras.Input((3, 2)),
                layers.RNN([layers.GRUCell(1, name="c1"), layers.GRUCell(1, name="c2")]),
            ],
            name="net",
        ),
        {"c2": 0.5},
        3,
    ),
    "time distributed": (
        lambda: keras.Sequential(
            [keras.Input((3, 2)), layers.TimeDistributed(layers.Dense(1, name="d"), name="td")],
            name="net",
        ),
        {"d/kernel": 0.5},
        1,
    ),
    "embedding": (
        lambda: keras.Sequential([keras.Input((3,)), layers.Embedding(4, 2)], name="net"),
        {"embeddings": 0.5},
        1,
    ),
    "norm": (
        lambda: keras.Sequential([keras.Input((2,)), layers.BatchNormalization()], name="net"),
        {"gamma": 0.5},
        1,
    ),
    "lora": (
        lambda: keras.Sequential(
            [keras.Input((2,)), layers.Dense(3, name="d", lora_rank=1)], name="net"
        ),
        {"lora": 0.5},
        2,
    ),
}


@pytest.mark.parametrize("case", ZOO.values(), ids=ZOO)
def test_keys_on_layers_of_many_kinds(case):
    make, weight_decays, hit = case
    assert list(decayed(weight_decays, make()).values()) == [0.5] * hit


def test_a_shared_layer_is_one():
    inputs, shared = keras.Input((2,)), layers.Dense(2, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)), name="net")
    assert decayed({"shared": 0.5}, model) == {"shared/kernel": 0.5, "shared/bias": 0.5}


def test_no_more_than_one_build_reads_the_keys():
    model = named()
    optimizer = AdamW(weight_decays={"one": 0.5})
    optimizer.build(model.trainable_variables)
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/one/bias"]


def test_build_on_nothing():
    for cls in (AdamW, NadamW, SGDW):
        optimizer = cls(weight_decay=0.5)
        optimizer.build([])
        assert optimizer.built
        assert optimizer.weight_decays == {}
        assert optimizer.lr_multipliers == {}
        model = named()
        optimizer.build(model.trainable_variables)
        assert len(optimizer.weight_decays) == 4
    keras.Sequential([layers.Flatten()]).compile(AdamW(weight_decay=0.5), loss="mse")


def test_a_key_and_nothing_to_hit():
    """build([]) resolves nothing, so no key can be wrong yet; the next build is the first."""
    optimizer = AdamW(weight_decays={"one": 0.5, "none": 0.5})
    optimizer.build([])
    with pytest.raises(ValueError, match="'none'"):
        optimizer.build(named().trainable_variables)


def test_variables_that_belong_to_no_model():
    scalar = keras.Variable(np.float32(2), name="scale")
    optimizer = SGDW(0.5, weight_decays={"scale": 0.5})
    eager(optimizer, [scalar])([np.float32(0)])
    assert float(numpy(scalar)) == 1


# --- exclusions ---


def test_exclusions_beat_every_rule():
    model = named(WEAK)
    optimizer = SGDW(
        0.1,
        model=model,
        weight_decay=0.25,
        weight_decays={"net/one/bias": 0.5, "two": (0.5, 0.5)},
    )
    optimizer.exclude_from_weight_decay(var_names=["bias$", "one/kern"])
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays == {"net/two/kernel": (0.5, 0.5)}
    assert zero_update(optimizer, model.trainable_variables) == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("one", ["net/two/kernel", "net/two/bias"]),
        ("one|nowhere", ["net/two/kernel", "net/two/bias"]),
        ("^net/one", ["net/two/kernel", "net/two/bias"]),
        ("o/b", ["net/one/kernel", "net/one/bias", "net/two/kernel"]),
        ("kernel$|two", ["net/one/bias"]),
        (r"(one|two)\w*/b[a-z]+$", ["net/one/kernel", "net/two/kernel"]),
        ("(?i:BIAS)", ["net/one/kernel", "net/two/kernel"]),
        (r"t[^/]*/bias", ["net/one/kernel", "net/one/bias", "net/two/kernel"]),
        ("^([a-z]+/)+bias$", ["net/one/kernel", "net/two/kernel"]),
    ],
)
def test_exclusions_are_patterns_of_the_path(pattern, left):
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=[pattern])
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == left
    found = zero_update(optimizer, model.trainable_variables)
    assert found == [0.5 if v.path in left else 1.0 for v in model.trainable_variables]


def test_a_pattern_that_excludes_nothing_gives_one_warning():
    """A user who mistypes "gamma" would decay it, and never learn of it."""
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["two/kernal", "bias$", "^one"])
    with pytest.warns(UserWarning, match="exclude nothing") as caught:
        optimizer.build(model.trainable_variables)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "Received: 'two/kernal'. The nearest paths: 'net/two/kernel'" in message
    assert "'^one'. The nearest paths: 'net/one/kernel', 'net/one/bias'" in message
    assert "bias$" not in message
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/two/kernel"]
    # Nothing is said twice: not by a later build, not by a load.
    optimizer.build(model.trainable_variables[:2])
    SGDW.from_config(optimizer.get_config()).build(model.trainable_variables)


def test_a_pattern_that_excludes_what_is_frozen_gives_none():
    """Where `model` says that there is such a variable."""
    model = named()
    model.get_layer("one").trainable = False
    optimizer = SGDW(0.1, weight_decay=0.5, model=model)
    optimizer.exclude_from_weight_decay(var_names=["one/bias"])
    optimizer.build(model.trainable_variables)
    model.get_layer("one").trainable = True
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/two/kernel", "net/two/bias"]


def test_excluded_variables():
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(model.trainable_variables[1:3])
    assert zero_update(optimizer, model.trainable_variables) == [0.5, 1.0, 1.0, 0.5]


def test_both_ways_to_exclude():
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(
        var_list=[model.trainable_variables[0]], var_names=["two/bias"]
    )
    assert zero_update(optimizer, model.trainable_variables) == [1.0, 0.5, 0.5, 1.0]


def test_a_later_exclusion_replaces_an_earlier_one():
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=model.trainable_variables[:1])
    optimizer.exclude_from_weight_decay(var_names=["two"])
    assert zero_update(optimizer, model.trainable_variables) == [0.5, 0.5, 1.0, 1.0]
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["two"])
    optimizer.exclude_from_weight_decay()
    assert zero_update(optimizer, model.trainable_variables) == [0.5] * 4


def test_one_of_the_variables_that_share_a_path_is_excluded():
    ours = [make_variable("w", np.ones((2,), "float32")) for _ in range(3)]
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[ours[1]])
    assert zero_update(optimizer, ours) == [0.5, 1.0, 0.5]


# --- uniform, extracted, explicit ---


def test_precedence():
    model = named(WEAK)  # one/kernel and two/bias
    optimizer = SGDW(0.1, model=model, weight_decay=0.25, weight_decays={"two": 0.5})
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays == {
        "net/one/kernel": (0.0, WEAK),
        "net/one/bias": (0.0, 0.25),
        "net/two/kernel": (0.0, 0.5),
        "net/two/bias": (0.0, 0.5),
    }


def test_an_explicit_0_beats_an_extracted_decay():
    model = named(WEAK)
    optimizer = SGDW(0.1, model=model, weight_decay=0.25, weight_decays={"one/kernel": 0})
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == ["net/one/bias", "net/two/kernel", "net/two/bias"]
    assert model.losses == []  # its penalty is taken out all the same


def test_an_explicit_l1_replaces_the_whole_pair():
    model = named(WEAK)
    optimizer = SGDW(0.1, model=model, weight_decays={"one/kernel": (0.5, 0)})
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays == {
        "net/one/kernel": (0.5, 0.0),
        "net/two/bias": (0.0, WEAK),
    }


def test_a_multiplier_alone_replaces_no_decay():
    model = named(WEAK)
    optimizer = SGDW(0.1, model=model, lr_multipliers={"one": 0.5})
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays["net/one/kernel"] == (0.0, WEAK)


def test_a_penalty_of_0_is_no_decay_of_its_own():
    model = named(0.0)
    optimizer = SGDW(0.1, model=model, weight_decay=0.25)
    optimizer.build(model.trainable_variables)
    assert set(optimizer.weight_decays.values()) == {(0.0, 0.25)}


def test_penalties_may_stay():
    model = named(WEAK)
    optimizer = SGDW(0.1, model=model, zero_penalties=False)
    optimizer.build(model.trainable_variables)
    assert len(model.losses) == 2
    assert optimizer.weight_decays == {
        "net/one/kernel": (0.0, WEAK),
        "net/two/bias": (0.0, WEAK),
    }


def test_a_second_optimizer_finds_the_same_decays():
    model = named(WEAK)
    for _ in range(3):
        optimizer = SGDW(0.1, model=model)
        optimizer.build(model.trainable_variables)
        assert list(optimizer.weight_decays.values()) == [(0.0, WEAK)] * 2
        assert model.losses == []


def test_a_uniform_decay_may_be_a_schedule():
    model = named(WEAK)
    decay = schedules.ExponentialDecay(0.5, 1, 0.5)
    optimizer = SGDW(0.1, model=model, weight_decay=decay, weight_decays={"two/bias": 0})
    found = zero_update(optimizer, model.trainable_variables)
    np.testing.assert_allclose(found, [1 - WEAK, 0.5, 0.5, 1.0], rtol=1e-6)
    found = zero_update(optimizer, model.trainable_variables)
    np.testing.assert_allclose(found, [1 - WEAK, 0.75, 0.75, 1.0], rtol=1e-6)


# --- inside a MultiOptimizer ---


if hasattr(keras.optimizers, "MultiOptimizer"):  # since Keras 3.15

    def split(default, optimizers):
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(default, optimizers))

    def test_inner_optimizers_get_only_their_own_keys():
        model = named()
        head = AdamW(
            0.1, weight_decay=0, weight_decays={"kernel": 0.5}, lr_multipliers={"two": 0.5}
        )
        body = SGDW(0.1, weight_decays={"kernel": 0.25})
        both = split(body, {".*two.*": head})
        both.build(model.trainable_variables)
        assert head.weight_decays == {"net/two/kernel": (0.0, 0.5)}
        assert head.lr_multipliers == {"net/two/kernel": 0.5, "net/two/bias": 0.5}
        assert body.weight_decays == {"net/one/kernel": (0.0, 0.25)}
        assert zero_update(both, model.trainable_variables) == [0.75, 1.0, 0.5, 1.0]

    def test_a_key_of_another_inner_optimizer_is_refused():
        model = named()
        head = AdamW(0.1, weight_decays={"two": 0.5, "one": 0.5})
        both = split(SGDW(0.1, weight_decay=0), {".*two.*": head})
        with pytest.raises(ValueError, match="'one'"):
            both.build(model.trainable_variables)


# --- another build ---


def slots(optimizer):
    return {id(v): numpy(v) for v in optimizer.variables}


@pytest.mark.parametrize("cls", [AdamW, NadamW, SGDW])
def test_a_rebuild_keeps_slots_and_rows(cls):
    model = named()
    arguments = {"momentum": 0.9} if cls is SGDW else {}
    optimizer = cls(
        0.1, weight_decay=0.25, weight_decays={"one": 0.5}, lr_multipliers={"two": 0.5}, **arguments
    )
    old, new = model.trainable_variables[:3], model.trainable_variables
    optimizer.build(old)
    assert list(optimizer.weight_decays.values()) == [(0.0, 0.5)] * 2 + [(0.0, 0.25)]
    eager(optimizer, old)([np.ones(v.shape, "float32") for v in old])
    before = slots(optimizer)

    optimizer.build([new[3], *new[:3]])  # and in another order
    after = slots(optimizer)
    assert before.keys() <= after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)
    assert len(after) > len(before)
    assert optimizer.weight_decays == {
        "net/two/bias": (0.0, 0.25),
        "net/one/kernel": (0.0, 0.5),
        "net/one/bias": (0.0, 0.5),
        "net/two/kernel": (0.0, 0.25),
    }
    assert optimizer.lr_multipliers == {"net/two/bias": 0.5, "net/two/kernel": 0.5}
    assert int(numpy(optimizer.iterations)) == 1

    optimizer.build(new[2:])  # and with fewer
    assert list(optimizer.weight_decays) == ["net/two/kernel", "net/two/bias"]
    optimizer.build(new)  # and back
    for key, value in before.items():
        np.testing.assert_array_equal(slots(optimizer)[key], value)
    assert len(optimizer.variables) == len(after)


def test_a_rebuild_in_other_order_decays_the_right_variable():
    model = named()
    optimizer = SGDW(0.1, 0.9, weight_decays={"one": 0.5, "two": 0.25})
    optimizer.build(model.trainable_variables)
    reordered = model.trainable_variables[::-1]
    optimizer.build(reordered)
    assert zero_update(optimizer, reordered) == [0.75, 0.75, 0.5, 0.5]


def test_a_key_that_hits_nothing_new_is_no_error_at_a_rebuild():
    model = named()
    optimizer = SGDW(0.1, weight_decays={"one": 0.5})
    optimizer.build(model.trainable_variables[:2])
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/one/bias"]


def test_a_key_of_what_was_frozen_since_is_no_error_at_a_rebuild():
    model = named()
    optimizer = SGDW(0.1, weight_decays={"one": 0.5})
    optimizer.build(model.get_layer("one").trainable_variables)
    loaded = SGDW.from_config(optimizer.get_config())
    for built_once in (optimizer, loaded):
        built_once.build(model.get_layer("two").trainable_variables[:1])
        assert not built_once.weight_decays
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/one/bias"]


def test_what_was_frozen_keeps_its_meaning_for_keys_and_its_row():
    """ "b" is a layer, also where that is frozen: it must not become a part of "bias"."""
    optimizer = SGDW(0.1, weight_decay=0.125, weight_decays={"b": 0.5})
    b, bias, other = (make_variable(p, np.ones(2)) for p in ("b/kernel", "a/bias", "c/kernel"))
    optimizer.build([b])
    optimizer.build([other, bias])
    assert optimizer.weight_decays == {"c/kernel": (0.0, 0.125), "a/bias": (0.0, 0.125)}
    loaded = SGDW.from_config(optimizer.get_config())
    for built_again in (optimizer, loaded):
        built_again.build([other, bias, b])
        assert built_again.weight_decays["b/kernel"] == (0.0, 0.5)
    optimizer.build([other])
    for _ in range(2):
        optimizer = SGDW.from_config(optimizer.get_config())
        optimizer.build([other])
    optimizer.build([other, make_variable("d/bias", np.ones(2))])
    assert optimizer.weight_decays["d/bias"] == (0.0, 0.125)


def test_a_new_layer_beside_those_that_are_frozen_since_a_file():
    """Rows that the rules alone would give are in no file: a new layer might pass for theirs."""
    optimizer = SGDW(0.1, weight_decay=0.125, weight_decays={"bias": 0})
    frozen = [make_variable(f"dense{n}/bias", np.ones(2)) for n in ("", "_1")]
    head = make_variable("out/kernel", np.ones(2))
    optimizer.build([*frozen, head])
    optimizer.build([head])
    loaded = SGDW.from_config(optimizer.get_config())
    loaded.build([head])
    loaded.build([head, make_variable("dense_2/bias", np.ones(2))])
    assert loaded.weight_decays == {"out/kernel": (0.0, 0.125)}


def test_what_was_extracted_survives_two_files_while_all_is_frozen():
    model = named(WEAK)
    optimizer = SGDW(0.1, model=model)
    optimizer.build(model.trainable_variables)
    expected = optimizer.weight_decays
    for _ in range(2):
        optimizer = SGDW.from_config(optimizer.get_config())
        optimizer.build([])
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays == expected


@pytest.mark.parametrize("penalty", [None, WEAK])
def test_unfreezing_with_a_model(penalty):
    model = named(penalty)
    model.get_layer("two").trainable = False
    optimizer = SGDW(
        0.1,
        0.9,
        model=model,
        weight_decay=0.25,
        weight_decays={"two/kernel": 0.5},
        lr_multipliers={"two": 0.5},
    )
    model.compile(optimizer, loss="mse")
    model.train_on_batch(np.ones((1, 2)), np.ones((1, 2)))
    assert "net/two/kernel" not in optimizer.weight_decays
    assert optimizer.lr_multipliers == {}
    before = slots(optimizer)

    model.get_layer("two").trainable = True
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    extracted = (0.0, 0.25 if penalty is None else penalty)
    assert optimizer.weight_decays == {
        "net/one/kernel": extracted,
        "net/one/bias": (0.0, 0.25),
        "net/two/kernel": (0.0, 0.5),
        "net/two/bias": extracted,
    }
    assert optimizer.lr_multipliers == {"net/two/kernel": 0.5, "net/two/bias": 0.5}
    after = slots(optimizer)
    assert all(np.array_equal(after[key], value) for key, value in before.items())
    model.train_on_batch(np.ones((1, 2)), np.ones((1, 2)))
    assert int(numpy(optimizer.iterations)) == 2
    assert model.losses == []


def test_a_key_of_a_frozen_layer_without_its_model_is_refused():
    model = named()
    model.get_layer("two").trainable = False
    with pytest.raises(ValueError, match="'two'"):
        SGDW(0.1, weight_decays={"one": 0.5, "two": 0.5}).build(model.trainable_variables)


def test_freezing_and_unfreezing_between_configs():
    model = named(WEAK)
    optimizer = SGDW(0.1, model=model, weight_decays={"two/kernel": 0.5})
    optimizer.build(model.trainable_variables[:2])
    copied = SGDW.from_config(optimizer.get_config())
    copied.build(model.trainable_variables)
    assert copied.weight_decays == {
        "net/one/kernel": (0.0, WEAK),
        "net/two/kernel": (0.0, 0.5),
        "net/two/bias": (0.0, WEAK),
    }


# --- the table ---


def test_init_verbose_prints_once(capsys):
    """What it prints is `explain()`: see test_explain."""
    model = named()
    optimizer = SGDW(0.1, weight_decay=schedules.ExponentialDecay(0.5, 1, 0.5), init_verbose=True)
    assert capsys.readouterr().out == ""
    optimizer.build(model.trainable_variables)
    assert capsys.readouterr().out == f"{optimizer.explain()}\n"
    optimizer.build(model.trainable_variables)  # nothing new
    assert capsys.readouterr().out == ""


def test_nothing_is_printed_by_default(capsys):
    SGDW(CosineWarmRestarts(0.1, 5), weight_decay=0.5).build(named().trainable_variables)
    assert capsys.readouterr().out == ""
