"""The histogram over the hull, and the intermediate images (Figures 10 to 12)."""

import re
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ..data.images import load_image, to_uint8
from ..errors import SettingError
from .tables import number

_COLUMNS, _CORNERS = 8, 2
_BLUE, _VERMILION = "#0072B2", "#D55E00"  # Okabe and Ito's, told apart by the colour-blind
_WIDTH = 6.5  # inches, a page's text
_LAWS = {"dirichlet": "uniform on the simplex", "stick_breaking": "stick-breaking (the authors')"}

Step = tuple[int, int, Tensor]


def intermediate_images(directory: Path, size: tuple[int, int, int]) -> list[list[Step]]:
    """The pictures kept in `images/steps`, of two corners, at 8 steps at most.

    Args:
        directory: the run's.
        size: (C, H, W) of the corners.

    Returns:
        One row a corner of (corner, step, image); pictures that are missing or damaged are left
        out.
    """
    found: dict[int, dict[int, Path]] = {}
    name = "images/steps/step_*_corner_*.png"
    for path in [*directory.glob(name), *directory.glob(f"*/{name}")]:  # */: a sweep's jobs
        if match := re.fullmatch(r"step_(\d+)_corner_(\d+)", path.stem):
            step, corner = int(match[1]), int(match[2])
            found.setdefault(corner, {})[step] = path
    rows = []
    for corner, paths in sorted(found.items())[:_CORNERS]:
        row = []
        for step in spread(sorted(paths), _COLUMNS):
            try:
                row.append((corner, step, load_image(paths[step], size)))
            except SettingError:
                continue
        if row:
            rows.append(row)
    return rows


def spread(values: list[int], most: int) -> list[int]:
    """`most` of the values at most, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def intermediate_figure(rows: list[list[Step]]) -> Figure:
    """Two corners on their way, as Figures 10 to 12 show them."""
    columns = max(len(row) for row in rows)
    side = min(1.2, _WIDTH / columns)
    figure = Figure(figsize=(side * columns, (side + 0.2) * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for row, line in zip(rows, panels, strict=True):
        for (corner, step, image), axes in zip(row, line, strict=False):
            axes.imshow(to_uint8(image), cmap="gray", vmin=0, vmax=255)
            axes.set_title(f"corner {corner}\nstep {step}", fontsize=7)
    return figure


def histogram_figure(result: dict[str, Any], target: str) -> Figure:
    """How probable the target's class is over the hull, one panel a sampler."""
    figure = Figure(figsize=(_WIDTH, 2.3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (law, words) in zip(figure.subplots(1, 2, sharey=True), _LAWS.items(), strict=True):
        sample = result.get(law)
        if sample is None:
            axes.set_title(f"{words}\nnot measured", fontsize=8)
            continue
        counts = sample["probability_histogram"]
        bins = len(counts)
        shares = [100 * count / sample["samples"] for count in counts]
        places = [(k + 0.5) / bins for k in range(bins)]
        axes.bar(places, shares, width=1 / bins, color=_BLUE)
        axes.axvline(result["target_probability"], color=_VERMILION, lw=1.2, ls="--")
        least, mean = (number(sample[f"probability_{k}"], ".4f") for k in ("min", "mean"))
        axes.set_title(f"{words}\nleast {least}, mean {mean}", fontsize=8)
        axes.set_xlabel(f"probability of {_short(target)}", fontsize=8, parse_math=False)
        axes.set_xlim(0, 1.01)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("points, %", fontsize=8)
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 30 else name[:29] + "…"
