"""For mkdocstrings: an "Example:" of a docstring is code, as griffe reads "Examples:"."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section where docstrings are loaded."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Of one class, function or module."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
