"""What the commands import: a start is mostly imports, and none is made before it is needed."""

import subprocess
import sys

import pytest

from helpers.commands import ROOT

# Beside torch and Lightning, which brings torchvision, scipy and Matplotlib along.
_LATER = (
    "wandb", "jinja2", "timm", "faiss", "matplotlib.backends.backend_agg",
    "feature_collisions.proofs", "feature_collisions.report.figures",
    "feature_collisions.patches.search", "feature_collisions.evaluation.evaluate",
)  # fmt: skip


def imported(script, *arguments, cwd):
    """The modules that a command imports, by what Python says of each."""
    command = [sys.executable, "-X", "importtime", str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.returncode, {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize(
    ("script", "arguments", "status"),
    [
        ("train.py", ["--help"], 0),
        ("train.py", ["--cfg", "job"], 0),
        ("train.py", ["data=mnits"], 1),
        ("train.py", ["corner=-1"], 1),
        ("evaluate.py", ["--help"], 0),
        ("evaluate.py", ["samples=0"], 1),
    ],
)
def test_what_needs_no_tensors_waits_for_none(tmp_path, script, arguments, status):
    ended, modules = imported(script, *arguments, cwd=tmp_path)
    assert ended == status
    assert "hydra" in modules
    assert not modules & {"torch", "lightning", "scipy", "matplotlib", "wandb"}


def test_a_search_imports_what_it_runs(tmp_path):
    short = ("stop.min_steps=0", "stop.max_steps=50", "wandb.mode=disabled")
    status, modules = imported("train.py", *short, "hydra.run.dir=run", cwd=tmp_path)
    assert status == 0
    assert {"lightning", "feature_collisions.search.find_corners"} <= modules
    assert not modules & set(_LATER)
