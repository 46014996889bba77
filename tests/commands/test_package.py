"""The package brings the program: its commands, their help, its settings, one version."""

import re
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import feature_collisions
from feature_collisions import __main__
from feature_collisions.commands.command_line import command, usage
from feature_collisions.commands.start import conf_folder
from helpers.commands import ROOT, run_command
from helpers.settings import settings


def run(monkeypatch, *arguments):
    """`feature-collisions ARGUMENTS`, in this process; gives the exit message."""
    monkeypatch.setattr(sys, "argv", ["feature-collisions", *arguments])
    try:
        __main__.main()
    except SystemExit as stop:
        return stop.code
    return None


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[?(\d[\d.]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    versions = {project["version"], cited["version"], released[0], feature_collisions.__version__}
    assert versions == {feature_collisions.__version__}


def test_an_editable_install_reads_the_checkouts_conf():
    assert conf_folder() == ROOT / "conf"


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_names_settings_that_exist(name):
    text = usage(name, ROOT / "conf")
    assert text.count("Examples:") == 1
    most = text.partition("changed most:")[2].partition("Examples:")[0]
    named = re.findall(r"^  ([a-z_.]+)=", most, re.MULTILINE)
    assert len(named) == 6
    known = asdict(settings(name={"train": "config", "evaluate": "evaluate"}[name]))
    for key in set(named) - {"experiment"}:
        group, _, inside = key.partition(".")
        assert group in known
        assert not inside or inside in known[group]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("running", "start"),
    [
        ("/a b/train.py", "python '/a b/evaluate.py'"),
        ("/a/feature_collisions/__main__.py", "python -m feature_collisions evaluate"),
        ("/usr/bin/feature-collisions", "feature-collisions evaluate"),
        ("/site/submitit/core/_submit.py", "feature-collisions evaluate"),
    ],
)
def test_what_is_printed_starts_as_the_user_did(monkeypatch, running, start):
    monkeypatch.setattr(sys, "argv", [running])
    assert command("evaluate", "run=x") == f"{start} run=x"


def test_the_entry_point_runs_the_scripts_commands(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "train", "--help") is None
    said = capsys.readouterr().out.replace("feature-collisions train", f"python {ROOT}/train.py")
    assert run_command(tmp_path, "train.py", "--help") is None
    assert said == capsys.readouterr().out
    assert run(monkeypatch, "--version") is None
    assert capsys.readouterr().out.split()[-1] == feature_collisions.__version__
    assert "train or evaluate" in run(monkeypatch, "trian")


def test_the_scripts_are_the_checkouts_own():
    """They read the `conf/` beside them, whatever package is installed."""
    for script in ("train.py", "evaluate.py"):
        assert 'Path(__file__).parent / "conf"' in Path(ROOT / script).read_text()
