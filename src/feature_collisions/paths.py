"""Paths as people write them."""

import os
from pathlib import Path
from typing import TypeVar

_Value = TypeVar("_Value")


def expanded(path: str) -> str:
    """A path whose leading `~` or `~user` is that user's home; others as they are."""
    return os.path.expanduser(path)


def home(value: _Value) -> _Value:
    """A setting that may be a path, `expanded`; what is no text, or no such path, as it is."""
    return expanded(value) if isinstance(value, str) else value  # type: ignore[return-value]


def path_of(path: str | Path) -> Path:
    """The path that a caller in Python names, `expanded`."""
    return Path(expanded(str(path)))
