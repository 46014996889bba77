"""Run from the installed wheel: the Python API's example, and every file it must carry."""

import sys
from importlib.resources import files

import torch
from torch import nn

import feature_collisions
from feature_collisions import StopSettings, find_corners, load_run

assert feature_collisions.__file__.startswith(sys.argv[1]), feature_collisions.__file__
package = files("feature_collisions")
for name in ("py.typed", "data/imagenet_wnids.txt", "patches/composite.c", "report/layout.html",
             "report/parts.html", "report/report.html", "report/runs.html", "report/survey.html",
             "report/page.css", "report/page.js"):  # fmt: skip
    assert package.joinpath(name).read_text() or name == "py.typed", name
assert len(package.joinpath("networks/mnist_mlp.safetensors").read_bytes()) > 1_000_000
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
initial, target = torch.rand(2, 1, 8, 8)
hull = find_corners(model, "1", initial, target, range(3), stop=StopSettings(positive=0.01))
hull.save("run")
assert torch.equal(load_run("run").corners, hull.corners)
print("the wheel works")
