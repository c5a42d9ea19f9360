"""The one mechanism under every optimizer: an update is read θ, step, decay, write.

An update of a variable θ with gradient g is

    u = step(g; η·α·m)
    θ ← decayed(θ, u)            see `decay/kinds.py`

where the learning rate α never meets the decay, and the decay never enters the optimizer's state.
A class built on `Decoupled` adds only `step`: see `optimizers/adamw.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_decoupled import checks, fast
from keras_decoupled.core.arguments import keras_arguments
from keras_decoupled.core.configured import Configured
from keras_decoupled.core.entry import Entry
from keras_decoupled.core.gradients import check_variables, dense
from keras_decoupled.core.numbers import Numbers
from keras_decoupled.core.persistent import read
from keras_decoupled.decay import regularizers
from keras_decoupled.decay.kinds import decayed
from keras_decoupled.decay.rules import Rules
from keras_decoupled.decay.table import Table
from keras_decoupled.schedule import timing
from keras_decoupled.schedule.rates import CallableRate
from keras_decoupled.schedule.timing import Timing


class Decoupled(Configured):
    """Base of the optimizers with independent weight decay; users take `AdamW` and its kin.

    `hyperparameters` are the optimizer's own arguments, which the class's `HYPERPARAMETERS` check;
    the others are in `core/arguments.py`.
    """

    # Names the fused kernels in fast/. A class derived from this one may compute something else,
    # so that it has to name its own.
    fused_kernel: ClassVar[str | None] = None

    def __init__(
        self,
        learning_rate: Any,
        hyperparameters: Mapping[str, Any] | None = None,
        *,
        weight_decay: Any = None,
        weight_decays: Mapping[Any, Any] | None = None,
        lr_multipliers: Mapping[Any, float] | None = None,
        decay_vectors: bool = True,
        model: keras.Model | None = None,
        zero_penalties: bool = True,
        init_verbose: bool = False,
        **shared: Any,
    ) -> None:
        about_time = {name: shared.pop(name) for name in timing.ARGUMENTS if name in shared}
        own = self._checked(hyperparameters or {})
        shared = keras_arguments(shared)
        zero_penalties = checks.flag(
            "zero_penalties", zero_penalties, cure="False leaves the penalties in the loss, too."
        )
        init_verbose = checks.flag("init_verbose", init_verbose, cure="True prints the table.")
        decay_vectors = checks.flag(
            "decay_vectors", decay_vectors, cure="False leaves biases and scales undecayed."
        )
        given = (weight_decay, weight_decays, lr_multipliers)
        rules = Rules(*given, self.key_of, self.decide_part, decay_vectors)
        times = Timing.read(learning_rate, **about_time)
        if model is not None:
            rules.extract(model, zero_penalties, times.first_normalization())
        # Keras' own weight decay is multiplied by the learning rate: it must not see ours.
        super().__init__(times, rules, **self._for_keras(own, shared))
        if taken := {"fast", "init_verbose"} & self.__dict__.keys():
            raise ValueError(
                f"`{type(self).__name__}` must not have attributes of its own with the names of "
                f"this package's. Received: {sorted(taken)}. Give them other names."
            )
        for name in self.HYPERPARAMETERS:
            setattr(self, name, own[name])
        self.init_verbose = init_verbose
        self.fast = True  # False: `update_step` alone, for those who look into the numbers
        self._fast_update: Any = None
        self._fast_step: Any = None
        if model is not None and zero_penalties:  # last: every error was raised by now
            regularizers.remove_penalties(model)

    def _for_keras(self, own: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
        """Return what Keras' constructor takes, beside the learning rate."""
        return shared

    # What a class built on this one adds, beside `slot_names`.

    def add_scalars(self) -> None:
        """Make optimizer variables that are not per variable, at the first build."""

    def scalars(self, i: Any, on: Any) -> tuple[Any, ...]:
        """Return what `step` needs once per update; i = k + 1, and `on` computes: `OnTensors`."""
        return ()

    def end_of_update(self, scalars: tuple[Any, ...], on: Any) -> None:
        """Assign optimizer variables that are not per variable, once per update."""

    def step(
        self, gradient: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return what is subtracted from the variable, and the new slots."""
        raise NotImplementedError

    # Building.

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state of these variables; called again, known ones keep what they have."""
        variables = list(variables)
        self._slots.begin_build()
        keys = check_variables(variables, self.key_of)
        if self.built and keys == self._slots.keys:
            self._slots.note_what_is_frozen()
            return
        rows, unclaimed = self._rules.resolve(variables)
        table = Table(rows, settable=self._given_decay is not None)
        if isinstance(self._timing.rate, CallableRate):
            self._timing.rate.fix_base()
        self._warn_of_no_decay(table)
        if any(keras.backend.standardize_dtype(v.dtype) == "float64" for v in variables):
            self._on_tensors.dtype = "float64"
        if not self.built:
            self.add_scalars()
        self._table = table
        self.build_keras(variables)
        self._add_slots(variables, [row.decay for row in rows])
        self._rules.remember(keys, rows, unclaimed)
        self._slots.line_up(keys, variables, table, self.slot_names)
        slots = self._slots.in_order(self.slot_names)
        ids = set(map(id, slots))
        self.set_order([*(v for v in self.variables if id(v) not in ids), *slots])
        for variable, row in zip(variables, rows, strict=True):
            # A layer that hard-codes its regularizer brings it back on load.
            penalty = row.removed_penalty
            if penalty and regularizers.read_penalty(variable) == penalty:
                regularizers.remove_penalty(variable)
        self._fast_update, self._fast_step = fast.paths_of(self)
        if self.init_verbose:
            print(self.explain())

    # Updating.

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Update the variables with these gradients."""
        variables = self.built_on
        if trainable_variables is not None:
            variables = trainable_variables = list(trainable_variables)
            if len(grads) not in (0, len(variables)):  # without any, Keras does nothing
                raise ValueError(
                    "`apply` needs one gradient for each variable, None where there is none. "
                    f"Received: {len(grads)} gradients for {len(variables)} variables."
                )
            self._build_on_new(variables)
            if self._is_built_on(variables):
                trainable_variables = None  # Keras need not look for each of them again
        if len(grads) == len(variables):
            grads = list(map(dense, grads, variables, self._gradient_specs(variables)))
        update = self._fast_update
        before = update and update.version()
        # Keras asks for the rate at each update, and nothing but a callable one is taken from it.
        self._rate_unused = not isinstance(self._timing.rate, CallableRate)
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._rate_unused = False
        if update:
            update.note_increment(before)

    def update_all(self, grads: Sequence[Any], variables: Sequence[Any], rate: Any) -> None:
        """Compute the numbers of the update once, and hand them on in the learning rate's place."""
        if fast_update := self._fast_now():
            rest = fast_update.update(grads, variables, rate)
            if not rest:
                return
            grads, variables = zip(*rest, strict=True)
        numbers = self.numbers(self._on_tensors, rate)
        self.update_each(grads, variables, numbers)
        self.end_of_update(numbers.scalars, self._on_tensors)

    def _fast_now(self) -> Any:
        """Return what updates all variables together, None where it is not to be used here."""
        update = self._fast_update if self.fast else None
        return update if update is not None and update.usable() else None

    def _average(self, each: Sequence[tuple[Entry, Any, Any]]) -> None:
        if fast_update := self._fast_now():
            each = fast_update.average(each)
        if each:
            super()._average(each)

    def accumulate(self, grads: Sequence[Any], accumulators: Sequence[Any]) -> None:
        """Add the gradients of a micro-batch, on torch all at once."""
        if fast_update := self._fast_now():
            fast_update.accumulate(grads, accumulators)
        else:
            super().accumulate(grads, accumulators)

    def empty(self, accumulators: Sequence[Any]) -> None:
        """Set all gradient accumulators to 0, on torch all at once."""
        if fast_update := self._fast_now():
            fast_update.empty(accumulators)
        else:
            super().empty(accumulators)

    def numbers(self, on: Any, learning_rate: Any) -> Numbers:
        """Compute what the whole update shares, with tensors or, on torch, with floats of the host.

        Only a callable rate is taken from `learning_rate`: it may be asked once per update.
        """
        times, table = self._timing, self._table
        updates, position = self._counts(on)
        if isinstance(times.rate, CallableRate):
            rate = on.number(ops.convert_to_tensor(learning_rate))
            eta = rate / times.rate.base
        else:
            rate, eta = self._rate_and_eta(on, position)
        normalization = on.evaluate(times.normalization, position)
        # η⁰ is 1, also at η = 0.
        powers = {power: eta**power if power else eta * 0 + 1 for _, power in table.amounts}
        return Numbers(
            rates=tuple(rate * m for m in table.multipliers),
            decays=tuple(
                powers[power] * normalization * self._amount(on, number, updates)
                for number, power in table.amounts
            ),
            scalars=self.scalars(on.number(updates + 1), on),
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """θ ← decayed(θ, step); `learning_rate` has the `Numbers` of the update."""
        numbers = learning_rate
        if not isinstance(numbers, Numbers):  # called by hand, and not by `update_all`
            numbers = self.numbers(self._on_tensors, learning_rate)
        entry = self._slots.entries[self.index_of(variable)]
        if entry.row.multiplier == 0:  # frozen: left exactly as it is
            return
        theta = read(variable, entry.master)

        def cast(x: Any) -> Any:  # Keras' own cast takes its time where there is nothing to do
            return x if getattr(x, "dtype", None) == theta.dtype else ops.cast(x, theta.dtype)

        l2, l1 = (
            None if place is None else cast(numbers.decays[place])
            for place in (entry.places.l2, entry.places.l1)
        )
        rate, scalars = cast(numbers.rates[entry.places.rate]), tuple(map(cast, numbers.scalars))
        decay, reference = entry.row.decay, entry.reference
        gradient = cast(gradient)
        step_in_place = self._fast_step
        if (
            step_in_place
            and self.fast
            and decay.linear
            and l1 is None  # alone, a small l1 would be lost beside a large weight
            and entry.master is None
            and step_in_place.usable(variable, gradient)
        ):
            if l2 is not None:
                step_in_place.decay(variable, theta, l2)
            step_in_place.step(variable, gradient, entry.slots, rate, scalars)
            return
        step = cast(self._take_step(entry, variable, theta, gradient, rate, scalars))
        if reference is not None:
            reference = cast(ops.convert_to_tensor(reference))
        theta = decayed(theta, step, decay, l2, l1, reference)
        if entry.master is not None:
            self.assign(entry.master, theta)
            theta = ops.cast(theta, variable.dtype)
        self.assign(variable, theta)

    def _take_step(
        self,
        entry: Entry,
        variable: Any,
        theta: Any,
        gradient: Any,
        rate: Any,
        scalars: tuple[Any, ...],
    ) -> Any:
        """Return the optimizer's step, and assign its new slots; `theta` is the variable's value."""
        # Tensors, as the + of Keras' variables takes a short cut that fails on the shape (0, 3).
        values = tuple(map(ops.stop_gradient, entry.slots))
        step, new = self.step(gradient, values, rate, scalars)
        for slot, value in zip(entry.slots, new, strict=True):
            self.assign(slot, value)
        return step
