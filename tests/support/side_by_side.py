"""Two equal torch optimizers side by side: one as it is, one whose every update is `update_step`'s.

Imports torch: for tests that run on that backend alone.
"""

import re
from functools import partial

import keras
import numpy as np
import torch

from cases import assert_within, make_variable, numpy
from keras_decoupled import NadamW
from keras_decoupled.fast import torch_low_precision, torch_pieces

# Half an ulp of 1; what is not listed (counters) must be equal. In float64 torch's AdamW loses some
# digits where it takes 1 − β^k as a difference.
ROUNDING = {"float64": 2.0**-48, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
LOW = ("float16", "bfloat16")
TINY = 2.0**-126  # float32's smallest normal number


def cut_into(size, monkeypatch):
    """Have tensors cut into smaller pieces."""
    monkeypatch.setattr(torch_pieces, "_ELEMENTS", {"cpu": size})
    monkeypatch.setattr(torch_low_precision, "_ELEMENTS", size)


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
        self.left, self.by_reference = (watched(side[0]) for side in (self.fused, self.reference))
        self.updates = 0
        self.largest = {}
        self.do(lambda optimizer, variables: optimizer.build(variables))

    def do(self, action):
        """Call `action(optimizer, variables)` on both sides, and compare them."""
        self.left.clear()  # then: the variables that were left to `update_step`
        self.by_reference.clear()
        results = [action(*self.fused), action(*self.reference)]
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

    def step(self, grads, *, rest=(), order=None, updates=True):
        """Apply gradients, or what `grads(variables)` makes them, and compare.

        `order`: indices of the variables that the gradients are of. `rest`: of those that must be
        left to `update_step`. `updates`: whether the weights move; a micro-batch may only add up.
        """
        self.updates += 1
        given = []

        def apply(optimizer, variables):
            own = variables if order is None else [variables[i] for i in order]
            given[:] = grads(variables) if callable(grads) else map(as_tensor, grads)
            optimizer.apply(given, own)

        self.do(apply)
        variables, expected = self.fused[1], self.reference[1]
        assert [id(v) for v in self.left] == [id(variables[i]) for i in rest if updates]
        order = range(len(expected)) if order is None else order
        stepped = [expected[i] for i, g in zip(order, given, strict=True) if g is not None]
        assert [id(v) for v in self.by_reference] == [id(v) for v in stepped if updates]

    def compare(self):
        places = {}
        for a, b in self._pairs():
            # What is a copy of its variable, perhaps made late, is as rounded as that one.
            of = places.get(re.sub("_(average|master|reference)$", "", b.path).split("/")[-1])
            held = [self.largest.get(key, 0.0) for key in (id(b), of)]
            largest = self.largest[id(b)] = np.maximum(np.abs(numpy(b)), np.maximum(*held))
            places[b.path.replace("/", "_")] = id(b)
            if isinstance(self.reference[0], NadamW) and b.path.endswith("_momentum"):
                largest = largest / (1 - self.reference[0].beta_1)
            roundings = 2 if a.dtype in LOW else 4 * self.updates + 16
            most = roundings * ROUNDING[a.dtype] * largest + TINY if a.dtype in ROUNDING else 0.0
            assert_within(a, numpy(b), most, f"{b.path} ({b.dtype}) after {self.updates} updates")

    def _pairs(self):
        (optimizer, variables), (reference, expected) = self.fused, self.reference
        return zip(
            [*variables, *optimizer.variables], [*expected, *reference.variables], strict=True
        )


def watched(optimizer):
    """Give a list, to which each variable is added that `update_step` is called for from now on."""
    seen, update_step = [], optimizer.update_step

    def watch(gradient, variable, learning_rate):
        seen.append(variable)
        return update_step(gradient, variable, learning_rate)

    optimizer.update_step = watch
    return seen


def as_tensor(gradient):
    return None if gradient is None else torch.as_tensor(gradient)


def variables_of(*values, dtypes=None):
    """A function that makes variables "v0/w", "v1/w", … of these values."""
    dtypes = dtypes or ["float32"] * len(values)
    return lambda: [
        make_variable(f"v{i}/w", value, dtype)
        for i, (value, dtype) in enumerate(zip(values, dtypes, strict=True))
    ]


def variables_in(make_tensors):
    """A function that makes variables which hold just these tensors, strides included."""

    def make():
        parameters = map(torch.nn.Parameter, make_tensors())
        makers = [partial(keras.Variable, p, name="w") for p in parameters]
        return [_scoped(f"v{i}", maker) for i, maker in enumerate(makers)]

    return make


def _scoped(name, make):
    with keras.name_scope(name):
        return make()


def normal(shape, seed=0, dtype="float32"):
    return np.asarray(0.3 + np.random.default_rng(seed).normal(size=shape)).astype(dtype)
