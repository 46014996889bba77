"""The settings of the patch database, the search in it, and the composite (section 4)."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ..errors import SettingError
from .rules import SIDE, at_least, one_of, whole


@dataclass
class PatchSettings:
    """Where patches come from, how they are searched, and how they are pasted.

    The composite has the images' own size, S x S (`data.size`). Searched images are brought to
    `size` x `size` and reduced by `reduction`; a patch of `patch` x `patch` pixels of the composite
    is a window of patch * size / S pixels there, before the reduction.

    Attributes:
        root: folder of images to take patches from; null: the run's own data.
        fraction: of each class's images, rounded down, but at least one of each.
        size, reduction: of searched images; 256 and 2 keep them at 128x128.
        search_stride: between an image's windows, in pixels of `size`.
        patch, stride, surround: n, the distance between patches and s, in the composite's pixels.
        search: `exact`, or `faiss`: a compressed index whose best are ranked again.
        neighbours: sources per patch, the nearest k.
        logits: `pixel`, the paper's control parameters, or `grid`: `grid` x `grid` numbers a
            window, smoothly enlarged.
    """

    root: str | None = None
    fraction: float = 0.1
    size: int = 256
    reduction: int = 2
    search_stride: int = 12
    patch: int = 56
    stride: int = 7
    surround: int = 4
    search: str = "exact"
    neighbours: int = 1
    logits: str = "pixel"
    grid: int = 16

    def check(self) -> None:
        """Raise SettingError for the first setting that breaks its rule."""
        for name in ("size", "reduction", "search_stride", "patch", "stride"):
            whole(f"patches.{name}", getattr(self, name), 1, SIDE)
        whole("patches.neighbours", self.neighbours, 1, 1000)
        whole("patches.surround", self.surround, 0, SIDE)
        whole("patches.grid", self.grid, 2, 256)
        at_least("patches.fraction", self.fraction, 0)
        if not 0 < self.fraction <= 1:
            raise SettingError(
                f"patches.fraction={self.fraction}: must lie in (0, 1]; 1 takes every image"
            )
        one_of("patches.search", self.search, ("exact", "faiss"))
        if self.search == "faiss":
            _check_faiss()
        one_of("patches.logits", self.logits, ("pixel", "grid"))


_INSTALL = (
    "`pip install 'feature_collisions[index]'` for the CPU, or `pip install "
    "'feature_collisions[gpu]'` for a GPU with CUDA 12"
)


def _check_faiss() -> None:
    """Raise SettingError unless exactly one package has brought the module `faiss`."""
    packages = [name for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12") if _is_there(name)]
    if len(packages) > 1:
        named = " and ".join(packages)
        raise SettingError(
            f"patches.search=faiss: {named} are installed over each other, for both bring the "
            f"module faiss; `pip uninstall -y {' '.join(packages)}`, then one of them: {_INSTALL}"
        )
    if not packages and find_spec("faiss") is None:
        raise SettingError(
            f"patches.search=faiss: faiss is not installed; {_INSTALL} (not both: they overwrite "
            "each other), or leave patches.search out, which searches exactly"
        )


def _is_there(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
