"""torchvision's ImageNet classifiers by name, with their normalisation (sec. 3.2)."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from ..errors import SettingError, explained, similar
from ..settings.train import RANDOM, ClassifierSettings
from .weights import fit_weights, read_weights, split_entry, untrained


class Classifier(nn.Module):
    """Normalisation followed by a network; layers keep their names in `network`.

    Args:
        network: normalised images to logits.
        mean, std: of each colour channel, on [0, 1] pixels.
    """

    shell = "network."  # prefix of layer names
    class_names: tuple[str, ...] = ()  # if the network has them
    is_encoder = False  # returns features (B, D) instead of logits
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to (B, classes) logits."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def load_torchvision(settings: ClassifierSettings) -> nn.Module:
    """Load a torchvision classifier with the weights of `classifier.weights`.

    Raises:
        SettingError: if the name is unknown, or the weights are damaged or cannot be downloaded.
    """
    known = models.list_models(module=models)
    if settings.name not in known:
        raise SettingError(
            "classifier.name",
            settings.name,
            "must be mnist_mlp, file, or one of torchvision's classifiers",
            similar(settings.name, known),
        )
    choices = models.get_model_weights(settings.name)
    source = f"classifier.weights={settings.weights}"
    wrong = partial(SettingError, source, None)
    if settings.weights == RANDOM:
        entry = choices["DEFAULT"]
        return _normalised(untrained(lambda: _network(settings.name, entry)), entry)
    if settings.weights is None or is_file(settings.weights):
        if settings.weights is None:
            raise wrong(f"give torchvision's name, one of {_names(choices)}, random, or a file")
        states, entry = read_weights(settings.weights), choices["DEFAULT"]
    else:
        name = settings.weights.rpartition(".")[2]
        if name != "DEFAULT" and name not in choices.__members__:
            raise wrong(f"must be one of {_names(choices)}, or a file that exists")
        entry = choices[name]
        states = {"": _download(entry, source)}
    network = _network(settings.name, entry)
    modern = {name: _modern(state) for name, state in states.items()}
    fit_weights(network, modern, source, classes=1000)
    return _normalised(network, entry)


def _normalised(network: nn.Module, entry: Any) -> Classifier:
    transforms = entry.transforms()
    return Classifier(network, transforms.mean, transforms.std)


def side_of_torchvision(settings: ClassifierSettings) -> int:
    """Side of the square images that the classifier's ImageNet weights expect."""
    if settings.name not in models.list_models(module=models):
        return _SIDE
    choices = models.get_model_weights(settings.name)
    name = (settings.weights or "").rpartition(".")[2]
    entry = choices[name] if name in choices.__members__ else choices["DEFAULT"]
    side: int = entry.transforms().crop_size[0]
    return side


_SIDE = 224


def is_file(weights: str) -> bool:
    """Whether `classifier.weights` names a file, present or not, rather than a download."""
    path, entry = split_entry(weights)
    return bool(entry) or path.is_file() or "/" in weights or path.suffix in _SUFFIXES


_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar")


def _names(choices: Any) -> str:
    return ", ".join(["DEFAULT", *choices.__members__])


def _network(name: str, entry: Any) -> nn.Module:
    """The architecture of the ImageNet weights `entry`."""
    # By default these two scale the input again, and initialise their weights slowly.
    inceptions = ("googlenet", "inception_v3")
    special: dict[str, Any] = (
        {"init_weights": False, "transform_input": True} if name in inceptions else {}
    )
    if name.startswith("vit_"):  # have an embedding per position
        special = {"image_size": entry.meta["min_size"][0]}
    network: nn.Module = models.get_model(name, weights=None, **special)
    return network


def _download(entry: Any, source: str) -> dict[str, Tensor]:
    folder, name = Path(torch.hub.get_dir()) / "checkpoints", Path(entry.url).name
    remedy = f"copy that file from {entry.url} to {folder}, or give a file with classifier.weights="
    with explained(source, None, f"{name} cannot be downloaded or read", f"{remedy}FILE"):
        state: dict[str, Tensor] = entry.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    return state


_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def _modern(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename DenseNet's keys: its files have dots that PyTorch no longer allows."""
    return {_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items()}
