"""An encoder: what its network returns are features, and nobody asks for a class."""

import json
import re

import pytest
import torch
from torch import nn

from feature_collisions import SettingError, StopSettings, find_corners
from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.evaluation.hull_of_run import checked_hull
from feature_collisions.exact.exact_hull import ExactCorners
from feature_collisions.hull.hull import Hull
from feature_collisions.report.report import write_report
from feature_collisions.report.words import names_of
from feature_collisions.runs.rows import row_of
from feature_collisions.runs.run import load_run
from feature_collisions.settings.evaluate import (
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WorstCaseSettings,
)
from feature_collisions.settings.output import OutputSettings
from helpers.defaults import stop_at_once

OF_CLASSES = (
    "target_class", "initial_class", "predicted_class", "probability", "target_probability",
    "accuracy", "worst_case_class", "edges", "class",
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(36, 24), nn.GELU(), nn.Linear(24, 5), nn.LayerNorm(5)
    )  # fmt: skip


@pytest.fixture(scope="module")
def hull(encoder):
    torch.manual_seed(1)
    stop = StopSettings(min_steps=60, max_steps=60)
    return find_corners(
        encoder, "auto", *torch.rand(2, 1, 6, 6), range(3), stop=stop, output="features",
        threshold=0.9,
    )  # fmt: skip


def keys_in(value):
    if isinstance(value, dict):
        return set(value) | {key for each in value.values() for key in keys_in(each)}
    return {key for each in value for key in keys_in(each)} if isinstance(value, list) else set()


def test_a_sample_has_cosines_and_no_class(hull, encoder):
    sample = hull.sample(200)
    assert not keys_in(sample) & set(OF_CLASSES)
    outputs = encoder(torch.cat([hull.points(torch.eye(3)), hull.target[None]])).detach()
    *cosines, _ = torch.cosine_similarity(outputs, outputs[-1:]).tolist()
    assert [each.cosine for each in hull.summary.corners] == pytest.approx(cosines, abs=1e-6)
    assert sample["cosine_min"] > 0.9
    assert (sample["same"], sample["samples"]) == (1.0, 200)
    assert hull.outcome(sample).name == "features collide"


def test_reports_call_the_pictures_of_an_encoder_by_class_or_file(hull):
    named = [names_of(hull, ("cat", "7"), (), pair) for pair in (("0:2", 7), ("a/b.png", "dog"))]
    assert named == [["cat:2", "7"], ["b.png", "dog"]]


def test_the_worst_point_has_the_least_cosine(hull):
    worst = hull.worst_case(4, 8)
    assert worst.cosine <= hull.sample(500)["cosine_min"] + 1e-6
    assert worst.correct is worst.predicted_class is worst.probability is None


def test_the_worst_features_of_an_encoder_are_found(hull):
    worst = hull.worst_case(4, 8, of="features")
    assert worst.feature_relative >= hull.sample(500)["feature_relative_max"] * (1 - 1e-5)
    image = hull.points(worst.weights[None])
    outputs = hull.model(torch.cat([image, hull.target[None]])).detach()
    assert worst.cosine == pytest.approx(float(torch.cosine_similarity(*outputs, 0)), abs=1e-6)
    assert worst.correct is None


def test_a_proof_is_of_the_features_alone(hull):
    proof = hull.prove(0.0)
    assert proof["class"]["outcome"] == "no class"
    assert "feature_relative_max" in proof["collision"] or "reason" in proof["collision"]


@pytest.mark.usefixtures("undrawn")
def test_no_class_is_in_what_is_written(hull, tmp_path):
    hull.save(tmp_path)
    settings = EvaluateSettings(
        samples=40, worst_case=WorstCaseSettings(starts=2, steps=2), plain=PlainSettings(2),
        proof=ProofSettings(0.5, False), output=OutputSettings(0.99),
    )  # fmt: skip
    run = load_run(tmp_path)
    again = checked_hull(hull.model, run, settings)
    assert again.output.threshold == 0.99
    result = evaluate(again, lambda: {1: 2.0, 2: 2.0}, settings, tmp_path)
    assert "failed" not in result
    assert result["worst_feature_relative"] >= result["feature_relative_max"] * (1 - 1e-5)
    names = names_of(again, ("3", "7"))
    description = write_report(tmp_path, again, result, names)
    assert row_of(run.summary, result).cosine_min == result["dirichlet"]["cosine_min"]
    for name in ("summary.json", "evaluation.json"):
        assert not keys_in(json.loads((tmp_path / name).read_text())) & set(OF_CLASSES)
    page = (tmp_path / "report.html").read_text().partition("<header>")[2]
    said = f"{description} {(tmp_path / 'report.md').read_text()} {page.partition('<script')[0]}"
    words = re.sub(r'class="[^"]*"|classifier', "", said)
    assert not re.search("probabilit|class", words, re.IGNORECASE)
    assert "above 0.99 for the same" in said


def test_what_a_stranger_says_of_an_encoder_is_checked(hull, tmp_path):
    hull.save(tmp_path)
    path = tmp_path / "summary.json"
    said = json.loads(path.read_text())
    said["corners"][0]["cosine"] -= 0.1
    path.write_text(json.dumps(said))
    with pytest.raises(SettingError, match="cosine="):
        checked_hull(hull.model, load_run(tmp_path), EvaluateSettings())
    del said["corners"][0]["cosine"]
    path.write_text(json.dumps(said))
    with pytest.raises(SettingError, match="no cosine"):
        load_run(tmp_path)


def test_exact_corners_of_an_encoder(encoder):
    torch.manual_seed(2)
    corners = ExactCorners(encoder, torch.rand(1, 6, 6), 3, output="features").run()
    assert corners.sample(50)["cosine_min"] == pytest.approx(1.0, abs=1e-5)


class Maps(nn.Module):
    def forward(self, images):
        return images.repeat(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        (Maps(), {}, "must return features"),
        (None, {"output": "logits"}, "output=logits: must be one of"),
        (None, {"output": "classes", "threshold": 0.5}, "output.threshold=0.5: is a cosine"),
        (None, {"threshold": 2.0}, "output.threshold=2.0: must be"),
    ],
)
def test_what_is_no_encoder_gets_one_message(encoder, model, changed, said):
    given = {"output": "features", "stop": stop_at_once()} | changed
    with pytest.raises(SettingError, match=said):
        find_corners(model or encoder, "auto", *torch.rand(2, 1, 6, 6), range(2), **given)


def test_a_hull_of_features_has_no_target_class(hull):
    with pytest.raises(SettingError, match="no classes"):
        _ = hull.target_class
    assert isinstance(hull, Hull)
