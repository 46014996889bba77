"""An evaluation of which a part fails keeps the rest, and says what failed and why."""

import json
from dataclasses import replace

import pytest
import torch

from feature_collisions.commands.evaluate import print_report
from feature_collisions.commands.train import print_corners
from feature_collisions.data.datasets import Images
from feature_collisions.data.images import save_png
from feature_collisions.evaluation import hull_of_run
from feature_collisions.evaluation.evaluate import OF_TWO_CORNERS, SAMPLED, evaluate
from feature_collisions.hull.hull import Hull
from feature_collisions.report.report import write_report
from feature_collisions.report.words import classes_of, unnamed
from feature_collisions.runs.directories import newest_run
from feature_collisions.runs.evaluation import Evaluation
from feature_collisions.runs.rows import row_of
from helpers.hulls import evaluated, made_hull
from helpers.runs import FAST

NAMES = ("a", "b", "c", "d")
pytestmark = pytest.mark.usefixtures("undrawn")


def failing(monkeypatch, *names):
    """Have measurements fail as whatever they call may."""

    def fails(*arguments):
        raise RuntimeError("no memory\x1b[31m left <b>\nsecond line")

    for name in names:
        table = SAMPLED if name in SAMPLED else OF_TWO_CORNERS
        monkeypatch.setitem(table, name, fails)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation of which nothing fails."""
    return evaluated(made_hull(3, (1, 12, 12)), tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("name", [*SAMPLED, *OF_TWO_CORNERS])
def test_one_measurement_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys, whole, name):
    hull = made_hull(3, (1, 12, 12))
    failing(monkeypatch, name)
    result = evaluated(hull, tmp_path)
    assert list(result["failed"]) == [name]
    assert result["failed"][name].startswith("RuntimeError: no memory [31m left <b>")
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept.keys() == set(result)
    missing = {*whole} - {*result}
    assert len(missing) <= len({*whole}) / 3
    assert all(result[key] == whole[key] for key in ("dirichlet", "edges") if key in result)
    print_report(tmp_path, write_report(tmp_path, hull, result, NAMES))
    for text in (
        capsys.readouterr().out,
        (tmp_path / "report.md").read_text(),
        (tmp_path / "report.html").read_text(),
    ):
        assert name in text
        assert "RuntimeError: no memory" in text
        assert "second line" not in text
    assert "left &lt;b&gt;" in (tmp_path / "report.md").read_text()
    assert row_of(hull.summary, result).outcome.startswith(f"not measured: {name}")


def test_everything_may_fail(monkeypatch, tmp_path, capsys, undrawn):
    undrawn.undo()
    hull = made_hull(3, (1, 12, 12))
    failing(monkeypatch, *SAMPLED, *OF_TWO_CORNERS)
    result = evaluated(hull, tmp_path)
    assert list(result["failed"]) == [*SAMPLED, *OF_TWO_CORNERS]
    print_report(tmp_path, write_report(tmp_path, hull, result, NAMES))
    assert capsys.readouterr().out.count("not measured") == len(SAMPLED) + len(OF_TWO_CORNERS)


def test_a_figure_that_is_no_number_fails_alone(monkeypatch, tmp_path):
    monkeypatch.setitem(
        OF_TWO_CORNERS, "looks", lambda *arguments: Evaluation(macro_share=float("nan"))
    )
    result = evaluated(made_hull(3), tmp_path)
    reason = "macro_share=nan: Input should be a finite number"
    assert result["failed"] == {"looks": reason}
    assert "macro_share" not in result


def test_what_was_measured_before_a_kill_is_kept(monkeypatch, tmp_path):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(OF_TWO_CORNERS, "balls", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(made_hull(3), tmp_path)
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept["dirichlet"]["samples"] == 40
    assert "corner_distance_mean" in kept
    assert kept["unfinished"][0] == "balls"


@pytest.mark.parametrize(("pixels", "mean"), [([0], None), ([7, 7], 0.0)])
def test_a_data_set_without_two_different_images_has_no_relative_size(
    command, run, monkeypatch, pixels, mean
):  # fmt: skip
    from feature_collisions.data.datasets import DataSplit

    load = hull_of_run.load_data

    def small(settings, **options):
        data = load(settings, **options)
        images = torch.tensor(pixels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 28, 28)
        test = Images(images, torch.zeros(len(pixels), dtype=torch.int64), data.test.class_names)
        return DataSplit(data.train, test)

    monkeypatch.setattr(hull_of_run, "load_data", small)
    assert command("evaluate.py", "run=run", *FAST, "worst_case.steps=1") is None
    found = json.loads((run / "evaluation.json").read_text())
    assert found["dataset_distance_mean"] == mean
    assert found["relative_size"] is None
    assert "of the data set" in found["relative_size_reason"]
    assert found["relative_size_reason"] in (run / "report.md").read_text()


def test_a_failed_measurement_ends_with_a_status(command, run, monkeypatch):
    failing(monkeypatch, "worst_case")
    answer = command("evaluate.py", "run=run", *FAST)
    assert "run: worst_case (RuntimeError: no memory" in answer
    assert json.loads((run / "evaluation.json").read_text())["dirichlet"]["accuracy"] == 1
    assert (run / "report.html").exists()


def test_a_report_that_fails_leaves_the_figures(command, run, monkeypatch):
    from feature_collisions.report import report

    def fails(*arguments):
        raise ValueError("no font")

    monkeypatch.setattr(report, "write_report", fails)
    answer = command("evaluate.py", "run=run", *FAST, "worst_case.steps=1")
    assert "report (ValueError: no font)" in answer
    found = json.loads((run / "evaluation.json").read_text())
    assert found["failed"] == {"report": "ValueError: no font"}
    assert "worst_case_probability" in found


def test_a_run_that_fails_is_a_row_of_its_own(command, run, tmp_path, monkeypatch):
    import shutil

    for name in ("one", "two"):
        shutil.copytree(run, tmp_path / "folder" / name)
    load, calls = hull_of_run.load_data, []

    def fails_once(settings, **options):
        calls.append(settings)
        if len(calls) == 1:
            raise MemoryError("everything is full")
        return load(settings, **options)

    monkeypatch.setattr(hull_of_run, "load_data", fails_once)
    answer = command("evaluate.py", "run=folder", *FAST, "worst_case.steps=1")
    assert "MemoryError: everything is full" in answer
    table = (tmp_path / "folder" / "runs.md").read_text()
    assert "1 of 2: features collide" in table
    assert "MemoryError: everything is full" in table


def test_the_newest_of_many_pairs_stands_for_all_of_them(tmp_path):
    place = tmp_path / "sweep" / "0" / "003_a_to_b"
    place.mkdir(parents=True)
    (place / "collision.safetensors").touch()
    (place.parent / "pairs.json").touch()
    assert newest_run(tmp_path) == place.parent
    (place.parent.parent / "multirun.yaml").touch()
    assert newest_run(tmp_path) == tmp_path / "sweep"


@pytest.mark.parametrize("names", [("cat", "dog"), tuple("0123456789")])
def test_classes_are_numbered_where_the_data_sets_names_are_not_theirs(tmp_path, capsys, names):
    hull = made_hull(3, target_class=3)
    hull = replace(hull, summary=hull.summary | {"seconds_total": 1.0, "target_label": None})
    shown = classes_of(names, 4)
    assert list(shown) == ["class 0", "class 1", "class 2", "class 3"]
    assert classes_of(NAMES, 4) is NAMES
    assert "4 outputs" in unnamed(shown, names)
    assert unnamed(NAMES, NAMES) == ""
    print_corners(hull.summary, shown, tmp_path, None)
    result = evaluated(hull, tmp_path)
    print_report(tmp_path, write_report(tmp_path, hull, result, shown))
    assert "probability of class 3" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the initial image meets the goal")
def test_own_folders_of_another_number_of_classes_go_through(command, tmp_path, monkeypatch):
    """Two classes of images of one's own, and a classifier of five."""
    generator = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        for number in range(2):
            image = torch.rand(3, 32, 32, generator=generator)
            save_png(tmp_path / "own" / name / f"{number}.png", image)
    (tmp_path / "five.py").write_text(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
        "net = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 16), nn.ReLU(),"
        " nn.Linear(16, 5))\nnet[4].bias.data[4] = 10\n"
    )
    common = ("classifier.path=five:net", "data.root=own")
    arguments = ("classifier=file", "classifier.layer='2'", "data=image_folder", "data.size=32")
    more = ("initial=cat", "target=dog", "corner=0..1", "wandb.mode=disabled", "stop.max_steps=20",
            "stop.min_steps=0", "hydra.run.dir=run")  # fmt: skip
    assert command("train.py", *arguments, *common, *more) is None
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["target_class"] == 4
    assert summary["target_label"] is None
    assert command("evaluate.py", "run=run", *common, *FAST, "worst_case.steps=1") is None
    title = (tmp_path / "run" / "report.md").read_text().splitlines()[0]
    assert " → class 4: " in title
    assert summary["classifier"] == "five:net"


