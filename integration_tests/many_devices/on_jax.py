"""The legs on 8 devices: python on_jax.py FOLDER."""

import sys
from pathlib import Path

import keras
from keras.distribution import DataParallel, DeviceMesh, LayoutMap, ModelParallel

from many_devices import job

SLOTS = {
    "adamw": {"momentum", "velocity", "velocity_hat", "average", "reference"},
    "nadamw": {"momentum", "velocity", "gradient_accumulator"},
    "adafactor": {"velocity"},
    "bfloat16": {"momentum", "velocity", "master"},
    "sgdw": {"momentum", "average"},
}
FACTORED = [(1,), (8,), (16,), (16,)]  # Adafactor's averages over columns and rows


def model_parallel(batch=2, model=4, **options):
    """The batch in so many parts, the hidden layer in so many."""
    layouts = LayoutMap(DeviceMesh((batch, model), ("batch", "model")))
    # A model that was loaded has no "net" in its paths.
    layouts["(net/)?hidden/kernel"] = (None, "model")
    layouts["(net/)?hidden/bias"] = ("model",)
    layouts["(net/)?head/kernel"] = ("model", None)
    return ModelParallel(layout_map=layouts, batch_dim_name="batch", **options)


DISTRIBUTIONS = {"data_parallel": DataParallel, "model_parallel": model_parallel}
# The shape of the part that one device holds, by distribution and variable.
PARTS = {
    "data_parallel": [(8, 16), (16,), (16, 1), (1,)],
    "model_parallel": [(8, 4), (4,), (4, 1), (1,)],
}


def part(variable):
    return variable.value.addressable_shards[0].data.shape


class Way(job.Way):
    """Training with `fit`; checks where every array lies."""

    def __init__(self, folder, name):
        super().__init__(folder)
        self.name, self.distribution = name, DISTRIBUTIONS[name]()

    def leg(self, case, number):
        self.case = case
        super().leg(case, number)

    def make(self, case):
        keras.distribution.set_distribution(self.distribution)
        return super().make(case)

    def load(self, file):
        keras.distribution.set_distribution(self.distribution)
        model = super().load(file)
        self.check_shardings(model)
        return model

    def train(self, model, first, last):
        super().train(model, first, last)
        self.check_shardings(model)

    def check_shardings(self, model):
        """Every slot lies as its variable does, in the same parts; scalars are on all devices."""
        variables = model.trainable_variables
        assert [part(v) for v in variables] == PARTS[self.name]
        owners = {v.path.replace("/", "_") + "_": v for v in variables}  # by their slots' names
        found = {prefix: set() for prefix in owners}
        factored = []
        for slot in model.optimizer.variables:
            sharding = slot.value.sharding
            assert len(sharding.device_set) == 8, slot.path
            if slot.shape == () or slot.name == "kernel":
                # Keras does not say whose "kernel" is: it is whole on each device.
                assert sharding.is_fully_replicated, slot.path
                factored += [slot.shape] if slot.name == "kernel" else []
                continue
            [prefix] = [prefix for prefix in owners if slot.name.startswith(prefix)]
            found[prefix].add(slot.name.removeprefix(prefix))
            wanted = owners[prefix].value.sharding
            assert sharding.is_equivalent_to(wanted, len(slot.shape)), (slot.path, sharding, wanted)
            assert part(slot) == part(owners[prefix]), slot.path
            assert slot.dtype == "float32", slot.path
        assert list(found.values()) == [SLOTS[self.case]] * len(variables), found
        assert sorted(factored) == (FACTORED if self.case == "adafactor" else []), factored


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    job.train_legs({name: Way(folder, name) for name in DISTRIBUTIONS})
