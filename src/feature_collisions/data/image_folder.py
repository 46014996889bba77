"""Folders of images, one per class, laid out as ImageNet; files are read on access."""

import functools
import hashlib
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import SqueezeNet1_1_Weights
from tqdm import tqdm

from ..errors import SettingError
from ..paths import expanded
from ..settings.train import DataSettings
from .image_set import ImageSet
from .images import averaged, image_endings, load_image, quiet_decoders

# Folders and files that systems create, in addition to hidden ones; compared in lower case.
_OF_SYSTEMS = ("__macosx", "@eadir", "#recycle", "lost+found", "$recycle.bin",
               "system volume information", "thumbs.db", "desktop.ini")  # fmt: skip
_SIDE = 224  # the default of `data.size`
_WNID = re.compile(r"n\d{8}")


class ImageFolder(ImageSet):
    """Images in `data.root`/CLASS, where CLASS is an ImageNet id or any other name.

    The class index of an id is its rank among all 1000 ids, even if some are missing. Other names
    are indexed in alphabetical order, or in numerical order if all are numbers.

    Args:
        settings: `root`, `resize` and `size`.

    Raises:
        SettingError: if the folder has no images.
    """

    def __init__(self, settings: DataSettings) -> None:
        if settings.root is None:
            raise SettingError(
                "data.root", "null", "give the folder that contains one folder per class"
            )
        root = Path(expanded(settings.root))
        wrong = partial(SettingError, "data.root", root)
        if not root.is_dir():
            raise wrong("there is no such folder", "give an existing one")
        entries = _of_user(root)
        folders = in_order([path for path in entries if path.is_dir()])
        for folder in folders:
            if not folder.name.isprintable():
                raise wrong(
                    f"the folder {folder.name!a} has control characters in its name", "rename it"
                )
        index, self.class_names = _classes(root, [folder.name for folder in folders])
        self.root, self.resize = root, settings.resize
        self._sides = settings.height_and_width or (_SIDE, _SIDE)
        self.files, passed_over = list[tuple[Path, int]](), [p for p in entries if not p.is_dir()]
        for folder in folders:
            for path in _of_user(folder):
                if path.suffix.lower() in image_endings():
                    self.files.append((path, index[folder.name]))
                else:
                    passed_over.append(path)
        said = _said(passed_over)
        if not self.files:
            raise wrong(
                "no image in the folders below it",
                "give a folder laid out as ImageNet, CLASS/IMAGE, whose files end in "
                f"{', '.join(sorted(image_endings()))}{said and f' (there: {said})'}",
            )
        if said:
            warnings.warn(
                f"data.root={root}: skipped {said}; images must be in their class's folder "
                f"and end in {', '.join(sorted(image_endings()))}",
                stacklevel=2,
            )
        self.labels = torch.tensor([label for _, label in self.files])

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return 3, *self._sides

    def __getitem__(self, index: Any) -> Tensor:
        """One image (C, H, W), or the images (B, C, H, W) at a tensor of indices, in [0, 1]."""
        if isinstance(index, Tensor):
            return torch.stack([self[int(i)] for i in index])
        return load_image(self.files[index][0], self.size, self.resize)

    def at_side(self, index: int, side: int) -> Tensor:
        """One image (C, side, side) in [0, 1], read again from its file."""
        return load_image(self.files[index][0], (3, side, side), self.resize)

    def check_side(self, side: int) -> None:
        """Accept any side: files are resized when they are read."""

    def fingerprint(self, members: Tensor) -> str:
        """Hash of the files' paths below the root, sizes and times, and of `resize`."""
        digest = hashlib.sha256(self.resize.encode())
        for index in members.tolist():
            digest.update(f"\n{self.name_of(index)}\0{_state(self.files[index][0])}".encode())
        return digest.hexdigest()

    def name_of(self, index: int) -> str:
        """Path of an image's file below the root."""
        return self.files[index][0].relative_to(self.root).as_posix()

    def class_index(self, name: str) -> int | None:
        """Index of the class with this name, index or folder."""
        known = super().class_index(name)
        if known is None and _WNID.fullmatch(name) and name in wnids():
            return wnids().index(name)
        return known

    def mean_distances(
        self, squares: Sequence[int], most: int = 1000, seed: int = 0
    ) -> dict[int, float]:
        """Mean distances as of `ImageSet` (Table 2), from at most 1000 images.

        The images are kept as 8-bit pixels; their products are added in chunks.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:most]
        paths = [self.files[index][0] for index in order.tolist()]
        states = tuple((path, _state(path)) for path in paths)
        fitting = tuple(square for square in squares if square <= min(self.size[1:]))
        return _mean_distances(states, self.size, self.resize, fitting)


@functools.lru_cache(1)  # hulls evaluated in one process mostly share their data
def _mean_distances(
    files: tuple[tuple[Path, str], ...],
    size: tuple[int, int, int],
    resize: str,
    squares: tuple[int, ...],
) -> dict[int, float]:
    """Mean L2 distance between two images of `files`, (path, state) each, by side of the square."""
    pixels = torch.empty(len(files), *size, dtype=torch.uint8)

    def read(row: int) -> None:
        image = load_image(files[row][0], size, resize)
        pixels[row] = (image * 255).round().to(torch.uint8)

    with quiet_decoders(), ThreadPoolExecutor(os.cpu_count()) as threads:
        rows = threads.map(read, range(len(files)))
        deque(tqdm(rows, "Reading images", len(files), unit="image", mininterval=0.5), 0)
    return {square: _mean_pairwise(pixels, square) * square for square in squares}


def _mean_pairwise(pixels: Tensor, square: int) -> float:
    """Mean L2 distance between two images (M, C, H, W) of bytes, averaged over squares."""
    count = len(pixels)
    products = torch.zeros(count, count, dtype=torch.float64)
    if square > 1:
        pixels = torch.cat([averaged(part.float(), square) for part in pixels.split(64)])
    for piece in pixels.flatten(1).split(4096, dim=1):
        centred = piece.float() / 255 - 0.5
        products += (centred @ centred.T).double()
    norms = products.diagonal()
    squares = (norms[:, None] + norms - 2 * products).clamp_min(0)
    pairs = torch.triu_indices(count, count, 1)
    return float(squares[*pairs].sqrt().mean())


def in_order(folders: list[Path]) -> list[Path]:
    """Sort folders by name, or by number if every name is one: 2 before 10."""
    numbered = all(path.name.isascii() and path.name.isdecimal() for path in folders)
    return sorted(folders, key=lambda path: (int(path.name) if numbered else 0, path.name))


def _of_user(folder: Path) -> list[Path]:
    """Entries of a folder, sorted, without those that systems create."""
    entries = sorted(folder.iterdir())
    return [
        path for path in entries if path.name[0] != "." and path.name.lower() not in _OF_SYSTEMS
    ]


def _said(passed_over: list[Path]) -> str:
    """Counts of the ignored files by ending, those of nested folders included."""
    within = (path.rglob("*") if path.is_dir() else [path] for path in passed_over)
    endings = Counter(
        ascii(path.suffix.lower())[1:-1] or "without an extension"
        for path in chain.from_iterable(within)
        if not path.is_dir()
    )
    kinds = ", ".join(f"{number} {ending}" for ending, number in endings.most_common())
    return f"{endings.total()} files ({kinds})" if endings else ""


def _state(path: Path) -> str:
    try:
        state = path.stat()
    except OSError:  # a dangling link; the error comes when it is read
        return "missing"
    return f"{state.st_size} bytes, {state.st_mtime_ns}"


def _classes(root: Path, folders: list[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class index of each folder, and names of all classes."""
    ids = [name for name in folders if _WNID.fullmatch(name)]
    if not ids:
        return {name: i for i, name in enumerate(folders)}, tuple(folders)
    rank = {wnid: i for i, wnid in enumerate(wnids())}
    other = [name for name in folders if name not in rank]
    if other:
        raise SettingError(
            "data.root", root, f"{other[0]} is not one of ImageNet's 1000 class ids", "move it away"
        )
    return rank, class_names()


def class_names() -> tuple[str, ...]:
    """ImageNet's 1000 names in torchvision's order."""
    return tuple(SqueezeNet1_1_Weights.DEFAULT.meta["categories"])


def wnids() -> list[str]:
    """ImageNet's 1000 WordNet ids in the same order, n01440764 first."""
    return (Path(__file__).parent / "imagenet_wnids.txt").read_text().split()
