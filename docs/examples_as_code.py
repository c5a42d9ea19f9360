"""A docstring's example is code on the API page."""

import re

import griffe

EXAMPLE = re.compile(r"^Example:\n(>>> .*?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


class ExamplesAsCode(griffe.Extension):
    """Fence the lines under `Example:`, which would else be quotations."""

    def on_object(self, *, obj, loader, **kwargs):
        """Change one object's docstring."""
        if obj.docstring:
            value = obj.docstring.value
            obj.docstring.value = EXAMPLE.sub(r"**Example:**\n\n```pycon\n\1\n```", value)
