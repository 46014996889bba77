"""An encoder on the command line: search, a sweep put together, evaluation, pairs, resume."""

import json

import pytest
import torch
from torch import nn

from helpers.commands import run_command
from helpers.runs import FAST, QUICK

pytestmark = pytest.mark.filterwarnings("ignore:not converged")
ENCODER = (
    "classifier=file", "classifier.path=own_encoder:encoder", "classifier.output=features",
    "output.threshold=0.5", "stop.positive=0.01", *QUICK, "stop.max_steps=20",
)  # fmt: skip


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.Sigmoid(), nn.Linear(16, 6))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own_encoder.py").write_text("from commands.test_encoders import encoder\n")
    return tmp_path


def test_a_sweep_of_an_encoder_is_put_together_and_evaluated(place):
    assert not run_command(place, "train.py", *ENCODER, "corner=0..1", "-m", "hydra.sweep.dir=all")
    assert not run_command(
        place, "evaluate.py", "run=all", "classifier.path=own_encoder:encoder", *FAST
    )
    found = json.loads((place / "all" / "evaluation.json").read_text())
    assert found["threshold"] == 0.5
    assert "failed" not in found
    assert {"same", "cosine_min", "feature_relative_max"} < set(found["dirichlet"])


def test_pairs_of_an_encoder_are_drawn_without_asking_for_classes(place):
    assert not run_command(place, "train.py", *ENCODER, "pairs=random:2", "hydra.run.dir=many")
    pairs = json.loads((place / "many" / "pairs.json").read_text())
    assert [set(each) & {"cosine_min", "accuracy"} for each in pairs] == [{"cosine_min"}] * 2
    again = run_command(
        place, "train.py", *ENCODER, "pairs=random:2", "ckpt_path=last", "hydra.run.dir=many"
    )
    assert not again
    assert "asks for classes" in run_command(place, "train.py", *ENCODER, "pairs=random:2:0")
