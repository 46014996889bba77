"""Paths as people write them."""

import os
from pathlib import Path
from typing import TypeVar

_Value = TypeVar("_Value")


def expanded(path: str) -> str:
    """Replace a leading `~` or `~user` by that user's home folder."""
    return os.path.expanduser(path)


def home(value: _Value) -> _Value:
    """Expand a setting if it is text; other values are returned unchanged."""
    return expanded(value) if isinstance(value, str) else value  # type: ignore[return-value]


def path_of(path: str | Path) -> Path:
    """Path of a Python caller's argument, `expanded`."""
    return Path(expanded(str(path)))
