"""What the pictures of the pages have in common. `nox -s pictures` draws all of them."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files: no screen needed
from matplotlib import pyplot as plt

FOLDER = Path(__file__).parent
BLUE, RED, GREEN, ORANGE, GRAY = "#2457a4", "#c0392b", "#2e8b57", "#d97b0d", "#7a7a7a"
plt.rcParams |= {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def save(figure, name):
    """Write one picture; without a date in it, the same picture is the same file."""
    figure.savefig(FOLDER / f"{name}.png", dpi=120, metadata={"Software": None})
    plt.close(figure)
