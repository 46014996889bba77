"""Results are kept with what decided them, and taken again for the same question only."""

import json

import pytest
import torch

from feature_collisions.data.files import load_tensors

QUICK = ("wandb.mode=disabled", "stop.min_steps=0", "stop.max_steps=100", "log.checkpoint_every=50")


@pytest.fixture
def train(command, classifier):
    """train.py in an empty folder, with few steps."""
    return lambda *given: command("train.py", *sorted(QUICK + given, key=lambda each: each != "-m"))


def corners(folder):
    return load_tensors(folder / "collision.safetensors")["corners"]


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "pairs.csv").write_text("3,7\n1,4\n")
    return ("pairs=pairs.csv", "corner=0", "hydra.run.dir=pairs")


@pytest.mark.filterwarnings("ignore:not converged")
def test_pairs_keep_their_settings_and_are_reused_under_the_same_alone(
    train, pairs, tmp_path, capsys
):
    assert train(*pairs) is None
    before = {path: path.read_bytes() for path in (tmp_path / "pairs").rglob("*") if path.is_file()}
    capsys.readouterr()
    answer = train(*pairs, "loss.alpha=100", "log.every=25")
    assert answer.startswith("error: hydra.run.dir=")
    assert "000_3_to_7 was searched with other settings (" in answer
    assert "loss.alpha was 1.0, is 100.0" in answer
    assert "log.every was 50, is 25" in answer
    assert {path: path.read_bytes() for path in before} == before
    kept = json.loads((tmp_path / "pairs" / "000_3_to_7" / "settings.json").read_text())
    assert kept["loss.alpha"] == 1
    assert len(kept["classifier.hash"]) == 16
    assert {"initial.image", "target.image"} <= kept.keys()

    # where files lie, what is logged and the pictures' cadence decide nothing
    assert not train(*pairs, "log.images_every=9", "wandb.project=other", "corners_per_batch=1")
    shown = capsys.readouterr().out
    assert "2 of 2 pairs are already there, with these settings" in shown
    assert shown.count("(found earlier)") == 2
    assert "Finding" not in shown
    places = [tmp_path / "pairs" / name for name in ("000_3_to_7", "001_1_to_4")]
    assert all((place / "collision.safetensors").read_bytes() == before[place / "collision.saf"
               "etensors"] for place in places)  # fmt: skip


@pytest.mark.filterwarnings("ignore:not converged")
def test_an_unfinished_pair_is_not_gone_on_with_under_other_settings(train, pairs, tmp_path):
    assert train(*pairs) is None
    for name in ("collision.safetensors", "outcome.json"):
        (tmp_path / "pairs" / "001_1_to_4" / name).unlink()
    (tmp_path / "pairs.csv").write_text("8,2\n1,4\n")
    assert "001_1_to_4 was searched with other settings" in train(*pairs, "loss.beta=0.5")
    (tmp_path / "pairs.csv").write_text("3,7\n1,4\n")
    assert train(*pairs) is None
    assert train(*pairs[:2], "hydra.run.dir=again") is None
    same = [corners(tmp_path / name / "001_1_to_4") for name in ("pairs", "again")]
    assert torch.equal(*same)
    curves = [(tmp_path / name / "001_1_to_4" / "metrics.csv") for name in ("pairs", "again")]
    assert curves[0].read_text() == curves[1].read_text()


def test_pairs_that_all_fail_are_no_success(train, pairs, tmp_path):
    answer = train(*pairs, "loss.alpha=1e308", "optimizer.rate=1e308")
    assert answer.startswith("error: pairs=pairs.csv: no pair could be evaluated (see ")
    assert "CollisionError: the loss is not finite" in answer
    assert (tmp_path / "pairs" / "pairs.md").read_text().startswith("# 0 of 2: features collide")


@pytest.mark.filterwarnings("ignore:not converged")
def test_a_sweep_repeated_is_refused_and_continued_when_asked(train, tmp_path, capsys):
    sweep = ("-m", "corner=0,1,2", "hydra.sweep.dir=sweep", "stop.min_steps=100")
    assert train(*sweep) is None
    answer = train(*sweep)
    assert answer.startswith("error: hydra.sweep.dir=")
    assert "there is a run in job 0 (collision.safetensors); continue it with ckpt_path=" in answer

    whole = [corners(tmp_path / "sweep" / name) for name in "012"]
    for path in sorted((tmp_path / "sweep" / "2").rglob("*"), reverse=True):  # it never started
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "sweep" / "1" / "collision.safetensors").unlink()
    capsys.readouterr()
    assert train(*sweep, "ckpt_path=last") is None
    shown = capsys.readouterr().out
    assert shown.count("already finished with these settings; skipping it") == 1
    for name, expected in zip("012", whole, strict=True):
        assert torch.equal(corners(tmp_path / "sweep" / name), expected)
    rows = (tmp_path / "sweep" / "1" / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "50", "100"]

    answer = train(*sweep, "ckpt_path=last", "loss.alpha=100")
    assert answer.startswith("error: ckpt_path=last: the run in ")
    assert "loss.alpha was 1.0, is 100.0" in answer
    assert "raise stop.max_steps=100" in answer
    assert train(*sweep, "ckpt_path=last", "stop.max_steps=150") is None
    assert "with other settings (stop.max_steps was 100, is 150)" in capsys.readouterr().out
