"""get_weight_decays, fill_dict_in_order and the removal of penalties, over a zoo of models."""

import keras
import numpy as np
import pytest
from keras import layers, regularizers
from keras.regularizers import L1, L1L2, L2

from keras_decoupled import fill_dict_in_order, get_weight_decays
from keras_decoupled.decay.regularizers import read_penalty, remove_penalties, remove_penalty

register = keras.saving.register_keras_serializable(package="test_regularizers")


@register
class Scale(layers.Layer):
    """x·w. Its regularizer has another name than those of Keras' layers."""

    def __init__(self, penalty=None, **kwargs):
        super().__init__(**kwargs)
        self.penalty = regularizers.get(penalty)

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), regularizer=self.penalty, name="w")

    def call(self, x):
        return x * self.w

    def get_config(self):
        return {**super().get_config(), "penalty": regularizers.serialize(self.penalty)}


@register
class ReadsItsFactor(Scale):
    """Its `get_config` fails if the regularizer is None."""

    def __init__(self, l2=0.0, **kwargs):
        super().__init__(L2(l2), **kwargs)

    def get_config(self):
        return {**layers.Layer.get_config(self), "l2": self.penalty.l2}


@register
class HardCoded(Scale):
    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), regularizer=L2(0.25), name="w")


@register
class AddsItself(layers.Layer):
    """Its penalty is no variable's regularizer, so it is not a weight decay."""

    def build(self, shape):
        self.code_regularizer = L2(0.5)

    def call(self, x):
        self.add_loss(self.code_regularizer(x))
        return x


@register
class Copies(layers.Dense):
    """Its kernel has a copy of the regularizer that it saves."""

    def build(self, shape):
        super().build(shape)
        self.kernel.regularizer = self.kernel_regularizer and L2(0.1)


@register
class OwnL2(L2):
    """A subclass is another kind: nobody knows what it computes."""


@register
class Subclassed(keras.Model):
    def __init__(self, penalty=None, **kwargs):
        super().__init__(**kwargs)
        self.penalty = regularizers.get(penalty)
        parts = {"kernel_regularizer": self.penalty}
        self.parts = {"blocks": [layers.Dense(4, name=f"block_{i}", **parts) for i in range(2)]}

    def build(self, shape):
        for block in self.parts["blocks"]:
            block.build((None, 4))

    def call(self, x):
        first, second = self.parts["blocks"]
        return second(first(x))

    def get_config(self):
        return {**super().get_config(), "penalty": regularizers.serialize(self.penalty)}


def l2(**factors):
    """Arguments of a layer: l2(kernel=0.1) is {"kernel_regularizer": L2(0.1)}."""
    return {f"{name}_regularizer": L2(factor) for name, factor in factors.items()}


def sequential(*parts, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *parts], name="m")


def dense():
    first = layers.Dense(3, **l2(kernel=0.1), bias_regularizer=L1(0.3), name="a")
    return sequential(first, layers.Dense(2, kernel_regularizer=L1L2(0.5, 0.125), name="b"))


def frozen():
    model = dense()
    model.get_layer("a").trainable = False
    return model


def recurrent():
    inner = sequential(layers.Dense(3, **l2(kernel=0.1), name="inner"), shape=(3,))
    gru = layers.GRU(3, **l2(kernel=0.1, recurrent=0.2), return_sequences=True)
    backward = layers.GRU(3, **l2(kernel=0.3), go_backwards=True, return_sequences=True, name="b")
    cells = [layers.LSTMCell(3, **l2(kernel=0.1)), layers.GRUCell(2, **l2(recurrent=0.2))]
    parts = [
        layers.Embedding(7, 3, **l2(embeddings=0.1)),
        layers.TimeDistributed(inner),
        layers.Bidirectional(gru, backward_layer=backward),
        layers.RNN(layers.StackedRNNCells(cells)),
    ]
    return sequential(*parts, shape=(5,))


def images():
    parts = [
        layers.ConvLSTM2D(2, 1, **l2(kernel=0.1), recurrent_regularizer=L1(0.5)),
        layers.SeparableConv2D(2, 3, **l2(depthwise=0.1, pointwise=0.2)),
        layers.BatchNormalization(**l2(gamma=0.1, beta=0.2)),
        layers.PReLU("ones", L2(0.5)),
        layers.Conv2D(3, 1, kernel_regularizer="l2"),
    ]
    return sequential(*parts, shape=(3, 4, 4, 2))


