"""TensorFlow's fused training ops, one for a variable's step, where XLA does not compile it.

Without XLA each operation of `update_step` is a pass over memory, fourteen of them for AdamW; a
training op is one. Under XLA `update_step` is one loop already, and the reference everywhere.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# The ops compute 1 − β in the variable's type: in float32 2.4e-7 off for 0.9, 1.3e-5 for 0.999.
# What is further off than this is not left to them.
_LARGEST_ERROR = 1e-6


class Op:
    """One optimizer's step of a variable."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def usable(self, variable: Any, gradient: Any) -> bool:
        """Tell whether the op computes this step as `update_step` does."""
        if gradient.dtype not in (tf.float32, tf.float64) or not hasattr(variable, "handle"):
            return False
        return not _under_xla()

    def step(
        self,
        variable: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        rate: Any,
        scalars: tuple[Any, ...],
    ) -> None:
        """Update a variable and its slots; the arguments are those of `Decoupled.step`."""
        raise NotImplementedError


class _Adam(Op):
    """θ ← θ − rate·m/(√v + ε), without the op's bias correction."""

    def numbers(self, rate: Any, scalars: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        """Return the op's rate, β1 and ε."""
        raise NotImplementedError

    def step(
        self,
        variable: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        rate: Any,
        scalars: tuple[Any, ...],
    ) -> None:
        optimizer, dtype = self.optimizer, gradient.dtype
        # v in operations of its own, for the sake of 1 − β2; for the op β2 is 1.
        v = tf.convert_to_tensor(slots[1].value)
        optimizer.assign_add(slots[1], (1 - optimizer.beta_2) * (tf.square(gradient) - v))
        rate, beta_1, epsilon = self.numbers(rate, scalars)
        m, v, *v_hat = (slot.value.handle for slot in slots)
        given = {
            "var": variable.handle,
            "m": m,
            "v": v,
            "lr": rate,
            "grad": gradient,
            "beta1": tf.convert_to_tensor(beta_1, dtype),
            "epsilon": tf.convert_to_tensor(epsilon, dtype),
            "beta2": dtype.as_numpy_dtype(1),
            "beta1_power": dtype.as_numpy_dtype(0),
            "beta2_power": dtype.as_numpy_dtype(0),
        }
        if v_hat:
            tf.raw_ops.ResourceApplyAdamWithAmsgrad(vhat=v_hat[0], **given)
        else:
            tf.raw_ops.ResourceApplyAdam(**given)


class _AdamW(_Adam):
    def usable(self, variable: Any, gradient: Any) -> bool:
        beta, real = self.optimizer.beta_1, gradient.dtype.as_numpy_dtype
        error = abs((real(1) - real(beta)) - (1 - beta))
        return super().usable(variable, gradient) and error <= _LARGEST_ERROR * (1 - beta)

    def numbers(self, rate: Any, scalars: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        return rate * scalars[0], self.optimizer.beta_1, self.optimizer.epsilon


class _NadamW(_Adam):
    """As in `_torch_kernels.py`: Adam's op with another β1 leaves n, and m = n + (b/a)·(n − g)."""

    def numbers(self, rate: Any, scalars: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        a, b, correction, _ = scalars
        optimizer, root = self.optimizer, tf.sqrt(correction)
        # √(v/c) + ε = (√v + ε·√c)/√c
        return rate * (a + b) * root, a * optimizer.beta_1 / (a + b), optimizer.epsilon * root

    def step(
        self,
        variable: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        rate: Any,
        scalars: tuple[Any, ...],
    ) -> None:
        super().step(variable, gradient, slots, rate, scalars)
        if self.optimizer.beta_1 > 2**-12:
            a, b, *_ = scalars
            n = tf.convert_to_tensor(slots[0].value)
            self.optimizer.assign_add(slots[0], (b / a) * (n - gradient))


class _SGDW(Op):
    def step(
        self,
        variable: Any,
        gradient: Any,
        slots: tuple[Any, ...],
        rate: Any,
        scalars: tuple[Any, ...],
    ) -> None:
        theta = variable.handle
        if not slots:
            tf.raw_ops.ResourceApplyGradientDescent(var=theta, alpha=rate, delta=gradient)
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=theta,
            accum=slots[0].value.handle,
            lr=rate,
            grad=gradient,
            momentum=gradient.dtype.as_numpy_dtype(self.optimizer.momentum),
            use_nesterov=self.optimizer.nesterov,
        )


_OPS = {"adamw": _AdamW, "nadamw": _NadamW, "sgdw": _SGDW}


def make(optimizer: Any) -> Op | None:
    """Return the fused op of an optimizer, None for a class without one; as in `_torch_fused`."""
    kernel = vars(type(optimizer)).get("_fused_kernel")
    return _OPS[kernel](optimizer) if kernel else None


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
