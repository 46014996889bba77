"""A directory of many runs: one row a hull, and hull size against the loss's weights."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.files import write_text
from ..errors import SettingError
from ..hull.places import CONFIG, CORNERS
from ..hull.run import Run, join, load_run
from ..hull.statistics import CLASS, FEATURES, NEITHER, counted, limit_of, outcome_of
from .escaping import for_csv
from .figures import save_figure
from .tables import markdown_table, number

_FORMS = {
    "accuracy": ".2%",
    "accuracy_lower_95": ".3%",
    "corner_distance_mean": ",.2f",
    "relative_size": ".3f",
    "seconds": ".2f",
}
_BLUE, _ORANGE, _VERMILION = "#0072B2", "#E69F00", "#D55E00"


def hulls_below(directory: Path) -> tuple[list[Run], dict[str, str]]:
    """The hulls that a directory holds.

    Jobs beside each other that differ in their `corner` alone make one hull.

    Returns:
        The hulls, and why the other runs cannot be read, by their places; a search that was killed
        is one of these.

    Raises:
        SettingError: when there is no run at all.
    """
    groups: dict[tuple[Path, str], list[Run]] = {}
    refused = _unfinished(directory)
    for path in sorted(directory.rglob(CORNERS), key=lambda path: (len(str(path)), str(path))):
        place = path.parent
        try:
            run = load_run(place)
        except SettingError as error:
            refused[str(place.relative_to(directory))] = str(error)
            continue
        settings = {key: value for key, value in run.config.items() if key != "corner"}
        key = json.dumps(settings, sort_keys=True, default=str)
        groups.setdefault((place.parent, key), []).append(run)
    if not groups and not refused:
        load_run(directory)  # says what is missing
    whole = not refused and len(groups) == 1
    hulls = []
    for (parent, _), runs in groups.items():
        place = directory if whole else parent / f"hull_of_{runs[0].directory.name}"
        try:
            if len(runs) > 1 and place.is_symlink():
                raise SettingError(f"{place}: is a link, and nothing is written through links")
            hulls += [join(place, runs)] if len(runs) > 1 else runs
        except SettingError:  # the same corner twice, or other images: a hull each
            hulls += runs
    return hulls, refused


def _unfinished(directory: Path) -> dict[str, str]:
    """The runs below that have begun and have no corners, by their places."""
    places = sorted(path.parent for path in directory.rglob(CONFIG))
    names = [place.relative_to(directory) for place in places if not any(place.rglob(CORNERS))]
    reason = "no corners: the search was not finished; continue it with ckpt_path=last"
    return {str(name): reason for name in names if name.parts and "wandb" not in name.parts}


def row_of(
    name: str, run: Run, result: dict[str, Any], class_names: Sequence[str]
) -> dict[str, Any]:
    """One hull's row: what was run, what was found, which outcome it has."""
    summary, sample = run.summary, result.get("dirichlet", {})
    loss = run.config.get("loss")
    weights = loss if isinstance(loss, dict) else {}
    return {
        "run": name,
        "experiment": summary["experiment"],
        "initial": class_names[summary["initial_class"]],
        "target": class_names[summary["target_class"]],
        "classifier": summary["classifier"],
        "layer": summary["layer"],
        **{f"loss.{k}": v for k, v in weights.items() if type(v) in (int, float)},
        "corners": len(run.corners),
        "steps": summary["steps"],
        "seconds": summary["seconds"],
        "accuracy": sample.get("accuracy"),
        "accuracy_lower_95": sample.get("accuracy_lower_95"),
        "probability_mean": sample.get("probability_mean"),
        "target_probability": result["target_probability"],
        "positive_relative_max": sample.get("positive_relative_max"),
        "worst_case_probability": result.get("worst_case_probability"),
        "corner_distance_mean": result.get("corner_distance_mean"),
        "relative_size": result.get("relative_size"),
        "outcome": _outcome(run, result),
    }


def _outcome(run: Run, result: dict[str, Any]) -> str:
    """One of the three, or what could not be measured."""
    if failed := result.get("failed"):
        return "not measured: " + "; ".join(f"{name}: {why}" for name, why in failed.items())
    limit = limit_of(run.summary)
    return outcome_of(result["dirichlet"], result["target_probability"], limit).name


def write_table(directory: Path, rows: list[dict[str, Any]]) -> str:
    """Write `runs.md`, `runs.csv` and, where weights differ, `sizes.png` and `sizes.pdf`.

    Args:
        directory: where.
        rows: one a hull or a refused run, which has `run` and `outcome` alone.

    Returns:
        The Markdown table; above it, how many hulls have which outcome.
    """
    columns = [name for row in rows for name in row if name != "outcome"]
    columns = [*dict.fromkeys(columns), "outcome"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(for_csv, columns))
    writer.writerows([_plain(row.get(name)) for name in columns] for row in rows)
    write_text(directory / "runs.csv", text.getvalue())
    table = markdown_table(
        columns, [[_cell(name, row.get(name)) for name in columns] for row in rows]
    )
    table = f"{counted(row['outcome'] for row in rows)} (sampled, not proved).\n\n{table}\n"
    figure = sizes_figure(rows)
    if figure:
        for ending in ("png", "pdf"):
            save_figure(figure, directory / f"sizes.{ending}")
        table += "\n![hull size against the loss's weights](sizes.png)\n"
    write_text(directory / "runs.md", table)
    return table


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return number(value, _FORMS.get(name, ".4g"))
    return "-" if value is None else str(value)


def _plain(value: Any) -> Any:
    return for_csv(value) if isinstance(value, str) else value


def sizes_figure(rows: list[dict[str, Any]]) -> Figure | None:
    """Hull size against every weight of the loss that differs; None where none does."""
    known = [row for row in rows if row.get("relative_size") is not None]
    names = dict.fromkeys(name for row in known for name in row if name.startswith("loss."))
    differing = [name for name in names if len({row.get(name) for row in known}) > 1]
    if not differing:
        return None
    figure = Figure(figsize=(min(6.5, 3.25 * len(differing)), 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(differing), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, differing, strict=True):
        for outcome, colour, marker in (
            (FEATURES, _BLUE, "o"),
            (CLASS, _ORANGE, "s"),
            (NEITHER, _VERMILION, "x"),
        ):
            chosen = [row for row in known if row["outcome"] == outcome and name in row]
            places, sizes = [row[name] for row in chosen], [row["relative_size"] for row in chosen]
            if chosen:
                axes.plot(places, sizes, marker, color=colour, label=outcome, ms=5)
        if all(row.get(name, 1) > 0 for row in known):
            axes.set_xscale("log")
        axes.set_xlabel(name.removeprefix("loss."), fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("distance between corners\nover the data set's", fontsize=8)
    panels[0].set_ylim(bottom=0)
    panels[0].legend(fontsize=7, frameon=False)
    return figure
