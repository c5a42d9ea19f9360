"""Fine-tuning: a network that knows one half of the classes learns the other from a few images.

The optimizers decay the pretrained weights, towards zero or towards where they start; the head is
new and not decayed.
"""

import functools

import fashion
import one_run
from experiments import FINE_TUNED, cell
from fashion import Part

KNOWN, NEW = range(5), range(5, 10)
APART = 1000  # each seed has images of its own to learn, from so many times its number on
PRETRAINING = {"images": 10_000, "epochs": 10}  # 2000 updates


@functools.cache
def pretrained(seed):
    """Return (weights, averages) of a network that knows the first half of the classes."""
    data = [fashion.of_classes(part, KNOWN) for part in fashion.load()]
    run = cell("adamw", 0.016, 0.016, seed, **PRETRAINING)
    *_, (_, weights, averages) = one_run.Program(run, data).train(run)
    return weights, averages


class Program(one_run.Program):
    """The compiled step of one algorithm that fine-tunes."""

    def __init__(self, cell, data):
        algorithm = cell.algorithm.removesuffix(FINE_TUNED)
        data = [fashion.of_classes(part, NEW) for part in data]
        super().__init__(cell._replace(algorithm=algorithm), data)

    def undecayed(self):
        """Add the head to what no decay is for."""
        return [*super().undecayed(), self.model.get_layer("head").kernel]

    def start(self, cell):
        """Return pretrained weights and a new head, which the decay takes for the initial ones."""
        known, averages = pretrained(cell.seed)
        weights, _, _ = super().start(cell)
        head = len(self.model.get_layer("head").trainable_variables)
        weights = [*known[:-head], *weights[-head:]]
        for variable, weight in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(weight)
        if self.algorithm == "adamw-initial":
            self.optimizer.reset_reference()
        return weights, averages, [v.value for v in self.optimizer.variables]

    def images(self, cell):
        """Return the images from a seed's first one on."""
        return Part(*(array[APART * cell.seed :] for array in self.training))
