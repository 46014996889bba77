"""One table over many runs."""

import csv
import json
import re

import pytest
import torch

from feature_collisions.errors import SettingError
from feature_collisions.hull.outputs import Classes, outcome_of
from feature_collisions.hull.statistics import limit_of
from feature_collisions.report.figures import sizes_figure
from feature_collisions.report.runs import row_of_run, runs_table, write_runs
from feature_collisions.runs.evaluation import Evaluation, Sample
from feature_collisions.runs.records import Config, Summary
from feature_collisions.runs.rows import Row
from feature_collisions.runs.run import Run, hulls_below
from helpers.runs import FAST, QUICK, make_run


def test_jobs_that_differ_in_their_corner_alone_make_one_hull(tmp_path):
    for job in range(4):
        make_run(tmp_path / str(job), job % 2, f"loss: {{alpha: {1 + job // 2}}}")
    hulls, refused = hulls_below(tmp_path)
    assert [len(hull.corners) for hull in hulls] == [2, 2]
    assert [hull.config.loss["alpha"] for hull in hulls] == [1, 2]
    assert [hull.directory.name for hull in hulls] == ["hull_of_0", "hull_of_2"]
    assert refused == {}


def test_a_sweep_of_one_hull_is_evaluated_in_its_directory(tmp_path):
    for job in range(3):
        make_run(tmp_path / str(job), job)
    (hull,), _ = hulls_below(tmp_path)
    assert hull.directory == tmp_path
    assert len(hull.corners) == 3
    distances = torch.pdist(hull.corners.flatten(1)) * hull.summary.distance_scale
    assert hull.summary.corner_distance_mean == pytest.approx(float(distances.mean()))


def test_the_same_corner_twice_is_two_hulls_and_a_damaged_run_is_named(tmp_path):
    for job in range(3):
        make_run(tmp_path / str(job))
    (tmp_path / "2" / "summary.json").unlink()
    hulls, refused = hulls_below(tmp_path)
    assert [hull.directory.name for hull in hulls] == ["0", "1"]
    assert "summary.json: the file is missing" in refused["2"]
    with pytest.raises(SettingError, match="no corners there"):
        hulls_below(tmp_path / "0" / "images")


def test_a_killed_job_of_a_sweep_is_named(tmp_path):
    for job in range(3):
        make_run(tmp_path / str(job), job)
    (tmp_path / "1" / "collision.safetensors").unlink()
    (tmp_path / "2" / "wandb").mkdir()
    (tmp_path / "2" / "wandb" / "config.yaml").touch()  # W&B's own
    (hull,), refused = hulls_below(tmp_path)
    assert [entry["corner"] for entry in hull.summary["corners"]] == [0, 2]
    assert list(refused) == ["1"]
    assert refused["1"].startswith("no corners: the search did not finish; resume it with")
    (tmp_path / "config.yaml").touch()  # the folder of many pairs has one too
    assert hulls_below(tmp_path)[1] == refused


@pytest.mark.usefixtures("undrawn")
def test_different_experiments_stand_in_one_table(tmp_path):
    make_run(tmp_path / "a", 0, "loss: {alpha: 1, hull: 2}")
    make_run(tmp_path / "b", 0, "loss: {alpha: 100}", experiment="squeezenet_pixel",
             classifier="squeezenet1_1", layer="classifier.1", distance_scale=255)  # fmt: skip
    hulls, refused = hulls_below(tmp_path)
    assert refused == {}
    entries = {"dirichlet": SAMPLE, "target_probability": 0.9, "outcome": "neither"}
    result, names = Evaluation.model_validate(entries), tuple("0123456789")
    rows = [row_of_run(hull.directory.name, hull, result, names) for hull in hulls]
    write_runs(tmp_path, rows)
    with (tmp_path / "runs.csv").open(newline="") as file:
        a, b = csv.DictReader(file)
    assert (a["experiment"], b["experiment"]) == ("mnist", "squeezenet_pixel")
    assert (a["layer"], b["layer"]) == ("hidden1", "classifier.1")
    assert (a["loss.hull"], b["loss.hull"]) == ("2", "")
    assert a["feature_relative_max"] == "0.25"
    assert "| squeezenet1_1 |" in (tmp_path / "runs.md").read_text()


SAMPLE = {
    "accuracy": 1.0, "accuracy_lower_95": 0.99, "probability_mean": 0.9,
    "feature_relative_max": 0.25,
}  # fmt: skip


