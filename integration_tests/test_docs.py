"""The code of the README and of every page of docs/ runs, as a reader would run it.

The ```python blocks of a page belong together: they run as one script, in order, in a fresh process,
and a warning ends it. After the line `<!-- no-run -->` a block only has to compile; another test may run it.
"""

import json
import os
import re
import subprocess
import sys
from typing import NamedTuple

import keras
import pytest

import forked
import keras_decoupled
from effort import in_turn
from make_notebook import NOTEBOOK, ROOT, make_notebook, read_prints
from make_notebook import PAGE as FIVE_MINUTES

DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
ELSEWHERE = DOCS / "processes"  # their scripts are for several processes: test_many_processes.py
MILLISECONDS = re.compile(r"\d+ ms")
NO_RUN = "<!-- no-run -->"


class Block(NamedTuple):
    """A ```python block; its code stands on the lines on which it stands in the page."""

    heading: str
    runs: bool
    first: int  # number of the line of code that comes first
    lines: list[str]

    @property
    def code(self):
        return "\n" * (self.first - 1) + "\n".join(self.lines) + "\n"


def read_blocks(text):
    """All ```python blocks, each under the `## ` heading before it."""
    blocks, heading, before, fence = [], "(top)", "", None
    for number, line in enumerate(text.splitlines(), start=1):
        if fence is not None:
            if line.strip() == "```":
                fence = None
            elif fence.startswith("```python"):
                blocks[-1].lines.append(line)
        elif line.startswith("```"):
            fence = line
            if fence.startswith("```python"):
                blocks.append(Block(heading, before != NO_RUN, number + 1, []))
        elif line.startswith("## "):
            heading = line.removeprefix("## ").strip()
        if line.strip():
            before = line.strip()
    return blocks


def as_script(blocks):
    """These blocks in one; every other line is empty, so that a traceback names the page's line."""
    lines = []
    for block in blocks:
        lines.extend([""] * (block.first - 1 - len(lines)))
        lines.extend(block.lines)
    return "\n".join(lines) + "\n"


def read_sections(text):
    """{heading: (script, [blocks not to run])}; all with the line numbers of the page."""
    sections = {}
    for block in read_blocks(text):
        run, not_run = sections.setdefault(block.heading, ([], []))
        (run if block.runs else not_run).append(block)
    return {
        heading: (as_script(run), [block.code for block in not_run])
        for heading, (run, not_run) in sections.items()
    }


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_of_a_page(page, tmp_path):
    blocks = read_blocks(page.read_text(encoding="utf-8"))
    for block in blocks:
        compile(block.code, str(page), "exec")
    run = [block for block in blocks if block.runs]
    here = page == README or page in in_turn(PAGES)
    here = here and page != FIVE_MINUTES  # which runs below, on every backend
    if run and here and not page.is_relative_to(ELSEWHERE):
        script = tmp_path / f"{page.stem}.py"
        script.write_text(as_script(run), encoding="utf-8")
        folder = tmp_path / "run"
        folder.mkdir()
        forked.run(script, cwd=folder, strict=True, MPLBACKEND="Agg")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_fits_its_column(page):
    """The site's column has room for 88 characters in a window of 1280 pixels."""
    shown, inside = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
        elif inside and len(line) > 88:
            shown.append((number, line))
    assert not shown


def test_five_minutes_prints_what_it_says(tmp_path, backend):
    text = FIVE_MINUTES.read_text(encoding="utf-8")
    lines = as_script(read_blocks(text)).splitlines()
    for block in read_blocks(text):
        lines[block.first - 2] = r"print('\f')"  # in the place of its fence
    script = tmp_path / "five_minutes.py"
    script.write_text("\n".join(lines), encoding="utf-8")
    printed = forked.run(script, cwd=tmp_path, strict=True).split("\f\n")[1:]
    times_left_out = [MILLISECONDS.sub("… ms", one) for one in printed]
    assert times_left_out == [MILLISECONDS.sub("… ms", one) for one in read_prints(text, backend)]


def test_the_notebook_is_the_page():
    text = FIVE_MINUTES.read_text(encoding="utf-8")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert ["".join(cell) for cell in cells] == ["\n".join(b.lines) for b in read_blocks(text)]
    assert notebook == make_notebook(text), "make it anew: nox -s notebook"


LOOPS = DOCS / "custom-loops.md"
# After the page's code: its first block again, and Keras' own loop in the place of `train`.
KERAS_LOOP = """
model.compile(optimizer, loss="mse")


def train(batches):
    for one in batches:
        model.train_on_batch(*one)


"""
SAME = """
for other in (by_hand, loaded):
    pairs = [(model, other), (model.optimizer, other.optimizer)]
    for a, b in ((a, b) for pair in pairs for a, b in zip(*(m.variables for m in pair))):
        a, b = keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
"""


