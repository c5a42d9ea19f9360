"""Jobs on two processes of torch: python processes.py on_torch.py FOLDER CASES.

`many_devices/on_torch.py` has the loops, with DistributedDataParallel; here is Keras' `fit`.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import keras
import numpy as np
import torch
import torch.distributed as dist

from many_devices import job


def average(parameter):
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def averaging(make, argument):
    """A model whose `backward` averages the gradients of all processes, as docs/processes says."""
    model = make(argument)
    for v in model.trainable_variables:
        v.value.register_post_accumulate_grad_hook(average)
    return model


def fit(model, first, last):
    """Each process takes every second example."""
    x, y = (a[dist.get_rank() :: dist.get_world_size()] for a in job.data(first, last))
    size = job.BATCH // dist.get_world_size()
    model.fit(x, y, batch_size=size, epochs=1, shuffle=False, verbose=0)


def fit_alike(model, first, last):
    fit(model, first, last)
    assert alike(model)


def alike(model):
    """Whether every process has the same weights and state, to the bit."""
    mine = torch.from_numpy(np.concatenate([np.ravel(a) for a in job.state(model)]))
    others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(others, mine)
    return all(torch.equal(mine, other) for other in others)


def limits():
    """What `fit` does by itself, with Keras' own AdamW."""
    model = job.make("adamw")
    model.compile(keras.optimizers.AdamW(), loss="mse")
    fit(model, 0, 1)
    return {"fit": "the same weights" if alike(model) else "each process its own weights"}


if __name__ == "__main__":
    folder, cases = Path(sys.argv[1]), sys.argv[2:]
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    chief = dist.get_rank() == 0
    job.Way(
        folder,
        "fit",
        train=fit_alike,
        make=lambda case: averaging(job.make, case),
        load=lambda file: averaging(keras.models.load_model, file),
        writes=chief,
        wait=dist.barrier,
    ).run(job.ALONE, cases)
    found = limits()
    if chief:
        (folder / "limits.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
