"""The legs in two processes of TensorFlow: python processes.py on_tensorflow.py FOLDER."""

import json
import sys
from pathlib import Path

import tensorflow as tf

strategy = tf.distribute.MultiWorkerMirroredStrategy()  # before any operation of TensorFlow

import keras  # noqa: E402
import numpy as np  # noqa: E402

from keras_decoupled import AdamW  # noqa: E402
from many_devices import job  # noqa: E402
from many_devices.on_tensorflow import Loop, batches, in_scope  # noqa: E402

CHIEF = strategy.cluster_resolver.task_id == 0
train = Loop(strategy)  # Keras' `fit` cannot


class Way(job.Way):
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


def gather(value):
    """The values that all processes have, one below the other."""
    return strategy.gather(tf.constant(value)[None], axis=0).numpy()


def limits():
    """What goes wrong with Keras' own AdamW, and how ours says that it does."""
    stock = keras.optimizers.AdamW
    return {
        "fit": error(lambda model: model.fit(batches(0, 1), shuffle=False, verbose=0), stock),
        "accumulate in a graph": error(lambda model: train(model, 0, 1), stock, steps=2),
        "save half an accumulation": error(save_half, stock, steps=2, run_eagerly=True),
        "save half an accumulation, ours": error(save_half, AdamW, steps=2, run_eagerly=True),
    }


def error(function, cls, steps=None, **options):
    with strategy.scope():
        model = job.make("adamw")
        optimizer = cls(weight_decay=0.01, gradient_accumulation_steps=steps)
        model.compile(optimizer, loss="mse", **options)
        model.optimizer.build(model.trainable_variables)
    try:
        function(model)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def save_half(model):
    train(model, 0, 1)
    if CHIEF:
        model.save("half.keras")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    loop = Way(
        folder,
        train=train,
        **in_scope(strategy),
        writes=CHIEF,
        wait=lambda: gather(0.0),
        stops=job.PROCESS_STOPS,
    )
    job.train_many({"loop": loop}, job.PROCESS_CHAINS)
    found = limits()
    if CHIEF:
        (folder / "limits.json").write_text(json.dumps(found), encoding="utf-8")
