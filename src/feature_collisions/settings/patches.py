"""The settings of the patch database, the search in it, and the composite (section 4)."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated

from ..errors import SettingError
from ..paths import home
from .rules import SIDE, Group, OneOf, Share, Side, Whole


@dataclass
class PatchSettings(Group):
    """The source, search and pasting of patches.

    The composite has the images' size, S x S (`data.size`). Searched images are resized to
    `size` x `size` and reduced by `reduction`. A patch of `patch` x `patch` pixels of the composite
    is a window of patch * size / S pixels there, before the reduction.
    """

    group = "patches"
    root: str | None = None
    """Folder of the images that patches are taken from; null: the run's data."""
    fraction: Annotated[float, Share("1 takes every image", above_0=True)] = 0.1
    """Share of each class's images, in (0, 1], rounded down, at least one per class. The authors
    use 0.1."""
    size: Side = 256
    """Side in pixels to which searched images are resized; 256 as in the paper."""
    reduction: Side = 2
    """Divisor of that side before windows are compared: 2 gives images of 128x128, as the authors
    use."""
    search_stride: Side = 12
    """Pixels of `size` between one window and the next of a searched image; 12 gives 289 windows
    per image."""
    patch: Side = 56
    """n, the side of a patch in pixels of the composite; 56 as in the paper."""
    stride: Side = 7
    """Pixels of the composite between patches; 7 gives 625 patches at 224x224, as in the paper."""
    surround: Annotated[int, Whole(0, SIDE)] = 4
    """s, the width in pixels of the surround of a patch, which blends into its neighbours."""
    search: Annotated[str, OneOf("exact", "faiss")] = "exact"
    """`exact`, or `faiss` for millions of patches: a compressed index, whose best candidates are
    ranked exactly."""
    neighbours: Annotated[int, Whole(1, 1000)] = 1
    """k, the number of nearest sources pasted per patch. 1 as in the paper; more sources can match
    more features."""
    logits: Annotated[str, OneOf("pixel", "grid")] = "pixel"
    """Control parameters per window: `pixel`, one per pixel as in the paper; `grid`, `grid` x
    `grid` smoothly enlarged, so neighbouring pixels change together."""
    grid: Annotated[int, Whole(2, 256)] = 16
    """Side of that grid."""

    def __post_init__(self) -> None:
        self.root = home(self.root)

    def validate(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        super().validate()
        if self.search == "faiss" and find_spec("faiss") is None:
            raise SettingError(
                "patches.search",
                "faiss",
                "faiss is not installed",
                "`pip install 'feature_collisions[index]'`, or [gpu] for CUDA 12, or leave "
                "patches.search out",
            )
