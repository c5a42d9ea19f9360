"""Optimizers that users write: what `decouple` makes of them, and what it refuses."""

from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

import cases
import stock
from cases import COMPILED, RUNNERS, Case, eager, make_variable, numpy
from keras_decoupled import decouple
from stock import FAST, PATHS, make_variables, micro_batches


class Momentum(keras.optimizers.Optimizer):
    """As an example in a guide: state made in `build`, a step that is added."""

    def __init__(self, learning_rate=0.01, momentum=0.9, name="momentum", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.momentum = momentum

    def build(self, variables):
        super().build(variables)
        self.velocities = [
            self.add_variable_from_reference(variable, name="velocity") for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        velocity = self.velocities[self._get_variable_index(variable)]
        self.assign(velocity, self.momentum * velocity - rate * gradient)
        self.assign_add(variable, velocity)

    def get_config(self):
        return super().get_config() | {"momentum": self.momentum}


@keras.saving.register_keras_serializable(package="mine")
class Sign(keras.optimizers.Optimizer):
    """Has a step, and takes its arguments as Keras has them."""

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * ops.sign(gradient))


class Bare(keras.optimizers.Optimizer):
    """Takes nothing of Keras' arguments, not even a name."""

    def __init__(self, learning_rate=0.01, sharpness=2.0):
        super().__init__(learning_rate=learning_rate)
        self.sharpness = sharpness

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, rate * ops.tanh(self.sharpness * gradient))

    def get_config(self):
        return super().get_config() | {"sharpness": self.sharpness}


class Base(keras.optimizers.Optimizer):
    def __init__(self, learning_rate=0.01, **kwargs):
        super().__init__(learning_rate=learning_rate, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        self.change(gradient, variable, ops.cast(learning_rate, variable.dtype))


class Rewriting(Base):
    """Changes the weight in every way, reads in between what it wrote, and computes a step inside `cond`."""

    def change(self, gradient, variable, rate):
        large = ops.max(ops.abs(gradient)) > 1.0
        step = ops.cond(large, lambda: ops.sign(gradient), lambda: 0.5 * gradient)
        self.assign(variable, ops.subtract(variable, rate * step))
        self.assign_sub(variable, 2.0 * rate * variable)
        self.assign_add(variable, rate * ops.tanh(variable))
        self.assign(variable, ops.clip(variable, -0.25, 0.25))


class Averaging(Base):
    """Reads the weight after its step, and goes on from what it read in the next update."""

    def build(self, variables):
        super().build(variables)
        self.weights_seen = self.add_optimizer_variables(variables, "mean_weight")

    def change(self, gradient, variable, rate):
        average = self.weights_seen[self._get_variable_index(variable)]
        self.assign_sub(variable, rate * (gradient + average))
        self.assign_add(average, 0.5 * (variable - average))


class ByHand(Base):
    """Makes its state by `add_variable`: a list per kind, one of another shape, and a number."""

    def build(self, variables):
        super().build(variables)
        self.means = [self.add_variable(v.shape, dtype=v.dtype, name="mean") for v in variables]
        self.largest = [
            self.add_variable((1,), "ones", dtype=v.dtype, name="largest") for v in variables
        ]
        self.seen = self.add_variable((), name="seen")

    def change(self, gradient, variable, rate):
        place = self._get_variable_index(variable)
        mean, largest = self.means[place], self.largest[place]
        self.assign_add(self.seen, ops.mean(ops.abs(gradient)))
        self.assign_add(mean, 0.25 * (gradient - mean))
        self.assign(largest, ops.maximum(largest, ops.max(ops.abs(gradient))))
        factor = rate / (ops.reshape(largest, ()) * (1.0 + self.seen))
        self.assign_sub(variable, factor * mean)


class SlotAsStep(Base):
    """Its step is a slot, which it then changes; or the slot's tensor, which on torch that overwrites."""

    def build(self, variables):
        super().build(variables)
        self.sums = self.add_optimizer_variables(variables, "sum")

    def change(self, gradient, variable, rate):
        slot = self.sums[self._get_variable_index(variable)]
        self.assign_add(slot, rate * gradient)
        is_matrix = len(variable.shape) == 2
        self.assign_sub(variable, ops.convert_to_tensor(slot) if is_matrix else slot)
        self.assign(slot, 0.5 * slot)


class Doubled(keras.optimizers.Lion):
    """Derived from a stock class: on torch Keras' code for many variables would not know of this."""

    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, 2 * learning_rate)


