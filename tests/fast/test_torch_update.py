"""torch's accelerated update beside `update_step`, its reference: every case, kind and argument, random mixtures.

`side_by_side.py` says what must agree and how closely. Memory, threads and interruptions are here too.
"""

import contextlib

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from cases import ARITHMETIC, CASES, FUSED, gradients, make_variables, warm_restarts
from keras_decoupled import Decay, RMSprop
from keras_decoupled.fast import torch_pieces
from side_by_side import Sides, cut_into, normal, variables_of
from training import assert_no_graph, make

# --- rules, schedules, restarts, accumulation: the cases of the trajectory tests ---

MATRIX = [(name, case) for name in FUSED for case in ARITHMETIC]
MATRIX += [("nadamw", case) for case in CASES if case not in ARITHMETIC]


@pytest.mark.parametrize(("name", "case"), MATRIX)
def test_cases(name, case):
    case = CASES[case]
    sides = Sides(lambda: case.optimizer(name), make_variables)
    micro_batches = iter(gradients(case.updates * case.accumulate))
    for k in range(case.updates):
        if event := case.events.get(k):
            sides.do(lambda optimizer, _, event=event: event(optimizer))
        for i in range(case.accumulate):
            sides.step(next(micro_batches), updates=i == case.accumulate - 1)


# --- kinds of decay, on tensors that are cut, collected and mixed ---

DECAYS = [
    Decay(0.03, eta_power=0),
    Decay(0.03, 0.002, eta_power=2),
    Decay(0.05, cautious=True),
    Decay(0.05, 0.01, cautious=True, eta_power=0),
    Decay(0.1, towards="initial"),
    Decay(0.0, 0.01, towards="initial"),
    Decay(0.03, 0.02, soft_threshold=True, eta_power=0),
    Decay(0.05, 0.03, towards="initial", soft_threshold=True),
    Decay(0.05, towards="initial", cautious=True, eta_power=0),
]
PIECE = 1000
SIZES = [(PIECE + 1,), (2, PIECE), (7,), *[(50, 4)] * 12, (), (70, 70), (PIECE,), (3, 5)]
every_kind = pytest.mark.parametrize("decay", DECAYS, ids=repr)
KINDS = [("adamw", decay) for decay in DECAYS]
KINDS += [(name, decay) for name in FUSED if name != "adamw" for decay in DECAYS[-3:]]


def away_from_0(shape, seed=0, dtype="float32"):
    """Numbers of one size: with them no step and no distance is so small that its sign is rounding's."""
    rng = np.random.default_rng(seed)
    return (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)).astype(dtype)


@pytest.mark.parametrize(("name", "decay"), KINDS)
def test_kinds(name, decay, monkeypatch):
    cut_into(PIECE, monkeypatch)
    dtypes = ["float64" if i % 5 == 2 else "float32" for i in range(len(SIZES))]
    own = {"v0": 0.02, "v3": (0.01, 0.02), "v6": 0}
    multipliers = {"v4": 0.5, "v7": 0}
    sides = Sides(
        lambda: make(name, weight_decay=decay, weight_decays=own, lr_multipliers=multipliers),
        variables_of(*(away_from_0(s, i, "float64") for i, s in enumerate(SIZES)), dtypes=dtypes),
    )
    bases = [away_from_0(s, 100 + i, dtypes[i]) for i, s in enumerate(SIZES)]
    # Gradients turn around together, so that steps do, and not one by one. At 0 there is no new step.
    for times, rate in ((1.0, 0.05), (0.5, 0.05), (-4.0, 0.0), (-4.0, 0.1), (-1.0, 0.02)):
        sides.do(lambda optimizer, _, rate=rate: setattr(optimizer, "learning_rate", rate))
        sides.step([np.asarray(times * base, base.dtype) for base in bases])


@pytest.mark.parametrize("decay", [DECAYS[0], DECAYS[-1]], ids=repr)
def test_matrices_in_other_axes(decay):
    """Muon's, alone and in stacks, wide and tall, with and without a number for the size."""
    axes = {"v0": "rbc", "v1": "crc", "v2": "brc", "v3": "cr"}
    values = [away_from_0(shape) for shape in ((6, 2, 4), (2, 6, 4), (3, 4, 5), (4, 6), (6,))]
    for rms_rate in (0.2, None):
        sides = Sides(
            lambda rms=rms_rate: make("muon", weight_decay=decay, matrix_axes=axes, rms_rate=rms),
            variables_of(*values),
        )
        sides.step([np.float32(0.5) * value for value in values])
        sides.step(values)


