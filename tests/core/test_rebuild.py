"""What each variable keeps while the variables change under one optimizer: state, decay and multiplier.

Layers are unfrozen and frozen again. What is known stays, to the bit; what is new starts fresh.
"""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import BACKEND, VARIANTS, make_variable, numpy
from keras_decoupled import SGDW, AdamW, Decay
from slots import EVERY, assert_same, contents, make, of_slot, pool
from small import WEAK, again, named, ones
from stock import FAST, follow_unfreezing, pair
from training import DECAY, X, Y, oracle_of, tensors, values

EMA = {"use_ema": True, "ema_momentum": 0.5}
ACCUMULATION = {"gradient_accumulation_steps": 2}
# With a float32 copy for bfloat16, every slot that there is.
ALL = {"weight_decay": Decay(0.1, towards="initial"), **EMA, **ACCUMULATION}

# --- state, and the order of `optimizer.variables` ---


@pytest.mark.parametrize("name", EVERY)
def test_what_is_known_stays_and_what_is_new_starts_fresh(name):
    """The optimizer variables are those of a build on all at once, in that order; known ones keep their values."""
    ours, optimizer, fresh = pool("bfloat16"), make(name, **ALL), make(name, **ALL)
    fresh.build(list(pool("bfloat16").values()))
    expected = contents(fresh)
    slots = [slot for slot, label in expected if label]
    assert slots == sorted(slots, key=slots.index)  # one slot of all, then the next
    optimizer.build([ours[n] for n in "ca"])
    places = contents(optimizer)
    for i, ((slot, label), v) in enumerate(zip(places, optimizer.variables, strict=True)):
        if label or slot not in optimizer._kd.settings:
            v.assign(np.full(v.shape, 10 + i))  # each another number
    before, objects = contents(optimizer), {id(v) for v in optimizer.variables}
    optimizer.build(list(ours.values()))
    after = contents(optimizer)
    assert_same(after, before, in_order=False)
    assert list(after) == list(expected)
    assert_same(after, expected | before)
    assert [v.dtype for v in optimizer.variables] == [v.dtype for v in fresh.variables]
    assert objects < {id(v) for v in optimizer.variables}  # on JAX a trainer holds on to them
    for names in ("bd", "abcd", "dcba", "ca", "abcd"):
        optimizer.build([ours[n] for n in names])  # what left keeps its values, and comes last
        assert_same(contents(optimizer), after, in_order=False)
        has_left = [label[4] not in names for _, label in contents(optimizer) if label]
        assert has_left == sorted(has_left)
    assert_same(contents(optimizer), after)


@keras.saving.register_keras_serializable(package="test_rebuild")
class WithMore(SGDW):
    """A subclass with a slot that the mechanism does not know, and a scalar."""

    def build(self, variables):
        if not self.built:
            self.add_variable((), name="more")
        super().build(variables)
        self.more = self.add_optimizer_variables(list(variables), "more_slot")


def test_a_subclass_keeps_its_variables():
    ours = pool()
    optimizer = WithMore(0.1, momentum=0.9, weight_decay=0.1)
    for names in ("c", "abc"):
        optimizer.build([ours[n] for n in names])
        places = list(contents(optimizer))
        assert places.count(("more", None)) == 1
        assert len(optimizer.more) == len(names)
        for slot in ("more_slot", "momentum"):
            assert sorted(filter(None, of_slot(optimizer, slot))) == sorted(
                f"net/{n}/w" for n in names
            )


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("name", ["adafactor", "lamb"])
def test_unfreezing_a_stock_class(name, fast):
    """As if all had been known from the start, and the new ones had had no gradient yet."""
    follow_unfreezing(*pair(name, fast), fast=fast)


def grads(k, n):
    return np.random.default_rng(k).normal(size=(n, 2)).astype("float32")


def two(path="x", other="y"):
    return [make_variable(f"{n}/w", np.array([1.0, -2.0])) for n in (path, other)]


