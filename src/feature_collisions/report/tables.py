"""Tables as text, and as Markdown."""

from collections.abc import Sequence

from .escaping import for_line, for_markdown


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be, numbers' side to the right."""
    table = [[for_line(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
             for row in table]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing in its cells is markup."""
    first, *lines = (
        "| " + " | ".join(for_markdown(cell) for cell in row) + " |" for row in (header, *rows)
    )
    return "\n".join([first, "| " + " | ".join(["---"] * len(header)) + " |", *lines])


def number(value: float | None, form: str = ".4g") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)
