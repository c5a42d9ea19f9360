"""TensorFlow's fused training ops, one for a variable's step, where XLA does not compile it.

Without XLA each operation of `update_step` is a pass over memory, fourteen of them for AdamW; a
training op is one. Under XLA `update_step` is one loop already, and the reference everywhere.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

# Up to this many elements Adam's op is slower than four plain ones: it wakes all threads.
SMALL = 2**16


class Op:
    """One optimizer's step of a variable.

    `step(h, variable, gradient, slots, rate, scalars)` updates the variable and its slots. But for
    the variable, it takes what `Algorithm.step` takes.
    """

    def __init__(self, kernel: str) -> None:
        self.step = _STEPS[kernel]

    def decay(self, variable: Any, theta: Any, l2: Any) -> None:
        """θ ← θ − l2·θ."""
        subtract(variable.handle, l2, theta)

    def usable(self, variable: Any, gradient: Any, h: Any) -> bool:
        """Tell whether the op computes this step as `update_step` does."""
        if gradient.dtype not in (tf.float32, tf.float64) or not hasattr(variable, "handle"):
            return False
        # The op computes 1 − β1 in the variable's type. In float32 β1 is rounded by up to 3e-8, which
        # is 3e-7 of 1 − 0.9, but 3e-5 of 1 − 0.999. NadamW's op has a β1 near that of the optimizer.
        rounding = np.finfo(gradient.dtype.as_numpy_dtype).eps / 4
        exact = 1 - getattr(h, "beta_1", 0.0)
        return bool(rounding <= 1e-6 * exact) and not _under_xla()


def _small(variable: Any) -> bool:
    return bool(variable.shape.num_elements() <= SMALL)


def subtract(handle: Any, factor: Any, value: Any) -> None:
    """Subtract factor·value from the variable of this handle, in one pass."""
    factor = tf.convert_to_tensor(factor, value.dtype)
    tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=factor, delta=value)


def _adam(h: Any, theta: Any, g: Any, slots: Any, rate: Any, beta_1: Any, epsilon: Any) -> None:
    """θ ← θ − rate·m/(√v + ε), without the op's bias correction."""
    # v in operations of its own, for the sake of 1 − β2; for the op β2 is 1.
    m, v, *v_hat = (slot.value for slot in slots)
    subtract(v.handle, h.beta_2 - 1, tf.square(g) - tf.convert_to_tensor(v))
    if _small(theta) and not v_hat:
        subtract(m.handle, 1 - beta_1, tf.convert_to_tensor(m) - g)
        step = tf.convert_to_tensor(m) / (tf.sqrt(tf.convert_to_tensor(v)) + epsilon)
        subtract(theta.handle, rate, step)
        return
    number = functools.partial(tf.convert_to_tensor, dtype=g.dtype)
    given = {
        "var": theta.handle,
        "m": m.handle,
        "v": v.handle,
        "lr": rate,
        "grad": g,
        "beta1": number(beta_1),
        "beta2": number(1),
        "epsilon": number(epsilon),
        "beta1_power": number(0),
        "beta2_power": number(0),
    }
    if v_hat:
        tf.raw_ops.ResourceApplyAdamWithAmsgrad(vhat=v_hat[0].handle, **given)
    else:
        tf.raw_ops.ResourceApplyAdam(**given)


def _adamw(h: Any, theta: Any, g: Any, slots: Any, rate: Any, scalars: Any) -> None:
    _adam(h, theta, g, slots, rate * scalars[0], h.beta_1, h.epsilon)


def _nadamw(h: Any, theta: Any, g: Any, slots: Any, rate: Any, scalars: Any) -> None:
    """As in `torch_kernels.py`: Adam's op with another β1 leaves n, and m = n + (b/a)·(n − g)."""
    a, b, correction, _ = scalars
    root = tf.sqrt(correction)
    # √(v/c) + ε = (√v + ε·√c)/√c
    beta_1, epsilon = a * h.beta_1 / (a + b), h.epsilon * root
    _adam(h, theta, g, slots, rate * (a + b) * root, beta_1, epsilon)
    if h.beta_1 > 2**-12:
        n = tf.convert_to_tensor(slots[0].value)
        subtract(slots[0].value.handle, b / a, g - n)


def _sgdw(h: Any, theta: Any, g: Any, slots: Any, rate: Any, scalars: Any) -> None:
    if not slots:
        subtract(theta.handle, rate, g)
        return
    tf.raw_ops.ResourceApplyKerasMomentum(
        var=theta.handle,
        accum=slots[0].value.handle,
        lr=rate,
        grad=g,
        momentum=tf.convert_to_tensor(h.momentum, g.dtype),
        use_nesterov=h.nesterov,
    )


_STEPS = {"adamw": _adamw, "nadamw": _nadamw, "sgdw": _sgdw}


def _under_xla() -> bool:
    """Tell whether XLA compiles what is traced here.

    `tf.function(jit_compile=True)` says so in the control flow context of the graph from which it
    is called; TensorFlow has no public question for it.
    """
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False