@pytest.mark.parametrize(
    ("name", "arguments"), [*((name, EMA) for name in VARIANTS), ("nadamw", ACCUMULATION)]
)
def test_unknown_variables_in_apply(name, arguments):
    """The known one goes on as if nothing had happened, in mid-accumulation and in another place too.

    The new one has moments of 0, and the bias correction of the count of updates.
    """
    (known, new), (twin, _) = two(), two()
    optimizer, alone = (make(name, **arguments) for _ in range(2))
    micro_batches = arguments.get("gradient_accumulation_steps", 1)
    run, mean = oracle_of(name, values([new])), 0.0
    run.k = 3 // micro_batches
    for k in range(6):
        g = grads(k, 1)
        alone.apply(tensors(g), [twin])
        if k < 3:
            optimizer.apply(tensors(g), [known])
        else:
            optimizer.apply(tensors([-g[0], g[0]]), [new, known])
            mean = mean - g[0] / micro_batches
            if (k + 1) % micro_batches == 0:
                run.step([mean])
                mean = 0.0
        assert np.array_equal(numpy(known), numpy(twin))
    assert_same(contents(optimizer), contents(alone), in_order=False)
    np.testing.assert_allclose(numpy(new), run.values[0], atol=1e-6)
    (third,) = ones("z/w")
    optimizer.apply(tensors(grads(6, 2)), [third, known])  # still built on what is not listed
    assert optimizer.weight_decays == {f"{n}/w": (0.0, DECAY) for n in "yxz"}


def test_layers_frozen_on_purpose():
    """Whoever freezes and asks for a build on the same variables means to go on with all of them."""
    x, y = variables = two()
    optimizer = make("adamw")
    optimizer.build(variables)

    def apply():
        state, weights = ([v.value for v in group] for group in (optimizer.variables, variables))
        return optimizer.stateless_apply(state, tensors(grads(0, 2)), weights)

    passed = contextlib.nullcontext()
    if BACKEND == "tensorflow":  # past our check it is Keras that refuses
        passed = pytest.raises(ValueError, match="not supported with the TensorFlow backend")
    for layer, thaw in ((y, x), (x, y)):
        thaw.trainable = True
        optimizer.build(variables)
        layer.trainable = False
        with pytest.raises(ValueError, match="of which 1 are frozen"):
            apply()
        optimizer.build(variables)
        with passed:
            apply()


# --- averages ---


@pytest.mark.parametrize("builds", ["x", "x, xy", "xy, x"])
def test_a_new_average_starts_at_its_variable(builds):
    """Keras starts averages in update 0 alone; zeros would pull the variable to 0 at the end."""
    by_name = dict(zip("xy", two(), strict=True))
    optimizer = make("sgdw", weight_decay=0, use_ema=True, ema_momentum=0.99)
    zero = np.zeros(2, "float32")
    for names in builds.split(", "):
        optimizer.build([by_name[n] for n in names])
    for _ in range(2):
        optimizer.apply(tensors([zero]), [by_name["x"]])
    by_name["y"].assign([3.0, 4.0] if builds == "x" else [1.0, -2.0])
    optimizer.apply(tensors([zero, zero]), list(by_name.values()))
    optimizer.finalize_variable_values(list(by_name.values()))
    expected = [[1.0, -2.0], [3.0, 4.0] if builds == "x" else [1.0, -2.0]]
    np.testing.assert_allclose(values(by_name.values()), expected, rtol=1e-6)


def test_a_variable_unfrozen_after_the_last_update_has_no_average():
    """`fit` sets what is trainable at its end, and a callback may have unfrozen a layer just then."""
    known, new = two()
    optimizer = make("adamw", use_ema=True, ema_momentum=0.5)
    for k in range(2):
        optimizer.apply(tensors(grads(k, 1)), [known])
    optimizer.finalize_variable_values([known, new])
    assert np.array_equal(numpy(known), of_slot(optimizer, "average")["x/w"])
    np.testing.assert_array_equal(numpy(new), [1.0, -2.0])


# --- through fit ---


def two_branches():
    """X → a(X) + b(X), in which a is frozen; a comes first."""
    x = keras.Input((3,))
    a = layers.Dense(2, name="a", trainable=False)(x)
    b = layers.Dense(2, name="b")(x)
    return keras.Model(x, layers.Add()([a, b]))


def compile_and_fit(model, optimizer, epochs=2, build=True, **arguments):
    model.compile(optimizer, loss="mse", **arguments)
    if build and optimizer.built:
        optimizer.build(model.trainable_variables)
    model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0)


def assert_moved(model, before):
    """Every weight that may be trained has moved, and no other."""
    for variable in model.weights:
        assert np.all(np.isfinite(numpy(variable)))
        moved = not np.array_equal(before[variable.path], numpy(variable))
        assert moved == variable.trainable, variable.path


def weights(model):
    return {v.path: numpy(v) for v in model.weights}


