"""The one mechanism under every optimizer here: rates, decay, η, restarts, state and config.

An update of a variable θ with gradient g is

    θ ← θ − η·√(1/T)·(l2·θ + l1·sign θ) − step(g; η·α·m)

where the decay never meets the learning rate α and never enters the optimizer's state. A class
built on `Decoupled` adds only `step`: see `_adamw.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import keras
from keras import ops

from keras_decoupled import checks
from keras_decoupled.decay import regularizers
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.rules import Rules
from keras_decoupled.decay.table import Table
from keras_decoupled.paths.match import path_of
from keras_decoupled.saving import state
from keras_decoupled.saving.config import read as read_config
from keras_decoupled.schedule.rates import CallableRate, ScheduleRate
from keras_decoupled.schedule.timing import Timing

from .arguments import checked_keras_arguments
from .gradients import LOW_PRECISION, Wanted, dense
from .persistent import Stateful, read
from .scheduled import as_number


class Step(NamedTuple):
    """The numbers of one update that do not depend on the variable, made once per update."""

    rates: tuple[Any, ...]  # η·α·m for each distinct multiplier m
    decays: tuple[Any, ...]  # η·√(1/T)·l for each distinct decay l
    scalars: tuple[Any, ...]  # what the optimizer's own mathematics asks for


class Decoupled(Stateful):
    """Base of the optimizers with decoupled weight decay; not made by users.

    Args:
        learning_rate: α, a number; or a `LearningRateSchedule`; or a callable without arguments.
        weight_decay: λ, the fraction of the weight removed per update at η = 1: a uniform L2
            decay of every variable that `weight_decays` does not name. A number, a
            `LearningRateSchedule` of the update count, or None (no decay). Defaults to `None`.
        weight_decays: `{key: l2}` or `{key: (l1, l2)}`. A key is a variable's path, some whole
            components of it ("lstm_1", "bias", "lstm_cell/kernel", "dense/"), or else a part of
            it; an exact path beats other keys, and of these the one given last wins.
        lr_multipliers: `{key: multiplier}` of the learning rate, not of the decay; 0 freezes.
        model: a built model whose L1, L2 and L1L2 regularizers become `weight_decays`.
        zero_penalties: whether to take these penalties out of the model's loss. A layer that
            two models share loses its penalty in both. Defaults to `True`.
        total_iterations: T, updates per cycle. When given, decays are multiplied by √(1/T).
        total_iterations_wd: T for that normalization alone.
        normalize_weight_decay: None (normalized where total_iterations or total_iterations_wd
            is given), True (with a `CosineWarmRestarts`: T of its current cycle) or False.
        use_cosine_annealing: make a `CosineWarmRestarts` over `total_iterations`.
        autorestart: whether that one starts again after a cycle, or stays at eta_min.
        eta_min: η at the end of a cycle. Defaults to `0.0`.
        eta_max: η at the start of a cycle. Defaults to `1.0`.
        t_cur: position of the first update in its cycle. Defaults to `0`.
        base_learning_rate: α, the rate at which η = 1. Defaults to the number given; to a
            schedule's `warmup_target`, else `initial_learning_rate`, else its value at step 0;
            to a callable's value at build.
        init_verbose: print each variable's decays and multiplier at build.
        **kwargs: `name`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, as in
            `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        learning_rate: Any,
        *,
        weight_decay: Any = None,
        weight_decays: Mapping[str, Any] | None = None,
        lr_multipliers: Mapping[str, float] | None = None,
        model: keras.Model | None = None,
        zero_penalties: bool = True,
        base_learning_rate: float | None = None,
        init_verbose: bool = False,
        total_iterations: int | None = None,
        total_iterations_wd: int | None = None,
        normalize_weight_decay: bool | None = None,
        use_cosine_annealing: bool = False,
        autorestart: bool | None = None,
        eta_min: float = 0.0,
        eta_max: float = 1.0,
        t_cur: int = 0,
        **kwargs: Any,
    ) -> None:
        kwargs = checked_keras_arguments(kwargs)
        zero_penalties = checks.flag(
            "zero_penalties", zero_penalties, cure="False leaves the penalties in the loss, too."
        )
        init_verbose = checks.flag("init_verbose", init_verbose, cure="True prints the table.")
        rules = Rules(weight_decay, weight_decays, lr_multipliers, self._var_key)
        timing = Timing.read(
            learning_rate,
            base_learning_rate,
            total_iterations=total_iterations,
            total_iterations_wd=total_iterations_wd,
            normalize_weight_decay=normalize_weight_decay,
            use_cosine_annealing=use_cosine_annealing,
            autorestart=autorestart,
            eta_min=eta_min,
            eta_max=eta_max,
            t_cur=t_cur,
        )
        if model is not None:
            rules.extract(model, zero_penalties, timing.first_normalization())
        # Keras' own weight decay is multiplied by the learning rate: it must not see ours.
        super().__init__(timing, **kwargs)
        self._rules = rules
        self._table = Table()
        # The accelerated paths, where the backend has one: for a whole update, for one variable.
        self._fused: Any = None
        self._fused_op: Any = None
        self.init_verbose = init_verbose
        if model is not None and zero_penalties:  # last: every error was raised by now
            regularizers.take_penalties(model)

    # What a class built on this one adds.

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of the optimizer variables per variable that `step` takes and returns."""
        return ()

    def add_scalars(self) -> None:
        """Make optimizer variables that are not per variable, at the first build."""

    def scalars(self, updates: Any) -> tuple[Any, ...]:
        """Return what `step` needs once per update; `updates` is k + 1."""
        return ()

    def end_of_update(self, scalars: tuple[Any, ...]) -> None:
        """Assign optimizer variables that are not per variable, once per update."""

    def step(
        self, gradient: Any, slots: tuple[Any, ...], rate: Any, scalars: tuple[Any, ...]
    ) -> tuple[Any, tuple[Any, ...]]:
        """Return what is subtracted from the variable, and the new slots."""
        raise NotImplementedError

    # Building.

    def build(self, variables: Sequence[Any]) -> None:
        """Create the state of these variables and resolve the rules for them.

        Called again with another list (after `layer.trainable = True`, say), variables that are
        known keep their state, decay and multiplier.
        """
        variables = list(variables)
        keys = [self._var_key(variable) for variable in variables]
        if self.built and keys == self._slots.keys:
            return
        if len(set(keys)) < len(keys):
            twice = next(v for v, key in zip(variables, keys, strict=True) if keys.count(key) > 1)
            raise ValueError(
                "An optimizer is built on a list of variables, each in it once. "
                f"Received: {path_of(twice)} more than once. Take `model.trainable_variables`, "
                "or add up the gradients of one variable."
            )
        dtypes = [keras.backend.standardize_dtype(v.dtype) for v in variables]
        table, left = self._rules.resolve(variables)
        if isinstance(self._timing.rate, CallableRate):
            self._timing.rate.fix_base()
        self._warn_of_no_decay(table)
        if "float64" in dtypes:
            self._scalar_dtype = "float64"
        if not self.built:
            self.add_scalars()
        # `build` of Keras fills this dict and never clears it: a variable that left would stay
        # known, under another variable's index.
        self._trainable_variables_indices: dict[Any, int] = {}
        super().build(variables)
        self._table = table
        self._rules.remember(keys, table, left)
        self._slots.begin(keys, variables)
        self.add_optimizer_variables(variables, list(self.slot_names))
        for variable, dtype, row in zip(variables, dtypes, table.rows, strict=True):
            if dtype in LOW_PRECISION:
                self.add_variable_from_reference(variable, name=state.MASTER)
            # A layer that hard-codes its regularizer brings it back on load.
            if row.taken and regularizers.read_penalty(variable) == row.taken:
                regularizers.take_penalty(variable)
        self._slots.wanted = list(map(Wanted, variables))
        self._slots.finish(self.slot_names)
        self._fused, self._fused_op = _accelerated(self)
        if self.init_verbose:
            print(table)

    def _warn_of_no_decay(self, table: Table) -> None:
        silent = self._rules.weight_decay == 0 or self._rules.saved.rows or self.built
        if table.rows and not silent and not any(row.decays for row in table.rows):
            warnings.warn(
                f"{type(self).__name__} decays no variable: its weight_decay, weight_decays and "
                "model give no decay above 0, or exclude_from_weight_decay() excludes what they "
                "hit. Give `weight_decay` (1e-4 is a start), or weight_decay=0 if no decay is "
                "what you want.",
                UserWarning,
                stacklevel=3,
            )

    # Updating.

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Update the variables with these gradients."""
        variables = self._trainable_variables
        if trainable_variables is not None:
            variables = trainable_variables = list(trainable_variables)
            if len(grads) not in (0, len(variables)):  # without any, Keras does nothing
                raise ValueError(
                    "`apply` needs one gradient for each variable, None where there is none. "
                    f"Received: {len(grads)} gradients for {len(variables)} variables."
                )
            self._build_on_new(variables, grads)
        if len(grads) == len(variables):
            grads = list(map(dense, grads, variables, self._wanted(variables)))
        fused = self._fused
        before = None if fused is None else fused.count_writes()
        super().apply(grads, trainable_variables)
        if fused is not None:
            fused.counted(before)

    def _wanted(self, variables: Sequence[Any]) -> Sequence[Wanted]:
        if self._built_on(variables):
            return self._slots.wanted
        indices = [self._trainable_variables_indices.get(self._var_key(v)) for v in variables]
        return [
            Wanted(variable) if index is None else self._slots.wanted[index]
            for variable, index in zip(variables, indices, strict=True)
        ]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Do nothing: Keras' own decay is α·λ, and comes from `self.weight_decay`."""

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """Make the scalars of the update once, and hand them on in the learning rate's place.

        Keras has no other hook that runs once per update; each backend passes that argument
        through to `update_step` as it is (tf.distribute: per replica).
        """
        if self._fused is not None and self._fused.usable():
            rest = self._fused.update(grads, trainable_variables, learning_rate)
            if not rest:
                return
            grads, trainable_variables = zip(*rest, strict=True)
        step = self._begin_step(learning_rate)
        super()._backend_update_step(grads, trainable_variables, step)
        self.end_of_update(step.scalars)

    def _begin_step(self, learning_rate: Any) -> Step:
        table, dtype = self._table, self._scalar_dtype
        updates, position = self._counters()
        rate = ops.convert_to_tensor(learning_rate, dtype)
        if isinstance(self._timing.rate, CallableRate):  # called once per update, by Keras
            eta = rate / self._timing.rate.base
        else:
            eta = self._eta(position)
        shrink = eta * self._cast(self._timing.normalization(position))
        return Step(
            rates=tuple(rate * m for m in table.multipliers),
            decays=tuple(
                shrink * self._cast(decay if isinstance(decay, float) else decay(updates))
                for decay in table.decays
            ),
            scalars=self.scalars(ops.cast(updates + 1, dtype)),
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """θ ← θ − η·√(1/T)·(l2·θ + l1·sign θ) − step."""
        step = learning_rate if isinstance(learning_rate, Step) else self._begin_step(learning_rate)
        index = self._get_variable_index(variable)
        if self._table.rows[index].multiplier == 0:  # frozen: left exactly as it is
            return
        rate, l1, l2 = self._table.indices[index]
        slots, master = self._slots.rows[index]
        theta = read(variable, master)

        def cast(x: Any) -> Any:
            return ops.cast(x, theta.dtype)

        gradient, rate = cast(gradient), cast(step.rates[rate])
        scalars = tuple(cast(scalar) for scalar in step.scalars)
        decay = None
        if l2 is not None:
            decay = cast(step.decays[l2]) * theta
        if l1 is not None:
            l1_decay = cast(step.decays[l1]) * ops.sign(theta)
            decay = l1_decay if decay is None else decay + l1_decay
        fused = self._fused_op
        if fused is not None and master is None and fused.usable(variable, gradient):
            if decay is not None:
                self.assign_sub(variable, decay)
            fused.step(variable, gradient, slots, rate, scalars)
            return
        # TensorFlow's `convert_to_tensor` gives the variable back, and the + of Keras' variables
        # takes a short cut that fails on the shape (0, 3).
        values = tuple(ops.stop_gradient(ops.convert_to_tensor(slot)) for slot in slots)
        change, new_slots = self.step(gradient, values, rate, scalars)
        if decay is not None:
            change = change + decay
        for slot, value in zip(slots, new_slots, strict=True):
            self.assign(slot, value)
        theta = theta - change
        if master is not None:
            self.assign(master, theta)
        self.assign(variable, ops.cast(theta, variable.dtype))

    # Rules.

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Exclude variables from every weight decay; replaces what an earlier call said.

        Args:
            var_list: variables.
            var_names: regular expressions, searched in each variable's path.

        Raises:
            ValueError: the optimizer is built already, or a pattern is no regular expression, or
                one that may search for ever: it repeats a group, or repeats more than five times.
        """
        if self.built:
            raise ValueError(
                "`exclude_from_weight_decay()` must be called before the optimizer is built: its "
                "rules are resolved then. Received: a call after build. Call it right after making "
                "the optimizer, before `model.compile` or the first update."
            )
        for name, value in (("var_list", var_list), ("var_names", var_names)):
            if value is not None and not isinstance(value, list | tuple | set):
                raise TypeError(
                    f"`{name}` must be a list. Received: {name}={value!r}. Write {name}=[...]."
                )
        self._rules.exclusions = Exclusions(var_list or (), var_names or ())

    @property
    def weight_decay(self) -> Any:
        """The uniform decay as given."""
        return self._rules.weight_decay if hasattr(self, "_rules") else None

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        if hasattr(self, "_rules"):
            raise AttributeError(
                "`weight_decay` is fixed when the optimizer is made. Received: an assignment of "
                f"{value!r}. For a decay that changes, pass a `LearningRateSchedule` as "
                "weight_decay; else make a new optimizer."
            )

    @property
    def weight_decays(self) -> dict[str, Any]:
        """As given; after build `{variable.path: (l1, l2)}` of all that are not (0, 0)."""
        if not self.built:
            return dict(self._rules.weight_decays)
        return {row.path: (row.l1, row.l2) for row in self._table.rows if row.decays}

    @property
    def lr_multipliers(self) -> dict[str, float]:
        """As given; after build `{variable.path: multiplier}` of all that are not 1."""
        if not self.built:
            return dict(self._rules.lr_multipliers)
        return {row.path: row.multiplier for row in self._table.rows if row.multiplier != 1}

    # Saving.

    def get_config(self) -> dict[str, Any]:
        """Return the config as JSON: the arguments as given, and what they were resolved to."""
        rate = self._timing.rate
        self._counters()  # inside an epoch on JAX: says that the state is elsewhere
        factor = as_number(self._factor)
        if isinstance(rate, CallableRate):
            learning_rate = keras.saving.serialize_keras_object(rate.function)
        elif isinstance(rate, ScheduleRate) and not self._timing.use_cosine_annealing:
            learning_rate = keras.optimizers.schedules.serialize(rate.schedule)
        else:
            # The rate now, as in Keras; to the digit as given where nothing moved it.
            given = self._timing.factor
            moved = abs(factor - given) > 1e-7 * given
            learning_rate = (factor if moved else given) * rate.base
        if self._slots.keys:  # of none where it was built on nothing: all layers frozen
            table, waiting = self._table, self._rules.waiting
        else:
            table, waiting = self._rules.preview()
        frozen = self._rules.frozen(self._slots.keys or None)
        return {
            **super().get_config(),
            **self._rules.get_config(),
            **self._timing.get_config(),
            "learning_rate": learning_rate,
            "base_learning_rate": rate.known_base,
            "init_verbose": self.init_verbose,
            "resolved": {
                "exclusions": self._rules.exclusions.get_config(),
                "table": table.get_config(),
                "waiting": waiting.get_config() + frozen.get_config(),
                "paths": sorted(self._rules.paths() - {row.path for row in table.rows}),
                "learning_rate_factor": factor,
            },
        }

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Make the optimizer of a config."""
        arguments, resolved = read_config(config, custom_objects)
        optimizer = cls(**arguments)
        if resolved is not None:
            optimizer._rules.restore(
                resolved.exclusions, resolved.table, resolved.waiting, resolved.paths
            )
            if resolved.factor is not None:
                optimizer._factor.assign(resolved.factor)
        return optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and deepcopy carry the config, as Keras' do; state goes with the model's file."""
        return type(self).from_config, (self.get_config(),)


def _accelerated(optimizer: Decoupled) -> tuple[Any, Any]:
    """Return what updates all variables of a built optimizer, and what updates one, or None."""
    backend = keras.backend.backend()
    if backend == "torch":
        from keras_decoupled.fast import torch_update  # needs torch

        return torch_update.make(optimizer), None
    if backend == "tensorflow":
        from keras_decoupled.fast import tensorflow_ops  # needs TensorFlow

        return None, tensorflow_ops.make(optimizer)
    return None, None
