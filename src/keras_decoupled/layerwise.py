"""Makes rules for `weight_decays` and `lr_multipliers` from a model, as plain dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_decoupled import checks
from keras_decoupled.decay import regularizers
from keras_decoupled.paths import blocks, match


class ModelRules(dict[str, float]):
    """A dict of rules that remembers which variables its model has.

    A key may then hit only a frozen variable: a later build uses its rule when the variable is
    trained. `a | b` remembers the variables of both.
    """

    def __init__(self, rules: Mapping[str, Any], paths: Iterable[str]) -> None:
        super().__init__(rules)
        self.paths = tuple(paths)

    def copy(self) -> ModelRules:
        """Return a copy that remembers the same variables."""
        return ModelRules(self, self.paths)

    def __or__(self, other: Any) -> Any:
        return _united(self, other)

    def __ror__(self, other: Any) -> Any:
        return _united(other, self)

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        self.paths = _paths_of(self, other)
        return self


def _united(a: Any, b: Any) -> Any:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return NotImplemented
    return ModelRules({**a, **b}, _paths_of(a, b))


def _paths_of(*rules: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for r in rules for path in getattr(r, "paths", ())))


def no_decay(model: keras.Model, embeddings: bool = False) -> dict[str, float]:
    """Return `{path: 0}` of the variables that usually get no weight decay.

    These are the variables of fewer than two dimensions (biases, scales of normalization layers)
    and biases of any rank, as with `decay_vectors=False`. Frozen ones are listed too: their rules
    count when they are trained later. Each key is a whole path, so it beats every other key.
    `a | b` unites such dicts and remembers the variables of both.

    Args:
        model: a built `keras.Model`.
        embeddings: also list embeddings: tables of `Embedding` layers, position embeddings, class
            tokens and the like, found by name. As in BEiT and timm, the kernel that projects
            patches is not listed, nor is an output layer that is not tied to the embedding.
            Defaults to `False`.

    Raises:
        TypeError: `model` is not a `keras.Model`, or `embeddings` is not a bool.
        ValueError: the model is not built, or has no variables.

    Example:
    >>> import keras
    >>> from keras_decoupled import AdamW, no_decay
    >>> dense = [keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
    >>> model = keras.Sequential([keras.Input((4,)), *dense], name="net")
    >>> no_decay(model)
    {'net/a/bias': 0, 'net/b/bias': 0}
    >>> optimizer = AdamW(1e-3, weight_decay=1e-4, weight_decays=no_decay(model))
    """
    variables, names = weights_of(model)
    embeddings = checks.flag("embeddings", embeddings, cure="True also spares the embeddings.")
    chosen = (
        name
        for name, v in zip(names, variables, strict=True)
        if match.is_vector(name, v.shape) or (embeddings and blocks.is_embedding(name))
    )
    return ModelRules(dict.fromkeys(chosen, 0), names)


def layerwise_lr_multipliers(
    model: keras.Model, decay: float, layers: Sequence[str | keras.Layer] | None = None
) -> dict[str, float]:
    """Return `{path: multiplier}`: the nearer a layer is to the input, the smaller its steps.

    The last of `layers` has the multiplier 1. Each layer before it has `decay` times the multiplier
    of the next. Without `layers`, the depth of a variable is found from the model, as in BEiT.
    Embeddings (of patches, positions, classes) or a stem have depth 0. Block i, counted from 0, has
    depth i + 1. With L blocks, the rest (final norm, head) has depth L + 1. A layer between two
    blocks belongs to the later one. So

        multiplier = decay^(L + 1 − depth)

    Blocks are layers that hold layers and are numbered: "transformer_layer_0", "block_1_expand",
    "conv2_block1_1_conv". They are ordered as the model's weights: from input to output in a
    functional model, as defined in a subclassed one. In a chain without blocks (`Sequential`), each
    layer that has weights is a step. `print` the dict, or `optimizer.explain(model)`, to see it.

    A multiplier scales the step and never the decay. In the recipes of BEiT and timm the decay is
    lr·w, so a layer with a smaller rate is also decayed less. With 12 blocks and `decay=0.75` an
    embedding is decayed 42 times as hard here, compared with its step. `layerwise_weight_decays`
    scales λ in the same way.

    Args:
        model: a built `keras.Model`.
        decay: the factor from one layer to the one before it; in (0, 1], usually 0.65 to 0.9.
        layers: from input to output, strings (parts of paths, as in `lr_multipliers`) or built
            layers or models. A variable that is in several of them belongs to the first. A variable
            that is in none gets 1. Defaults to `None`: found from the model.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model is not built, `decay` is not in (0, 1], one of `layers` hits nothing
            in the model, or `layers` is needed: the model has no blocks, or several kinds of them.

    Example:
    >>> import keras
    >>> from keras_decoupled import AdamW, layerwise_lr_multipliers, no_decay
    >>> dense = [keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
    >>> model = keras.Sequential([keras.Input((4,)), *dense], name="net")
    >>> multipliers = layerwise_lr_multipliers(model, 0.5)
    >>> multipliers
    {'net/a/kernel': 0.5, 'net/a/bias': 0.5, 'net/b/kernel': 1.0, 'net/b/bias': 1.0}
    >>> decays = no_decay(model)
    >>> optimizer = AdamW(1e-3, weight_decay=1e-4, weight_decays=decays, lr_multipliers=multipliers)

    Sources: BEiT, https://arxiv.org/abs/2106.08254. The idea is ULMFiT's,
    https://arxiv.org/abs/1801.06146. timm counts in the same way, except that the final norm
    belongs to the last block.
    """
    variables, names = weights_of(model)
    cure = (
        "Each layer has `decay` times the next layer's multiplier; try 0.75, and 1 changes nothing."
    )
    number = checks.real("decay", decay, cure=cure)
    if not 0 < number <= 1:
        checks.refuse("decay", decay, "must be in (0, 1]", cure)
    if layers is None:
        steps, last = _steps_of_model(model)
    else:
        steps, last = _steps_of_layers(layers, variables, names)
    factors = (number ** (last - steps.get(id(v), last)) for v in variables)
    return ModelRules(dict(zip(names, factors, strict=True)), names)


def layerwise_weight_decays(
    model: keras.Model,
    weight_decay: float,
    decay: float,
    layers: Sequence[str | keras.Layer] | None = None,
) -> dict[str, float]:
    """Return `{path: λ}`: `weight_decay` scaled as `layerwise_lr_multipliers` scales the rate.

        λ = weight_decay·decay^(L + 1 − depth)

    In the recipes of BEiT and timm the decay is lr·w, so a layer with a smaller rate is also
    decayed less. Here a multiplier never scales the decay: with 12 blocks and `decay=0.75` an
    embedding would be decayed 42 times as hard, compared with its step. These decays have the
    proportions of the recipes.

    The dict names every variable by its whole path, also biases, so it beats `decay_vectors=False`.
    Add `| no_decay(model)` to leave biases and scales undecayed.

    Args:
        model: a built `keras.Model`.
        weight_decay: λ of the last layer, and of a variable that is in none of `layers`: fraction
            of the weight removed per update at η = 1; ≥ 0.
        decay: the factor from one layer to the one before it; in (0, 1].
        layers: as in `layerwise_lr_multipliers`. Defaults to `None`: found from the model.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as in `layerwise_lr_multipliers`, or `weight_decay` is negative or not finite.

    Example:
    >>> import keras
    >>> from keras_decoupled import layerwise_weight_decays, no_decay
    >>> dense = [keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
    >>> model = keras.Sequential([keras.Input((4,)), *dense], name="net")
    >>> layerwise_weight_decays(model, 0.5, decay=0.5) | no_decay(model)
    {'net/a/kernel': 0.25, 'net/a/bias': 0, 'net/b/kernel': 0.5, 'net/b/bias': 0}
    """
    amount = checks.real(
        "weight_decay", weight_decay, minimum=0.0, below=checks.FLOAT32, cure="0 decays nothing."
    )
    rules = layerwise_lr_multipliers(model, decay, layers)
    return ModelRules({name: amount * factor for name, factor in rules.items()}, rules)


def weights_of(model: Any, name: str = "model") -> tuple[list[Any], list[str]]:
    """Return a model's weights, trainable ones first, and their labels."""
    regularizers.check_model(model, name)
    if not model.weights:
        received = checks.Seen(f"the model {model.name!r}, which has none")
        checks.refuse(name, received, "must have weights", "Give the model that you train.")
    variables = sorted(model.weights, key=lambda v: not v.trainable)
    return variables, match.labels([v.path for v in variables])


# The next two functions return the step of each variable, by its id, and the number of the last
# step. A step here is a place between input and output, counted from 0 at the input.


def _steps_of_layers(
    layers: Any, variables: Sequence[Any], names: Sequence[str]
) -> tuple[dict[int, int], int]:
    if not isinstance(layers, list | tuple):
        checks.refuse("layers", layers, "must be a list, or None", blocks.CURE, TypeError)
    if not layers:
        checks.refuse("layers", layers, "must name at least one layer", blocks.CURE)
    label = {id(v): name for name, v in zip(names, variables, strict=True)}
    keys: list[Any] = []
    for i, key in enumerate(layers):
        if isinstance(key, keras.Layer):
            hits = tuple(label[id(v)] for v in key.weights if id(v) in label)
            if not hits:
                what = "none of whose weights is the model's" if key.weights else "without weights"
                received = checks.Seen(f"the layer {key.name!r}, {what}")
                rule = "must be a layer of the model, with weights"
                cure = "Take it from `model.layers`, or leave it out."
                checks.refuse(f"layers[{i}]", received, rule, cure)
            key = hits
        elif not isinstance(key, str):
            checks.refuse(
                f"layers[{i}]", key, "must be a string or a layer", blocks.CURE, TypeError
            )
        keys.append(key)
    # Reversed, because the last key decides, and a variable belongs to the first of `layers`.
    unique = list(dict.fromkeys(reversed(keys)))
    deciding, _ = match.decide(unique, names, argument="layers")
    hit = ((v, key) for v, key in zip(variables, deciding, strict=True) if key is not None)
    return {id(v): keys.index(key) for v, key in hit}, len(keys) - 1


def _steps_of_model(model: keras.Model) -> tuple[dict[int, int], int]:
    weights = model.weights  # in the order of the layers, whether frozen or not
    paths = [v.path for v in weights]
    depths, count = blocks.depths(paths)
    if count:
        return {id(v): depth for v, depth in zip(weights, depths, strict=True)}, count + 1
    chain = _chain(model)
    if not chain:
        rule = (
            "must be given for a model without numbered blocks ('block_0', 'block_1', with layers "
            "inside) whose layers are not a chain"
        )
        received = checks.Seen(f"the model {model.name!r}, with weights in {match.listed(paths)}")
        checks.refuse("layers", received, rule, blocks.CURE)
    steps: dict[int, int] = {}
    for i, layer in enumerate(chain):
        for v in layer.weights:
            steps.setdefault(id(v), i)  # a tied variable belongs to the earlier layer
    return steps, len(chain) - 1


def _chain(model: Any) -> list[Any]:
    """Return the layers that have weights, if each layer of the model feeds the next; else []."""
    if not isinstance(model, keras.Sequential):
        operations = getattr(model, "operations", [])  # a functional model has them
        inputs = [{id(x) for x in keras.tree.flatten(op.input)} for op in operations]
        one_way = inputs and all(len(tensors) < 2 for tensors in inputs)
        if not (one_way and len(model.inputs) == len(model.outputs) == 1):
            return []
    found = []
    for layer in model.layers:
        if layer.weights:
            inside = _chain(layer) if isinstance(layer, keras.Model) else [layer]
            if not inside:
                return []
            found += inside
    return found
