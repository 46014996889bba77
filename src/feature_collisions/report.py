"""Tables and figures of a hull, in the shape of the paper's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .differences import boxes_figure
from .figures import save_figure
from .files import write_text
from .findings import baselines_table, claims, edges_table, sizes_table
from .hull import SAMPLERS, Hull
from .images import to_uint8
from .tables import markdown_table, number, text_table

# What the paper prints for the pair an experiment stands for: distance between data set images,
# distance between corners, accuracy, probability of the target, of the interpolations (Table 1).
PAPER = {"mnist": (10.21, 1.28, 1.0, 1.0, 1.0)}


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


def write_report(
    directory: Path, hull: Hull, result: dict[str, Any], class_names: Sequence[str]
) -> None:
    """Write `report.md` and the figure it shows."""
    figure = hull_figure(hull, class_names)
    for ending in ("png", "pdf"):
        save_figure(figure, directory / f"corners.{ending}")
    summary = hull.summary
    initial, target = class_names[summary["initial_class"]], class_names[hull.target_class]
    parts = [
        f"# {summary['experiment']}: {initial} that collides with {target}",
        f"{summary['classifier']}, layer `{summary['layer']}`, {len(hull.corners)} corners, "
        f"{summary['steps']} steps in {summary['seconds']:.2f} s. "
        + ("All corners converged." if summary["converged"] else "**Not all corners converged.**"),
        "![initial, corners, target](corners.png)",
        _paper_table(summary["experiment"], result, target),
        _corners_table(hull, class_names),
        _samples_table(result),
        *claims(result, target),
    ]
    if "left_out" not in result:
        save_figure(boxes_figure(hull, result["boxes"]), directory / "differences.png")
        parts += [
            "Where the corners differ most:\n\n![boxes](differences.png)",
            sizes_table(result),
            baselines_table(result),
            edges_table(result["edges"]),
            "The worst point found:\n\n![worst point](images/worst_case.png)",
        ]
    write_text(directory / "report.md", "\n\n".join(part for part in parts if part) + "\n")


def _paper_table(experiment: str, result: dict[str, Any], target: str) -> str:
    """Table 1's five numbers, this run's beside the paper's."""
    sample = result["dirichlet"]
    numbers = (
        result["dataset_distance_mean"],
        result.get("corner_distance_mean"),
        sample["accuracy"],
        result["target_probability"],
        sample["probability_mean"],
    )
    formats = ("{:,.2f}", "{:,.2f}", "{:.2%}", "{:.4f}", "{:.4f}")
    names = (
        "average distance between images of the data set",
        "average distance between corners",
        f"top class accuracy (is {target}), {sample['samples']} interpolations",
        "top class probability, target example",
        "top class probability, interpolated samples",
    )
    paper = PAPER.get(experiment, (None,) * 5)
    rows = [
        [name, *(form.format(n) if n is not None else "-" for n in (here, there))]
        for name, form, here, there in zip(names, formats, numbers, paper, strict=True)
    ]
    return markdown_table(["", "this run", "paper"], rows)


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
            entry = result[name]
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
    ]
    target = class_names[result["target_class"]]
    header = ["points of the hull", f"are {target}", "at least (95 %)", "mean probability", "least"]
    print(f"\n{text_table(header, rows)}\n")
    if "corner_distance_mean" in result:
        print(
            f"corners are {result['corner_distance_mean']:,.2f} apart on average, images of the "
            f"data set {result['dataset_distance_mean']:,.2f}"
        )
    print("\n".join(claims(result, target)[1:]))
    print(f"report: {directory / 'report.md'}")
