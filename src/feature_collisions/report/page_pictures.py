"""The pictures of `report.html`, each group a section."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..data.images import load_image, load_picture, to_uint8
from ..errors import SettingError
from ..evaluation.macro import composite_at_start, own_parts
from ..hull.hull import Hull
from .pictures import Step

_CORNERS_BYTES = 3_500_000  # of pictures that must be exact, if they fit
_STEPS_BYTES = 500_000  # of intermediate images
_SMOOTH = 64  # pixels; smaller images are shown with their pixels as squares


def data_uri(image: Tensor, most: float) -> str:
    """A (C, H, W) image as PNG, or as JPEG where PNG takes more than `most` bytes."""
    picture = Image.fromarray(to_uint8(image))
    content, kind = io.BytesIO(), "png"
    picture.save(content, "png", optimize=True)
    if content.tell() > most:
        content, kind = io.BytesIO(), "jpeg"
        picture.save(content, "jpeg", quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def section(heading: str, content: str, note: str = "") -> str:
    """A section of the page; `content` is HTML, the rest is escaped."""
    note = f'<p class="note">{html.escape(note)}</p>\n' if note else ""
    return f"<section>\n<h2>{html.escape(heading)}</h2>\n{note}{content}\n</section>"


def _figure(uri: str, name: str, words: str, identity: str = "") -> str:
    name, words = html.escape(name), html.escape(words)
    identity = f' id="{identity}"' if identity else ""
    return (
        f'<figure><img src="{uri}" alt="{name}: {words}"{identity}>'
        f"<figcaption><b>{name}</b>{words}</figcaption></figure>"
    )


def kind_of(hull: Hull) -> str:
    """The class that shows the pixels of small images as squares."""
    return " pixels" if max(hull.corners.shape[2:]) < _SMOOTH else ""


def row_of_images(hull: Hull, class_names: Sequence[str]) -> str:
    """Initial, corners, target (Figures 2, 3 and 7)."""
    summary, most = hull.summary, _CORNERS_BYTES / (len(hull.corners) + 2)
    shown = [_figure(data_uri(hull.initial, most), "initial",
                     class_names[summary["initial_class"]])]  # fmt: skip
    for place, (image, entry) in enumerate(zip(hull.corners, summary["corners"], strict=True)):
        words = f"{class_names[entry['predicted_class']]}, {entry['probability']:.4f}"
        uri = data_uri(image, most)
        shown.append(_figure(uri, f"corner {entry['corner']}", words, f"corner-image-{place}"))
    words = f"{class_names[hull.target_class]}, {summary['target_probability']:.4f}"
    shown.append(_figure(data_uri(hull.target, most), "target", words))
    note = (
        "Under each corner: the class the classifier gives it, and its probability of the target's "
        "class."
    )
    return section("Initial image, corners, target", _grid(hull, shown), note)


def _grid(hull: Hull, shown: list[str]) -> str:
    columns = min(8, len(shown))
    return (
        f'<div class="pictures{kind_of(hull)}" style="--columns: {columns}">'
        f"{chr(10).join(shown)}</div>"
    )


def intermediate(rows: list[list[Step]]) -> str:
    """Two corners on their way (Figures 10 to 12)."""
    if not rows:
        return ""
    most = _STEPS_BYTES / sum(map(len, rows))
    grids = []
    for row in rows:
        shown = [
            _figure(data_uri(image, most), f"step {step}", f"corner {corner}")
            for corner, step, image in row
        ]
        kind = " pixels" if max(row[0][2].shape[1:]) < _SMOOTH else ""
        columns = max(5, len(row))
        grids.append(
            f'<div class="pictures{kind}" style="--columns: {columns}; margin-bottom: 16px">'
            f"{chr(10).join(shown)}</div>"
        )
    note = "Two of the corners on their way; all pictures are in images/steps."
    return section("Intermediate images", "\n".join(grids), note)


def composites(directory: Path, hull: Hull) -> str:
    """Where composites started, what each corner has of its own, and Figure 4's matches."""
    channels, height, width = hull.target.shape
    start = composite_at_start(directory, (channels, height, width))
    if start is None:
        return ""
    most = _STEPS_BYTES / (len(hull.corners) + 1)
    shown = [_figure(data_uri(start, most), "start", "the composite by Eq. 5")]
    for entry, own in zip(hull.summary["corners"], own_parts(hull), strict=True):
        shown.append(_figure(data_uri(own, most), f"corner {entry['corner']}", "of its own"))
    try:
        picture = data_uri(load_picture(directory / "images" / "patches.png"), _STEPS_BYTES)
        matches = f'<figure class="chart"><img src="{picture}" alt="patches and matches"></figure>'
    except SettingError:
        matches = ""
    note = (
        "Of its own: a corner minus the mean of the corners, on grey. Below, some patches of the "
        "seed, their nearest neighbours, and how these are pasted (Figure 4)."
    )
    return section("Composites", _grid(hull, shown) + matches, note)


def worst(directory: Path, hull: Hull, result: dict[str, Any], class_names: Sequence[str]) -> str:
    """The worst point found, where its picture is there."""
    if "worst_case_class" not in result:
        return ""
    channels, height, width = hull.target.shape
    try:
        image = load_image(directory / "images" / "worst_case.png", (channels, height, width))
    except SettingError:
        return ""
    name = class_names[result["worst_case_class"]]
    words = f"{name}; probability of the target's class {result['worst_case_probability']:.4f}"
    shown = _figure(data_uri(image, _STEPS_BYTES), "worst point found", words)
    return section("The worst point found", f'<div class="one{kind_of(hull)}">{shown}</div>')
