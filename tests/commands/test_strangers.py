"""The drill: every file of a run directory, damaged in every way, through evaluate.py."""

import json
import os
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from feature_collisions import find_corners
from feature_collisions.commands.evaluate import evaluate_all
from feature_collisions.data.files import load_tensors, save_tensors
from feature_collisions.errors import SettingError
from feature_collisions.report.wandb_logs import Identity, wandb_run
from feature_collisions.settings.evaluate import (
    ClassifierPlace,
    EdgeSettings,
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WandbPlace,
    WorstCaseSettings,
)
from feature_collisions.settings.search import StopSettings
from helpers.hulls import NASTY

CONFIG = """name: toy
data: {name: digits, root: null}
classifier: {name: file, weights: null, layer: '1'}
seed: 0
"""
pytestmark = pytest.mark.usefixtures("undrawn")  # figures read no file
FILES = (
    "collision.safetensors",
    "summary.json",
    "config.yaml",
    "metrics.csv",
    "images/initial.png",
    "images/worst_case.png",
    "images/steps/step_000001_corner_0.png",
    "checkpoints/last.ckpt",
    "evaluation.json",
)
NEEDED = FILES[:3]
UNREAD = ("metrics.csv", "images/initial.png", "checkpoints/last.ckpt")
DAMAGES = ("missing", "empty", "start", "half", "end", "garbage", "type", "nan", "huge", "linked",
           "pipe")  # fmt: skip


