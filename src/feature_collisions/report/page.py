"""`report.html`: one file that shows a run from disk, without a network, and lets one drag it."""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.images import load_image, load_picture, to_uint8
from ..errors import SettingError
from ..evaluation.macro import composite_at_start, own_parts
from ..hull.hull import Hull
from .escaping import from_markdown
from .explorer import explored
from .figures import Step, histogram_figure
from .findings import claims


def write_up(
    directory: Path,
    hull: Hull,
    result: dict[str, Any],
    class_names: Sequence[str],
    tables: dict[str, str],
    steps: list[list[Step]],
) -> str:
    """The page.

    Args:
        directory: the run's; `images/worst_case.png` is shown where it is there.
        hull: the corners and their classifier, which is asked about the explorer's lattice.
        result: what `evaluation.json` holds.
        class_names: one a class.
        tables: Markdown tables by their headings; the first stands with the pictures.
        steps: the intermediate images, one row a corner.

    Returns:
        HTML. All names are escaped, and nothing but the page's own script may run in it.
    """
    summary, target = hull.summary, class_names[hull.target_class]
    initial = class_names[summary["initial_class"]]
    script, live, data = _text("page.js"), "", ""
    if len(hull.corners) > 1:
        found = explored(hull, class_names) | {"worst": result.get("worst_case_weights")}
        live = _explorer(hull, found)
        data = f'<script type="application/json" id="explorer-data">{_json(found)}</script>\n'
        data += f"<script>{script}</script>"
    first, *others = tables.items()
    parts = [
        row_of_images(hull, class_names),
        live,
        section("Beside the paper's numbers", html_table(first[1], "first"), first[0]),
        section("What was shown, and how", _claims(claims(result, target))),
        section("Over the hull", _chart(histogram_figure(result, target)), _HISTOGRAM),
        intermediate(steps),
        composites(directory, hull),
        worst(directory, hull, result, class_names),
        _details(others),
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(_text("page.html")).substitute(
        title=html.escape(f"{initial} to {target}: {summary['experiment']}"),
        experiment=html.escape(f"Feature collision · {summary['experiment']}"),
        headline=html.escape(f"{initial} that collides with {target}"),
        lead=_lead(hull),
        style=_text("page.css"),
        figures=_figures(result, target),
        body="\n".join(part for part in parts if part),
        script=data,
        script_hash=f"sha256-{digest}",
    )


_HISTOGRAM = (
    "Probability of the target's class at sampled points of the hull, for both samplers; the "
    "dashed line is the target's own. Bins are 0.02 wide."
)


def html_table(markdown: str, kind: str = "") -> str:
    """A Markdown table as HTML, everything in it escaped; empty for no table."""
    lines = markdown.splitlines()
    rows = [
        [from_markdown(cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in (lines[:1] + lines[2:])
    ]
    if not rows:
        return ""
    head, *body = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th"] + ["td"] * len(rows), rows, strict=False)
    )
    lines = [f"<tr>{row}</tr>" for row in body]
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _lead(hull: Hull) -> str:
    summary = hull.summary
    text = (
        f"{summary['classifier']}, layer {summary['layer']}, {len(hull.corners)} corners, "
        f"{summary['steps']} steps in {summary['seconds']:.2f} s. "
    )
    if summary["converged"]:
        return html.escape(text + "All corners converged.")
    return html.escape(text) + '<span class="warning">Not all corners converged.</span>'


def _figures(result: dict[str, Any], target: str) -> str:
    """The figures one looks for first."""
    entries = []
    if sample := result.get("dirichlet"):
        entries += [
            (f"{sample['accuracy']:.2%}", f"of {sample['samples']} sampled mixes are {target}"),
            (f"{sample['probability_mean']:.4f}", "mean probability of the target's class"),
        ]
    if (size := result.get("relative_size")) is not None:
        entries.append((f"{size:.2f} \u00d7", "between corners, of the distance between images"))
    if (worst_case := result.get("worst_case_probability")) is not None:
        entries.append((f"{worst_case:.4f}", "probability at the worst point found"))
    cards = [f"<div><dt>{html.escape(b)}</dt><dd>{html.escape(a)}</dd></div>" for a, b in entries]
    return f'<dl class="figures">{"".join(cards)}</dl>'


def _explorer(hull: Hull, found: dict[str, Any]) -> str:
    return Template(_text("explorer.html")).substitute(
        target=html.escape(found["classes"][0]),
        points=f"{len(found['values']) // len(found['classes']):,}",
        steps=found["steps"],
        kind=kind_of(hull),
        worst='<button name="worst">Worst point found</button>' if found["worst"] else "",
    )


def _claims(sentences: list[str]) -> str:
    """Each sentence with the kind of its evidence before it."""
    items = []
    for sentence in sentences:
        kind = next((word for word in _KINDS if sentence.startswith(word)), "Note")
        shown = " proved" if kind == "Proved" else ""
        items.append(
            f'<li><span class="tag{shown}">{_KINDS.get(kind, kind)}</span>'
            f"{html.escape(sentence)}</li>"
        )
    return f'<ul class="claims">{chr(10).join(items)}</ul>'


_KINDS = {
    "Not measured": "failed",
    "Sampled": "sampled",
    "Searched": "searched",
    "Walked": "walked",
    "Proved": "proved",
    "Bounds prove": "bounds",
    "Collision not proved": "not proved",
    "Class not proved": "not proved",
    "Edges not walked": "not proved",
}


def _chart(figure: Figure) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    encoded = base64.b64encode(content.getvalue()).decode()
    image = f'<img src="data:image/svg+xml;base64,{encoded}" alt="histogram of probabilities">'
    return f'<figure class="chart">{image}</figure>'


def _details(tables: list[tuple[str, str]]) -> str:
    shown = [
        f"<h3>{html.escape(heading)}</h3>\n{html_table(table)}"
        for heading, table in tables
        if table
    ]
    return section("Tables", "\n".join(shown)) if shown else ""


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
