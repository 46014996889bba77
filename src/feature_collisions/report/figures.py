"""Figures of a run: histograms, intermediate images (Figures 10 to 12), matches (Figure 4)."""

import io
import re
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..data.files import write_atomically
from ..data.images import load_image, to_uint8
from ..errors import SettingError
from ..patches.database import PatchDatabase, source
from ..patches.paste import cut_out
from ..patches.search import Matches
from ..settings.patches import PatchSettings
from .tables import number


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, in the format of the path's ending."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=300)
    write_atomically(path, buffer.getvalue())


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


_GREEN = "#00C000"


def match_figure(
    seed: Tensor,
    database: PatchDatabase,
    matches: Matches,
    queries: list[int],
    settings: PatchSettings,
) -> Figure:
    """One row a query: the query image, the nearest neighbour's image, the source image (Figure 4).

    Green boxes show the query patch, its match, and the patch within what is pasted: n pixels, with
    a surround of s on every side, on a blank image.

    Args:
        seed: (C, S, S) in [0, 1], whose patches were searched for.
        database: what was searched.
        matches: of all patches of the seed, row by row.
        queries: which of them to show.
        settings: n, stride and s.

    Raises:
        SettingError: for a query that does not exist.
    """
    side, patch = seed.shape[-1], settings.patch
    across = (side - patch) // settings.stride + 1
    scale = side / database.images.shape[-1]
    figure = Figure(figsize=(4.5, 1.6 * len(queries)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(queries), 3, squeeze=False)
    for row, query in zip(panels, queries, strict=True):
        if not 0 <= query < len(matches.image):
            raise SettingError(f"query {query}: the seed has patches 0 to {len(matches.image) - 1}")
        nearest = Matches(*(part[query : query + 1, :1] for part in matches))
        place = [settings.stride * step for step in divmod(query, across)]
        there = [round(float(part) * scale) for part in (nearest.row, nearest.column)]
        pasted = cut_out(database, nearest, settings, side)[0]
        pictures = [
            ("query image", seed, place),
            ("nearest neighbour", source(database, int(nearest.image), side), there),
            ("source image", _on_blank(pasted, place, settings.surround, side), place),
        ]
        for axes, (title, image, (top, left)) in zip(row, pictures, strict=True):
            axes.imshow(to_uint8(image), cmap="gray", vmin=0, vmax=255)
            axes.add_patch(
                Rectangle((left - 0.5, top - 0.5), patch, patch, fill=False, ec=_GREEN, lw=1.5)
            )
            axes.set(xticks=[], yticks=[])  # the frame stays, or the blank image has no edge
            axes.set_title(title, fontsize=7)
    return figure


def _on_blank(window: Tensor, place: list[int], surround: int, side: int) -> Tensor:
    """The pasted window (C, n + 2 s, n + 2 s) on a white image (C, side, side)."""
    blank = torch.ones(len(window), side + 2 * surround, side + 2 * surround)
    top, left = place
    blank[:, top : top + window.shape[1], left : left + window.shape[2]] = window
    inside = slice(surround, surround + side)
    return blank[:, inside, inside]
