"""What Weights & Biases is told, read back from the offline runs' own files."""

import json
import shutil
import subprocess

import pytest
import wandb

from feature_collisions.data.images import save_png
from feature_collisions.errors import SettingError
from feature_collisions.hull.statistics import OUTCOMES
from feature_collisions.report.runs import OF_RUNS, columns_of, row_of_run
from feature_collisions.report.wandb_logs import (
    IDENTITY,
    Identity,
    hull_figures,
    keep_identity,
    log_evaluation,
    log_rows,
    read_identity,
    run_name,
    wandb_run,
)
from feature_collisions.runs.evaluation import Evaluation
from feature_collisions.runs.rows import Row
from feature_collisions.runs.run import hulls_below, load_run
from feature_collisions.settings.evaluate import EvaluateSettings
from helpers.commands import run_command
from helpers.hulls import NAMES, evaluated, made_hull
from helpers.runs import FAST, make_run
from helpers.settings import settings
from helpers.wandb_records import told


@pytest.fixture(scope="module")
def sweep(classifier, tmp_path_factory):
    """A sweep of two corners, found with W&B offline."""
    folder = tmp_path_factory.mktemp("logged")
    run_command(folder, "train.py", "corner=0,1", "stop.min_steps=100", "log.images_every=50",
                "hydra.sweep.dir=sweep", "wandb.project=digits", "-m")  # fmt: skip
    return folder / "sweep"


def test_a_job_is_a_run_with_curves_pictures_and_a_table(sweep):
    ids = set()
    for job in (0, 1):
        (run,) = told(sweep / str(job))
        ids.add(run.id)
        assert (run.group, run.job_type, run.project) == ("sweep", "train", "digits")
        assert run.name.startswith(f"mnist 3 → 7 corner {job}")
        assert run.config["loss"]["alpha"] == 1.0
        assert run.config["corner"] == job
        for term in ("positive", "negative", "unit_preactivation", "total"):
            assert run.steps_of(f"{term}/corner_{job}") == [50, 100]
        assert run.steps_of(f"intermediate/corner_{job}") == [50, 100]
        shown = run.last("images")
        assert shown["captions"] == ["initial", f"corner {job}", "target"]
        assert shown["count"] == 3
        assert run.last("corners")["nrows"] == 1
        assert run.summary["converged"] is True
        assert run.exit_code == 0
    assert len(ids) == 2


@pytest.fixture(scope="module")
def copy(sweep, tmp_path_factory):
    """That sweep as a stranger might send it, with settings that would turn an upload on."""
    place = shutil.copytree(sweep, tmp_path_factory.mktemp("stranger") / "sweep", symlinks=True)
    for job in "01":
        config = (place / job / "config.yaml").read_text()
        assert "mode: offline" in config
        (place / job / "config.yaml").write_text(config.replace("mode: offline", "mode: online"))
    for folder in (place, place / "0"):
        (folder / "wandb").mkdir(exist_ok=True)
        settings = "[default]\nmode = online\nbase_url = http://x.test\n"
        (folder / "wandb" / "settings").write_text(settings)
    return place


def test_a_hull_of_several_jobs_gets_a_run_in_their_group(command, copy, capsys):
    assert command("evaluate.py", f"run={copy}", *FAST) is None
    assert "W&B (offline): added to mnist corners 0, 1" in capsys.readouterr().out
    (run,) = told(copy)
    assert run.id not in {told(copy / job)[0].id for job in "01"}
    assert (run.group, run.job_type, run.project) == ("sweep", "evaluation", "digits")
    assert run.config["corner"] == [0, 1]
    weights = ("alpha", "beta", "gamma")  # by which a sweep is compared
    assert [run.config["loss"][name] for name in weights] == [1.0, 0.1, 0.0]
    result = json.loads((copy / "evaluation.json").read_text())
    for name, value in {
        "relative_size": result["relative_size"],
        "accuracy": result["dirichlet"]["accuracy"],
        "worst_case": result["worst_case_probability"],
        "worst_feature_error": result["worst_feature_relative"],
    }.items():
        assert run.summary[f"hull/{name}"] == pytest.approx(value)
    for sampler in ("dirichlet", "stick_breaking"):
        shown = run.last(f"hull/probability_{sampler}")
        assert shown["_type"] == "histogram"
        assert shown["values"] == result[sampler]["probability_histogram"]
        assert (shown["bins"][0], shown["bins"][-1]) == (0, 1)
    assert run.last("hull/worst_point")["caption"].startswith("7; probability of the")
    assert run.last("hull/worst_features")["caption"].startswith("feature error")
    assert run.last("images")["captions"] == ["initial", "corner 0", "corner 1", "target"]
    names = [row[0] for row in table(copy, run, "evaluation")]
    assert names[:2] == ["dirichlet", "dirichlet_uint8"]
    assert "ball" in names


