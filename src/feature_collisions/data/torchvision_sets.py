"""MNIST and CIFAR-10 in torchvision's layout, downloaded if allowed."""

import hashlib
import pickle
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ..errors import SettingError, explained
from .caches import cache_path
from .files import opened
from .image_set import Images

DIGITS = tuple("0123456789")
_MOST_BYTES = 2**26  # the largest file has 47 million


def load_mnist(root: str | None, download: bool) -> tuple[Images, Images]:
    """MNIST's training and test images, (M, 1, 28, 28) each.

    Args:
        root: the folder of `MNIST/raw`; None for the user's cache.
        download: whether missing files may be downloaded.

    Raises:
        SettingError: if files are missing, damaged or not digits.
    """
    from torchvision.datasets import MNIST

    raw = Path("MNIST") / "raw"
    names = [raw / Path(url).stem for url, _ in MNIST.resources]
    folder = _folder("MNIST", root, names, download)
    cure = (
        f"put the four original files, unpacked, into {folder / raw}, or use data=digits, which "
        "needs no files"
    )
    with _reading("MNIST", folder, cure):
        missing = not all(_is_whole(folder / name) for name in names)
        train, test = MNIST(str(folder), download=missing), MNIST(str(folder), train=False)
    return _digits(train, folder), _digits(test, folder)


def _digits(half: Any, folder: Path) -> Images:
    pixels, labels = half.data, half.targets
    whole = pixels.ndim == 3 and pixels.shape[1:] == (28, 28) and len(pixels) == len(labels) > 0
    if not (whole and labels.min() >= 0 and labels.max() <= 9):
        raise SettingError(
            "data.root",
            folder,
            "these are not MNIST's digits: expected 28x28 images with labels 0 to 9, found "
            f"images {tuple(pixels.shape)} and {len(labels)} labels up to "
            f"{(int(labels.max()) if len(labels) else 'none')}",
        )
    return Images(pixels[:, None], labels.long(), DIGITS)


def load_cifar10(root: str | None, download: bool) -> tuple[Images, Images]:
    """CIFAR-10's training and test images, (M, 3, 32, 32) each.

    Its files are pickles, which could run any code. Only bytes with the checksums of the
    published files are unpickled. (torchvision reads the file again after its check.)

    Args:
        root: the folder of `cifar-10-batches-py`; None for the user's cache.
        download: whether missing files may be downloaded (170 MB).

    Raises:
        SettingError: if files are missing or not the published ones.
    """
    from torchvision.datasets import CIFAR10

    base = Path(CIFAR10.base_folder)
    listed = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"],)]
    if root and not (Path(root) / base).exists() and any(Path(root).glob("*/*.png")):
        raise SettingError(
            "data.root",
            root,
            f"holds image folders, not {base}",
            "read them with data=image_folder data.size=32",
        )
    folder = _folder("CIFAR-10", root, [base / each[0] for each in listed], download)
    with _reading("CIFAR-10", folder, f"put the published files into {folder / base}"):
        if not all(_is_whole(folder / base / each[0]) for each in listed):
            CIFAR10(str(folder), download=True)
        meta = _published(folder / base / CIFAR10.meta["filename"], CIFAR10.meta["md5"])
        names = tuple(meta[CIFAR10.meta["key"]])
        train, test = (
            [_published(folder / base / name, checksum) for name, checksum in files]
            for files in (CIFAR10.train_list, CIFAR10.test_list)
        )
    return _coloured(train, names), _coloured(test, names)


def _published(path: Path, checksum: str) -> Any:
    """Unpickle one of the published files."""
    with opened(path, _MOST_BYTES) as file:
        content = file.read()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
        raise ValueError("its files are not the published ones")
    return pickle.loads(content, encoding="latin1")


def _coloured(batches: Sequence[dict[str, Any]], names: tuple[str, ...]) -> Images:
    pixels = torch.cat([torch.from_numpy(batch["data"]) for batch in batches])
    labels = torch.tensor([label for batch in batches for label in batch["labels"]])
    return Images(pixels.view(-1, 3, 32, 32), labels, names)


def _folder(title: str, root: str | None, names: Sequence[Path], download: bool) -> Path:
    """Folder of a data set, or folder to download it to."""
    folder = Path(root) if root else cache_path("data")
    if not (download or all(_is_whole(folder / name) for name in names)):
        raise SettingError(
            "data.root",
            folder,
            f"{title} is missing, and a run directory cannot start a download",
            "give its folder, or a folder to download to, with data.root=DIR",
        )
    return folder


def _reading(title: str, folder: Path, cure: str) -> AbstractContextManager[None]:
    """Explain any error of torchvision's parser or the network."""
    return explained("data.root", folder, f"{title} cannot be read or downloaded there", cure)


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    with opened(path, _MOST_BYTES):
        return True
