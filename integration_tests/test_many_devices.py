"""The same run on one device and on many: its numbers, its state, its files.

The number of devices is fixed when a process starts, so that many are had in child processes:
`many_devices/`. Here is the one device.
"""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from many_devices import job
from test_docs import DOCS, read_blocks

FOLDER = Path(__file__).parent / "many_devices"
BACKEND = keras.backend.backend()
# Two ways to use many devices. The first goes on from the files of the run on one device, the second
# from those of the first, and the one device from those of the second.
FIRST, SECOND = {
    "jax": ("data_parallel", "model_parallel"),
    "tensorflow": ("fit", "loop"),
    "torch": ("ddp", "by_hand"),
}[BACKEND]
KINDS = (
    f"{FIRST}-straight",
    f"{FIRST}-from_{job.ALONE}",
    f"{SECOND}-straight",
    f"{SECOND}-from_{FIRST}",
    f"{job.ALONE}-from_{SECOND}",
)

# What starts a script on many devices, each on the CPU; XLA_FLAGS are JAX's alone here.
PYTHON = {
    "jax": [],
    "tensorflow": [FOLDER / "two_cpus.py"],
    # Any free port, and no look-up of this machine's name.
    "torch": [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--local-addr=127.0.0.1",
    ],
}[BACKEND]
ENVIRONMENT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "OMP_NUM_THREADS": "1"}


def start(script, *arguments, cwd):
    """Run a script on many devices."""
    done = subprocess.run(
        [sys.executable, *map(str, (*PYTHON, script, *arguments))],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What all jobs left: on one device, then on many, then on one from the files of many."""
    folder = tmp_path_factory.mktemp("jobs")
    alone = job.Way(folder, job.ALONE)
    for case in job.CASES:
        alone.straight(case)
    start(FOLDER / f"on_{BACKEND}.py", folder, cwd=folder)
    for case in job.CASES:
        alone.resumed(case, SECOND)
    return folder


def result(folder, way, case, kind):
    stem = folder / f"{way}-{case}-{kind}"
    if stem.with_suffix(".txt").exists():
        pytest.fail(stem.with_suffix(".txt").read_text())
    with np.load(stem.with_suffix(".npz")) as arrays:
        return list(arrays.values())


@pytest.mark.parametrize("case", job.CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_many_devices_end_where_one_does(folder, kind, case):
    """Weights, moments, averages, accumulators and counters, wherever the run was before."""
    way, kind = kind.split("-")
    wanted = result(folder, job.ALONE, case, "straight")
    got = result(folder, way, case, kind)
    tolerance = job.TOLERANCES[case]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# On how many devices the page's code ran.
DEVICES = {
    "jax": "len(model.layers[0].kernel.value.sharding.device_set)",
    "tensorflow": "strategy.num_replicas_in_sync",
    "torch": "size",
}[BACKEND]
# A file for each process: what several of them print comes out mixed.
COUNT = f"""
import os
from pathlib import Path
Path(f"{{os.getpid()}}.devices").write_text(str({DEVICES}))
"""


def test_the_page_on_many_devices(tmp_path):
    page = (DOCS / "many-devices.md").read_text(encoding="utf-8")
    [block] = [block for block in read_blocks(page) if block.lines[0] == f"# {BACKEND}"]
    script = tmp_path / "train.py"
    script.write_text(block.code + COUNT, encoding="utf-8")
    start(script, cwd=tmp_path)
    counts = [file.read_text() for file in tmp_path.glob("*.devices")]
    assert counts == {"jax": ["8"], "tensorflow": ["2"], "torch": ["2", "2"]}[BACKEND]


if BACKEND == "tensorflow":

    def test_callbacks_under_one_and_two_replicas(tmp_path):
        start(FOLDER / "callbacks_tensorflow.py", cwd=tmp_path)
        assert len(list(tmp_path.glob("*.weights.h5"))) == 6  # three cycles under each