def test_a_frozen_layer_stays_where_averages_overwrite():
    """Frozen again, a layer is not set to the average of what it was."""
    model = two_branches()
    model.get_layer("a").trainable = True
    optimizer = make("adamw", use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
    compile_and_fit(model, optimizer)
    model.get_layer("a").trainable = False
    before = weights(model)
    compile_and_fit(model, optimizer, epochs=4)
    assert_moved(model, before)


def unfreeze(model):
    model.get_layer("a").trainable = True


def swap(model):
    model.get_layer("b").trainable = False
    unfreeze(model)


def freeze_one(model):
    model.get_layer("b").kernel.trainable = False


if BACKEND == "jax":

    @pytest.mark.parametrize(
        ("change", "wrapped"), [(unfreeze, True), (freeze_one, False), (swap, False)]
    )
    def test_fit_without_build_asks_for_it(change, wrapped):
        """Inside a compiled step no variable can be made. As many variables as before must not pass for the same."""
        model, optimizer = two_branches(), make("adamw")
        if wrapped:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        compile_and_fit(model, optimizer)
        change(model)
        with pytest.raises((ValueError, RuntimeError), match=r"optimizer\.build"):
            compile_and_fit(model, optimizer, build=False)

else:

    @pytest.mark.parametrize(
        ("change", "arguments", "wrapped", "jit_compile"),
        [
            (unfreeze, {**EMA, **ACCUMULATION}, False, False),
            (unfreeze, {}, True, False),
            (freeze_one, {}, False, BACKEND == "tensorflow"),
        ],
    )
    def test_fit_without_build(change, arguments, wrapped, jit_compile):
        """apply finds the new variables by itself; the known ones go on with what they had."""
        model, optimizer = two_branches(), make("nadamw", **arguments)
        outer = optimizer
        if wrapped:
            outer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        compile_and_fit(model, outer, jit_compile=jit_compile)
        before, known = weights(model), {id(v) for v in optimizer.variables}
        change(model)
        compile_and_fit(model, outer, build=False, jit_compile=jit_compile)
        assert_moved(model, before)
        assert known <= {id(v) for v in optimizer.variables}
        accumulated = arguments.get("gradient_accumulation_steps", 1)
        assert int(numpy(optimizer.iterations)) == 4 // accumulated
        if optimizer.use_ema:  # fit ends by putting each variable's own average into it
            averages = of_slot(optimizer, "average")
            for variable in model.trainable_variables:
                assert np.array_equal(numpy(variable), averages[variable.path]), variable.path

    def test_an_average_that_is_new_in_fit_starts_at_its_variable():
        """With a momentum of 1 it stays there, and `fit` ends by putting it into the variable."""
        model, optimizer = two_branches(), make("adamw", use_ema=True, ema_momentum=1.0)
        compile_and_fit(model, optimizer)
        start = values(model.get_layer("a").weights)
        unfreeze(model)
        compile_and_fit(model, optimizer, build=False)
        for old, new in zip(start, values(model.get_layer("a").weights), strict=True):
            assert np.array_equal(old, new)


def test_other_layers_than_before_ask_for_a_build():
    """They could be another model. On JAX their names are not seen: what was frozen since is the only sign."""
    model, optimizer = two_branches(), make("nadamw")
    compile_and_fit(model, optimizer)
    swap(model)
    model.compile(optimizer, loss="mse")
    before = weights(model)
    with pytest.raises(ValueError, match=r"optimizer\.build"):
        model.train_on_batch(X, Y)
    compile_and_fit(model, optimizer)
    assert_moved(model, before)


# --- decays and multipliers ---


def test_keys_are_an_error_at_the_first_build_only():
    """Later they may hit nothing new, or what was frozen since; from a file too."""
    model = named()
    one, ours = model.get_layer("one").trainable_variables, model.trainable_variables
    optimizer = SGDW(0.1, weight_decays={"one": 0.5})
    optimizer.build(one)
    for built_once in (optimizer, again(optimizer)):
        built_once.build(ours[2:3])
        assert not built_once.weight_decays
    for _ in range(2):
        optimizer.build(ours)
        assert list(optimizer.weight_decays) == ["net/one/kernel", "net/one/bias"]
    with pytest.raises(ValueError, match="'two'"):  # a frozen layer, without its model
        SGDW(0.1, weight_decays={"one": 0.5, "two": 0.5}).build(one)


def test_build_on_nothing():
    """It resolves nothing, so no key can be wrong yet; the next build is the first."""
    optimizer = AdamW(weight_decay=0.5)
    optimizer.build([])
    assert optimizer.built
    assert optimizer.weight_decays == optimizer.lr_multipliers == {}
    optimizer.build(named().trainable_variables)
    assert len(optimizer.weight_decays) == 4
    optimizer = AdamW(weight_decays={"one": 0.5, "none": 0.5})
    optimizer.build([])
    with pytest.raises(ValueError, match="'none'"):
        optimizer.build(named().trainable_variables)
    keras.Sequential([layers.Flatten()]).compile(AdamW(weight_decay=0.5), loss="mse")


def test_what_was_frozen_keeps_its_meaning_for_keys_and_its_row():
    """ "b" is a layer, also where that is frozen: it must not become a part of "bias"."""
    optimizer = SGDW(0.1, weight_decay=0.125, weight_decays={"b": 0.5})
    b, bias, other, later = ones("b/kernel", "a/bias", "c/kernel", "d/bias")
    optimizer.build([b])
    optimizer.build([other, bias])
    assert optimizer.weight_decays == {"c/kernel": (0.0, 0.125), "a/bias": (0.0, 0.125)}
    for built_again in (optimizer, again(optimizer)):
        built_again.build([other, bias, b])
        assert built_again.weight_decays["b/kernel"] == (0.0, 0.5)
    optimizer.build([other])
    for _ in range(2):
        optimizer = again(optimizer)
        optimizer.build([other])
    optimizer.build([other, later])
    assert optimizer.weight_decays["d/bias"] == (0.0, 0.125)


def test_a_new_layer_beside_those_that_are_frozen_since_a_file():
    """Rows that the rules alone would give are in no file: a new layer might pass for theirs."""
    optimizer = SGDW(0.1, weight_decay=0.125, weight_decays={"bias": 0})
    *frozen, head, new = ones("dense/bias", "dense_1/bias", "out/kernel", "dense_2/bias")
    optimizer.build([*frozen, head])
    optimizer.build([head])
    loaded = again(optimizer)
    loaded.build([head])
    loaded.build([head, new])
    assert loaded.weight_decays == {"out/kernel": (0.0, 0.125)}


def test_a_saved_row_is_given_once():
    optimizer = AdamW(weight_decay=1e-4, lr_multipliers={"dense_4": 10.0})
    optimizer.build(ones("m/dense_4/kernel"))
    loaded = again(optimizer)
    head, body = ones("m/dense_6/kernel", "m/dense_5/kernel")
    loaded.build([head])
    loaded.build([body, head])
    assert loaded.lr_multipliers == {"m/dense_6/kernel": 10.0}


def test_what_a_model_says_waits_for_its_frozen_layers():
    """Keys and regularizers; through files too, of an optimizer that was built on a part or on nothing."""
    model = named(*[regularizers.L2(WEAK)] * 2)
    ours = model.trainable_variables
    decays = [WEAK, 0.25, 0.5, WEAK]
    expected = {v.path: (0.0, l2) for v, l2 in zip(ours, decays, strict=True)}
    rules = {"weight_decays": {"two/kernel": 0.5}, "lr_multipliers": {"two": 0.5}}
    for files, part in ((0, ours[:2]), (2, ours[:2]), (2, [])):
        optimizer = SGDW(0.1, model=model, weight_decay=0.25, **rules)
        optimizer.build(part or ours)
        for _ in range(files):
            optimizer = again(optimizer)
            optimizer.build(part)
        assert optimizer.weight_decays == {v.path: expected[v.path] for v in part}
        optimizer.build(ours)
        assert optimizer.weight_decays == expected
        assert optimizer.lr_multipliers == {v.path: 0.5 for v in ours if "two" in v.path}
        assert model.losses == []


def test_a_copy_on_another_model_leaves_that_models_penalties():
    def net(l2):
        return keras.Sequential([keras.Input((4,)), layers.Dense(4, kernel_regularizer=l2)])

    optimizer, other = AdamW(model=net(regularizers.L2(1e-4))), net(regularizers.L2(5e-2))
    again(optimizer).build(other.trainable_variables)
    assert len(other.losses) == 1
    with pytest.raises(ValueError, match="none is that model's"):
        optimizer.build(other.trainable_variables)


# --- what is printed ---


def test_init_verbose_prints_once(capsys):
    """What it prints is `explain()`; by default nothing is printed."""
    ours = named().trainable_variables
    decay = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    for verbose in (True, False):
        optimizer = SGDW(0.1, weight_decay=decay, **({"init_verbose": True} if verbose else {}))
        assert capsys.readouterr().out == ""
        optimizer.build(ours)
        assert capsys.readouterr().out == (f"{optimizer.explain()}\n" if verbose else "")
        optimizer.build(ours)  # nothing new
        assert capsys.readouterr().out == ""
