"""Tables and figures of a hull, in the shape of the paper's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .files import write_atomically, write_text
from .hull import Hull
from .images import to_uint8


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, numbers' side to the right."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
             for row in table]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def print_corners(hull: Hull, class_names: Sequence[str], directory: Path) -> None:
    """The table `train.py` ends with, what must be known about it, and where the run lies."""
    summary = hull.summary
    rows = [
        [
            str(entry["corner"]),
            str(entry["unit"]),
            f"{entry['positive']:.4g}",
            f"{entry['unit_preactivation']:.1f}",
            class_names[entry["predicted_class"]],
            f"{entry['probability']:.4f}",
        ]
        for entry in summary["corners"]
    ]
    target = class_names[summary["target_class"]]
    header = ["corner", "unit", "L_pos", "pre-activation", "class", f"probability of {target}"]
    print(f"\n{text_table(header, rows)}\n")
    seconds = f"{summary['seconds']:.2f} s of {summary['seconds_total']:.1f} s in all"
    print(f"{summary['steps']} steps, {seconds}")
    label = summary.get("target_label")
    if label is not None and label != summary["target_class"]:
        print(
            f"note: the classifier takes the target, a {class_names[label]}, for a {target}; "
            f"the corners collide with {target}"
        )
    if not summary["converged"]:
        print("not converged: see the warning above")
    print(f"run: {directory}\nnext: python evaluate.py run={directory}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def hull_figure(hull: Hull, class_names: Sequence[str]) -> Figure:
    """Initial, corners, target in a row, as Figures 2 and 3 show them."""
    entries = hull.summary["corners"]
    images = [hull.initial, *hull.corners, hull.target]
    titles = [
        f"initial: {class_names[hull.summary['initial_class']]}",
        *(
            f"corner {e['corner']}: {class_names[e['predicted_class']]}\n{e['probability']:.3f}"
            for e in entries
        ),
        f"target: {class_names[hull.target_class]}\n{hull.summary['target_probability']:.3f}",
    ]
    figure = Figure(figsize=(1.5 * len(images), 2.1), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, image, title in zip(figure.subplots(1, len(images)), images, titles, strict=True):
        axes.imshow(to_uint8(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, in the format of the path's ending."""
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    write_atomically(path, buffer.getvalue())
