"""docs/tools.md, run once from its first block to its last: each tool's tests look at what is left."""

import contextlib
import io
import os
import runpy
import warnings

import pytest

from test_docs import DOCS, as_script, read_blocks


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """wandb writes its runs to the disk, and mlflow reports nothing to its makers."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def page(tmp_path_factory, no_network):
    """The names that the page's code leaves, what it `printed`, and the `folder` in which it ran."""
    folder = tmp_path_factory.mktemp("tools")
    blocks = read_blocks((DOCS / "tools.md").read_text(encoding="utf-8"))
    script = folder / "tools.py"
    script.write_text(as_script(blocks), encoding="utf-8")
    before = os.getcwd()
    os.chdir(folder)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", DeprecationWarning)  # of the tools
            warnings.filterwarnings("ignore", ".*Any type hint is inferred")  # of mlflow
            warnings.filterwarnings("ignore", "Sharding info not provided")  # of Orbax
            names = runpy.run_path(str(script))
        return names | {"printed": printed.getvalue().splitlines(), "folder": folder}
    finally:
        os.chdir(before)
