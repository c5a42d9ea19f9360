"""Killed at random moments and started again, a run ends as if nothing had been: bit for bit."""

import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from effort import effort
from killed_run import BATCHES, CASES, EPOCHS

BACKEND = keras.backend.backend()
CASE_IN_CI = {
    "jax": ("epochs", "NadamW"),
    "tensorflow": ("updates", "SGDW"),
    "torch": ("epochs", "Lion"),
}[BACKEND]
CHILD = Path(__file__).with_name("killed_run.py")
SEED = os.environ.get("KILL_SEED") or str(random.randrange(10**6))
# What the child said last when it is killed, and how often that is aimed at.
AIMS = {"start": 1, "restored": 1, "step": 3, "saving": 3}

pytestmark = [
    pytest.mark.reliability,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL"),
]


@pytest.mark.parametrize(
    ("way", "case"),
    effort(
        ci=[CASE_IN_CI],  # AdamW: below
        full=list(itertools.product(("epochs", "updates"), CASES)),
    ),
)
def test_killed_at_random_moments_a_run_ends_as_if_never_killed(
    way, case, tmp_path, record_property
):
    seconds = never_killed(way, case, tmp_path / "straight")
    wanted = state(tmp_path / "straight" / "done.npz")
    assert wanted["optimizer/0"] == BATCHES * EPOCHS
    rng = random.Random(f"{SEED} {way} {case}")
    # In CI, torch has the time for a second kill: it starts in the least.
    kills, counts = effort(ci=2 if BACKEND == "torch" else 1, full=20), Counter()
    while counts["kills"] < kills:
        counts["runs"] += 1
        folder = tmp_path / str(counts["runs"])
        done = False
        while not done:
            with start(way, case, folder) as child:
                if counts["kills"] < kills:
                    words = kill_somewhere(child, rng, seconds)
                else:
                    words = child.stdout.read().split()
            done = child.returncode == 0
            counts.update(word for word in words if word in ("half-written", "wrong-epoch"))
            if not done:
                check_killed(child, folder)
                counts.update(["kills", f"after '{words[-1]}'"])
                if way == "epochs" and rng.random() < 0.25:
                    move_between_two_files(folder, rng)
        assert_same(state(folder / "done.npz"), wanted, counts)
    record_property("kills", counts["kills"])
    record_property("runs", counts["runs"])


# In CI not on TensorFlow, where a start takes longest and `fit` leaves the state where it is, as on
# torch. On JAX it writes the state back before a file is written.
if BACKEND != "tensorflow" or not os.environ.get("CI"):

    def test_backup_inside_an_epoch_restores_the_state_in_the_file(tmp_path, record_property):
        """And no more than that: Keras goes on at the epoch, not at the batch, and repeats updates."""
        case, folder = "AdamW-averaged", tmp_path / "run"
        rng = random.Random(f"{SEED} batches")
        comparisons, counts = effort(ci=1, full=20), Counter()
        while counts["comparisons"] < comparisons:
            wanted = backed_up(folder / "backup")
            with start("batches", case, folder) as child:
                assert "restored" in hear(child, "restored"), errors(folder)
                if wanted is not None:
                    assert_same(optimizer_state(folder / "restored.npz"), wanted, counts)
                    counts["comparisons"] += 1
                kill_somewhere(child, rng, {"step": 0.03})
            if child.returncode == 0:  # trained to its end before the kill
                shutil.rmtree(folder)
            else:
                check_killed(child, folder)
                counts["kills"] += 1
        record_property("kills", counts["kills"])
        record_property("restored", counts["comparisons"])


def start(way, case, folder):
    folder.mkdir(exist_ok=True)
    with open(folder / "errors.txt", "w", encoding="utf-8") as errors:
        return subprocess.Popen(
            [sys.executable, str(CHILD), way, case, str(folder)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        )


def never_killed(way, case, folder):
    """Train without a kill; return how long each word is the last one, in seconds."""
    heard = [("start", time.monotonic())]
    with start(way, case, folder) as child:
        heard += [(line.strip(), time.monotonic()) for line in child.stdout]
    assert child.returncode == 0, errors(folder)
    spans = defaultdict(list)
    for (word, begin), (_, end) in itertools.pairwise(heard):
        spans[word].append(end - begin)
    return {word: statistics.median(spans[word]) for word in AIMS}


def kill_somewhere(child, rng, seconds):
    """Kill the child at a random moment; return what it said."""
    aims = list(seconds)
    (aim,) = rng.choices(aims, [AIMS[aim] for aim in aims])
    words = ["start"]
    if aim != "start":
        words += hear(child, aim, times=rng.randint(1, {"step": 12, "saving": 3}.get(aim, 1)))
    time.sleep(rng.uniform(0, 1.2 * seconds[aim]))
    child.kill()
    return words + child.stdout.read().split()


def hear(child, word, times=1):
    """Read what the child says, up to this word or its end."""
    words = []
    while words.count(word) < times and (line := child.stdout.readline()):
        words.append(line.strip())
    return words


def move_between_two_files(folder, rng):
    """Leave the epoch's file as a kill between it and the weights does: old, or empty.

    That moment is too short for a kill to hit it by chance often.
    """
    file = folder / "backup" / "training_metadata.json"
    old = file.with_name(f"{file.name}.bkp")
    if old.exists():
        file.write_text(rng.choice(["", old.read_text(encoding="utf-8")]), encoding="utf-8")


def check_killed(child, folder):
    assert child.returncode == -signal.SIGKILL, f"KILL_SEED={SEED}\n{errors(folder)}"


def errors(folder):
    return (folder / "errors.txt").read_text(encoding="utf-8")[-8000:]


def state(file):
    with np.load(file) as arrays:
        return dict(arrays)


def optimizer_state(file):
    return {name: value for name, value in state(file).items() if name.startswith("optimizer/")}


def backed_up(folder):
    """Return the optimizer's variables in the newest whole file of a backup, or None."""
    for name in ("latest.weights.h5", "latest.weights.h5.bkp"):
        try:
            with h5py.File(folder / name) as file:
                variables = file["optimizer/vars"]
                return {f"optimizer/{i}": variables[i][()] for i in variables if i.isdigit()}
        except (OSError, RuntimeError, KeyError):  # none, or half a file
            pass
    return None


def assert_same(found, wanted, counts):
    assert found.keys() == wanted.keys()
    assert len(wanted) > 10
    for name, value in wanted.items():
        note = f"{name}, KILL_SEED={SEED}, {dict(counts)}"
        np.testing.assert_array_equal(found[name], value, err_msg=note, strict=True)
