"""Which block of a network a variable is in, as its path says. Pure Python; knows nothing of Keras.

A path is cut into components, and a component after the block in it: "conv2_block1_1_conv" is the
layer "1_conv" of "conv2_block1". Components that hold layers, stand in the same place and differ in
nothing but a number are a series: "transformer_layer_0", "transformer_layer_1", … The outermost
series in a path has the blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from keras_decoupled.paths import match

Parts: TypeAlias = tuple[str, ...]  # components

# In "block_1_expand" a layer's name follows; in "block_1_2" both numbers are the block's.
_BLOCK_IN_NAME = re.compile(r"((?:block|layer)s?_?\d+[a-z]?)_(?=.*[a-zA-Z])")
_NUMBER = re.compile(r"\d+[a-z]?(?![a-zA-Z])|\d+")  # "2a" too
# Numbered, but parts of a block, or beside the blocks. A `Sequential` may be anything.
_NO_BLOCK = re.compile(r"(attention|sequential|head|heads)$|downsampl|upsampl|transition")
_STAGE = re.compile(r"(stage|stack|group|level)s?$")  # has the blocks in it
_EMBEDDING = re.compile(r"embed|position|tokens?$")
_NO_EMBEDDING = re.compile(r"^reverse_|kernel|(bias|gamma|beta|scale)$")


def is_embedding(label: str) -> bool:
    """Tell whether a variable is an embedding, a position's or a class token, as far as its name says.

    "embeddings" is the table of Keras' `Embedding`. "reverse_embeddings" of a `ReversibleEmbedding`
    is an output layer, which has a kernel of its own.
    """
    *layers, name = match.components(label)
    by_layer = bool(layers) and "embed" in layers[-1]
    return (by_layer or bool(_EMBEDDING.search(name))) and not _NO_EMBEDDING.search(name)


def depths(paths: Sequence[str]) -> tuple[list[int], int]:
    """Return the depth of each variable, and the number L of blocks; L = 0 where there are none.

    Block i, counted from 0, has depth i + 1. Embeddings, and whatever comes before the blocks, have
    0; what comes after them has L + 1; and what stands between two of them goes with the later one.

    Args:
        paths: of a network's variables, from input to output.

    Raises:
        ValueError: there are several series of blocks. The message says which, and no more.
    """
    blocks = _blocks([_layers_in(path) for path in paths])
    numbers = {block: i for i, block in enumerate(dict.fromkeys(filter(None, blocks)), start=1)}
    last = len(numbers) + 1
    found, depth = [], last
    for block in reversed(blocks):
        depth = numbers.get(block, depth)
        found.append(depth)
    found.reverse()
    started = False
    for i, (path, block) in enumerate(zip(paths, blocks, strict=True)):
        started = started or bool(block)
        if not block and (not started or is_embedding(path)):
            found[i] = 0
        if not block and match.components(path)[-1].startswith("reverse_"):
            found[i] = last
    return found, len(numbers)


def _layers_in(path: str) -> Parts:
    """Return the names of the layers in a path, from the outside in, a block apart from its layer."""
    return tuple(
        part
        for component in match.components(path)[:-1]
        for part in _BLOCK_IN_NAME.sub(r"\1/", component, count=1).split("/")
    )


def _blocks(layers: Sequence[Parts]) -> list[Parts]:
    """Return the block that each of these is in, () where it is in none."""
    holders = dict.fromkeys(p[:i] for p in layers for i in range(1, len(p)))
    # A series has two members in one place at least; in another ("stage_3") it may have one.
    siblings = Counter((holder[:-1], _pattern(holder)) for holder in holders)
    series = {pattern for (_, pattern), count in siblings.items() if count > 1}
    series = {s for s in series if not _NO_BLOCK.search(_word(s[-1]))}
    series = {s for s in series if not _STAGE.search(_word(s[-1]))} or series
    blocks = [
        next((p[:i] for i in range(1, len(p) + 1) if _pattern(p[:i]) in series), ()) for p in layers
    ]
    kinds = {_pattern(block): block for block in reversed(blocks) if block}
    if len(kinds) > 1:
        raise ValueError(match.listed(["/".join(block) for block in kinds.values()]))
    return blocks


def _pattern(parts: Parts) -> Parts:
    """Return the components with # for numbers; Keras calls the first of several "block", not "block_0"."""
    return tuple(p if "#" in p else f"{p}_#" for p in (_NUMBER.sub("#", part) for part in parts))


def _word(part: str) -> str:
    return part.replace("#", "").strip("_")
