"""Which decay and which learning-rate multiplier a variable gets, by the user's rules.

The first of these that applies to a variable decides its decay: an exclusion, a key (a whole path
before any other key), `decay_vectors=False`, the model's regularizer, `weight_decay`.
`decay_vectors=False` keeps a bias without decay even if a key names its layer. Only a key that ends
in the variable's own name ("bias") decays it.

Rules are read once for each variable. The resulting row stays with the variable through builds,
saves and loads: see `core/registry.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_decoupled import checks
from keras_decoupled.decay import arguments, kinds, regularizers
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.regularizers import Penalty
from keras_decoupled.decay.rows import CheckMultiplier, Row
from keras_decoupled.paths import match, matrices


class Rules:
    """`weight_decay(s)`, `lr_multipliers`, `decay_vectors`, exclusions, and a model's decays.

    Args:
        weight_decay: the uniform decay, in any form that a user may give.
        weight_decays: decays by key.
        lr_multipliers: multipliers by key.
        decay_vectors: False: vectors and biases get no decay, unless a key has their own name.
        key_of: returns Keras' identity of a variable.
        split: which part of the optimizer steps a variable; see `core/split.py`.
    """

    def __init__(
        self,
        weight_decay: Any,
        weight_decays: Any,
        lr_multipliers: Any,
        decay_vectors: bool,
        key_of: Callable[[Any], Any],
        split: Any,
    ) -> None:
        self.weight_decay = (
            None if weight_decay is None else arguments.as_decay("weight_decay", weight_decay)
        )
        self.weight_decays = arguments.mapping("weight_decays", weight_decays, arguments.as_decay)
        self.weight_decays_as_given = dict(weight_decays or {})
        given = (weight_decay, *self.weight_decays_as_given.values())
        self._meant = {id(one) for one in given if isinstance(one, Decay)}
        self.lr_multipliers = arguments.mapping("lr_multipliers", lr_multipliers, CheckMultiplier())
        self.decay_vectors = decay_vectors
        self.exclusions = Exclusions()
        self.key_of = key_of
        self.split = split
        # The rows of the optimizer that `from_keras` continues, by label.
        self.before: dict[str, Row] = {}
        # Labels of variables that exist, but may never be built on: `no_decay(model)` knows the
        # model's, and a file may have some.
        self.paths = {
            path
            for given in (weight_decays, lr_multipliers)
            for path in getattr(given, "paths", ())
        }
        self.from_file = False  # whether the rules are from a file: then paths may have changed
        # From `model=`: the variables, trainable ones first, and the decays of their regularizers.
        self.model: tuple[Any, ...] = ()
        self.trainable = 0  # how many of them are trainable
        self._of_model: dict[Any, Decay] = {}  # by identity
        self._removed: dict[Any, Penalty] = {}  # penalties that are no longer in the loss

    def meant(self, decay: Decay) -> bool:
        """Tell whether the user wrote this `Decay`, and not a number."""
        return id(decay) in self._meant

    def exclude(self, variables: Iterable[Any], patterns: Iterable[str]) -> None:
        """Exclude these too."""
        self.exclusions += Exclusions(variables, patterns)

    def extract(self, model: keras.Model, remove: bool, normalization: float) -> None:
        """Read a model's regularizers, and check every key against the model's variables.

        Frozen variables are read too: a later build uses their keys and decays. `normalization`
        is √(1/T) of the first cycle.
        """
        regularizers.get_weight_decays(model)  # checks the model, and warns of other regularizers
        variables = (*model.trainable_variables, *model.non_trainable_variables)
        names = match.labels([v.path for v in variables])
        vectors = self._vectors(names, variables)
        (by_key, *_), _ = self._decide(names, vectors, variables, names)
        penalties = [regularizers.read_penalty(v) or (0.0, 0.0) for v in variables]
        self.model, self.trainable = variables, len(model.trainable_variables)
        found = {
            self.key_of(v): pair for v, pair in zip(variables, penalties, strict=True) if any(pair)
        }
        self._of_model = {key: Decay(l2, l1) for key, (l1, l2) in found.items()}
        self._removed = found if remove else {}
        without_key = [
            (name, pair)
            for name, pair, (_, decay) in zip(names, penalties, by_key, strict=True)
            if decay is None
        ]
        _warn_of_strong(without_key, normalization)

    def continue_model(self, before: Rules) -> None:
        """Keep what `model=` gave the optimizer that `from_keras` continues."""
        if not self.model:
            self.model, self.trainable = before.model, before.trainable
        self._of_model = before._of_model | self._of_model
        self._removed = before._removed | self._removed

    def read(
        self,
        positions: Sequence[int],
        variables: Sequence[Any],
        names: Sequence[str],
        left: Sequence[str] = (),
        first: bool = True,
    ) -> tuple[list[Row], list[tuple[str, str]]]:
        """Return the rows of the variables at these positions, and the overridden keys.

        Args:
            positions: positions of the variables to make rows for.
            variables: all variables that the optimizer is built on.
            names: their labels.
            left: labels of variables that only an earlier build had.
            first: whether this is the first build, without a file before it. A key that hits
                nothing is then an error.

        Returns:
            The rows, and (argument, key) of each key that hits variables and changes none.
        """
        self._check_models(variables, names, first)
        # A key that is a layer's name means that layer, whether it is built on or not.
        of_model = match.labels([match.path_of(v) for v in self.model])
        targets = [names[i] for i in positions]
        self.exclusions.find(names, targets)
        if first:
            self.exclusions.warn_of_missed([*names, *of_model])
        others = sorted({*names, *of_model, *self.paths, *left} - set(targets))
        asked = [variables[i] for i in positions]
        vectors = self._vectors(targets, asked)
        (decays, multipliers, axes), overridden = self._decide(
            targets, vectors, variables, names, others, first
        )
        shapes = [(name, tuple(v.shape)) for name, v in zip(names, variables, strict=True)]
        own = [shapes[i] for i in positions]
        given = _fitting(axes, own, first)
        parts = self.split.of(asked, own, given, shapes)
        if first:
            self.split.warn_of_missed([*names, *of_model])
        rows = []
        for i, (variable, name) in enumerate(zip(asked, targets, strict=True)):
            (key, decay), (_, multiplier), (part, letters) = decays[i], multipliers[i], parts[i]
            identity, rule = self.key_of(variable), arguments.shown(key or "")
            before = self.before.get(name)
            removed = self._removed.get(identity)
            if before:
                removed = removed or before.removed_penalty
                part, letters = _as_trained(before, given[i]) if before.part else (part, letters)
            # Keras overwrites such a variable with its "gradient" (float8 scales, for example).
            out = getattr(variable, "overwrite_with_gradient", False)
            if out or self.exclusions.hits(name, identity, self.key_of):
                decay, rule = Decay(), "excluded"
            elif decay is None and i in vectors:
                decay, rule = Decay(), "decay_vectors"
            elif decay is None and identity in self._of_model:
                decay, rule = self._of_model[identity], "model"
            elif decay is None and before and before.rule == "model":
                decay, rule = before.decay, "model"
            rows.append(
                Row(
                    path=name,
                    shape=tuple(variable.shape),
                    decay=decay or self.weight_decay or Decay(),
                    multiplier=1.0 if multiplier is None else multiplier,
                    uniform=decay is None,
                    removed_penalty=removed,
                    part=part,
                    axes=letters,
                    rule=rule,
                )
            )
        return rows, overridden

    def _decide(
        self,
        targets: Sequence[str],
        vectors: set[int],
        variables: Sequence[Any],
        names: Sequence[str],
        others: Sequence[str] = (),
        strict: bool = True,
    ) -> tuple[list[list[tuple[Any, Any]]], list[tuple[str, str]]]:
        """Return each target's (key, decay), (key, multiplier) and (key, axes); overridden keys."""
        label = dict(zip(map(self.key_of, variables), names, strict=True))
        axes = self.split.axes
        found, overridden = [], []
        for argument, rules, by_own_name in (
            ("weight_decays", self.weight_decays, vectors),
            ("lr_multipliers", self.lr_multipliers, set[int]()),
            ("matrix_axes", axes, matrices.vectors(targets) if axes else set[int]()),
        ):
            labeled = arguments.as_labels(rules, label, self.key_of, argument, strict=strict)
            if self.from_file:
                labeled = arguments.after_load(labeled, targets)
            options: Any = {"argument": argument, "strict": strict, "by_own_name": by_own_name}
            keys, beaten = match.decide(labeled, targets, others=others, **options)
            pairs = [(key, None if key is None else labeled[key]) for key in keys]
            found.append(pairs)
            overridden += [
                (argument, arguments.shown(key))
                for key, hits in beaten.items()
                if any(pairs[i][1] != labeled[key] for i in hits)  # else it would give the same
            ]
        return found, overridden

    def _vectors(self, names: Sequence[str], variables: Sequence[Any]) -> set[int]:
        """Return the positions of the variables that `decay_vectors=False` is about."""
        if self.decay_vectors:
            return set()
        pairs = enumerate(zip(names, variables, strict=True))
        return {i for i, (name, v) in pairs if match.is_vector(name, v.shape)}

    def _check_models(self, variables: Sequence[Any], names: Sequence[str], first: bool) -> None:
        """Refuse rules that were made from another model than the one that is trained."""
        known = set(map(self.key_of, variables)) if self._of_model else ()
        if self._of_model and not any(self.key_of(v) in known for v in self.model):
            checks.refuse(
                "model",
                checks.Seen(f"{len(names)} variables: none is that model's"),
                "must be the model that is trained: the optimizer took its decays from it",
                "Make the optimizer with the model that it trains.",
            )
        if first and self.paths and self.paths.isdisjoint(names) and not self.from_file:
            mine, theirs = match.listed(sorted(self.paths)), match.listed(names)
            checks.refuse(
                "no_decay(model)",
                checks.Seen(f"rules of a model with {mine}, for {theirs}"),
                "and the layerwise rules must be made from the model that is trained: they know "
                "its variables by path",
                "Make them from this model.",
            )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that are not the default, as given, as JSON."""
        pairs = zip(self.weight_decays.items(), self.weight_decays_as_given.values(), strict=True)
        as_key = arguments.key_to_config
        decays = {
            as_key(key): decay.to_config(pair=isinstance(given, tuple | list))
            for (key, decay), given in pairs
        }
        to_config = kinds.number_to_config
        multipliers = {as_key(key): to_config(m) for key, m in self.lr_multipliers.items()}
        axes = {as_key(key): letters for key, letters in self.split.axes.items()}
        config: dict[str, Any] = {} if self.decay_vectors else {"decay_vectors": False}
        config |= {"weight_decays": decays} if decays else {}
        config |= {"lr_multipliers": multipliers} if multipliers else {}
        return config | ({"matrix_axes": axes} if axes else {})


def _as_trained(row: Row, given: str) -> tuple[str, str]:
    """Return the (part, axes) of a trained variable, with the axes that a user gives it now."""
    if given and row.part == "adam":
        rule = (
            "cannot make a matrix of a variable that Adam has stepped so far: its state is Adam's"
        )
        checks.refuse(
            "matrix_axes", checks.Seen(f"{given!r} for {row.path}"), rule, "Leave it out."
        )
    return row.part, given or row.axes


def _fitting(
    given: Sequence[tuple[Any, Any]], variables: Sequence[tuple[str, Any]], strict: bool
) -> list[str]:
    """Return each variable's axes, "" if the given ones do not have one letter for each axis.

    A key such as "attention" hits arrays of several shapes. If strict, it has to fit one of them.
    """
    pairs = [(*one, shape) for one, (_, shape) in zip(given, variables, strict=True)]
    fit = [letters if letters and len(letters) == len(shape) else "" for _, letters, shape in pairs]
    used = {key for (key, *_), letters in zip(pairs, fit, strict=True) if letters}
    for key, letters, shape in pairs:
        if strict and key is not None and key not in used:
            seen = checks.Seen(f"{arguments.shown(key)!r}: {letters!r} for the shape {shape}")
            rule = "must have one letter for each axis of a variable that the key hits"
            checks.refuse("matrix_axes", seen, rule, "Write as many letters as it has axes.")
    return fit


def _warn_of_strong(extracted: Sequence[tuple[str, Penalty]], normalization: float) -> None:
    name, (l1, l2) = max(extracted, key=lambda e: max(e[1]), default=("", (0.0, 0.0)))
    strongest = max(l1, l2) * normalization
    if strongest <= 1e-3:
        return
    if l2 < l1:
        meaning = f"the weight moves {strongest:g} towards 0 at every update"
    elif kinds.half_life(strongest) > 2:
        meaning = f"the weight halves every {kinds.half_life(strongest):.0f} updates"
    else:
        meaning = "most of the weight is gone at once"
    warnings.warn(
        f"The regularizer of {name} becomes a weight decay of {strongest:g} per update (at η = 1): "
        f"{meaning} when no gradient acts. A penalty's factor is multiplied by the learning rate; "
        "a decoupled decay is not. If this is too much, name the variable in `weight_decays` "
        "(learning rate × factor is a start), or give `total_iterations`.",
        UserWarning,
        stacklevel=6,  # where the optimizer is made
    )