def attention():
    x = keras.Input((5, 4))
    parts = l2(kernel=0.1, bias=0.1, activity=0.1)
    return keras.Model(x, layers.MultiHeadAttention(2, 3, name="mha", **parts)(x, x))


def nested():
    """Two models inside, and a layer that is used twice."""
    inner = sequential(layers.EinsumDense("ab,bc->ac", 2, **l2(kernel=0.1), name="inner"))
    x, y, twice = keras.Input((4,)), keras.Input((4,)), layers.Dense(2, **l2(kernel=0.2))
    middle = keras.Model(x, inner(x), name="middle")
    return keras.Model(y, twice(twice(middle(y))))


def subclassed():
    model = Subclassed(penalty=L2(0.1))
    model.build((None, 4))
    return model


def lora():
    return sequential(layers.Dense(3, **l2(kernel=0.1), lora_rank=2, name="d"))


def own_layers():
    parts = [Scale(L2(0.1), name="one"), Scale(L2(0.2), name="two"), Copies(2, **l2(kernel=0.1))]
    return sequential(*parts)


def one_object():  # for kernel, bias and activity
    parts = dict.fromkeys(l2(kernel=0, bias=0, activity=0), L2(0.1))
    return sequential(layers.Dense(3, **parts), layers.Dense(2, **parts))


# The decays in the order of trainable_variables: l2, or l1+l2, each before the end of a path.
ZOO = {
    dense: "0.1 a/kernel 0.3+0 a/bias 0.5+0.125 b/kernel",
    frozen: "0.5+0.125 b/kernel",
    recurrent: "0.1 embedding/embeddings 0.1 inner/kernel 0.1 forward_gru/gru_cell/kernel "
    "0.2 forward_gru/gru_cell/recurrent_kernel 0.3 b/gru_cell/kernel 0.1 lstm_cell/kernel "
    "0.2 gru_cell/recurrent_kernel",
    images: "0.1 conv_lstm_cell/kernel 0.5+0 recurrent_kernel 0.1 depthwise_kernel "
    "0.2 pointwise_kernel 0.1 gamma 0.2 beta 0.5 alpha 0.01 conv2d/kernel",
    attention: "0.1 query/kernel 0.1 query/bias 0.1 key/kernel 0.1 key/bias 0.1 value/kernel "
    "0.1 value/bias 0.1 attention_output/kernel 0.1 attention_output/bias",
    nested: "0.1 inner/kernel 0.2 dense/kernel",
    subclassed: "0.1 block_0/kernel 0.1 block_1/kernel",
    lora: "0.1 lora_kernel_a 0.1 lora_kernel_b",
    one_object: "0.1 kernel 0.1 bias 0.1 kernel 0.1 bias",
    own_layers: "0.1 one/w 0.2 two/w 0.1 copies/kernel",
}
HAVE_ACTIVITY = (attention, one_object)
KERAS_3_15 = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 15)


def penalized(model):
    return [v.path for v in model.variables if v.regularizer is not None]


def loss_of(model):
    return sum(float(keras.ops.convert_to_numpy(x)) for x in model.losses)


def reloaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras", compile=False)


def inputs_for(model):
    shape = (4,) if isinstance(model, Subclassed) else model.inputs[0].shape[1:]
    return np.random.default_rng(0).integers(0, 5, (3, *shape)).astype("float32")


def penalties_in(config, activity=False):
    """The weight (or else the activity) regularizers anywhere in a model's config."""
    if isinstance(config, list | tuple):
        return [found for item in config for found in penalties_in(item, activity)]
    if not isinstance(config, dict):
        return []
    names = [k for k, v in config.items() if k.endswith(("_regularizer", "penalty")) and v]
    own = [(name, config[name]["config"]) for name in names if ("activity" in name) == activity]
    return own + [found for item in config.values() for found in penalties_in(item, activity)]


