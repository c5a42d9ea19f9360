"""The same run in one process and in several, killed and gone on with: its numbers and its files.

Two processes first train the jobs of `many_devices/job.py`, by `many_processes/`. Then the script
of the page docs/processes/BACKEND.md runs as a user would run it, is killed, and goes on.
"""

import itertools
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

from effort import effort
from many_devices import job
from many_processes import processes
from test_docs import read_sections
from test_many_devices import result

BACKEND = keras.backend.backend()
FOLDER = Path(__file__).parent / "many_processes"
PAGE = Path(__file__).parents[1] / "docs" / "processes" / f"{BACKEND}.md"

# One with averages and the largest second moments, and one that accumulates gradients.
CASES = ["adamw", "eager" if BACKEND == "tensorflow" else "nadamw"]
# Each goes on from the files of the one before it.
WAYS = {
    "jax": ["data_parallel", "model_parallel"],
    "tensorflow": ["loop"],
    "torch": ["fit"],
}[BACKEND]
CHAIN = list(itertools.pairwise([job.ALONE, *WAYS, job.ALONE]))
KINDS = [f"{way}-straight" for way in WAYS] + [f"{way}-from_{source}" for source, way in CHAIN]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """What all jobs left: in one process, then in two, then in one from the files of two."""
    folder = tmp_path_factory.mktemp("jobs")
    alone = job.Way(folder, job.ALONE)
    for case in CASES:
        alone.straight(case)
    processes.run(BACKEND, 2, FOLDER / f"on_{BACKEND}.py", folder, *CASES, cwd=folder)
    for case in CASES:
        alone.resumed(case, WAYS[-1])
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_where_one_does(jobs, kind, case):
    way, kind = kind.split("-")
    wanted = result(jobs, job.ALONE, case, "straight")
    compare(result(jobs, way, case, kind), wanted)


# What goes wrong with Keras' own AdamW, so that the pages tell a way around it.
LIMITS = {
    "jax": {
        "fit with arrays": "ValueError: .* must be provided as a `tf.data.Dataset`",
        "save, data_parallel": "TimeoutError: waits for the other processes",
        "save, model_parallel": "RuntimeError: .* spans non-addressable",
        "load, other seeds": "AssertionError: .* is not the same on each process",
    },
    "tensorflow": {
        "fit": "ValueError: .* unsupported type .*PerReplica",
        "accumulate in a graph": "RuntimeError: .*`merge_call` called while defining a new graph",
        "save half an accumulation": "none",  # it is not whole, and Keras does not say so
        "save half an accumulation, ours": "UserWarning: .* only this process' part",
    },
    "torch": {"fit": "each process its own weights"},
}[BACKEND]


@pytest.mark.parametrize("name", LIMITS)
def test_what_keras_cannot_do(jobs, name):
    """When one of these fails, Keras has learned it: simplify the page."""
    found = json.loads((jobs / "limits.json").read_text(encoding="utf-8"))
    assert re.match(LIMITS[name], found[name], re.DOTALL), found[name]


SECTIONS = read_sections(PAGE.read_text(encoding="utf-8"))
SCRIPT = SECTIONS["The script"][0]
UPDATES, SAVE_EVERY = 60, 10  # the script's
# In how many processes a run is started; it is killed each time but the last.
COUNTS = {"script": effort((2, 1, 2), (2, 2, 1, 2))}
SCRIPTS = {"script": SCRIPT}
if BACKEND == "jax":
    LINE = "\nset_distribution(distribution)\n"
    SCRIPTS["parts"] = SCRIPT.replace(LINE, f"\n{SECTIONS['A model in parts'][0].strip()}\n{LINE}")
    COUNTS["parts"] = effort((2, 1), (2, 1, 2))


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The end of the page's script in one process that nobody kills."""
    folder = tmp_path_factory.mktemp("page")
    processes.run(BACKEND, 1, write(folder, SCRIPT), cwd=folder)
    return end(folder)


def test_the_page_in_two_processes(tmp_path, wanted):
    processes.run(BACKEND, 2, write(tmp_path, SCRIPT), cwd=tmp_path)
    compare(end(tmp_path), wanted)


@pytest.mark.parametrize("name", SCRIPTS)
def test_killed_it_goes_on_in_another_number_of_processes(tmp_path, wanted, name):
    """All are killed in their second save: there is a checkpoint, and half a new one."""
    script = write(tmp_path, SCRIPTS[name])
    *counts, last = COUNTS[name]
    for kill, count in enumerate(counts, start=1):
        processes.run_and_kill(BACKEND, count, script, cwd=tmp_path, save=2)
        assert {file.name for file in tmp_path.glob("*.keras")} == {"checkpoint.keras", "new.keras"}
        assert updates(keras.models.load_model(tmp_path / "checkpoint.keras")) == kill * SAVE_EVERY
    processes.run(BACKEND, last, script, cwd=tmp_path)
    compare(end(tmp_path), wanted)


def write(folder, script):
    file = folder / "train.py"
    file.write_text(script, encoding="utf-8")
    return file


def updates(model):
    return int(job.value(model.optimizer.iterations))


def end(folder):
    """All that training changed, from the file that a run ends with."""
    model = keras.models.load_model(folder / "model.keras")
    assert updates(model) == UPDATES
    return job.state(model)


def compare(got, wanted):
    assert len(wanted) > 10
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
