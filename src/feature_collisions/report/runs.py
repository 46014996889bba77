"""One table over many hulls: of pairs, of a sweep and, with intervals, of a survey (`survey`)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure

from ..data.files import write_text
from ..escaping import for_markdown
from ..hull.statistics import counted
from ..runs.evaluation import Evaluation
from ..runs.rows import Row, row_of
from ..runs.run import Run
from .figures import save_figure, sizes_figure
from .page import tables_page
from .tables import Table, as_csv, as_markdown, number
from .words import words_of

COLUMNS = {
    "accuracy": ("accuracy", "%"),
    "accuracy_lower_95": ("at least (95 %)", "%"),
    "probability_mean": ("mean probability", ".3f"),
    "target_probability": ("target's probability", ".3f"),
    "cosine_min": ("least cosine", ".4f"),
    "same": ("same", "%"),
    "feature_relative_max": ("feature error", ".3f"),
    "worst_feature_relative": ("worst feature error found", ".3f"),
    "worst_case_probability": ("worst found", ".3f"),
    "worst_case_cosine": ("worst cosine found", ".4f"),
    "corner_distance_mean": ("distance", ",.2f"),
    "relative_size": ("relative size", ".3f"),
    "pooled_size": ("8x8 pixels averaged", ".3f"),
    "initial_distance_mean": ("distance from the initial image", ",.2f"),
    "blind_share": ("inactive units", "%"),
    "share_proved": ("share proved", "%"),
    "relative_size_proved": ("size proved", ".3f"),
    "judge_size": ("size to the judge", ".3f"),
    "judge_kept": ("initial class kept", "%"),
    "seconds": ("seconds", ",.1f"),
}
"""What a row's figures are called, and their form; other entries have their own names."""
OF_PAIRS = (
    "initial", "target", "accuracy", "probability_mean", "target_probability", "cosine_min",
    "same", "feature_relative_max", "worst_feature_relative", "corner_distance_mean", "steps",
    "seconds", "outcome",
)  # fmt: skip
OF_RUNS = (
    "run", "outcome", "experiment", "initial", "target", "classifier", "layer", "loss", "corners",
    "steps", "seconds", "accuracy", "accuracy_lower_95", "probability_mean", "target_probability",
    "cosine_min", "same", "feature_relative_max", "worst_feature_relative",
    "worst_case_probability", "worst_case_cosine", "corner_distance_mean", "relative_size",
    "pooled_size", "initial_distance_mean",
)  # fmt: skip
_DETAILS = ("corners", "steps", "seconds", "accuracy_lower_95", "target_probability",
            "worst_case_probability", "corner_distance_mean", "initial_distance_mean")  # fmt: skip
_SETTINGS = ("experiment", "initial", "target", "classifier", "layer", "corners")
_DISTANCES = ("corner_distance_mean", "initial_distance_mean")
_NOTE = (
    "Sampled or found by search, not proved; feature error: the largest ||f(x) - f(t)|| over "
    "||f(t)||."
)


def row_of_run(name: str, run: Run, result: Evaluation, class_names: Sequence[str]) -> Row:
    """The row of a hull that was evaluated; `name` is its run's."""
    summary = run.summary
    initial, target = words_of(summary.output, class_names).pair(summary)
    given = run.config.loss.items()
    weights = {k: v for k, v in given if isinstance(v, int | float) and not isinstance(v, bool)}
    return row_of(summary, result, run=name, initial=initial, target=target, loss=weights)


def columns_of(rows: Sequence[Row], names: Iterable[str]) -> list[str]:
    """Those of the entries `names` that some row has; `loss` stands for each of its weights."""
    weights = dict.fromkeys(f"loss.{key}" for row in rows for key in row.loss)
    every = [each for name in names for each in (weights if name == "loss" else [name])]
    return [name for name in every if any(row.at(name) is not None for row in rows)]


def rows_table(heading: str, names: Iterable[str], rows: Sequence[Row], note: str = _NOTE) -> Table:
    """The entries `names` of each row."""
    names = list(names)
    cells = [[cell(name, row.at(name)) for name in names] for row in rows]
    return Table(heading, [_heading(name, rows) for name in names], cells, note)


