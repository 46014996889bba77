"""Run from the installed wheel: the commands, the Python example, and every file it must carry."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import torch
from torch import nn

import feature_collisions
from feature_collisions import StopSettings, find_corners, load_run

assert feature_collisions.__file__.startswith(sys.argv[1]), feature_collisions.__file__
package = files("feature_collisions")
for name in ("py.typed", "data/imagenet_wnids.txt", "patches/composite.c", "report/layout.html",
             "report/parts.html", "report/report.html", "report/tables.html",
             "report/page.css", "report/page.js", "conf/config.yaml", "conf/evaluate.yaml",
             "conf/experiment/mnist.yaml"):  # fmt: skip
    assert package.joinpath(name).read_text() or name == "py.typed", name
assert len(package.joinpath("networks/mnist_mlp.safetensors").read_bytes()) > 1_000_000
torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
initial, target = torch.rand(2, 1, 8, 8)
hull = find_corners(model, "1", initial, target, range(3), stop=StopSettings(positive=0.01))
hull.save("run")
assert torch.equal(load_run("run").corners, hull.corners)
quick = ("corner=0..1", "wandb.mode=disabled", "hydra.run.dir=job")
evaluation = ("run=job", "samples=20", "samples_beside=20", "plain.steps=0", "proof.seconds=1",
              "edges.seconds=1", "worst_case.steps=2", "wandb.mode=disabled")  # fmt: skip
for arguments in (("train", "stop.min_steps=0", *quick), ("evaluate", *evaluation)):
    subprocess.run([sys.executable, "-m", "feature_collisions", *arguments], check=True)
assert "proof" in Path("job/evaluation.json").read_text()
print("the wheel works")
