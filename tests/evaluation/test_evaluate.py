"""evaluate.py on a hull of exact corners, and on run directories made by strangers."""

import json
import os
import pickle
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from feature_collisions.data.devices import explain_out_of_memory
from feature_collisions.data.files import save_tensors
from feature_collisions.errors import SettingError
from feature_collisions.evaluation.evaluate import SAMPLED, Subject
from feature_collisions.runs.evaluation import Evaluation, Sample
from feature_collisions.settings.evaluate import EvaluateSettings
from feature_collisions.simplex import SAMPLERS
from helpers.hulls import evaluated, made_hull
from helpers.runs import CONFIG

pytestmark = pytest.mark.usefixtures("undrawn")


def change(run, part, **entries):
    """Change the summary, or one of its corners."""
    summary = json.loads((run / "summary.json").read_text())
    (summary if part == "summary" else summary["corners"][part]).update(entries)
    (run / "summary.json").write_text(json.dumps(summary))


def test_the_outcome_takes_the_largest_feature_error_of_all_samples_and_corners():
    hull = made_hull()
    probability = float(hull.output.probability)
    uniform = Sample(accuracy=1.0, probability_mean=probability, feature_relative_max=0.01)
    subject = Subject(hull, EvaluateSettings(), known=Evaluation(dirichlet=uniform))
    alone = SAMPLED["outcome"](subject)
    assert alone.outcome == "features collide"
    assert alone.feature_relative_max == max(0.01, hull.summary.corner_feature_relative_max or 0)
    subject.known.stick_breaking = Sample(feature_relative_max=9.0)
    both = SAMPLED["outcome"](subject)
    assert (both.outcome, both.feature_relative_max) == ("class only", 9.0)
    assert both.outcome_reasons == [
        f"feature error 9.000 ||f(t)||, the limit is {alone.hull_relative:g}"
    ]


def test_the_outcome_counts_the_largest_feature_error_that_a_search_found():
    hull = made_hull()
    probability = float(hull.output.probability)
    uniform = Sample(accuracy=1.0, probability_mean=probability, feature_relative_max=0.01)
    known = Evaluation(dirichlet=uniform, worst_feature_relative=9.0)
    found = SAMPLED["outcome"](Subject(hull, EvaluateSettings(), known=known))
    assert (found.outcome, found.feature_relative_max) == ("class only", 0.01)
    assert found.outcome_reasons == [
        f"feature error 9.000 ||f(t)|| at the worst point found, the limit is "
        f"{found.hull_relative:g}"
    ]


def test_the_search_comes_before_the_outcome_and_needs_two_corners(tmp_path):
    names = list(SAMPLED)
    assert names.index("worst_features") < names.index("outcome")
    assert "worst_feature_relative" not in evaluated(made_hull(1), tmp_path)
    assert not (tmp_path / "images" / "worst_features.png").exists()


def test_a_hull_of_exact_corners_is_proved(command, run, undrawn, capsys):
    undrawn.undo()
    assert command("evaluate.py", "run=run", "samples=200") is None
    found = json.loads((run / "evaluation.json").read_text())
    assert found["dirichlet"]["samples"] == 200
    assert found["dirichlet"]["kl_max"] < 1e-4
    assert found["edges"]["share_held"] == 1  # too large for interval arithmetic
    assert found["proof"]["class"]["share_proved"] == 1
    assert found["proof"]["collision"]["positive_relative_max"] < 1e-6
    assert found["proof"]["collision"]["inactive_max"] < 1e-5
    assert "depth" not in found  # these corners are not gradient descent's
    assert 0 < found["ball_accuracy"] < 1
    assert 0 < found["corner_ssim_mean"] < 1
    assert len(found["boxes"]) == 3
    assert found["worst_case_correct"]
    assert found["worst_case_class"] == 7
    report = (run / "report.md").read_text()
    assert re.search(r"\| class of every mix +\| 7; its logit is at least .* \| proved ", report)
    # as wide as the terminal: the cell's last words may stand in the next line
    assert re.search(r"features of every mix +at most .* proved", capsys.readouterr().out)
    assert found["worst_feature_relative"] == pytest.approx(found["feature_relative_max"], abs=1e-6)
    for name in ("differences.png", "images/worst_case.png", "images/worst_features.png"):
        assert (run / name).stat().st_size > 0


