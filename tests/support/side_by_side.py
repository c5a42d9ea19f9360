"""Two equal torch optimizers side by side: one as it is, one whose every update is `update_step`'s.

Imports torch: for tests that run on that backend alone.
"""

import contextlib
import re
from unittest.mock import patch

import keras
import numpy as np
import torch

from cases import make_variable, numpy
from keras_decoupled import NadamW
from keras_decoupled.fast import torch_update

# Half an ulp of 1; what is not listed (counters) must be equal. In float64 torch's AdamW loses some
# digits where it takes 1 − β^k as a difference.
ROUNDING = {"float64": 2.0**-48, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LOW = ("float16", "bfloat16")
TINY = 2.0**-126  # float32's smallest normal number


class Sides:
    """The two sides after the same actions.

    After each action variables and optimizer variables agree to rounding: 4 per update and 16 of
    a step, each half an ulp of the largest number that the place has held. Where float32 is
    rounded to less, that is two half ulps, however many updates there were. NadamW's momentum comes
    out of a sum with the gradient, of which it is a share of 1 − β1, and is rounded as that is.
    """

    def __init__(self, make_optimizer, make_variables):
        self.fused, self.reference = (
            (make_optimizer(), list(make_variables())) for _ in ("fused", "reference")
        )
        self.reference[0].fast = False
        self.updates = 0
        self.largest = {}
        self.do(lambda optimizer, variables: optimizer.build(variables))

    def do(self, action):
        """Call `action(optimizer, variables)` on both sides, and compare them."""
        with watched() as self.rests:
            results = [action(*self.fused)]
        with watched() as rests:
            results.append(action(*self.reference))
        assert rests == []
        self.compare()
        return results

    def do_apart(self, action):
        """Call `action` on both sides where each may leave something else: the state is then the reference's."""
        action(*self.fused)
        action(*self.reference)
        for a, b in self._pairs():
            if not np.array_equal(numpy(a), numpy(b)):
                a.assign(b.value)
        self.compare()

    def step(self, grads, *, rest=(), calls=1):
        """Apply gradients, or what `grads(variables)` makes them, and compare.

        `rest`: indices of the variables that must be left to `update_step`, in each of `calls`
        accelerated updates.
        """
        self.updates += 1

        def apply(optimizer, variables):
            made = grads(variables) if callable(grads) else [as_tensor(g) for g in grads]
            optimizer.apply(made, variables)

        self.do(apply)
        expected = [self.fused[1][i]._value for i in rest]
        assert len(self.rests) == calls
        for left in self.rests:
            assert [id(v._value) for v in left] == [id(t) for t in expected]

    def compare(self):
        places = {}
        for a, b in self._pairs():
            # What is a copy of its variable, perhaps made late, is as rounded as that one.
            of = places.get(re.sub("_(average|master|reference)$", "", b.path).split("/")[-1])
            held = [self.largest.get(key, 0.0) for key in (id(b), of)]
            self.largest[id(b)] = np.maximum(np.abs(numpy(b)), np.maximum(*held))
            places[b.path.replace("/", "_")] = id(b)
            nadamw = isinstance(self.reference[0], NadamW) and b.path.endswith("_momentum")
            share = 1 - self.reference[0].beta_1 if nadamw else 1.0
            assert_close(a, b, self.largest[id(b)] / share, self.updates)

    def _pairs(self):
        (optimizer, variables), (reference, expected) = self.fused, self.reference
        return zip(
            [*variables, *optimizer.variables], [*expected, *reference.variables], strict=True
        )


def assert_close(a, b, largest, updates):
    roundings = 2 if a.dtype in LOW else 4 * updates + 16
    allowed = roundings * ROUNDING[a.dtype] * largest + TINY if a.dtype in ROUNDING else 0.0
    error = np.abs(numpy(a) - numpy(b))
    assert np.all(error <= allowed), (
        f"{b.path} ({b.dtype}) after {updates} updates: off by {error}, at most {allowed} is rounding"
    )


@contextlib.contextmanager
def watched():
    """Give a list with, for each accelerated update, the variables that it left to `update_step`."""
    rests = []
    update = torch_update.FastUpdate.update

    def watch(self, *arguments):
        rest = update(self, *arguments)
        rests.append([variable for _, variable in rest])
        return rest

    with patch.object(torch_update.FastUpdate, "update", watch):
        yield rests


def as_tensor(gradient):
    return None if gradient is None else torch.as_tensor(gradient)


def variables_of(*values, dtypes=None):
    """A function that makes variables "v0/w", "v1/w", … of these values."""
    dtypes = dtypes or ["float32"] * len(values)
    return lambda: [
        make_variable(f"v{i}/w", value, dtype)
        for i, (value, dtype) in enumerate(zip(values, dtypes, strict=True))
    ]


def variables_in(*tensors):
    """A function that makes variables which hold clones of these tensors, strides included."""

    def make():
        made = []
        for i, tensor in enumerate(tensors):
            with keras.name_scope(f"v{i}"):
                clone = tensor.detach().clone(memory_format=torch.preserve_format)
                made.append(keras.Variable(torch.nn.Parameter(clone), name="w"))
        return made

    return make


def normal(shape, seed=0, dtype="float32"):
    return np.asarray(0.3 + np.random.default_rng(seed).normal(size=shape)).astype(dtype)
