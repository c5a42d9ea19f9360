"""The few operations of `decayed` that a fast path does in its own way: torch, in place."""

from __future__ import annotations

from typing import Any

from keras import ops


class Operations:
    """With `keras.ops`, for every backend and compiler."""

    @staticmethod
    def add(x: Any, y: Any, factor: Any) -> Any:
        """Return x + factor·y."""
        return x + factor * y

    @staticmethod
    def subtract(theta: Any, change: Any) -> Any:
        """Return θ − change."""
        return theta - change

    @staticmethod
    def agreeing(d: Any, step: Any) -> Any:
        """Return d where step·d ≥ 0, else 0. The product itself could underflow to 0."""
        return ops.where(step * ops.sign(d) >= 0, d, 0.0)

    @staticmethod
    def shrink(x: Any, amount: Any) -> Any:
        """Return x moved towards 0 by the amount, and 0 where |x| is less."""
        return x - ops.clip(x, -amount, amount)
