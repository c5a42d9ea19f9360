"""One update: what runs once for it, and what runs for each variable.

An update of a variable θ with gradient g is

    u = step(g; η·α·m)
    θ ← decayed(θ, u)            see `decay/kinds.py`

The learning rate α never meets the decay, and the decay never enters the optimizer's state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import keras
from keras import ops

from keras_decoupled import fast
from keras_decoupled.checks import Seen, refuse
from keras_decoupled.core.gradients import check_variables, dense
from keras_decoupled.core.numbers import Numbers, OnTensors, Own, Watched, cast, has_value
from keras_decoupled.core.registry import AVERAGE, Amount, Record
from keras_decoupled.core.settings import Setting, as_number
from keras_decoupled.decay.kinds import decayed
from keras_decoupled.paths.match import path_of


class Update:
    """The updates of one optimizer."""

    def __init__(self, optimizer: Any, dtype: str) -> None:
        self._optimizer = optimizer
        self.on = OnTensors(dtype)
        self.host = fast.on_host()  # computes with floats, on torch; None elsewhere
        self.fast: Any = None  # updates all variables together, on torch
        self.fast_step: Any = None  # steps one variable, on TensorFlow without XLA
        # While an update runs: its numbers, and what `optimizer.learning_rate` is.
        self._now: Numbers | None = None
        self._rate: Any = None
        self._updated = False  # whether an update has run
        # In `apply`, once Keras has asked for the rate: what computed it (`on`), and the answer.
        self._applying = False
        self._asked: tuple[Any, tuple[Any, ...]] | None = None

    # Once per call of `apply`.

    def ready(self, grads: Sequence[Any], variables: Any) -> tuple[Sequence[Any], Any]:
        """Return the gradients as dense tensors, and the variables.

        The variables are None if they are those of the last build, in its order. If some are
        unknown, the optimizer is built on them too.
        """
        optimizer, registry = self._optimizer, self._optimizer._kd.registry
        records = registry.built
        if variables is not None:
            variables = list(variables)
            if len(grads) not in (0, len(variables)):  # without any, Keras does nothing
                what = f"{len(grads)} gradients for {len(variables)} variables"
                rule = "needs one gradient for each variable, None where there is none"
                refuse("apply", Seen(what), rule, "Give gradients and variables in one order.")
            if not registry.is_built_on(variables):
                key_of = registry.rules.key_of
                if optimizer.built:
                    keys = set(map(key_of, variables))
                    known = {record.key for record in records}
                    if not keys <= known:
                        if self._updated and keys.isdisjoint(known):
                            refuse_other_model()
                        kept = [r.variable for r in records if r.key not in keys]
                        optimizer.build([*kept, *variables])
                else:
                    check_variables(variables, key_of)
                records = [registry.find(v) or Record(None, v) for v in variables]
            if registry.is_built_on(variables):
                variables = None  # Keras need not look for each of them again
        if len(grads) == len(records):
            grads = [dense(g, r.variable, r.gradient) for g, r in zip(grads, records, strict=True)]
        return grads, variables

    @contextlib.contextmanager
    def applying(self) -> Iterator[None]:
        """Take note that `apply` runs."""
        self._applying, self._asked = True, None
        before = self.fast and self.fast.version()
        try:
            yield
        finally:
            self._applying, self._asked = False, None
        if self.fast:
            self.fast.note_increment(before)

    def learning_rate(self) -> Any:
        """Return `optimizer.learning_rate`: of the update that runs, else of the next one."""
        if self._rate is not None:
            return self._rate
        clock = self._optimizer._kd.clock
        if not self._applying:
            return clock.learning_rate(self.on)
        if clock.constant:
            return clock.rate.variable
        # Keras asks before each update: the schedule is evaluated here, and not a second time.
        fast = self.usable()
        on = fast.on if fast else self.on
        self._asked = on, clock.now(on)
        return self._asked[1][1]

    def check_values(self, values: Sequence[Any]) -> None:
        """On JAX, refuse values that are not of the variables that the optimizer was built on."""
        kd = self._optimizer._kd
        variables = kd.registry.variables
        # `fit` has emptied the optimizer's variables and those of the model that it trains.
        if variables and not has_value(kd.clock.counter) and all(map(has_value, variables)):
            refuse_other_model()
        kd.registry.check_values(values)

    # Once per update.

    def run(self, grads: Sequence[Any], variables: Sequence[Any], each: Callable[..., Any]) -> None:
        """Update these variables; `each` has Keras call `update_step` for each of them."""
        self._updated = True
        fast = self.usable()
        try:
            if fast:
                rest = fast.update(grads, variables)
                if not rest:
                    return
                grads, variables = zip(*rest, strict=True)
            numbers = self.begin(self.on)
            each(grads, variables, numbers.rate)
        finally:
            self._now = self._rate = None
        self.keep(numbers, self.on)

    def usable(self) -> Any:
        """Return the fast update of all variables, None if it cannot be used here."""
        fast = self.fast
        return fast if fast and self._optimizer._kd.fast and fast.usable() else None

    def begin(self, on: Any) -> Numbers:
        """Compute what the update shares, with tensors or, on torch, with floats of the host.

        Until the update is over, `optimizer.learning_rate` and the settings have its numbers.
        """
        kd = self._optimizer._kd
        clock, algorithm, registry = kd.clock, kd.algorithm, kd.registry
        asked_on, asked = self._asked or (None, None)
        if asked is None or (asked_on is self.on and on is not self.on):
            asked = clock.now(on)
        k, rate, eta, normalization = asked  # may be floats of the host, which tensors accept
        # η⁰ is 1, also at η = 0.
        powers = {power: eta**power if power else eta * 0 + 1 for _, power in registry.amounts}
        own = self._own(on, k)
        state = {name: on.read(registry.scalars[name]) for name in algorithm.state}
        scalars = algorithm.scalars(own, on.number(k + 1), on, state)
        self._rate = rate
        self._now = Numbers(
            dtype=on.dtype,
            rate=rate,
            decays=tuple(
                powers[amount.power] * normalization * self._amount(on, amount, k)
                for amount in registry.amounts
            ),
            multipliers=tuple(on.evaluate(schedule, k) for schedule in registry.multipliers),
            own=own,
            scalars=tuple(map(on.tensor, scalars)),
        )
        return self._now

    def ahead(self) -> Numbers:
        """Return what the next update will compute."""
        try:
            return self.begin(self.on)
        finally:
            self._now = self._rate = None

    def _own(self, on: Any, k: Any) -> Own:
        optimizer = self._optimizer
        settings, names = optimizer._kd.settings, optimizer._kd.algorithm.arguments
        values = {name: getattr(optimizer, name) for name in names if name not in settings}
        on = self.host or on  # Keras' torch code needs floats
        values |= {name: setting.read(on, k) for name, setting in settings.items()}

        def exactly(function: Callable[[Any], Any], name: str) -> Any:
            setting = settings.get(name)
            if setting is None or setting.variable is None:
                return function(values[name])
            return setting.exactly(function, on)

        return Own(values, exactly)

    @contextlib.contextmanager
    def trial(self, settings: Mapping[str, Any]) -> Iterator[Numbers]:
        """Have the settings be these, as if an update ran."""
        self._now = Numbers("float32", 1.0, (), (), Watched(settings), ())
        try:
            yield self._now
        finally:
            self._now = None

    def moving(self, names: Collection[str] = ()) -> dict[str, float]:
        """Return the settings that are scheduled or were moved, as the next update uses them.

        The settings with these names are always returned.
        """
        kd = self._optimizer._kd
        k, _ = kd.clock.counts(self.on)
        return {
            name: as_number(setting.read(self.on, k)) if setting.scheduled else setting.now()
            for name, setting in kd.settings.items()
            if name in names or setting.scheduled or setting.moved
        }

    def setting(self, setting: Setting) -> Any:
        """Return a setting: as the update that runs computes with it, else its number now."""
        if self._now is not None:
            return getattr(self._now.own, setting.name)
        self._optimizer._kd.clock.check_state()
        return setting.now()

    def _amount(self, on: Any, amount: Amount, k: Any) -> Any:
        number = amount.number
        if number is None:  # λ
            return self._optimizer._kd.registry.decay.read(on)
        return number if isinstance(number, float) else on.evaluate(number, k)

    def keep(self, numbers: Numbers, on: Any) -> None:
        """At the end of an update, save the optimizer's state that belongs to no variable."""
        kd = self._optimizer._kd
        if kd.algorithm.state:
            for name, value in kd.algorithm.new_state(numbers.scalars).items():
                on.write(kd.registry.scalars[name], value)

    # For each variable.

    def step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """θ ← decayed(θ, step), with the step at this learning rate times the multiplier."""
        numbers = self._now
        if numbers is None:
            refuse(
                "update_step",
                Seen(f"a call for {path_of(variable)} outside of an update"),
                "is called by `apply`, which computes what the update needs",
                "Call `optimizer.apply(gradients, variables)`. If you did, this version of Keras "
                "does not fit this version of keras_decoupled: upgrade both.",
                RuntimeError,
            )
        optimizer = self._optimizer
        record = optimizer._kd.registry.find(variable)
        row, master, reference = record.row, record.master, record.reference
        if row.multiplier == 0:  # frozen: left exactly as it is
            return
        theta = read(variable, master)
        dtype, decay = theta.dtype, row.decay
        scheduled = record.schedule is not None
        multiplier = numbers.multipliers[record.schedule] if scheduled else row.multiplier
        rate = learning_rate if row.multiplier == 1 else learning_rate * multiplier
        rate, gradient = cast(rate, dtype), cast(gradient, dtype)
        l2, l1 = (
            None if place is None else cast(numbers.decays[place], dtype)
            for place in (record.l2, record.l1)
        )
        if (
            self.fast_step
            and optimizer._kd.fast
            and decay.linear
            and l1 is None  # alone, a small l1 would be lost beside a large weight
            and master is None
            and not scheduled
            and self.fast_step.usable(variable, gradient)
        ):
            own, scalars = numbers.of(dtype)
            if l2 is not None:
                self.fast_step.decay(variable, theta, l2)
            self.fast_step.step(own, variable, gradient, record.own, rate, scalars)
            return
        step = cast(optimizer._kd_step(record, variable, theta, gradient, rate, numbers), dtype)
        if record.late and reference is not None:
            first = ops.equal(optimizer.iterations, 0)
            value = ops.where(first, cast(theta, reference.dtype), reference)
            optimizer.assign(reference, value)
        if reference is not None:
            reference = cast(ops.convert_to_tensor(reference), dtype)
        new = decayed(theta, step, decay, l2, l1, reference)
        # While the multiplier is 0, the weight stays as it is, and its moments are updated.
        theta = ops.where(multiplier == 0, theta, new) if scheduled else new
        if master is not None:
            optimizer.assign(master, theta)
            theta = ops.cast(theta, variable.dtype)
        optimizer.assign(variable, theta)

    @contextlib.contextmanager
    def at_rate(self, rate: Any, numbers: Numbers, dtype: Any) -> Iterator[None]:
        """While a stock step runs, use its rate, and the settings in its variable's type."""
        before = self._rate, self._now
        self._rate, self._now = rate, numbers._replace(own=numbers.of(dtype)[0])
        try:
            yield
        finally:
            self._rate, self._now = before

    # Moving averages and accumulated gradients.

    def average(self) -> None:
        """Update the moving averages, of variables below float32 from their float32 copies."""
        each = [r for r in self._optimizer._kd.registry.built if AVERAGE in r.slots]
        fast = self.usable()
        if fast:
            each = fast.average(each)
        momentum = self._optimizer.ema_momentum
        if each:
            momentum = momentum * ops.cast(self._optimizer.iterations != 0, self.on.dtype)
        for record in each:
            average, theta = record.slots[AVERAGE], read(record.variable, record.master)
            kept = ops.cast(momentum, theta.dtype)
            # Not `average` itself: the + of Keras' variables fails on TensorFlow on shape (0, 3).
            old = ops.stop_gradient(ops.convert_to_tensor(average))
            self._optimizer.assign(average, kept * old + (1 - kept) * theta)
        frequency = self._optimizer.ema_overwrite_frequency
        if frequency and keras.backend.backend() == "jax":  # there, Keras itself sets the variables
            due = (self._optimizer.iterations + 1) % frequency == 0
            for record in each:
                if record.master is not None:
                    both = record.slots[AVERAGE], record.master
                    value = ops.where(due, *map(ops.convert_to_tensor, both))
                    self._optimizer.assign(record.master, value)

    def overwrite_with_averages(self, variables: Sequence[Any]) -> None:
        """Set each variable, and its float32 copy, to the average."""
        registry = self._optimizer._kd.registry
        built = set(map(id, registry.built))
        for variable in variables:
            record = registry.find(variable)
            if (
                id(record) in built and AVERAGE in record.slots
            ):  # else unfrozen after the last update
                # A copy: JAX cannot donate one buffer to two variables in the next step.
                average = record.slots[AVERAGE]
                if record.master is not None:
                    self._optimizer.assign(record.master, ops.copy(average))
                self._optimizer.assign(variable, ops.cast(ops.copy(average), variable.dtype))


def refuse_other_model() -> NoReturn:
    """Refuse to train a model with an optimizer that has trained another one."""
    refuse(
        "apply",
        Seen("a model of which it knows no variable"),
        "cannot train another model after its first update: its count of updates and its schedule "
        "belong to the first one",
        "Make a new optimizer for each model. To train another part of a model with this one, call "
        "`optimizer.build(variables)` first.",
    )


def read(variable: Any, master: Any) -> Any:
    """Return θ, outside any gradient tape.

    A variable below float32 has a float32 copy. The copy is used only while it still rounds to the
    variable's value. So a value that a load or a constraint assigned to the variable counts.
    """
    theta = ops.stop_gradient(variable)
    if master is None:
        return theta
    master = ops.convert_to_tensor(master)
    return ops.where(
        ops.equal(ops.cast(master, theta.dtype), theta), master, ops.cast(theta, master.dtype)
    )
