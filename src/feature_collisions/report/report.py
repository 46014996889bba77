"""Tables and figures of a hull, in the shape of the paper's."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.files import write_text
from ..data.images import to_uint8
from ..evaluation.differences import boxes_figure
from ..evaluation.macro import composite_at_start, composites_figure
from ..hull.hull import SAMPLERS, Hull
from .command_line import command, override
from .escaping import for_line, for_markdown, for_terminal
from .figures import Step, histogram_figure, intermediate_figure, intermediate_images, save_figure
from .findings import baselines_table, claims, comparison, edges_table, sizes_table
from .page import write_up
from .tables import markdown_table, number, text_table


def classes_of(hull: Hull, class_names: Sequence[str]) -> Sequence[str]:
    """One name for each class of the classifier.

    Args:
        hull: the corners and their classifier.
        class_names: the data set's. Where they differ from the classes in number they are not
            theirs, and classes are called by number.
    """
    count = len(hull.target_logits)
    return class_names if len(class_names) == count else [f"class {k}" for k in range(count)]


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
    label = summary.get("target_label")  # of the data set; a class where their numbers agree
    if label is not None and label != summary["target_class"]:
        print(
            f"note: the classifier takes the target ({class_names[label]}) for {target}; "
            f"the corners collide with {target}"
        )
    if not summary["converged"]:
        print("not converged: see the warning above")
    print(f"run: {directory}\nnext: {command('evaluate.py', override('run', directory))}")


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
    columns = min(len(images), 8)
    rows, side = -(-len(images) // columns), min(1.3, 6.5 / columns)  # inches; a page's text is 6.5
    figure = Figure(figsize=(side * columns, (side + 0.45) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, image, title in zip(panels, images, titles, strict=False):
        axes.imshow(to_uint8(image), cmap="gray", vmin=0, vmax=255)
        lines = [part for line in title.splitlines() for part in textwrap.wrap(line, 15)]
        axes.set_title("\n".join(lines), fontsize=7, parse_math=False)
    return figure


def write_report(
    directory: Path, hull: Hull, result: dict[str, Any], class_names: Sequence[str]
) -> None:
    """Write `report.html`, `report.md`, and each figure as PNG and PDF."""
    channels, height, width = hull.target.shape
    steps = intermediate_images(directory, (channels, height, width))
    shown = _figures(hull, result, class_names, steps)
    start = composite_at_start(directory, (channels, height, width))
    if start is not None:
        shown["composites"] = composites_figure(hull, start)
    for name, figure in shown.items():
        for ending in ("png", "pdf"):
            save_figure(figure, directory / f"{name}.{ending}")
    tables = _tables(hull, result, class_names)
    page = write_up(directory, hull, result, class_names, tables, steps)
    write_text(directory / "report.html", page)
    write_text(directory / "report.md", _markdown(hull, result, class_names, list(shown)))


def _figures(
    hull: Hull, result: dict[str, Any], class_names: Sequence[str], steps: list[list[Step]]
) -> dict[str, Figure]:
    """The figures by their files' names."""
    figures = {
        "corners": hull_figure(hull, class_names),
        "probabilities": histogram_figure(result, class_names[hull.target_class]),
    }
    if "boxes" in result:
        figures["differences"] = boxes_figure(hull, result["boxes"])
    return figures | ({"intermediate": intermediate_figure(steps)} if steps else {})


def _tables(hull: Hull, result: dict[str, Any], class_names: Sequence[str]) -> dict[str, str]:
    """The tables by their headings, as Markdown."""
    summary, target = hull.summary, class_names[hull.target_class]
    tables = {
        "Tables 1 to 5: L2 distances between images, classes of mixes of the corners, and of a "
        "ball as large as the hull.": comparison(summary["experiment"], result, target),
        "The corners": _corners_table(hull, class_names),
        "Points of the hull": _samples_table(result),
    }
    if "left_out" in result:
        return tables
    return tables | {
        "How large the hull is": sizes_table(result),
        "What it is compared with (Table 5)": baselines_table(result),
        "Its edges": edges_table(result.get("edges", {})),
    }


