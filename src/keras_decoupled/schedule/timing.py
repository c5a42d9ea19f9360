"""What the arguments about time mean: the schedule, where it starts, and the T of normalization."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras import ops

from keras_decoupled import checks

from .cosine import CosineWarmRestarts
from .rates import CosineRate, Rate, ScheduleRate, make_rate


@dataclasses.dataclass(frozen=True)
class Timing:
    """The arguments as given (checked), and what follows from them."""

    total_iterations: int | None
    total_iterations_wd: int | None
    normalize_weight_decay: bool | None
    use_cosine_annealing: bool
    autorestart: bool | None
    eta_min: float
    eta_max: float
    t_cur: int
    rate: Rate
    factor: float  # r of the first update
    normalized_over: int | None  # a fixed T; 0: the T of the current cycle; None: no normalization

    @classmethod
    def read(
        cls,
        learning_rate: Any,
        base_learning_rate: Any = None,
        *,
        total_iterations: Any = None,
        total_iterations_wd: Any = None,
        normalize_weight_decay: bool | None = None,
        use_cosine_annealing: bool = False,
        autorestart: bool | None = None,
        eta_min: Any = 0.0,
        eta_max: Any = 1.0,
        t_cur: Any = 0,
    ) -> Timing:
        """Check the arguments, each alone and together."""
        if autorestart is not None:
            autorestart = checks.flag(
                "autorestart", autorestart, cure="None is True with cosine annealing."
            )
        if normalize_weight_decay is not None:
            normalize_weight_decay = checks.flag(
                "normalize_weight_decay",
                normalize_weight_decay,
                cure="None normalizes where total_iterations is given; T is total_iterations_wd.",
            )
        rate, factor = make_rate(learning_rate, base_learning_rate)
        total_iterations = _iterations("total_iterations", total_iterations)
        total_iterations_wd = _iterations("total_iterations_wd", total_iterations_wd)
        eta_min = checks.real("eta_min", eta_min, minimum=0.0, cure="It is η at a cycle's end.")
        eta_max = checks.real("eta_max", eta_max, minimum=0.0, cure="It is η at a cycle's start.")
        t_cur = _position("t_cur", t_cur)
        use_cosine_annealing = checks.flag(
            "use_cosine_annealing", use_cosine_annealing, cure="False leaves the rate alone."
        )
        if eta_min > eta_max:
            raise ValueError(
                "`eta_min` must not exceed `eta_max`: η falls from eta_max to eta_min in a cycle. "
                f"Received: eta_min={eta_min}, eta_max={eta_max}. Swap them."
            )
        if total_iterations is not None and isinstance(rate, CosineRate):
            raise ValueError(
                "`total_iterations` and a `CosineWarmRestarts` both say how long a cycle is. "
                f"Received: total_iterations={total_iterations}, learning_rate={learning_rate}. "
                "For normalized decay pass `normalize_weight_decay=True` (T of the current cycle) "
                "or `total_iterations_wd` (a fixed T) instead."
            )
        if use_cosine_annealing:
            if type(rate) is not Rate:
                raise ValueError(
                    "`use_cosine_annealing=True` makes the schedule itself and needs a number as "
                    f"`learning_rate`. Received: learning_rate={learning_rate}. Pass the base rate, "
                    "or leave use_cosine_annealing out and keep your schedule."
                )
            if total_iterations is None or total_iterations < 2:
                raise ValueError(
                    "`use_cosine_annealing=True` needs `total_iterations`, the updates in a "
                    f"cycle, and at least 2. Received: total_iterations={total_iterations}. Pass "
                    "the number of updates per epoch, say."
                )
            if t_cur >= total_iterations:
                raise ValueError(
                    "`t_cur` is the position of the first update in a cycle and must be in "
                    f"0 … total_iterations - 1 = {total_iterations - 1}. Received: t_cur={t_cur}. "
                    "Take it modulo total_iterations."
                )
            rate = CosineRate(
                CosineWarmRestarts(
                    rate.base,
                    total_iterations,
                    eta_min=eta_min,
                    eta_max=eta_max,
                    autorestart=autorestart is not False,
                ),
                rate.base,
            )
        else:
            _refuse_without_annealing(autorestart, eta_min, eta_max, t_cur)
        return cls(
            total_iterations,
            total_iterations_wd,
            normalize_weight_decay,
            use_cosine_annealing,
            autorestart,
            eta_min,
            eta_max,
            t_cur,
            rate,
            factor,
            _normalized_over(rate, total_iterations, total_iterations_wd, normalize_weight_decay),
        )

    def normalization(self, position: Any) -> Any:
        """Return √(1/T) (Appendix B.1), a Python 1.0 where decay is not normalized."""
        if self.normalized_over is None:
            return 1.0
        if self.normalized_over:
            return self.normalized_over**-0.5
        return ops.rsqrt(ops.cast(self._cosine.cycle_steps(position), "float32"))

    def first_normalization(self) -> float:
        """Return √(1/T) of the first cycle."""
        if self.normalized_over == 0:
            return float(self._cosine.first_decay_steps) ** -0.5
        return float(self.normalization(0))

    def position(self, step: Any) -> Any:
        """Return the position in the current cycle; without a cosine, the step itself."""
        return self._cosine.position(step) if isinstance(self.rate, CosineRate) else step

    def step_at(self, position: Any) -> int:
        """Return the step s at which the first cycle is at `position`."""
        if not isinstance(self.rate, ScheduleRate):
            raise ValueError(
                "`restart()` needs a schedule to restart: `use_cosine_annealing=True`, or a "
                "`CosineWarmRestarts` or another Keras schedule as `learning_rate`. "
                f"Received: position={position} with a learning rate that has no schedule."
            )
        position = _position("position", position)
        if not isinstance(self.rate, CosineRate):
            return position
        if position >= self._cosine.first_decay_steps:
            raise ValueError(
                "`position` is a position in the first cycle and must be in 0 … T - 1 = "
                f"{self._cosine.first_decay_steps - 1}. Received: position={position}. "
                "restart() without an argument goes to the start of the cycle."
            )
        return self._cosine.warmup_steps + position

    @property
    def _cosine(self) -> CosineWarmRestarts:
        assert isinstance(self.rate, CosineRate)
        return self.rate.schedule

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as given."""
        own = {"rate", "factor", "normalized_over"}
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in own
        }


