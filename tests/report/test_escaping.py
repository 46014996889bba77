"""Names that may be a stranger's, in each medium."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from feature_collisions.errors import SettingError
from feature_collisions.networks.weights import read_weights
from feature_collisions.report.escaping import for_csv, for_line, for_markdown, from_markdown
from feature_collisions.report.page import html_table
from feature_collisions.report.report import write_report
from feature_collisions.report.tables import markdown_table
from helpers.hulls import NAMES, evaluated, made_hull


@given(st.text())
def test_a_name_comes_back_from_a_markdown_cell_and_marks_nothing_up(name):
    cell = for_markdown(name)
    assert from_markdown(cell) == for_line(name)
    assert not set("<>\n\r\x1b") & set(cell)
    assert html_table(markdown_table([name], [[name]])).count("<td>") == 1


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@a", "\t=1", "\r=1"])
def test_a_formula_is_text_in_a_spreadsheet(name):
    assert for_csv(name)[0] not in "=+-@\t\r" or for_csv(name).startswith("\\")


def test_no_name_of_a_run_is_markup_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr("feature_collisions.report.report.save_figure", lambda *_: None)
    hull = made_hull()
    nasty = "<script>x</script>[a](b)"
    hull.summary |= {"experiment": nasty, "classifier": nasty, "layer": nasty}
    write_report(tmp_path, hull, evaluated(hull, tmp_path), NAMES)
    text = (tmp_path / "report.md").read_text()
    assert "<script>" not in text
    assert "[a](b)" not in text


def test_refused_weights_give_no_advice_to_execute_them(tmp_path):
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(SettingError, match="nothing in a file is executed") as error:
        read_weights(tmp_path / "a.pt")
    assert "weights_only" not in str(error.value)
