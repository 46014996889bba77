"""The tables of settings and of public names in the docs are what the code says."""

import importlib.util

import pytest

import feature_collisions
from helpers.commands import ROOT

SPEC = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
tables = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tables)


@pytest.mark.parametrize("page", tables.TABLES)
def test_a_page_says_what_the_code_says(page):
    text = (ROOT / "docs" / "reference" / page).read_text()
    assert text == tables.rewritten(page), "write it again with: python docs/tables.py"


def test_settings_of_every_depth_are_explained():
    text = tables.settings_tables()
    for row in ("| `loss.hull_weight` | `2.5` | Weight of each",
                "| `loss.stages[].step` |  | First", "| `stop.min_steps` | `null` |",
                "| `proof.seconds` | `5.0` |", "| `seed` | `0` |",
                "| `log.every` | `50` |", "| `survey.extra` | `null` |"):  # fmt: skip
        assert row in text


def test_every_public_name_is_explained():
    rows = tables.names_table().splitlines()[2:]
    assert len(rows) == len(feature_collisions.__all__)
    assert all(row.endswith(". |") for row in rows)
