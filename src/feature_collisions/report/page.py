"""`report.html` and `runs.html`: single files that open from disk, without a network.

Templates escape all values. The content security policy of a page forbids all requests, and all
scripts except its own.
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.images import to_uint8
from ..evaluation.lattice import Explorer
from .figures import encoded
from .findings import Description, Evidence
from .sheets import Sheet
from .tables import Table
from .words import Words

_MOST_BYTES = {"corners": 3_500_000}  # exact if they fit
_OTHERS_BYTES = 500_000  # for the pictures of any other sheet
_SMOOTH = 64  # pixels; smaller images show their pixels as squares


def hull_page(
    description: Description,
    sheets: Sequence[Sheet],
    histogram: Figure,
    explorer: Explorer | None,
    words: Words,
    faces: Figure | None = None,
) -> str:
    """The page of one hull.

    Args:
        description: its text.
        sheets: the pictures; the first is at the top.
        histogram: of the probabilities, or cosines.
        explorer: the hull on a lattice, for `page.js`; None for a page without explorer.
        words: terms for the network's output.
        faces: figure of the hull's triangles, if any.
    """
    return _render(
        "report.html",
        description=description,
        kinds=[kind for kind in Evidence if any(kind is each.known for each in description.claims)],
        sheets=sheets,
        histogram=histogram,
        faces=faces,
        explorer=explorer,
        words=words,
        script=Markup(_text("page.js")) if explorer else "",
    )  # fmt: skip


def tables_page(
    title: str,
    folder: str,
    tables: Sequence[Table],
    figure: tuple[str, Figure, str] | None = None,
    whole: Table | None = None,
    links: Sequence[str] = (),
) -> str:
    """The page over many hulls.

    Args:
        title: at its top.
        folder: of the runs, named below the title.
        tables: the first one's heading is below the title, too.
        figure: a name, itself, and what it shows.
        whole: the first table with all columns.
        links: the report of each row of the first table; empty where there is none.
    """
    return _render("tables.html", title=title, folder=folder, tables=tables, figure=figure,
                   whole=whole, links=links, script="")  # fmt: skip


def data_uri(image: Tensor, most: float) -> str:
    """A (C, H, W) image as PNG, or as JPEG if PNG exceeds `most` bytes."""
    picture = Image.fromarray(to_uint8(image))
    content, kind = io.BytesIO(), "png"
    picture.save(content, "png", optimize=True)
    if content.tell() > most:
        content, kind = io.BytesIO(), "jpeg"
        picture.save(content, "jpeg", quality=90)
    return _data(content.getvalue(), kind)


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _bytes_per_picture(sheet: Sheet) -> float:
    count = sum(panel is not None for row in sheet.rows for panel in row)
    return _MOST_BYTES.get(sheet.name, _OTHERS_BYTES) / count


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    digest = hashlib.sha256(str(values["script"]).encode()).digest()
    environment = Environment(
        loader=FunctionLoader(_text), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "data_uri": data_uri,
        "chart": lambda figure: _data(encoded(figure, "svg"), "svg+xml"),
        "bytes_per_picture": _bytes_per_picture,
        "small": lambda image: max(image.shape[1:]) < _SMOOTH,
    }
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template(template).render(
        values,
        style=Markup(_text("page.css")),
        script_hash=f"sha256-{base64.b64encode(digest).decode()}",
    )