@every_kind
def test_kinds_beside_the_steps_of_keras(decay):
    """In float64, where a decay of 0.03 is not the float32 next to it; without a gradient there is no step."""
    values = [away_from_0(shape, dtype="float64") for shape in ((5, 4), (3,))]
    sides = Sides(
        lambda: RMSprop(0.01, weight_decay=decay), variables_of(*values, dtypes=["float64"] * 2)
    )
    for _ in range(2):
        sides.step([np.zeros_like(value) for value in values])


@pytest.mark.parametrize("rate", [1e-30, 1.3e-12, 1.5e-6, 3.0])
@pytest.mark.parametrize("name", ["sgdw-momentum", "sgdw-nesterov"])
def test_momentum_without_decay(name, rate):
    """Where nothing is decayed, SGDW's two passes become one, at rates that float32 can tell from 0 there."""
    base = away_from_0((5, 4))
    sides = Sides(
        lambda: make(name, weight_decay=0.5, weight_decays={"v0": 0}),
        variables_of(rate * base, base),  # at a weight of this size no step is lost to rounding
    )
    sides.do(lambda optimizer, _: setattr(optimizer, "learning_rate", rate))
    for times in (1.0, 0.5, -2.0):
        sides.step([np.float32(times) * base] * 2)


# --- numbers that are none ---


def both_ways(updates, decay):
    """Where the accelerated update and `update_step` lead from 1: updates are (rate, gradient)."""
    ends = []
    for fast in (True, False):
        rates = [0.1]
        optimizer = make("sgdw", learning_rate=lambda rates=rates: rates[0], weight_decay=decay)
        optimizer.fast = fast
        (variable,) = variables_of(np.ones(3, "float32"))()
        optimizer.build([variable])
        for rates[0], g in updates:
            optimizer.apply([torch.tensor(g)], [variable])
        ends.append(variable.numpy())
    finite = np.isfinite(ends[1])
    np.testing.assert_array_equal(np.isfinite(ends[0]), finite)
    np.testing.assert_allclose(ends[0][finite], ends[1][finite], rtol=1e-5)
    return list(finite)


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_no_numbers(bad, decay):
    """What becomes of the weight is not hidden, on either path, and the others go on."""
    updates = [(0.05, [0.5, bad, -0.5]), (0.05, [0.5, 0.5, -0.5])]
    assert both_ways(updates, decay) == [True, False, True]


@every_kind
@pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
def test_a_rate_that_turns_bad(decay, rate):
    """As `update_step`: below zero everything goes backwards, the decay too; and no error in mid-update."""
    both_ways([(rate, [0.5] * 3)], decay)


# --- what Keras does around the update ---

