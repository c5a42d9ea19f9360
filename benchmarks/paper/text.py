"""The King James Bible as characters: most to train on, a part to choose by, a part to report."""

import shutil
import subprocess
from typing import NamedTuple

import numpy as np

BLOCK = 2**13  # characters; of 16 blocks one is to choose by, and one to report
WHOLE = "gen1:1-rev22:21"


class Text(NamedTuple):
    """The numbers of the characters, of each part and in its order."""

    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    characters: int


def available():
    """Whether the text is installed: it is of Debian's package bible-kjv."""
    return shutil.which("bible") is not None


def load():
    """Read the text."""
    command = ["bible", "-f", WHOLE]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    text = "\n".join(line.partition(" ")[2] for line in lines)  # without "Ge1:1"
    found, numbers = np.unique(list(text), return_inverse=True)
    blocks = np.split(numbers.astype("int32"), range(BLOCK, len(numbers), BLOCK))
    every = range(16)
    parts = [
        np.concatenate([x for i, x in enumerate(blocks) if i % 16 in own])
        for own in (every[2:], [0], [1])
    ]
    return Text(*parts, len(found))


def windows(numbers, starts, length):
    """Return (inputs, targets) of so many characters from each start on."""
    places = np.asarray(starts)[:, None] + np.arange(length + 1)
    chosen = numbers[places]
    return chosen[:, :-1], chosen[:, 1:]
