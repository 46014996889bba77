"""The classifiers whose collisions are searched for, by name or from a file of one's own."""

from pathlib import Path

from torch import nn

from ..data.datasets import DataSplit, Images
from ..errors import SettingError
from ..settings.train import ClassifierSettings
from .mnist_mlp import MnistMLP, load_mnist_mlp
from .own_code import import_classifier
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
        model = import_classifier(settings)
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
