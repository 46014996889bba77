"""MNIST and CIFAR-10 as torchvision lays them out; downloaded where that is allowed."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..errors import SettingError
from .caches import cache_path
from .files import opened
from .image_set import Images

DIGITS = tuple("0123456789")
_MOST_BYTES = 2**26  # the largest of the files has 47 million


def load_mnist(root: str | None, download: bool) -> tuple[Images, Images]:
    """MNIST's two halves, to train and to test with: (M, 1, 28, 28).

    Args:
        root: the folder of `MNIST/raw`; the user's cache when None.
        download: whether it may be downloaded there.

    Raises:
        SettingError: for files that are missing, damaged or no digits.
    """
    from torchvision.datasets import MNIST

    raw = Path("MNIST") / "raw"
    names = [raw / Path(url).stem for url, _ in MNIST.resources]
    cure = (
        f"put the four original files, unpacked, into {{folder}}/{raw}, or use data=digits, which "
        "needs no files"
    )
    folder, halves = _halves(MNIST, "MNIST", root, names, download, cure)
    train, test = (_digits(half, folder) for half in halves)
    return train, test


def _digits(half: Any, folder: Path) -> Images:
    pixels, labels = half.data, half.targets
    whole = pixels.ndim == 3 and pixels.shape[1:] == (28, 28) and len(pixels) == len(labels) > 0
    if not (whole and labels.min() >= 0 and labels.max() <= 9):
        raise SettingError(
            f"data.root={folder}: these are not MNIST's digits: expected 28x28 images with "
            f"labels 0 to 9, found images {tuple(pixels.shape)} and {len(labels)} labels up to "
            f"{int(labels.max()) if len(labels) else 'none'}"
        )
    return Images(pixels[:, None], labels.long(), DIGITS)


def load_cifar10(root: str | None, download: bool) -> tuple[Images, Images]:
    """CIFAR-10's two halves, to train and to test with: (M, 3, 32, 32).

    Its files are pickles, which could execute anything: torchvision opens them only where their
    checksums are those of the published ones.

    Args:
        root: the folder of `cifar-10-batches-py`; the user's cache when None.
        download: whether it may be downloaded there (170 MB).

    Raises:
        SettingError: for files that are missing or not the published ones.
    """
    from torchvision.datasets import CIFAR10

    base = Path(CIFAR10.base_folder)
    listed = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"],)]
    cure = f"put the published files into {{folder}}/{base}"
    if root and not (Path(root) / base).exists() and any(Path(root).glob("*/*.png")):
        raise SettingError(
            f"data.root={root}: holds image folders, not {base}; read them with "
            "data=image_folder data.size=32"
        )
    names = [base / each[0] for each in listed]
    _, halves = _halves(CIFAR10, "CIFAR-10", root, names, download, cure)
    train, test = (
        Images(
            torch.from_numpy(half.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(half.targets),
            tuple(half.classes),
        )
        for half in halves
    )
    return train, test


def _halves(
    kind: Any, title: str, root: str | None, names: Iterable[Path], download: bool, cure: str
) -> tuple[Path, list[Any]]:
    """The folder, and torchvision's set `kind` in it, to train and to test with."""
    folder = Path(root) if root else cache_path("data")
    paths = [folder / name for name in names]
    if not (download or all(map(_is_whole, paths))):
        raise SettingError(
            f"data.root={folder}: {title} is not there, and nothing is downloaded to a place that "
            "a run names; say with data.root=DIR where it lies, or where it may be downloaded to"
        )
    halves = []
    try:
        for train in (True, False):
            missing = not all(map(_is_whole, paths))
            halves.append(kind(str(folder), train, download=missing))
        return folder, halves
    except Exception as error:  # torchvision raises whatever its parser meets
        reason = (str(error).splitlines() or ["no reason given"])[0]
        reason = f"{type(error).__name__}: {reason}"
        if "download=True" in reason:  # torchvision's advice, to those who call it
            reason = "its files are not the published ones"
        raise SettingError(
            f"data.root={folder}: {title} cannot be read or downloaded there ({reason}); "
            f"{cure.format(folder=folder)}"
        ) from None


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    with opened(path, _MOST_BYTES):
        return True