# Before 3.15 Keras saves no weights of layers in a list in a dict: they are random after a load.
@pytest.mark.parametrize(
    "make",
    [make for make in ZOO if KERAS_3_15 or make is not subclassed],
    ids=lambda make: make.__name__,
)
def test_penalties_leave_and_stay_away(make, tmp_path):
    model = make()
    x = inputs_for(model)
    before = keras.ops.convert_to_numpy(model(x))
    owned = {v.path: v.regularizer for v in model.variables if v.regularizer is not None}
    configs = [regularizer.get_config() for regularizer in owned.values()]
    activity = penalties_in(model.get_config(), activity=True)
    assert penalties_in(model.get_config())
    assert bool(activity) == (make in HAVE_ACTIVITY)

    # They are found in order.
    decays = get_weight_decays(model)
    assert list(decays) == [v.path for v in model.trainable_variables if v.path in decays]
    words = iter(ZOO[make].split())
    expected = [(end, amounts.rpartition("+")) for amounts, end in zip(words, words, strict=True)]
    for (path, found), (end, (l1, _, l2)) in zip(decays.items(), expected, strict=True):
        assert path.endswith(end)
        assert found == (float(l1 or 0), float(l2))
        assert [type(number) for number in found] == [float, float]
    assert penalized(model) == list(owned)

    # They leave, and the user's objects do not change.
    assert get_weight_decays(model, zero_penalties=True) == decays
    assert get_weight_decays(model) == decays == get_weight_decays(model, zero_penalties=True)
    assert [regularizer.get_config() for regularizer in owned.values()] == configs

    # They stay away after a load, and all the rest is as it was.
    once = reloaded(model, tmp_path)
    for m in (model, once, type(model).from_config(model.get_config())):
        if not m.built:
            m.build((None, 4))
        assert penalized(m) == penalties_in(m.get_config()) == []
        assert penalties_in(m.get_config(), activity=True) == activity
        m.trainable = True  # the penalties of frozen layers left as well
        assert (loss_of(m) == 0) or make in HAVE_ACTIVITY
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x)), before)
    after = keras.ops.convert_to_numpy(once(x))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    assert len(once.variables) == len(model.variables)  # the parts of LoRA stay apart
    assert get_weight_decays(once) == {}  # only the variables of the first model remember


def test_a_shared_regularizer_object_keeps_working_elsewhere():
    penalty = L2(0.5)
    ours, other = (sequential(layers.Dense(3, kernel_regularizer=penalty)) for _ in range(2))
    loss = loss_of(other)
    get_weight_decays(ours, zero_penalties=True)
    assert loss_of(ours) == 0
    assert loss_of(other) == loss > 0
    assert penalty.l2 == 0.5
    assert other.layers[0].kernel_regularizer is penalty
    assert list(get_weight_decays(other).values()) == [(0.0, 0.5)]


def test_a_shared_layer_loses_its_penalty_in_both_models_and_both_remember():
    layer = layers.Dense(3, **l2(kernel=0.5))
    ours, other = sequential(layer), sequential(layer)
    decays = get_weight_decays(ours, zero_penalties=True)
    assert loss_of(other) == 0
    assert get_weight_decays(other) == decays


def test_unfreezing_finds_what_was_taken_while_frozen():
    model = frozen()
    get_weight_decays(model, zero_penalties=True)
    model.get_layer("a").trainable = True
    assert list(get_weight_decays(model).values()) == [(0.0, 0.1), (0.3, 0.0), (0.5, 0.125)]


def test_factors_of_zero_are_listed_and_shared_paths_are_numbered():
    def inner(penalty):
        inputs = keras.Input((2,))
        twin = layers.Dense(2, kernel_regularizer=penalty, name="d")
        return keras.Model(inputs, twin(inputs))

    x = keras.Input((2,))
    model = keras.Model(x, [inner(penalty)(x) for penalty in (L2(0.0), L2(0.5))])
    decays = {"d/kernel": (0.0, 0.0), "d/kernel#2": (0.0, 0.5)}
    assert get_weight_decays(model, zero_penalties=True) == decays == get_weight_decays(model)


def test_a_regularizer_set_later_beats_what_is_remembered():
    model = sequential(layers.Dense(3, **l2(kernel=0.1), name="d"))
    get_weight_decays(model, zero_penalties=True)
    model.layers[0].kernel.regularizer = L1(0.5)
    assert get_weight_decays(model) == {"m/d/kernel": (0.5, 0.0)}
    model.layers[0].kernel.regularizer = OwnL2(0.5)
    with pytest.warns(UserWarning, match=r"m/d/kernel \(OwnL2\)"):
        assert get_weight_decays(model) == {}


@register
def a_function(w):
    return 0.5