ACCUMULATION = {  # half as many updates
    "first_decay_steps=40": "first_decay_steps=20",
    "decay_vectors=False)": "decay_vectors=False, gradient_accumulation_steps=2)",
}


@pytest.mark.parametrize("changes", [{}, ACCUMULATION], ids=["plain", "accumulation"])
def test_a_loop_of_your_own_ends_where_keras_loop_does(changes, tmp_path, backend):
    text = LOOPS.read_text(encoding="utf-8")
    made, by_backend, used = [], {"jax": [], "tensorflow": [], "torch": []}, []
    for block in read_blocks(text):
        name = block.heading.lower()
        (made if name == "(top)" else by_backend.get(name, used)).append(block)
    assert all(len(blocks) == 1 for blocks in (made, used, *by_backend.values()))
    first, loop, last = (as_script(blocks) for blocks in (made, by_backend[backend], used))
    for old, new in changes.items():
        assert first.count(old) == 1
        first = first.replace(old, new)
    kept = 'by_hand, loaded = model, keras.models.load_model("run.keras")\n'
    script = tmp_path / "loop.py"
    source = "".join([first, loop, last, kept, first, KERAS_LOOP, last, SAME])
    script.write_text(source, encoding="utf-8")
    printed = forked.run(script, cwd=tmp_path, strict=True).splitlines()
    said = re.findall(r"^print\(.*\)  # (.+)$", text, re.MULTILINE)
    assert printed[:3] == printed[3:]
    assert printed[:3] == (said if not changes else ["[]", "40 10", "0.2294"])


CHOOSES_THE_BACKEND = 'os.environ.setdefault("KERAS_BACKEND", "jax")'


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("examples/*.py")], ids=name_of)
def test_the_code_chooses_the_backend_before_it_imports_keras(page):
    """Keras' default is TensorFlow, which is not there for a reader who installed another backend."""
    text = page.read_text(encoding="utf-8")
    code = text if page.suffix == ".py" else as_script(b for b in read_blocks(text) if b.runs)
    imports = re.search(r"^(import|from) keras", code, re.MULTILINE)
    if imports and not page.is_relative_to(ELSEWHERE):  # where the shell chooses it
        assert CHOOSES_THE_BACKEND in code[: imports.start()]


if keras.backend.backend() == "jax":  # the backend that the pages name

    @pytest.mark.parametrize("page", [README, DOCS / "index.md"], ids=name_of)
    def test_the_first_minute_with_nothing_set_from_outside(page, tmp_path):
        """One backend is installed, and it is not Keras' default: no variable and no file says which."""
        script = tmp_path / "first.py"
        script.write_text(
            as_script(read_blocks(page.read_text(encoding="utf-8"))), encoding="utf-8"
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith("KERAS")}
        env["HOME"] = str(tmp_path)
        subprocess.run([sys.executable, script], cwd=tmp_path, env=env, timeout=300, check=True)


def test_every_public_name_is_on_the_api_page():
    """The site's build fails at a name that is there but has no docstring."""
    api = (DOCS / "api.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^::: keras_decoupled\.([\w.]+)$", api, re.MULTILINE))
    names = set(keras_decoupled.__all__)
    names |= {f"callbacks.{name}" for name in keras_decoupled.callbacks.__all__}
    assert described == names
    for name in described:
        value = keras_decoupled
        for part in name.split("."):
            value = getattr(value, part)
        assert value.__doc__, name


def test_every_shared_argument_is_on_the_api_page():
    from keras_decoupled.core.arguments import KERAS_ARGUMENTS, Shared

    api = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [n for n in (Shared.__annotations__ | KERAS_ARGUMENTS) if f"`{n}`" not in api]
    assert not missing


def test_the_readme_is_short():
    """The pages have room for all else."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_reading_a_page():
    one = "# t\n## One\n```python\na = 1\n```\ntext\n```python\nb = a\n```\n```sh\nls\n```\n"
    text = f"{one}## Two\n{NO_RUN}\n\n```python\nc\n```\n```python\nd\n```\n"
    assert read_sections(text) == {
        "One": ("\n\n\na = 1\n\n\n\nb = a\n", []),
        "Two": ("\n" * 19 + "d\n", ["\n" * 16 + "c\n"]),
    }
    assert [block.runs for block in read_blocks(text)] == [True, True, False, True]
