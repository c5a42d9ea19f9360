"""Which variables are in which block, for the names that networks have in Keras and keras-hub."""

import re

import pytest

from keras_decoupled.paths.blocks import depths, is_embedding


def transformer(block, first=0, length=3, before=("embedding/embeddings",), after=("head/kernel",)):
    """Paths of a network whose blocks are called `block` + number, and their depths."""
    inside = ("attention/query/kernel", "attention/output_1/bias", "norm_1/gamma", "norm_2/gamma")
    found = [(path, 0) for path in before]
    for i in range(length):
        found += [(f"{block}{i + first}/{name}", i + 1) for name in inside]
    return found + [(path, length + 1) for path in after]


def flat(*layers):
    return [(f"{layer}/kernel", depth) for layer, depth in layers]


NETWORKS = {
    "BERT": transformer("transformer_layer_", after=["pooled_dense/kernel"]),
    "inside an encoder, from 1": transformer(
        "vit_encoder/transformer_block_",
        first=1,
        before=["patch/class_token", "patch/projection/kernel", "patch/position/embeddings"],
        after=["vit_encoder/ln/gamma", "predictions/kernel"],
    ),
    "twelve": transformer("encoder/layers_", length=12),
    "inside a model of a number": transformer("net_3/block_"),
    "ALBERT's two numbers": transformer("group_0_inner_layer_"),
    "DeBERTa's": transformer("disentangled_attention_encoder_layer_"),
    "no number in the first": [
        ("embedding/embeddings", 0),
        ("transformer_block/dense/kernel", 1),
        ("transformer_block_1/dense_1/kernel", 2),
        ("transformer_block_2/dense_2/kernel", 3),
        ("dense_3/kernel", 4),
    ],
    "from 5 on": transformer("block_", first=5),
    "a block's own variable": [
        ("block_0/scale", 1),
        ("block_0/dense/kernel", 1),
        ("block_1/scale", 2),
        ("block_1/dense/kernel", 2),
    ],
    "stages": [
        ("patch_embedding/norm/gamma", 0),
        ("stage_0/blocks_0/mlp/kernel", 1),
        ("stage_0/blocks_1/mlp/kernel", 2),
        ("stage_0/downsample/reduction/kernel", 3),
        ("stage_1/blocks_0/mlp/kernel", 3),
        ("stage_1/downsample/reduction/kernel", 4),
        ("stage_2/blocks_0/mlp/kernel", 4),
        ("stage_2/blocks_1/mlp/kernel", 5),
        ("norm/gamma", 6),
    ],
    "stages without blocks": [
        ("stem/kernel", 0),
        ("stage_0/conv/kernel", 1),
        ("stage_1/conv/kernel", 2),
        ("head/kernel", 3),
    ],
    "ResNet": flat(
        ("conv1_conv", 0),
        ("conv1_bn", 0),
        *(
            (f"conv{c}_block{b}_{i}_conv", c + b + (c > 2) - 2)
            for c, b, i in [(2, 1, 1), (2, 1, 0)]
        ),
        ("conv2_block2_1_conv", 2),
        ("conv2_block2_2_bn", 2),
        ("conv3_block1_0_conv", 3),
        ("conv3_block1_1_conv", 3),
        ("conv3_block2_1_conv", 4),
        ("post_bn", 5),
        ("predictions", 5),
    ),
    "EfficientNet": flat(
        ("stem_conv", 0),
        ("block1a_dwconv", 1),
        ("block1a_se_reduce", 1),
        ("block2a_expand_conv", 2),
        ("block2b_expand_conv", 3),
        ("block2b_project_bn", 3),
        ("top_conv", 4),
    ),
    "ConvNeXt": flat(
        ("convnext_tiny_stem/convnext_tiny_stem_conv", 0),
        ("convnext_tiny_stage_0_block_0_depthwise_conv", 1),
        ("convnext_tiny_stage_0_block_0_pointwise_conv_1", 1),
        ("convnext_tiny_stage_0_block_1_depthwise_conv", 2),
        ("convnext_tiny_downsampling_block_0/convnext_tiny_downsampling_conv_0", 3),
        ("convnext_tiny_stage_1_block_0_depthwise_conv", 3),
        ("convnext_tiny_downsampling_block_1/convnext_tiny_downsampling_conv_1", 4),
        ("convnext_tiny_stage_2_block_0_depthwise_conv", 4),
        ("convnext_tiny_head_layernorm", 5),
        ("convnext_tiny_head_dense", 5),
    ),
    "MobileNetV2": flat(
        ("Conv1", 0),
        ("expanded_conv_depthwise_BN", 0),
        ("block_1_expand", 1),
        ("block_1_expand_BN", 1),
        ("block_2_expand", 2),
        ("block_10_expand", 3),
        ("Conv_1", 4),
        ("predictions", 4),
    ),
    "VGG": flat(
        ("block1_conv1", 1),
        ("block1_conv2", 1),
        ("block2_conv1", 2),
        ("fc1", 3),
        ("predictions", 3),
    ),
    "DenseNet": flat(
        ("conv1_conv", 0),
        ("stack1_block1_1_conv", 1),
        ("stack1_block2_1_conv", 2),
        ("transition1_conv", 3),
        ("stack2_block1_1_conv", 3),
        ("bn", 4),
    ),
    "an embedding that is defined late": [
        ("block_0/dense/kernel", 1),
        ("block_1/dense/kernel", 2),
        ("head/kernel", 3),
        ("position_embedding/embeddings", 0),
        ("cls_token", 0),
    ],
    "an output layer in the embedding": [
        ("token_embedding/embeddings", 0),
        ("token_embedding/reverse_embeddings", 3),
        ("layer_0/dense/kernel", 1),
        ("layer_1/dense/kernel", 2),
    ],
    "a block between two parts of another": [
        ("block_0/a/kernel", 1),
        ("block_1/a/kernel", 2),
        ("block_0/b/kernel", 1),
        ("norm/gamma", 3),
    ],
}
WITHOUT_BLOCKS = {
    "nothing": [],
    "one layer": ["dense/kernel"],
    "numbered layers that hold no layers": ["dense/kernel", "dense_1/kernel", "dense_2/kernel"],
    "a variable without a layer": ["w", "w_1"],
    "one block": ["embedding/embeddings", "block_0/a/kernel", "block_0/b/kernel", "head/kernel"],
    "attention": ["attention_0/query/kernel", "dense/kernel", "attention_1/query/kernel"],
    "Sequential": ["sequential/dense/kernel", "sequential_1/dense/kernel"],
    "heads": ["trunk/kernel", "head_0/dense/kernel", "head_1/dense/kernel"],
    "different layers": ["encoder/dense/kernel", "decoder/dense/kernel"],
}


