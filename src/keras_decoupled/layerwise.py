"""Rules for `weight_decays` and `lr_multipliers` as plain dicts, made from a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras

from keras_decoupled import checks
from keras_decoupled.paths import blocks, match

_FACTOR = "Each layer has `decay` times the next one's; 1 leaves all alike, 0.75 is a start."
_CURE = (
    "Name them from input to output, by their names in `variable.path` or as built layers: "
    "layers=['embedding', 'block_0', 'block_1', 'head']."
)


class ModelRules(dict[str, float]):
    """A dict of rules that remembers which variables its model has.

    A key that hits no variable of the optimizer is then no error if the model has it: its layer is
    frozen, and the rule waits until it is not. `a | b` remembers those of both.
    """

    def __init__(self, rules: Mapping[str, Any], paths: Iterable[str]) -> None:
        super().__init__(rules)
        self.paths = tuple(paths)

    def copy(self) -> ModelRules:
        """Return a copy that remembers the same."""
        return ModelRules(self, self.paths)

    def __or__(self, other: Any) -> Any:
        return _united(self, other)

    def __ror__(self, other: Any) -> Any:
        return _united(other, self)

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        self.paths = _paths_of(self, other)
        return self


def no_decay(model: keras.Model, embeddings: bool = False) -> dict[str, float]:
    """Return `{path: 0}` of the variables that weight decay is mostly kept from.

    These are the variables of fewer than two dimensions (biases, scales of normalization layers)
    and biases of any rank: what `decay_vectors=False` leaves alone. Frozen ones are among them, and
    their rules wait until they are trained. As each key is a whole path, it beats all other keys.
    Put such dicts together with `|`, which keeps what they know of the model.

    Args:
        model: a built `keras.Model`.
        embeddings: also those of embeddings: the tables of `Embedding` layers, position embeddings,
            class tokens and their like, found by name. The kernel that projects patches is none of
            them, as in BEiT and timm, and an output layer that is not tied to the embedding neither.
            Defaults to `False`.

    Raises:
        TypeError: `model` is no `keras.Model`, or `embeddings` no bool.
        ValueError: the model has no variables: it is not built.

    Example:
    >>> import keras
    >>> from keras_decoupled import AdamW, no_decay
    >>> layers = [keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
    >>> model = keras.Sequential(layers, name="net")
    >>> no_decay(model)
    {'net/a/bias': 0, 'net/b/bias': 0}
    >>> optimizer = AdamW(1e-3, weight_decay=1e-4, weight_decays=no_decay(model))
    """
    variables, names = _variables(model)
    embeddings = checks.flag("embeddings", embeddings, cure="True leaves embeddings alone too.")
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

    The last of `layers` has the multiplier 1, and each before it `decay` times that of the next.
    Where they are found from the model, the depth is that of BEiT: embeddings (of patches,
    positions, classes) or a stem 0, block i (from 0 on) i + 1, and the rest (final norm, head)
    L + 1 with L blocks. What stands between two blocks goes with the later one. So

        multiplier = decay^(L + 1 − depth)

    Blocks are layers that hold layers and are numbered: "transformer_layer_0", "block_1_expand",
    "conv2_block1_1_conv". Their order is that of the model's weights: from input to output in a
    functional model, as they were defined in another. A chain without blocks (`Sequential`) has
    each layer with weights for a step. `print` the dict, or `optimizer.explain(model)`, to see it.

    A multiplier scales the steps, never the decay, while recipes from BEiT and timm decay by
    lr·w, and so less where the rate is less. With 12 blocks and `decay=0.75` an embedding is
    decayed 42 times as hard for its step here. `layerwise_weight_decays` scales λ alike.

    Args:
        model: a built `keras.Model`.
        decay: the factor from one layer to the one before it; in (0, 1], mostly 0.65 to 0.9.
        layers: from input to output, strings (parts of paths, as in `lr_multipliers`) or built
            layers or models. A variable that several of them have goes with the first, and one
            that none has gets 1. Defaults to `None`: found from the model.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the model is not built, `decay` is not in (0, 1], one of `layers` hits nothing in
            the model, or there are no blocks to be found, or several kinds.

    Example:
    >>> import keras
    >>> from keras_decoupled import AdamW, layerwise_lr_multipliers, no_decay
    >>> layers = [keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
    >>> model = keras.Sequential(layers, name="net")
    >>> multipliers = layerwise_lr_multipliers(model, 0.5)
    >>> multipliers
    {'net/a/kernel': 0.5, 'net/a/bias': 0.5, 'net/b/kernel': 1.0, 'net/b/bias': 1.0}
    >>> decays = no_decay(model)
    >>> optimizer = AdamW(1e-3, weight_decay=1e-4, weight_decays=decays, lr_multipliers=multipliers)

    Sources: BEiT, https://arxiv.org/abs/2106.08254; ULMFiT, https://arxiv.org/abs/1801.06146, where
    the idea comes from. timm counts in the same way, but for the final norm: it goes with the last
    block there.
    """
    variables, names = _variables(model)
    number = checks.real("decay", decay, cure=_FACTOR)
    if not 0 < number <= 1:
        raise ValueError(f"`decay` must be in (0, 1]. Received: decay={decay!r}. {_FACTOR}")
    if layers is None:
        steps, last = _steps_of_model(model)
    else:
        steps, last = _steps_of_layers(layers, variables, names)
    return ModelRules(
        {
            name: number ** (last - steps.get(id(v), last))
            for name, v in zip(names, variables, strict=True)
        },
        names,
    )


def layerwise_weight_decays(
    model: keras.Model,
    weight_decay: float,
    decay: float,
    layers: Sequence[str | keras.Layer] | None = None,
) -> dict[str, float]:
    """Return `{path: λ}`: `weight_decay` scaled as `layerwise_lr_multipliers` scales the rate.

    Recipes from BEiT and timm decay by lr·w, so that a layer with a smaller rate is decayed less.
    Here a multiplier never scales the decay: with 12 blocks and `decay=0.75` an embedding would be
    decayed 42 times as hard for its step as there. This gives back their proportions.

    It names every variable, biases too, by its whole path, which `decay_vectors=False` does not
    beat. Add `no_decay(model)` to leave them alone.

    Args:
        model: a built `keras.Model`.
        weight_decay: λ where the multiplier is 1, and of a variable that none of `layers` has:
            fraction of the weight removed per update at η = 1; ≥ 0.
        decay: the factor from one layer to the one before it; in (0, 1].
        layers: as in `layerwise_lr_multipliers`. Defaults to `None`: found from the model.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: as in `layerwise_lr_multipliers`, or `weight_decay` is negative or not finite.

    Example:
    >>> import keras
    >>> from keras_decoupled import layerwise_weight_decays, no_decay
    >>> layers = [keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(2, name="b")]
    >>> model = keras.Sequential(layers, name="net")
    >>> layerwise_weight_decays(model, 0.5, decay=0.5) | no_decay(model)
    {'net/a/kernel': 0.25, 'net/a/bias': 0, 'net/b/kernel': 0.5, 'net/b/bias': 0}
    """
    amount = checks.real(
        "weight_decay", weight_decay, minimum=0.0, below=checks.FLOAT32, cure="0 decays nothing."
    )
    rules = layerwise_lr_multipliers(model, decay, layers)
    return ModelRules({name: amount * factor for name, factor in rules.items()}, rules)


def _variables(model: Any) -> tuple[list[Any], list[str]]:
    """Return a model's weights, trainable ones first, and their labels."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"`model` must be a keras.Model. Received: model={model!r} of type "
            f"{type(model).__name__}. Give the built model that the optimizer trains."
        )
    if not (model.built and model.weights):
        raise ValueError(
            "`model` must be built, and have weights. Received: the model "
            f"{model.name!r}, which has none yet. Call model.build(input_shape), or pass data "
            "through it once."
        )
    variables = sorted(model.weights, key=lambda v: not v.trainable)
    return variables, match.labels([v.path for v in variables])


def _united(a: Any, b: Any) -> Any:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return NotImplemented
    return ModelRules({**a, **b}, _paths_of(a, b))


def _paths_of(*rules: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path for r in rules for path in getattr(r, "paths", ())))


# Steps: where each variable stands from input to output, by id, and the number of the last step.


def _steps_of_layers(
    layers: Any, variables: Sequence[Any], names: Sequence[str]
) -> tuple[dict[int, int], int]:
    if not isinstance(layers, list | tuple):
        raise TypeError(
            f"`layers` must be a list, or None. Received: layers={layers!r} of type "
            f"{type(layers).__name__}. {_CURE}"
        )
    if not layers:
        raise ValueError(f"`layers` must name at least one layer. Received: layers=[]. {_CURE}")
    label = {id(v): name for name, v in zip(names, variables, strict=True)}
    keys: list[Any] = []
    for i, key in enumerate(layers):
        if isinstance(key, keras.Layer):
            hits = tuple(label[id(v)] for v in key.weights if id(v) in label)
            if not hits:
                what = "none of whose weights is the model's" if key.weights else "without weights"
                raise ValueError(
                    f"`layers[{i}]` must be a layer of the model, with weights. Received: the layer "
                    f"{key.name!r}, {what}. Take it from `model.layers`, or leave it out."
                )
            key = hits
        keys.append(key)
    # Backwards: of the keys that hit a variable the last one decides.
    deciding = match.deciding_keys(
        list(dict.fromkeys(reversed(keys))), list(names), argument="layers"
    )
    steps = {
        id(v): keys.index(key)
        for v, key in zip(variables, deciding, strict=True)
        if key is not None
    }
    return steps, len(keys) - 1


def _steps_of_model(model: keras.Model) -> tuple[dict[int, int], int]:
    weights = model.weights  # in the order of the layers, whether frozen or not
    paths = [v.path for v in weights]
    try:
        depths, count = blocks.depths(paths)
    except ValueError as error:
        raise ValueError(
            "`layers` must be given for a model with several kinds of blocks, of which nobody can "
            f"tell whether they follow one another. Received: {model.name!r}, with {error} and "
            f"their like. {_CURE}"
        ) from None
    if count:
        return {id(v): depth for v, depth in zip(weights, depths, strict=True)}, count + 1
    chain = _chain(model)
    if not chain:
        raise ValueError(
            "`layers` must be given for a model without numbered blocks ('block_0', 'block_1', with "
            f"layers inside) whose layers are no chain. Received: {model.name!r}, with weights in "
            f"{match.listed(paths)}. {_CURE}"
        )
    steps: dict[int, int] = {}
    for i, layer in enumerate(chain):
        for v in layer.weights:
            steps.setdefault(id(v), i)  # tied to an earlier layer
    return steps, len(chain) - 1


def _chain(model: Any) -> list[Any]:
    """Return the layers with weights of a model in which each layer feeds the next; else none."""
    if not isinstance(model, keras.Sequential):
        operations = getattr(model, "operations", [])  # of a functional model
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
