"""A classifier from the user's own code, which only their own command lines have ever named.

What `train.py classifier.path=MODULE:NAME` imports is remembered in the user's cache, by file and
checksum. `evaluate.py` may then take a run's MODULE:NAME for the same unchanged file. A run from
elsewhere names nothing that was not executed before at this user's word.
"""

import hashlib
import importlib
import os
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path

from torch import nn

from ..data.caches import cache_path, is_kept, keep
from ..data.files import opened, read_json, write_json
from ..errors import SettingError
from ..settings.train import ClassifierSettings
from .agreement import accepted
from .weights import load_weights

_LARGEST = 2**24  # bytes of a source file


def import_classifier(settings: ClassifierSettings) -> nn.Module:
    """What `classifier.path` names, which is code: only the user's own command line may name it."""
    rule = "give MODULE:NAME, a classifier or a function that returns one"
    module, _, name = (settings.path or "").partition(":")
    if not (module and name):
        raise SettingError(f"classifier.path={settings.path}: {rule}")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
        model = found if isinstance(found, nn.Module) or not callable(found) else found()
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise SettingError(f"classifier.path={settings.path}: {_cause(error)}; {rule}") from error
    finally:
        sys.path.remove(os.getcwd())
    if not isinstance(model, nn.Module):
        raise SettingError(
            f"classifier.path={settings.path}: is a {type(model).__name__}, no torch.nn.Module; "
            f"{rule}"
        )
    model = accepted(model)
    if settings.weights:
        load_weights(model, Path(settings.weights))
    remember(f"{module}:{name}")
    return model


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


def _cause(error: BaseException) -> str:
    """What the user's own code raised, and in which of its lines."""
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, SyntaxError):  # says itself where it is
        return reason
    own = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    return f"{reason} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else reason


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<") or importlib.__file__ == filename
