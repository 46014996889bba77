"""Sheets of pictures in rows, for figures and the page."""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..data.images import load_image, load_picture
from ..errors import SettingError
from ..graph.graph import evaluating
from ..graph.logits import predict
from ..hull.hull import Hull
from ..patches.database import PatchDatabase, source
from ..patches.nearest_patches import Matches
from ..patches.paste import cut_out
from ..percent import percent
from ..runs import evaluation
from ..settings.patches import PatchSettings
from .words import Words

_COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#F0E442")  # Okabe and Ito's
_GREEN = "#00C000"
_WIDEST = 8  # pictures in a row
_WORST = {
    "worst_case": "worst point found",
    "worst_features": "point of the largest feature error found",
}
_ON_THEIR_WAY = 2  # corners with intermediate images


class Box(NamedTuple):
    """A coloured rectangle on a picture: upper left corner and size, in pixels."""

    row: int
    column: int
    height: int
    width: int
    colour: str


class Panel(NamedTuple):
    """A picture and its caption.

    Attributes:
        image: (C, H, W) in [0, 1].
        name: its name.
        words: its caption.
        boxes: marked regions.
        mixed: whether it is a corner in the page's explorer.
    """

    image: Tensor
    name: str
    words: str = ""
    boxes: tuple[Box, ...] = ()
    mixed: bool = False


class Sheet(NamedTuple):
    """Rows of panels; None leaves a gap.

    Attributes:
        name: of the figure's files.
        heading: on the page.
        rows: of panels.
        note: explanation.
        columns: number of panels in a row; 0 for all.
    """

    name: str
    heading: str
    rows: Sequence[Sequence[Panel | None]]
    note: str = ""
    columns: int = 0

    @property
    def widest(self) -> int:
        """Number of panels in the longest row."""
        return self.columns or max(len(row) for row in self.rows)


def hull_sheets(
    directory: Path, hull: Hull, result: evaluation.Evaluation, words: Words
) -> list[Sheet]:
    """All sheets of a hull; missing or damaged pictures in `directory` are left out."""
    channels, height, width = hull.target.shape
    size = (channels, height, width)
    found = [
        corners_sheet(hull, words, composite_at_start(directory, size)),
        differences_sheet(hull, result.boxes),
        steps_sheet(directory, size),
        _picture_sheet(directory),
        *(
            _worst_sheet(directory, size, picture, caption)
            for picture, caption in words.of_worst_points(result).items()
        ),
    ]
    return [sheet for sheet in found if sheet]


def corners_sheet(hull: Hull, words: Words, start: Tensor | None = None) -> Sheet:
    """Initial image, corners, their even mix, target (Figures 2, 3 and 7).

    Args:
        hull: the corners.
        words: terms for the network's output.
        start: the initial composite, if any. A second row then shows what is unique to each
            corner: corner minus mean of the corners, on grey.
    """
    summary, entries = hull.summary, hull.summary.corners
    panels: list[Panel | None] = [
        Panel(image, f"corner {entry.corner}",
              words.of_corner(entry), mixed=True)
        for image, entry in zip(hull.corners, entries, strict=True)
    ]  # fmt: skip
    if len(entries) > 1:
        panels.append(_even_mix(hull, words))
    first = Panel(hull.initial, "initial", words.of_initial(summary))
    last = Panel(hull.target, "target", words.of_target(summary))
    heading = "Initial image, corners, target"
    note = words.under_pictures
    if start is None:
        row = [first, *panels, last]
        rows = [row[k : k + _WIDEST] for k in range(0, len(row), _WIDEST)]
        return Sheet("corners", heading, rows, note, min(_WIDEST, len(row)))
    parts = (0.5 + hull.corners - hull.corners.mean(0)).clamp(0, 1)
    own = [Panel(part, f"corner {entry.corner}", "unique to it")
           for part, entry in zip(parts, entries, strict=True)]  # fmt: skip
    rows = [[first, Panel(start, "start", "the composite by Eq. 5"), *panels, last],
            [None, None, *own]]  # fmt: skip
    note += " Below: what is unique to each, the corner minus the mean of the corners, on grey."
    return Sheet("corners", heading, rows, note)


@torch.inference_mode()
def _even_mix(hull: Hull, words: Words) -> Panel:
    """The centroid of the hull, with its class."""
    mix = hull.points(torch.full((1, len(hull.corners)), 1 / len(hull.corners)))
    with evaluating(hull.model):
        (said,) = hull.output.of_images(predict(hull.model, mix))
    return Panel(mix[0], "their even mix", words.of_corner(said))


def differences_sheet(hull: Hull, boxes: Sequence[evaluation.Box]) -> Sheet | None:
    """The corners with coloured boxes on the regions that differ most, as in Figure 8 b."""
    drawn = tuple(
        Box(box.row, box.column, box.height, box.width, colour)
        for box, colour in zip(boxes, _COLOURS, strict=False)
    )
    if not drawn:
        return None
    row = [Panel(image, f"corner {entry.corner}", boxes=drawn)
           for image, entry in zip(hull.corners, hull.summary.corners, strict=True)]  # fmt: skip
    rows = [row[k : k + _WIDEST] for k in range(0, len(row), _WIDEST)]
    share = sum(box.share for box in boxes)
    note = f"The boxes hold {percent(share)} of the corners' variance (Figure 8 b)."
    return Sheet("differences", "Where the corners differ most", rows, note)


