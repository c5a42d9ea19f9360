"""What decides a variable's decay.

The first of these that applies: an exclusion, a key (a whole path before any other key, then the last key given),
`decay_vectors=False`, the model's regularizer, `weight_decay`.
"""

import pytest
from keras import regularizers

from keras_decoupled import SGDW
from small import WEAK, again, left, named, ones

PATHS = ["net/one/kernel", "net/one/bias", "net/two/kernel", "net/two/bias"]


def penalized(factor=WEAK):
    """Layers "one" and "two". The first one's kernel and the second one's bias have a penalty."""
    return named(*[regularizers.L2(factor)] * 2)


# Who decides for the four variables. A key "@one" is the layer, or the model, of that name.
W, M, V, X = "weight_decay", "model", "decay_vectors", "excluded"
NO_VECTORS = {"decay_vectors": False}
CASES = [  # keys, who decides, other arguments
    ({}, [W, W, W, W], {}),
    ({"one": 0.5}, ["one", "one", "", ""], {"weight_decay": None}),
    ({"one": 0.5}, ["one", "one", W, W], {"lr_multipliers": {"two": 0.5}}),
    # A whole path beats every other key. Among the others the last one wins.
    ({"one": 0.5, "kernel": 0.125}, ["kernel", "one", "kernel", W], {}),
    ({"kernel": 0.125, "one": 0.5}, ["one", "one", "kernel", W], {}),
    ({PATHS[0]: 0.125, "one": 0.5}, [PATHS[0], "one", W, W], {}),
    ({PATHS[0]: 0.125, "@one": 0.5}, [PATHS[0], "@one", W, W], {}),
    ({"@one": 0.5, PATHS[0]: 0.125}, [PATHS[0], "@one", W, W], {}),
    ({"one": 0.125, "@one": 0.5}, ["@one", "@one", W, W], {}),
    ({"@one": 0.5, "one": 0.125}, ["one", "one", W, W], {}),
    ({"@one": 0.5, "bias": 0, PATHS[0]: 0.125}, [PATHS[0], "bias", W, "bias"], {}),
    ({"@net": 0.125, "@one": 0.5}, ["@one", "@one", "@net", "@net"], {}),
    ({"@one": 0.5, "@net": 0.125}, ["@net", "@net", "@net", "@net"], {}),
    # A key beats a regularizer, and that beats `weight_decay`. All of (l1, l2) comes from one source.
    ({}, [M, W, W, M], {"model": True}),
    ({}, [M, "", "", M], {"model": True, "weight_decay": None}),
    ({"two": 0.5}, [M, W, "two", "two"], {"model": True}),
    ({"one/kernel": 0}, ["one/kernel", W, W, M], {"model": True}),
    ({"one/kernel": (0.5, 0)}, ["one/kernel", W, W, M], {"model": True}),
    ({}, [M, W, W, M], {"model": True, "lr_multipliers": {"one": 0.5}}),
    # Without the decay of vectors, only a key that ends in a vector's own name decays it.
    ({}, [W, V, W, V], NO_VECTORS),
    ({}, [M, V, W, V], NO_VECTORS | {"model": True}),
    ({"bias": 0.5}, [W, "bias", W, "bias"], NO_VECTORS),
    ({"two/bias/": 0.5}, [W, V, W, "two/bias/"], NO_VECTORS),
    ({PATHS[1]: 0.5}, [W, PATHS[1], W, V], NO_VECTORS),
    ({"bias": 0.5, "two": 0.125}, [W, "bias", "two", "bias"], NO_VECTORS),
    ({"one": 0.5}, ["one", V, W, V], NO_VECTORS),
    ({"@one": 0.5}, ["@one", V, W, V], NO_VECTORS),
    ({"ias": 0.5}, [W, V, W, V], NO_VECTORS),
    # An exclusion beats all of them.
    ({}, [W, X, W, X], {"exclude": ["bias"]}),
    ({}, [X, X, W, X], {"exclude": ["bias$", "one/kern"], "model": True}),
    ({PATHS[1]: 0.5, "@one": 0.125}, ["@one", X, W, X], {"exclude": ["bias"]}),
    ({"bias": 0.5}, [W, X, W, "bias"], {"exclude": ["one/b"]} | NO_VECTORS),
]