def _markdown(
    hull: Hull, result: dict[str, Any], class_names: Sequence[str], figures: Sequence[str]
) -> str:
    """`report.md`, in which no name is markup."""
    summary = hull.summary
    classifier, layer = for_markdown(summary["classifier"]), for_markdown(summary["layer"])
    initial, target = class_names[summary["initial_class"]], class_names[hull.target_class]
    headline = f"{summary['experiment']}: {initial} that collides with {target}"
    parts = [
        f"# {for_markdown(headline)}",
        f"{classifier}, layer {layer}, {len(hull.corners)} corners, "
        f"{summary['steps']} steps in {summary['seconds']:.2f} s. "
        + ("All corners converged." if summary["converged"] else "**Not all corners converged.**"),
        *(f"![{name}]({name}.png)" for name in figures),
        *(for_markdown(sentence) for sentence in claims(result, target)),
    ]
    for heading, table in _tables(hull, result, class_names).items():
        parts += [f"{heading}", table] if table else []
    if "composites" in figures:
        parts.append(
            "Patches, their matches and how these are pasted:\n\n![patches](images/patches.png)"
        )
    if "worst_case_class" in result:
        parts.append("The worst point found:\n\n![worst point](images/worst_case.png)")
    return "\n\n".join(parts) + "\n"


def _corners_table(hull: Hull, class_names: Sequence[str]) -> str:
    rows = [
        [
            str(entry["corner"]),
            str(entry["unit"]),
            f"{entry['positive']:.4g}",
            f"{entry['unit_preactivation']:.4g}",
            class_names[entry["predicted_class"]],
            f"{entry['probability']:.4f}",
        ]
        for entry in hull.summary["corners"]
    ]
    header = ["corner", "unit", "L_pos", "unit's pre-activation", "class", "probability of target"]
    return markdown_table(header, rows)


def _samples_table(result: dict[str, Any]) -> str:
    """One row a sampler."""
    rows = []
    for law in SAMPLERS:
        for name in (law, f"{law}_uint8"):
            if (entry := result.get(name)) is None:
                continue
            rows.append(
                [
                    name,
                    str(entry["samples"]),
                    f"{entry['accuracy']:.2%}",
                    f"{entry['accuracy_lower_95']:.3%}",
                    f"{entry['probability_mean']:.4f}",
                    f"{entry['probability_min']:.4f}",
                    number(entry["positive_relative_max"]),
                    number(entry["inactive_kept"]),
                ]
            )
    header = ["points", "samples", "accuracy", "at least (95 %)", "mean probability",
              "smallest", "largest relative L_pos", "inactive units kept"]  # fmt: skip
    return markdown_table(header, rows)


def print_evaluation(result: dict[str, Any], class_names: Sequence[str], directory: Path) -> None:
    """The table `evaluate.py` ends with."""
    rows = [
        [
            name,
            f"{result[name]['accuracy']:.2%}",
            f"{result[name]['accuracy_lower_95']:.3%}",
            f"{result[name]['probability_mean']:.4f}",
            f"{result[name]['probability_min']:.4f}",
        ]
        for law in SAMPLERS
        for name in (law, f"{law}_uint8")
        if name in result
    ]
    target = class_names[result["target_class"]]
    header = ["points of the hull", f"are {target}", "at least (95 %)", "mean probability", "least"]
    print(f"\n{text_table(header, rows)}\n")
    if "corner_distance_mean" in result:
        print(
            f"corners are {result['corner_distance_mean']:,.2f} apart on average, images of the "
            f"data set {number(result.get('dataset_distance_mean'), ',.2f')}"
        )
    found = claims(result, target)
    print("\n".join(for_line(claim) for claim in found if not claim.startswith("Sampled")))
    print(for_terminal(f"report: {directory / 'report.html'}"))