def _heading(name: str, rows: Sequence[Row]) -> str:
    """What a column is called; of distances also their unit, if it is one."""
    called = COLUMNS.get(name, (name,))[0]
    scales = {row.distance_scale for row in rows if row.at(name) is not None}
    if name not in _DISTANCES or len(scales) != 1 or scales == {0}:
        return called
    return f"{called} (L2, pixels in 0..{scales.pop()})"


def rows_csv(names: Sequence[str], rows: Sequence[Row]) -> str:
    """The same as CSV, by the entries' own names and with all digits."""
    return as_csv(names, [[row.at(name) for name in names] for row in rows])


def cell(name: str, value: Any, sign: str = "") -> str:
    """A figure in the form of its column, or what a text says."""
    if isinstance(value, float):
        return number(value, sign + COLUMNS.get(name, (name, ".4g"))[1])
    return "-" if value is None else str(value)


def pairs_table(rows: Sequence[Row]) -> Table:
    """One row per pair; above them, how many have which outcome."""
    said = [row | {"outcome": row.verdict} for row in rows]
    return rows_table(counted(row.outcome for row in rows), columns_of(rows, OF_PAIRS), said)


def runs_table(rows: Sequence[Row], brief: bool = False) -> Table:
    """Settings that are the same in all rows are in the note, everything else in columns.

    Args:
        rows: one per hull or refused run.
        brief: only the columns that matter, as many as a terminal has room for.
    """
    names = columns_of(rows, OF_RUNS)
    same = {}
    for name in names:
        values = {value for row in rows if (value := row.at(name)) is not None}
        if (name in _SETTINGS or name.startswith("loss.")) and len(values) == 1:
            same[name] = cell(name, values.pop())
    said = ", ".join(f"{name} {value}" for name, value in same.items())
    note = f"{_NOTE} All: {said}." if said else _NOTE
    shown = [name for name in names if name not in same and not (brief and name in _DETAILS)]
    return rows_table(counted(row.outcome for row in rows), shown, rows, note)


def write_tables(
    directory: Path,
    name: str,
    title: str,
    tables: Sequence[Table],
    figure: tuple[str, Figure, str] | None = None,
    whole: Table | None = None,
    links: Sequence[str] = (),
) -> None:
    """Write tables as `NAME.md` and `NAME.html`, and their figure as PNG and PDF.

    Args:
        directory: where.
        name: of the files.
        title: of the page.
        tables: the first one's heading is at the top.
        figure: its files' name, itself, and what it shows.
        whole: the first table with all columns, where it is shortened on the page; Markdown has
            this one.
        links: from the rows of the first table; empty where a row has none.
    """
    first, *others = [whole or tables[0], *tables[1:]]
    parts = ["# " + for_markdown(first.heading), as_markdown(first)]
    if figure:
        file, drawn, shows = figure
        for ending in ("png", "pdf"):
            save_figure(drawn, directory / f"{file}.{ending}")
        parts.append(f"![{shows}]({file}.png)")
    for table in others:
        parts += ["## " + for_markdown(table.heading), as_markdown(table)]
    write_text(directory / f"{name}.md", "\n\n".join(parts) + "\n")
    page = tables_page(title, directory.name, tables, figure, whole, links)
    write_text(directory / f"{name}.html", page)


def write_runs(directory: Path, rows: Sequence[Row]) -> None:
    """Write `runs.html`, `runs.md`, `runs.csv` and, if weights differ, `sizes.png` and `.pdf`.

    Args:
        directory: folder of the files.
        rows: one per hull or refused run, which has only `run` and `outcome`.
    """
    write_text(directory / "runs.csv", rows_csv(columns_of(rows, OF_RUNS), rows))
    sizes = sizes_figure(rows)
    figure = ("sizes", sizes, "relative size against the loss's weights") if sizes else None
    reports = [f"{row.run}/report.html" for row in rows]
    links = [f"./{quote(path)}" if (directory / path).is_file() else "" for path in reports]
    brief = runs_table(rows, brief=True)
    title = f"Table of {len(rows)} run{'s' if len(rows) > 1 else ''}"
    write_tables(directory, "runs", title, [brief], figure, runs_table(rows), links)
