"""Jobs on 8 devices: python on_jax.py FOLDER."""

import sys
from pathlib import Path

import job
import keras
from keras.distribution import DataParallel, DeviceMesh, LayoutMap, ModelParallel

SLOTS = {
    "adamw": {"momentum", "velocity", "velocity_hat", "average"},
    "nadamw": {"momentum", "velocity", "gradient_accumulator"},
    "sgdw": {"momentum", "average"},
    "bfloat16": {"momentum", "velocity", "master"},
    "towards": {"momentum", "velocity", "reference"},
    "adafactor": {"velocity"},
}
FACTORED = [(1,), (8,), (16,), (16,)]  # Adafactor's averages over columns and rows


def model_parallel():
    """The batch in 2 parts, the hidden layer in 4."""
    layouts = LayoutMap(DeviceMesh((2, 4), ("batch", "model")))
    # A model that was loaded has no "net" in its paths.
    layouts["(net/)?hidden/kernel"] = (None, "model")
    layouts["(net/)?hidden/bias"] = ("model",)
    layouts["(net/)?head/kernel"] = ("model", None)
    return ModelParallel(layout_map=layouts, batch_dim_name="batch")


DISTRIBUTIONS = {"data_parallel": DataParallel, "model_parallel": model_parallel}
# The shape of the part that one device holds, by distribution and variable.
PARTS = {
    "data_parallel": [(8, 16), (16,), (16, 1), (1,)],
    "model_parallel": [(8, 4), (4,), (4, 1), (1,)],
}


def check_shardings(model, case, distribution):
    """Every slot lies as its variable does, in the same parts; scalars are on all devices."""
    variables = model.trainable_variables
    assert [part(v) for v in variables] == PARTS[distribution]
    found = {v.path: set() for v in variables}
    factored = []
    for slot in model.optimizer.variables:
        assert len(slot.value.sharding.device_set) == 8, slot.path
        if slot.shape == ():
            assert slot.value.sharding.is_fully_replicated, slot.path
            continue
        if slot.name == "kernel":
            # Keras does not say whose it is: it is whole on each device.
            assert slot.value.sharding.is_fully_replicated, slot.path
            factored.append(slot.shape)
            continue
        [owner] = [v for v in variables if slot.name.startswith(prefix(v))]
        found[owner.path].add(slot.name.removeprefix(prefix(owner)))
        where, wanted = slot.value.sharding, owner.value.sharding
        assert where.is_equivalent_to(wanted, len(slot.shape)), (slot.path, where, wanted)
        assert part(slot) == part(owner), slot.path
        assert slot.dtype == "float32", slot.path
    assert list(found.values()) == [SLOTS[case]] * len(variables), found
    assert sorted(factored) == (FACTORED if case == "adafactor" else []), factored


def prefix(variable):
    """What the names of a variable's slots begin with."""
    return variable.path.replace("/", "_") + "_"


def part(variable):
    return variable.value.addressable_shards[0].data.shape


def run(folder, name, source):
    distribution = DISTRIBUTIONS[name]()
    current = None

    def make(case):
        nonlocal current
        current = case
        keras.distribution.set_distribution(distribution)
        return job.make(case)

    def load(file):
        keras.distribution.set_distribution(distribution)
        model = keras.models.load_model(file)
        check_shardings(model, current, name)
        return model

    def train(model, first, last):
        job.fit(model, first, last)
        check_shardings(model, current, name)

    job.Way(folder, name, train=train, make=make, load=load).run(source)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run(folder, "data_parallel", source=job.ALONE)
    run(folder, "model_parallel", source="data_parallel")
