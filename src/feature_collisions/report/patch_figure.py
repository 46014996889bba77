"""Figure 4: how a source image comes from a query."""

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..data.images import to_uint8
from ..errors import SettingError
from ..patches.database import PatchDatabase, source
from ..patches.paste import cut_out
from ..patches.search import Matches
from ..settings.patches import PatchSettings

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
