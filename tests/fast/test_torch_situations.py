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

from cases import FUSED, make_variable, make_variables, numpy, warm_restarts
from keras_decoupled import Decay
from side_by_side import PIECE, Sides, cut_into, normal, variables_in, variables_of, watched
from training import X, Y, assert_no_graph, linear, make

SHAPES = [(3, 2), (2,), ()]
FOUR_D = [(2, 3, 4, 5)] * 3
ONE_OF_EACH = ("adamw", "nadamw", "sgdw-nesterov")
DECAYS = {"weight_decay": 0.03, "weight_decays": {"v1": (0.01, 0.02)}}
every_optimizer = pytest.mark.parametrize("name", FUSED)
one_of_each = pytest.mark.parametrize("name", ONE_OF_EACH)


def values_of(shapes, dtype="float32"):
    return [normal(shape, i, dtype) for i, shape in enumerate(shapes)]


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
    optimizers: Sequence[str] = tuple(FUSED)

    def start(self, name):
        values = values_of(self.shapes)
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


def second_in(layout, k, variables):
    a, b, c = grads(k, FOUR_D)
    return [a, LAYOUTS[layout](b), c]


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


def with_a_graph(k, variables):
    with torch.inference_mode(False), torch.enable_grad():
        tensors = [v.value for v in variables]
        loss = sum((t**3).sum() for t in tensors)
        return torch.autograd.grad(loss, tensors, create_graph=True)


# --- variables ---


def in_strides(layout):
    def make_tensors():
        tensor = STRIDES[layout](torch.as_tensor(normal(FOUR_D[0])))
        assert not tensor.is_contiguous()
        return torch.ones(FOUR_D[0]), tensor

    return make_tensors


def slices(k=0, _=None):
    """Contiguous parts of a larger tensor, as some trainers keep variables and gradients."""
    buffer = torch.as_tensor(normal((20,), k))
    return buffer[:6].view(2, 3), buffer[6:13], buffer[13]


def with_one_more(optimizer, variables):
    optimizer.build([*variables, make_variable("x", 1.0)])


def another_tensor(_, variables):
    variables[1]._value = torch.nn.Parameter(variables[1].value.detach() * 2)


def settings_of(optimizer):
    return [setting.variable for setting in optimizer._kd.settings.values()]


def other_slots_and_scalars(optimizer, variables):
    slots = [v for v in optimizer.variables if v.path.endswith("v1_w_momentum")]
    assert len(slots) == 1
    moving = set(map(id, settings_of(optimizer)))
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


# Scalars and tensors that someone else writes between two updates.
WRITES = {
    "iterations": write("iteration", 40),
    "iterations by 1": lambda o, _: held(o, "iteration")[0].assign_add(1),
    "iterations in inference mode": torch.inference_mode()(write("iteration", 40)),
    "cycle_start": write("cycle_start", -3),
    "restart": lambda o, _: o.restart(2),
    "t_cur": setting("t_cur", 1),
    "learning rate": setting("learning_rate", 0.01),
    "learning rate 0": setting("learning_rate", 0.0),
    "weight decay": setting("weight_decay", 0.2),
    "weight decay 0": lambda o, _: o.weight_decay.assign(0.0),
    "factor": write("learning_rate_factor", 0.3),
    "product": write("momentum_product", 0.5),
    "slots": lambda o, _: [v.assign(numpy(v) / 2) for v in o.variables if v.shape == (2,)],
    "weights": lambda _, variables: variables[0].assign(np.ones((3, 2))),
}