with_a_penalty = pytest.mark.filterwarnings("ignore:Decayed, and also penalized")


@with_a_penalty
@pytest.mark.parametrize(("keys", "deciding", "arguments"), CASES)
def test_who_decides(keys, deciding, arguments):
    """`explain()` says so, before and after the build, and an update decays accordingly."""
    model = penalized()
    ours = model.trainable_variables
    arguments = {"weight_decay": 0.25} | arguments
    amounts = {"": 0.0, W: arguments["weight_decay"], M: WEAK, V: 0.0, X: 0.0, **keys}
    pairs = [x if isinstance(x, tuple) else (0.0, x) for x in map(amounts.get, deciding)]
    rows = [
        {"path": path, "rule": rule.removeprefix("@"), "l1": l1, "l2": l2}
        for path, rule, (l1, l2) in zip(PATHS, deciding, pairs, strict=True)
    ]
    decays = {path: pair for path, pair in zip(PATHS, pairs, strict=True) if any(pair)}

    def explained(optimizer, *given):
        return [{name: row[name] for name in rows[0]} for row in optimizer.explain(*given).rows]

    layers = {f"@{layer.name}": layer for layer in (model, *model.layers)}
    arguments["weight_decays"] = {layers.get(key, key): decay for key, decay in keys.items()}
    patterns = arguments.pop("exclude", [])
    if "model" in arguments:
        arguments["model"] = model
    optimizer = SGDW(0.5, **arguments)
    optimizer.exclude_from_weight_decay(var_names=patterns)
    copied = again(optimizer)
    assert explained(optimizer, model) == rows
    optimizer.build(ours)
    assert explained(optimizer) == explained(again(optimizer), model) == rows
    assert optimizer.weight_decays == decays
    assert list(left(optimizer, ours)) == [1 - l1 - l2 for l1, l2 in pairs]
    if "model" not in arguments:  # which no config has before the build
        copied.build(ours)
        assert copied.weight_decays == decays


@with_a_penalty
@pytest.mark.parametrize("remove", [True, False])
def test_penalties_leave_the_loss_or_stay(remove):
    model = penalized()
    decays = dict.fromkeys([PATHS[0], PATHS[3]], (0.0, WEAK))
    for _ in range(2):  # a second optimizer finds the same decays
        optimizer = SGDW(0.1, model=model, zero_penalties=remove, weight_decays={PATHS[0]: WEAK})
        optimizer.build(model.trainable_variables)
        assert optimizer.weight_decays == decays
        assert len(model.losses) == (0 if remove else 2)


def test_a_penalty_of_0_is_none():
    model = penalized(0.0)
    optimizer = SGDW(0.1, model=model, weight_decay=0.25)
    optimizer.build(model.trainable_variables)
    assert optimizer.weight_decays == dict.fromkeys(PATHS, (0.0, 0.25))


# --- vectors ---


def test_which_variables_are_vectors():
    """Biases of two dimensions count as vectors, and so does a scalar."""
    shapes = {
        "attention/query/kernel": (2, 2, 2),
        "attention/query/bias": (2, 2),
        "gru/recurrent_bias": (2, 2),
        "head/kernel": (2, 2),
        "norm/gamma": (2,),
        "temperature": (),
    }
    ours = [v for path, shape in shapes.items() for v in ones(path, shape=shape)]
    optimizer = SGDW(0.5, weight_decay=0.25, **NO_VECTORS)
    assert list(left(optimizer, ours)) == [0.75, 1.0, 1.0, 0.75, 1.0, 1.0]


