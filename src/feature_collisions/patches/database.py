"""The patch database: reduced images, from which windows are cut on demand (sec. 4).

Windows overlap, so images are far smaller than their patches: 128,066 images of 128x128 are 6.3 GB,
their 37,011,074 patches of 32x32 are 114 GB. Images are memory-mapped 8-bit pixels in the user's
cache. Their key names the settings and the files they were made from.
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.caches import cache_path, writable_folder
from ..data.image_folder import ImageFolder
from ..data.image_set import ImageSet
from ..errors import SettingError
from ..settings.patches import PatchSettings
from ..settings.train import DataSettings
from .build import Key, reduced_images

_RECIPE = 1  # raise when the reduction changes, to invalidate cached images


@dataclass(frozen=True)
class PatchDatabase:
    """Reduced images, and the geometry of their windows.

    Attributes:
        images: (M, C, s, s) uint8, memory-mapped.
        image_set: source of the images.
        members: (M,) int64, each image's index in it.
        window: side of a patch, in pixels of the reduced images.
        stride: between an image's windows, in the same pixels.
        folder: of the images and of results computed from them.
    """

    images: Tensor
    image_set: ImageSet
    members: Tensor
    window: int
    stride: int
    folder: Path

    @property
    def places(self) -> int:
        """Windows along one side of an image: 17 for the paper's."""
        return (self.images.shape[-1] - self.window) // self.stride + 1

    def __len__(self) -> int:
        """The number of patches."""
        return len(self.images) * self.places**2


def source(database: PatchDatabase, image_index: int, side: int) -> Tensor:
    """An image of the database at the composite's size: (C, side, side) in [0, 1].

    Raises:
        SettingError: if its file is missing or damaged.
    """
    return database.image_set.at_side(int(database.members[image_index]), side)


def patch_images(settings: PatchSettings, data: DataSettings, images: ImageSet) -> ImageSet:
    """The images to take patches from: the run's, or those of `patches.root`.

    Raises:
        SettingError: if the folder has no images, or they are in colour and the run's are grey.
    """
    if settings.root is None:
        return images
    if images.size[0] != 3:
        raise SettingError(
            "patches.root",
            settings.root,
            "a folder's images are in colour, the run's are grey",
            "leave patches.root out, or choose data=image_folder",
        )
    try:
        return ImageFolder(replace(data, name="image_folder", root=settings.root))
    except SettingError as error:
        raise SettingError(str(error).replace("data.root", "patches.root", 1)) from None


def scaled(name: str, pixels: int, settings: PatchSettings, side: int) -> int:
    """Convert pixels of a composite of `side` to pixels of the reduced images: 56 of 224 are 32.

    Raises:
        SettingError: if the result is not an integer.
    """
    scaled, rest = divmod(pixels * settings.size, side * settings.reduction)
    if rest or not scaled:
        raise SettingError(
            f"patches.{name}",
            pixels,
            f"{pixels} of the images' {side} pixels are {pixels * settings.size / side:g} of "
            f"patches.size={settings.size}, which must be a multiple of "
            f"patches.reduction={settings.reduction}",
            "change one of them",
        )
    return scaled


def open_database(settings: PatchSettings, images: ImageSet, seed: int) -> PatchDatabase:
    """Build the database of a fraction of each class, or load it from the cache.

    An interrupted build is resumed. A second process that needs the same database waits. If the
    cache is not writable, the database is built in a temporary folder, with a warning. Images that
    cannot be read are skipped, with one warning and a list.

    Args:
        settings: `fraction`, `size`, `reduction`, `search_stride`, and `patch`, of the composite.
        images: the images to choose from; their side is the composite's.
        seed: of the choice.

    Raises:
        SettingError: if sizes do not fit, or the disk is full.
    """
    window, stride = _windows(settings, images.size[1])
    images.check_side(settings.size)
    drawn = _draw(settings.fraction, images, seed)
    key: Key = {
        "recipe": _RECIPE,
        "size": settings.size,
        "reduction": settings.reduction,
        "images": len(drawn),
        "content": images.fingerprint(drawn),
    }
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = writable_folder("the patch database", cache_path("patches", name), "images.u8")
    pixels, members = reduced_images(folder, key, settings, images, drawn)
    return PatchDatabase(pixels, images, members, window, stride, folder)


def _windows(settings: PatchSettings, side: int) -> tuple[int, int]:
    """Side and stride of windows, in pixels of the reduced images."""
    if settings.patch > side:
        raise SettingError(
            "patches.patch", settings.patch, f"is larger than the images, {side}x{side}", "lower it"
        )
    for name in ("size", "search_stride"):
        value = getattr(settings, name)
        if value % settings.reduction:
            raise SettingError(
                f"patches.{name}",
                value,
                f"must be a multiple of patches.reduction={settings.reduction}",
                "change one of them",
            )
    return scaled("patch", settings.patch, settings, side), (
        settings.search_stride // settings.reduction
    )


def _draw(fraction: float, images: ImageSet, seed: int) -> Tensor:
    """Indices of random images: `shares` of each class."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    counts = images.labels.unique(return_counts=True)[1].tolist()
    # Sorted by class, random within a class: take the first few of each.
    order = order[images.labels[order].argsort(stable=True)]
    parts = zip(order.split(counts), shares(fraction, counts), strict=True)
    return torch.cat([part[:number] for part, number in parts]).sort().values


def shares(fraction: float, counts: list[int]) -> list[int]:
    """`fraction` of each class's images, rounded down, but at least one of each.

    Example:
        >>> shares(0.1, [1300, 732, 4])
        [130, 73, 1]
    """
    # 0.29 * 100 is 28.999999999999996 in binary, and still 29 images.
    return [max(1, math.floor(fraction * count + 1e-9)) for count in counts]
