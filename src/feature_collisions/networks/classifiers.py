"""The classifiers whose collisions are searched for, by name or from the user's own code.

What `train.py classifier.path=MODULE:NAME` imports is remembered in the user's cache, with the
working directory, and the place and checksum of MODULE's file and of the packages that it lies in.
Where all of these are the same, `evaluate.py` may import MODULE:NAME at the word of a run, though
that may be a stranger's: it executes what this user has had executed, and what MODULE itself
imports and reads is found where it was found then. In another folder, the stranger's own say, a
module beside MODULE or a relative path could be another one; there the user has to name it.
"""

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from torch import nn

from ..data.caches import cache_path, is_kept, keep
from ..data.datasets import DataSplit, Images
from ..data.files import opened, read_json, write_json
from ..errors import SettingError
from ..graph.agreement import accepted
from ..settings.train import ClassifierSettings
from .mnist_mlp import MnistMLP, load_mnist_mlp
from .timm_models import load_timm, size_of_timm
from .torchvision_models import Classifier, load_torchvision, side_of_torchvision
from .transformers_models import load_transformers, size_of_transformers
from .unwrap import unwrap
from .weights import load_weights

_LARGEST = 2**24  # bytes of a source file


def input_size(settings: ClassifierSettings) -> tuple[int, int]:
    """(H, W) of the images that the classifier was made for, where that is known, or 224x224.

    Raises:
        SettingError: for an unknown name, or a folder that holds no network.
    """
    if settings.library == "timm":
        return size_of_timm(settings)
    if settings.library == "transformers":
        return size_of_transformers(settings)
    side = side_of_torchvision(settings.name)
    return side, side


def load_classifier(settings: ClassifierSettings, data: DataSplit, seed: int = 0) -> nn.Module:
    """The classifier that `classifier` names: from its weights, the cache, or trained now.

    Raises:
        SettingError: for an unknown name or weights of another architecture.
    """
    settings = settings.paired()
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
    elif settings.library == "transformers":
        model = load_transformers(settings, data.test.size)
    else:
        model = load_torchvision(settings)
    if isinstance(model, Classifier) and model.is_encoder:
        raise SettingError(
            f"classifier.name={settings.name}: is an encoder, which gives features and no classes; "
            "choose a network with a head of classes"
        )
    return model.requires_grad_(False).eval()


def names_in(model: nn.Module) -> Sequence[str]:
    """The names of its classes that a model of a library says; () where it says none."""
    return getattr(model, "class_names", ()) if isinstance(model, Classifier) else ()


def _mnist_mlp(settings: ClassifierSettings, data: DataSplit, seed: int) -> nn.Module:
    if not isinstance(data.train, Images):
        raise SettingError(
            "classifier.name=mnist_mlp: reads digits; choose data=digits or data=mnist"
        )
    if settings.weights:
        model = MnistMLP()
        load_weights(model, settings.weights)
        return model
    return load_mnist_mlp(data.train, settings.train, seed)


def _import_classifier(settings: ClassifierSettings) -> nn.Module:
    """What `classifier.path` names, which is code: only the user's own command line may name it."""
    rule = "give MODULE:NAME, a classifier or a function that returns one, or MODULE:NAME::WEIGHTS"
    module, _, name = (settings.path or "").partition(":")
    if not (module and name):
        raise SettingError(f"classifier.path={settings.path}: {rule}")
    if "/" in module or module.endswith(".py"):
        raise SettingError(
            f"classifier.path={settings.path}: MODULE is a name that Python imports, without .py; "
            f"put its folder on PYTHONPATH, or go there, and give {Path(module).stem}:{name}"
        )
    folder = os.getcwd()
    files = _files(module, folder)  # before its own code can change a file or the folder
    sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), name)
        model = found if isinstance(found, nn.Module) or not callable(found) else found()
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
        raise SettingError(f"classifier.path={settings.path}: {_cause(error)}; {rule}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if not isinstance(model, nn.Module):
        raise SettingError(
            f"classifier.path={settings.path}: is a {type(model).__name__}, no torch.nn.Module; "
            f"{rule}"
        )
    model = accepted(unwrap(model))
    if settings.weights:
        load_weights(model, settings.weights)
    if files:
        _remember(folder, f"{module}:{name}", files)
    return model


_Files = list[list[str]]  # a path and a checksum each


def _remember(folder: str, path: str, files: _Files) -> None:
    """Note that the user has had MODULE:NAME imported in this working directory."""
    known = _known()
    known[folder] = _of_folder(known, folder) | {path: files}
    keep("which classifiers are your own", _place(), lambda place: write_json(place, known))


def is_remembered(path: str) -> bool:
    """Whether the user has had MODULE:NAME imported in this working directory, as it is now.

    Compared are the files of the module and of the packages that it lies in, by place and content;
    what they import and read is not. Nothing is imported here.
    """
    folder = os.getcwd()
    files = _files(path.partition(":")[0], folder)
    return bool(files) and _of_folder(_known(), folder).get(path) == files


def _place() -> Path:
    return cache_path("imported.json")


def _known() -> dict[str, object]:
    """MODULE:NAME to files, by working directory."""
    if not is_kept(_place()):
        return {}
    try:
        found = read_json(_place())
    except SettingError:
        return {}
    return found if isinstance(found, dict) else {}


def _of_folder(known: dict[str, object], folder: str) -> dict[str, object]:
    found = known.get(folder)
    return found if isinstance(found, dict) else {}


def _files(module: str, folder: str) -> _Files | None:
    """The file of each package on the way to the module, and its own; None where one has none."""
    places: list[str] | None = [folder, *sys.path]
    found, name = _Files(), ""
    for part in module.split("."):
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
