"""`Decoupled`: the class under every optimizer. It holds what Keras calls and what users call.

The work is done by its parts, which lie together in one attribute, `self._kd`. A user's class may
therefore use any other name. A class built on this one adds an `Algorithm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_decoupled.core import from_keras, report
from keras_decoupled.core.algorithm import Algorithm
from keras_decoupled.core.arguments import (
    KERAS_ARGUMENTS,
    OURS,
    Check,
    keras_arguments,
    shared_docstring,
)
from keras_decoupled.core.attributes import Attribute, ReadOnly, check_set
from keras_decoupled.core.build import build
from keras_decoupled.core.gradients import LOW_PRECISION
from keras_decoupled.core.keras_hooks import KerasHooks
from keras_decoupled.core.numbers import Numbers
from keras_decoupled.core.parts import Parts, refuse_names
from keras_decoupled.core.registry import (
    ACCUMULATOR,
    AVERAGE,
    MASTER,
    REFERENCE,
    Record,
    name_of_user,
)
from keras_decoupled.core.settings import as_number, check_own, plain
from keras_decoupled.decay.exclusions import check_call
from keras_decoupled.decay.explain import Explanation
from keras_decoupled.decay.kinds import Decay, number_to_config
from keras_decoupled.saving import state
from keras_decoupled.saving.config import read_config


class Decoupled(KerasHooks):
    """Base of all optimizers with independent weight decay; users make an `AdamW`, a `Lion`, ….

    `own` are the class's own arguments; the shared ones are described in `core/arguments.py`.
    """

    _kd_algorithm: ClassVar[Algorithm]
    _kd_twins: ClassVar[tuple[type[Any], ...]] = ()  # the stock classes with the same step
    _kd_kind: ClassVar[str] = ""  # name of the class that has the step; saved in files
    _kd_own: ClassVar[Mapping[str, Check]] = {}  # the class's own arguments, and their checks

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Complete the class's docstring, and add an attribute for each of its own arguments."""
        super().__init_subclass__(**kwargs)
        if "_kd_algorithm" in vars(cls):
            cls._kd_own, cls._kd_kind = cls._kd_algorithm.arguments, cls.__name__
            for name in cls._kd_own:
                setattr(cls, name, Attribute(name))
        if cls.__doc__ and "**shared" in cls.__doc__:
            cls.__doc__ = shared_docstring(cls.__doc__, cls.__name__)

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule | Callable[[], float],
        own: Mapping[str, Any] | None = None,
        *,
        weight_decay: float | LearningRateSchedule | Decay | None = None,
        **shared: Any,
    ) -> None:
        ours = {name: shared.pop(name) for name in OURS & shared.keys()}
        own, for_keras = self._kd_arguments(own or {}, keras_arguments(type(self), shared))
        ours["weight_decay"] = weight_decay
        kd = self.__dict__["_kd"] = Parts(self, self._kd_algorithm, learning_rate, ours)
        # Keras' own weight decay is multiplied by the learning rate: it must not see ours.
        super().__init__(learning_rate=kd.timing.rate, **for_keras)
        taken = PUBLIC & self.__dict__.keys()
        if taken:
            refuse_names(type(self), taken)
        for name, value in own.items():
            scheduled = name in self._kd_own and isinstance(value, LearningRateSchedule)
            if scheduled or name in kd.algorithm.arguments:
                setattr(self, name, value)
        kd.complete()

    # `optimizers/stock.py` overrides these.

    def _kd_arguments(
        self, own: Mapping[str, Any], shared: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the class's own arguments, checked, and what Keras' constructor takes."""
        checked = self._kd_algorithm.arguments.items()
        return {name: check_own(name, own[name], check) for name, check in checked}, shared

    def _kd_build_keras(self, variables: list[Any]) -> None:
        """Have Keras build, also a second time."""
        self._kd.inside.begin_build()
        super().build(variables)

    def _kd_step(
        self,
        record: Record,
        variable: Any,
        theta: Any,
        gradient: Any,
        rate: Any,
        numbers: Numbers,
    ) -> Any:
        """Return the step, and assign the variable's new slots; `theta` is its value."""
        # As tensors: on TensorFlow, the + of Keras' variables fails on the shape (0, 3).
        slots = tuple(map(keras.ops.stop_gradient, record.own))
        own, scalars = numbers.of(gradient.dtype)
        step, new = record.algorithm.step(own, gradient, slots, rate, scalars)
        for slot, value in zip(record.own, new, strict=True):
            self.assign(slot, value)
        return step

    def _kd_own_config(self) -> dict[str, Any]:
        """Return the class's own arguments as they are now."""
        own = {name: getattr(self, name) for name in self._kd_algorithm.arguments}
        return {name: number_to_config(plain(value)) for name, value in own.items()}

    def _kd_twin_state(self, stock: Any) -> list[tuple[Any, Any]]:
        """Return pairs of an optimizer variable of this optimizer and of its stock twin."""
        return from_keras.twin_state(self, stock)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would change nothing: `optimizer.lr = 0.1`, say."""
        kd = self.__dict__.get("_kd")
        if name[0] != "_" and kd is not None and kd.clock is not None:
            check_set(self, name, value)
        super().__setattr__(name, value)

    # Building.

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state of these variables; called again, known ones keep what they have."""
        build(self, list(variables))

    def add_variable_from_reference(
        self, reference_variable: Any, name: str | None = None, initializer: Any = "zeros"
    ) -> Any:
        """Add a variable's slot of that name, or return the one that an earlier build made."""
        registry = self._kd.registry
        record = registry.record(reference_variable)
        known_as = registry.name_of_request(record, name or "var")  # "var" is Keras' default
        if known_as == AVERAGE and self.use_ema:  # Keras' own request comes first
            return self._kd_add_own_slot(record, AVERAGE)
        if not (known_as == ACCUMULATOR and self.gradient_accumulation_steps):
            known_as = name_of_user(known_as)
        if known_as not in record.slots:
            make = super().add_variable_from_reference
            record.slots[known_as] = make(reference_variable, name, initializer)
        return record.slots[known_as]

    def _kd_add_own_slot(self, record: Record, name: str) -> Any:
        """Add an average, a float32 copy or a reference, or return that of an earlier build."""
        slot = record.slots.get(name)
        if slot is None:
            make, variable = super().add_variable_from_reference, record.variable
            if name == MASTER:  # may start at 0: it is used only while it rounds to the variable
                slot = make(variable, name)
            else:
                # Keras sets an average to its variable in update 0 only; one made later would stay
                # at 0. A traced TensorFlow step cannot read the variable, but what is made in a
                # StatelessScope gets its value when the scope ends, outside the trace.
                with keras.StatelessScope():
                    slot = make(variable, name, record.first_value)
            record.slots[name] = slot
        return slot

    def add_variable(
        self,
        shape: Any,
        initializer: Any = "zeros",
        dtype: Any = None,
        aggregation: str = "none",
        layout: Any = None,
        name: str | None = None,
    ) -> Any:
        """Add an optimizer variable, in float32 where the model's variable has less.

        A moment in bfloat16 stands still: adding a thousandth of a number does not change it.
        """
        dtype = "float32" if dtype in LOW_PRECISION else dtype
        return super().add_variable(shape, initializer, dtype, aggregation, layout, name)

    def reset_reference(self) -> None:
        """Take the present weights as the reference of `Decay(towards="initial")`."""
        for record in self._kd.registry.built:
            if record.reference is not None:
                record.start(REFERENCE)

    # Updating.

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Update the variables with these gradients."""
        update = self._kd.update
        grads, trainable_variables = update.ready(grads, trainable_variables)
        with update.applying():
            super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """θ ← decayed(θ, step), with the step at this learning rate times the multiplier."""
        self._kd.update.step(gradient, variable, learning_rate)

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> tuple[list[Any], list[Any]]:
        """Return the updated variables and optimizer variables, as in Keras."""
        if self.built:
            self._kd.update.check_values(trainable_variables)
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    # What users read and set.

    @property
    def fast(self) -> bool:
        """Whether faster ways than `update_step` are used. False helps to look into the numbers."""
        return self._kd.fast

    @fast.setter
    def fast(self, value: bool) -> None:
        self._kd_check_made("fast")
        self._kd.fast = bool(value)

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update, or of the update that runs, before layer multipliers.

        It is a `keras.Variable` if a number was given, as in stock Keras. Under a schedule it is a
        tensor, and setting it scales all later rates of the schedule.
        """
        return self._kd.update.learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._kd_check_made("learning_rate")
        self._kd.clock.set_learning_rate(value, self._kd.update.on)

    @property
    def lr_t(self) -> Any:
        """The same as `learning_rate` (keras-adamw's name)."""
        return self.learning_rate

    @property
    def eta_t(self) -> Any:
        """η of the next update: its learning rate, before layer multipliers, over α."""
        return self._kd.clock.now(self._kd.update.on)[2]

    @property
    def t_cur(self) -> Any:
        """Position of the next update in its cycle, or after the warm-up; else the step s."""
        clock = self._kd.clock
        return clock.timing.position(clock.counts(self._kd.update.on)[1])

    @t_cur.setter
    def t_cur(self, position: int) -> None:
        self._kd_check_made("t_cur")
        self.restart(position)

    def restart(self, position: int = 0) -> None:
        """Make the next update the one at `position` of the first cycle, without the warm-up.

        A `WarmupStableDecay` goes back to its stable part, and forgets `begin_decay`. A Keras
        schedule goes to the step `position`; if it has a warm-up, that is part of it.

        Args:
            position: 0 ≤ position < T of the first cycle; -1 is 0. Defaults to `0`.

        Raises:
            ValueError: there is no schedule, or no such position in it.
            RuntimeError: on JAX, called inside an epoch of `fit` on an optimizer that is not
                `self.model.optimizer`.
        """
        self._kd.clock.restart(position, self._kd.update.on)

    def begin_decay(self) -> None:
        """Begin the decay of a `WarmupStableDecay` with the next update.

        In the warm-up it begins with the first update after that. A second call changes nothing,
        so a callback may call this at every epoch. `restart()` goes back to the stable part.

        Raises:
            ValueError: the learning rate is no `WarmupStableDecay`.
            RuntimeError: on JAX, called inside an epoch of `fit` on an optimizer that is not
                `self.model.optimizer`.

        Example:
        >>> from keras_decoupled import AdamW, WarmupStableDecay
        >>> optimizer = AdamW(WarmupStableDecay(1e-3, None, decay_steps=1000), weight_decay=1e-4)
        >>> optimizer.begin_decay()
        """
        self._kd.clock.begin_decay(self._kd.update.on)

    @property
    def weight_decay(self) -> Any:
        """The uniform decay λ: a `keras.Variable` where a number was given, else as given.

        Setting it changes the decay only of the variables that get the uniform decay.
        """
        if self._kd.change.target is not None:  # the step of a stock class decays nothing
            return 0.0
        decay, uniform = self._kd.registry.decay, self._kd.registry.rules.weight_decay
        if decay is None:
            return uniform and uniform.l2
        self._kd.clock.check_state()
        return decay.variable

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        if self._kd.clock is None:
            return  # Keras' constructor sets its own, None or 0
        self._kd.clock.check_state()
        self._kd.registry.set_uniform(value)

    @property
    def weight_decays(self) -> dict[Any, Any]:
        """As given; after build `{variable.path: (l1, l2)}` of all that are not (0, 0).

        The numbers are those before normalization; `explain()` has what an update removes. A decay
        with other fields than l1 and l2 is listed as a `Decay`.
        """
        registry = self._kd.registry
        if not self.built:
            return ReadOnly("weight_decays", registry.rules.weight_decays_as_given)
        decays = {row.path: row.decay for row in registry.rows_now() if not row.decay.zero}
        found = {path: (d.l1, d.l2) if d.plain else d for path, d in decays.items()}
        return ReadOnly("weight_decays", found)

    @property
    def lr_multipliers(self) -> dict[Any, Any]:
        """As given; after build `{variable.path: multiplier}` of all that are not 1.

        A multiplier is a number, or the schedule that was given.
        """
        registry = self._kd.registry
        if not self.built:
            return ReadOnly("lr_multipliers", registry.rules.lr_multipliers)
        rows = (record.row for record in registry.built)
        found = {row.path: row.multiplier for row in rows if row.multiplier != 1}
        return ReadOnly("lr_multipliers", found)

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Exclude variables from every weight decay; adds to what earlier calls said.

        Args:
            var_list: variables.
            var_names: regular expressions, searched in each variable's path.

        Raises:
            ValueError: the optimizer, or the one that it is a copy of, is built already, or a
                pattern is not a regular expression.
        """
        registry = self._kd.registry
        copied = bool(registry.table or registry.waiting)
        check_call(self.built, copied, var_list=var_list, var_names=var_names)
        registry.rules.exclude(var_list or (), var_names or ())

    def explain(
        self,
        model_or_variables: keras.Model | Sequence[keras.Variable] | None = None,
        steps_per_epoch: int | None = None,
    ) -> Explanation:
        """Return a table of each variable's decay and the rule that gives it, with warnings.

        Nothing is built. `print` the table, or let a notebook show it; `rows` has it as dicts.

        Args:
            model_or_variables: a built model, whose trainable variables are explained, or a list
                of variables. Defaults to `None`: those that the optimizer is built on.
            steps_per_epoch: batches per epoch, for half-lives in epochs. Defaults to `None`.

        Raises:
            ValueError: the optimizer is not built and nothing is given, or the model has no
                variables yet, or the build would refuse a rule.
            TypeError: the argument is neither a model nor a list of variables.

        Example:
        >>> import keras
        >>> from keras_decoupled import AdamW
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> optimizer = AdamW(1e-3, weight_decay=1e-3, weight_decays={"bias": 0})
        >>> explanation = optimizer.explain(model, steps_per_epoch=100)
        >>> [(row["path"], row["rule"], row["half_life_epochs"]) for row in explanation.rows][0]
        ('sequential/head/kernel', 'weight_decay', 6.928...)
        """
        return report.explanation(self, model_or_variables, steps_per_epoch)

    @classmethod
    def from_keras(cls, optimizer: keras.Optimizer, **changes: Any) -> keras.Optimizer:
        """Return an optimizer that continues the training of one of `keras.optimizers`.

        Arguments, moments, averages, the number of updates and the position in a schedule are
        carried over, so that training continues as before, except for rounding. The decay is
        λ = α·w, for the same variables, with α the rate now, or the base rate of a schedule. The
        step of Lamb and of Adafactor reads the weight, which Keras decays before the step. For
        these two, our step differs from Keras' by about a thousandth.

        Args:
            optimizer: an optimizer of the class that this one stands for, or of this class, or a
                `LossScaleOptimizer` around one. If it is not built, only its arguments are taken.
            **changes: arguments of this class that take the place of those carried over.

        Returns:
            An optimizer of this class; for a `LossScaleOptimizer`, one around it.

        Raises:
            TypeError: `optimizer` is of another class.
            ValueError: it cannot be continued: it has a schedule and gradient accumulation
                (Keras counts micro-batches there), or it has exclusions and is not built.

        Example:
        >>> import keras
        >>> from keras_decoupled import AdamW
        >>> stock = keras.optimizers.AdamW(1e-3, weight_decay=0.004)
        >>> AdamW.from_keras(stock).get_config()["weight_decay"]
        4e-06
        """
        return from_keras.continued(cls, optimizer, changes)

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Return the config as JSON: the arguments as they are now, and a row per variable."""
        registry, clock = self._kd.registry, self._kd.clock
        clock.check_state()
        uniform, resolved = registry.uniform_now(), registry.get_config()
        resolved["learning_rate_factor"] = as_number(clock.factor(self._kd.update.on))
        return {
            **{name: getattr(self, name) for name in KERAS_ARGUMENTS},
            **clock.get_config(),
            "weight_decay": uniform and uniform.to_config(),
            **self._kd_own_config(),
            **registry.rules.get_config(),
            **({"init_verbose": True} if self._kd.init_verbose else {}),
            "resolved": resolved,
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Make the optimizer of a config."""
        arguments, resolved = read_config(config, custom_objects, cls._kd_own)
        optimizer = cls(**arguments)
        if resolved is not None:
            registry = optimizer._kd.registry
            registry.table, registry.waiting = resolved.table, resolved.waiting
            registry.rules.exclusions, registry.rules.from_file = resolved.exclusions, True
            registry.rules.paths |= resolved.paths
            if resolved.factor is not None:
                optimizer._kd.clock.set_factor(resolved.factor)
        return optimizer

    def __repr__(self) -> str:
        """Return the call that makes this optimizer as it is now, without defaults."""
        return report.call_of(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and deepcopy have the config only, as in Keras; the model's file has the state."""
        return type(self).from_config, (self.get_config(),)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all optimizer variables, in the order of `variables`; all are checked first."""
        if not self.built:
            super().set_weights(weights)  # raises Keras' own error
        weights, variables = list(weights), self.variables
        state.check_weights(weights, variables)
        for variable, weight in zip(variables, weights, strict=True):
            variable.assign(weight)

    def save_own_variables(self, store: Any) -> None:
        """Write the state, each slot with its variable's path."""
        state.save(store, self.variables, self._kd.layout())

    def load_own_variables(self, store: Any) -> None:
        """Read the state, each slot into the variable that it belongs to."""
        self._kd.load(store)

    def _kd_check_made(self, name: str) -> None:
        """Refuse a user's class that sets a name of ours in its constructor."""
        if self._kd.clock is None:
            refuse_names(type(self), {name})


# The names that users call: a class that is decoupled may use any other.
PUBLIC = {name for name in vars(Decoupled) if name[0] != "_"} - {*dir(keras.optimizers.Optimizer)}
