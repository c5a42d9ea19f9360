"""The legs in two processes: python on_torch.py FOLDER, in each of them."""

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from many_devices import job


class Way(job.Way):
    """Each process takes every second example; the mean of their gradients is taken."""

    def __init__(self, folder):
        super().__init__(folder)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.writes, self.wait = self.rank == 0, dist.barrier

    def data(self, first, last):
        return (array[self.rank :: self.size] for array in job.data(first, last))

    def mean(self, parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= self.size

    def state(self, model):
        """Every process has the same weights and state, to the bit."""
        arrays = job.state(model)
        mine = torch.from_numpy(np.concatenate([np.ravel(a) for a in arrays]))
        others = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(others, mine)
        assert all(torch.equal(mine, other) for other in others)
        return arrays


class Loop(Way):
    """A training loop of one's own, in which we take the mean."""

    def replica(self, model):
        return model

    def gradients(self, variables):
        for v in variables:
            self.mean(v.value)
        return [v.value.grad for v in variables]

    def train(self, model, first, last):
        replica, variables = self.replica(model), model.trainable_variables
        for batch in range(first, last):
            x, y = map(torch.from_numpy, self.data(batch, batch + 1))
            model.zero_grad()
            torch.mean((replica(x).float() - y) ** 2).backward()
            model.optimizer.apply(self.gradients(variables), variables)
        model.optimizer.finalize_variable_values(variables)  # as `fit` does


class Wrapped(Loop):
    """The same, in which DistributedDataParallel takes the mean."""

    def replica(self, model):
        return DistributedDataParallel(model)

    def gradients(self, variables):
        return [v.value.grad for v in variables]


class Fit(Way):
    """Keras' `fit` of a model whose `backward` takes the mean, as docs/processes/torch.md says."""

    def train(self, model, first, last):
        hooks = [
            v.value.register_post_accumulate_grad_hook(self.mean) for v in model.trainable_variables
        ]
        x, y = self.data(first, last)
        size = job.BATCH // self.size
        model.fit(x, y, batch_size=size, epochs=1, shuffle=False, verbose=0)
        for hook in hooks:
            hook.remove()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    job.train_legs({"ddp": Wrapped(folder), "by_hand": Loop(folder), "fit": Fit(folder)})
    dist.destroy_process_group()
