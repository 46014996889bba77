"""An encoder on the command line: search, a sweep put together, evaluation, pairs, resume."""

import json
import re

import pytest
import torch
from torch import nn

from helpers.commands import run_command
from helpers.runs import FAST, QUICK
from helpers.wandb_records import told

pytestmark = [
    pytest.mark.filterwarnings("ignore:not converged"),
    pytest.mark.usefixtures("undrawn"),
]
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
    assert "needs classes" in run_command(place, "train.py", *ENCODER, "pairs=random:2:0")


def test_composites_collide_for_an_encoder_and_wandb_gets_no_class(place):
    assert not run_command(
        place, "train.py", "experiment=mnist_macro", *ENCODER, "wandb.mode=offline", "corner=0..2",
        "data.size=28", "stop.hull_relative=1", "initial=3:1", "target=7", "hydra.run.dir=macro",
    )  # fmt: skip
    said = run_command(
        place, "evaluate.py", "run=macro", "classifier.path=own_encoder:encoder",
        "wandb.mode=offline", *FAST,
    )  # fmt: skip
    assert not said
    summary = json.loads((place / "macro" / "summary.json").read_text())
    assert all({"cosine", "total_variation"} < set(each) for each in summary["corners"])
    assert "3:1 → 7" in (place / "macro" / "report.html").read_text()
    search, evaluation = told(place / "macro")
    assert search.id == evaluation.id
    assert {"hull/cosine_min", "hull/same"} < set(evaluation.summary)
    assert evaluation.last("hull/cosine_dirichlet")["_type"] == "histogram"
    assert evaluation.last("hull/worst_point")["caption"].startswith("cosine")
    tables = [
        path.read_text() for path in (place / "macro").glob("wandb/offline*/files/**/*.table.json")
    ]
    assert len(tables) == 2
    for each in (search, evaluation):
        tables.append(json.dumps([each.summary, list(each.rows.values())]))
    assert not re.search("probabilit|_class|accuracy", " ".join(tables))
