"""Tables of text, rendered as Markdown, terminal text and CSV (as HTML in `page.py`)."""

import csv
import io
import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tabulate import tabulate

from ..escaping import for_csv, for_line, for_markdown
from ..percent import percent

_NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)? ?%?|-")


class Table(NamedTuple):
    """Cells of text, which may be untrusted: each rendering escapes them.

    Attributes:
        heading: heading of the table.
        columns: heading of each column.
        rows: one cell per column.
        note: explanation above the table.
        meanings: columns that need a definition, and theirs.
    """

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    meanings: Sequence[tuple[str, str]] = ()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column has only numbers, which are aligned to the right."""
        cells = zip(*self.rows, strict=True) if self.rows else [("",)] * len(self.columns)
        return [all(_NUMBER.fullmatch(cell) for cell in column) for column in cells]


def as_markdown(table: Table) -> str:
    """The table in Markdown; markup in cells is escaped."""
    cells = [[for_markdown(cell) for cell in row] for row in (table.columns, *table.rows)]
    lines = tabulate(cells[1:], cells[0], "pipe", disable_numparse=True, colalign=_aligned(table))
    meanings = "\n".join(
        f"- {for_markdown(name)}: {for_markdown(meaning)}" for name, meaning in table.meanings
    )
    return "\n\n".join(part for part in (for_markdown(table.note), lines, meanings) if part)


def as_text(table: Table) -> str:
    """The table for a terminal; cells are wrapped if it is too wide."""
    cells = [[for_line(cell) for cell in row] for row in (table.columns, *table.rows)]
    names, widths = (
        [max(map(len, column)) for column in zip(*rows, strict=True)] for rows in (cells[:1], cells)
    )
    screen = shutil.get_terminal_size((100, 24)).columns - 2 * len(widths)
    if sum(widths) > screen:
        filled = [max(map(len, column)) for column in zip(*cells[1:], strict=True)] or names
        names = [max(width, 12) for width in filled]
        widths = [max(filled[k], min(names[k], len(cells[0][k]))) for k in range(len(names))]
        widest = widths.index(max(widths))
        widths[widest] = max(20, widths[widest] + min(0, screen - sum(widths)))
    # tabulate's wrapping of cells takes the word False for a boolean, and prints True.
    head, *rows = [
        [_broken(cell, width) for cell, width in zip(row, limits, strict=True)]
        for row, limits in zip(cells, [names] + [widths] * len(table.rows), strict=True)
    ]
    return tabulate(rows, head, "simple", disable_numparse=True, colalign=_aligned(table))


def print_table(table: Table) -> None:
    """The table on the terminal, between its heading and its note and definitions."""
    below = [table.note, *(f"{name}: {meaning}" for name, meaning in table.meanings)]
    said = "\n".join(for_line(line) for line in below if line)
    print(f"\n{for_line(table.heading)}\n\n{as_text(table)}\n\n{said}")


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of values as CSV: numbers with all digits; text is escaped against formulas."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([for_csv(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def _broken(cell: str, width: int) -> str:
    return "\n".join(textwrap.wrap(cell, max(1, width))) or cell


def number(value: float | None, form: str = ".4g") -> str:
    """Format a figure, for `%` and `+%` as a share in percent; a dash if there is none."""
    if value is None:
        return "-"
    return percent(value, form[:-1]) if form.endswith("%") else format(value, form)


def _aligned(table: Table) -> list[str]:
    return ["right" if numeric else "left" for numeric in table.numeric]
