"""Which block of a network a variable is in, by its path. Knows nothing of Keras.

A path is cut into components, and a component is cut after the block in it: "conv2_block1_1_conv"
is the layer "1_conv" of "conv2_block1". Components are a series if they hold layers, stand in the
same place and differ only in a number: "transformer_layer_0", "transformer_layer_1", … The members
of the outermost series in a path are the blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from keras_decoupled import checks
from keras_decoupled.paths import match

CURE = (
    "Name them from input to output, by their names in `variable.path` or as built layers: "
    "layers=['embedding', 'block_0', 'block_1', 'head']."
)
Parts: TypeAlias = tuple[str, ...]  # components

# In "block_1_expand" a layer's name follows the block. In "block_1_2" the block has two numbers.
_BLOCK_IN_NAME = re.compile(r"((?:block|layer)s?_?\d+[a-z]?)_(?=.*[a-zA-Z])")
_NUMBER = re.compile(r"\d+[a-z]?(?![a-zA-Z])|\d+")  # "2a" too
# Numbered layers that are not blocks: they are parts of a block, or stand beside the blocks.
_NO_BLOCK = re.compile(r"(attention|sequential|head|heads)$|downsampl|upsampl|transition")
_STAGE = re.compile(r"(stage|stack|group|level)s?$")  # holds blocks
_EMBEDDING = re.compile(r"embed|_emb$|position|tokens?$")
_NO_EMBEDDING = re.compile(r"^reverse_|kernel|(bias|gamma|beta|scale)$")


def is_embedding(label: str) -> bool:
    """Tell from its name whether a variable is an embedding (also of positions) or a class token.

    Keras' `Embedding` calls its table "embeddings". "reverse_embeddings" of a `ReversibleEmbedding`
    is the kernel of an output layer.
    """
    *layers, name = match.components(label)
    in_embedding = bool(layers) and "embed" in layers[-1]
    return (in_embedding or bool(_EMBEDDING.search(name))) and not _NO_EMBEDDING.search(name)


def depths(paths: Sequence[str]) -> tuple[list[int], int]:
    """Return the depth of each variable, and the number L of blocks, 0 if there are none.

    Block i, counted from 0, has depth i + 1. Embeddings and all variables before the blocks have
    depth 0. All variables after the blocks have depth L + 1. A variable between two blocks has the
    depth of the later block.

    Args:
        paths: paths of a network's variables, from input to output.

    Raises:
        ValueError: there are several series of blocks, so the user has to name `layers`.
    """
    blocks = _blocks([_layers_in(path) for path in paths])
    numbers = {block: i for i, block in enumerate(dict.fromkeys(filter(None, blocks)), start=1)}
    last = len(numbers) + 1
    first = next((i for i, block in enumerate(blocks) if block), len(blocks))
    found, depth = [], last
    for i, path in reversed(list(enumerate(paths))):
        depth = numbers.get(blocks[i], depth)
        if blocks[i]:
            found.append(depth)
        elif match.components(path)[-1].startswith("reverse_"):
            found.append(last)
        else:
            found.append(0 if i < first or is_embedding(path) else depth)
    return found[::-1], len(numbers)


def _layers_in(path: str) -> Parts:
    """Return the names of the layers in a path, outermost first; a block in a name is split off."""
    return tuple(
        part
        for component in match.components(path)[:-1]
        for part in _BLOCK_IN_NAME.sub(r"\1/", component, count=1).split("/")
    )


def _blocks(layers: Sequence[Parts]) -> list[Parts]:
    """Return the block that each of these is in, or () for no block."""
    holders = dict.fromkeys(p[:i] for p in layers for i in range(1, len(p)))
    # A series has two members in at least one place. In another ("stage_3") it may have one.
    siblings = Counter((holder[:-1], _pattern(holder)) for holder in holders)
    series = {pattern for (_, pattern), count in siblings.items() if count > 1}
    series = {s for s in series if not _NO_BLOCK.search(_word(s[-1]))}
    series = {s for s in series if not _STAGE.search(_word(s[-1]))} or series
    blocks = [
        next((p[:i] for i in range(1, len(p) + 1) if _pattern(p[:i]) in series), ()) for p in layers
    ]
    kinds = {_pattern(block): block for block in reversed(blocks) if block}
    if len(kinds) > 1:
        several = match.listed(["/".join(block) for block in kinds.values()])
        rule = "must be given for a model with several kinds of blocks, whose order is unknown"
        checks.refuse("layers", checks.Seen(f"blocks such as {several}"), rule, CURE)
    return blocks


def _pattern(parts: Parts) -> Parts:
    """Return the components with # for numbers. Keras' first "block" counts as "block_0"."""
    return tuple(p if "#" in p else f"{p}_#" for p in (_NUMBER.sub("#", part) for part in parts))


def _word(part: str) -> str:
    return part.replace("#", "").strip("_")
