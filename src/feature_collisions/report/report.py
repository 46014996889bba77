"""Write the report of a hull: `report.html`, `report.md`, and figures like the paper's."""

from collections.abc import Sequence
from pathlib import Path

from ..data.files import write_text
from ..escaping import for_markdown
from ..evaluation.lattice import explored
from ..hull.hull import Hull
from ..runs.evaluation import Evaluation
from .figures import faces_figure, histogram_figure, save_figure, sheet_figure
from .findings import Description, claims_table, describe
from .page import hull_page
from .sheets import hull_sheets
from .tables import as_markdown
from .words import words_of


def write_report(
    directory: Path, hull: Hull, result: Evaluation, class_names: Sequence[str]
) -> Description:
    """Write `report.html`, `report.md`, and each figure as PNG and PDF; return their text.

    Args:
        directory: the run's.
        hull: the corners and their classifier, which is evaluated on the explorer's lattice.
        result: what `evaluation.json` holds.
        class_names: one per class.
    """
    description = describe(hull.summary, result, class_names)
    words = words_of(hull.output.kind, class_names)
    sheets = hull_sheets(directory, hull, result, words)
    histogram = histogram_figure(result, words)
    faces = faces_figure(result.proof)
    explorer = None
    if len(hull.corners) > 1:
        explorer = explored(hull, class_names) | {
            "worst": result.worst_case_weights,
            "worst_features": result.worst_feature_weights,
        }
    drawn = {sheet.name: sheet_figure(sheet) for sheet in sheets if sheet.name not in _KEPT}
    charts = {words.chart: histogram} | ({"triangles": faces} if faces else {})
    for name, figure in (drawn | charts).items():
        for ending in ("png", "pdf"):
            save_figure(figure, directory / f"{name}.{ending}")
    write_text(
        directory / "report.html", hull_page(description, sheets, histogram, explorer, words, faces)
    )
    shown = {sheet.heading: _KEPT.get(sheet.name, f"{sheet.name}.png") for sheet in sheets}
    write_text(
        directory / "report.md", _markdown(description, shown, words.chart, faces is not None)
    )
    return description


_KEPT = {
    name: f"images/{name}.png" for name in ("patches", "worst_case", "worst_features")
}  # pictures already


def _markdown(description: Description, pictures: dict[str, str], chart: str, faces: bool) -> str:
    """`report.md`, in which no name is markup."""
    (_, top), *others = (
        (f"## {heading}", f"![{heading}]({path})") for heading, path in pictures.items()
    )
    parts = [f"# {for_markdown(f'{description.experiment}: {description.headline}')}", top]
    parts += [for_markdown(description.lead)]
    if description.warning:
        parts.append(f"**{description.warning}**")
    for table in (claims_table(description.claims), *description.tables):
        parts += [f"## {for_markdown(table.heading)}", as_markdown(table)]
    parts += ["## Over the hull", f"![{chart}]({chart}.png)"]
    if faces:
        parts += ["## Triangles of three corners", "![proved, undecided, refuted](triangles.png)"]
    for heading, picture in others:
        parts += [heading, picture]
    return "\n\n".join(parts) + "\n"
