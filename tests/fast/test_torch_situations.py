"""torch's accelerated update beside `update_step`, its reference: every situation of tensors and numbers.

A situation says what must be left to `update_step` (`rest`); `side_by_side.py` says how closely both must agree.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
import pytest
import torch

from cases import FUSED, make_variable, numpy, warm_restarts
from keras_decoupled import Decay
from side_by_side import Sides, cut_into, normal, variables_in, variables_of, watched
from training import X, Y, assert_no_graph, linear, make

SHAPES = [(3, 2), (2,), ()]
FOUR_D = (2, 3, 4, 5)
ONE_OF_EACH = ("adamw", "nadamw", "sgdw-nesterov")
DECAYS = {"weight_decay": 0.03, "weight_decays": {"v1": (0.01, 0.02)}}
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def grads(k, shapes=SHAPES, dtype="float32"):
    return [torch.as_tensor(normal(shape, 10 * k + i, dtype)) for i, shape in enumerate(shapes)]


@dataclass
class Situation:
    """Some updates, of variables of these shapes where nothing else is said."""

    shapes: Sequence[tuple[int, ...]] = tuple(SHAPES)
    dtypes: Sequence[str] | None = None
    variables: Callable[[], Any] | None = None
    gradients: Callable[[int, Any], Any] | None = None  # of the update k and the variables
    rest: Sequence[int] = ()  # indices of the variables that are left to `update_step`
    order: Callable[[int], Sequence[int]] | None = None  # indices of the variables of update k
    arguments: Mapping[str, Any] = field(default_factory=dict)
    events: Mapping[int, Any] = field(default_factory=dict)  # before update k, on both sides
    apart: bool = False  # what events leave is not the same on both sides
    around: Callable[[], Any] = contextlib.nullcontext  # each update
    updates: int = 3
    optimizers: Sequence[str] = ONE_OF_EACH

    def start(self, name):
        values = [normal(shape, i) for i, shape in enumerate(self.shapes)]
        made = self.variables or variables_of(*values, dtypes=self.dtypes)
        return Sides(lambda: make(name, **{**DECAYS, **self.arguments}), made)

    def run(self, name):
        sides = self.start(name)
        for k in range(self.updates):
            if event := self.events.get(k):
                (sides.do_apart if self.apart else sides.do)(event)
            order = self.order and self.order(k)
            shapes = [self.shapes[i] for i in order] if order else self.shapes
            with self.around():
                given = self.gradients and partial(self.gradients, k)
                sides.step(given or grads(k, shapes), rest=self.rest, order=order)
        assert_no_graph(*sides.fused)
        # What is known of each list of variables does not pile up.
        assert len(sides.fused[0]._kd.update.fast._plans) <= 8


# --- gradients ---


class Doubled(torch.Tensor):
    """Operations on it are its own: `update_step` asks it, a kernel would not."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        made = super().__torch_function__(func, types, args, kwargs or {})
        return made * 2 if func is torch.Tensor.square or func is torch.square else made


STRIDES = {
    "transposed": lambda g: g.mT.contiguous().mT,
    "strided": lambda g: torch.stack([g, g], dim=-1)[..., 0],
    "channels last": lambda g: g.to(memory_format=torch.channels_last),
}
LAYOUTS = STRIDES | {
    "expanded": lambda g: g[..., :1].expand_as(g),
    "one number": lambda g: torch.full((), 0.3).expand_as(g),
    "subclass": lambda g: g.as_subclass(Doubled),
}


def in_every_layout(k, variables):
    first, *others = grads(k, [FOUR_D] * len(variables))
    return [first, *(change(g) for change, g in zip(LAYOUTS.values(), others, strict=True))]


def of_other_types(k, variables):
    a, b, c = grads(k)
    return [a.double(), b.half(), c.bfloat16()]


def one_missing(k, variables):
    missing = [None, 0, 1, 2, None][k]
    return [None if i == missing else g for i, g in enumerate(grads(k))]


def a_negative_view(k, variables):
    """Autograd of complex numbers gives gradients whose sign is a flag; kernels do not read it."""
    x, y = (v.value for v in variables)
    made = torch.autograd.grad((torch.complex(x, y).conj() * (1 + 2j)).imag, [x, y])
    assert made[1].is_neg()
    return made


# --- variables ---


def in_strides():
    tensors = [change(torch.as_tensor(normal(FOUR_D))) for change in STRIDES.values()]
    assert not any(tensor.is_contiguous() for tensor in tensors)
    return torch.ones(FOUR_D), *tensors


