"""keras-hub: who is decayed and at which rate in BERT, ViT and Llama, and what its `Task` forgets.

A `Task` has a `compile` of its own, and `load_model` brings it back with stock Adam, whatever it was
compiled with. There are two ways round: train the plain model inside it; or compile the loaded one
again, build the optimizer, and load the weights, which brings the optimizer's state too.
"""

import re

import keras
import keras_hub
import numpy as np
import pytest

from keras_decoupled import (
    AdamW,
    CosineWarmRestarts,
    layerwise_lr_multipliers,
    layerwise_weight_decays,
    no_decay,
)

pytestmark = [
    # keras-hub's own: a layer gets a mask that it does not ask for.
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),
    # Llama's output layer, under a head of ours.
    pytest.mark.filterwarnings(r"ignore:Gradients do not exist for variables \['token_embedding/r"),
]
models = keras_hub.models
BLOCKS = 3
SIZE = {"num_layers": BLOCKS, "hidden_dim": 4, "intermediate_dim": 8}
TEXT = {"token_ids": np.arange(24, dtype="int32").reshape(4, 6) % 20}
TEXT["padding_mask"] = np.ones_like(TEXT["token_ids"])
LABELS = np.array([0, 1, 1, 0])
# How a backbone is made, what it is fed, and what BEiT would call depth 0 and a block.
BACKBONES = {
    "BERT": (
        lambda: models.BertBackbone(20, **SIZE, num_heads=2, max_sequence_length=6, dropout=0.0),
        TEXT | {"segment_ids": np.zeros_like(TEXT["token_ids"])},
        r"(token|position|segment)_embedding/|embeddings_layer_norm/",
        r"transformer_layer_(\d+)/",
        0,
    ),
    "ViT": (
        lambda: models.ViTBackbone(
            (8, 8, 3), 4, num_layers=BLOCKS, num_heads=2, hidden_dim=4, mlp_dim=8
        ),
        np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32"),
        r"vit_patching_and_embedding/",
        r"vit_encoder/transformer_block_(\d+)/",
        1,
    ),
    "Llama": (
        lambda: models.LlamaBackbone(20, **SIZE, num_query_heads=2, num_key_value_heads=1),
        TEXT,
        r"token_embedding/embeddings",
        r"transformer_layer_(\d+)/",
        0,
    ),
}
each = pytest.mark.parametrize("name", BACKBONES)


def with_head(backbone):
    """A plain model; a keras-hub Task needs TensorFlow, or grain, to be fed."""
    x = backbone(backbone.input)
    x = x["pooled_output"] if isinstance(x, dict) else x[:, -1]
    return keras.Model(backbone.input, keras.layers.Dense(2, name="head")(x))


def rules_of(model):
    return {
        "weight_decay": 0.01,
        "weight_decays": no_decay(model),
        "lr_multipliers": layerwise_lr_multipliers(model, 0.75),
    }


def compiled(model):
    optimizer = AdamW(CosineWarmRestarts(0.01, 4), **rules_of(model))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def depth(path, at_0, block, first):
    """As BEiT has it, of L + 1."""
    if re.match(at_0, path):
        return 0
    found = re.match(block, path)
    return int(found[1]) - first + 1 if found else BLOCKS + 1


def fit(model, data, epochs=2):
    model.fit(data, LABELS, batch_size=2, epochs=epochs, shuffle=False, verbose=0)


def assert_same_weights(a, b):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def arrays(optimizer):
    return [keras.ops.convert_to_numpy(v) for v in optimizer.variables]


# --- the rules ---


@each
def test_the_depths_are_those_of_beit(name):
    make, _, *where = BACKBONES[name]
    for model in (make(), with_head(make())):
        depths = {v.path: depth(v.path, *where) for v in model.weights}
        assert set(depths.values()) == set(range(BLOCKS + 2))
        expected = {path: 0.75 ** (BLOCKS + 1 - d) for path, d in depths.items()}
        assert dict(layerwise_lr_multipliers(model, 0.75)) == pytest.approx(expected)
        decays = layerwise_weight_decays(model, 0.1, 0.75)
        assert dict(decays) == pytest.approx({path: 0.1 * x for path, x in expected.items()})


@each
def test_what_is_decayed(name):
    """Matrices: kernels and embeddings, and with embeddings=True kernels alone."""
    model = with_head(BACKBONES[name][0]())
    paths = {v.path for v in model.weights}
    kernels = {path for path in paths if path.endswith("/kernel")}
    tables = {path for path in paths if path.endswith(("/embeddings", "/class_token"))}
    output = {path for path in paths if path.endswith("/reverse_embeddings")}  # Llama's, not tied
    assert len(output) == (name == "Llama")
    assert paths - no_decay(model).keys() == kernels | tables | output
    assert paths - no_decay(model, embeddings=True).keys() == kernels | output
    assert len(tables) == {"BERT": 3, "ViT": 2, "Llama": 1}[name]
    scales = {path for path in paths if path.endswith("/scale")}
    assert scales <= no_decay(model).keys()
    assert len(scales) == (2 * BLOCKS + 1 if name == "Llama" else 0)


