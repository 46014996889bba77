"""A `matplotlibrc` in the current folder, which Matplotlib reads, and which may be a stranger's."""

import hashlib
import subprocess
import sys

import torch

from feature_collisions.report.figures import encoded, faces_figure, histogram_figure, sheet_figure
from feature_collisions.report.sheets import Panel, Sheet
from feature_collisions.report.words import Words
from feature_collisions.runs.evaluation import Evaluation, Proofs

STRANGE = """figure.facecolor: red
font.size: 40
axes.linewidth: 9
text.usetex: True
text.latex.preamble: \\input{secret}
svg.fonttype: none
pdf.fonttype: 42
"""
DRAW = """
import sys
sys.path.insert(0, sys.argv[1])
from report.test_matplotlibrc import drawn
import matplotlib
assert matplotlib.rcParams["text.usetex"]  # the file has been read
print(*drawn())
"""


def drawn():
    """Hashes of a figure of each kind."""
    sample = {"samples": 4, "probability_histogram": [0, 1, 3], "probability_min": 0.4,
              "probability_mean": 0.8}  # fmt: skip
    entries = {"dirichlet": sample, "target_class": 0, "target_probability": 0.9}
    result = Evaluation.model_validate(entries)
    parts = [{"vertices": [[0, 0], [1, 0], [0, 1]], "state": "proved"}]
    triangle = {"corners": [0, 1, 2], "share_proved": 1.0, "parts": parts}
    proofs = Proofs.model_validate({"faces": {"triangles": [triangle], "share_proved": 1.0}})
    faces = faces_figure(proofs)
    sheet = Sheet("corners", "Corners", [[Panel(torch.full((1, 9, 9), 0.5), "corner 0", "seven")]])
    figures = faces, histogram_figure(result, Words(("7",))), sheet_figure(sheet)
    return [hashlib.sha256(encoded(figure, "png")).hexdigest() for figure in figures]


def test_it_changes_no_figure(tmp_path, request):
    (tmp_path / "matplotlibrc").write_text(STRANGE)
    command = [sys.executable, "-c", DRAW, str(request.config.rootpath / "tests")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == drawn()
