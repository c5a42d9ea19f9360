"""Jobs on two processes: torchrun --nproc-per-node=2 on_torch.py FOLDER."""

import sys
from datetime import timedelta
from pathlib import Path

import job
import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


class Train:
    """Each process takes every second example; their gradients are averaged.

    Args:
        wrapped: whether DistributedDataParallel does it, in `backward`, or we do.
    """

    def __init__(self, wrapped):
        self.wrapped = wrapped

    def __call__(self, model, first, last):
        rank, size = dist.get_rank(), dist.get_world_size()
        replica = DistributedDataParallel(model) if self.wrapped else model
        variables = model.trainable_variables
        for batch in range(first, last):
            x, y = (torch.from_numpy(a[rank::size]) for a in job.data(batch, batch + 1))
            model.zero_grad()
            torch.mean((replica(x).float() - y) ** 2).backward()
            grads = [v.value.grad for v in variables]
            if not self.wrapped:
                for grad in grads:
                    dist.all_reduce(grad)
                    grad /= size
            model.optimizer.apply(grads, variables)
        model.optimizer.finalize_variable_values(variables)  # as `fit` does
        check_same(model)


def check_same(model):
    """Every process has the same weights and state, to the bit."""
    for values in job.state(model):
        mine = torch.from_numpy(np.atleast_1d(values))
        others = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(others, mine)
        assert all(torch.equal(mine, other) for other in others)


def run(folder, name, source):
    train = Train(wrapped=name == "ddp")
    writes = dist.get_rank() == 0
    job.Way(folder, name, train=train, writes=writes, wait=dist.barrier).run(source)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    run(folder, "ddp", source=job.ALONE)
    run(folder, "by_hand", source="ddp")
    dist.destroy_process_group()
