"""A table over many hulls: one row each, and relative size against the loss's weights."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..data.files import write_text
from ..hull.statistics import counted
from ..runs.evaluation import Evaluation
from ..runs.run import Run
from .figures import save_figure, sizes_figure
from .page import runs_page
from .tables import Table, as_csv, as_markdown, number
from .words import words_of

COLUMNS = {
    "initial": ("initial", ""),
    "target": ("target", ""),
    "accuracy": ("accuracy", ".2%"),
    "accuracy_lower_95": ("at least (95 %)", ".3%"),
    "probability_mean": ("mean probability", ".3f"),
    "target_probability": ("target's probability", ".3f"),
    "cosine_min": ("least cosine", ".4f"),
    "same": ("same", ".2%"),
    "feature_relative_max": ("feature error", ".3f"),
    "worst_case_probability": ("worst found", ".3f"),
    "worst_case_cosine": ("worst cosine found", ".4f"),
    "corner_distance_mean": ("distance", ",.2f"),
    "relative_size": ("relative size", ".3f"),
    "pooled_size": ("8x8 pixels averaged", ".3f"),
    "initial_distance_mean": ("distance from the initial image", ",.2f"),
    "steps": ("steps", ""),
    "seconds": ("seconds", ",.1f"),
}
"""What a row's entries are called, and their form; others are shown by their own names."""
_OF_OUTPUT = ("accuracy", "accuracy_lower_95", "probability_mean", "target_probability",
              "worst_case_probability", "cosine_min", "same", "worst_case_cosine")  # fmt: skip
_DETAILS = ("corners", "steps", "seconds", "accuracy_lower_95", "target_probability",
            "worst_case_probability", "corner_distance_mean", "initial_distance_mean")  # fmt: skip
_SETTINGS = ("experiment", "initial", "target", "classifier", "layer", "corners")
_NOTE = "Sampled, not proved; feature error: the largest ||f(x) - f(t)|| over ||f(t)||."


def row_of(name: str, run: Run, result: Evaluation, class_names: Sequence[str]) -> dict[str, Any]:
    """One hull's row: what was run, what was found, which outcome it has."""
    summary = run.summary
    loss = run.config.get("loss")
    initial, target = words_of(summary.output, class_names).pair(summary)
    if summary.output == "features":  # nothing but what the pictures were called
        initial, target = (str(run.config.get(name, name)) for name in ("initial", "target"))
    weights = loss if isinstance(loss, dict) else {}
    return {
        "run": name,
        "experiment": summary.experiment,
        "initial": initial,
        "target": target,
        "classifier": summary.classifier,
        "layer": summary.layer,
        **{f"loss.{k}": v for k, v in weights.items() if type(v) in (int, float)},
        "corners": len(run.corners),
        "steps": summary.steps,
        "seconds": summary.seconds,
        "accuracy": result.at("dirichlet.accuracy"),
        "accuracy_lower_95": result.at("dirichlet.accuracy_lower_95"),
        "probability_mean": result.at("dirichlet.probability_mean"),
        "target_probability": result.at("target_probability"),
        "cosine_min": result.at("dirichlet.cosine_min"),
        "same": result.at("dirichlet.same"),
        "feature_relative_max": result.at("dirichlet.feature_relative_max"),
        "worst_case_probability": result.worst_case_probability,
        "worst_case_cosine": result.worst_case_cosine,
        "corner_distance_mean": result.corner_distance_mean,
        "relative_size": result.relative_size,
        "pooled_size": result.pooled_sizes.get("8"),
        "initial_distance_mean": result.initial_distance_mean,
        "outcome": _outcome(result),
    }


def _outcome(result: Evaluation) -> str:
    """One of the three, or what could not be measured."""
    if failed := result.failed:
        return "not measured: " + "; ".join(f"{name}: {why}" for name, why in failed.items())
    return str(result.outcome)


def runs_table(rows: Sequence[dict[str, Any]], brief: bool = False) -> Table:
    """Settings that are the same in all rows stand in the note, everything else in columns.

    Args:
        rows: one per hull or refused run.
        brief: only the columns that matter, as many as a terminal has room for.
    """
    names = _names(rows)
    same = {}
    for name in names:
        values = {row[name] for row in rows if name in row}
        if (name in _SETTINGS or name.startswith("loss.")) and len(values) == 1:
            same[name] = _cell(name, values.pop())
    said = ", ".join(f"{name} {value}" for name, value in same.items())
    note = f"{_NOTE} All: {said}." if said else _NOTE
    shown = [name for name in names if name not in same and not (brief and name in _DETAILS)]
    return rows_table(counted(row["outcome"] for row in rows), shown, rows, note)


def rows_table(
    heading: str, names: Iterable[str], rows: Sequence[dict[str, Any]], note: str = _NOTE
) -> Table:
    """The entries `names` of each row."""
    names = list(names)
    cells = [[_cell(name, row.get(name)) for name in names] for row in rows]
    return Table(heading, [COLUMNS.get(name, (name,))[0] for name in names], cells, note)


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """All entries of the rows; of those of one kind of output what some row has."""
    names = dict.fromkeys(["run", "outcome", *(name for row in rows for name in row)])
    said = {name for row in rows for name, value in row.items() if value is not None}
    return [name for name in names if name in said or name not in _OF_OUTPUT]


def _cell(name: str, value: Any) -> str:
    if isinstance(value, float):
        return number(value, COLUMNS.get(name, (name, ".4g"))[1])
    return "-" if value is None else str(value)


def write_runs(directory: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `runs.html`, `runs.md`, `runs.csv` and, where weights differ, `sizes.png` and `.pdf`.

    Args:
        directory: where.
        rows: one per hull or refused run, which has `run` and `outcome` alone.
    """
    names = _names(rows)
    cells = [[row.get(name) for name in names] for row in rows]
    write_text(directory / "runs.csv", as_csv(names, cells))
    table = runs_table(rows)
    figure = sizes_figure(rows)
    parts = [f"# {table.heading}", as_markdown(table)]
    if figure:
        for ending in ("png", "pdf"):
            save_figure(figure, directory / f"sizes.{ending}")
        parts.append("![relative size against the loss's weights](sizes.png)")
    write_text(directory / "runs.md", "\n\n".join(parts) + "\n")
    reports = [f"{row['run']}/report.html" for row in rows]
    links = [f"./{quote(path)}" if (directory / path).is_file() else "" for path in reports]
    brief = runs_table(rows, brief=True)
    write_text(directory / "runs.html", runs_page(directory.name, brief, table, links, figure))
