"""Matplotlib figures: sheets of pictures, histograms, sizes over many runs."""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from ..data.files import write_atomically
from ..data.images import to_uint8
from ..escaping import for_line
from ..evaluation.survey import Interval, Rows
from ..hull.statistics import OUTCOMES
from ..percent import percent
from ..runs.evaluation import Evaluation, Proofs
from ..runs.rows import Row
from .findings import SAMPLER_WORDS, settled
from .sheets import Sheet
from .tables import number
from .words import Words

_COLOURS = _BLUE, _, _VERMILION = "#0072B2", "#E69F00", "#D55E00"  # Okabe and Ito's
_FROM_INITIAL = "initial_distance_mean"
_LABELS = {_FROM_INITIAL: "distance from the initial image"}
_LINE = "#dfe3e8"  # frame of a picture, so white pictures have an edge
_WIDTH = 6.5  # inches, the width of a page's text
_COLUMNS = 2  # of the user's columns in a survey's figure
_LETTER = 0.057  # inches: width of a letter of a 7-point title
_POINT = 4  # pixels: half a point's width
_BESIDE = [  # possible positions of a point's label: offset in points, alignment
    ((3, 3), "left", "bottom"), ((3, -3), "left", "top"),
    ((-3, 3), "right", "bottom"), ((-3, -3), "right", "top"),
    ((3, 11), "left", "bottom"), ((3, -11), "left", "top"),
]  # fmt: skip
_LINES, _GAP = 0.125, 0.08  # inches: a line of 7 points, and the space below a row

# Matplotlib reads the `matplotlibrc` of the current folder, which is untrusted: it could change
# every figure, and run LaTeX for their texts.
_as_shipped = rc_context(dict(rcParamsDefault))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the path's extension."""
    write_atomically(path, encoded(figure, path.suffix[1:]))


