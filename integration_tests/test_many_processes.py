"""The same run in one process and in several, killed and gone on with: its numbers and its files.

Two processes of JAX and TensorFlow first train the legs of `many_devices/job.py`; for torch see
`test_many_devices.py`. Then the script of the page docs/processes/BACKEND.md runs as a user would
run it, is killed, and goes on.
"""

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

BACKEND = job.BACKEND
FOLDER = Path(__file__).parent / "many_processes"
PAGE = Path(__file__).parents[1] / "docs" / "processes" / f"{BACKEND}.md"

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
}

if BACKEND != "torch":

    @pytest.fixture(scope="module")
    def runs(tmp_path_factory):
        """What all runs left."""
        folder = tmp_path_factory.mktemp("runs")
        script = FOLDER / f"on_{BACKEND}.py"

        def start():
            processes.run(BACKEND, 2, script, folder, cwd=folder)

        job.train_all(folder, job.PROCESS_CHAINS, start, job.PROCESS_STOPS)
        return folder

    @pytest.mark.parametrize("case", job.PROCESS_CHAINS)
    def test_a_run_in_two_processes_ends_where_one_in_one_does(runs, case):
        job.assert_as_whole(runs, case)

    def test_what_keras_cannot_do(runs):
        """When this fails, Keras has learned it: simplify the page."""
        found = json.loads((runs / "limits.json").read_text(encoding="utf-8"))
        for name, limit in LIMITS[BACKEND].items():
            assert re.match(limit, found[name], re.DOTALL), (name, found[name])


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