def table(directory, run, key):
    """The rows of a logged table."""
    (path,) = directory.glob(f"wandb/offline-run-*-{run.id}/files/{run.last(key)['path']}")
    return json.loads(path.read_text())["data"]


def test_where_wandb_sends_things_is_no_matter_of_the_run_directory(copy):
    with wandb_run("offline", copy / "0", JOB) as run:
        assert run.settings.mode == "offline"
        assert run.settings.base_url != "http://x.test"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_repository_that_a_run_directory_is_executes_nothing(copy, tmp_path, monkeypatch):
    """W&B, where it saves code, asks git for a diff, and git the commands that its config names."""
    run = copy / "1"
    touch = f"touch {tmp_path / 'executed'};"
    for arguments in (
        ["init", "-q"],
        ["add", "-f", "summary.json"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first"],
        ["config", "diff.external", touch],
        ["config", "core.fsmonitor", touch],
    ):
        subprocess.run(["git", *arguments], cwd=run, check=True)
    (run / "summary.json").write_text((run / "summary.json").read_text() + "\n")
    monkeypatch.setenv("WANDB_SAVE_CODE", "true")
    wandb.teardown()  # it reads the environment once
    with wandb_run("offline", run, JOB):
        pass
    wandb.teardown()
    assert not (tmp_path / "executed").exists()


def identity(*values):
    return Identity(**dict(zip(Identity.model_fields, values, strict=True)))


JOB = identity("0123abcd", "digits", "mnist corner 0", "sweep", "train")


@pytest.fixture
def evaluated_run(tmp_path):
    """A run that has been in W&B, and its evaluation."""
    hull = made_hull(3)
    hull.summary["seconds_total"] = 1.0
    hull.save(tmp_path / "run")
    keep_identity(tmp_path / "run" / IDENTITY, JOB)
    return load_run(tmp_path / "run"), evaluated(hull, tmp_path / "run")


@pytest.mark.parametrize("worst", ["there", "missing"])
def test_an_evaluation_is_added_to_the_run_that_made_the_corners(evaluated_run, worst):
    run, result = evaluated_run
    if worst == "missing":
        (run.directory / "images" / "worst_case.png").unlink()
    assert log_evaluation("offline", run, result, NAMES) == "mnist corner 0"
    (added,) = told(run.directory)
    for name in ("id", "group", "name", "project", "job_type"):
        assert getattr(added, name) == getattr(JOB, name)
    assert added.summary["hull/relative_size"] == pytest.approx(result["relative_size"])
    assert added.summary["converged"] is True  # what the search said is not lost
    assert added.steps_of("evaluation") == [11]  # after its last step
    assert added.steps_of("hull/worst_point") == ([11] if worst == "there" else [])


def test_nothing_is_logged_unasked(evaluated_run, monkeypatch):
    run, result = evaluated_run
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("W&B was asked"))
    assert EvaluateSettings().wandb.mode == "offline"
    assert log_evaluation("disabled", run, result, NAMES) is None
    assert log_rows("disabled", run.directory, [run], [], [], "runs", "sizes") is None
    shutil.rmtree(run.directory / "wandb")  # it has never been in W&B
    assert log_evaluation("online", run, result, NAMES) is None
    assert log_rows("online", run.directory, [run], [], [], "runs", "sizes") is None
    assert not (run.directory / "wandb").exists()


def test_many_runs_are_a_table_in_a_run_of_its_own(evaluated_run, tmp_path):
    run, result = evaluated_run
    rows = [row_of_run("run", run, result, NAMES), Row(run="other", outcome="damaged <b>")]
    columns = columns_of(rows, OF_RUNS)
    save_png(tmp_path / "sizes.png", run.target)
    name = log_rows("offline", tmp_path, [run], rows, columns, "runs", "sizes")
    assert name == f"{tmp_path.name}: 2 runs"
    (one,) = told(tmp_path)
    again = keep_identity(tmp_path / "wandb" / "table.json", JOB)  # for the next evaluation
    assert one.id == again.id != JOB.id
    assert (one.group, one.job_type) == ("sweep", "evaluation")
    (row, refused) = table(tmp_path, one, "runs")
    assert row[0] == "run"
    assert refused[0] == "other"
    assert "damaged <b>" in refused
    assert one.last("sizes")["_type"] == "image-file"
    assert one.summary["runs"]["nrows"] == 2
    for name in OUTCOMES:
        assert one.summary[f"runs/{name.replace(' ', '_')}"] == int(name == rows[0].outcome)