@_as_shipped
def encoded(figure: Figure, form: str) -> bytes:
    """Encode a figure as png, pdf or svg."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=300)
    figure.set_layout_engine("none")  # its parts stay where they are, in other formats as well
    return buffer.getvalue()


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@_as_shipped
def sheet_figure(sheet: Sheet) -> Figure:
    """The pictures of a sheet, each with its name and caption."""
    columns = max(len(row) for row in sheet.rows)
    side = min(1.3, _WIDTH / columns)
    letters = min(15, int(side / _LETTER))
    titles = [[_title(letters, panel.name, panel.words) if panel else "" for panel in row]
              for row in sheet.rows]  # fmt: skip
    heights = []
    for row, lines in zip(sheet.rows, titles, strict=True):
        shape = next(panel.image.shape[1:] for panel in row if panel)
        most = max(line.count("\n") for line in lines)
        heights.append(side * shape[0] / shape[1] + _LINES * (1 + most) + _GAP)
    figure = _figure(side * columns, sum(heights))
    panels = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[], anchor="S")  # the remaining space is for the title
        axes.set_axis_off()
    for row, line, words in zip(sheet.rows, panels, titles, strict=True):
        for panel, axes, title in zip(row, line, words, strict=False):
            if panel is None:
                continue
            axes.set_axis_on()
            axes.spines[:].set_color(_LINE)
            axes.imshow(to_uint8(panel.image), cmap="gray", vmin=0, vmax=255)
            axes.set_title(title, fontsize=7, parse_math=False)
            for top, left, height, width, colour in panel.boxes:
                at = (left - 0.5, top - 0.5)
                axes.add_patch(Rectangle(at, width, height, fill=False, ec=colour, lw=1.5))
    return figure


def _title(letters: int, *parts: str) -> str:
    return "\n".join(line for part in parts for line in textwrap.wrap(part, letters))


@_as_shipped
def histogram_figure(result: Evaluation, said: Words) -> Figure:
    """Histogram of the probability (or cosine) over the hull, one panel per sampler."""
    label, line = said.histogram(result)
    figure = _figure(_WIDTH, 2.3)
    for axes, (sampler, words) in zip(
        figure.subplots(1, 2, sharey=True), SAMPLER_WORDS.items(), strict=True
    ):
        sample = result.get(sampler)
        if sample is None:
            axes.set_title(f"{words}\nnot measured", fontsize=8)
            continue
        counts = sample[f"{said.figure}_histogram"]
        bins = len(counts)
        shares = [100 * count / sample.samples for count in counts]
        middles = [(k + 0.5) / bins for k in range(bins)]
        axes.bar(middles, shares, width=1 / bins, color=_BLUE)
        axes.axvline(line, color=_VERMILION, lw=1.2, ls="--")
        least, mean = (number(sample[f"{said.figure}_{k}"], ".4f") for k in ("min", "mean"))
        axes.set_title(f"{words}\nleast {least}, mean {mean}", fontsize=8)
        name = label if len(label) <= 45 else f"{label[:44]}…"
        axes.set_xlabel(name, fontsize=8, parse_math=False)
        axes.set_xlim(0, 1.01)
        _plain(axes)
    figure.axes[0].set_ylabel("points, %", fontsize=8)
    figure.get_layout_engine().set(wspace=0.08)  # type: ignore[union-attr, call-arg]
    return figure


_FACES = 20  # triangles in one figure
_STATES = {"proved": _BLUE, "undecided": "#FFFFFF", "refuted": _VERMILION}


@_as_shipped
def faces_figure(proof: Proofs) -> Figure | None:
    """The hull's triangles, with parts coloured by their status (`prove_faces`).

    At most `_FACES` are shown, those with the smallest proved share. None if no part is decided.
    """
    faces = proof.faces
    if faces is None or not settled(faces):
        return None
    triangles = sorted(faces.triangles, key=lambda triangle: triangle.share_proved)[:_FACES]
    columns = min(5, len(triangles))
    rows = math.ceil(len(triangles) / columns)
    figure = _figure(_WIDTH, _WIDTH / columns * rows + 0.4)
    panels = [*figure.subplots(rows, columns, squeeze=False).flat]
    for axes in panels:
        axes.set_axis_off()
    for triangle, axes in zip(triangles, panels, strict=False):
        corners = triangle.corners
        for part in triangle.parts:  # the second corner to the right, the third on top
            places = [(u + v / 2, v * math.sqrt(0.75)) for u, v in part.vertices]
            axes.fill(*zip(*places, strict=True), fc=_STATES[part.state], ec=_LINE, lw=0.1)
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.15, 1.05), aspect="equal")
        for name, (x, y) in zip(corners, ((0, -0.05), (1, -0.05), (0.5, 0.99)), strict=True):
            axes.text(x, y, name, fontsize=7, ha="center", va="top" if y < 0.5 else "center")
        axes.set_title(f"{percent(triangle.share_proved)} proved", fontsize=7)
    names = [Patch(fc=colour, ec=_LINE, label=state) for state, colour in _STATES.items()]
    figure.legend(handles=names, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


@_as_shipped
def sizes_figure(rows: Sequence[Row]) -> Figure | None:
    """Relative size against every weight of the loss that differs; None if none does.

    For nearness a second panel shows it against the distance from the initial image.
    """
    known = [row for row in rows if row.relative_size is not None]
    names = dict.fromkeys(f"loss.{name}" for row in known for name in row.loss)
    differing = [name for name in names if len({row.at(name) for row in known}) > 1]
    if not differing:
        return None
    if "loss.nearness" in differing:
        differing.append(_FROM_INITIAL)
    figure = _figure(min(_WIDTH, 3.25 * len(differing)), 2.6)
    panels = figure.subplots(1, len(differing), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, differing, strict=True):
        for outcome, colour, marker in zip(OUTCOMES, _COLOURS, "osx", strict=True):
            chosen = [row for row in known if row.outcome == outcome]
            points = [(row.at(name), row.relative_size) for row in chosen]
            if points := [point for point in points if point[0] is not None]:
                axes.plot(*zip(*points, strict=True), marker, color=colour, ms=5)
        if name != _FROM_INITIAL and all((row.at(name) or 0) > 0 for row in known):
            axes.set_xscale("log")
        axes.set_xlabel(_LABELS.get(name, name.removeprefix("loss.")), fontsize=8)
        _plain(axes)
    panels[0].set_ylabel("relative size", fontsize=8)
    panels[0].set_ylim(bottom=0)
    kinds = zip(OUTCOMES, _COLOURS, "osx", strict=True)
    seen = [Line2D([], [], color=c, marker=m, ls="", ms=5, label=name) for name, c, m in kinds]
    figure.legend(handles=seen, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


@_as_shipped
def survey_figure(
    rows: Rows,
    found: Mapping[str, Mapping[str, Interval | None]],
    extra: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Each network's sizes, and their means against inactive units and the user's columns.

    Args:
        rows: what was measured, by network.
        found: the means over the pairs, with their intervals.
        extra: the user's columns, by network.
    """
    networks = list(rows)
    places: dict[str, dict[str, float | None]] = {
        "share of inactive units": {name: _mean(found[name]["blind_share"]) for name in networks}
    }
    for column in list(next(iter(extra.values()), {}))[:_COLUMNS]:
        places[column] = {name: extra[name][column] for name in networks}
    height = max(2.6, 0.24 * len(networks) + 0.9)
    lines = -(-(1 + len(places)) // 2)
    figure = _figure(_WIDTH, height * lines)
    panels = figure.subplots(lines, 2, squeeze=False).flat
    first = next(panels)
    for line, name in enumerate(networks):
        sizes = [row.relative_size for row in rows[name]]
        first.plot(sizes, [line] * len(sizes), "o", color=_LINE, ms=3, zorder=1)
        _with_interval(first, found[name]["relative_size"], line, upright=False)
    first.set_yticks(range(len(networks)), [_short(name) for name in networks], fontsize=7)
    first.invert_yaxis()
    first.set_xlabel("relative size", fontsize=8)
    for axes, (column, place_of) in zip(panels, places.items(), strict=False):
        for name in networks:
            place, size = place_of[name], found[name]["relative_size"]
            if place is None or size is None:
                continue
            _with_interval(axes, size, place, upright=True)
            axes.annotate(_short(name), (place, size.mean), _BESIDE[0][0], fontsize=6,
                          textcoords="offset points")  # fmt: skip
        axes.set_xlabel(column, fontsize=8, parse_math=False)
        axes.set_ylabel("relative size", fontsize=8)
        axes.margins(x=0.15)
    for axes in figure.axes:
        _plain(axes)
        if not axes.has_data():
            axes.set_axis_off()
    figure.draw_without_rendering()  # computes the layout, on which overlaps depend
    for axes in figure.axes:
        _keep_labels_apart(axes)
    return figure


def _keep_labels_apart(axes: Axes) -> None:
    """Place each label on the side of its point with least overlap."""
    labels = [text for text in axes.texts if isinstance(text, Annotation)]
    points = [axes.transData.transform(label.xy) for label in labels]
    taken = [Bbox.from_extents(*(point - _POINT), *(point + _POINT)) for point in points]
    for label in labels:
        covered = []
        for offset, sideways, upright in _BESIDE:
            label.set(position=offset, ha=sideways, va=upright)
            covered.append(_shared_area(label.get_window_extent(), taken, axes.bbox))
        offset, sideways, upright = _BESIDE[covered.index(min(covered))]
        label.set(position=offset, ha=sideways, va=upright)
        taken.append(label.get_window_extent())


def _shared_area(box: Bbox, taken: list[Bbox], axes: Bbox) -> float:
    """Area of a label that overlaps others, or is outside the axes."""
    inside = Bbox.intersection(box, axes)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0.0)
    shared = (Bbox.intersection(box, each) for each in taken)
    return outside + sum(each.width * each.height for each in shared if each)


def _mean(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


def _with_interval(axes: Any, size: Interval | None, place: float, upright: bool) -> None:
    if size is None:
        return
    ends = [size.mean if end is None else end for end in size[1:]]
    for sizes, places, style in ((ends, [place] * 2, "-"), ([size.mean], [place], "o")):
        at = (places, sizes) if upright else (sizes, places)
        axes.plot(*at, style, color=_BLUE, lw=1, ms=4)


def _short(name: str) -> str:
    text = for_line(name.rpartition(":")[2]).replace("$", r"\$")  # $ starts a formula
    return text if len(text) <= 24 else f"{text[:23]}…"


def _plain(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
