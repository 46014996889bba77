"""Load classifiers by name or from the user's code."""

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from torch import nn

from ..data.datasets import DataSplit, Images
from ..errors import SettingError, first_line
from ..graph.agreement import validate_model
from ..graph.probabilities import check_kind
from ..settings.rules import one_of
from ..settings.train import ClassifierSettings
from .mnist_mlp import MnistMLP, load_mnist_mlp
from .timm_models import load_timm, size_of_timm
from .torchvision_models import Classifier, load_torchvision, side_of_torchvision
from .transformers_models import load_transformers, size_of_transformers
from .unwrap import unwrap
from .weights import load_weights


def input_size(settings: ClassifierSettings) -> tuple[int, int]:
    """(H, W) of the images that the classifier was trained on; 224x224 if unknown.

    Raises:
        SettingError: if the name is unknown, or the folder has no network.
    """
    if settings.library == "timm":
        return size_of_timm(settings)
    if settings.library == "transformers":
        return size_of_transformers(settings)
    side = side_of_torchvision(settings)
    return side, side


def load_classifier(settings: ClassifierSettings, data: DataSplit, seed: int = 0) -> nn.Module:
    """Load the network that `classifier` names from weights or the cache, or train it.

    Raises:
        SettingError: if the name is unknown, or the weights do not fit.
    """
    settings = settings.paired()
    if settings.train and (settings.name != "mnist_mlp" or settings.weights):
        raise SettingError(
            "classifier.train",
            "true",
            "only mnist_mlp without weights can be trained",
            "leave it out",
        )
    if settings.name == "mnist_mlp":
        model = _mnist_mlp(settings, data, seed)
    elif settings.name == "file":
        model = _import_classifier(settings)
    elif settings.library == "torchvision":
        model = load_torchvision(settings)
    else:
        model = _FOLDERS[settings.library](settings, data.test.size)
    check_kind(model, settings.output, "classifier.output")
    return model.requires_grad_(False).eval()


def load_network(
    library: str, name: str, weights: str | None = None, size: Sequence[int] | None = None
) -> nn.Module:
    """Load a network of a library, frozen and in eval mode, for images with pixels in [0, 1].

    The library's normalisation and order of channels are part of the returned network. No code in
    a folder or a file of weights is executed.

    Args:
        library: `torchvision`, `timm` or `transformers` (Hugging Face).
        name: a name that the library knows, or a folder that the library saved (timm,
            transformers).
        weights: a file, or the library's name for weights to download; None for a folder, which
            contains them.
        size: (C, H, W) of the images; None for the network's training size, in colour.

    Raises:
        SettingError: if the library or name is unknown, or the weights do not fit.

    Example:
        model = load_network("torchvision", "resnet18", weights="IMAGENET1K_V1")
        encoder = load_network("transformers", "folder/of/dinov2")
    """
    one_of("library", library, ("torchvision", *_FOLDERS))
    settings = ClassifierSettings(name, weights, "auto", library=library)
    if library == "torchvision":
        model = load_torchvision(settings)
    else:
        if Path(name).is_dir():
            settings = replace(settings, name=library, path=name)
        model = _FOLDERS[library](settings.paired(), size or (3, *input_size(settings)))
    return model.requires_grad_(False).eval()


_FOLDERS = {"timm": load_timm, "transformers": load_transformers}


def names_in(model: nn.Module) -> Sequence[str]:
    """Class names of a library's model; () if it has none."""
    return getattr(model, "class_names", ()) if isinstance(model, Classifier) else ()


def _mnist_mlp(settings: ClassifierSettings, data: DataSplit, seed: int) -> nn.Module:
    if not isinstance(data.train, Images):
        raise SettingError(
            "classifier.name", "mnist_mlp", "reads digits", "choose data=digits or data=mnist"
        )
    if settings.weights:
        model = MnistMLP()
        load_weights(model, settings.weights)
        return model
    return load_mnist_mlp(data.train, settings.train, seed)


def _import_classifier(settings: ClassifierSettings) -> nn.Module:
    """Import the network of `classifier.path`. It is code: only the command line may name it."""
    wrong = partial(SettingError, "classifier.path", settings.path)
    rule = "give MODULE:NAME, a classifier or a function that returns one, or MODULE:NAME::WEIGHTS"
    module, _, name = (settings.path or "").partition(":")
    if not module or not (name or module.endswith(".py")):
        raise wrong(rule)
    if "/" in module or module.endswith(".py"):
        raise wrong(
            "MODULE is a name that Python imports, without .py",
            "go to its folder, or put that on PYTHONPATH, and give "
            f"{Path(module).stem}:{name or 'NAME'}",
        )
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        code = importlib.import_module(module)
        if not hasattr(code, name):
            raise wrong(*_no_such(code, name))
        found = getattr(code, name)
        model = found if isinstance(found, nn.Module) or not callable(found) else found()
    except SettingError:
        raise
    except (Exception, SystemExit) as error:  # any error of the user's code
        raise wrong(_cause(error), rule) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    if not isinstance(model, nn.Module):
        raise wrong(f"must be a torch.nn.Module, is a {type(model).__name__}", rule)
    model = validate_model(unwrap(model))
    if settings.weights:
        load_weights(model, settings.weights)
    return model


def _no_such(code: ModuleType, name: str) -> tuple[str, str]:
    """That a module has no such name, and the functions there that take no arguments."""
    found = [
        key
        for key, value in vars(code).items()
        if inspect.isfunction(value)
        and value.__module__ == code.__name__
        and all(
            p.default is not p.empty or p.kind in _OPTIONAL
            for p in inspect.signature(value).parameters.values()
        )
    ]
    near = difflib.get_close_matches(name, found, 1, 0.5)
    question = f"did you mean {near[0]}? " if near else ""
    listed = (
        f"functions without arguments: {', '.join(found[:_MOST])}"
        if found
        else "it has no function without arguments"
    )
    return f"the module {code.__name__} has no {name}", f"{question}{listed}"


_MOST = 20  # names in a message
_OPTIONAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _cause(error: BaseException) -> str:
    """Error of the user's code, with its line."""
    reason = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):  # names its line itself
        return reason
    own = [f for f in traceback.extract_tb(error.__traceback__) if not _is_machinery(f.filename)]
    return f"{reason} ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else reason


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<") or importlib.__file__ == filename
