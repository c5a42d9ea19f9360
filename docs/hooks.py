"""What the site needs beside mkdocs: formulas, files from outside docs/, and every public name on the API page.

- A formula becomes MathML, which a browser draws without a script, a font or a server.
- A page may link to a file of the repository (`../CHANGELOG.md`): it is published with the site.
- An example is a page, too.
- A picture is a link to itself, in full size.
- The header shows the version.
- A link to a place on its own page that is not there is a warning, and so ends a strict build.
- A name in `keras_decoupled.__all__` that the API page does not describe is a warning, and so ends a strict build.
"""

import ast
import html
import logging
import os
import re
import tomllib
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}  # of the repository
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
PICTURE = re.compile(r'<img [^>]*?src="([^"]+)"[^>]*>')
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)  # `generic: true` makes \(…\) and \[…\]
log = logging.getLogger("mkdocs.hooks")


def on_config(config):
    """Show the version in the header."""
    config.site_name = f"{config.site_name} {version()}"
    return config


def on_files(files, config):
    """Add the repository's pages, and a page for each example."""
    for source, name in PAGES.items():
        files.append(
            File.generated(config, name, abs_src_path=str(REPOSITORY / source))
        )
    for path in EXAMPLES:
        code = path.read_text(encoding="utf-8")
        page = f"# {path.name}\n\n```python\n{code}```\n"
        files.append(File.generated(config, page_of(path), content=page))
    return files


def page_of(example):
    """Return the name of the page that shows an example."""
    return f"examples/{example.stem}.md"


def on_page_markdown(markdown, page, config, files):
    """Publish the files of the repository that a page links to, and let its links lead there."""
    if page.file.abs_src_path is None:  # an example
        return markdown
    docs = Path(config.docs_dir).resolve()
    source = Path(page.file.abs_src_path).resolve()
    here = Path(page.file.src_uri).parent

    def link(match):
        target = (source.parent / match[2]).resolve()
        if source.is_relative_to(docs) and target.is_relative_to(docs):
            return match[0]
        if not (target.is_relative_to(REPOSITORY) and target.is_file()):
            return match[0]  # mkdocs says what is wrong with it
        if target.is_relative_to(docs):
            name = target.relative_to(docs).as_posix()
        else:
            name = target.relative_to(REPOSITORY).as_posix()
            name = page_of(target) if target in EXAMPLES else PAGES.get(name, name)
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(target)))
        return match[1] + Path(os.path.relpath(name, here)).as_posix()

    return LINK.sub(link, markdown)


def on_page_content(content, page, config, files):
    """Turn formulas into MathML, and pictures into links to themselves."""

    def formula(match):
        display = "block" if match[1] == "div" else "inline"
        mathml = convert(html.unescape(match[2]).strip(), display=display)
        return f'<{match[1]} class="arithmatex">{mathml}</{match[1]}>'

    # mkdocstrings takes a link of a docstring for one to a heading of the docstring.
    content = re.sub(
        r'href="#[\w.]+--shared-arguments"', 'href="#shared-arguments"', content
    )
    return PICTURE.sub(r'<a href="\1">\g<0></a>', FORMULA.sub(formula, content))


def on_post_page(output, page, config):
    """Look for every public name on the API page, and for the target of every link within a page."""
    missing = set(re.findall(r'href="#([^"]+)"', output)) - set(
        re.findall(r'id="([^"]+)"', output)
    )
    for name in sorted(missing):
        log.warning(
            "%s links to '#%s', which it does not have.", page.file.src_uri, name
        )
    if page.file.src_uri == "api.md":
        for name in public_names():
            if f'id="{name}"' not in output:
                log.warning("docs/api.md does not describe the public name '%s'.", name)
    return output


def version():
    """Return the package's version, without importing it."""
    pyproject = tomllib.loads(
        (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    )
    return pyproject["project"]["version"]


def public_names():
    """Full names of what users may import."""
    names = []
    for package in ("keras_decoupled", "keras_decoupled.callbacks"):
        init = REPOSITORY / "src" / package.replace(".", "/") / "__init__.py"
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
                names += [f"{package}.{name}" for name in ast.literal_eval(node.value)]
    return names
