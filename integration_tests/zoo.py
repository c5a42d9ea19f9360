"""Models of the kinds that Keras names, nests, saves and loads differently."""

import keras
from keras import layers

from keras_decoupled import Decay


@keras.saving.register_keras_serializable(package="zoo")
class Subclassed(keras.Model):
    """Layers in attributes and in a list, one of them with a regularizer written in its code."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Dense(4)
        self.blocks = [HardCoded(4), layers.Dense(4, kernel_regularizer="l2")]
        self.head = layers.Dense(1)

    def call(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@keras.saving.register_keras_serializable(package="zoo")
class HardCoded(layers.Layer):
    """Its penalty comes back with every load: nothing in the config says otherwise."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        self.kernel = self.add_weight(
            shape=(input_shape[-1], self.units),
            name="kernel",
            regularizer=keras.regularizers.L2(3e-4),
        )

    def call(self, x):
        return keras.ops.matmul(x, self.kernel)

    def get_config(self):
        return super().get_config() | {"units": self.units}


def _sequential(*parts):
    return keras.Sequential(list(parts))


def dense():
    return _sequential(
        keras.Input((4,)),
        layers.Dense(4, kernel_regularizer="l2"),
        layers.Dense(4),
        layers.Dense(1),
    ), (4,)


def convolution():
    x = keras.Input((6, 6, 1))
    y = layers.Conv2D(2, 3, kernel_regularizer=keras.regularizers.L1(2e-4), name="conv1")(x)
    y = layers.BatchNormalization(gamma_regularizer="l2")(y)
    y = layers.Conv2D(2, 3, name="conv10")(y)
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(y))), (6, 6, 1)


def separable():
    return _sequential(
        keras.Input((6, 6, 2)),
        layers.SeparableConv2D(3, 3, depthwise_regularizer="l1", pointwise_regularizer="l2"),
        layers.Flatten(),
        layers.Dense(1),
    ), (6, 6, 2)


def lstm():
    return _sequential(
        keras.Input((5, 3)),
        layers.LSTM(4, kernel_regularizer="l1", recurrent_regularizer="l2", name="lstm_1"),
        layers.Dense(1),
    ), (5, 3)


def bidirectional():
    return _sequential(
        keras.Input((5, 3)),
        layers.Bidirectional(layers.GRU(3, recurrent_regularizer="l2"), name="bi"),
        layers.Dense(1),
    ), (5, 3)


def stacked_cells():
    cells = [layers.GRUCell(3, kernel_regularizer="l2"), layers.LSTMCell(3)]
    return _sequential(
        keras.Input((5, 3)), layers.RNN(layers.StackedRNNCells(cells)), layers.Dense(1)
    ), (5, 3)


def time_distributed():
    return _sequential(
        keras.Input((5, 3)),
        layers.TimeDistributed(layers.Dense(4, kernel_regularizer="l2")),
        layers.Flatten(),
        layers.Dense(1),
    ), (5, 3)


def attention():
    x = keras.Input((5, 4))
    y = layers.MultiHeadAttention(2, 3, kernel_regularizer="l2")(x, x)
    y = layers.LayerNormalization()(layers.Add()([x, y]))
    return keras.Model(x, layers.Dense(1)(layers.GlobalAveragePooling1D()(y))), (5, 4)


def embedding():
    x = keras.Input((5, 3))
    tokens = keras.ops.cast(6 * x[:, :, 0], "int32")
    y = layers.Embedding(7, 3, embeddings_regularizer="l2")(tokens)
    return keras.Model(x, layers.Dense(1)(layers.Flatten()(y))), (5, 3)


def nested():
    inner = _sequential(
        keras.Input((4,)), layers.Dense(4, kernel_regularizer="l2"), layers.Dense(3)
    )
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(1)(inner(layers.Dense(4)(x)))), (4,)


def shared():
    layer = layers.Dense(4, kernel_regularizer="l2")
    x = keras.Input((4,))
    return keras.Model(x, layers.Dense(1)(layer(layer(x)))), (4,)


@keras.saving.register_keras_serializable(package="zoo")
class Twins(keras.Model):
    """Two layers of one name, so two variables of one path."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = layers.Dense(4, name="d", kernel_regularizer="l2")
        self.second = layers.Dense(4, name="d")
        self.head = layers.Dense(1, name="head")

    def call(self, x):
        return self.head(self.second(self.first(x)))


def twins():
    model = Twins()
    model(keras.ops.zeros((1, 4)))
    return model, (4,)


def lora():
    model, shape = dense()
    model.layers[0].enable_lora(2)
    return model, shape


def subclassed():
    model = Subclassed()
    model(keras.ops.zeros((1, 4)))
    return model, (4,)


def decays(model):
    """Decays of several kinds for any of them; what has a regularizer is left to `model=`."""
    last_kernel = model.trainable_variables[-2].path
    return {
        "weight_decay": Decay(2e-3, towards="initial", cautious=True),
        "weight_decays": {
            "bias": (1e-6, 2e-6),
            last_kernel: Decay(5e-5, 1e-5, towards="initial", eta_power=0, soft_threshold=True),
        },
    }


MODELS = (
    dense, convolution, separable, lstm, bidirectional, stacked_cells, time_distributed,
    attention, embedding, nested, shared, twins, lora, subclassed,
)  # fmt: skip
