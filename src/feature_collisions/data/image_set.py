"""Base class of data sets: finding an image by name, mean distance between images."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import SettingError, similar
from ..paths import path_of
from .images import load_image, pooled_distance

_RULE = "give a class name, a class index, CLASS:N for the class's N-th image, or an image file"
_FEW = 20  # class names that a message lists
_DIGITS = 9  # of an index; Python refuses to parse thousands


class Found(NamedTuple):
    """An image (C, H, W) in [0, 1] and its label, None if unknown."""

    image: Tensor
    label: int | None


class ImageSet(ABC):
    """Labelled images.

    Attributes:
        class_names: one per class, by index.
        labels: (M,) int64.
        resize: how files are resized to `size`.
    """

    class_names: tuple[str, ...]
    labels: Tensor
    resize: str = "warp"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    @abstractmethod
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Tensor:
        """One image (C, H, W), or those at a tensor of indices (B, C, H, W), in [0, 1]."""

    def at_side(self, index: int, side: int) -> Tensor:
        """One image (C, side, side) in [0, 1]; see `check_side`."""
        self.check_side(side)
        image: Tensor = self[index]
        return image

    def check_side(self, side: int) -> None:
        """Raise SettingError unless images are available at side x side."""
        if self.size[1:] != (side, side):
            raise SettingError(
                "patches.size",
                side,
                f"these images have only {self.size[1]}x{self.size[2]} pixels",
                f"set patches.size={self.size[1]} patches.reduction=1, or use an image folder",
            )

    def fingerprint(self, members: Tensor) -> str:
        """Hash of the images at the indices `members` (M,)."""
        digest = hashlib.sha256()
        for part in members.split(1024):
            digest.update(self[part].numpy().tobytes())
        return digest.hexdigest()

    def name_of(self, index: int) -> str:
        """Name of one image in lists."""
        return f"image {index}"

    def find(self, setting: str, choice: Any) -> Found:
        """Find the image that `initial` or `target` names.

        Args:
            setting: name of the setting, for messages.
            choice: a class name or index, `CLASS:N`, or the path of an image file.

        Raises:
            SettingError: if there is no such image.
        """
        text = str(choice)
        name, _, rank = text.partition(":")
        label = self.class_index(name)
        if label is None and (path_of(text).is_file() or (Path(text).suffix and not rank)):
            if not path_of(text).exists():
                rule = "there is no such image file"
                raise SettingError(
                    setting, f"{text:.200}", rule, "give an existing one, or a class"
                )
            return Found(load_image(text, self.size, self.resize), None)
        if label is None:
            raise SettingError(
                setting, f"{text:.200}", "no such class", f"{_RULE}. {self._near(name)}"
            )
        members = (self.labels == label).nonzero().flatten()
        number = _index(rank) if rank else 0
        if number is None or number >= len(members):
            here = f"images 0 to {len(members) - 1}" if len(members) else "no image"
            raise SettingError(setting, f"{text:.200}", f"class {name} has {here} here", _RULE)
        return Found(self[int(members[number])], label)

    def class_index(self, name: str) -> int | None:
        """Index of the class with this name or index; None if there is none."""
        if name in self.class_names:
            return self.class_names.index(name)
        index = _index(name)
        return None if index is None or index >= len(self.class_names) else index

    def _near(self, name: str) -> str:
        if len(self.class_names) <= _FEW:
            return f"Classes: {', '.join(self.class_names)}"
        return f"Of the classes, {similar(name, self.class_names)}"

    def draw(self, most: int, seed: int = 0) -> Tensor:
        """At most `most` images (n, C, H, W), drawn at random without repetition."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        images: Tensor = self[order[:most]]
        return images

    def mean_distance(self, most: int = 2000, seed: int = 0) -> float:
        """Mean L2 distance between two of (at most `most`) images, pixels in [0, 1] (Table 1)."""
        return self.mean_distances((1,), most, seed)[1]

    def mean_distances(
        self, squares: Sequence[int], most: int = 2000, seed: int = 0
    ) -> dict[int, float]:
        """Mean L2 distances after averaging over squares of pixels, by side of the square.

        An average of n x n pixels counts n times. Borders narrower than a square are left out, as
        are squares larger than the images.
        """
        images = self.draw(most, seed)
        return {
            square: pooled_distance(images, square)
            for square in squares
            if square <= min(self.size[1:])
        }


def _index(text: str) -> int | None:
    """Parse a number; None if it is not one or has more than `_DIGITS` digits."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


@dataclass(frozen=True)
class Images(ImageSet):
    """Labelled images in memory.

    Attributes:
        pixels: (M, C, H, W) uint8.
        labels: (M,) int64.
        class_names: one per class, by index.
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
