"""Figures as files."""

import io
from pathlib import Path

from matplotlib.figure import Figure

from ..data.files import write_atomically


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, in the format of the path's ending."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=300)
    write_atomically(path, buffer.getvalue())
