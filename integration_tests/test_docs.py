"""The README's Python runs, as a reader would run it.

The ```python blocks of one section (a `## ` heading) belong together and run as one script in a
fresh process. A block with `<!-- no-run -->` on the line before it only has to compile.
"""

from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
NO_RUN = "<!-- no-run -->"


def read_sections(text):
    """{heading: (script, [blocks not to run])}; all with the line numbers of the README.

    Every line that is not code becomes an empty one, so that a traceback names the README's line.
    """
    sections = {}
    heading, fence, before, block = "(top)", None, "", []
    for number, line in enumerate(text.splitlines(), start=1):
        if fence is not None:
            if line.strip() == "```":
                fence = None
            elif fence.startswith("```python"):
                block.extend([""] * (number - 1 - len(block)))
                block.append(line)
        elif line.startswith("```"):
            fence = line
            script, not_run = sections.setdefault(heading, ([], []))
            block = script
            if before == NO_RUN:
                block = []
                not_run.append(block)
        elif line.startswith("## "):
            heading = line.removeprefix("## ").strip()
        if line.strip():
            before = line.strip()
    return {
        heading: ("\n".join(script) + "\n", ["\n".join(block) + "\n" for block in not_run])
        for heading, (script, not_run) in sections.items()
        if script or any(not_run)
    }


SECTIONS = read_sections(README.read_text(encoding="utf-8"))


def test_readme_has_python():
    assert SECTIONS


@pytest.mark.parametrize("heading", SECTIONS)
def test_section_runs(heading, run_script):
    script, not_run = SECTIONS[heading]
    for block in not_run:
        compile(block, str(README), "exec")
    if script.strip():
        run_script(script, name="README.py")


def test_reading_sections():
    one = "# t\n## One\n```python\na = 1\n```\ntext\n```python\nb = a\n```\n```sh\nls\n```\n"
    text = f"{one}## Two\n{NO_RUN}\n\n```python\nc\n```\n"
    assert read_sections(text) == {
        "One": ("\n\n\na = 1\n\n\n\nb = a\n", []),
        "Two": ("\n", ["\n" * 16 + "c\n"]),
    }
