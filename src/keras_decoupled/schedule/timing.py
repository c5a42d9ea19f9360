"""The arguments about time, as in keras-adamw: a schedule, its start, and T, updates per cycle."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from keras import ops

from keras_decoupled import checks
from keras_decoupled.checks import Seen, refuse

from .cosine import CosineWarmRestarts
from .exact import INT32_MAX
from .rates import ConstantRate, CosineRate, ExactRate, Rate, ScheduleRate, make_rate

_count = partial(
    checks.integer, minimum=1, cure="It counts weight updates. Leave it out if there is no cycle."
)


def _position(name: str, value: Any) -> int:
    cure = "0 is the first update of a cycle, and so is keras-adamw's -1."
    return max(checks.integer(name, value, minimum=-1, cure=cure), 0)


# The default and the check of each argument. A default of None means "not given": no check.
_GIVEN: dict[str, tuple[Any, Callable[[str, Any], Any]]] = {
    "total_iterations": (None, _count),
    "total_iterations_wd": (None, _count),
    "normalize_weight_decay": (None, partial(checks.flag, cure="None normalizes if T is given.")),
    "use_cosine_annealing": (False, partial(checks.flag, cure="False leaves the rate alone.")),
    "autorestart": (None, partial(checks.flag, cure="None is True with cosine annealing.")),
    "eta_min": (0.0, partial(checks.real, minimum=0.0, cure="It is η at a cycle's end.")),
    "eta_max": (1.0, partial(checks.real, minimum=0.0, cure="It is η at a cycle's start.")),
    "t_cur": (0, _position),
}
ARGUMENTS = ("base_learning_rate", *_GIVEN)


@dataclasses.dataclass(frozen=True)
class Timing:
    """What the arguments about time mean."""

    rate: Rate
    rate_factor: float  # r at the first update
    normalize_by: int | Literal["cycle"] | None  # T: fixed, the current cycle's, or none
    use_cosine_annealing: bool
    t_cur: int  # position of the first update
    given: dict[str, Any]  # the arguments that are not the default, checked

    @classmethod
    def read(cls, learning_rate: Any, base_learning_rate: Any = None, **given: Any) -> Timing:
        """Check each argument, then all together. One that is left out has its default."""
        rate, rate_factor = make_rate(learning_rate, base_learning_rate)
        for name, (default, check) in _GIVEN.items():
            value = given.get(name, default)
            given[name] = None if value is None and default is None else check(name, value)
        total, eta_min, eta_max = given["total_iterations"], given["eta_min"], given["eta_max"]
        if eta_min > eta_max:
            rule = "must not exceed `eta_max`: in a cycle η falls from eta_max to eta_min"
            refuse("eta_min", Seen(f"eta_min={eta_min}, eta_max={eta_max}"), rule, "Swap them.")
        if total is not None and isinstance(rate, CosineRate):
            refuse(
                "total_iterations",
                Seen(f"total_iterations={total}, learning_rate={learning_rate}"),
                "and a `CosineWarmRestarts` both say how long a cycle is",
                "For normalized decay pass `normalize_weight_decay=True` or `total_iterations_wd` "
                "(a fixed T).",
            )
        changed = {name: x for name, x in given.items() if x != _GIVEN[name][0]}
        annealing, t_cur = given["use_cosine_annealing"], given["t_cur"]
        if annealing:
            rate = _annealed(rate, learning_rate, given)
        else:
            for name in ("autorestart", "eta_min", "eta_max", "t_cur"):
                # keras-adamw's autorestart=False changes nothing where there is no cosine.
                harmless = not isinstance(rate, CosineRate) and changed.get(name) is False
                if name in changed and not harmless:
                    rule = "belongs to cosine annealing and needs `use_cosine_annealing=True`"
                    cure = "Set use_cosine_annealing=True and total_iterations, or give it to the "
                    refuse(name, given[name], rule, f"{cure}`CosineWarmRestarts`.")
        return cls(rate, rate_factor, _normalize_by(rate, given), annealing, t_cur, changed)

    def normalization(self, s: Any) -> Any:
        """Return √(1/T) (Appendix B.1) at step s, or the float 1.0 if decay is not normalized."""
        if self.normalize_by == "cycle":
            return ops.rsqrt(ops.cast(self._cosine.cycle_steps(s), "float32"))
        return 1.0 if self.normalize_by is None else self.normalize_by**-0.5

    def first_normalization(self) -> float:
        """Return √(1/T) of the first cycle."""
        T = self._cosine.first_decay_steps if self.normalize_by == "cycle" else self.normalize_by
        return 1.0 if T is None else float(T) ** -0.5

    def position(self, s: Any) -> Any:
        """Return the position in the cycle or after the warm-up; for other schedules, the step."""
        return self.rate.schedule.position(s) if isinstance(self.rate, ExactRate) else s

    def step_at(self, position: Any) -> int:
        """Return the step s at `position` of the first cycle, or after the warm-up."""
        if not isinstance(self.rate, ScheduleRate):
            refuse(
                "restart()",
                Seen("an optimizer with no schedule"),
                "needs a schedule to restart: `use_cosine_annealing=True`, or a "
                "`CosineWarmRestarts` or another Keras schedule as `learning_rate`",
                "Make the optimizer with one.",
            )
        position = _position("position", position)
        if position > INT32_MAX:
            rule = f"must be at most {INT32_MAX}: updates are counted in int32"
            refuse("position", position, rule, "0 is the start of the schedule.")
        if not isinstance(self.rate, ExactRate):
            return position
        if isinstance(self.rate, CosineRate) and position >= self._cosine.first_decay_steps:
            last = self._cosine.first_decay_steps - 1
            rule = f"is a position in the first cycle and must be in 0 … T - 1 = {last}"
            cure = "restart() without an argument goes to the start of the cycle."
            refuse("position", position, rule, cure)
        return self.rate.schedule.warmup_steps + position

    @property
    def _cosine(self) -> CosineWarmRestarts:
        assert isinstance(self.rate, CosineRate)
        return self.rate.schedule

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that are not the default."""
        return dict(self.given)


