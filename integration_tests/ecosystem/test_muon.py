"""Which variables of real models are matrices for Muon, and of how many rows × columns: the table of docs/muon.md."""

import keras
import keras_hub
import pytest

from keras_decoupled import Muon

layers, models = keras.layers, keras_hub.models
TEXT = {"num_layers": 1, "hidden_dim": 8, "intermediate_dim": 16}
GROUPED = {"num_query_heads": 2, "num_key_value_heads": 1}


def of_layer(layer, shape, **kwargs):
    x = keras.Input(shape, **kwargs)
    return keras.Model(x, layer(x))


def grouped():
    x = keras.Input((5, 12))
    return keras.Model(x, layers.GroupQueryAttention(4, 6, 2)(x, x))


def with_lora():
    dense = layers.Dense(8, name="dense")
    model = of_layer(dense, (12,))
    dense.enable_lora(2)
    return model


def reversible():
    table = layers.ReversibleEmbedding(20, 8, tie_weights=False, name="token_embedding")
    x = keras.Input((5,), dtype="int32")
    return keras.Model(x, table(table(x), reverse=True))


ATTENTION = {"query/kernel": "8×8", "key/kernel": "8×8", "value/kernel": "8×8"}
OUTPUT = {"attention_output/kernel": "8×8"}
MLP = {"intermediate_dense/kernel": "8×16", "output_dense/kernel": "16×8"}
DENSE = {f"{name.split('/')[0]}_dense/kernel": size for name, size in ATTENTION.items()}
# By the end of a path: its matrix, None for any. All else goes to Adam.
MODELS = {
    "BERT": (
        lambda: models.BertBackbone(20, **TEXT, num_heads=2, max_sequence_length=6),
        ATTENTION | OUTPUT | MLP | {"pooled_dense/kernel": "8×8"},
    ),
    "GPT-2": (
        lambda: models.GPT2Backbone(20, **TEXT, num_heads=2, max_sequence_length=6),
        ATTENTION | OUTPUT | MLP,
    ),
    "ViT": (
        lambda: models.ViTBackbone(
            (8, 8, 3), 4, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16
        ),
        ATTENTION
        | OUTPUT
        | {"patch_embedding/kernel": "48×8", "dense_1/kernel": "8×16", "dense_2/kernel": "16×8"},
    ),
    "Gemma": (
        lambda: models.GemmaBackbone(
            20, num_layers=1, hidden_dim=8, intermediate_dim=32, head_dim=6, **GROUPED
        ),
        {"query/kernel": "8×12", "key/kernel": "8×6", "value/kernel": "8×6"}
        | {"attention_output/kernel": "12×8", "ffw_linear/kernel": "16×8"}
        | {"ffw_gating/kernel": "8×16", "ffw_gating_2/kernel": "8×16"},
    ),
    "Bloom": (
        lambda: models.BloomBackbone(20, **TEXT, num_heads=2),
        DENSE | MLP | {"self_attention/output_dense/kernel": "8×8"},
    ),
    "Falcon": (
        lambda: models.FalconBackbone(20, **TEXT, num_attention_heads=2),
        DENSE
        | {"output_dense/kernel": "8×8"}
        | {"dense_h_to_4h/kernel": "8×16", "dense_4h_to_h/kernel": "16×8"},
    ),
    "GPT-NeoX": (
        lambda: models.GPTNeoXBackbone(20, **TEXT, num_heads=2),
        OUTPUT | MLP | {"query_key_value/kernel": "8×24"},
    ),
    "Mixtral": (
        lambda: models.MixtralBackbone(20, **TEXT, num_experts=3, **GROUPED),
        OUTPUT
        | {"query/kernel": "8×8", "key/kernel": "8×4", "value/kernel": "8×4"}
        | {"sparse_feedforward_gate_dense/kernel": "8×3"}
        | {"experts/expert_feedforward_gate_dense": "24×16"}
        | {"experts/expert_feedforward_intermediate_dense": "24×16"}
        | {"experts/expert_feedforward_output_dense": "48×8"},
    ),
    "grouped queries": (
        grouped,
        {"query/kernel": "12×24", "key/kernel": "12×8", "value/kernel": "12×8"}
        | {"attention_output/kernel": "24×12"},
    ),
    "ResNet": (
        lambda: keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3),
        {"conv1_conv/kernel": "147×64", "conv2_block1_1_conv/kernel": "64×64", "conv/kernel": None}
        | {"conv2_block1_2_conv/kernel": "576×64", "predictions/kernel": "2048×3"},
    ),
    "MobileNet": (
        lambda: keras.applications.MobileNet(weights=None, input_shape=(32, 32, 3), classes=3),
        {"conv1/kernel": "27×32", "conv_pw_1/kernel": "32×64", "conv_preds/kernel": "1024×3"}
        | {f"conv_pw_{i}/kernel": None for i in range(2, 14)},
    ),
    "LSTM": (
        lambda: of_layer(layers.LSTM(4), (5, 6)),
        {"lstm_cell/kernel": "6×16", "recurrent_kernel": "4×16"},
    ),
    "LoRA": (with_lora, {}),
    "a reversible embedding": (reversible, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_of_real_models(name):
    make, matrices = MODELS[name]
    rows = Muon().explain(make()).rows
    hit = set()
    for row in rows:
        path = row["path"]
        keys = [key for key in matrices if path.endswith(key)]
        hit.update(keys)
        size = matrices[max(keys, key=len)] if keys else None
        assert row["part"] == ("muon" if keys else "adam"), path
        assert size in (None, row.get("matrix")), path
    assert hit == matrices.keys()
    assert {row["part"] for row in rows} >= {"adam"}


def test_each_expert_and_each_head_is_a_matrix():
    make, _ = MODELS["Mixtral"]
    heads = dict.fromkeys(("query", "key", "value"), "rbc")
    rows = Muon(matrix_axes={"experts": "brc", **heads}).explain(make()).rows
    found = {"/".join(row["path"].split("/")[-2:]): row.get("matrix") for row in rows}
    assert found["experts/expert_feedforward_output_dense"] == "3 of 16×8"
    assert found["query/kernel"] == "2 of 8×4"
