"""Make examples/five_minutes.ipynb of docs/five-minutes.md: python integration_tests/make_notebook.py.

The page is the only source. Its prose and its ```python blocks become cells. A ```text block is what
the ```python block before it prints, and so the output of that cell. After a line such as "On JAX and
torch:", only these backends print it. The notebook's outputs are those of JAX. What other backends
print stays prose. `test_docs.py` compares the outputs with a run, and the notebook with the page.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "five-minutes.md"
NOTEBOOK = ROOT / "examples" / "five_minutes.ipynb"
BACKENDS = {"jax", "tensorflow", "torch"}
BLOCK = re.compile(
    r"^(?:On (?P<on>[\w ]+):\n\n)?```(?P<kind>python|text)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


class Piece(NamedTuple):
    kind: str  # "prose", "python" or "text"
    text: str
    page: str  # the same as the page has it, with its fence
    backends: set  # of "text": who prints it


def read_pieces(page):
    """The page from top to bottom."""
    pieces, end = [], 0
    for block in BLOCK.finditer(page):
        between = page[end : block.start()].strip()
        if between:
            pieces.append(Piece("prose", between, between, set()))
        named = set((block["on"] or "").lower().split()) & BACKENDS
        pieces.append(Piece(block["kind"], block["text"], block[0], named or BACKENDS))
        end = block.end()
    rest = page[end:].strip()
    return [*pieces, Piece("prose", rest, rest, set())]


def read_prints(page, backend):
    """For each ```python block, what it prints on this backend."""
    prints = []
    for piece in read_pieces(page):
        if piece.kind == "python":
            prints.append("")
        elif piece.kind == "text" and backend in piece.backends:
            prints[-1] += piece.text
    return prints


def make_notebook(page, backend="jax"):
    """The notebook, as a dict; its outputs are those of the backend."""
    cells, prints = [], iter(read_prints(page, backend))
    for piece in read_pieces(page):
        if piece.kind == "python":
            cells.append(code_cell(piece.text, next(prints)))
        elif piece.kind == "prose" or backend not in piece.backends:
            prose = LINK.sub(link, piece.page)
            if cells and cells[-1]["cell_type"] == "markdown":
                prose = "".join(cells.pop()["source"]) + "\n\n" + prose
            cells.append({"cell_type": "markdown", "metadata": {}, "source": lines(prose)})
    for number, cell in enumerate(cells, start=1):
        cell["id"] = f"cell-{number}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def code_cell(code, printed):
    output = {"output_type": "stream", "name": "stdout", "text": lines(printed)}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": {},
        "outputs": [output] if printed else [],
        "source": lines(code.rstrip("\n")),
    }


def lines(text):
    return text.splitlines(keepends=True)


def link(match):
    """A link of the page, from the notebook's folder. A notebook has no links to its own headings."""
    label, target = match.groups()
    if target.startswith("#"):
        return label
    if "://" not in target:
        target = posixpath.relpath(posixpath.join("docs", target), "examples")
    return f"[{label}]({target})"


if __name__ == "__main__":
    made = make_notebook(PAGE.read_text(encoding="utf-8"))
    text = json.dumps(made, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    NOTEBOOK.write_text(text, encoding="utf-8")
