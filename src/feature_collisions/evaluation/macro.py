"""Whether a person can tell the corners apart: large-scale differences beside noise (sec. 4)."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..data.images import load_image, to_uint8
from ..errors import SettingError
from ..hull.distances import SQUARE, visible_distances
from ..hull.hull import Hull
from .differences import similarity


def macro_share(images: Tensor) -> float | None:
    """How much of the mean distance between two images is left over 8x8 pixels' averages.

    Averages of images whose differences are constant over such squares are 8 times closer than the
    images, so their distance is taken times 8: 1 for those, near 0.1 for noise, 0.5 and more for a
    visible change.

    Args:
        images: (K, C, H, W), two or more.

    Returns:
        The share, or None for equal images, and for images under 8 pixels.
    """
    if min(images.shape[2:]) < SQUARE:
        return None
    whole = F.pdist(images.flatten(1)).mean()
    return float(visible_distances(images).mean() / whole) if whole > 0 else None


def macro_entries(hull: Hull) -> dict[str, Any]:
    """The entries of `evaluation.json` that tell visible differences from noise.

    `total_variation` is the mean over the corners of R(P) (sec. 4.1), of composites only.
    """
    variations = [entry.get("total_variation") for entry in hull.summary["corners"]]
    known = [float(value) for value in variations if isinstance(value, int | float)]
    return {
        "corner_distance_min": float(hull.corner_distances().min()),
        "macro_share": macro_share(hull.corners),
        "total_variation": sum(known) / len(known) if len(known) == len(variations) else None,
        "ssim_to_target": similarity(hull.corners, hull.target),
        "ssim_to_initial": similarity(hull.corners, hull.initial),
    }


def composite_at_start(directory: Path, size: tuple[int, int, int]) -> Tensor | None:
    """The composite that a run in `directory` started from, where its picture is there and whole.

    Args:
        directory: the run's, or a sweep's, whose jobs all start from one.
        size: (C, H, W) of the corners.
    """
    name = "images/composite.png"
    for path in [*directory.glob(name), *directory.glob(f"*/{name}")]:
        try:
            return load_image(path, size)
        except SettingError:
            continue
    return None


def own_parts(hull: Hull) -> Tensor:
    """What each corner has of its own: corner minus mean of the corners, on grey (K, C, H, W)."""
    return (0.5 + hull.corners - hull.corners.mean(0)).clamp(0, 1)


def composites_figure(hull: Hull, start: Tensor) -> Figure:
    """Seed, composite at the start, corners, target; below, what each corner has of its own.

    The lower row shows corner minus mean of the corners, on grey.

    Args:
        hull: the corners.
        start: (C, H, W), Eq. 5's composite.
    """
    numbers = [entry["corner"] for entry in hull.summary["corners"]]
    images = [hull.initial, start, *hull.corners, hull.target]
    titles = ["seed", "start, Eq. 5", *(f"corner {number}" for number in numbers), "target"]
    columns, side = len(images), 6.5 / len(images)
    figure = Figure(figsize=(side * columns, 2 * side + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, columns)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, image, title in zip(panels[0], images, titles, strict=True):
        axes.imshow(to_uint8(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=7)
    for axes, own in zip(panels[1, 2:], own_parts(hull), strict=False):
        axes.imshow(to_uint8(own), cmap="gray", vmin=0, vmax=255)
    panels[1, 1].text(0.5, 0.5, "minus the\ncorners'\nmean", fontsize=7, ha="center", va="center")
    return figure