@pytest.mark.parametrize(
    ("asked", "of_run", "expected"),
    [
        ("auto", "bf16-mixed", torch.bfloat16),
        ("auto", "32-true", None),
        ("auto", "16-mixed", None),  # found on a GPU; a CPU has no such arithmetic
        ("auto", ["bf16-mixed"], None),
        ("32-true", "bf16-mixed", None),
        ("bf16-mixed", "32-true", torch.bfloat16),
    ],
)
def test_searches_are_in_half_precision_where_the_runs_was(asked, of_run, expected, tmp_path):
    hull = made_hull()
    hull.summary["precision"] = of_run
    settings = EvaluateSettings(trainer={"precision": asked})
    assert Subject(hull, settings, tmp_path, {}).half == expected


def test_one_corner_alone_is_measured_and_what_needs_two_is_named(command, run, capsys):
    tensors = load_file(run / "collision.safetensors")
    kept = {k: v[:1] if k in ("corners", "units") else v for k, v in tensors.items()}
    save_tensors(run / "collision.safetensors", kept)
    summary = json.loads((run / "summary.json").read_text())
    change(run, "summary", corners=summary["corners"][:1])
    (run / "evaluation.json").write_text('{"dirichlet": {')  # an evaluation that was cut off
    (run / "report.html").write_text("<html>")
    (run / "images" / "corner_0.png").unlink()
    assert command("evaluate.py", "run=run", "samples=50") is None
    assert re.search(r"needs two corners +distances, looks", capsys.readouterr().out)
    found = json.loads((run / "evaluation.json").read_text())
    assert found["dirichlet"]["accuracy"] == 1
    assert "ball_accuracy" not in found
    assert found["left_out"]["edges"] == "needs two corners"
    assert (run / "report.html").read_text().rstrip().endswith("</html>")


def test_a_strangers_config_is_data(command, run, tmp_path):
    marker = tmp_path / "executed"
    target = f"{{_target_: pathlib.Path.touch, _args_: [{marker}], name: mnist_mlp, "
    config = CONFIG.replace("classifier: {name: mnist_mlp,", f"classifier: {target}")
    config += f"trainer: {{_target_: os.mkdir, path: {marker}}}\ninitial: ${{oc.create:1}}\n"
    (run / "config.yaml").write_text(config)
    assert command("evaluate.py", "run=run", "samples=10", "edges.seconds=0") is None
    assert not marker.exists()
    (run / "config.yaml").write_text(f"data: !!python/object/apply:os.mkdir [{marker}]\n")
    assert "config.yaml: not a settings file" in command("evaluate.py", "run=run")
    assert not marker.exists()


def test_nothing_is_downloaded_to_a_place_that_a_run_names(command, run, tmp_path):
    place = tmp_path / "elsewhere"
    config = CONFIG.replace("name: digits, root: null", f"name: mnist, root: {place}")
    (run / "config.yaml").write_text(config)
    assert "elsewhere: the run's data is missing" in command("evaluate.py", "run=run")
    assert not place.exists()


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("write", [pickle.dumps, torch.save], ids=["pickle", "torch.save"])
def test_a_pickled_payload_is_not_read(command, run, tmp_path, write):
    marker, place = tmp_path / "executed", run / "collision.safetensors"
    if write is torch.save:
        torch.save(Payload(marker), place)
    else:
        place.write_bytes(pickle.dumps(Payload(marker)))
    assert "a damaged safetensors file" in command("evaluate.py", "run=run")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("part", "entries", "message"),
    [
        ("summary", {"classifier_hash": None}, "summary.json has no classifier_hash"),
        ("summary", {"classifier_hash": "00"}, "were found with other weights (hash 00, here"),
        ("summary", {"target_class": 3}, "gives classes that the classifier does not"),
        ("summary", {"target_class": "7"}, "target_class='7' in summary.json"),
        ("summary", {"distance_scale": None}, "distance_scale=None in summary.json"),
        (1, {"predicted_class": 10}, "gives classes that the classifier does not"),
        (1, {"unit_preactivation": "low"}, "corners.1.unit_preactivation='low' in summary.json"),
    ],
)
def test_a_summary_that_cannot_be_true_is_refused(command, run, part, entries, message):
    change(run, part, **entries)
    answer = command("evaluate.py", "run=run")
    assert answer.startswith("error: run=run: ")
    assert message in answer
    assert not (run / "evaluation.json").exists()


