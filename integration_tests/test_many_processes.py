"""The same run in one process and in several, killed and gone on with: its numbers and its files.

Two processes first train the legs of `many_devices/job.py`. Then the script of the page
docs/processes/BACKEND.md runs as a user would run it, is killed, and goes on.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from effort import effort
from many_devices import job
from many_processes import processes
from test_docs import read_sections

BACKEND = job.BACKEND
FOLDER = Path(__file__).parent / "many_processes"
PAGE = Path(__file__).parents[1] / "docs" / "processes" / f"{BACKEND}.md"

CHAINS = {
    "jax": {
        "adamw": (job.ALONE, "data_parallel", "model_parallel"),
        "nadamw": ("model_parallel", "data_parallel", job.ALONE),
    },
    "tensorflow": {"adamw": ("loop", "loop", job.ALONE), "nadamw": (job.ALONE, "loop", job.ALONE)},
    "torch": {},  # its devices are processes: test_many_devices.py
}[BACKEND]
# In the middle of an accumulation each process of TensorFlow has a part of its own, which is not saved.
STOPS = (3, 10, 13) if BACKEND == "tensorflow" else job.STOPS

if BACKEND != "torch":

    @pytest.fixture(scope="module")
    def runs(tmp_path_factory):
        """What all runs left."""
        folder = tmp_path_factory.mktemp("runs")
        script = FOLDER / f"on_{BACKEND}.py"

        def start():
            arguments = map(json.dumps, (CHAINS, STOPS))
            processes.run(BACKEND, 2, script, folder, *arguments, cwd=folder)

        job.train_all(folder, start, CHAINS, STOPS)
        return folder

    @pytest.mark.parametrize("case", CHAINS)
    def test_a_run_in_two_processes_ends_where_one_in_one_does(runs, case):
        job.assert_as_whole(runs, case)


if BACKEND == "tensorflow":

    def test_a_file_with_one_process_part_of_a_gradient_says_so(runs):
        text = (runs / "half.txt").read_text(encoding="utf-8")
        assert "only this process' part" in text


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
    for a, b in zip(end(tmp_path), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


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
    state = job.state(model)
    assert len(state) > 10
    return state