ALL = {
    "learning_rate": warm_restarts(0.05, 2, t_mul=2, eta_min=0.0),
    "weight_decay": keras.optimizers.schedules.PolynomialDecay(0.06, 6, 0.01),
    "weight_decays": {"bias": (0.01, 0.02), "scale": (0.02, 0)},
    "lr_multipliers": {"dense_1": 0.5, "head/bias": 0, "dense_10": 1e-6},
    "normalize_weight_decay": True,
}
OVERWRITING = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 3}
ARGUMENTS = {
    "EMA, overwriting": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
    "clipvalue": {"clipvalue": 0.2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
    "accumulation, clipnorm, EMA": {"clipnorm": 0.5, **OVERWRITING},
    "all": {"global_clipnorm": 0.7, **OVERWRITING, **ALL},
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-nesterov"])
def test_keras_arguments(name, arguments):
    def variables():
        made = make_variables()
        made[0].constraint = keras.constraints.MaxNorm(0.5)
        made[4].constraint = keras.constraints.NonNeg()
        return made

    sides = Sides(lambda: make(name, **ARGUMENTS[arguments]), variables)
    every = ARGUMENTS[arguments].get("gradient_accumulation_steps", 1)
    for k, grads in enumerate(gradients(8)):
        sides.step(grads, updates=(k + 1) % every == 0)


def test_a_callable_that_says_something_else_each_time():
    """Variables of all multipliers step at one and the same rate."""
    rates = iter(range(1, 1000))
    optimizer = make(
        "sgdw",
        learning_rate=lambda: 0.5 ** next(rates),
        base_learning_rate=1.0,
        weight_decay=0,
        lr_multipliers={"v0": 0.5, "v1": 2},
    )
    variables = variables_of(*[np.zeros(1)] * 3)()
    for _ in range(3):
        before = [float(v.numpy()[0]) for v in variables]
        optimizer.apply([torch.ones(1)] * 3, variables)
        a, b, c = (x - float(v.numpy()[0]) for x, v in zip(before, variables, strict=True))
        assert (a, b) == pytest.approx((c / 2, c * 2), rel=1e-4)


# --- random mixtures ---


def with_graph(g):
    g = g.requires_grad_()
    return g * torch.sigmoid(g)


CHANGES = {
    "contiguous": lambda g: g,
    "strided": lambda g: torch.stack([g] * 2, dim=-1)[..., 0],
    "expanded": lambda g: torch.full((), 0.7, dtype=g.dtype).expand(g.shape),
    "with a graph": with_graph,
    "double": torch.Tensor.double,
    "half": torch.Tensor.half,
    "none": lambda g: None,
}
KERAS = [{}, {"clipnorm": 0.5}, {"use_ema": True}, {"gradient_accumulation_steps": 2}]
numbers = st.sampled_from([0.0, 1e-6, 0.03])
one_variable = st.tuples(
    st.sampled_from([(), (1,), (3,), (2, 4), (0, 2), (5, 7)]),
    st.sampled_from(["float32", "float32", "float32", "float64", "bfloat16", "float16"]),
    st.one_of(
        st.tuples(numbers, numbers),
        st.builds(
            Decay,
            numbers,
            numbers,
            towards=st.sampled_from(["zero", "initial"]),
            eta_power=st.sampled_from([0, 1, 2]),
            soft_threshold=st.booleans(),
        ),
    ),
    st.sampled_from([1.0, 1.0, 0.5, 2.0, 0.0]),
    st.lists(st.sampled_from(["contiguous", *CHANGES]), min_size=3, max_size=3),
)


@settings(max_examples=100)
@given(
    name=st.sampled_from(list(FUSED)),
    drawn=st.lists(one_variable, min_size=1, max_size=5),
    keras_arguments=st.sampled_from(KERAS),
    piece=st.sampled_from([4, 7, 2**16]),
    rates=st.lists(st.sampled_from([None, 0.0, 0.01, 0.2]), min_size=3, max_size=3),
    grad_mode=st.sampled_from([contextlib.nullcontext, torch.no_grad, torch.enable_grad]),
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_random_mixtures(name, drawn, keras_arguments, piece, rates, grad_mode):
    shapes, dtypes, decays, multipliers, changes = zip(*drawn, strict=True)
    decays, multipliers = ({f"v{i}": x for i, x in enumerate(own)} for own in (decays, multipliers))
    arguments = {"weight_decays": decays, "lr_multipliers": multipliers, **keras_arguments}

    def grads(k):
        made = [torch.as_tensor(normal(shape, 10 * k + i)) for i, shape in enumerate(shapes)]
        changed = [CHANGES[change[k]](g) for change, g in zip(changes, made, strict=True)]
        # of None alone Keras makes an error
        return changed if any(g is not None for g in changed) else [made[0], *changed[1:]]

    every = keras_arguments.get("gradient_accumulation_steps", 1)
    arithmetic = every > 1 or "clipnorm" in keras_arguments
    with pytest.MonkeyPatch.context() as patch, grad_mode():
        cut_into(piece, patch)
        values = [normal(shape, i) for i, shape in enumerate(shapes)]
        sides = Sides(
            lambda: make(name, weight_decay=0, **arguments), variables_of(*values, dtypes=dtypes)
        )
        for k, rate in enumerate(rates):
            if rate is not None:
                sides.do(lambda o, _, rate=rate: setattr(o, "learning_rate", rate))
            made = grads(k)
            sides.updates += 1
            sides.do(lambda o, variables, made=made: o.apply(list(made), variables))
            # Keras' arithmetic, where there is any, and a cast make gradients contiguous.
            wanted = [torch.float64 if d == "float64" else torch.float32 for d in dtypes]
            left = {
                id(sides.fused[1][i])
                for i, g in enumerate(made)
                if g is not None
                if not (g.numel() and (g.is_contiguous() or g.dtype != wanted[i] or arithmetic))
            }
            # A later Keras clips float64 in float32 (keras#23704), which is left to `update_step`.
            either = {
                id(v)
                for v in sides.fused[1]
                if "clipnorm" in keras_arguments and v.dtype == "float64"
            }
            expected = set() if (k + 1) % every else left
            assert set(map(id, sides.left)) - either == expected - either
        assert_no_graph(*sides.fused)


# --- what an update must not do ---

SHAPES = [(3, 2), (2,), ()]
TWO_RULES = {"weight_decay": 0.03, "weight_decays": {"v1": (0.01, 0.02)}}


def test_it_only_reads_gradients_and_compares_no_variables(monkeypatch):
    """`==`, also in `None in variables`, would compute, for every element of each."""

    def refuse(self, other):
        raise AssertionError("a variable was compared")

    optimizer, variables = make("nadamw", **TWO_RULES), variables_of(*map(normal, SHAPES))()
    optimizer.build(variables)
    made = [torch.as_tensor(normal(shape)) for shape in SHAPES]
    before = [g.clone() for g in made]
    with monkeypatch.context() as patch:
        patch.setattr(keras.Variable, "__eq__", refuse)
        patch.setattr(type(variables[0]), "__eq__", refuse)
        optimizer.apply(made, variables)
    assert all(torch.equal(a, b) for a, b in zip(made, before, strict=True))


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-nesterov"])
def test_a_graph_from_before_the_update_is_refused(name):
    """Autograd knows that v1 was written to, and gives no gradient of the new value.

    Of v0 and v2 it does not know: torch's fused AdamW does not count what it writes.
    """
    for fast in (True, False):
        optimizer, variables = make(name, **TWO_RULES), variables_of(*map(normal, SHAPES))()
        optimizer.fast = fast
        tensors = [v.value for v in variables]
        loss = sum((t**3).sum() for t in tensors)
        optimizer.apply(torch.autograd.grad(loss, tensors, retain_graph=True), variables)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(loss, tensors)


@pytest.mark.parametrize(("rate", "accumulate"), [(0.1, None), (warm_restarts(0.1, 100), 2)])
def test_it_converts_none_of_its_variables(rate, accumulate, monkeypatch):
    """On a GPU each would be waited for: schedules and counters live on the host."""
    optimizer = make("adamw", learning_rate=rate, gradient_accumulation_steps=accumulate)
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


# --- memory, threads, interruptions ---


def peak(optimizer, variables, gradients):
    """Bytes that an update holds at most at one time beyond what is there before, by torch's own count."""
    optimizer.apply(gradients, variables)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        optimizer.apply(gradients, variables)
    events = profile.profiler.kineto_results.events()
    memory = [e for e in events if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(memory, key=lambda e: e.start_ns())]
    assert changes
    return int(np.cumsum([0, *changes]).max())


PEAKS = [(name, TWO_RULES, 2e6) for name in ("adamw", "nadamw", "sgdw-nesterov")]
# Some pieces, and nothing of the model's size.
PEAKS += [("adamw", {"weight_decay": decay}, 6e6) for decay in DECAYS[-3:]]


@pytest.mark.parametrize(("name", "arguments", "most"), PEAKS)
def test_peak_memory(name, arguments, most):
    """10.5M parameters, 42 MB, of which a step in one pass would need as much again."""
    shapes = [(2048, 4096), (1000, 2000), *[(300,)] * 100]
    variables = variables_of(*(np.ones(s, "float32") for s in shapes))()
    optimizer, gradients = make(name, **arguments), [torch.ones(s) for s in shapes]
    optimizer.build(variables)
    assert peak(optimizer, variables, gradients) <= most
    if (name, arguments) == ("adamw", TWO_RULES):  # the measure sees what it is meant to see
        optimizer.fast = False
        assert peak(optimizer, variables, gradients) >= 30e6


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_small_variables_take_one_thread_and_it_is_given_back(two_threads, error, monkeypatch):
    variables = variables_of(normal((3,), 0), normal((100, 100), 1), normal((2, 2), 2))()
    optimizer = make("adamw")
    optimizer.build(variables)
    kernel, threads = optimizer._kd.update.fast._kernel, {}
    step = kernel.step

    def watch(theta, *arguments):
        threads[tuple(t.numel() for t in theta)] = torch.get_num_threads()
        if error is not None:
            raise error
        step(theta, *arguments)

    monkeypatch.setattr(kernel, "step", watch)
    with contextlib.nullcontext() if error is None else pytest.raises(error):
        optimizer.apply([torch.ones_like(v.value) for v in variables], variables)
    assert threads == ({(3, 4): 1, (10_000,): 2} if error is None else {(3, 4): 1})
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-nesterov"])
def test_an_update_that_was_interrupted_leaves_no_sign_behind(name, monkeypatch):
    """Pieces have the kernel write −step; a plain decay in the next update goes downhill again."""
    variables = variables_of(np.ones(3, "float32"), np.ones(3, "float32"))()
    decays = {"v0": Decay(0.01), "v1": Decay(0.01, towards="initial")}
    optimizer = make(name, weight_decay=0, weight_decays=decays)
    gradients = [torch.ones(3), torch.ones(3)]
    optimizer.apply(gradients, variables)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch_pieces, "decayed", interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.apply(gradients, variables)
    before = variables[0].numpy()
    optimizer.apply(gradients, variables)
    assert np.all(variables[0].numpy() < before)
