"""Every error: its class, the argument that it names, its cure, and that it changed nothing.

A message names the argument, says `Received: …`, and has a cure: at least one sentence after what was received.
"""

import re
from functools import partial

import keras
import numpy as np
import pytest
from keras import layers, regularizers

from cases import BACKEND, eager, numpy
from keras_decoupled import (
    SGDW,
    AdamW,
    CosineWarmRestarts,
    Decay,
    Lamb,
    Lion,
    NadamW,
    RMSprop,
)
from small import named, ones

schedules = keras.optimizers.schedules
NAN, INF = float("nan"), float("inf")


def check(call, error, name, word):
    """`call` raises this error; its message names the argument and has this word of the cure."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message), (name, message)
    assert "Received: " in message
    assert word in message, (word, message)
    # `restart()` without a schedule says what it needs before it says what it received.
    assert re.search(r"Received: (?s:.*?)\. \S", message) or name == "restart", message
    assert "  " not in message, message
    assert message == message.strip(), message
    assert message.endswith("."), message


net = partial(named, regularizers.L2(1e-4), units=1)
variables = partial(ones, shape=(2, 2))


def rate():
    return 0.1


class Jump(schedules.LearningRateSchedule):
    """One value, and from step 8 on another."""

    def __init__(self, *values):
        self.values = values

    def __call__(self, step):
        return self.values[int(step) > 7]


VECTOR = Jump(*[keras.ops.ones((1,))] * 2)
COSINE = CosineWarmRestarts(0.1, 10)
DECAY = schedules.ExponentialDecay(0.1, 10, 0.9)
FALLS_BELOW_0 = schedules.PolynomialDecay(1.0, 1000, -0.5)
ANNEALING = {"use_cosine_annealing": True, "total_iterations": 10}
BASE = "base_learning_rate"


# --- arguments ---


def each(call, name, word, values=(), types=(), /, **more):
    """Rows of a call with these values of the argument `name`: ValueErrors and TypeErrors.

    The message names the argument, or the part after a ":"; "argument['key']" is a key in it.
    """
    name, _, named = name.partition(":")
    argument, key, _ = name.partition("['one']")
    return [
        (call, {**more, argument: {"one": x} if key else x}, error, named or name, word)
        for error, given in ((ValueError, values), (TypeError, types))
        for x in given
    ]


ADAMW, NADAMW, SGDW_ = (partial(each, cls) for cls in (AdamW, NadamW, SGDW))
NEEDS_BASE = f"Pass `{BASE}`"
FLAG = "True or False"
# A word of the cure, the values of a ValueError, and those of a TypeError.
REFUSED = [
    # learning_rate and α
    *ADAMW("learning_rate", "", [-0.1, NAN, INF, 1e39, 10**400]),
    *ADAMW("learning_rate", "LearningRateSchedule", [], [None, "0.1", True]),
    *ADAMW("learning_rate", "ExponentialDecay(...)", [], [schedules.ExponentialDecay]),
    *SGDW_("learning_rate", "one number", [VECTOR], base_learning_rate=0.1),
    *SGDW_("learning_rate:initial_learning_rate", NEEDS_BASE, [CosineWarmRestarts(0.0, 10)]),
    *SGDW_("learning_rate:initial_learning_rate", NEEDS_BASE, [schedules.CosineDecay(0.0, 10)]),
    *SGDW_(
        "learning_rate:warmup_target", NEEDS_BASE, [schedules.CosineDecay(0.1, 9, 0, None, 0.0)]
    ),
    *SGDW_("learning_rate:step 0", NEEDS_BASE, [Jump(x, x) for x in (0.0, -1.0, NAN, INF)]),
    *SGDW_("learning_rate:step 8", NEEDS_BASE, [Jump(0.1, INF)]),  # it rises without a bound
    *ADAMW(BASE, "", [0.0, -1, NAN, INF], ["0.1", True]),
    # decays and multipliers
    *ADAMW("weight_decay", "", [-1e-4, NAN, INF, (0.0, -1e-4), 10**5000], ["1e-4", True, rate]),
    *ADAMW("weight_decay", "l1", [(1, 2, 3)]),
    *ADAMW("weight_decay", "Decay", [{}, {"kernel": 1e-4}]),
    *ADAMW("weight_decay", "one number", [VECTOR]),
    *ADAMW("weight_decays['one']", "", [-1, NAN, (0, INF), (-1, 0), (1e300, 0)], ["l2", None]),
    *ADAMW("weight_decays['one']", "l1", [(1, 2, 3), ()], [(DECAY, 0)]),
    *ADAMW("weight_decays['one']", "one number", [(0, VECTOR)]),
    *ADAMW("weight_decays", "dict", [], [[("one", 0.1)], 0.1]),
    *ADAMW("lr_multipliers['one']", "0 freezes", [-1, NAN, INF, FALLS_BELOW_0], ["x", (1, 2)]),
    *ADAMW("lr_multipliers", "dict", [], [0.5]),
    # each optimizer's own
    *ADAMW("beta_1", "0.9", [1, -0.1], [True]),
    *ADAMW("beta_2", "0.999", [1.0, NAN], ["0.9"]),
    *ADAMW("epsilon", "1e-7", [-1e-7, INF, 1e300], [None]),
    *ADAMW("amsgrad", FLAG, [], ["no"]),
    *NADAMW("beta_1", "0.9", [1]),
    *NADAMW("momentum_decay", "0.004", [-0.004, INF], ["x"]),
    *SGDW_("momentum", "0.9", [1, -0.1], [None]),
    *SGDW_("nesterov", FLAG, [], ["no"]),
    *each(Lamb, "epsilon", "help", [NAN, 1e300], ["x"]),
    *each(Lion, "beta_1", "help", [NAN], [True]),
    *each(RMSprop, "rho", "help", [NAN, INF]),
    # time
    *ADAMW("total_iterations", "updates", [0, -5, 2.5, INF], ["10", True]),
    *ADAMW("total_iterations_wd", "updates", [0, 1.5], ["1"]),
    *ADAMW("total_iterations", "normalize_weight_decay", [10], learning_rate=COSINE),
    *ADAMW("total_iterations", "total_iterations_wd", [10], learning_rate=COSINE),
    *ADAMW("use_cosine_annealing:total_iterations", "", [True]),
    *ADAMW("total_iterations", "", [1], use_cosine_annealing=True),
    *ADAMW("learning_rate:use_cosine_annealing", "", [DECAY, rate], **ANNEALING),
    *ADAMW("use_cosine_annealing", "", [True], learning_rate=COSINE),
    *ADAMW("use_cosine_annealing", FLAG, [], ["no"], total_iterations=9),
    *ADAMW("autorestart", "use_cosine_annealing=True", [True]),
    *ADAMW("autorestart", "CosineWarmRestarts", [True], learning_rate=COSINE),
    *ADAMW("autorestart", "must be True", [], ["no", 0], **ANNEALING),
    *ADAMW("eta_min", "", [0.5], **ANNEALING, eta_max=0.4),
    *ADAMW("eta_min", "", [1.5, -0.1], **ANNEALING),
    *ADAMW("eta_max", "", [NAN], ["1"], **ANNEALING),
    *ADAMW("eta_min", "use_cosine_annealing=True", [0.1]),
    *ADAMW("eta_max", "use_cosine_annealing=True", [0.9]),
    *ADAMW("t_cur", "use_cosine_annealing=True", [1]),
    *ADAMW("t_cur", "use_cosine_annealing", [1], learning_rate=COSINE),
    *ADAMW("t_cur", "", [10, -2, 1.5], ["1"], **ANNEALING),
    *ADAMW("normalize_weight_decay", "", [True]),
    *ADAMW("normalize_weight_decay", "", [True], learning_rate=DECAY),
    *ADAMW("normalize_weight_decay", "", [False], total_iterations_wd=10),
    *ADAMW("normalize_weight_decay", "True", [], ["yes", 0], total_iterations=9),
    # others
    *ADAMW("init_verbose", FLAG, [], ["no"]),
    *ADAMW("zero_penalties", FLAG, [], ["no"]),
    *ADAMW("lr", "learning_rate", [0.1]),
    *ADAMW("decay", "LearningRateSchedule", [0.1]),
    *SGDW_("beta_1", "", [0.9]),
]


def build(**arguments):
    """A bad key may be found in the constructor; after it all is as before the build."""
    optimizer = AdamW(**arguments)
    before = len(optimizer.variables)
    try:
        optimizer.build(variables("net/dense/kernel", "net/dense_1/kernel", "net/head/kernel"))
    finally:
        assert not optimizer.built
        assert len(optimizer.variables) == before


UNBUILT = keras.Sequential([layers.Dense(1)], name="unbuilt")
MODEL = "keras.Model"
REFUSED_ELSEWHERE = [
    *ADAMW("model", MODEL, [], ["net", layers.Dense(1), 0]),
    *ADAMW("model", MODEL, [], ["net", layers.Dense(1), 0], zero_penalties=False),
    *ADAMW("model", "model.build(", [UNBUILT]),
    *ADAMW("model", "model.build(", [UNBUILT], zero_penalties=False),
    *ADAMW("weight_decays", "'net/one/kernel'", [{"onee": 0.1}], model=net()),
    *ADAMW("lr_multipliers", "'net/two/kernel'", [{"twoo": 0.1}], model=net()),
    *each(build, "weight_decays", "'net/head/kernel'", [{"haed": 0.1}, {"net/head/kernl": 0}]),
    *each(build, "lr_multipliers", "'dense/'", [{"dense": 0.1}]),
    *each(build, "weight_decays", "layer's", [{"": 0.1}, {"/": 0.1}]),
    *each(build, "lr_multipliers", "variable.path", [], [{None: 0.1}]),
    *each(build, "learning_rate:callable", NEEDS_BASE, [lambda: 0.0]),
]


@pytest.mark.parametrize(
    "row", REFUSED + REFUSED_ELSEWHERE, ids=lambda row: f"{row[0].__name__}-{row[3]}"
)
def test_an_argument_is_refused(row):
    call, arguments, *rest = row
    check(partial(call, **arguments), *rest)


# Keras' own errors come later than ours, and still before the model is touched.
REFUSED_BY_KERAS_OR_THE_MODEL = [
    {"clipnorm": 1.0, "clipvalue": 1.0},
    {"gradient_accumulation_steps": 1},
    {"use_ema": True, "ema_momentum": 2.0},
    {"weight_decays": {"none": 0.1}},
    {"lr_multipliers": {"none": 0.1}},
]


def test_a_failing_constructor_leaves_the_model_as_it_was():
    model = net()
    kernel, loss = model.trainable_variables[0], float(numpy(model.losses[0]))
    regularizer = kernel.regularizer
    assert loss > 0
    calls = [(cls, arguments) for cls, arguments, *_ in REFUSED]
    for cls, arguments in [*calls, *((AdamW, more) for more in REFUSED_BY_KERAS_OR_THE_MODEL)]:
        with pytest.raises((ValueError, TypeError)):
            cls(**{"model": model, **arguments})
        assert kernel.regularizer is regularizer, arguments
        assert model.layers[0].kernel_regularizer is regularizer, arguments
        assert not hasattr(kernel, "_keras_decoupled_penalty"), arguments
    assert [float(numpy(x)) for x in model.losses] == [loss]
    AdamW(model=model)
    assert model.losses == []


# --- a failed build ---


def test_a_failed_build_can_be_made_good():
    optimizer = SGDW(0.5, momentum=0.9, weight_decays={"later": 0.5})
    theirs, ours = variables("net/head/kernel"), variables("net/later/kernel")
    with pytest.raises(ValueError, match="weight_decays"):
        optimizer.apply([keras.ops.zeros((2, 2))], theirs)
    assert not optimizer.built
    assert optimizer.weight_decays == {"later": 0.5}  # as given
    np.testing.assert_array_equal(numpy(theirs[0]), 1)
    eager(optimizer, ours)([np.zeros((2, 2), "float32")])
    assert optimizer.weight_decays == {"net/later/kernel": (0.0, 0.5)}
    np.testing.assert_array_equal(numpy(ours[0]), 0.5)
    assert int(numpy(optimizer.iterations)) == 1


def test_a_failed_rebuild_leaves_what_was_built():
    optimizer = SGDW(0.5, momentum=0.9, weight_decays={"dense": 0.5})
    old = variables("dense/kernel")
    optimizer.build(old)
    state = optimizer.variables
    with pytest.raises(ValueError, match="'dense/'"):
        optimizer.build([*old, *variables("dense/bias", "dense_1/kernel")])
    assert optimizer.built
    assert list(map(id, optimizer.variables)) == list(map(id, state))
    assert optimizer.weight_decays == {"dense/kernel": (0.0, 0.5)}
    eager(optimizer, old)([np.zeros((2, 2), "float32")])
    np.testing.assert_array_equal(numpy(old[0]), 0.5)


# --- an optimizer that is there already ---


def cosine(**arguments):
    return AdamW(0.1, **ANNEALING, **arguments)


def decaying(weight_decay=0.1):
    return AdamW(weight_decay=weight_decay)


def built():
    optimizer = decaying()
    optimizer.build(variables("a"))
    return optimizer


def excluding():
    optimizer = decaying()
    optimizer.exclude_from_weight_decay(var_names=["a"])
    return optimizer


def setting(name):
    return lambda optimizer, value: setattr(optimizer, name, value)


def exclude(optimizer, arguments):
    optimizer.exclude_from_weight_decay(**arguments)


def later(make, do, name, word, values=(), types=()):
    """Rows of what `do` makes of these values: ValueErrors and TypeErrors."""
    both = (ValueError, values), (TypeError, types)
    return [(make, do, x, error, name, word) for error, given in both for x in given]


set_rate, set_decay, set_t_cur = map(setting, ("learning_rate", "weight_decay", "t_cur"))
restart = AdamW.restart
two_cycles = partial(AdamW, CosineWarmRestarts(0.1, 5, t_mul=2))
at_0 = partial(cosine, t_cur=9)
NO_SCHEDULE = "use_cosine_annealing=True"
EXCLUSIONS = [{"var_names": ["a"]}, {"var_list": []}, {}]
NO_NUMBERS = [None, DECAY, Decay(0.1), (0.0, 0.1), "0.1", True, [0.1], np.ones(2)]
LATER = [
    *later(AdamW, set_rate, "learning_rate", "", [-1, NAN], ["1", None, True]),
    *later(cosine, set_rate, "learning_rate", "", [INF]),
    *later(at_0, set_rate, "learning_rate", "from_keras", [0.1, 1e-8]),
    *later(AdamW, set_rate, "learning_rate", "new optimizer", [], [DECAY]),
    *later(cosine, set_rate, "learning_rate", "new optimizer", [], [rate]),
    *later(AdamW, restart, "restart", NO_SCHEDULE, [0]),
    *later(AdamW, set_t_cur, "restart", NO_SCHEDULE, [0]),
    *later(partial(AdamW, rate), restart, "restart", NO_SCHEDULE, [0]),
    *later(cosine, restart, "position", "", [10, -2, 1.5], ["1", None]),
    *later(two_cycles, restart, "position", "", [5]),
    *later(cosine, set_t_cur, "position", "", [10]),
    *later(built, exclude, "exclude_from_weight_decay", "before", EXCLUSIONS),
    *later(excluding, exclude, "var_names", "escape", [{"var_names": ["b", "("]}]),
    *later(AdamW, exclude, "var_names", "", [], [{"var_names": "bias"}, {"var_names": 3}]),
    *later(AdamW, exclude, "var_names", "var_list", [], [{"var_names": [3]}]),
    *later(AdamW, exclude, "var_list", "", [], [{"var_list": "bias"}]),
    *later(AdamW, exclude, "var_list", "var_names", [], [{"var_list": ["bias"]}]),
    *later(decaying, set_decay, "weight_decay", "", [NAN, INF, -0.1, 1e39]),
    *later(decaying, set_decay, "weight_decay", "", [], NO_NUMBERS),
    *later(AdamW, set_decay, "weight_decay", "weight_decay=0", [0.1]),
    *later(partial(decaying, DECAY), set_decay, "weight_decay", "weight_decay=0", [0.1]),
    *later(
        partial(decaying, Decay(DECAY, 0.1)), set_decay, "weight_decay", "weight_decay=0", [0.1]
    ),
]


def told(optimizer):
    """What an optimizer says of itself, and what its decays are after a build."""
    decay = optimizer.weight_decay
    says = [float(numpy(getattr(optimizer, name))) for name in ("learning_rate", "eta_t", "t_cur")]
    says += [float(decay) if isinstance(decay, keras.Variable) else decay]
    if decay is not None:
        optimizer.build(variables("a", "b"))
    return [*says, optimizer.weight_decays, len(optimizer.variables)]


@pytest.mark.parametrize("row", LATER, ids=lambda row: f"{row[-2]}-{row[-3].__name__}")
def test_what_is_done_later_is_refused(row):
    make, do, value, *rest = row
    optimizer = make()
    check(lambda: do(optimizer, value), *rest)
    assert told(optimizer) == told(make())


def test_another_number_of_variables_in_stateless_apply_is_refused():
    optimizer, ours = SGDW(0.1, weight_decay=0.1), variables("a", "b")
    optimizer.build(ours[:1])
    values = [v.value for v in optimizer.variables], [v.value for v in ours]
    zeros = [keras.ops.zeros((2, 2))] * 2
    check(
        lambda: optimizer.stateless_apply(values[0], zeros, values[1]),
        *(ValueError, "2 trainable variables", "optimizer.build(model.trainable_variables)"),
    )


# --- on JAX, inside an epoch, the state is not in the optimizer ---


def tried(actions, optimizer):
    """{name: error} of the actions that raise."""
    errors = {}
    for name, action in actions.items():
        try:
            action(optimizer)
        except Exception as error:
            errors[name] = error
    return errors


READ = ("learning_rate", "lr_t", "t_cur", "eta_t", "weight_decay", "beta_1")
FROM_A_CLOSURE = {
    "restart": lambda o: o.restart(1),
    "get_config": lambda o: o.get_config(),
    "set t_cur": lambda o: set_t_cur(o, 1),
    "set learning_rate": lambda o: set_rate(o, 0.05),
    "set weight_decay": lambda o: set_decay(o, 0.2),
    "set beta_1": lambda o: setattr(o, "beta_1", 0.5),
} | {name: lambda o, name=name: float(numpy(getattr(o, name))) for name in READ}
# A loss or a metric is traced: it reads a tensor, without a value.
IN_A_TRACE = {
    name: lambda o, name=name: keras.ops.convert_to_tensor(getattr(o, name))
    for name in ("learning_rate", "eta_t", "weight_decay")
}


def test_state_that_is_elsewhere_inside_an_epoch():
    """From a callback, a loss and a metric. What helps a callback does not help the others: both cures are named."""
    model, errors = net(), {}
    optimizer = AdamW(CosineWarmRestarts(0.1, 10, eta_min=0.1), weight_decay=0.1, model=model)

    class Closure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            errors["callback"] = tried(FROM_A_CLOSURE, optimizer)

    def reading(where):
        def mean(y_true, y_pred):
            errors[where] = tried(IN_A_TRACE, optimizer)
            return keras.ops.mean(y_pred, axis=-1)

        return mean

    model.compile(optimizer, loss=reading("loss"), metrics=[reading("metric")])
    x, y = np.ones((4, 2)), np.ones((4, 1))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[Closure()])
    if BACKEND != "jax":
        assert errors == {"callback": {}, "loss": {}, "metric": {}}
        return
    assert errors["callback"].keys() == FROM_A_CLOSURE.keys()
    assert errors["loss"].keys() == errors["metric"].keys() == IN_A_TRACE.keys()
    for where, found in errors.items():
        for name, error in found.items():
            assert type(error) is RuntimeError, (where, name, error)
            assert re.search(r"self\.model\.optimizer.*loss or a metric.*on_epoch_end", str(error))
    assert int(numpy(optimizer.t_cur)) == 2  # and after the epoch it is back
    assert float(optimizer.weight_decay) == np.float32(0.1)
    assert optimizer.beta_1 == 0.9


def test_the_settings_of_a_stock_class_inside_an_epoch():
    """On JAX they are elsewhere too: to set one would be forgotten when the epoch ends."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    optimizer, errors = Lion(0.1, weight_decay=1e-3), {}
    actions = {name: FROM_A_CLOSURE[name] for name in ("beta_1", "set beta_1")}

    class Closure(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            errors.update(tried(actions, optimizer))

    model.compile(optimizer, loss="mse")
    model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0, callbacks=[Closure()])
    jax = BACKEND == "jax"
    assert {name: type(error) for name, error in errors.items()} == (
        dict.fromkeys(actions, RuntimeError) if jax else {}
    )
    assert optimizer.beta_1 == (0.9 if jax else 0.5)