@pytest.mark.parametrize("name", NETWORKS)
def test_depths(name):
    paths = [path for path, _ in NETWORKS[name]]
    found, count = depths(paths)
    assert dict(zip(paths, found, strict=True)) == dict(NETWORKS[name])
    in_blocks = {
        depth for path, depth in NETWORKS[name] if re.search(r"block|layers?_\d|stage", path)
    }
    assert count == len(in_blocks)


@pytest.mark.parametrize("name", WITHOUT_BLOCKS)
def test_no_blocks(name):
    assert depths(WITHOUT_BLOCKS[name])[1] == 0


def test_several_kinds_of_blocks():
    paths = [path for path, _ in transformer("encoder_layer_") + transformer("decoder_layer_")]
    with pytest.raises(ValueError, match="'decoder_layer_0', 'encoder_layer_0'"):
        depths(paths)


@pytest.mark.parametrize(
    "path",
    [
        "lookup/embeddings",
        "embedding/lora_embeddings_a",
        "patches/class_token",
        "cls_token",
        "query_tokens",
        "encoder/position_embeddings",
        "pos_embed",
        "attn/relative_position_bias_table",
        "position_embedding/variable_3",
        "lookup/embeddings#2",
    ],
)
def test_embeddings(path):
    assert is_embedding(path)


@pytest.mark.parametrize(
    "path",
    [
        "vit_patching_and_embedding/patch_embedding/kernel",
        "embeddings/patch_embeddings/projection/kernel",
        "patch_embedding/bias",
        "embeddings_layer_norm/gamma",
        "token_embedding/reverse_embeddings",
        "token_mixing/kernel",
        "dense/kernel",
        "w",
    ],
)
def test_no_embeddings(path):
    assert not is_embedding(path)