def with_one_more(optimizer, variables):
    optimizer.build([*variables, make_variable("x", 1.0)])


def another_tensor(_, variables):
    variables[1]._value = torch.nn.Parameter(variables[1].value.detach() * 2)


def other_slots_and_scalars(optimizer, variables):
    slots = [v for v in optimizer.variables if v.path.endswith("v1_w_momentum")]
    assert len(slots) == 1
    moving = {id(setting.variable) for setting in optimizer._kd.settings.values()}
    scalars = [v for v in optimizer.variables if v.shape == () and "v2" not in v.path]
    scalars = [v for v in scalars if id(v) not in moving]  # β1 = 1.8 is no number of Adam's
    for v in (*slots, *scalars):
        v._value = torch.nn.Parameter(v.value.detach() * 2, requires_grad=False)


def other_data(_, variables):
    """`p.data = x`, as torch.nn.utils.vector_to_parameters does it: another memory in the same tensor."""
    for v in variables:
        v.value.data = torch.full(v.shape, 0.75, dtype=v.value.dtype)


def behind_the_back(optimizer, variables):
    """Of torch's version counter, and of some numbers alone: the rest keeps what rounding has cut off."""
    for variable in variables:
        variable.value.data[0] = 0.25
        variable.value.data[1, 0] = -0.5


# --- numbers ---


def held(optimizer, name):
    return [v for v in optimizer.variables if v.path.endswith(f"/{name}")]


def write(name, value):
    """To an optimizer variable, where there is one of this name."""
    return lambda optimizer, _: [v.assign(value) for v in held(optimizer, name)]


def setting(attribute, value):
    return lambda optimizer, _: setattr(optimizer, attribute, value)


# Scalars that someone else writes between two updates.
WRITES = {
    "iterations": write("iteration", 40),
    "iterations by 1": lambda o, _: held(o, "iteration")[0].assign_add(1),
    "iterations in inference mode": torch.inference_mode()(write("iteration", 40)),
    "cycle_start": write("cycle_start", -3),
    "restart": lambda o, _: o.restart(2),
    "learning rate": setting("learning_rate", 0.01),
    "weight decay": setting("weight_decay", 0.2),
    "factor": write("learning_rate_factor", 0.3),
    "product": write("momentum_product", 0.5),
}

# Attributes that users set after build. (Other numbers are in core/test_settings.py.)
SETTINGS = [
    ("sgdw-momentum", "momentum", 0.0),
    ("sgdw-nesterov", "momentum", 0.0),
    ("adamw", "beta_1", 0.0),
    ("nadamw", "momentum_decay", 0.0),
    ("adamw", "clipnorm", 0.1),
    ("adamw", "loss_scale_factor", 3.0),
]


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


class TensorSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """One that was written for torch and asks a tensor of its step, as `update_step` gives it."""

    initial_learning_rate = 0.05

    def __call__(self, step):
        return 0.05 / (1 + step.to(torch.float32))

    def get_config(self):
        return {}