# Before 3.15 Keras refuses a function as the regularizer of a variable.
@pytest.mark.parametrize(
    ("other", "name"),
    [(OwnL2(0.1), "OwnL2"), (regularizers.OrthogonalRegularizer(0.1), "OrthogonalRegularizer")]
    + [(a_function, "a_function")] * KERAS_3_15,
)
def test_other_kinds_stay_in_the_loss_with_one_warning(other, name, tmp_path):
    parts = {"kernel_regularizer": other, "bias_regularizer": L2(0.25)}
    model = sequential(layers.Dense(3, name="p", **parts), layers.Dense(2, name="q", **parts))
    with pytest.warns(UserWarning, match="exactly L1, L2 or L1L2") as caught:
        decays = get_weight_decays(model, zero_penalties=True)
    assert decays == {"m/p/bias": (0.0, 0.25), "m/q/bias": (0.0, 0.25)}
    (message,) = [str(w.message) for w in caught]
    assert f"m/p/kernel ({name}), m/q/kernel ({name})" in message
    assert "`weight_decays`" in message
    for m in (model, reloaded(model, tmp_path)):
        assert [path.removeprefix("m/") for path in penalized(m)] == ["p/kernel", "q/kernel"]
        assert loss_of(m) > 0


def test_a_layer_that_saves_its_factor_can_still_be_saved(tmp_path):
    model = sequential(ReadsItsFactor(0.5, name="r"))
    assert get_weight_decays(model, zero_penalties=True) == {"m/r/w": (0.0, 0.5)}
    again = reloaded(model, tmp_path)
    assert loss_of(again) == 0
    assert list(get_weight_decays(again).values()) == [(0.0, 0.0)]


def test_a_layer_that_cannot_be_saved_loses_its_penalty_too():
    class WithoutConfig(Scale):
        def get_config(self):
            raise NotImplementedError

    model = sequential(WithoutConfig(L2(0.5), name="w"))
    assert get_weight_decays(model, zero_penalties=True) == {"m/w/w": (0.0, 0.5)}
    assert loss_of(model) == 0


def test_a_penalty_that_a_layer_adds_itself_stays(tmp_path):
    model = sequential(layers.Dense(2, **l2(kernel=0.5)), AddsItself())
    get_weight_decays(model, zero_penalties=True)
    for m in (model, reloaded(model, tmp_path)):
        m(np.ones((1, 4)))
        assert loss_of(m) > 0


def test_a_hard_coded_penalty_leaves_and_can_be_taken_again(tmp_path):
    model = sequential(HardCoded(name="h"))
    assert get_weight_decays(model, zero_penalties=True) == {"m/h/w": (0.0, 0.25)}
    assert loss_of(model) == 0
    model = reloaded(model, tmp_path)
    assert len(penalized(model)) == 1  # made again, for the optimizer's build to remove
    remove_penalty(model.trainable_variables[0])
    assert loss_of(model) == 0
    assert list(get_weight_decays(model).values()) == [(0.0, 0.25)]


def test_what_has_no_penalty():
    model = dense()
    assert read_penalty(model.get_layer("b").bias) is None
    assert read_penalty(object()) is None  # a raw tf.Variable has no regularizer either
    remove_penalty(object())


@pytest.mark.parametrize("function", [get_weight_decays, remove_penalties])
def test_what_is_not_a_built_model(function):
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Model\. Received: model=<Dense"):
        function(layers.Dense(2))
    words = r"unbuilt model 'late'\. Call model\.build\(input_shape\)"
    with pytest.raises(ValueError, match=words):
        function(keras.Sequential([layers.Dense(2)], name="late"))


# --- fill_dict_in_order ---


def test_fill_dict_in_order():
    decays = {"b": (0.0, 0.0), "a": (0.0, 0.1), "c": (0.0, 0.0)}
    filled = fill_dict_in_order(decays, [(0, 1e-4), [1e-6, np.float32(0.5)], 2])
    assert list(filled.items()) == [("b", (0.0, 1e-4)), ("a", (1e-6, 0.5)), ("c", 2.0)]
    assert decays == {"b": (0.0, 0.0), "a": (0.0, 0.1), "c": (0.0, 0.0)}
    assert fill_dict_in_order({}, []) == {}


NO_DECAYS = (-1, (0, -1e-9), (0, np.nan), np.inf, (1,), (1, 2, 3), ())


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        *(([0] * n, ValueError, rf"2 keys.*Received: {n} values.*\['x', 'y'\]") for n in (1, 3)),
        *(([x, 0], ValueError, r"`values\[0\].*Received: .*no decay") for x in NO_DECAYS),
        *(([x, 0], TypeError, r"`values\[0\].*Received: .*no decay") for x in ("12", (0, True))),
        ({"x": 1, "y": 2}, TypeError, "`values` must be a list"),
    ],
)
def test_what_fill_dict_in_order_refuses(values, error, words):
    with pytest.raises(error, match=words):
        fill_dict_in_order({"x": 0, "y": 0}, values)
