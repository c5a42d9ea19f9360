"""How large the gradient is over a run, for three powers of η in the decay.

    nox -s paper [-- --quick]

Trains a few cells; writes `gradients.json` beside the runs. The claim is that of arXiv 2506.02285:
with a decay of η·λ the gradient grows at a run's end, and with η²·λ it does not.
"""

import functools

import jax
import numpy as np

import experiments
import fashion
import report
from one_run import Program
from run import arguments, folder

KINDS = ("adamw-eta0", "adamw", "adamw-eta2")
RATE, DECAYS, EPOCHS = 0.016, (0.008, 0.032), 40
IMAGES = 1000  # of the training images, whose gradient is taken after each epoch


def norms(program, cell):
    """Norm of the loss' gradient after each epoch: of all kernels before a normalization, of the head."""
    x, y = program.training.images[:IMAGES], program.training.labels[:IMAGES]
    gradient = jax.jit(jax.grad(functools.partial(program.loss, factor=0.0), has_aux=True))
    before, head = [], []
    for _, weights, averages in program.train(cell):
        *normalized, last = program.kernels_of(gradient(weights, averages, x, y)[0])
        before.append(float(np.sqrt(sum(np.sum(np.square(g)) for g in normalized))))
        head.append(float(np.linalg.norm(last)))
    return {"before normalization": before, "head": head}


def main():
    """Train the cells; write each kind's norms, as means over the seeds, least and most."""
    options = arguments()
    data, found = fashion.load(), []
    for kind in KINDS:
        program = None
        for decay in DECAYS:
            cells = [
                experiments.cell(kind, RATE, decay, seed, epochs=EPOCHS)
                for seed in experiments.SEEDS
            ]
            if options.quick:
                cells = [experiments.short(cells[0])]
            program = program or Program(cells[0], data)
            runs = [norms(program, cell) for cell in cells]
            row = {"kind": kind, "λ": decay}
            for where in runs[0]:
                of_seeds = np.array([run[where] for run in runs])
                row[where] = [
                    [float(f"{value:.4g}") for value in (column.mean(), column.min(), column.max())]
                    for column in of_seeds.T
                ]
            found.append(row)
            print(kind, decay, row["before normalization"][-1], flush=True)
    report.write(found, folder(options) / "gradients.json")


if __name__ == "__main__":
    main()