CYCLES = {"learning_rate": warm_restarts(0.05, 5, t_mul=2)}
RESTARTED = {"arguments": {**CYCLES, "weight_decays": None}, "updates": 5}
FOUR_TYPES = ["float32", "float64", "bfloat16", "float16", "float32", "float64"]
RANDOM = np.random.default_rng(0)
ORDERS = [
    [int(i) for i in RANDOM.permutation(6)[: RANDOM.integers(1, 7)]] for _ in range(40)
]  # as with layers that are dropped at random
SITUATIONS = {
    # Below float32 the kernels update a copy in float32, which is rounded to the variable.
    "four types in one list": Situation([(3, 2)] * 6, FOUR_TYPES, updates=6),
    "float64 alone": Situation(  # nothing on the way is rounded to float32
        dtypes=["float64"] * 3,
        gradients=lambda k, _: grads(k, dtype="float64"),
        arguments={"lr_multipliers": {"v2": 0.3}},
        updates=8,
        optimizers=FUSED,
    ),
    "a write behind the back, below float32": Situation(
        [(3, 2)] * 2,
        ["bfloat16", "float16"],
        events=dict.fromkeys([1, 2, 3], behind_the_back),
        updates=4,
    ),
    "gradients of other types": Situation(gradients=of_other_types, updates=4),
    "missing gradients": Situation(gradients=one_missing, updates=5),
    "a negative view": Situation([(), ()], gradients=a_negative_view, rest=[1]),
    "gradients in every layout": Situation(
        [FOUR_D] * 7, gradients=in_every_layout, rest=range(1, 7)
    ),
    "variables in every layout": Situation(
        [FOUR_D] * 4, variables=variables_in(in_strides), rest=[1, 2, 3], events={0: with_one_more}
    ),
    # ∂(½θ²) = θ: one memory, read in full before it is written. v1 has an L1 decay.
    "gradients that are the variables": Situation(
        gradients=lambda k, variables: [v.value.detach() for v in variables], rest=range(3)
    ),
    # There is nothing to do, anywhere.
    "empty and scalar": Situation([(0, 3), (0,), (), (1,), (1, 1), (3,)], rest=[0, 1]),
    "nothing but empty": Situation([(0, 3), (0,)], rest=[0, 1], updates=1),
    # Two updates of it, one after the other, as `update_step` makes them.
    "a variable given twice": Situation([(3,), (2,)], order=lambda k: [0, 1, 0], rest=[0]),
    "random lists of variables": Situation(
        [(2,)] * 4 + [(3,), ()], order=lambda k: ORDERS[k], updates=40, optimizers=["nadamw"]
    ),
    "another tensor in a variable": Situation(events={1: another_tensor}),
    "other tensors in slots and scalars": Situation(
        events={1: other_slots_and_scalars},
        optimizers=["adamw", "adamw-amsgrad", "nadamw", "sgdw-momentum"],
    ),
    "other data in tensors": Situation(
        [(5,)] * 3,
        ["float32", "float32", "bfloat16"],
        arguments={"weight_decay": 0.1, "weight_decays": {"v0": Decay(0.1, towards="initial")}},
        events={1: other_data},
        apart=True,
        optimizers=["adamw"],
    ),
    # k as a bfloat16 would be 1000 for 1001, as a float16 infinite.
    **{
        f"default dtype {dtype}": Situation(
            around=partial(default_dtype, dtype),
            events={0: write("iteration", 1000), 1: write("iteration", 70_000)},
            updates=2,
            optimizers=["nadamw"],
        )
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    },
    # An exponential decay gets there. Below 1e-38 float32 has few digits, and 1/rate is infinite.
    **{
        f"a rate of {rate}": Situation(
            arguments={"weight_decays": None},
            events={2: setting("learning_rate", rate), 5: setting("learning_rate", 0.05)},
            updates=6,
            optimizers=FUSED,
        )
        for rate in (1e-12, 1e-25, 1e-40)
    },
    "schedules of tensors": Situation(
        arguments={"learning_rate": TensorSchedule(), "weight_decay": TensorSchedule()}
    ),
    **{
        f"{attribute} of {name} set to {value}": Situation(
            arguments={"weight_decays": None},
            events={1: setting(attribute, value)},
            updates=4,
            optimizers=[name],
        )
        for name, attribute, value in SETTINGS
    },
}


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    ("situation", "name"), [(s, name) for s in SITUATIONS for name in SITUATIONS[s].optimizers]
)
def test_as_update_step(situation, name):
    SITUATIONS[situation].run(name)


# --- what comes between a write and the next update, and must not be taken for the count of one ---


def empty_apply(optimizer, variables):
    optimizer.apply([], [])


def failing_apply(optimizer, variables):
    with pytest.raises((RuntimeError, NotImplementedError)):
        optimizer.apply([torch.ones(shape, device="meta") for shape in SHAPES], variables)


def stateless(optimizer, variables):
    """No variable may be written to."""
    both = [*variables, *optimizer.variables]
    before = [numpy(v) for v in both]
    values, state = optimizer.stateless_apply(
        [v.value.clone() * 2 for v in optimizer.variables],
        grads(1),
        [v.value.clone() * 2 for v in variables],
    )
    assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, both, strict=True))
    return [*values, *state]


def in_a_scope(optimizer, variables, mapped=True):
    """Of the user's own, whatever it maps: what is assigned inside belongs to the scope."""
    before = [numpy(v) for v in variables]
    mapping = [(v, v.value * 2) for v in variables if mapped]
    with keras.StatelessScope(state_mapping=mapping) as scope:
        optimizer.apply(grads(1), variables)
    assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True))
    return [scope.get_current_value(v) for v in variables]