def steps_sheet(directory: Path, size: tuple[int, int, int]) -> Sheet | None:
    """Two corners during the search (Figures 10 to 12), at most 8 steps.

    Args:
        directory: of a run or a sweep; the pictures are in `images/steps`.
        size: (C, H, W) of the corners.
    """
    found: dict[int, dict[int, Path]] = {}
    name = "images/steps/step_*_corner_*.png"
    for path in [*directory.glob(name), *directory.glob(f"*/{name}")]:  # */: a sweep's jobs
        if match := re.fullmatch(r"step_(\d+)_corner_(\d+)", path.stem):
            step, corner = int(match[1]), int(match[2])
            found.setdefault(corner, {})[step] = path
    rows = []
    for corner, paths in sorted(found.items())[:_ON_THEIR_WAY]:
        steps = spread(sorted(paths), _WIDEST)
        images = [(step, _loaded([paths[step]], size)) for step in steps]
        if row := [Panel(x, f"corner {corner}", f"step {k}") for k, x in images if x is not None]:
            rows.append(row)
    note = "Two of the corners on their way; all pictures are in images/steps."
    return Sheet("intermediate", "Intermediate images", rows, note) if rows else None


def spread(values: list[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(k * (len(values) - 1) / (most - 1))] for k in range(most)]


def composite_at_start(directory: Path, size: tuple[int, int, int]) -> Tensor | None:
    """The initial composite of a run; None if its picture is missing or damaged.

    Args:
        directory: of a run, or of a sweep, whose jobs have the same one.
        size: (C, H, W) of the corners.
    """
    name = "images/composite.png"
    return _loaded([*directory.glob(name), *directory.glob(f"*/{name}")], size)


def _loaded(paths: Sequence[Path], size: tuple[int, int, int] | None = None) -> Tensor | None:
    """The first picture that exists and can be read: (C, H, W), at its own size by default."""
    for path in paths:
        with suppress(SettingError):
            return load_image(path, size) if size else load_picture(path)
    return None


def _picture_sheet(directory: Path) -> Sheet | None:
    """Figure 4, drawn by `matches_sheet` at the start of the search."""
    if (picture := _loaded([directory / "images" / "patches.png"])) is None:
        return None
    note = (
        "Some patches of the seed, their nearest neighbours, and how these are pasted (Figure 4)."
    )
    panel = Panel(picture, "patches", "query, match, pasted")
    return Sheet("patches", "Patches and their matches", [[panel]], note, 2)


def _worst_sheet(
    directory: Path, size: tuple[int, int, int], picture: str, words: str
) -> Sheet | None:
    image = _loaded([directory / "images" / f"{picture}.png"], size) if words else None
    if image is None:
        return None
    name = _WORST[picture]
    return Sheet(picture, f"The {name}", [[Panel(image, name, words)]], columns=5)


def matches_sheet(
    seed: Tensor,
    database: PatchDatabase,
    matches: Matches,
    queries: list[int],
    settings: PatchSettings,
) -> Sheet:
    """Figure 4, one row per query: the query image, the nearest neighbour's, the source image.

    Green boxes mark the query patch, its match, and the patch in the pasted window: n pixels with a
    surround of s on every side, on a blank image.

    Args:
        seed: (C, S, S) in [0, 1], the image of the queries.
        database: source of the matches.
        matches: of all patches of the seed, row by row.
        queries: indices of the patches to show.
        settings: n, stride and s.

    Raises:
        SettingError: if a query does not exist.
    """
    side, patch = seed.shape[-1], settings.patch
    across = (side - patch) // settings.stride + 1
    scale = side / database.images.shape[-1]
    rows = []
    for query in queries:
        if not 0 <= query < len(matches.image):
            raise SettingError(
                f"query {query}", None, f"the seed has patches 0 to {len(matches.image) - 1}"
            )
        nearest = Matches(*(part[query : query + 1, :1] for part in matches))
        top, left = (settings.stride * step for step in divmod(query, across))
        here = Box(top, left, patch, patch, _GREEN)
        row, column = (round(float(part) * scale) for part in (nearest.row, nearest.column))
        there = Box(row, column, patch, patch, _GREEN)
        window = cut_out(database, nearest, settings, side)[0]
        pasted = _on_blank(window, (top, left), settings.surround, side)
        matched = source(database, int(nearest.image), side)
        rows.append(
            [
                Panel(seed, "query image", boxes=(here,)),
                Panel(matched, "nearest neighbour", boxes=(there,)),
                Panel(pasted, "source image", boxes=(here,)),
            ]
        )
    return Sheet("patches", "Patches and their matches", rows)


def _on_blank(window: Tensor, corner: tuple[int, int], surround: int, side: int) -> Tensor:
    """The pasted window (C, n + 2 s, n + 2 s) on a white image (C, side, side)."""
    blank = torch.ones(len(window), side + 2 * surround, side + 2 * surround)
    top, left = corner
    blank[:, top : top + window.shape[1], left : left + window.shape[2]] = window
    inside = slice(surround, surround + side)
    return blank[:, inside, inside]
