"""The rate that each experiment has for `optimizer=paper` descends that experiment's loss."""

import csv

import pytest
import torch
from torch import nn

from helpers.commands import SHARED, run_command

WEIGHTS = SHARED / "weights" / "squeezenet1_1.safetensors"
IMAGENET = (f"data.root={SHARED / 'data' / 'imagenet-sample'}", f"classifier.weights={WEIGHTS}")
NEEDS_WEIGHTS = pytest.mark.skipif(not WEIGHTS.exists(), reason="needs SqueezeNet's weights")
EXPERIMENTS = [  # not VGG-16's, whose weights are the authors', nor squeezenet_macro, which is slow
    ("mnist", 40, ()),
    ("mnist_macro", 40, ()),
    ("small_pixel", 40, ("classifier.path=own_network:network", "data=digits")),
    pytest.param("squeezenet_pixel", 20, IMAGENET, marks=NEEDS_WEIGHTS),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.filterwarnings("ignore:not converged")
@pytest.mark.parametrize(("experiment", "steps", "given"), EXPERIMENTS)
def test_the_papers_rate_makes_l_pos_fall(tmp_path, experiment, steps, given):
    (tmp_path / "own_network.py").write_text("from search.test_paper_rates import network\n")
    assert not run_command(
        tmp_path, "train.py", f"experiment={experiment}", "optimizer=paper", "corner=0",
        "wandb.mode=disabled", f"stop.max_steps={steps}", f"stop.min_steps={steps}",
        f"log.every={steps // 4}", "hydra.run.dir=run", "stop.hull_relative=2", *given,
    )  # fmt: skip
    with (tmp_path / "run" / "metrics.csv").open() as file:
        norms = [float(row["positive/corner_0"]) for row in csv.DictReader(file)]
    assert norms[-1] < 0.98 * norms[0]
