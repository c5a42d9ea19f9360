"""What all pictures of docs/evidence.md share."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files: no screen needed
import matplotlib.pyplot as plt

DOCS = Path(__file__).parents[2] / "docs" / "evidence"
SCORES = {"loss": "test loss (nats)", "error": "test error (%)"}


# A page's column shows 9 inches; text of this size is 9 points there.
WIDTH, TEXT = 9, 10.5
plt.rcParams |= dict.fromkeys(("font.size", "axes.titlesize", "figure.titlesize"), TEXT)


def save(figure, file):
    """Write a picture."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)
    print(file)
