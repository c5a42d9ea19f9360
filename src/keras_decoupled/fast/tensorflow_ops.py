"""TensorFlow's fused training ops: one for each variable's step, where XLA does not compile it.

Without XLA, each operation of `update_step` is a pass over memory: fourteen for AdamW. A training
op is one pass. Under XLA, `update_step` is one loop already. It is the reference everywhere.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import tensorflow as tf

# Up to this many elements, Adam's op is slower than four plain ops: it wakes all threads.
SMALL = 2**16


class Op:
    """One optimizer's step of a variable.

    `step(h, variable, gradient, slots, rate, scalars)` updates the variable and its slots. Its
    arguments are those of `Algorithm.step`, and the variable.
    """

    def __init__(self, optimizer: Any, kernel: str) -> None:
        self.step = STEPS[kernel]
        setting = optimizer._kd.settings.get("beta_1")
        self._beta_1 = getattr(setting, "given", 0.0)

    def decay(self, variable: Any, theta: Any, l2: Any) -> None:
        """θ ← θ − l2·θ."""
        subtract(variable.handle, l2, theta)

    def usable(self, variable: Any, gradient: Any) -> bool:
        """Tell whether the op computes this step as `update_step` does."""
        if gradient.dtype not in (tf.float32, tf.float64) or not hasattr(variable, "handle"):
            return False
        # The op computes 1 − β1 in the variable's type. Float32 rounds β1 by up to 3e-8: that is
        # 3e-7 of 1 − 0.9, but 3e-5 of 1 − 0.999. The β1 of NadamW's op is near the optimizer's. A
        # β1 that was set, or is a schedule, has been rounded already.
        rounding = np.finfo(gradient.dtype.as_numpy_dtype).eps / 4
        exact = 1 - self._beta_1 if isinstance(self._beta_1, float) else 1.0
        return bool(rounding <= 1e-6 * exact) and not _under_xla()


def eager() -> Any:
    """Return the scope in which tensors have values inside a traced step."""
    return tf.init_scope()


def trace(function: Any, count: int) -> None:
    """Trace a function of `count` scalars, as `fit` traces an update."""
    scalars = [tf.TensorSpec((), tf.float32)] * count
    tf.function(function, autograph=False).get_concrete_function(*scalars)


def subtract(handle: Any, factor: Any, value: Any) -> None:
    """Subtract factor·value from the variable of this handle, in one pass."""
    factor = tf.convert_to_tensor(factor, value.dtype)
    tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=factor, delta=value)


def _adam(
    theta: Any, g: Any, slots: Any, rate: Any, beta_1: Any, one_minus_beta_2: Any, epsilon: Any
) -> None:
    """θ ← θ − rate·m/(√v + ε), without the op's bias correction."""
    # v is updated apart, so that 1 − β2 is exact. The op gets a β2 of 1, which leaves v alone.
    m, v, *v_hat = (slot.value for slot in slots)
    subtract(v.handle, one_minus_beta_2, tf.convert_to_tensor(v) - tf.square(g))
    if theta.shape.num_elements() <= SMALL and not v_hat:
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
    correction, _, _, one_minus_beta_2 = scalars
    _adam(theta, g, slots, rate * correction, h.beta_1, one_minus_beta_2, h.epsilon)


def _nadamw(h: Any, theta: Any, g: Any, slots: Any, rate: Any, scalars: Any) -> None:
    """As in `torch_kernels.py`: Adam's op with another β1 leaves n; then m = n + (b/a)·(n − g)."""
    a, b, correction, _, _, one_minus_beta_2 = scalars
    root = tf.sqrt(correction)
    # √(v/c) + ε = (√v + ε·√c)/√c
    beta_1, epsilon = a * h.beta_1 / (a + b), h.epsilon * root
    _adam(theta, g, slots, rate * (a + b) * root, beta_1, one_minus_beta_2, epsilon)
    n = tf.convert_to_tensor(slots[0].value)
    # If β1 ≈ 0, n and m differ by less than 2⁻¹², and b/a may be infinite.
    subtract(slots[0].value.handle, tf.where(h.beta_1 > 2**-12, b / a, 0), g - n)


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


STEPS = {"adamw": _adamw, "nadamw": _nadamw, "sgdw": _sgdw}


def _under_xla() -> bool:
    """Tell whether XLA compiles the code that is traced here.

    TensorFlow has no public function for that. `tf.function(jit_compile=True)` leaves a mark in the
    control flow context of the graph from which it is called.
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
