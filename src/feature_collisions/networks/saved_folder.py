"""Folders of saved networks: config and weights, read as data.

The folder is untrusted. Only JSON and safetensors are read from it; no code is executed.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.files import read_json
from ..errors import SettingError, explained
from ..graph.graph import evaluating
from ..paths import path_of

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_SHARDS = "model.safetensors.index.json"  # index of weights split over several files


def saved_folder(path: str | None) -> Path:
    """Check the folder that `classifier.path` names.

    Raises:
        SettingError: if it is not a folder, or has no config or no safetensors.
    """
    folder = path_of(path or "")
    wrong = partial(SettingError, "classifier.path", folder)
    if not path or not folder.is_dir():
        raise SettingError(
            "classifier.path",
            path or "null",
            f"must be a folder with {CONFIG} and {WEIGHTS}, as save_pretrained writes them",
        )
    if not (folder / CONFIG).is_file():
        raise wrong(f"has no {CONFIG}", "give the folder that save_pretrained wrote")
    if not any((folder / name).is_file() for name in (WEIGHTS, _SHARDS)):
        others = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
        found = f" (it has {others[0]}, which could execute code)" if others else ""
        raise wrong(
            f"has no weights in safetensors{found}",
            f"save the network with safetensors, as {WEIGHTS}",
        )
    return folder


_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains one object.

    Raises:
        SettingError: if it is missing, damaged, or contains something else.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise SettingError(path, None, f"must contain an object, is a {type(found).__name__}")
    return found


def printable_names(names: Iterable[object]) -> tuple[str, ...]:
    """Remove control characters from class names and shorten long ones."""
    return tuple(
        "".join(each if each.isprintable() else " " for each in str(name)[:_LONGEST])
        for name in names
    )


_LONGEST = 200  # characters of a name


def check_images(source: str, model: nn.Module, size: Sequence[int], own: Sequence[int]) -> None:
    """Raise SettingError if the model rejects images of this size.

    Args:
        source: the setting that names the model, for the message.
        model: images in [0, 1] to logits or features.
        size: (C, H, W) of the images.
        own: (C, H, W) of the images it was trained on.
    """
    if tuple(size) == tuple(own):
        return
    if size[0] != own[0]:
        raise SettingError(
            source,
            None,
            f"takes images of {own[0]} channels, and these have {size[0]}",
            "choose other images or another classifier",
        )
    takes, given = ("x".join(map(str, each)) for each in (own, size))
    side = own[1] if own[1] == own[2] else f"[{own[1]},{own[2]}]"
    rule = f"takes images of {takes}, and these are {given}"
    remedy = f"set data.size={side}"
    with explained(source, None, rule, remedy), torch.no_grad(), evaluating(model):
        model(torch.zeros(1, *size))
