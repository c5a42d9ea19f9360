"""The legs in two processes of JAX: python processes.py on_jax.py FOLDER CHAINS STOPS."""

import json
import sys
from pathlib import Path

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils
from keras.distribution import DataParallel, initialize, set_distribution

from many_devices import job
from many_devices.on_jax import model_parallel

# Of "model_parallel", each process has a half of the hidden layer, and all rows.
DISTRIBUTIONS = {
    "data_parallel": DataParallel,
    "model_parallel": lambda **options: model_parallel(1, 2, **options),
}


def whole(model):
    """Every variable as one array, from all processes."""
    variables = [*model.variables, *model.optimizer.variables]
    return multihost_utils.process_allgather([v.value for v in variables], tiled=True)


class Way(job.Way):
    """Training with `fit`, and with files that hold whole arrays."""

    def __init__(self, folder, name):
        super().__init__(folder)
        self.name, self.distribution = name, DISTRIBUTIONS[name](auto_shard_dataset=False)
        self.writes = jax.process_index() == 0

    def make(self, case):
        set_distribution(self.distribution)
        return super().make(case)

    def load(self, file):
        # Keras makes random weights before it reads: they have to be the same in each process.
        keras.utils.set_random_seed(0)
        set_distribution(self.distribution)
        return super().load(file)

    def wait(self):
        multihost_utils.sync_global_devices("saved")

    def train(self, model, first, last):
        """Each process brings its rows of each batch, or all rows where each has all."""
        parts = min(self.distribution.num_model_replicas, jax.process_count())
        part = self.distribution.data_shard_id
        x, y = (
            np.concatenate([batch[part::parts] for batch in np.split(a, last - first)])
            for a in job.data(first, last)
        )
        options = {"batch_size": job.BATCH // parts, "epochs": 1, "shuffle": False, "verbose": 0}
        model.fit(x, y, **options)
        self.check(model)

    def check(self, model):
        """Every slot lies as its variable does: whole in each process, or half of it."""
        hidden = model.trainable_variables[0]
        slots = [v for v in model.optimizer.variables if v.shape == hidden.shape]
        assert not hidden.value.is_fully_addressable
        parts = {v.value.addressable_shards[0].data.shape for v in (hidden, *slots)}
        assert parts == {(8, 16 if self.name == "data_parallel" else 8)}

    def save(self, model, file):
        """As in docs/processes/jax.md."""
        arrays = whole(model)
        set_distribution(None)
        copy = keras.models.model_from_json(model.to_json())
        for v, array in zip([*copy.variables, *copy.optimizer.variables], arrays, strict=True):
            v.assign(array)
        if self.writes:
            copy.save(file)
        set_distribution(self.distribution)

    def state(self, model):
        arrays = whole(model)
        multihost_utils.assert_equal(np.concatenate([np.ravel(a) for a in arrays]))
        return arrays


if __name__ == "__main__":
    initialize()
    folder, chains = Path(sys.argv[1]), json.loads(sys.argv[2])
    job.train_legs({name: Way(folder, name) for name in DISTRIBUTIONS}, chains)
