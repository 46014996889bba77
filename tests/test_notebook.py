"""The notebook of docs/tutorials: its cells run, and the outputs it is stored with are theirs.

`python tests/test_notebook.py` runs them and stores the outputs anew; no Jupyter is needed.
"""

import base64
import contextlib
import io
import json
import re

import matplotlib as mpl
import pytest

from helpers.commands import ROOT

NOTEBOOK = ROOT / "docs" / "tutorials" / "first_collision.ipynb"
DPI = 80


def cells_of(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def run(cells):
    """Run code cells in one namespace, as a kernel would; gives each one's text and figures."""
    mpl.use("agg")
    import matplotlib.pyplot as plt

    names, found = {"__name__": "__main__"}, []
    for cell in cells:
        said, source = io.StringIO(), "".join(cell["source"])
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(source, NOTEBOOK.name, "exec"), names)
        pictures = []
        for number in plt.get_fignums():
            content = io.BytesIO()
            plt.figure(number).savefig(content, format="png", dpi=DPI, bbox_inches="tight")
            pictures.append(content.getvalue())
        plt.close("all")
        found.append((said.getvalue(), pictures))
    return found


def stored(cell):
    """A cell's stored text and figures."""
    texts = ["".join(each["text"]) for each in cell["outputs"] if each["output_type"] == "stream"]
    pictures = [each["data"]["image/png"] for each in cell["outputs"] if "data" in each]
    return "".join(texts), [base64.b64decode(picture) for picture in pictures]


def words(text):
    return re.sub(r"[-\d.,% ]+", " ", text)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_runs_and_says_what_it_is_stored_with(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = cells_of("code")
    assert len(cells) >= 6
    for cell, (text, pictures) in zip(cells, run(cells), strict=True):
        kept, drawn = stored(cell)
        assert words(kept) == words(text)  # figures differ in their last places between machines
        assert len(drawn) == len(pictures)
        assert all(picture.startswith(b"\x89PNG") for picture in drawn)


def test_the_notebook_reads_well_on_a_code_host():
    assert NOTEBOOK.stat().st_size < 300_000
    assert sum(len(stored(cell)[1]) for cell in cells_of("code")) >= 3
    text = NOTEBOOK.read_text()
    assert "Traceback" not in text
    assert "/tmp/" not in text
    for cell in cells_of("markdown"):
        for target in re.findall(r"\]\(([^)#\s]+)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / target).exists()


def store():
    """Write each cell's outputs into the notebook."""
    book = json.loads(NOTEBOOK.read_text())
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    for number, (cell, (text, pictures)) in enumerate(zip(cells, run(cells), strict=True), 1):
        cell["execution_count"] = number
        lines = text.splitlines(keepends=True)
        cell["outputs"] = (
            [{"output_type": "stream", "name": "stdout", "text": lines}] if text else []
        )
        cell["outputs"] += [
            {
                "output_type": "display_data",
                "data": {"image/png": base64.b64encode(picture).decode()},
                "metadata": {},
            }
            for picture in pictures
        ]
    NOTEBOOK.write_text(json.dumps(book, indent=1) + "\n")


if __name__ == "__main__":
    store()
