"""torch's accelerated update and tensors: which it takes, and which it leaves to `update_step`.

Each test says which variables must be left (`rest`); `side_by_side.py` says what must agree and how closely.
"""

import contextlib

import keras
import numpy as np
import pytest

from cases import BACKEND, OPTIMIZERS, make_variable
from training import make

if BACKEND == "torch":
    import torch

    from keras_decoupled import Decay
    from keras_decoupled.fast import torch_pieces
    from side_by_side import Sides, normal, variables_in, variables_of, watched

    DECAYS = {"weight_decay": 0.03, "weight_decays": {"v1": (0.01, 0.02)}}
    every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)

    def sides_of(name, *shapes, **arguments):
        values = [normal(shape, i) for i, shape in enumerate(shapes)]
        return Sides(lambda: make(name, **DECAYS | arguments), variables_of(*values))

    def grads(k, *shapes, dtype="float32"):
        return [torch.as_tensor(normal(shape, 10 * k + i, dtype)) for i, shape in enumerate(shapes)]

    # --- types ---

    @every_optimizer
    def test_four_types_in_one_list(name):
        """Below float32 the kernels update a copy in float32, which is rounded to the variable."""
        dtypes = ["float32", "float64", "bfloat16", "float16", "float32", "float64"]
        shapes = [(3, 2)] * 6
        values = [normal(shape, i) for i, shape in enumerate(shapes)]
        sides = Sides(lambda: make(name, **DECAYS), variables_of(*values, dtypes=dtypes))
        for k in range(6):
            sides.step(grads(k, *shapes))

    @every_optimizer
    def test_whoever_assigns_to_a_low_precision_variable_is_obeyed(name):
        """And only where another value was assigned: the rest keeps what rounding has cut off."""
        shapes = [(3, 2)] * 2
        values = [normal(shape, i) for i, shape in enumerate(shapes)]
        dtypes = ["bfloat16", "float16"]
        sides = Sides(lambda: make(name, **DECAYS), variables_of(*values, dtypes=dtypes))

        def assign(optimizer, variables):
            for variable in variables:
                variable.value.data[0] = 0.25  # behind the back of torch's version counter
                variable.value.data[1, 0] = -0.5

        for k in range(3):
            sides.step(grads(k, *shapes))
            sides.do(assign)
        sides.step(grads(3, *shapes))

    @every_optimizer
    def test_gradients_of_other_types(name):
        sides = sides_of(name, *[(3,)] * 3)
        for k in range(4):
            a, b, c = grads(k, *[(3,)] * 3)
            sides.step([a.double(), b.half(), c.bfloat16()])

    def test_complex_variables_are_left():
        """`update_step` squares where |g|² is meant; whatever it says of them, this path says the same."""
        parameter = torch.nn.Parameter(torch.tensor([1.0 + 2j, 0.5 - 1j]))
        variable = keras.Variable(parameter, dtype="complex64")
        optimizer = make("sgdw")
        optimizer.build([variable])
        with watched() as rests:
            optimizer.apply([torch.ones(2, dtype=torch.complex64)], [variable])
        assert rests == [[variable]]

    # --- layouts ---

    LAYOUTS = {
        "transposed": lambda g: g.mT.contiguous().mT,
        "strided": lambda g: torch.stack([g, g], dim=-1)[..., 0],
        "channels last": lambda g: g.to(memory_format=torch.channels_last),
        "expanded": lambda g: g[..., :1].expand_as(g),
        "one number": lambda g: torch.full((), 0.3).expand_as(g),
        "sparse": lambda g: (g * (g > 0)).to_sparse(),
        "subclass": lambda g: g.as_subclass(Doubled),
    }
    SHAPE = (2, 3, 4, 5)

    class Doubled(torch.Tensor):
        """Operations on it are its own: `update_step` asks it, a kernel would not."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            made = super().__torch_function__(func, types, args, kwargs or {})
            return made * 2 if func is torch.Tensor.square or func is torch.square else made

    @pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "sparse"])
    @every_optimizer
    def test_gradients_of_any_layout(name, layout):
        sides = sides_of(name, SHAPE, SHAPE, SHAPE)
        for k in range(3):
            a, b, c = grads(k, SHAPE, SHAPE, SHAPE)
            sides.step([a, LAYOUTS[layout](b), c], rest=[1])

    @pytest.mark.parametrize("layout", ["transposed", "strided", "channels last"])
    @every_optimizer
    def test_variables_of_any_layout(name, layout):
        tensor = LAYOUTS[layout](torch.as_tensor(normal(SHAPE)))
        assert not tensor.is_contiguous()
        sides = Sides(lambda: make(name, **DECAYS), variables_in(torch.ones(SHAPE), tensor))
        for variable in (sides.fused[1][1], sides.reference[1][1]):
            variable._value.data = LAYOUTS[layout](variable._value.data)  # clones are dense
            assert not variable._value.is_contiguous()
        sides.do(
            lambda optimizer, variables: optimizer.build([*variables, make_variable("x", 1.0)])
        )
        for k in range(3):
            sides.step(lambda _, k=k: [*grads(k, SHAPE, SHAPE)], rest=[1])

    @every_optimizer
    def test_slices_of_one_buffer(name):
        """Variables and gradients that are contiguous parts of a larger tensor, as some trainers keep them."""

        def variables():
            buffer = torch.as_tensor(normal((20,)))
            parts = (buffer[:6].view(2, 3), buffer[6:13], buffer[13])
            return [
                keras.Variable(torch.nn.Parameter(p), name=f"v{i}") for i, p in enumerate(parts)
            ]

        sides = Sides(lambda: make(name, **DECAYS), variables)
        for k in range(3):
            buffer = torch.as_tensor(normal((20,), k))
            sides.step([buffer[:6].view(2, 3), buffer[6:13], buffer[13]])

    @every_optimizer
    def test_a_negative_view(name):
        """Autograd of complex numbers gives gradients whose sign is a flag; kernels do not read it."""
        sides = sides_of(name, (), ())
        for _ in range(3):

            def gradients(variables):
                x, y = (v._value for v in variables)
                z = torch.complex(x, y)
                made = torch.autograd.grad((z.conj() * (1 + 2j)).imag, [x, y])
                assert made[1].is_neg()
                return made

            sides.step(gradients, rest=[1])

    # --- sizes ---

    PIECE = torch_pieces._ELEMENTS["cpu"]
    SIZES = [(PIECE,), (PIECE + 1,), (3, PIECE // 2 + 5), (2 * PIECE,), (7,), *[(PIECE // 2,)] * 2]

    @pytest.mark.parametrize("decay", [0.03, Decay(0.03, 0.01)], ids=repr)
    @every_optimizer
    def test_several_pieces(name, decay):
        sides = sides_of(name, *SIZES, weight_decay=decay)
        for k in range(2):
            sides.step(grads(k, *SIZES))

    @every_optimizer
    def test_empty_and_scalar(name):
        shapes = [(0, 3), (0,), (), (1,), (1, 1), (3,)]
        sides = sides_of(name, *shapes)
        for k in range(3):
            sides.step(grads(k, *shapes), rest=[0, 1])  # nothing to do, anywhere
        sides = sides_of(name, (0, 3), (0,))  # and nothing else
        sides.step(grads(0, (0, 3), (0,)), rest=[0, 1])

    # --- gradients that are missing, have a graph, or are something else's memory ---

    @every_optimizer
    @pytest.mark.filterwarnings("ignore:Gradients do not exist")
    def test_missing_gradients(name):
        """No gradient: no step, no decay, and the others are none the wiser."""
        sides = sides_of(name, (3,), (2,), ())
        for k, missing in enumerate([None, 0, 1, 2, None]):
            given = grads(k, (3,), (2,), ())
            sides.step([None if i == missing else g for i, g in enumerate(given)])

    @every_optimizer
    def test_a_variable_given_twice(name):
        """Two updates of it, one after the other, as `update_step` makes them."""
        sides = sides_of(name, (3,), (2,))
        for k in range(3):
            a, b, c = grads(k, (3,), (2,), (3,))
            sides.updates += 2
            sides.do(lambda o, vs, gs=(a, b, c): o.apply([*gs], [vs[0], vs[1], vs[0]]))
            assert [[v is sides.fused[1][0] for v in rest] for rest in sides.rests] == [[True]]

    @every_optimizer
    def test_variables_are_not_compared(name, monkeypatch):
        """`==`, also in `None in variables`, would compute, for every element of each."""
        variables = variables_of(normal((3, 2), 0), normal((4,), 1))()
        optimizer = make(name, **DECAYS)
        optimizer.build(variables)
        with monkeypatch.context() as patch:
            patch.setattr(keras.Variable, "__eq__", refuse)
            patch.setattr(type(variables[0]), "__eq__", refuse)
            optimizer.apply(grads(0, (3, 2), (4,)), variables)

    def refuse(self, other):
        raise AssertionError("a variable was compared")

    def test_random_lists_of_variables():
        """As with layers that are dropped at random: what is kept of each list does not pile up."""
        sides = sides_of("nadamw", *[(2,)] * 6)
        rng = np.random.default_rng(0)
        for k in range(40):
            order = [int(i) for i in rng.permutation(6)[: rng.integers(1, 7)]]
            sides.updates += 1
            gs = grads(k, *[(2,)] * len(order))
            sides.do(lambda o, vs, gs=gs, order=order: o.apply(gs, [vs[i] for i in order]))
        assert len(sides.fused[0]._fast_update._plans) <= 8

    def test_fewer_variables_in_another_order():
        sides = sides_of("adamw", (3,), (2,), ())
        a, b, c = grads(0, (3,), (2,), ())
        for gs, order in [([c, a], (2, 0)), ([b, c, a], (1, 2, 0)), ([b], (1,))]:
            sides.updates += 1
            sides.do(lambda o, vs, gs=gs, order=order: o.apply(gs, [vs[i] for i in order]))
            assert sides.rests == [[]]

    MODES = {
        "grad": contextlib.nullcontext,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
    }

    @pytest.mark.parametrize("mode", MODES)
    @every_optimizer
    def test_gradients_with_a_graph(name, mode):
        """The variables stay leaves, their values no part of any graph; gradients stay as they were."""

        def gradients(variables):
            with torch.inference_mode(False), torch.enable_grad():
                tensors = [v._value for v in variables]
                loss = sum((t**3).sum() for t in tensors)
                return torch.autograd.grad(loss, tensors, create_graph=True)

        sides = sides_of(name, (3,), (2,), ())
        for _ in range(3):
            with MODES[mode]():
                sides.step(gradients)
        for variable in sides.fused[1]:
            assert variable._value.is_leaf
            assert variable._value.requires_grad
        for variable in sides.fused[0].variables:
            assert not variable._value.requires_grad

    @every_optimizer
    def test_gradients_are_only_read(name):
        made = grads(0, (3,), (2,), ())
        before = [g.clone() for g in made]
        sides_of(name, (3,), (2,), ()).step(made)
        assert all(torch.equal(a, b) for a, b in zip(made, before, strict=True))

    @pytest.mark.parametrize("view", ["itself", "detached"])
    @every_optimizer
    def test_a_gradient_that_is_the_variable(name, view):
        """∂(½θ²) = θ: one memory, read in full before it is written. v1 has an L1 decay."""

        def gradients(variables):
            return [v._value if view == "itself" else v._value.detach() for v in variables]

        sides = sides_of(name, (3,), (2,), ())
        for _ in range(3):
            sides.updates += 1
            sides.do(lambda o, vs: o.apply(gradients(vs), vs))

    @pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw", "sgdw-momentum"])
    def test_a_graph_from_before_the_update_is_refused(name):
        """Autograd knows that the variable was written to, and gives no gradient of the new value."""
        sides = sides_of(name, (3,), (2,))
        for optimizer, variables in (sides.fused, sides.reference):
            tensors = [v._value for v in variables]
            loss = sum((t**3).sum() for t in tensors)
            optimizer.apply(torch.autograd.grad(loss, tensors, retain_graph=True), variables)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(loss, tensors)

    # --- tensors exchanged after build ---

    @every_optimizer
    def test_a_variable_gets_another_tensor(name):
        sides = sides_of(name, (3,), (2,), ())
        sides.step(grads(0, (3,), (2,), ()))
        old = [v._value for v in sides.fused[1]]

        def exchange(_, variables):
            variables[1]._value = torch.nn.Parameter(variables[1]._value.detach() * 2)

        sides.do(exchange)
        for k in range(2):
            before = old[1].clone()
            sides.step(grads(k, (3,), (2,), ()))
            assert torch.equal(before, old[1])

    @pytest.mark.parametrize("name", ["adamw", "adamw-amsgrad", "nadamw", "sgdw-momentum"])
    def test_optimizer_variables_get_other_tensors(name):
        """A slot, and the scalars."""
        sides = sides_of(name, (3,), (2,), ())
        sides.step(grads(0, (3,), (2,), ()))

        def exchange(optimizer, variables):
            slots = [v for v in optimizer.variables if v.path.endswith("v1_w_momentum")]
            assert len(slots) == 1
            for v in [
                *slots,
                *(v for v in optimizer.variables if v.shape == () and "v2" not in v.path),
            ]:
                v._value = torch.nn.Parameter(v._value.detach() * 2, requires_grad=False)

        sides.do(exchange)
        for k in range(2):
            sides.updates += 1
            sides.do(lambda o, vs, k=k: o.apply(grads(k, (3,), (2,), ()), vs))
