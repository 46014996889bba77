"""The settings of the patch database, the search in it, and the composite (section 4)."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from ..errors import SettingError
from ..paths import home
from .rules import SIDE, Group, OneOf, Share, Side, Whole


@dataclass
class PatchSettings(Group):
    """Where patches come from, how they are searched, and how they are pasted.

    The composite has the images' own size, S x S (`data.size`). Searched images are brought to
    `size` x `size` and reduced by `reduction`; a patch of `patch` x `patch` pixels of the composite
    is a window of patch * size / S pixels there, before the reduction.
    """

    group = "patches"
    root: str | None = None
    """A folder of images that patches are taken from; null: the run's own data."""
    fraction: Annotated[float, Share("1 takes every image", above_0=True)] = 0.1
    """The share of each class's images, in (0, 1], rounded down, but one of each at least. The
    authors take 0.1."""
    size: Side = 256
    """The side, in pixels, that images are brought to for the search; the authors' 256."""
    reduction: Side = 2
    """What that side is divided by before windows are compared: 2 searches 128x128 images, as the
    authors do."""
    search_stride: Side = 12
    """Pixels of `size` between one window and the next of a searched image; 12 gives 289 windows
    per image."""
    patch: Side = 56
    """n, the side of a patch in pixels of the composite; the authors' 56."""
    stride: Side = 7
    """Pixels of the composite between patches; 7 gives 625 of them at 224x224, as the authors have.
    """
    surround: Annotated[int, Whole(0, SIDE)] = 4
    """s, the pixels pasted around a patch on every side, which blend into its neighbours."""
    search: Annotated[str, OneOf("exact", "faiss")] = "exact"
    """`exact`, or `faiss`: a compressed index whose best candidates are ranked again, for millions
    of patches."""
    neighbours: Annotated[int, Whole(1, 1000)] = 1
    """k, the nearest sources per patch that are pasted. 1, as in the paper; more can say more."""
    logits: Annotated[str, OneOf("pixel", "grid")] = "pixel"
    """`pixel`: the paper's control parameters, one per pixel of a window; `grid`: `grid` x `grid`
    per window, smoothly enlarged, so neighbouring pixels change together."""
    grid: Annotated[int, Whole(2, 256)] = 16
    """The side of that grid, in numbers."""

    def __post_init__(self) -> None:
        self.root = home(self.root)

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        super().check()
        if self.search == "faiss" and find_spec("faiss") is None:
            raise SettingError(
                "patches.search",
                "faiss",
                "faiss is not installed",
                "`pip install 'feature_collisions[index]'`, or [gpu] for CUDA 12, or leave "
                "patches.search out",
            )