def test_a_survey_is_a_table_of_its_hulls_and_a_picture(evaluated_run, tmp_path):
    run, _ = evaluated_run
    save_png(tmp_path / "survey.png", run.target)
    rows = [
        Row(network="a", pair="x to y", outcome="class only", relative_size=0.5),
        Row(network="a", pair="<b> to z", outcome="neither", relative_size=None),
    ]
    columns = ("network", "pair", "relative_size")
    name = log_rows("offline", tmp_path, [run], rows, columns, "survey_hulls", "survey")
    assert name == f"{tmp_path.name}: 2 runs"
    (one,) = told(tmp_path)
    rows = table(tmp_path, one, "survey_hulls")
    assert rows == [["a", "x to y", 0.5], ["a", "<b> to z", None]]
    assert one.last("survey")["_type"] == "image-file"
    assert one.summary["survey_hulls/neither"] == 1


def test_what_wandb_refuses_is_one_message(tmp_path, monkeypatch):
    def refuse(**_):
        raise wandb.errors.UsageError("api_key not configured (no-tty).\ncall wandb.login()")

    monkeypatch.setattr("wandb.init", refuse)
    message = r"^wandb\.mode=online: api_key not configured \(no-tty\)\.; log in with"
    with (
        pytest.raises(SettingError, match=message),
        wandb_run("online", tmp_path, identity("0", "p", "n", "g", "train")),
    ):
        pass


@pytest.mark.parametrize(
    "content",
    [[], {"id": "x"}, *(JOB.entries() | change for change in (
        {"id": "../x"}, {"id": 1}, {"project": "another/project"}, {"project": ""}, {"more": "x"},
    ))],
    ids=str,
)  # fmt: skip
def test_an_identity_that_train_did_not_write_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    assert read_identity(path) is None
    path.write_text(json.dumps(content))
    with pytest.raises(SettingError, match=r"in run\.json: .*; delete /"):
        read_identity(path)


def test_an_identity_is_read_back_as_it_was_kept(tmp_path):
    mine = identity("0a-b", "my own project", "corner [0, 1]" * 50, "a/b <c>", "train")
    assert keep_identity(tmp_path / "run.json", mine) is mine
    assert read_identity(tmp_path / "run.json") == mine
    other = identity("1", "p", "n", "g", "train")
    assert keep_identity(tmp_path / "run.json", other) == mine


def test_a_run_that_fails_is_finished_as_failed(tmp_path):
    with (
        pytest.raises(ValueError, match="no"),
        wandb_run("offline", tmp_path, identity("0", "p", "n", "g", "train")),
    ):
        raise ValueError("no")
    (run,) = told(tmp_path)
    assert run.exit_code == 1


def test_jobs_know_their_directories(tmp_path):
    for job in range(2):
        make_run(tmp_path / str(job), job)
    (hull,), _ = hulls_below(tmp_path)
    assert hull.jobs == (tmp_path / "0", tmp_path / "1")


def test_what_was_not_measured_is_left_out():
    sample = {"accuracy": 0.5, "accuracy_lower_95": 0.4, "probability_mean": 0.3}
    entries = {"dirichlet": sample, "edges": {"reason": "a layer"}}
    found = hull_figures(Evaluation.model_validate(entries))
    assert found == {
        "hull/accuracy": 0.5, "hull/accuracy_lower_95": 0.4, "hull/probability": 0.3,
    }  # fmt: skip


def test_the_jobs_of_a_sweep_have_names_of_their_own():
    overrides = ["experiment=mnist", "loss.alpha=10", "data.root=/a", "wandb.mode=offline"]
    names = {run_name(settings(*overrides, f"corner={k}"), overrides) for k in (0, 1)}
    assert names == {f"mnist 3 → 7 corner {k} loss.alpha=10" for k in (0, 1)}
    assert run_name(settings("wandb.name=mine"), ["wandb.name=mine"]) == "mine"
    long = run_name(settings(), [f"loss.alpha={'1' * 200}"])
    assert len(long) == 128