def _annealed(rate: Rate, learning_rate: Any, given: dict[str, Any]) -> CosineRate:
    total, t_cur = given["total_iterations"], given["t_cur"]
    if not isinstance(rate, ConstantRate):
        rule = "must be a number: `use_cosine_annealing=True` makes the schedule"
        cure = "Pass the base rate, or leave use_cosine_annealing out and keep your schedule."
        refuse("learning_rate", learning_rate, rule, cure)
    if rate.known_base is None:
        rule = "must be above 0 with `use_cosine_annealing=True`: a cycle begins there"
        refuse("learning_rate", learning_rate, rule, "Pass the rate at the top of a cycle.")
    if total is None or total < 2:
        rule = "must be ≥ 2 with `use_cosine_annealing=True`: it counts the updates of a cycle"
        refuse("total_iterations", total, rule, "Pass the updates per epoch, say.")
    if t_cur >= total:
        rule = f"is the position of the first update and must be in 0 … T - 1 = {total - 1}"
        refuse("t_cur", t_cur, rule, "Take it modulo total_iterations.")
    eta = {name: given[name] for name in ("eta_min", "eta_max")}
    again = given["autorestart"] is not False
    return CosineRate(CosineWarmRestarts(rate.base, total, autorestart=again, **eta), rate.base)


def _normalize_by(rate: Rate, given: dict[str, Any]) -> int | Literal["cycle"] | None:
    total, total_wd = given["total_iterations"], given["total_iterations_wd"]
    normalize = given["normalize_weight_decay"]
    if normalize is False:
        if total_wd is not None:
            rule = "is the T of normalized decay, which `normalize_weight_decay=False` turns off"
            refuse("total_iterations_wd", total_wd, rule, "Leave one of the two out.")
        return None
    if total_wd is not None:
        return total_wd
    if isinstance(rate, CosineRate) and (normalize or total is not None):
        return "cycle"
    if total is None and normalize:
        refuse(
            "normalize_weight_decay=True",
            Seen("total_iterations=None, total_iterations_wd=None"),
            "multiplies decays by √(1/T) and finds no T",
            "Give one of them, or a `CosineWarmRestarts` as learning_rate.",
        )
    return total
