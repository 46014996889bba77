"""Code that the user's own command lines have named: a run may choose among it, and name no other.

What `train.py classifier.path=MODULE:NAME` imports is remembered in the user's cache, by file and
checksum. `evaluate.py` may then take a run's MODULE:NAME for the same unchanged file. A run from
elsewhere names nothing that was not executed before at this user's word.
"""

import hashlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from ..data.caches import cache_path, is_kept, keep
from ..data.files import opened, read_json, write_json
from ..errors import SettingError

_LARGEST = 2**24  # bytes of a source file


def remember(path: str) -> None:
    """Note that the user has had MODULE:NAME imported."""
    if files := _files(path):
        known = _known() | {path: files}
        keep("which classifiers are your own", _place(), lambda place: write_json(place, known))


def is_remembered(path: str) -> bool:
    """Whether MODULE:NAME is the same unchanged file that the user has had imported."""
    files = _files(path)
    return files is not None and _known().get(path) == files


def _place() -> Path:
    return cache_path("imported.json")


def _known() -> dict[str, object]:
    if not is_kept(_place()):
        return {}
    try:
        found = read_json(_place())
    except SettingError:
        return {}
    return found if isinstance(found, dict) else {}


def _files(path: str) -> list[list[str]] | None:
    """The file of each package on the way to the module, with its checksum; nothing is imported."""
    places: list[str] | None = [os.getcwd(), *sys.path]
    found, name = list[list[str]](), ""
    for part in path.partition(":")[0].split("."):
        name = f"{name}.{part}".lstrip(".")
        try:
            spec = PathFinder.find_spec(name, places)
        except (ImportError, ValueError, OSError):
            return None
        if spec is None or spec.origin is None:
            return None
        try:
            with opened(spec.origin, _LARGEST) as file:
                found.append([spec.origin, hashlib.sha256(file.read()).hexdigest()])
        except (OSError, SettingError):
            return None
        places = list(spec.submodule_search_locations or ())
    return found
