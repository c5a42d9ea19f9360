"""The legs in two processes of TensorFlow:
python processes.py on_tensorflow.py FOLDER CHAINS STOPS."""

import json
import sys
import warnings
from pathlib import Path

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before any operation of TensorFlow

import numpy as np  # noqa: E402

from many_devices import job  # noqa: E402
from many_devices.on_tensorflow import Loop  # noqa: E402

CHAINS, STOPS = map(json.loads, sys.argv[2:])


def gather(value):
    """The values that all processes have, one below the other."""
    return strategy.gather(tf.constant(value)[None], axis=0).numpy()


class Way(Loop):
    """Keras' `fit` cannot."""

    stops = STOPS
    writes = strategy.cluster_resolver.task_id == 0

    def wait(self):
        gather(0.0)

    def state(self, model):
        """All processes have the same, to the bit, but for their parts of a gradient."""
        arrays = job.state(model)
        shared = ["gradient_accumulator" in v.name for v in model.optimizer.variables]
        shared = [False] * (len(arrays) - len(shared)) + shared
        rows = gather(np.concatenate([np.ravel(a) for a in arrays]))
        found = []
        for array, sums in zip(arrays, shared, strict=True):
            values, rows = np.split(rows, [array.size], axis=1)
            assert sums or (values == values[0]).all()
            found.append((values.sum(axis=0) if sums else values[0]).reshape(array.shape))
        return found

    def save_half(self):
        """Save in the middle of an accumulation; return what is said."""
        model = self.make("nadamw")
        self.train(model, 0, 1)
        if self.writes:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model.save(self.folder / "half.keras")
            text = "\n".join(str(warning.message) for warning in said)
            (self.folder / "half.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    loop = Way(Path(sys.argv[1]), strategy)
    job.train_legs({"loop": loop}, CHAINS)
    loop.save_half()
