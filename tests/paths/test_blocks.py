"""How deep in a network a variable is, by its path, as networks have them in Keras and keras-hub."""

import pytest

from keras_decoupled.paths.blocks import depths, is_embedding


def transformer(block, first=0, inside="attention/query/kernel attention/output_1/bias"):
    """A network whose three blocks are called `block` + number."""
    blocks = (
        " ".join([f"{i + 1}", *(f"{block}{i + first}/{name}" for name in inside.split())])
        for i in range(3)
    )
    return " ".join(["0 embedding/embeddings", *blocks, "4 head"])


# Depths, each before the variables that have it: whole paths, or layers that have a kernel.
NETWORKS = {
    "BERT": transformer("transformer_layer_"),
    "inside an encoder": "0 patch/class_token patch/projection/kernel "
    + transformer("vit_encoder/transformer_block_", first=1)
    + " vit_encoder/ln/gamma predictions",
    "inside a model of a number": transformer("net_3/block_"),
    "ALBERT's two numbers": transformer("group_0_inner_layer_"),
    "a block's own variable": transformer("block_", inside="scale dense/kernel"),
    "no number in the first": "0 embedding/embeddings 1 transformer_block/dense/kernel "
    "2 transformer_block_1/dense_1/kernel 3 transformer_block_2/dense_2/kernel 4 dense_3",
    "stages": "0 patch_embedding/norm/gamma 1 stage_0/blocks_0/mlp/kernel "
    "2 stage_0/blocks_1/mlp/kernel 3 stage_0/downsample/reduction/kernel "
    "3 stage_1/blocks_0/mlp/kernel 4 stage_1/downsample/reduction/kernel "
    "4 stage_2/blocks_0/mlp/kernel 5 stage_2/blocks_1/mlp/kernel 6 norm/gamma",
    "stages without blocks": "0 stem 1 stage_0/conv/kernel 2 stage_1/conv/kernel 3 head",
    "ResNet": "0 conv1_conv conv1_bn 1 conv2_block1_1_conv conv2_block1_0_conv "
    "2 conv2_block2_1_conv conv2_block2_2_bn 3 conv3_block1_0_conv conv3_block1_1_conv "
    "4 conv3_block2_1_conv 5 post_bn predictions",
    "EfficientNet": "0 stem_conv 1 block1a_dwconv block1a_se_reduce 2 block2a_expand_conv "
    "3 block2b_expand_conv block2b_project_bn 4 top_conv",
    "ConvNeXt": "0 tiny_stem/conv/kernel 1 tiny_stage_0_block_0_depthwise_conv "
    "1 tiny_stage_0_block_0_pointwise_conv_1 2 tiny_stage_0_block_1_depthwise_conv "
    "3 tiny_downsampling_block_0/conv_0/kernel tiny_stage_1_block_0_depthwise_conv "
    "4 tiny_downsampling_block_1/conv_1/kernel tiny_stage_2_block_0_depthwise_conv 5 tiny_head",
    "MobileNetV2": "0 Conv1 expanded_conv_depthwise_BN 1 block_1_expand block_1_expand_BN "
    "2 block_2_expand 3 block_10_expand 4 Conv_1 predictions",
    "DenseNet": "0 conv1_conv 1 stack1_block1_1_conv 2 stack1_block2_1_conv 3 transition1_conv "
    "3 stack2_block1_1_conv 4 bn",
    "an embedding that is defined late": "1 block_0/dense/kernel 2 block_1/dense/kernel 3 head "
    "0 position_embedding/embeddings patches/cls_token",
    "an output layer in the embedding": "0 token_embedding/embeddings "
    "3 token_embedding/reverse_embeddings 1 layer_0/dense/kernel 2 layer_1/dense/kernel",
    "a block between two parts of another": "1 block_0/a/kernel 2 block_1/a/kernel "
    "1 block_0/b/kernel 3 norm/gamma",
}
WITHOUT_BLOCKS = {
    "nothing": "",
    "one layer": "dense/kernel",
    "numbered layers that hold no layers": "dense/kernel dense_1/kernel dense_2/kernel",
    "a variable without a layer": "w w_1",
    "one block": "embedding/embeddings block_0/a/kernel block_0/b/kernel head/kernel",
    "attention": "attention_0/query/kernel dense/kernel attention_1/query/kernel",
    "Sequential": "sequential/dense/kernel sequential_1/dense/kernel",
    "heads": "trunk/kernel head_0/dense/kernel head_1/dense/kernel",
    "different layers": "encoder/dense/kernel decoder/dense/kernel",
}
EMBEDDINGS = """lookup/embeddings lookup/embeddings#2 embedding/lora_embeddings_a cls_token
    patches/class_token encoder/position_embeddings position_embedding/variable_3 pos_embed
    query_tokens attn/relative_position_bias_table xlnet/mask_emb"""
NO_EMBEDDINGS = """vit_patching_and_embedding/patch_embedding/kernel patch_embedding/bias w
    embeddings/patch_embeddings/projection/kernel embeddings_layer_norm/gamma token_mixing/kernel
    token_embedding/reverse_embeddings dense/kernel"""


@pytest.mark.parametrize("name", NETWORKS)
def test_depths(name):
    expected, depth = {}, None
    for word in NETWORKS[name].split():
        if word.isdigit():
            depth = int(word)
        else:
            expected[word if "/" in word else f"{word}/kernel"] = depth
    found, count = depths(list(expected))
    pairs = zip(expected, found, strict=True)
    assert [(path, depth) for path, depth in pairs if depth != expected[path]] == []
    assert count == max(expected.values()) - 1


def test_no_blocks():
    assert [name for name, paths in WITHOUT_BLOCKS.items() if depths(paths.split())[1]] == []


def test_embeddings():
    paths = [*EMBEDDINGS.split(), *NO_EMBEDDINGS.split()]
    assert list(filter(is_embedding, paths)) == EMBEDDINGS.split()
