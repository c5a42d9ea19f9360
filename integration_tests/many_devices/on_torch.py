"""The legs in two processes: python on_torch.py FOLDER, in each of them."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import keras
import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from many_devices import job


def mean(parameter):
    """Replace this process' gradient by the mean over all processes."""
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def part(array):
    """Every second example: those of this process."""
    return array[dist.get_rank() :: dist.get_world_size()]


class Loop:
    """A training loop.

    Args:
        wrapped: whether DistributedDataParallel takes the mean of the gradients, or we do.
    """

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __call__(self, model, first, last):
        replica = DistributedDataParallel(model) if self.wrapped else model
        variables = model.trainable_variables
        for batch in range(first, last):
            x, y = (torch.from_numpy(part(a)) for a in job.data(batch, batch + 1))
            model.zero_grad()
            torch.mean((replica(x).float() - y) ** 2).backward()
            if not self.wrapped:
                for v in variables:
                    mean(v.value)
            model.optimizer.apply([v.value.grad for v in variables], variables)
        model.optimizer.finalize_variable_values(variables)  # as `fit` does


def fit(model, first, last):
    x, y = map(part, job.data(first, last))
    size = job.BATCH // dist.get_world_size()
    model.fit(x, y, batch_size=size, epochs=1, shuffle=False, verbose=0)


def averaging(make, argument):
    """A model whose `backward` takes the mean, as docs/processes/torch.md says."""
    model = make(argument)
    for v in model.trainable_variables:
        v.value.register_post_accumulate_grad_hook(mean)
    return model


def alike(model):
    """Whether every process has the same weights and state, to the bit."""
    mine = torch.from_numpy(np.concatenate([np.ravel(a) for a in job.state(model)]))
    others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(others, mine)
    return all(torch.equal(mine, other) for other in others)


def way(folder, train, **options):
    def train_alike(model, first, last):
        train(model, first, last)
        assert alike(model)

    writes = dist.get_rank() == 0
    return job.Way(folder, train=train_alike, writes=writes, wait=dist.barrier, **options)


def fit_by_itself():
    """What `fit` does without our hook, with Keras' own AdamW."""
    model = job.make("adamw")
    model.compile(keras.optimizers.AdamW(), loss="mse")
    fit(model, 0, 1)
    return "the same weights" if alike(model) else "each process its own weights"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    ways = {
        "ddp": way(folder, Loop(wrapped=True)),
        "by_hand": way(folder, Loop(wrapped=False)),
        "fit": way(
            folder,
            fit,
            make=lambda case: averaging(job.make, case),
            load=lambda file: averaging(keras.models.load_model, file),
        ),
    }
    job.train_many(ways, job.CHAINS)
    found = {"fit": fit_by_itself()}
    if dist.get_rank() == 0:
        (folder / "limits.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()