def test_llama_with_a_tied_embedding():
    """Its first use says its depth."""
    model = models.LlamaBackbone(
        20, **SIZE, num_query_heads=2, num_key_value_heads=1, tie_word_embeddings=True
    )
    multipliers = layerwise_lr_multipliers(model, 0.5)
    assert multipliers["token_embedding/embeddings"] == 0.5 ** (BLOCKS + 1)
    assert multipliers["sequence_output_layernorm/scale"] == 1
    assert not [path for path in multipliers if "reverse" in path]


def test_an_encoder_and_a_decoder():
    """Nobody can tell from names that one follows the other; the user can."""
    model = models.BartBackbone(20, 2, 2, 4, 8, max_sequence_length=6)
    with pytest.raises(ValueError, match=r"transformer_encoder_layer_0.*layers=\["):
        layerwise_lr_multipliers(model, 0.5)
    parts = [f"transformer_{part}_layer_{i}" for part in ("encoder", "decoder") for i in range(2)]
    multipliers = layerwise_lr_multipliers(model, 0.5, layers=["token_embedding", *parts])
    assert multipliers["token_embedding/embeddings"] == 0.0625
    for path, multiplier in multipliers.items():
        if path.startswith("transformer_decoder_layer_0/"):
            assert multiplier == 0.5


# --- in training ---


@each
def test_a_run_saved_and_loaded_goes_on(name, tmp_path):
    make, data, *_ = BACKBONES[name]
    model = compiled(with_head(make()))
    fit(model, data)
    table = model.optimizer.lr_multipliers
    assert len(set(table.values())) == BLOCKS + 1
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is AdamW
    assert list(loaded.optimizer.lr_multipliers.values()) == list(table.values())
    assert list(loaded.optimizer.weight_decays.values()) == list(
        model.optimizer.weight_decays.values()
    )
    fit(model, data)
    fit(loaded, data)
    assert_same_weights(model, loaded)


def test_a_frozen_backbone_is_unfrozen():
    make, data, *_ = BACKBONES["BERT"]
    backbone = make()
    backbone.trainable = False
    model = compiled(with_head(backbone))
    before = backbone.get_weights()
    fit(model, data)
    for a, b in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer.lr_multipliers == {}
    backbone.trainable = True
    model.compile(model.optimizer, model.loss)
    model.optimizer.build(model.trainable_variables)
    expected = layerwise_lr_multipliers(model, 0.75)
    assert model.optimizer.lr_multipliers == {p: x for p, x in expected.items() if x != 1}
    kernels = {v.path for v in model.trainable_variables} - no_decay(model).keys()
    assert set(model.optimizer.weight_decays) == kernels
    fit(model, data)


# --- a Task ---


def task():
    keras.utils.set_random_seed(1)
    return models.BertTextClassifier(
        BACKBONES["BERT"][0](), num_classes=2, preprocessor=None, dropout=0.0
    )


def update(model, times=3):
    """Updates by hand: to be trained by `fit`, a Task wants TensorFlow, or grain."""
    variables = model.trainable_variables
    rng = np.random.default_rng(0)
    for _ in range(times):
        grads = [rng.normal(size=v.shape).astype("float32") for v in variables]
        model.optimizer.apply([keras.ops.convert_to_tensor(g) for g in grads], variables)


def compiled_task():
    model = compiled(task())
    model.optimizer.build(model.trainable_variables)
    return model


def test_a_task_comes_back_with_stock_adam(tmp_path):
    """If this fails, keras-hub saves what a Task was compiled with: docs/fine-tuning.md may say so."""
    model = compiled_task()
    assert isinstance(model.optimizer, AdamW)
    update(model)
    model.save(tmp_path / "task.keras")
    with (
        pytest.warns(UserWarning, match=r"`compile\(\)` was not called as part of model loading"),
        pytest.warns(UserWarning, match="Skipping variable loading for optimizer 'adam"),
    ):
        loaded = keras.models.load_model(tmp_path / "task.keras")
    assert isinstance(loaded, models.BertTextClassifier)
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    assert not isinstance(loaded.optimizer, AdamW)
    assert_same_weights(model, loaded)


def test_the_plain_model_in_a_task_keeps_its_optimizer(tmp_path):
    inside = task()
    data = BACKBONES["BERT"][1]
    model = compiled(keras.Model(inside.inputs, inside.outputs))
    fit(model, [data[x.name] for x in inside.inputs])
    for a, b in zip(inside.weights, model.weights, strict=True):
        assert a is b
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert type(loaded.optimizer) is AdamW
    for m in (model, loaded):
        fit(m, [data[x.name] for x in inside.inputs])
    assert_same_weights(model, loaded)


@pytest.mark.parametrize("file", ["task.keras", "task.weights.h5"])
def test_a_task_that_is_compiled_again_loads_its_state(file, tmp_path):
    model = compiled_task()
    update(model)
    (model.save if file.endswith(".keras") else model.save_weights)(tmp_path / file)
    again = compiled_task()
    again.load_weights(tmp_path / file)
    for a, b in zip(arrays(model.optimizer), arrays(again.optimizer), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(again.optimizer.t_cur) == 3
    update(model)
    update(again)
    assert_same_weights(model, again)
