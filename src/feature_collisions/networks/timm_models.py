"""timm's image classifiers by name, with their own normalisation inside; an optional library."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SettingError
from ..graph.graph import evaluating
from ..settings.train import ClassifierSettings
from .torchvision_models import Classifier, is_file
from .weights import fit_weights, read_weights


def load_timm(settings: ClassifierSettings, size: Sequence[int]) -> nn.Module:
    """A timm classifier with the weights that `classifier.weights` names, for images of one size.

    Args:
        settings: `name`, and `weights`: a file, or one of timm's tags, which is downloaded.
        size: (C, H, W) of the images it is going to be given.

    Raises:
        SettingError: where timm is not installed, for an unknown name, or weights that are none, do
            not fit or cannot be downloaded.
    """
    timm, name = _timm(), settings.name
    _check_name(timm, name)
    source = f"classifier.weights={settings.weights or 'null'}"
    tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
    if settings.weights is None or not (is_file(settings.weights) or settings.weights in tags):
        raise SettingError(
            f"{source}: {name} needs weights; give a file, which needs no network, or one of "
            f"timm's, which is downloaded: {', '.join(filter(None, tags)) or 'there are none'}"
        )
    if is_file(settings.weights):
        states = read_weights(settings.weights)
        network = timm.create_model(name)
        fit_weights(network, states, source, classes=network.num_classes)
    else:
        network = _downloaded(timm, f"{name.partition('.')[0]}.{settings.weights}", source)
    given = timm.data.resolve_model_data_config(network)
    if given["input_size"][0] != size[0]:
        raise SettingError(
            f"classifier.name={name}: takes images of {given['input_size'][0]} channels, and these "
            f"have {size[0]}; choose other images or another classifier"
        )
    _pad_by_constants(network, size)
    return Classifier(network, list(given["mean"]), list(given["std"]))


def side_of_timm(name: str) -> int:
    """The side of the square images that a timm classifier was trained on.

    Raises:
        SettingError: where timm is not installed, or for an unknown name.
    """
    timm = _timm()
    _check_name(timm, name)
    side: int = timm.get_pretrained_cfg(name).input_size[-1]
    return side


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError:
        raise SettingError(
            "classifier.library=timm: timm is not installed; pip install 'feature_collisions[timm]'"
        ) from None
    return timm


def _check_name(timm: Any, name: str) -> None:
    known = timm.list_models()
    base = name.partition(".")[0]
    if base in known and (base == name or name in timm.list_pretrained()):
        return
    near = difflib.get_close_matches(base, known, 5, 0.5)
    raise SettingError(
        f"classifier.name={name}: is none of timm's classifiers; near it are "
        f"{', '.join(near) or 'none'}"
    )


def _downloaded(timm: Any, name: str, source: str) -> nn.Module:
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # whatever the network, the proxy or a damaged file brings up
        reason = (str(error).strip().splitlines() or [""])[0]
        raise SettingError(
            f"{source}: {name} cannot be downloaded or read ({type(error).__name__}: {reason}); "
            "give a file with classifier.weights=FILE"
        ) from None
    return network


class PaddedConv(nn.Conv2d):
    """A convolution behind zeros of a fixed width: TensorFlow's `same` for images of one size.

    timm computes the width anew from each image, in Python, which torch.fx cannot follow.
    """

    sides: tuple[int, int, int, int]

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride), rounded up."""
        padded = F.pad(input, self.sides)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_by_constants(network: nn.Module, size: Sequence[int]) -> None:
    """Turn timm's Conv2dSame, in place, into what does the same for images of this size."""
    from timm.layers.conv2d_same import Conv2dSame

    sizes: dict[nn.Module, tuple[int, int]] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        height, width = given[0].shape[-2:]
        sizes[module] = (height, width)

    chosen = [module for module in network.modules() if type(module) is Conv2dSame]
    listeners = [module.register_forward_pre_hook(keep) for module in chosen]
    if not chosen:
        return
    with torch.no_grad(), evaluating(network):
        network(torch.zeros(1, *size))
    for listener in listeners:
        listener.remove()
    for module in chosen:
        if module not in sizes:  # it never runs
            continue
        sides: list[int] = []
        for axis in (1, 0):  # F.pad starts with the last
            kernel, stride, dilation = (
                getattr(module, each)[axis] for each in ("kernel_size", "stride", "dilation")
            )
            length = sizes[module][axis]
            needed = (math.ceil(length / stride) - 1) * stride + (kernel - 1) * dilation + 1
            missing = max(needed - length, 0)
            sides += [missing // 2, missing - missing // 2]
        module.__class__ = PaddedConv  # type: ignore[assignment]
        module.sides = tuple(sides)  # type: ignore[assignment]
