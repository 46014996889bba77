"""The classifiers whose collisions are searched for, by name or from a file of one's own."""

import importlib
import os
import sys
import traceback
from pathlib import Path

from torch import nn

from ..data.datasets import DataSplit, Images
from ..errors import SettingError
from ..settings.train import ClassifierSettings
from .agreement import accepted
from .mnist_mlp import MnistMLP, load_mnist_mlp
from .own_code import remember
from .timm_models import load_timm, side_of_timm
from .torchvision_models import load_torchvision, side_of_torchvision
from .weights import load_weights


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
    remember(f"{module}:{name}")
    return model


def _cause(error: BaseException) -> str:
    """What the user's own code raised, and in which of its lines."""
    reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    if isinstance(error, SyntaxError):  # says itself where it is
        return reason
    own = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    return f"{reason} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else reason


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<") or importlib.__file__ == filename
