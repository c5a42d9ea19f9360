"""What all pictures of docs/evidence.md share."""

import matplotlib

matplotlib.use("Agg")  # draws into files: no screen needed
import matplotlib.pyplot as plt

SCORES = {"loss": "test loss (nats)", "error": "test error (%)"}


def save(figure, file):
    """Write a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    print(file)