# Attributes that users set after build.
SETTINGS = [
    ("sgdw-momentum", "momentum", 0.0),
    ("sgdw-momentum", "momentum", 0.5),
    ("sgdw-nesterov", "momentum", 0.0),
    ("adamw", "beta_1", 0.0),
    ("adamw", "beta_2", 0.9),
    ("adamw", "epsilon", 0.1),
    ("nadamw", "epsilon", 0.1),
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
LONG = [(PIECE,), (PIECE + 1,), (3, PIECE // 2 + 5), (2 * PIECE,), (7,), *[(PIECE // 2,)] * 2]
FOUR_TYPES = ["float32", "float64", "bfloat16", "float16", "float32", "float64"]
RANDOM = np.random.default_rng(0)
ORDERS = [
    [int(i) for i in RANDOM.permutation(6)[: RANDOM.integers(1, 7)]] for _ in range(40)
]  # as with layers that are dropped at random
MODES = {
    "grad": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}

SITUATIONS = {
    # Below float32 the kernels update a copy in float32, which is rounded to the variable.
    "four types in one list": Situation([(3, 2)] * 6, FOUR_TYPES, updates=6),
    "float64 alone": Situation(  # nothing on the way is rounded to float32
        dtypes=["float64"] * 3,
        gradients=lambda k, _: grads(k, dtype="float64"),
        arguments={"lr_multipliers": {"v2": 0.3}},
        updates=8,
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
    **{
        f"a gradient that is {layout}": Situation(
            FOUR_D, gradients=partial(second_in, layout), rest=[1]
        )
        for layout in LAYOUTS
    },
    **{
        f"a variable that is {layout}": Situation(
            FOUR_D[:2],
            variables=variables_in(in_strides(layout)),
            rest=[1],
            events={0: with_one_more},
        )
        for layout in STRIDES
    },
    "slices of one buffer": Situation(variables=variables_in(slices), gradients=slices),
    **{
        f"gradients with a graph, {mode}": Situation(gradients=with_a_graph, around=around)
        for mode, around in MODES.items()
    },
    # ∂(½θ²) = θ: one memory, read in full before it is written. v1 has an L1 decay.
    "gradients that are the variables": Situation(
        gradients=lambda k, variables: [v.value for v in variables], rest=range(3)
    ),
    "gradients that are the variables, detached": Situation(
        gradients=lambda k, variables: [v.value.detach() for v in variables], rest=range(3)
    ),
    "several pieces": Situation(LONG, updates=2),
    "several pieces, l1": Situation(LONG, arguments={"weight_decay": Decay(0.03, 0.01)}, updates=2),
    # There is nothing to do, anywhere.
    "empty and scalar": Situation([(0, 3), (0,), (), (1,), (1, 1), (3,)], rest=[0, 1]),
    "nothing but empty": Situation([(0, 3), (0,)], rest=[0, 1], updates=1),
    # Two updates of it, one after the other, as `update_step` makes them.
    "a variable given twice": Situation([(3,), (2,)], order=lambda k: [0, 1, 0], rest=[0]),
    "random lists of variables": Situation(
        [(2,)] * 4 + [(3,), ()], order=lambda k: ORDERS[k], updates=40
    ),
    "another tensor in a variable": Situation(events={1: another_tensor}),
    "other tensors in slots and scalars": Situation(
        events={1: other_slots_and_scalars},
        optimizers=["adamw", "adamw-amsgrad", "nadamw", "sgdw-momentum"],
    ),
    **{
        f"other data in a tensor, {dtype}, {decay}": Situation(
            [(5,)],
            [dtype],
            arguments={"weight_decay": decay, "weight_decays": None},
            events={1: other_data},
            apart=True,
            optimizers=["adamw"],
        )
        for dtype, decay in [
            ("float32", Decay(0.1, towards="initial")),
            ("float32", Decay(0.1)),
            ("bfloat16", 0.1),
        ]
    },
    # k as a bfloat16 would be 1000 for 1001, as a float16 infinite.
    **{
        f"default dtype {dtype}": Situation(
            around=partial(default_dtype, dtype),
            events={0: write("iteration", 1000), 1: write("iteration", 70_000)},
            updates=2,
            optimizers=ONE_OF_EACH,
        )
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    },
    # An exponential decay gets there. Below 1e-38 float32 has few digits, and 1/rate is infinite.
    **{
        f"a rate of {rate}": Situation(
            variables=make_variables,
            shapes=[v.shape for v in make_variables()],
            arguments={"weight_decays": None},
            events={2: setting("learning_rate", rate), 5: setting("learning_rate", 0.05)},
            updates=6,
        )
        for rate in (1e-12, 1e-25, 1e-38, 1e-40, 1e-46)
    },
    **{
        f"a schedule of tensors for {argument}": Situation(
            arguments={argument: TensorSchedule()}, optimizers=["adamw"]
        )
        for argument in ("learning_rate", "weight_decay")
    },
    **{
        f"{attribute} of {name} set to {value}": Situation(
            arguments={"weight_decays": None},
            events={1: setting(attribute, value)},
            updates=4,
            optimizers=[name],
        )
        for name, attribute, value in SETTINGS
    },
    **{
        f"{what} written": Situation(events={2: event}, optimizers=ONE_OF_EACH, **RESTARTED)
        for what, event in WRITES.items()
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


SEEN = ["iterations", "iterations by 1", "restart", "learning rate", "weight decay", "product"]


@pytest.mark.parametrize("between", [empty_apply, failing_apply, stateless])
@pytest.mark.parametrize("what", SEEN)
def test_a_write_is_seen_whatever_comes_between(what, between):
    sides = Situation(**RESTARTED).start("nadamw")
    for k in range(2):
        sides.step(grads(k))
    sides.do(WRITES[what])
    # what a failing one has written by then is no one's promise: go on from there with one state
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


@one_of_each
def test_a_loaded_state_is_seen(name):
    """Also one that is as far on as this one."""
    source, sides, stores = *(Situation(**RESTARTED).start(name) for _ in range(2)), []
    source.do(write("iteration", 7))
    for k in range(3):
        source.step(grads(k))
    for optimizer, _ in (source.fused, source.reference):
        stores.append({})
        optimizer.save_own_variables(stores[-1])
    for k in range(3, 6):
        sides.step(grads(k))
    saved = iter(stores)
    sides.do(lambda o, _: o.load_own_variables(next(saved)))
    for k in range(3):
        sides.step(grads(k))


# --- where the accelerated path is not for ---


@pytest.mark.parametrize("use", [stateless, in_a_scope, partial(in_a_scope, mapped=False)])
@every_optimizer
def test_stateless_use(name, use):
    sides = Situation().start(name)
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


@every_optimizer
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


# --- what an update must not do ---


@every_optimizer
def test_it_only_reads_gradients_and_compares_no_variables(name, monkeypatch):
    """`==`, also in `None in variables`, would compute, for every element of each."""

    def refuse(self, other):
        raise AssertionError("a variable was compared")

    variables, optimizer = variables_of(*values_of(SHAPES))(), make(name, **DECAYS)
    optimizer.build(variables)
    made = grads(0)
    before = [g.clone() for g in made]
    with monkeypatch.context() as patch:
        patch.setattr(keras.Variable, "__eq__", refuse)
        patch.setattr(type(variables[0]), "__eq__", refuse)
        optimizer.apply(made, variables)
    assert all(torch.equal(a, b) for a, b in zip(made, before, strict=True))


def test_what_is_kept_of_each_list_of_variables_does_not_pile_up():
    variables, optimizer = variables_of(*[normal((2,))] * 6)(), make("nadamw")
    optimizer.build(variables)
    for order in ORDERS:
        optimizer.apply(grads(0, [(2,)] * len(order)), [variables[i] for i in order])
    assert len(optimizer._kd.update.fast._plans) <= 8


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw", "sgdw-momentum"])
def test_a_graph_from_before_the_update_is_refused(name):
    """Autograd knows that the variable was written to, and gives no gradient of the new value."""
    sides = Situation().start(name)
    for optimizer, variables in (sides.fused, sides.reference):
        tensors = [v.value for v in variables]
        loss = sum((t**3).sum() for t in tensors)
        optimizer.apply(torch.autograd.grad(loss, tensors, retain_graph=True), variables)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, tensors)


@every_optimizer
def test_a_tensor_that_a_variable_held_before_is_not_written_to(name):
    sides = Situation().start(name)
    sides.step(grads(0))
    old = sides.fused[1][1].value
    before = old.clone()
    sides.do(another_tensor)
    sides.step(grads(1))
    assert torch.equal(before, old)


@pytest.mark.parametrize("accumulate", [None, 2])
@pytest.mark.parametrize("schedule", [False, True])
def test_it_converts_none_of_its_variables(schedule, accumulate, monkeypatch):
    """On a GPU each would be waited for: schedules and counters live on the host."""
    optimizer = make(
        "adamw",
        learning_rate=warm_restarts(0.1, 100) if schedule else 0.1,
        gradient_accumulation_steps=accumulate,
    )
    variables = variables_of(normal((3,)))()
    for _ in range(2):
        optimizer.apply([torch.ones(3)], variables)
    converted, convert = [], keras.ops.convert_to_tensor

    def watch(x, *arguments, **keywords):
        if isinstance(x, keras.Variable):
            converted.append(x.path)
        return convert(x, *arguments, **keywords)

    monkeypatch.setattr(keras.ops, "convert_to_tensor", watch)
    for _ in range(2):
        optimizer.apply([torch.ones(3)], variables)
    assert converted == []


# --- whole runs ---


@one_of_each
def test_all_in_inference_mode(name):
    """Tensors made there have no version counter, and cannot tell that they were written to."""
    with torch.inference_mode():
        SITUATIONS["iterations written"].run(name)


@every_optimizer
def test_rebuilding(name):
    """Variables come and go; the path is that of the last build, of each variable once."""
    sides, shapes = Situation(arguments={"use_ema": True}).start(name), [*SHAPES, (4,)]
    sides.step(grads(0))
    for _, variables in (sides.fused, sides.reference):
        variables.append(make_variable("new/w", normal((4,))))
    sides.step(grads(1, shapes))  # apply builds by itself
    sides.step(grads(2, shapes))
    for _, variables in (sides.fused, sides.reference):
        del variables[0]
    sides.do(lambda o, vs: o.build(vs))
    sides.largest.clear()
    sides.step(grads(3, shapes[1:]))


@every_optimizer
def test_fit(name):
    """`fit` takes the accelerated path at every update, and leaves nothing over."""
    final = []
    for fast in (True, False):
        model, optimizer = linear(), make(name, weight_decays={"bias": (0.01, 0)})
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