def test_corners_of_another_size_are_refused(command, run, tmp_path):
    sweep = tmp_path / "sweep"
    for job in "01":
        shutil.copytree(run, sweep / job)
    tensors = load_file(run / "collision.safetensors")
    small = {k: v[..., :14] if k != "units" else v for k, v in tensors.items()}
    save_tensors(sweep / "1" / "collision.safetensors", small)
    answer = command("evaluate.py", "run=sweep", "samples=20", "plain.steps=0")
    assert answer.startswith("error: some measurements failed; the others are saved. 1: run=")
    table = (sweep / "runs.md").read_text()
    assert "1 of 2: features collide" in table  # each is a hull of its own
    assert "its images are (1, 28, 14), those of its data (1, 28, 28)" in table
    answer = command("evaluate.py", "run=sweep/1")
    assert "its images are (1, 28, 14), those of its data (1, 28, 28)" in answer


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("samples=0", "samples=0: must be a finite number of at least 1"),
        ("edges.share=1.5", "edges.share=1.5: must be in [0, 1]"),
        ("edges.precision=16", "edges.precision=16: must be one of 32, 64"),
        ("worst_case.steps=0", "worst_case.steps=0: must be"),
        ("plain.steps=-1", "plain.steps=-1: must be"),
    ],
)
def test_a_setting_out_of_range_is_named(command, setting, message):
    assert message in command("evaluate.py", setting)


@pytest.mark.parametrize("objective", ["unit", "random"])
def test_train_solves_for_exact_corners(command, tmp_path, classifier, objective, capsys):
    arguments = ["solver=linear_program", f"objective={objective}", "corner=0..1"]
    assert command("train.py", *arguments, "wandb.mode=disabled", "hydra.run.dir=new") is None
    summary = json.loads((tmp_path / "new" / "summary.json").read_text())
    assert summary["objective"] == objective
    assert all(entry["positive"] < 1e-4 for entry in summary["corners"])
    assert re.search(r"next: python \S*evaluate\.py run=", capsys.readouterr().out)


def test_exact_corners_of_a_deeper_layer_are_refused(command, classifier):
    answer = command("train.py", "solver=linear_program", "classifier.layer=hidden2")
    assert "layer=hidden2: the pixels pass through" in answer


def test_memory_that_runs_out_is_named_with_what_to_do(tmp_path, monkeypatch):
    hull = made_hull(3)

    def hungry(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(type(hull), "sample", hungry)
    found = evaluated(hull, tmp_path)
    assert found["failed"]["dirichlet"].startswith("out of memory on cpu; end other programs there")
    assert found["worst_case_probability"] >= 0  # the others are kept
    message = r"out of memory on cuda:0; .*trainer\.accelerator=cpu"
    with pytest.raises(SettingError, match=message), explain_out_of_memory(torch.device("cuda", 0)):
        hungry()


def test_a_device_that_is_not_there_is_refused(command, run):
    settings = "trainer.accelerator=cpu", "trainer.devices=4096"
    assert "CPU cores here" in command("evaluate.py", f"run={run}", *settings)


@pytest.mark.skipif(os.cpu_count() < 2, reason="one core is one device")
def test_two_devices_find_what_one_finds(command, run):
    arguments = "run=run", "trainer.accelerator=cpu", "samples=400", "edges.seconds=0"
    for devices in (1, 2):
        assert command("evaluate.py", *arguments, f"trainer.devices={devices}") is None
        found = json.loads((run / "evaluation.json").read_text())
        assert found.get("failed") is None
        figures = [found[law][name] for law in SAMPLERS for name in found[law] if "_m" in name]
        figures += [found["plain_corner_distance_mean"], found["worst_case_probability"]]
        if devices == 1:
            expected = figures
    assert len(figures) > 10
    assert figures == pytest.approx(expected, rel=1e-4, abs=1e-6)
