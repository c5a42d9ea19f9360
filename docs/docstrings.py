"""What a docstring says in another way on the API page than in `help()`.

- An example is code. Else its lines would be quotations.
- A default that the signature shows is not said again.
- The shared arguments are a link.
"""

import re

import griffe

EXAMPLE = re.compile(r"^Example:\n(>>> .*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
DEFAULT = re.compile(r"\s+Defaults\s+to\s+`[^`]*`\.(?=\n|\Z)")
SHARED = re.compile(
    r"(?<=\*\*shared: )the arguments that all optimizers share(; see below)?\."
)


class ForThePage(griffe.Extension):
    """Change docstrings before they are read."""

    def on_object(self, *, obj, loader, **kwargs):
        """Change one object's docstring."""
        if obj.docstring:
            text = EXAMPLE.sub(
                r"**Example:**\n\n```pycon\n\1\n```", obj.docstring.value
            )
            if ">>>" in text.replace("\n>>>", ""):
                raise ValueError(f"{obj.path}: write its example without an indent.")
            text = SHARED.sub("the [shared arguments](#shared-arguments).", text)
            obj.docstring.value = DEFAULT.sub("", text)
