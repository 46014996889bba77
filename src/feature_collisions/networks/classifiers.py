"""The classifiers whose collisions are searched for, by name or from the user's own code.

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
from ..data.datasets import DataSplit, Images
from ..data.files import opened, read_json, write_json
from ..errors import SettingError
from ..settings.train import ClassifierSettings
from .agreement import accepted
from .mnist_mlp import MnistMLP, load_mnist_mlp
from .timm_models import load_timm, side_of_timm
from .torchvision_models import load_torchvision, side_of_torchvision
from .weights import load_weights

_LARGEST = 2**24  # bytes of a source file


def input_side(settings: ClassifierSettings) -> int:
    """The side of the square images that the classifier was made for, where that is known: or 224.

    Raises:
        SettingError: for an unknown name.
    """
    if settings.library == "timm":
        return side_of_timm(settings.name)
    return side_of_torchvision(settings.name)


def load_classifier(settings: ClassifierSettings, data: DataSplit, seed: int = 0) -> nn.Module:
    """The classifier that `classifier` names: from its weights, the cache, or trained now.

    Raises:
        SettingError: for an unknown name or weights of another architecture.
    """
    if settings.train and (settings.name != "mnist_mlp" or settings.weights):
        raise SettingError(
            "classifier.train=true: only mnist_mlp is trained here, and only without weights; "
            "leave it out"
        )
    if settings.name == "mnist_mlp":
        model = _mnist_mlp(settings, data, seed)
    elif settings.name == "file":
        model = _import_classifier(settings)
    elif settings.library == "timm":
        model = load_timm(settings, data.test.size)
    else:
        model = load_torchvision(settings)
    return model.requires_grad_(False).eval()


def _mnist_mlp(settings: ClassifierSettings, data: DataSplit, seed: int) -> nn.Module:
    if not isinstance(data.train, Images):
        raise SettingError(
            "classifier.name=mnist_mlp: reads digits; choose data=digits or data=mnist"
        )
    if settings.weights:
        model = MnistMLP()
        load_weights(model, Path(settings.weights))
        return model
    return load_mnist_mlp(data.train, settings.train, seed)


def _import_classifier(settings: ClassifierSettings) -> nn.Module:
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
    _remember(f"{module}:{name}")
    return model


def _remember(path: str) -> None:
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