def _iterations(name: str, value: Any) -> int | None:
    if value is None:
        return None
    return checks.integer(name, value, minimum=1, cure="It counts weight updates.")


def _position(name: str, value: Any) -> int:
    cure = "0 is the first update of a cycle, and so is keras-adamw's -1."
    return max(checks.integer(name, value, minimum=-1, cure=cure), 0)


def _refuse_without_annealing(
    autorestart: bool | None, eta_min: float, eta_max: float, t_cur: int
) -> None:
    given = {
        "autorestart": autorestart if autorestart else False,
        "eta_min": eta_min if eta_min != 0 else False,
        "eta_max": eta_max if eta_max != 1 else False,
        "t_cur": t_cur if t_cur != 0 else False,
    }
    for name, value in given.items():
        if value is not False:
            raise ValueError(
                f"`{name}` belongs to cosine annealing and needs `use_cosine_annealing=True`. "
                f"Received: {name}={value}. Set use_cosine_annealing=True and total_iterations, "
                "or give it to the `CosineWarmRestarts`."
            )


def _normalized_over(
    rate: Rate, total: int | None, total_wd: int | None, normalize: bool | None
) -> int | None:
    if normalize is False:
        if total_wd is not None:
            raise ValueError(
                "`total_iterations_wd` is the T of normalized decay, and "
                "`normalize_weight_decay=False` turns normalization off. Received: "
                f"total_iterations_wd={total_wd}. Leave one of the two out."
            )
        return None
    if total_wd is not None:
        return total_wd
    if isinstance(rate, CosineRate):
        return 0 if normalize or total is not None else None
    if total is None and normalize:
        raise ValueError(
            "`normalize_weight_decay=True` multiplies decays by √(1/T) and finds no T. Received: "
            "total_iterations=None, total_iterations_wd=None. Give one of them, or a "
            "`CosineWarmRestarts` as learning_rate."
        )
    return total
