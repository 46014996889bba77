"""Names that may be a stranger's, in each medium."""

from dataclasses import replace
from html.parser import HTMLParser
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from feature_collisions.errors import SettingError
from feature_collisions.escaping import for_csv, for_line, for_terminal
from feature_collisions.networks.weights import read_weights
from feature_collisions.report.page import tables_page
from feature_collisions.report.report import write_report
from feature_collisions.report.tables import Table, as_markdown, as_text
from helpers.hulls import NAMES, evaluated, made_hull


class Cells(HTMLParser):
    """The texts of a page's table cells, and every element in it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.inside = tag in ("th", "td")
        if self.inside:
            self.cells.append("")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("th", "td")


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
@example([("False", "")])
def test_markdown_html_and_terminal_show_the_same_cells_and_no_markup(rows):
    table = Table("names", ("one", "two"), rows)
    shown = [for_line(cell) for row in (table.columns, *rows) for cell in row]
    markdown = MarkdownIt("commonmark").enable("table").render(as_markdown(table))
    for page in (markdown, tables_page("names", "names", [table], None, table)):
        found = Cells(page)
        assert [for_line(cell) for cell in found.cells[: len(shown)]] == shown
        assert not {"a", "em", "strong", "code", "img", "script"} & set(found.tags)
    with patch.dict("os.environ", COLUMNS="100000"):
        words = " ".join(as_text(table).split())
    assert all(part in words for cell in shown for part in cell.split())
    assert for_terminal(words) == words


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_a_formula_is_text_in_a_spreadsheet(name):
    assert for_csv(name)[0] not in "=+-@\t\r" or for_csv(name).startswith("\\")


@pytest.mark.usefixtures("undrawn")
def test_no_name_of_a_run_is_markup_in_the_report(tmp_path):
    hull = made_hull()
    nasty = "<script>x</script>[a](b)"
    hull = replace(
        hull, summary=hull.summary | {"experiment": nasty, "classifier": nasty, "layer": nasty}
    )
    write_report(tmp_path, hull, evaluated(hull, tmp_path), NAMES)
    text = (tmp_path / "report.md").read_text()
    assert "<script>" not in text
    assert "[a](b)" not in text


def test_refused_weights_give_no_advice_to_execute_them(tmp_path):
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(SettingError, match="holds no state dict") as error:
        read_weights(tmp_path / "a.pt")
    assert "weights_only" not in str(error.value)