def test_decay_vectors_is_saved():
    optimizer = SGDW(weight_decay=0.25, **NO_VECTORS)
    optimizer.build(ones("a/kernel", "a/bias", shape=(2, 2)))
    loaded = again(optimizer)
    loaded.build(ones("a/kernel", "a/bias", "new/kernel", "new/bias", shape=(2, 2)))
    assert list(loaded.weight_decays) == ["a/kernel", "new/kernel"]
    multipliers = SGDW(weight_decay=0, lr_multipliers={"a": 2}, **NO_VECTORS)
    multipliers.build(ones("a/kernel", "a/bias"))
    assert len(multipliers.lr_multipliers) == 2  # which are not about decay


# --- exclusions ---


@pytest.mark.filterwarnings("ignore:SGDW decays no variable")
@pytest.mark.parametrize(
    ("calls", "excluded"),
    [
        ([([], ["one|nowhere"])], [0, 1]),
        ([([], ["^net/one"])], [0, 1]),
        ([([], ["o/b"])], [3]),
        ([([], ["(?i:BIAS)", "k.*l$"])], [0, 1, 2, 3]),
        ([([], [""])], [0, 1, 2, 3]),
        ([([1, 2], [])], [1, 2]),
        ([([0], ["two/bias"])], [0, 3]),
        ([([0], []), ([], ["two"])], [0, 2, 3]),  # a later call adds
        ([([], ["two"]), ([], [])], [2, 3]),
    ],
)
def test_variables_and_patterns(calls, excluded):
    """A pattern is searched in the path."""
    model, optimizer = named(), SGDW(0.1, weight_decay=0.5)
    for variables, patterns in calls:
        ours = [model.trainable_variables[i] for i in variables]
        optimizer.exclude_from_weight_decay(ours, patterns)
    optimizer.build(model.trainable_variables)
    assert list(optimizer.weight_decays) == [p for i, p in enumerate(PATHS) if i not in excluded]


def test_variables_that_share_a_path():
    """A variable is itself. A pattern knows only paths, and means all variables of a path."""
    ours = ones("m/w", "m/w", "m/w", "m/b")
    for variables, patterns, expected in (
        (ours[1:2], [], [0.5, 1.0, 0.5, 0.5]),
        ([], ["w$"], [1.0, 1.0, 1.0, 0.5]),
    ):
        optimizer = SGDW(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(variables, patterns)
        assert list(left(optimizer, ours)) == expected
    optimizer = SGDW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["#2"])
    with pytest.warns(UserWarning, match="'#2'"):
        optimizer.build(ours)


def test_a_pattern_that_excludes_nothing_gives_one_warning():
    """A user who mistypes "gamma" would decay it, and never learn of it."""
    model = named()
    optimizer = SGDW(0.1, weight_decay=0.5)
    patterns = ["two/kernal", "bias$", "^one", r"\bkrenel\b"]
    optimizer.exclude_from_weight_decay(var_names=patterns)
    with pytest.warns(UserWarning, match="`exclude_from.*var_names.*exclude nothing") as caught:
        optimizer.build(model.trainable_variables)
    (message,) = (str(w.message) for w in caught if "exclude nothing" in str(w.message))
    assert "Received: 'two/kernal'. The nearest paths: 'net/two/kernel'" in message
    assert "'^one'. The nearest paths: 'net/one/kernel', 'net/one/bias'" in message
    assert r"'\\bkrenel\\b'. The nearest paths: 'net/one/kernel'" in message
    assert "bias$" not in message
    assert list(optimizer.weight_decays) == ["net/one/kernel", "net/two/kernel"]
    # Nothing is said twice: not by a later build, not by a load.
    optimizer.build(model.trainable_variables[:2])
    again(optimizer).build(model.trainable_variables)


def test_a_pattern_that_excludes_what_is_frozen_gives_none():
    """Where `model` says that there is such a variable."""
    model = named()
    model.get_layer("one").trainable = False
    optimizer = SGDW(0.1, weight_decay=0.5, model=model)
    optimizer.exclude_from_weight_decay(var_names=["one/bias"])
    for expected in (PATHS[2:], [PATHS[0], *PATHS[2:]]):
        optimizer.build(model.trainable_variables)
        assert list(optimizer.weight_decays) == expected
        model.get_layer("one").trainable = True
