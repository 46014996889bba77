"""train.py and evaluate.py as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from feature_collisions.data.files import load_tensors, save_tensors
from feature_collisions.data.images import save_png
from helpers.commands import ROOT, start
from helpers.runs import QUICK


def test_help_into_a_pipe_that_nobody_reads_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, ROOT / "train.py", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.fixture
def trained(command, classifier):
    """`command`, with the classifier in the cache."""
    return command


def newest(folder):
    return max(folder.rglob("collision.safetensors"), key=lambda p: p.stat().st_mtime).parent


def test_the_main_job_from_nothing_to_a_report(trained, tmp_path, capsys):
    """Section 3.1, Figure 2 and Table 1, on the bundled digits."""
    assert trained("train.py") is None
    shown = capsys.readouterr().out
    run = newest(tmp_path)
    assert f"run: {run}" in shown
    assert run.parent == tmp_path / "runs" / "mnist"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["converged"]
    assert (summary["initial_class"], summary["target_class"]) == (3, 7)
    assert [entry["corner"] for entry in summary["corners"]] == [0, 1, 2, 3, 4]
    for entry in summary["corners"]:
        assert entry["positive"] < 5
        assert entry["predicted_class"] == 7
        assert f"{entry['unit_preactivation']:.1f}" in shown
    for name in ("config.yaml", "metrics.csv", "checkpoints/last.ckpt", "images/target.png",
                 "images/corner_4.png", "images/steps/step_000250_corner_0.png"):  # fmt: skip
        assert (run / name).stat().st_size > 0

    assert trained("evaluate.py") is None
    shown = capsys.readouterr().out
    assert "how different" in shown
    assert "100 % of 2000" in shown
    result = json.loads((run / "evaluation.json").read_text())
    for sampler, samples, lower in (("dirichlet", 2000, 0.99850), ("stick_breaking", 2000, 0.99850),
                                ("dirichlet_uint8", 300, 0.99006),
                                ("stick_breaking_uint8", 300, 0.99006)):  # fmt: skip
        assert result[sampler]["samples"] == samples
        assert result[sampler]["accuracy"] == 1
        assert result[sampler]["accuracy_lower_95"] == pytest.approx(lower, abs=1e-5)
        assert abs(result[sampler]["probability_mean"] - result["target_probability"]) < 0.01
    assert result["corner_distance_mean"] > 5
    assert 9.9 < result["dataset_distance_mean"] < 10.5
    images = result["dataset_features"]
    assert images["images"] == 200
    assert images["within"] == 0
    assert 0.05 < images["nearest"] < images["median"] < 3
    assert result["worst_case_correct"]
    report = (run / "report.md").read_text()
    assert re.search(r"\| +10\.21 \|", report)
    assert "| sampled " in report
    assert (run / "corners.png").stat().st_size > 0


@pytest.mark.usefixtures("undrawn")
def test_table_1_on_the_full_set(trained, mnist_root, tmp_path):
    """The paper: 96.64 % test accuracy, L_pos < 5, 2000 of 2000, probability 1.0."""
    from feature_collisions.data.datasets import load_data
    from feature_collisions.networks.mnist_mlp import accuracy, train_mnist_classifier
    from feature_collisions.settings.train import DataSettings

    data = load_data(DataSettings("mnist", str(mnist_root)))
    model = train_mnist_classifier(data.train, steps=6000)  # half of what train.py takes
    assert accuracy(model, data.test) >= 0.9664
    save_tensors(tmp_path / "half.safetensors", model.state_dict())
    arguments = ("wandb.mode=disabled", "data=mnist", f"data.root={mnist_root}")
    assert trained("train.py", *arguments, "classifier.weights=half.safetensors") is None
    assert trained("evaluate.py") is None
    run = newest(tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert all(entry["positive"] < 5 for entry in summary["corners"])
    result = json.loads((run / "evaluation.json").read_text())
    for sampler in ("dirichlet", "stick_breaking"):
        assert result[sampler]["accuracy"] == 1
        assert result[sampler]["probability_mean"] >= 0.999
    assert 10.1 < result["dataset_distance_mean"] < 10.3
    assert result["corner_distance_mean"] >= 5


@pytest.mark.usefixtures("undrawn")
def test_a_sweep_finds_what_a_batch_finds(trained, tmp_path):
    assert trained("train.py", *QUICK, "corner=0..2", "hydra.run.dir=batch") is None
    assert trained("train.py", *QUICK, "corner=0..2", "hydra.sweep.dir=sweep", "-m") is None
    batch = load_tensors(tmp_path / "batch" / "collision.safetensors")["corners"]
    for job in range(3):
        alone = load_tensors(tmp_path / "sweep" / str(job) / "collision.safetensors")["corners"]
        assert (alone[0] - batch[job]).abs().max() < 1e-5
    assert trained("evaluate.py", "run=sweep", "samples=100") is None
    result = json.loads((tmp_path / "sweep" / "evaluation.json").read_text())
    assert result["dirichlet"]["samples"] == 100
    assert trained("evaluate.py", "run=sweep/1", "samples=100") is None
    alone = json.loads((tmp_path / "sweep" / "1" / "evaluation.json").read_text())
    assert "corner_distance_mean" not in alone  # one corner has no distance
    assert "worst_case_weights" not in alone


def test_a_failing_job_leaves_the_others_of_its_sweep(trained, tmp_path):
    message = trained("train.py", *QUICK, "corner=0,999,1", "hydra.sweep.dir=sweep", "-m")
    assert message.startswith("error: corner=999: the target has")
    found = sorted(path.parent.name for path in tmp_path.rglob("collision.safetensors"))
    assert found == ["0", "2"]


def test_same_seed_same_tensors(trained, tmp_path):
    for name in ("a", "b"):
        assert trained("train.py", *QUICK, "seed=0", "corner=0", f"hydra.run.dir={name}") is None
    a, b = (load_tensors(tmp_path / name / "collision.safetensors") for name in "ab")
    assert torch.equal(a["corners"], b["corners"])


def test_another_seed_is_another_classifier(digits):
    from feature_collisions.networks.mnist_mlp import train_mnist_classifier
    from feature_collisions.networks.weights import weights_hash

    hashes = [weights_hash(train_mnist_classifier(digits.train, seed, 5)) for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


MISTAKES = [
    (("experiment=none",), "error: experiment=none: unknown; the choices are cifar_pixel, mnist"),
    (("los.alpha=1",), "error: los: there is no such setting; did you mean loss?"),
    (("corners=2",), "error: corners: there is no such setting; did you mean corner?"),
    (("max_steps=2",), "error: max_steps: there is no such setting; did you mean stop.max_steps?"),
    (("zzz=2",), "error: zzz: there is no such setting; the settings here are "),
    (("data=mnits",), "error: data=mnits: unknown; did you mean mnist? the choices are cifar10, "),
    (("loss.alfa=1",), "error: loss.alfa: there is no such setting; did you mean loss.alpha"),
    (("loss.alpha=many",), "error: loss.alpha=many: must be a number"),
    (("loss.alpha=-1",), "error: loss.alpha=-1.0: must be a finite number of at least 0"),
    (("corner=4..0",), "error: corner=4..0: a range must increase; write corner=0..4"),
    (("corner=4..0", "-m"), "error: corner=4..0: a range must increase; write corner=0..4"),
    (("corner=256",), "error: corner=256: the target has "),
    (("corner=-1",), "error: corner=-1: corner counts the target's inactive units from 0"),
    (("corner=[]",), "error: corner=[]: no corner is named"),
    (("corner=first",), "error: corner=first: corner counts"),
    (("target=3",), "error: initial and target are the same image"),
    (("target=none.png",), "error: target=none.png: there is no such image file"),
    (("classifier.layer=nowhere",), "error: classifier.layer=nowhere: is not a layer"),
    (("classifier.weights=none",), "error: classifier.weights=none: there is no such file"),
    (("ckpt_path=none",), "error: ckpt_path=none: there is no such file"),
    (("ckpt_path=last",), "error: ckpt_path=last: there is no earlier run in"),
    (("trainer.precision=9",), "error: trainer.precision=9: must be one of 32-true, 64-true"),
    (("hydra.run.dir=/dev/null/x",), "error: /dev/null/x: Not a directory; files written"),
    (("loss.alpha=1e999",), "error: loss.alpha=inf: must be a finite number"),
    (("loss.alpha=1e308", "optimizer.rate=1e308"), "error: the loss is not finite at step 0"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda value: str(value)[:30])
def test_a_mistake_gets_one_message(trained, tmp_path, arguments, message):
    answer = trained("train.py", "wandb.mode=disabled", *arguments)
    assert answer.startswith(message)
    assert not list(tmp_path.rglob("collision.safetensors"))
    if "not finite" not in message:
        assert not list(tmp_path.rglob("config.yaml"))


def test_evaluating_nothing_says_so(command, tmp_path):
    assert command("evaluate.py").startswith("error: run: no run with corners below runs/")
    (tmp_path / "empty").mkdir()
    assert command("evaluate.py", "run=empty").startswith("error: run=empty: no corners there")
    assert command("evaluate.py", "runn=x").startswith("error: runn: there is no such setting")


def test_corners_of_another_classifier_are_refused(trained, tmp_path):
    assert trained("train.py", *QUICK, "corner=0", "hydra.run.dir=run") is None
    path = tmp_path / "run" / "summary.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"classifier_hash": "0123456789abcdef"}))
    answer = trained("evaluate.py", "run=run")
    assert "found with other weights (hash 0123456789abcdef" in answer
    (tmp_path / "run" / "config.yaml").unlink()
    assert "config.yaml does not say which classifier" in trained("evaluate.py", "run=run")


def test_a_target_that_the_classifier_gets_wrong_is_said(
    trained, classifier, digits, tmp_path, capsys
):
    with torch.inference_mode():
        wrong = (classifier(digits.test[:]).argmax(1) != digits.test.labels).nonzero()[0, 0]
    label = int(digits.test.labels[wrong])
    rank = int((digits.test.labels[:wrong] == label).sum())
    seen = int(classifier(digits.test[wrong][None]).argmax())
    initial = next(digit for digit in range(10) if digit not in (label, seen))
    arguments = (f"target='{label}:{rank}'", f"initial={initial}", "corner=0")
    assert trained("train.py", *QUICK, *arguments) is None
    summary = json.loads((newest(tmp_path) / "summary.json").read_text())
    assert (summary["target_label"], summary["target_class"]) == (label, seen)
    assert summary["initial_label"] == initial
    assert f"gives the target ({label}) the class {seen}" in capsys.readouterr().out


def test_an_image_file_may_be_initial_or_target(trained, digits, tmp_path):
    save_png(tmp_path / "my seven.png", digits.test.find("target", 7).image)
    assert trained("train.py", *QUICK, "corner=0", "target='my seven.png'") is None
    (tmp_path / "text.png").write_text("hello")
    answer = trained("train.py", *QUICK, "target=text.png")
    assert answer.startswith("error: text.png: is not an image of a known format; convert it")


def test_a_run_is_not_overwritten(trained):
    assert trained("train.py", *QUICK, "corner=0", "hydra.run.dir=run") is None
    answer = trained("train.py", *QUICK, "corner=0", "hydra.run.dir=run")
    assert "there is a run in it (collision.safetensors)" in answer


def test_a_full_disk_at_the_end_is_one_message(trained, monkeypatch, tmp_path):
    import errno

    from feature_collisions.runs import run as runs

    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(runs, "save_tensors", full)
    answer = trained("train.py", *QUICK, "corner=0", "hydra.run.dir=run")
    assert "collision.safetensors: No space left on device; files written before are" in answer
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_a_killed_run_is_continued_to_the_same_tensors(trained, classifier, tmp_path):
    """SIGKILL after the first checkpoint, then ckpt_path=last."""
    save_tensors(tmp_path / "weights.safetensors", classifier.state_dict())
    arguments = ("wandb.mode=disabled", "stop.max_steps=1500", "stop.min_steps=1500",
                 "log.checkpoint_every=100", "corner=[0,1]",
                 "classifier.weights=weights.safetensors")  # fmt: skip
    assert trained("train.py", *arguments, "hydra.run.dir=whole") is None
    process = start("train.py", *arguments, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "runs").rglob("last.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (killed,) = (tmp_path / "runs" / "mnist").iterdir()
    assert not (killed / "collision.safetensors").exists()
    assert trained("train.py", *arguments, "ckpt_path=last") is None
    assert list((tmp_path / "runs" / "mnist").iterdir()) == [killed]
    found, whole = (
        load_tensors(folder / "collision.safetensors")["corners"]
        for folder in (killed, tmp_path / "whole")
    )
    assert torch.equal(found, whole)
    assert (killed / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_the_readmes_two_commands_name_what_exists():
    readme = (ROOT / "README.md").read_text()
    assert "pip install -e . && python train.py" in readme
    assert 'pip install -e ".[dev]" && pytest' in readme