@pytest.mark.parametrize("between", [None, empty_apply, failing_apply, stateless])
@pytest.mark.parametrize("what", WRITES)
def test_a_write_is_seen_whatever_comes_between(what, between):
    sides = Situation(**RESTARTED).start("nadamw")
    for k in range(2):
        sides.step(grads(k))
    sides.do(WRITES[what])
    # what a failing one has written by then is no one's promise: go on from there with one state
    if between:
        (sides.do_apart if between is failing_apply else sides.do)(between)
    for k in range(3):
        sides.step(grads(k))


@pytest.mark.parametrize("micro_batch", range(3))
@pytest.mark.parametrize("what", ["iterations", "iterations by 1", "restart"])
def test_a_write_between_micro_batches_is_seen(what, micro_batch):
    arguments = {"gradient_accumulation_steps": 3, **CYCLES}
    sides, calls = Situation(arguments=arguments).start("adamw"), 3 + micro_batch
    for k in range(calls):
        sides.step(grads(k), updates=k == 2)
    sides.do(WRITES[what])
    calls = {"iterations": 40, "iterations by 1": calls + 1}.get(what, calls)
    for k in range(7):
        sides.step(grads(k), updates=(calls + k + 1) % 3 == 0)


# --- where the accelerated path is not for ---


@pytest.mark.parametrize("use", [stateless, in_a_scope, partial(in_a_scope, mapped=False)])
def test_stateless_use(use):
    sides = Situation().start("nadamw")
    sides.step(grads(0))
    for ours, theirs in zip(*sides.do(use), strict=True):
        np.testing.assert_allclose(numpy(ours), numpy(theirs), rtol=1e-5, atol=1e-6)
    assert len(sides.left) == len(SHAPES)
    sides.step(grads(2))


def test_compiled_code_gets_update_step():
    sides = Situation().start("adamw")
    with patch.object(torch.compiler, "is_compiling", lambda: True):
        sides.step(grads(0), rest=range(3))
    sides.step(grads(1))


@one_of_each
def test_switched_off_and_on(name):
    """What one update leaves on the host, the other may have moved on by the next."""
    decays = {"v1": Decay(0.1, towards="initial")}
    sides = Situation(arguments={**CYCLES, "weight_decays": decays}).start(name)
    for k, fast in enumerate([True, False, False, True, False, True]):
        sides.fused[0].fast = fast
        sides.step(grads(k), rest=() if fast else range(3))


def test_complex_variables_are_left():
    """`update_step` squares where |g|² is meant; whatever it says of them, this path says the same."""
    parameter = torch.nn.Parameter(torch.tensor([1.0 + 2j, 0.5 - 1j]))
    variable, optimizer = keras.Variable(parameter, dtype="complex64"), make("sgdw")
    optimizer.build([variable])
    left = watched(optimizer)
    optimizer.apply([torch.ones(2, dtype=torch.complex64)], [variable])
    assert left == [variable]


# --- whole runs ---


def test_all_in_inference_mode():
    """Tensors made there have no version counter, and cannot tell that they were written to."""
    with torch.inference_mode():
        Situation(events={2: WRITES["iterations"]}, **RESTARTED).run("nadamw")


def test_fit():
    """`fit` takes the accelerated path at every update, and leaves nothing over."""
    final = []
    for fast in (True, False):
        model, optimizer = linear(), make("nadamw", weight_decays={"bias": (0.01, 0)})
        optimizer.fast = fast
        left = watched(optimizer)
        model.compile(optimizer, loss="mse")
        model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert len(left) == (0 if fast else 2 * 4)
        final.append([numpy(v) for v in model.weights])
    for ours, theirs in zip(*final, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("at", [0, 3, 6, 29])
def test_who_assigns_to_a_variable_below_float32_is_obeyed(at, monkeypatch):
    """In any piece, of a long variable or of several short ones, of two types; the others keep their copies."""
    cut_into(4, monkeypatch)
    shapes = [(10,), (2, 3), (3,), (), (1, 2), (10,)]
    dtypes = ["bfloat16", "bfloat16", "float16", "bfloat16", "bfloat16", "float16"]

    def assign(_, variables):
        flat = torch.cat([v.value.detach().float().view(-1) for v in variables])
        flat[at] = 0.75
        parts = flat.split([v.value.numel() for v in variables])
        for v, part in zip(variables, parts, strict=True):
            v.assign(part.view(v.shape))

    Situation(shapes, dtypes, events={1: assign}, arguments={"weight_decays": None}).run("adamw")
