"""torch's accelerated update beside `update_step`, its reference: every optimizer, every argument, random mixtures.

`side_by_side.py` says what must agree and how closely.
"""

import contextlib
import functools

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import given, settings

from cases import (
    BACKEND,
    CASES,
    OPTIMIZERS,
    PATHS,
    gradients,
    initial_values,
    make_variable,
    warm_restarts,
)
from training import make

if BACKEND == "torch":
    import torch

    from keras_decoupled import Decay
    from keras_decoupled.fast import torch_low_precision, torch_pieces
    from side_by_side import Sides, as_tensor, normal, variables_of

    def six_variables():
        return [
            make_variable(path, value) for path, value in zip(PATHS, initial_values(), strict=True)
        ]

    # --- rules, schedules, restarts, accumulation: the cases of the trajectory tests ---

    # Every case for one optimizer of each class; for the variants those that reach their own arithmetic.
    ARITHMETIC = [
        "l1 and l2",
        "multipliers",
        "accumulation",
        "learning rate set",
        "annealing",
        "kinds by key",
        "all kinds at once",
        "soft_threshold, l2",
        "eta_power=0, learning rate 0",
    ]
    MATRIX = [
        (name, case)
        for name in OPTIMIZERS
        for case in (CASES if name in ("adamw", "nadamw", "sgdw-nesterov") else ARITHMETIC)
    ]

    @pytest.mark.parametrize(("name", "case"), MATRIX)
    def test_cases(name, case):
        case = CASES[case]
        sides = Sides(lambda: case.optimizer(name), six_variables)
        micro_batches = iter(gradients(case.updates * case.accumulate))
        for k in range(case.updates):
            if event := case.events.get(k):
                sides.do(lambda optimizer, _, event=event: event(optimizer))
            for i in range(case.accumulate):
                sides.step(next(micro_batches), calls=int(i == case.accumulate - 1))

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
    LARGE = torch_pieces._ELEMENTS["cpu"]
    SIZES = [(LARGE + 1,), (2, LARGE), (7,), *[(50, 4)] * 20, (), (300, 300), (LARGE,), (3, 5)]

    def away_from_0(shape, seed=0):
        """Numbers of one size: with them no step and no distance is so small that its sign is rounding's."""
        rng = np.random.default_rng(seed)
        return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)

    @pytest.mark.parametrize("decay", DECAYS, ids=repr)
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_kinds(name, decay):
        dtypes = ["float64" if i % 5 == 2 else "float32" for i in range(len(SIZES))]
        values = [away_from_0(shape, i) for i, shape in enumerate(SIZES)]
        sides = Sides(
            lambda: make(
                name,
                weight_decay=decay,
                weight_decays={"v0": 0.02, "v3": (0.01, 0.02), "v6": 0},
                lr_multipliers={"v4": 0.5, "v7": 0},
            ),
            variables_of(*values, dtypes=dtypes),
        )
        bases = [
            away_from_0(shape, 100 + i).astype(dtype)
            for i, (shape, dtype) in enumerate(zip(SIZES, dtypes, strict=True))
        ]
        # Gradients turn around together, so that steps do, and not one by one. At 0 there is no new step.
        for times, rate in ((1.0, 0.05), (0.5, 0.05), (-4.0, 0.0), (-4.0, 0.1), (-1.0, 0.02)):
            sides.do(lambda optimizer, _, rate=rate: setattr(optimizer, "learning_rate", rate))
            sides.step([np.asarray(times * base, base.dtype) for base in bases])

    @pytest.mark.parametrize("rate", [1e-30, 1.3e-12, 1.5e-6, 1e-3, 3.0])
    @pytest.mark.parametrize("name", ["sgdw-momentum", "sgdw-nesterov"])
    def test_momentum_without_decay(name, rate):
        """Where nothing is decayed, SGDW's two passes become one, at rates that float32 can tell from 0 there."""
        base = away_from_0((5, 4)).astype("float32")
        sides = Sides(
            lambda: make(name, weight_decay=0.5, weight_decays={"v0": 0}),
            variables_of(rate * base, base),  # at a weight of this size no step is lost to rounding
        )
        sides.do(lambda optimizer, _: setattr(optimizer, "learning_rate", rate))
        for times in (1.0, 0.5, -2.0):
            sides.step([np.float32(times) * base] * 2)

    @pytest.mark.parametrize("decay", DECAYS, ids=repr)
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_gradients_that_are_no_numbers(bad, decay):
        """What becomes of the weight is not hidden, on either path, and the others go on."""
        after = []
        for fast in (True, False):
            optimizer = make("sgdw", weight_decay=decay)
            (variable,) = variables_of(np.ones(3, "float32"))()
            optimizer.fast = fast
            for g in ([0.5, bad, -0.5], [0.5, 0.5, -0.5]):
                optimizer.apply([torch.tensor(g)], [variable])
            after.append(variable.numpy())
        assert [list(np.isfinite(values)) for values in after] == [[True, False, True]] * 2
        np.testing.assert_allclose(after[0][::2], after[1][::2], rtol=1e-5)

    @pytest.mark.parametrize("decay", DECAYS, ids=repr)
    def test_peak_memory_of_kinds(decay):
        """Some pieces, and nothing of the model's size: 42 MB are there of weights."""
        shapes = [(2048, 4096), (1000, 2000), *[(300,)] * 100]
        variables = variables_of(*(np.ones(s, "float32") for s in shapes))()
        optimizer = make("adamw", weight_decay=decay)
        optimizer.build(variables)
        assert peak(optimizer, variables, [torch.ones(s) for s in shapes]) <= 6e6

    # --- what Keras does around the update ---

    ARGUMENTS = {
        "EMA": {"use_ema": True, "ema_momentum": 0.5},
        "EMA, overwriting": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2},
        "clipnorm": {"clipnorm": 0.5},
        "global_clipnorm": {"global_clipnorm": 0.7},
        "clipvalue": {"clipvalue": 0.2},
        "loss_scale_factor": {"loss_scale_factor": 8.0},
        "accumulation, clipnorm, EMA": {
            "gradient_accumulation_steps": 2,
            "clipnorm": 0.5,
            "use_ema": True,
            "ema_overwrite_frequency": 3,
        },
        "all": {
            "weight_decay": keras.optimizers.schedules.PolynomialDecay(0.06, 6, 0.01),
            "weight_decays": {"bias": (0.01, 0.02), "scale": (0.02, 0)},
            "lr_multipliers": {"dense_1": 0.5, "head/bias": 0, "dense_10": 1e-6},
            "normalize_weight_decay": True,
            "gradient_accumulation_steps": 2,
            "global_clipnorm": 0.7,
            "use_ema": True,
            "ema_overwrite_frequency": 3,
        },
    }

    @pytest.mark.parametrize("arguments", ARGUMENTS)
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_keras_arguments(name, arguments):
        def variables():
            made = six_variables()
            made[0].constraint = keras.constraints.MaxNorm(0.5)
            made[4].constraint = keras.constraints.NonNeg()
            return made

        def optimizer():
            more = ARGUMENTS[arguments]
            if "normalize_weight_decay" in more:
                more = more | {"learning_rate": warm_restarts(0.05, 2, t_mul=2, eta_min=0.0)}
            return make(name, **more)

        sides = Sides(optimizer, variables)
        every = ARGUMENTS[arguments].get("gradient_accumulation_steps", 1)
        for k, grads in enumerate(gradients(8)):
            sides.step(grads, calls=int((k + 1) % every == 0))

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_constant_factors_keep_float64(name):
        """Nothing on the way is rounded to float32."""
        shapes = [(3, 2), (5,), ()]
        sides = Sides(
            lambda: make(name, weight_decays={"v1": (0.01, 0.02)}, lr_multipliers={"v2": 0.3}),
            variables_of(*(normal(s, dtype="float64") for s in shapes), dtypes=["float64"] * 3),
        )
        for k in range(8):
            sides.step([normal(s, k, "float64") for s in shapes])

    @pytest.mark.parametrize("rate", [1e-12, 1e-25, 1e-38, 1e-40, 1e-46])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_tiny_rates(name, rate):
        """An exponential decay gets there. Below 1e-38 float32 has few digits, and 1/rate is infinite."""
        sides = Sides(lambda: make(name), six_variables)
        for k, grads in enumerate(gradients(6)):
            if k in (2, 5):
                now = rate if k == 2 else 0.05
                sides.do(lambda optimizer, _, now=now: setattr(optimizer, "learning_rate", now))
            sides.step(grads)

    def test_a_callable_that_says_something_else_each_time():
        """Variables of all multipliers step at one and the same rate."""

        def optimizer():
            rates = iter(range(1, 1000))
            return make(
                "sgdw",
                learning_rate=lambda: 0.5 ** next(rates),
                base_learning_rate=1.0,
                weight_decay=0,
                lr_multipliers={"v0": 0.5, "v1": 2},
            )

        made, variables = optimizer(), variables_of(*[np.zeros(1)] * 3)()
        for _ in range(3):
            before = [float(v.numpy()[0]) for v in variables]
            made.apply([torch.ones(1)] * 3, variables)
            a, b, c = (x - float(v.numpy()[0]) for x, v in zip(before, variables, strict=True))
            assert a == pytest.approx(c / 2, rel=1e-4)
            assert b == pytest.approx(c * 2, rel=1e-4)

    class TensorSchedule(keras.optimizers.schedules.LearningRateSchedule):
        """One that was written for torch and asks a tensor of its step, as `update_step` gives it."""

        initial_learning_rate = 0.05

        def __call__(self, step):
            return 0.05 / (1 + step.to(torch.float32))

        def get_config(self):
            return {}

    @pytest.mark.parametrize("argument", ["learning_rate", "weight_decay"])
    def test_schedules_get_a_tensor(argument):
        sides = Sides(lambda: make("adamw", **{argument: TensorSchedule()}), six_variables)
        for grads in gradients(3):
            sides.step(grads)

    # --- random mixtures ---

    def contiguous(g):
        return torch.as_tensor(g)

    def strided(g):
        return torch.stack([torch.as_tensor(g)] * 2, dim=-1)[..., 0]

    def expanded(g):
        return torch.full((), 0.7, dtype=torch.as_tensor(g).dtype).expand(g.shape)

    def with_graph(g):
        g = torch.as_tensor(g).requires_grad_()
        return g * torch.sigmoid(g)

    def double(g):
        return torch.as_tensor(g).double()

    def half(g):
        return torch.as_tensor(g).half()

    KINDS = [contiguous, contiguous, strided, expanded, with_graph, double, half, None]
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
        st.lists(st.sampled_from(KINDS), min_size=3, max_size=3),
    )

    @settings(max_examples=150)
    @given(
        name=st.sampled_from(list(OPTIMIZERS)),
        drawn=st.lists(one_variable, min_size=1, max_size=5),
        keras_arguments=st.sampled_from(KERAS),
        piece=st.sampled_from([4, 7, 2**16]),
        rates=st.lists(st.sampled_from([None, 0.0, 0.01, 0.2]), min_size=3, max_size=3),
        grad_mode=st.sampled_from([contextlib.nullcontext, torch.no_grad, torch.enable_grad]),
    )
    @pytest.mark.filterwarnings("ignore:Gradients do not exist")
    def test_random_mixtures(name, drawn, keras_arguments, piece, rates, grad_mode):
        shapes, dtypes, decays, multipliers, kinds = zip(*drawn, strict=True)

        def optimizer():
            return make(
                name,
                weight_decay=0,
                weight_decays={f"v{i}": pair for i, pair in enumerate(decays)},
                lr_multipliers={f"v{i}": m for i, m in enumerate(multipliers)},
                **keras_arguments,
            )

        def grads(k):
            made = [
                None if kind[k] is None else kind[k](normal(shape, 10 * k + i))
                for i, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))
            ]
            # of None alone Keras makes an error
            return (
                made
                if any(g is not None for g in made)
                else [as_tensor(normal(shapes[0])), *made[1:]]
            )

        every = keras_arguments.get("gradient_accumulation_steps", 1)
        with pytest.MonkeyPatch.context() as patch, grad_mode():
            patch.setattr(torch_pieces, "_ELEMENTS", {"cpu": piece})
            patch.setattr(torch_low_precision, "_ELEMENTS", piece)
            values = [normal(shape, i) for i, shape in enumerate(shapes)]
            sides = Sides(optimizer, variables_of(*values, dtypes=dtypes))
            for k, rate in enumerate(rates):
                if rate is not None:
                    sides.do(lambda o, _, rate=rate: setattr(o, "learning_rate", rate))
                made = grads(k)
                sides.updates += 1
                sides.do(functools.partial(_apply, made))
                assert len(sides.rests) == int((k + 1) % every == 0)

    def _apply(grads, optimizer, variables):
        optimizer.apply(list(grads), variables)

    # --- rounding ---

    @pytest.mark.parametrize("decay", [1e-4, 1e-6])
    @pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
    def test_a_decay_that_float32_can_hardly_tell_from_none(name, decay):
        """torch multiplies by float32(1 − decay), which at 1e-6 is 1 − 0.954e-6: 5% off."""
        optimizer = make(name, weight_decay=decay)
        values = np.float32(1 + 0.7 * np.random.default_rng(0).random(2000))
        (variable,) = variables_of(values)()
        updates = 3000
        for _ in range(updates):
            optimizer.apply([torch.zeros(2000)], [variable])
        lost = np.mean(1 - variable.numpy() / np.float64(values))
        np.testing.assert_allclose(lost, 1 - (1 - decay) ** updates, rtol=0.01)

    # --- memory ---

    TWO_RULES = {"weight_decay": 0.03, "weight_decays": {"v1": (0.01, 0.02)}}

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

    @pytest.mark.parametrize("name", ["adamw", "adamw-amsgrad", "nadamw", "sgdw-nesterov"])
    def test_peak_memory(name):
        """10.5M parameters, 42 MB, of which a step in one pass would need as much again."""
        shapes = [(2048, 4096), (1000, 2000), *[(300,)] * 100]
        variables = variables_of(*(np.ones(s, "float32") for s in shapes))()
        optimizer = make(name, **TWO_RULES)
        optimizer.build(variables)
        gradients = [torch.ones(s) for s in shapes]
        assert peak(optimizer, variables, gradients) <= 2e6
        if name == "adamw":  # the measure sees what it is meant to see
            optimizer.fast = False
            assert peak(optimizer, variables, gradients) >= 30e6

    @pytest.mark.parametrize("rate", [-0.1, float("nan"), float("inf")])
    @pytest.mark.parametrize("decay", [Decay(0.5), *DECAYS], ids=repr)
    @pytest.mark.parametrize("name", ["adamw", "nadamw", "sgdw"])
    def test_a_rate_that_turns_bad(name, decay, rate):
        """As `update_step`: below zero everything goes backwards, the decay too; and no error in mid-update."""
        after = []
        for fused in (True, False):
            rates = [0.1]
            optimizer = make(name, learning_rate=lambda rates=rates: rates[0], weight_decay=decay)
            (variable,) = variables_of(np.ones(3, "float32"))()
            optimizer.build([variable])
            if not fused:
                optimizer.fast = False
            rates[0] = rate
            optimizer.apply([torch.full((3,), 0.5)], [variable])
            after.append(variable.numpy())
        finite = np.isfinite(after[1])
        np.testing.assert_array_equal(np.isfinite(after[0]), finite)
        np.testing.assert_allclose(after[0][finite], after[1][finite], rtol=1e-5)

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
        kernel, threads = optimizer._fast_update._kernel, {}
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

    @pytest.mark.parametrize(
        ("decay", "dtype"),
        [(Decay(0.1, towards="initial"), "float32"), (Decay(0.1), "float32"), (0.1, "bfloat16")],
    )
    def test_data_that_was_put_in_the_place_of_a_tensors(decay, dtype):
        """`p.data = x`, as torch.nn.utils.vector_to_parameters does it: another memory in the same tensor."""
        sides = Sides(
            lambda: make("adamw", weight_decay=decay), variables_of(normal((5,)), dtypes=[dtype])
        )
        sides.step([normal((5,), 1)])

        def replace(_, variables):
            for v in variables:
                v.value.data = torch.full((5,), 0.75, dtype=v.value.dtype)

        sides.do_apart(replace)
        sides.step([normal((5,), 2)])

    @pytest.mark.parametrize("accumulate", [None, 2])
    @pytest.mark.parametrize("schedule", [False, True])
    def test_a_fused_update_converts_none_of_its_variables(schedule, accumulate, monkeypatch):
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

    @pytest.mark.parametrize("at", [0, 3, 6, 29])
    def test_who_assigns_to_a_variable_below_float32_is_obeyed(at, monkeypatch):
        """In any piece, of a long variable or of several short ones, of two types; the others keep their copies."""
        monkeypatch.setattr(torch_low_precision, "_ELEMENTS", 4)
        shapes = [(10,), (2, 3), (3,), (), (1, 2), (10,)]
        dtypes = ["bfloat16", "bfloat16", "float16", "bfloat16", "bfloat16", "float16"]
        values = [normal(shape, i) for i, shape in enumerate(shapes)]
        sides = Sides(lambda: make("adamw"), variables_of(*values, dtypes=dtypes))
        sides.step([normal(shape, 9) for shape in shapes])

        def assign(_, variables):
            flat = torch.cat([v.value.detach().float().view(-1) for v in variables])
            flat[at] = 0.75
            parts = flat.split([v.value.numel() for v in variables])
            for v, part in zip(variables, parts, strict=True):
                v.assign(part.view(v.shape))

        sides.do(assign)
        sides.step([normal(shape, 10) for shape in shapes])
        sides.step([normal(shape, 11) for shape in shapes])