def test_an_image_that_the_experiment_names_is_said_to_be_its_default(command, tmp_path):
    save_png(tmp_path / "own" / "cat" / "0.png", torch.rand(3, 32, 32))
    (tmp_path / "two.py").write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU(),"
        " nn.Linear(4, 2))\n"
    )
    own = ("classifier=file", "classifier.path=two:net", "data.root=own", "data.size=32")
    message = command("train.py", "experiment=squeezenet_pixel", *own)
    assert "initial=trimaran: no such class" in message
    assert "experiment=squeezenet_pixel sets initial=" in message
    message = command("train.py", "experiment=squeezenet_pixel", *own, "initial=dog")
    assert "sets initial" not in message


def test_the_distance_of_the_data_set_may_fail_too(tmp_path):
    def fails():
        raise OSError("unreadable")

    from feature_collisions.settings.evaluate import EdgeSettings, EvaluateSettings, ProofSettings

    settings = EvaluateSettings(
        samples=10, edges=EdgeSettings(seconds=0.0), proof=ProofSettings(0.0, False)
    )
    settings = replace(settings, plain=replace(settings.plain, steps=0))
    hull: Hull = made_hull(2)
    result = evaluate(hull, fails, settings, tmp_path)
    assert result["failed"] == {"dataset_distance": "OSError: unreadable"}
    assert result["relative_size"] is None
    print_report(tmp_path, write_report(tmp_path, hull, result, NAMES))
