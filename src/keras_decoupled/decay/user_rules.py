"""The arguments that say what each variable gets, as the user gave them.

The first of these that speaks for a variable decides its decay: an exclusion, a key (a whole path
before any other), `decay_vectors=False`, the model's regularizer, `weight_decay`. Of
`decay_vectors=False` only a key that ends in the variable's own name makes an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from keras_decoupled import checks
from keras_decoupled.decay import arguments
from keras_decoupled.decay.exclusions import Exclusions
from keras_decoupled.decay.kinds import Decay
from keras_decoupled.decay.regularizers import Penalty
from keras_decoupled.decay.table import Row
from keras_decoupled.paths import match

Labeled: TypeAlias = dict[str | tuple[str, ...], Any]  # labels in the place of layers


class UserRules:
    """`weight_decay`, `weight_decays`, `lr_multipliers`, `decay_vectors`, exclusions, and a model's decays."""

    def __init__(
        self,
        weight_decay: Any,
        weight_decays: Any,
        lr_multipliers: Any,
        decay_vectors: bool,
        key_of: Callable[[Any], Any],
        part_of: Callable[[Any], str],
    ) -> None:
        self.weight_decay = (
            None if weight_decay is None else arguments.as_decay("weight_decay", weight_decay)
        )
        self.weight_decays = arguments.mapping("weight_decays", weight_decays, arguments.as_decay)
        self.weight_decays_as_given = dict(weight_decays or {})
        self.lr_multipliers = arguments.mapping("lr_multipliers", lr_multipliers, _multiplier)
        self.decay_vectors = decay_vectors
        self.exclusions = Exclusions()
        self.key_of = key_of  # Keras' identity of a variable
        self._part_of = part_of  # which part of the optimizer steps it
        self.of_model: dict[Any, Decay] = {}  # by identity: what the regularizers of `model=` say
        self.removed: dict[Any, Penalty] = {}  # of them, those that are no more in the loss
        self.from_file = False  # then the paths may have changed

    def check_keys(self, variables: Sequence[Any], names: Sequence[str]) -> list[bool]:
        """Check every key against all of a model's variables; tell which of them have a decay."""
        label = self._label(variables, names)
        by_key, _ = (
            match.deciding_keys(
                self._labeled(argument, label, names, strict=True), names, argument=argument
            )
            for argument in self._arguments
        )
        return [key is not None for key in by_key]

    def rows(
        self,
        positions: Sequence[int],
        variables: Sequence[Any],
        names: Sequence[str],
        others: Sequence[str],
        strict: bool,
    ) -> list[Row]:
        """Return the rows of the variables at these positions.

        Args:
            positions: which of the variables are asked for.
            variables: all that the optimizer is built on.
            names: their labels.
            others: labels of all that exist beside those asked for.
            strict: whether a key that hits nothing is an error.
        """
        label = self._label(variables, names)
        targets = [names[i] for i in positions]
        vectors = self._vectors(targets, [variables[i] for i in positions])
        found = []
        for argument in self._arguments:
            labeled = self._labeled(argument, label, targets, strict)
            keys = match.deciding_keys(
                labeled,
                targets,
                argument=argument,
                others=others,
                strict=strict,
                by_own_name=vectors if argument == "weight_decays" else (),
            )
            found.append([(key, None if key is None else labeled[key]) for key in keys])
        rows = []
        for place, (i, (key, decay), (_, multiplier)) in enumerate(
            zip(positions, *found, strict=True)
        ):
            variable, identity = variables[i], self.key_of(variables[i])
            rule = arguments.shown(key or "")
            # Keras itself overwrites such a variable with its "gradient" (float8 scales, say).
            out = getattr(variable, "overwrite_with_gradient", False)
            if out or self.exclusions.hits(names[i], identity, self.key_of):
                decay, rule = Decay(), "excluded"
            elif decay is None and place in vectors:
                decay, rule = Decay(), "decay_vectors"
            elif decay is None and identity in self.of_model:
                decay, rule = self.of_model[identity], "model"
            rows.append(
                Row(
                    path=names[i],
                    shape=tuple(variable.shape),
                    decay=decay or self.weight_decay or Decay(),
                    multiplier=1.0 if multiplier is None else multiplier,
                    uniform=decay is None,
                    removed_penalty=self.removed.get(identity),
                    part=self._part_of(variable),
                    rule=rule,
                )
            )
        return rows

    def overridden(self, variables: Sequence[Any]) -> list[tuple[str, str]]:
        """Return (argument, key) of each key that hits some of the variables and decides for none."""
        names = match.labels([match.path_of(v) for v in variables])
        label = self._label(variables, names)
        found = []
        for argument in self._arguments:
            labeled = self._labeled(argument, label, names, strict=False)
            options: Any = {"argument": argument, "strict": False}
            vectors = self._vectors(names, variables) if argument == "weight_decays" else ()
            deciding = set(match.deciding_keys(labeled, names, by_own_name=vectors, **options))
            found += [
                (argument, arguments.shown(key))
                for key, hits, _ in match.hits_of(labeled, names, **options)
                if hits and key not in deciding
            ]
        return found

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as given, as JSON."""
        return {
            "decay_vectors": self.decay_vectors,
            "weight_decays": {
                arguments.key_to_config(key): decay.to_config(pair=isinstance(given, tuple | list))
                for (key, decay), given in zip(
                    self.weight_decays.items(), self.weight_decays_as_given.values(), strict=True
                )
            },
            "lr_multipliers": {
                arguments.key_to_config(key): number for key, number in self.lr_multipliers.items()
            },
        }

    @property
    def _arguments(self) -> dict[str, Mapping[arguments.Key, Any]]:
        return {"weight_decays": self.weight_decays, "lr_multipliers": self.lr_multipliers}

    def _vectors(self, names: Sequence[str], variables: Sequence[Any]) -> set[int]:
        """Return the positions of those that only a key of their own name decays."""
        if self.decay_vectors:
            return set()
        pairs = enumerate(zip(names, variables, strict=True))
        return {i for i, (name, v) in pairs if match.is_vector(name, v.shape)}

    def _label(self, variables: Sequence[Any], names: Sequence[str]) -> dict[Any, str]:
        return dict(zip(map(self.key_of, variables), names, strict=True))

    def _labeled(
        self, argument: str, label: Mapping[Any, str], targets: Sequence[str], strict: bool
    ) -> Labeled:
        """Return an argument's rules with labels in the place of layers, as a load left the paths."""
        rules = self._arguments[argument]
        labeled = arguments.as_labels(rules, label, self.key_of, argument, strict=strict)
        return arguments.after_load(labeled, targets) if self.from_file else labeled


def _multiplier(name: str, value: Any) -> float:
    return checks.real(
        name,
        value,
        minimum=0.0,
        below=checks.FLOAT32,
        cure="0 freezes the variable, 1 leaves it alone.",
    )