def toy():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def evaluate():
    chosen = EvaluateSettings(
        samples=5,
        worst_case=WorstCaseSettings(0, 1),
        plain=PlainSettings(0),
        edges=EdgeSettings(seconds=0.0),
        proof=ProofSettings(0.0, False),
        classifier=ClassifierPlace(path="test_strangers:toy"),
        wandb=WandbPlace("disabled"),
    )
    return lambda directory: evaluate_all(chosen, directory)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run of two corners of a toy."""
    sys.modules.setdefault("test_strangers", sys.modules[__name__])
    initial, target = (digits.test.find("", digit).image for digit in (3, 7))
    stop = StopSettings(None, 3, 3, None, None)
    hull = find_corners(toy(), "1", initial, target, range(2), stop=stop)
    hull = replace(hull, summary=hull.summary | {"experiment": "toy", "classifier": "file"})
    folder = tmp_path_factory.mktemp("whole") / "run"
    hull.save(folder)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.csv").write_text("step,positive/corner_0\n1,0.5\n")
    (folder / "evaluation.json").write_text("{}")
    for name in FILES[5:8]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "images" / "initial.png", folder / name)
    return folder


def damage(path, kind, victim):
    content = path.read_bytes()
    path.unlink()
    if kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**42)
    elif kind == "linked":
        victim.write_bytes(content)
        path.symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "type":
        path.mkdir()
    elif kind != "missing":
        size = len(content)
        path.write_bytes(
            {
                "empty": b"",
                "start": content[:7],
                "half": content[: size // 2],
                "end": content[: size - 9],
                "garbage": bytes(range(256)) * 9,
                "nan": b'{"corners": NaN}',
            }[kind]
        )


def held(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_ends_in_one_line_or_a_right_result(evaluate, whole, tmp_path, name):
    outside = tmp_path / "outside"
    outside.mkdir()
    unread = ("garbage", "linked", "pipe")  # by evaluate.py: that they are there must not matter
    for kind in unread if name in UNREAD else DAMAGES:
        run = shutil.copytree(whole, tmp_path / kind)
        damage(run / name, kind, outside / "file")
        before = held(outside)
        if name == "evaluation.json" and kind == "type":
            with pytest.raises(IsADirectoryError):
                evaluate(run)
        elif name in NEEDED and kind != "linked":
            with pytest.raises(SettingError) as error:
                evaluate(run)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 600
        else:
            try:
                evaluate(run)
            except (
                SettingError,
                OSError,
                SystemExit,
            ):  # something lies where a picture must be written
                assert kind == "type"
            else:
                found = json.loads((run / "evaluation.json").read_text())
                assert found["dirichlet"]["samples"] == 5
        assert held(outside) == before
        shutil.rmtree(run)


@pytest.mark.parametrize("folder", ["images", "images/steps", "checkpoints", "wandb"])
def test_nothing_is_written_through_a_linked_folder(evaluate, whole, tmp_path, folder):
    run, victim = shutil.copytree(whole, tmp_path / "run"), tmp_path / "victim"
    shutil.rmtree(run / folder, ignore_errors=True)
    victim.mkdir()
    (victim / "worst_case.png").write_text("mine")
    (run / folder).symlink_to(victim)
    with pytest.raises(SettingError, match="is a link to another folder"):
        evaluate(run)
    assert held(victim) == {victim / "worst_case.png": b"mine"}
    (run / folder).unlink()
    (tmp_path / "link").symlink_to(run)
    evaluate(tmp_path / "link")  # the run itself may be reached through one


def test_wandb_writes_nothing_through_a_link(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "wandb").symlink_to(victim)
    identity = Identity(id="id", project="project", name="name", group="group", job_type="search")
    with (
        pytest.raises(SettingError, match="is a link to another folder"),
        wandb_run("offline", tmp_path, identity),
    ):
        raise AssertionError("it was opened")
    assert not list(victim.iterdir())


def rewrite(run, change):
    summary = json.loads((run / "summary.json").read_text())
    change(summary, *summary["corners"])
    (run / "summary.json").write_text(json.dumps(summary))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, a, b: s.update(layer="3"), "is of layer 3, config.yaml of 1"),
        (lambda s, a, b: s.update(experiment="other"), "is of experiment other"),
        (lambda s, a, b: s.update(distance_scale=255), "distance_scale=255 .* must be 1"),
        (lambda s, a, b: s.update(steps=10**30), "steps|64 bits"),
        (lambda s, a, b: s.update(seconds=-1), "seconds=-1"),
        (lambda s, a, b: s.update(steps=True), "steps=True in summary.json: .* integer"),
        (lambda s, a, b: s.update(target_probability=0.123), "where the classifier gives"),
        (lambda s, a, b: s.update(experiment="\x1b[2J"), "experiment='.x1b.*control characters"),
        (lambda s, a, b: a.update(positive=float("inf")), "Infinity is no number"),
        (lambda s, a, b: a.update(positive=0.0), "positive=0.0 .* where the classifier gives"),
        (lambda s, a, b: a.update(probability=1 - a["probability"]), "probability=.* where"),
        (lambda s, a, b: a.update(corner=1), "a corner occurs twice"),
        (lambda s, a, b: (a.update(corner=1), b.update(corner=0)), "is not unit"),
        (lambda s, a, b: a.update(unit=9999), "the units of the corners and of summary.json"),
        (lambda s, a, b: a.update(side="above"), "side=above .* where the classifier gives below"),
    ],
)
def test_a_summary_that_contradicts_is_refused(evaluate, whole, tmp_path, change, message):
    run = shutil.copytree(whole, tmp_path / "run")
    rewrite(run, change)
    with pytest.raises(SettingError, match=message):
        evaluate(run)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("target", lambda t: t + 1, "target has pixels outside"),
        ("initial", lambda t: t * float("nan"), "initial has pixels outside"),
        ("corners", lambda t: t.double(), "must be a float32 image"),
        ("corners", lambda t: t.bfloat16(), "must be a float32 image"),
        ("units", lambda t: t + 10**9, "units of the corners"),
        ("units", lambda t: -t - 1, "units must be"),
        ("units", lambda t: t[:, None], "units must be"),
        ("units", lambda t: t.int(), "units must be"),
    ],
)
def test_tensors_that_cannot_be_are_refused(evaluate, whole, tmp_path, name, value, message):
    run = shutil.copytree(whole, tmp_path / "run")
    tensors = load_tensors(run / "collision.safetensors")
    tensors[name] = value(tensors[name])
    save_tensors(run / "collision.safetensors", tensors)
    with pytest.raises(SettingError, match=message):
        evaluate(run)


@pytest.mark.parametrize("unit", [10**9, "active"])
def test_units_must_be_inactive_units_of_the_target(evaluate, whole, tmp_path, unit):
    run = shutil.copytree(whole, tmp_path / "run")
    tensors = load_tensors(run / "collision.safetensors")
    if unit == "active":
        unit = int(toy()[:2](tensors["target"][None]).argmax())
    tensors["units"][0] = unit
    save_tensors(run / "collision.safetensors", tensors)
    rewrite(run, lambda s, a, b: a.update(unit=unit))
    with pytest.raises(SettingError, match=r"the layer has units 0 to 15|is active in the target"):
        evaluate(run)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONFIG.replace("seed: 0", "seed: 1" + "0" * 30), "64 bits"),
        (CONFIG.replace("seed: 0", "seed: -1"), "seed=-1 in config.yaml"),
        (CONFIG.replace("root: null", "root: null, size: -3"), "data.size=-3"),
        ("a: &a [x, x]\nb: *a\n", "line 2: an alias"),
        ("[" * 500, "nested too deep"),
        ("[" * 5000, "nest"),  # some versions of libyaml count for themselves
        ("a: !!int x", "a tag"),
        ("a: " + "1:" * 100_000 + "1", "a value too long"),
    ],
)
def test_a_config_that_no_run_has_is_refused(evaluate, whole, tmp_path, config, message):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "config.yaml").write_text(config)
    with pytest.raises(SettingError, match=message):
        evaluate(run)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
    st.sampled_from([NASTY, "=HYPERLINK(1)", "${oc.env:HOME}", 10**30, -1, float("nan"), "..", {}]),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_value_in_a_run_is_refused_or_measured(whole, tmp_path, data):
    """Up to what a hull is made of; what is measured then is the drill's affair."""
    from feature_collisions.evaluation.hull_of_run import hull_of
    from feature_collisions.runs.run import load_run
    from feature_collisions.settings.evaluate import ClassifierPlace, EvaluateSettings

    run = tmp_path / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    summary = json.loads((run / "summary.json").read_text())
    config = {
        "name": "toy",
        "data": {"name": "digits", "root": None},
        "classifier": {"name": "file", "weights": None, "layer": "1"},
        "seed": 0,
    }
    parts = [summary, *summary["corners"], config, config["data"], config["classifier"]]
    part = data.draw(st.sampled_from(parts))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "config.yaml").write_text(json.dumps(config))
    with suppress(SettingError):  # and nothing else
        hull_of(
            load_run(run), EvaluateSettings(classifier=ClassifierPlace(path="test_strangers:toy"))
        )


def test_a_pipe_or_a_device_is_no_picture(tmp_path):
    from feature_collisions.data.images import load_image

    os.mkfifo(tmp_path / "a.png")
    for path in (tmp_path / "a.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(SettingError, match="must be a regular file, is a"):
            load_image(path, (1, 2, 2))
    with pytest.raises(SettingError, match=r"data\.size=100000: an image of 100000x100000"):
        load_image(tmp_path / "b.png", (3, 100_000, 100_000))
