"""What is updated: the shapes of four models, with initial values, gradients and four rules."""

import math
from typing import NamedTuple

import numpy as np

DTYPE = "float32"  # of weights and gradients; step.py sets it


class Workload(NamedTuple):
    """Shapes of a model's trainable variables."""

    title: str
    shapes: list

    @property
    def parameters(self):
        """How many numbers the variables hold."""
        return sum(math.prod(shape) for shape in self.shapes)

    def arrays(self):
        """Initial values and gradients: the same ones in every run, and for every contender."""
        rng = np.random.default_rng(0)
        values = [0.05 * rng.standard_normal(s, "float32") for s in self.shapes]
        grads = [0.01 * rng.standard_normal(s, "float32") for s in self.shapes]
        return values, grads


def small(count):
    """Kernels of 64×64 and biases of 64: what costs here is the overhead per variable."""
    shapes = [(64, 64), (64,)] * (count // 2)
    return Workload("small variables", shapes)


def resnet50(blocks=(3, 4, 6, 3)):
    """Kernels, gammas and betas of ResNet-50; with fewer blocks, of a part of it."""

    def convolution(size, channels_in, channels_out):
        return [(size, size, channels_in, channels_out), (channels_out,), (channels_out,)]

    shapes = convolution(7, 3, 64)
    channels = 64
    for stage, count in enumerate(blocks):
        inner, outer = 64 * 2**stage, 256 * 2**stage
        for block in range(count):
            shapes += convolution(1, channels, inner) + convolution(3, inner, inner)
            shapes += convolution(1, inner, outer)
            if block == 0:  # the shortcut
                shapes += convolution(1, channels, outer)
            channels = outer
    shapes += [(channels, 1000), (1000,)]
    return Workload("ResNet-50" if blocks == (3, 4, 6, 3) else "part of ResNet-50", shapes)


def large(size):
    """Three big matrices: nothing but bandwidth."""
    return Workload(f"three {size}×{size}", [(size, size)] * 3)


def transformer(layers, width=384, words=8192, length=256):
    """A GPT of this many blocks, with tied embeddings."""
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    feed_forward = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    block = norm + attention + norm + feed_forward
    shapes = [(words, width), (length, width), *block * layers, *norm]
    return Workload(f"transformer, {layers} block{'s' if layers > 1 else ''}", shapes)


def workloads(quick):
    """Return the four by key; with `quick` a part of each, which compiles in a second or two."""
    if quick:
        sizes = small(60), resnet50((1, 1)), large(2048), transformer(1)
    else:
        sizes = small(400), resnet50(), large(4096), transformer(6)
    return dict(zip(("small", "resnet50", "large", "transformer"), sizes, strict=True))


def for_stock(quick):
    """Return two by key, for the stock optimizers: overhead per variable, and arithmetic."""
    count = 2 if quick else 20
    matrices = Workload(f"{count} of 1024×1024", [(1024, 1024)] * count)
    return {"small": small(60 if quick else 400), "matrices": matrices}


def names(count):
    """Names of variables: every fourth one has the same rule."""
    return [f"w{index}_rule{'abcd'[index % 4]}" for index in range(count)]


def rules(count, weight_decay):
    """Four decays and four multipliers, all different, for variables of these names."""
    keys = [f"rule{letter}" for letter in "abcd"[:count]]  # a key that hits nothing is an error
    decays = [weight_decay * factor for factor in (1.0, 0.5, 0.25, 2.0)]
    multipliers = (0.5, 1.0, 2.0, 0.25)
    return {
        "weight_decays": dict(zip(keys, decays, strict=False)),
        "lr_multipliers": dict(zip(keys, multipliers, strict=False)),
    }
