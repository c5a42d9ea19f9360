"""Why test loss and test error lean differently: how sure the networks of four cells are.

    nox -s paper [-- --quick]

Trains them once more; writes `calibration.json` beside the runs.
"""

import numpy as np

import experiments
import fashion
import report
from one_run import Program, cross_entropy
from run import arguments, folder

CELLS = ((0.001, 0.032), (0.001, 0.004), (0.016, 0.032), (0.016, 0.001))  # α, λ
SCALES = np.exp(np.linspace(-2, 4, 121))


def confidence(logits, labels):
    """Loss, error, mean probability of what is predicted; and the loss with all logits scaled at best."""
    losses = [float(np.mean(cross_entropy(labels, scale * logits))) for scale in SCALES]
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {
        "test loss": round(float(np.mean(cross_entropy(labels, logits))), 4),
        "test error": round(float(np.mean(logits.argmax(axis=1) != labels)), 4),
        "mean confidence": round(float((1 / odds.sum(axis=1)).mean()), 3),
        "best scale of the logits": round(float(SCALES[np.argmin(losses)]), 2),
        "test loss at that scale": round(min(losses), 4),
    }


def main():
    """Train the cells, print and write what they say."""
    options = arguments()
    cells = [experiments.cell("adamw", rate, decay, seed=0) for rate, decay in CELLS]
    program, found = Program(cells[0], fashion.load()), []
    for cell in cells:
        *_, (_, weights, averages) = program.train(
            experiments.short(cell) if options.quick else cell
        )
        logits = program.predict(program.test, weights, averages)
        found.append({"α": cell.rate, "λ": cell.decay} | confidence(logits, program.test.labels))
        print(found[-1])
    report.write(found, folder(options) / "calibration.json")


if __name__ == "__main__":
    main()
