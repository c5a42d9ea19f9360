"""torch's accelerated update and everything it remembers on the host, or was built with: others may change it.

`side_by_side.py` says what must agree and how closely.
"""

from unittest.mock import patch

import keras
import numpy as np
import pytest

from cases import BACKEND, OPTIMIZERS, make_variable, numpy, warm_restarts
from training import X, Y, linear, make

if BACKEND == "torch":
    import torch

    import keras_decoupled
    from keras_decoupled import Decay
    from keras_decoupled.fast import torch_pieces
    from side_by_side import Sides, normal, variables_of, watched

    SHAPES = [(3, 2), (2,), ()]
    every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
    one_of_each = pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw-nesterov"])

    def sides_of(name, **arguments):
        values = [normal(shape, i) for i, shape in enumerate(SHAPES)]
        return Sides(lambda: make(name, **arguments), variables_of(*values))

    def scheduled(name, **arguments):
        return sides_of(name, learning_rate=warm_restarts(0.05, 5, t_mul=2), **arguments)

    def grads(k, shapes=SHAPES):
        return [normal(shape, 10 * k + i) for i, shape in enumerate(shapes)]

    # --- scalars that someone else writes between two updates ---

    def set_product(optimizer, _):
        if hasattr(optimizer, "_product"):
            optimizer._product.assign(0.5)

    WRITES = {
        "iterations": lambda o, _: o._iterations.assign(40),
        "iterations by 1": lambda o, _: o._iterations.assign_add(1),
        "iterations in inference mode": torch.inference_mode()(
            lambda o, _: o._iterations.assign(40)
        ),
        "cycle_start": lambda o, _: o._cycle_start.assign(-3),
        "restart": lambda o, _: o.restart(2),
        "t_cur": lambda o, _: setattr(o, "t_cur", 1),
        "learning rate": lambda o, _: setattr(o, "learning_rate", 0.01),
        "learning rate 0": lambda o, _: setattr(o, "learning_rate", 0.0),
        "weight decay": lambda o, _: setattr(o, "weight_decay", 0.2),
        "weight decay 0": lambda o, _: o.weight_decay.assign(0.0),
        "factor": lambda o, _: o._rate.assign(0.3),
        "product": set_product,
        "slots": lambda o, _: [v.assign(numpy(v) / 2) for v in o.variables if v.shape == (2,)],
        "weights": lambda _, variables: variables[0].assign(np.ones((3, 2))),
    }

    # What comes between the write and the next update, and must not be taken for the count of one.
    def nothing(optimizer, variables):
        pass

    def empty_apply(optimizer, variables):
        optimizer.apply([], [])

    def failing_apply(optimizer, variables):
        with pytest.raises((RuntimeError, NotImplementedError)):
            optimizer.apply([torch.ones(shape, device="meta") for shape in SHAPES], variables)

    def stateless(optimizer, variables):
        optimizer.stateless_apply(
            [v.value.clone() for v in optimizer.variables],
            [torch.ones(shape) for shape in SHAPES],
            [v.value.clone() for v in variables],
        )

    SEEN = [
        *(
            (name, write, nothing)
            for name in ("adamw", "nadamw", "sgdw-nesterov")
            for write in WRITES
        ),
        *(
            ("nadamw", write, between)
            for write in (
                "iterations",
                "iterations by 1",
                "restart",
                "learning rate",
                "weight decay",
                "product",
            )
            for between in (empty_apply, failing_apply, stateless)
        ),
    ]

    @pytest.mark.parametrize(("name", "write", "between"), SEEN)
    def test_a_write_is_seen(name, write, between):
        sides = scheduled(name)
        for k in range(2):
            sides.step(grads(k))
        sides.do(WRITES[write])
        if between is failing_apply:
            # what it has written by then is no one's promise: go on from there with one state
            sides.do_apart(between)
        else:
            sides.do(between)
        for k in range(3):
            sides.step(grads(k))

    @pytest.mark.parametrize("micro_batch", range(3))
    @pytest.mark.parametrize("write", ["iterations", "iterations by 1", "restart"])
    def test_a_write_between_micro_batches_is_seen(write, micro_batch):
        sides = scheduled("adamw", gradient_accumulation_steps=3)
        for k in range(3 + micro_batch):
            sides.updates += 1
            sides.do(lambda o, vs, k=k: o.apply([torch.as_tensor(g) for g in grads(k)], vs))
        sides.do(WRITES[write])
        for k in range(7):
            sides.updates += 1
            sides.do(lambda o, vs, k=k: o.apply([torch.as_tensor(g) for g in grads(k)], vs))

    @one_of_each
    def test_a_loaded_state_is_seen(name):
        """Also one that is as far on as this one."""
        source = scheduled(name)
        source.do(lambda o, _: o._iterations.assign(7))
        for k in range(3):
            source.step(grads(k))
        stores = []
        for optimizer, _ in (source.fused, source.reference):
            stores.append({})
            optimizer.save_own_variables(stores[-1])
        sides = scheduled(name)
        for k in range(3, 6):
            sides.step(grads(k))
        saved = iter(stores)
        sides.do(lambda o, _: o.load_own_variables(next(saved)))
        for k in range(3):
            sides.step(grads(k))

    # --- stateless use: no variable may be written to ---

    @every_optimizer
    def test_stateless_apply(name):
        sides = sides_of(name)
        sides.step(grads(0))

        def untouched(optimizer, variables):
            held = [*variables, *optimizer.variables]
            before = [numpy(v) for v in held]
            values, state = optimizer.stateless_apply(
                [v.value.clone() * 2 for v in optimizer.variables],
                [torch.as_tensor(g) for g in grads(1)],
                [v.value.clone() * 2 for v in variables],
            )
            assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, held, strict=True))
            return [numpy(value) for value in (*values, *state)]

        for ours, theirs in zip(*sides.do(untouched), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert sides.rests == []
        sides.step(grads(2))

    @pytest.mark.parametrize("mapped", ["nothing", "variables"])
    def test_a_stateless_scope_of_the_users_own(mapped):
        """Whatever it maps: what is assigned inside belongs to the scope."""
        sides = sides_of("adamw")
        sides.step(grads(0))

        def apply(optimizer, variables):
            before = [numpy(v) for v in variables]
            mapping = [(v, v.value * 2) for v in variables] if mapped == "variables" else []
            with keras.StatelessScope(state_mapping=mapping) as scope:
                optimizer.apply([torch.as_tensor(g) for g in grads(1)], variables)
            assert all(np.array_equal(a, numpy(v)) for a, v in zip(before, variables, strict=True))
            return [numpy(scope.get_current_value(v)) for v in variables]

        for ours, theirs in zip(*sides.do(apply), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert sides.rests == []

    # --- where the accelerated path is not for ---

    def test_compiled_code_gets_update_step():
        sides = sides_of("adamw")
        with patch.object(torch.compiler, "is_compiling", lambda: True):
            sides.step(grads(0), calls=0)
        sides.step(grads(1))

    @every_optimizer
    def test_switched_off_and_on(name):
        """What one update leaves on the host, the other may have moved on by the next."""
        sides = scheduled(name, weight_decays={"v1": Decay(0.1, towards="initial")})
        for k, fast in enumerate([True, False, False, True, False, True]):
            sides.fused[0].fast = fast
            sides.step(grads(k), calls=int(fast))

    def test_a_subclass_has_its_own_mathematics():
        class Twice(keras_decoupled.AdamW):
            kernel = "a name of the user's own"

            def step(self, gradient, slots, rate, scalars):
                change, slots = super().step(gradient, slots, rate, scalars)
                return 2 * change, slots

        optimizer, variable = Twice(0.05, weight_decay=0), make_variable("w", np.ones(2))
        with watched() as rests:
            optimizer.apply([torch.ones(2)], [variable])
        assert rests == []
        np.testing.assert_allclose(numpy(variable), 1 - 2 * 0.05, rtol=1e-5)

    # --- attributes that users set after build ---

    SETTINGS = [
        ("sgdw-momentum", "momentum", 0.0),
        ("sgdw-momentum", "momentum", 0.5),
        ("sgdw-nesterov", "momentum", 0.0),
        ("sgdw-momentum", "nesterov", True),
        ("sgdw", "momentum", 0.9),
        ("adamw", "beta_1", 0.0),
        ("adamw", "beta_2", 0.9),
        ("adamw", "epsilon", 0.1),
        ("adamw", "amsgrad", True),
        ("adamw-amsgrad", "amsgrad", False),
        ("nadamw", "epsilon", 0.1),
        ("nadamw", "momentum_decay", 0.0),
        ("adamw", "clipnorm", 0.1),
        ("adamw", "loss_scale_factor", 3.0),
    ]

    @pytest.mark.parametrize(("name", "attribute", "value"), SETTINGS)
    def test_an_attribute_set_after_build(name, attribute, value):
        sides = sides_of(name)
        sides.step(grads(0))
        sides.do(lambda optimizer, _: setattr(optimizer, attribute, value))
        for k in range(1, 4):
            sides.step(grads(k))

    # --- torch's own settings ---

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    @one_of_each
    def test_default_dtype(name, dtype):
        """k as a bfloat16 would be 1000 for 1001, as a float16 infinite."""
        sides = sides_of(name)
        for count in (1000, 70_000):
            sides.do(lambda o, _, count=count: o._iterations.assign(count))
            torch.set_default_dtype(dtype)
            try:
                sides.step(grads(count))
            finally:
                torch.set_default_dtype(torch.float32)

    @one_of_each
    def test_all_in_inference_mode(name):
        """Tensors made there have no version counter, and cannot tell that they were written to."""
        with torch.inference_mode():
            sides = scheduled(name)
            for k in range(3):
                sides.do(lambda o, vs, k=k: o.apply([torch.as_tensor(g) for g in grads(k)], vs))
            sides.do(WRITES["iterations"])
            sides.updates = 5
            sides.do(lambda o, vs: o.apply([torch.as_tensor(g) for g in grads(3)], vs))

    # --- builds ---

    @every_optimizer
    def test_rebuilding(name):
        """Variables come and go; the path is that of the last build, of each variable once."""
        sides = sides_of(name, use_ema=True)
        sides.step(grads(0))
        for side, new in zip((sides.fused, sides.reference), range(2), strict=True):
            side[1].append(make_variable("new/w", normal((4,))))
            assert new < 2
        shapes = [*SHAPES, (4,)]
        sides.step(grads(1, shapes))  # apply builds by itself
        sides.step(grads(2, shapes))
        for _, variables in (sides.fused, sides.reference):
            del variables[0]
        sides.do(lambda o, vs: o.build(vs))
        sides.largest.clear()
        sides.step(grads(3, shapes[1:]))

    # --- training ---

    @every_optimizer
    def test_fit(name):
        """`fit` takes the accelerated path at every update, and leaves nothing over."""
        final = []
        for fast in (True, False):
            model, optimizer = linear(), make(name, weight_decays={"bias": (0.01, 0)})
            optimizer.fast = fast
            model.compile(optimizer, loss="mse")
            with watched() as rests:
                model.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
            assert rests == [[]] * 4 * fast
            final.append([numpy(v) for v in model.weights])
        for ours, theirs in zip(*final, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)

    @pytest.mark.parametrize("decay", [(0.01, 0.02), Decay(0.03, cautious=True)])
    @one_of_each
    def test_pieces_do_not_change_a_bit(name, decay, monkeypatch):
        """How a variable is cut is no part of the result."""
        final = []
        for piece in (5, 2**16):
            monkeypatch.setattr(torch_pieces, "_ELEMENTS", {"cpu": piece})
            optimizer = make(name, weight_decays={"v0": decay})
            (variable,) = variables_of(normal((23,)))()
            for k in range(3):
                optimizer.apply([torch.as_tensor(normal((23,), k))], [variable])
            final.append(numpy(variable))
        np.testing.assert_allclose(*final, rtol=2.0**-22, atol=2.0**-22)