def rows_of(alphas, sizes, mean=0.9, largest=0.25):
    image, output = torch.zeros(1, 2, 2), Classes(torch.zeros(2), 0, 0.9)
    rows = []
    for alpha, size in zip(alphas, sizes, strict=True):
        summary = {
            "experiment": "mnist", "initial_class": 0, "target_class": 1, "classifier": "c",
            "layer": "l", "steps": 1, "seconds": 1.0,
        }  # fmt: skip
        units = torch.zeros(1, dtype=torch.int64)
        config = {"loss": {"alpha": alpha, "beta": 1.0, "positive_form": "norm", "share": True}}
        run = Run(
            None,
            image[None],
            image,
            image,
            units,
            Summary.of(summary),
            Config.model_validate(config),
        )
        sample = SAMPLE | {"probability_mean": mean, "feature_relative_max": largest}
        entries = {
            "dirichlet": sample,
            "target_probability": 0.9,
            "outcome": outcome_of(output, Sample(**sample), limit_of(run.summary)).name,
            "relative_size": size,
            "corner_distance_mean": 2.0 * size,
        }  # fmt: skip
        result = Evaluation.model_validate(entries)
        rows.append(row_of_run(f"a{alpha}", run, result, ("<b>|", "=7")))
    return rows


def test_the_table_as_markdown_and_csv(tmp_path):
    rows = [*rows_of([1.0, 10.0], [0.5, 0.25]), Row(run="x", outcome="broken | <i>")]
    rows += [*rows_of([3.0], [0.1], mean=0.84), *rows_of([4.0], [0.2], largest=0.31)]
    write_runs(tmp_path, rows)
    heading = runs_table(rows).heading
    assert heading == "2 of 5: features collide; 1: class only; 1: neither; 1: not measured"
    table = (tmp_path / "runs.md").read_text()
    assert table.startswith(f"# {heading}")
    assert "broken \\| &lt;i&gt;" in table
    assert "<b>" not in table
    with (tmp_path / "runs.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["loss.alpha"] for row in read] == ["1.0", "10.0", "", "3.0", "4.0"]
    assert read[0]["initial"] == "<b>|"
    assert read[0]["target"] == "'=7"
    assert [row["outcome"] for row in read] == [
        "features collide", "features collide", "broken | <i>", "neither", "class only",
    ]  # fmt: skip
    assert "positive_form" not in read[0]
    for ending in ("png", "pdf"):
        assert (tmp_path / f"sizes.{ending}").stat().st_size > 0


@pytest.mark.usefixtures("undrawn")
def test_the_table_as_a_page_leads_to_the_reports(tmp_path):
    name = "javascript:alert(1)//<b>"
    rows = [row | {"run": name} for row in rows_of([1.0], [0.5])]
    rows += rows_of([10.0], [0.25])
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "report.html").touch()
    write_runs(tmp_path, rows)
    text = (tmp_path / "runs.html").read_text()
    links = re.findall(r'href="(.*?)"', text)
    assert links == ["./javascript%3Aalert%281%29//%3Cb%3E/report.html"]
    assert "<b>" not in text
    assert "All: experiment mnist, initial &lt;b&gt;|, target =7" in text  # said once
    assert text.count("data:image/svg+xml") == 1


def test_size_is_drawn_against_the_weights_that_differ():
    figure = sizes_figure(rows_of([1.0, 10.0], [0.5, 0.25]))
    (axes,) = figure.axes
    assert axes.get_xlabel() == "alpha"
    assert axes.lines[0].get_xydata().tolist() == [[1.0, 0.5], [10.0, 0.25]]
    assert sizes_figure(rows_of([1.0, 1.0], [0.5, 0.25])) is None


def test_what_nearness_costs_is_drawn_beside_it():
    rows = rows_of([1.0, 1.0], [0.5, 0.25])
    for row, nearness, apart in zip(rows, [3.0, 10.0], [8.0, 6.0], strict=True):
        row.loss["nearness"], row.initial_distance_mean = nearness, apart
    weight, distance = sizes_figure(rows).axes
    assert (weight.get_xlabel(), weight.get_xscale()) == ("nearness", "log")
    assert (distance.get_xlabel(), distance.get_xscale()) == (
        "distance from the initial image", "linear",
    )  # fmt: skip
    assert distance.lines[0].get_xydata().tolist() == [[8.0, 0.5], [6.0, 0.25]]


def test_evaluate_a_sweep_over_weights(command, classifier, tmp_path):
    sweep = (
        "corner=0,1",
        "loss.beta=0.05,0.1",
        "stop.max_steps=100",
        "hydra.sweep.dir=sweep",
        "-m",
    )
    assert command("train.py", *QUICK, *sweep) is None
    assert command("evaluate.py", "run=sweep", *FAST) is None
    with (tmp_path / "sweep" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["loss.beta"] for row in rows) == ["0.05", "0.1"]
    for row in rows:
        place = tmp_path / "sweep" / row["run"]
        result = json.loads((place / "evaluation.json").read_text())
        assert float(row["relative_size"]) == result["relative_size"]
        assert row["corners"] == "2"
        assert (place / "report.html").stat().st_size > 0
    assert "![relative size" in (tmp_path / "sweep" / "runs.md").read_text()