WORKING = [Momentum, Sign, Rewriting, Averaging, ByHand, SlotAsStep, Doubled]
# One multiplier for all: `ByHand` has a number that all variables share.
RULES = Case(
    {"weight_decay": 0.03, "weight_decays": {"kernel": (0.004, 0.1), "scale": 0}},
    {
        **{path: (0.004, 0.1) for path in PATHS if path.endswith("kernel")},
        "scale": (0.0, 0.0),
        "*": (0.0, 0.03),
    },
    updates=3,
)


def follow(ours, theirs, runner=eager, fast=True):
    """Run ours and the user's own together, on a matrix, a vector and a number: they agree at each update."""
    chosen = [0, 1, 6]
    values, paths = ([some[i] for i in chosen] for some in (stock.initial_values(), PATHS))
    variables = list(map(make_variable, paths, values))
    optimizer = RULES.make(ours)
    optimizer.fast = fast
    run = RULES.run(partial(stock.StockRun, theirs, paths, values), paths)
    grads = [[each[i] for i in chosen] for each in micro_batches(RULES.updates)]
    for _ in cases.follow(RULES, variables, optimizer, run, runner, grads):
        pass


@pytest.mark.parametrize("cls", WORKING)
def test_every_update(cls):
    """Compiled, where the backend compiles."""
    follow(decouple(cls), cls, next(iter(COMPILED.values())))


@pytest.mark.parametrize("cls", [Momentum, ByHand, SlotAsStep])
def test_unfreezing(cls):
    """Not compiled; what it made by itself is there after a second build, and nothing is made twice."""
    optimizer, _, _ = stock.follow_unfreezing(decouple(cls), cls)
    fresh = decouple(cls)(learning_rate=0.05, weight_decay=0.03)
    fresh.build(make_variables())
    shapes = [[tuple(v.shape) for v in o.variables] for o in (optimizer, fresh)]
    assert shapes[0] == shapes[1]


def test_a_step_that_reads_the_weight_decay():
    """It is 0 there, as the class was made with: the decay acts once."""

    class Coupled(keras.optimizers.SGD):
        def update_step(self, gradient, variable, learning_rate):
            gradient = gradient + self.weight_decay * variable
            self.assign_sub(variable, learning_rate * gradient)

    variable = make_variable("w", np.array([2.0, -4.0]))
    optimizer = decouple(Coupled)(0.5, weight_decay=0.25)
    eager(optimizer, [variable])([np.zeros(2, "float32")])
    np.testing.assert_allclose(numpy(variable), [1.5, -3.0])
    assert float(numpy(optimizer.weight_decay)) == 0.25


@pytest.mark.parametrize("fast", FAST)
def test_derived_from_ours(fast):
    """What a class overrides of a decoupled one is used, and its stock class's code for many variables is not."""

    class Backwards(decouple(keras.optimizers.Lion)):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(-gradient, variable, learning_rate)

    class Reference(keras.optimizers.Lion):
        def update_step(self, gradient, variable, learning_rate):
            super().update_step(-gradient, variable, learning_rate)

    class Mixed(type("Mixin", (), {}), decouple(keras.optimizers.Lion)):
        """A mixin makes no other step, and no stock class."""

    assert decouple(keras.optimizers.Lion) is not Mixed
    follow(Backwards, Reference, fast=fast)
    follow(Mixed, keras.optimizers.Lion, fast=fast)


# --- what is refused at the first update ---


class Direct(Base):
    def change(self, gradient, variable, rate):
        variable.assign(variable - rate * gradient)


class Conditional(Base):
    def change(self, gradient, variable, rate):
        step = rate * gradient
        ops.cond(
            ops.norm(gradient) > 1.0,
            lambda: self.assign_sub(variable, step),
            lambda: self.assign_sub(variable, 2 * step),
        )


REFUSED = {
    Direct: r"`Direct\.update_step` must change .*`self\.assign`.*Received: an update of a/w.*Write",
    Conditional: r"`Conditional\.update_step` must not .*`ops\.cond`.*an update of a/w.*`ops\.where`",
}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("cls", REFUSED)
def test_a_step_that_cannot_be_caught(cls, runner):
    """Whichever way it is run; the error names the variable and the cure."""
    variable = make_variable("a/w", np.array([1.0, -2.0]))
    step = RUNNERS[runner](decouple(cls)(learning_rate=0.1, weight_decay=0.01), [variable])
    with pytest.raises(ValueError, match=REFUSED[cls]):
        step([np.array([3.0, 0.5], "float32")])


