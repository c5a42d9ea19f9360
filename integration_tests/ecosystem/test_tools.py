"""What docs/tools.md says of all tools together."""

import re
from importlib.metadata import version

import keras
import pytest

from test_docs import DOCS

TEXT = (DOCS / "tools.md").read_text(encoding="utf-8")
PACKAGES = {"weights-and-biases": "wandb", "kerastuner": "keras-tuner", "orbax": "orbax-checkpoint"}
ROWS = re.findall(r"^\| \[.*\]\(#(.+)\) \| ([\d.]+) \|", TEXT, re.MULTILINE)


def test_its_table_has_a_row_for_each_tool():
    titles = re.findall(r"^## (.+)$", TEXT, re.MULTILINE)
    assert [anchor for anchor, _ in ROWS] == [title.lower().replace(" ", "-") for title in titles]


@pytest.mark.parametrize(("anchor", "tried"), ROWS)
def test_its_versions_are_those_that_are_tested(anchor, tried):
    assert version(PACKAGES.get(anchor, anchor)) == tried


def test_its_version_of_keras():
    assert f"Keras {keras.__version__} " in TEXT


def test_it_prints_what_its_comments_say(page):
    said = re.findall(r"^ *print\(.*\)  # (.+)$", TEXT, re.MULTILINE)
    assert len(said) >= 4
    assert [line for line in page["printed"] if line in said] == said