def test_state_that_cannot_be_found_again():
    """In a dictionary by path; a build on other variables would make it anew."""

    class InADictionary(Base):
        def build(self, variables):
            super().build(variables)
            self.by_path = {v.path: self.add_variable(v.shape, name="slot") for v in variables}

        def change(self, gradient, variable, rate):
            self.assign_sub(variable, rate * gradient)

    variables = make_variables()
    optimizer = decouple(InADictionary)(learning_rate=0.05, weight_decay=0.03)
    optimizer.build(variables[:3])
    with pytest.raises(ValueError, match=r"(?s)cannot be built again.*keep each kind in a list"):
        optimizer.build(variables)


# --- names, arguments and configs ---


@pytest.mark.parametrize(
    ("cls", "own"), [(Bare, {"sharpness": 3.0}), (Momentum, {"momentum": 0.5}), (Sign, {})]
)
def test_a_config_makes_the_same_optimizer(cls, own):
    optimizer = decouple(cls)(learning_rate=0.05, weight_decay=0.03, name="one", **own)
    for copy in (
        type(optimizer).from_config(optimizer.get_config()),
        keras.optimizers.deserialize(keras.optimizers.serialize(optimizer)),
    ):
        assert type(copy) is decouple(cls)
        assert copy.name == "one"
        assert copy.get_config() == optimizer.get_config()
        assert {name: getattr(copy, name) for name in own} == own


def test_what_a_class_does_not_take_cannot_be_given_to_it():
    with pytest.raises(TypeError, match="clipnorm"):
        decouple(Bare)(learning_rate=0.05, clipnorm=1.0)


def test_the_registered_name_has_the_package():
    registered = keras.saving.get_registered_name
    assert registered(decouple(Sign)) == "keras_decoupled>mine.Sign"
    assert keras.saving.get_registered_object("keras_decoupled>mine.Sign") is decouple(Sign)
    assert registered(decouple(Momentum)) == "keras_decoupled>Momentum"
    assert decouple(Sign) is decouple(Sign)


def test_the_name_of_a_class_of_this_package():
    """Files go by names: one that was saved with it would be read as ours."""

    class Lion(Sign):
        pass

    with pytest.raises(ValueError, match=r'`Lion` is the name of .*package="mine"'):
        decouple(Lion)
    keras.saving.register_keras_serializable(package="other")(Lion)
    assert keras.saving.get_registered_name(decouple(Lion)) == "keras_decoupled>other.Lion"


class TwoNamed(Base):
    """Two kinds of state, perhaps made without `names` as Keras allows it; one starts at 1."""

    def build(self, variables):
        super().build(variables)
        first, second = self.names
        self.m = [self.add_variable_from_reference(v, first) for v in variables]
        self.v = [self.add_variable_from_reference(v, second, "ones") for v in variables]

    def change(self, gradient, variable, rate):
        index = self._get_variable_index(variable)
        m, v = self.m[index], self.v[index]
        self.assign(m, 0.9 * m + 0.1 * gradient)
        self.assign(v, 0.9 * v + 0.1 * ops.square(gradient))
        self.assign_sub(variable, rate * m / ops.sqrt(v))


class AverageByHand(Base):
    """Has attributes that are called as our slots are."""

    def build(self, variables):
        super().build(variables)
        self.average = [self.add_variable(v.shape, "ones", name="one") for v in variables]

    def change(self, gradient, variable, rate):
        average = self.average[self._get_variable_index(variable)]
        self.assign(average, 0.5 * average + gradient)
        self.assign_sub(variable, rate * average)


TWO = [type("Two", (TwoNamed,), {"names": names}) for names in [(None, None), ("state", "state")]]


@pytest.mark.parametrize("cls", [*TWO, AverageByHand])
def test_two_slots_of_one_name_or_of_no_name_are_two(cls):
    arguments = {"learning_rate": 0.1, "use_ema": True}
    variables, twins = (make_variables() for _ in range(2))
    optimizer, theirs = decouple(cls)(**arguments, weight_decay=0), cls(**arguments)
    for _ in range(2):  # the second build finds all that the first has made
        optimizer.build(variables)
        optimizer.build(variables[:1])
    optimizer.build(variables)
    theirs.build(twins)
    grads = micro_batches(3)
    for g in grads:
        eager(optimizer, variables)(g)
        eager(theirs, twins)(g)
    for a, b in zip(variables, twins, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-5, atol=1e-6)
    store = {}
    optimizer.save_own_variables(store)
    again = decouple(cls)(**arguments, weight_decay=0)
    again.build(variables)
    again.load_own_variables(store)
    for a, b in zip(optimizer.variables, again.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b), err_msg=a.path)
