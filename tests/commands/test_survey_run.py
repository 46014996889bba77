"""A survey of two tiny networks, end to end: one has ReLUs, the other clipped ones."""

import csv
import itertools
import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

from feature_collisions.commands.csv_files import read_extra
from feature_collisions.errors import SettingError
from feature_collisions.evaluation.survey import (
    MEASURED,
    differences,
    interval_of,
    means,
    measure,
)
from feature_collisions.report.figures import survey_figure
from feature_collisions.report.survey import write_survey
from feature_collisions.runs.rows import Row
from helpers.commands import run_command
from helpers.surveys import BOTH, MEASURE, SWEEP, write_networks

SHAPE = "classifier.path=survey_networks:shape"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """The networks, and a sweep over them that has been searched."""
    folder = tmp_path_factory.mktemp("survey")
    write_networks(folder, digits)
    answer = run_command(
        folder, "train.py", *SWEEP, "pairs=random:3", "hydra.sweep.dir=sweep", "-m"
    )
    assert answer is None
    return folder


@pytest.fixture
def evaluate(folder):
    def call(*arguments, path=BOTH):
        return run_command(folder, "evaluate.py", *arguments, *([path] if path else []), *MEASURE)

    return call


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


pytestmark = [
    pytest.mark.filterwarnings("ignore:not converged"),
    pytest.mark.usefixtures("undrawn"),
]


def test_a_survey_of_two_networks(folder, evaluate, undrawn, capsys):
    undrawn.undo()
    assert evaluate("run=sweep") is None
    shown = capsys.readouterr().out
    assert "2 networks, 3 pairs" in shown
    assert "Differences to survey_networks:plain, pair by pair" in shown
    sweep = folder / "sweep"
    found = rows(sweep / "survey.csv")
    assert [row["network"] for row in found] == [
        "survey_networks:plain", "survey_networks:clipped",
    ]  # fmt: skip
    targets, sizes = [], []
    for job, row in zip(("0", "1"), found, strict=True):
        places = sorted(path.parent for path in (sweep / job).rglob("collision.safetensors"))
        assert len(places) == 3
        tensors = [load_file(place / "collision.safetensors") for place in places]
        targets.append([each["target"].flatten().tolist() for each in tensors])
        sizes.append([pairwise(each["corners"]) for each in tensors])
        assert float(row["relative_size"]) == pytest.approx(sum(sizes[-1]) / 3 / 10.19, rel=0.02)
        assert float(row["accuracy"]) > 0.5
        assert row["relative_size_low_95"] == row["relative_size_high_95"] == ""  # of three pairs
    assert targets[0] == targets[1]
    sides = {
        entry["side"]
        for path in (sweep / "1").rglob("summary.json")
        for entry in json.loads(path.read_text())["corners"]
    }
    assert sides <= {"below", "above"}
    (difference,) = rows(sweep / "survey_differences.csv")
    assert difference["network"] == "survey_networks:clipped"
    between = float(found[1]["relative_size"]) - float(found[0]["relative_size"])
    assert float(difference["relative_size"]) == pytest.approx(between)
    assert len(rows(sweep / "survey_pairs.csv")) == 6
    for name in ("survey.html", "survey.md", "survey.png", "survey.pdf"):
        assert (sweep / name).stat().st_size > 1000


def pairwise(corners):
    """The mean distance between two corners, slowly."""
    flat = corners.double().flatten(1)
    found = [float((a - b).square().sum().sqrt()) for i, a in enumerate(flat) for b in flat[:i]]
    return sum(found) / len(found)


def test_the_users_columns_and_what_is_wrong_with_them(folder, evaluate):
    path = folder / "extra.csv"
    path.write_text("network,robust accuracy\nplain,0.1\nsurvey_networks:clipped,0.3\n")
    assert evaluate("run=sweep", "survey.extra=extra.csv", "survey.reference=survey_networks:clip"
                    "ped") is None  # fmt: skip
    found = rows(folder / "sweep" / "survey.csv")
    assert [row["robust accuracy"] for row in found] == ["0.1", "0.3"]
    path.write_text("network,robust accuracy\nplian,0.1\n")
    answer = evaluate("run=sweep", "survey.extra=extra.csv")
    assert answer.startswith("error: survey.extra=extra.csv: line 2, 'plian', names no network")
    answer = evaluate("run=sweep", "survey.reference=other")
    assert "survey.reference=other: is none of the networks; they are survey_networks:pl" in answer


def test_a_survey_is_gone_on_with(folder, evaluate, capsys):
    """A hull that a kill took is searched again, and the others are not."""
    again = shutil.copytree(folder / "sweep", folder / "again")
    lost = next(iter(sorted((again / "1").glob("002_*"))))
    for name in ("collision.safetensors", "outcome.json"):
        (lost / name).unlink()
    answer = evaluate("run=again")
    assert "some measurements failed" in answer
    assert "skipped: survey_networks:plain: 1 pairs" in capsys.readouterr().out
    assert (again / "survey.md").read_text().startswith("# 2 networks, 2 pairs")
    answer = run_command(
        folder, "train.py", "experiment=small_pixel", "data=digits", "classifier=file",
        "classifier.path=survey_networks:plain,survey_networks:clipped", "pairs=random:3",
        "stop.min_steps=30", "stop.max_steps=30", "corner=[0,1,2]", "wandb.mode=disabled",
        "hydra.sweep.dir=again", "ckpt_path=last", "-m",
    )  # fmt: skip
    assert answer is None
    assert capsys.readouterr().out.count("(found earlier)") == 5
    first = load_file(folder / "sweep" / "1" / lost.name / "collision.safetensors")
    second = load_file(lost / "collision.safetensors")
    assert torch.equal(first["corners"], second["corners"])


def test_a_signal_keeps_what_was_measured(folder, monkeypatch, capsys):
    """Evaluated again, only the rest is measured, and the files are those of one go."""
    sweep = shutil.copytree(folder / "sweep", folder / "signal")
    (sweep / "survey.csv").unlink(missing_ok=True)
    arguments = ("evaluate.py", "run=signal", *MEASURE, "proof.seconds=0")
    calls = []

    def counted(hull, *rest):
        calls.append(hull)
        if len(calls) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return measure(hull, *rest)

    monkeypatch.setattr("feature_collisions.commands.survey.measure", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "interrupted"))
    stop = 5
    assert run_command(folder, *arguments, BOTH) == 130
    assert "written files are kept. To resume: python" in capsys.readouterr().err
    assert not (sweep / "survey.csv").exists()
    stop = None
    assert run_command(folder, *arguments, BOTH) is None
    assert len(calls) == 5 + 2  # of six hulls four had been measured
    found = [(sweep / name).read_text() for name in ("survey_pairs.csv", "survey.csv")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "whole"))
    assert run_command(folder, *arguments, BOTH) is None
    assert len(calls) == 5 + 2 + 6
    assert found == [(sweep / name).read_text() for name in ("survey_pairs.csv", "survey.csv")]


def test_why_nothing_is_proved_is_said(folder, evaluate, capsys):
    arguments = ("evaluate.py", "run=sweep", BOTH, *MEASURE)
    assert run_command(folder, *arguments, "proof.seconds=1e-9") is None
    said = (
        "nothing proved for 3 of 3 hulls (not reached in proof.seconds=1e-09: the first bounds "
        "take longer)"
    )
    shown = capsys.readouterr().out
    assert [row["share_proved"] for row in rows(folder / "sweep" / "survey.csv")] == ["", ""]
    for network in ("plain", "clipped"):
        assert f"survey_networks:{network}: {said}." in shown
    assert run_command(folder, *arguments, "proof.seconds=1e-9") is None  # from the cache
    assert shown.count(said) == capsys.readouterr().out.count(said) == 2
    assert "nothing proved for 3 of 3 hulls" in (folder / "sweep" / "survey.md").read_text()
    assert evaluate("run=sweep") is None
    assert "nothing proved" not in capsys.readouterr().out


def test_searches_with_other_settings_are_not_compared(folder, evaluate):
    other = shutil.copytree(folder / "sweep", folder / "other")
    for path in (other / "1").rglob("config.yaml"):
        path.write_text(path.read_text().replace("max_steps: 30", "max_steps: 31"))
    answer = evaluate("run=other")
    assert "stop.max_steps was 30 in " in answer
    assert "and 31 in" in answer


def test_searches_in_other_precisions_are_not_compared(folder, evaluate):
    """`trainer.precision=auto` may have taken another one for another network."""
    other = shutil.copytree(folder / "sweep", folder / "mixed")
    for path in (other / "1").rglob("summary.json"):
        path.write_text(path.read_text().replace('"32-true"', '"bf16-mixed"'))
    answer = evaluate("run=mixed")
    assert "trainer.precision was 32-true in " in answer
    assert "and bf16-mixed in" in answer


def test_no_pair_in_common_is_said(folder, evaluate):
    other = shutil.copytree(folder / "sweep", folder / "apart")
    for job, kept in (("0", ("000", "001")), ("1", ("001", "002"))):
        for place in (other / job).glob("0*"):
            if place.name[:3] not in kept:
                shutil.rmtree(place)
    assert evaluate("run=apart") is None
    assert (other / "survey.md").read_text().startswith("# 2 networks, 1 pair\n")
    for place in (other / "1").glob("001*"):
        shutil.rmtree(place)
    answer = evaluate("run=apart")
    assert (
        "no pair was searched in all networks (pairs of each: survey_networks:plain 2, " in answer
    )


def test_code_that_was_never_named_is_not_imported(folder, evaluate, tmp_path):
    strange = shutil.copytree(folder / "sweep", folder / "strange")
    answer = evaluate("run=strange", path=None)
    assert "its classifier is a user's code" in answer
    assert "classifier.path=[MODULE:NAME,MODULE:NAME]" in answer
    answer = evaluate("run=strange", path="classifier.path=[survey_networks:clipped]")
    assert "survey_networks:plain, which is not in classifier.path=[survey_networks:c" in answer
    answer = evaluate("run=strange", path="classifier.path=3")
    assert answer.startswith("error: classifier.path=3: give MODULE:NAME, or a list")
    assert evaluate("run=strange") is None
    assert [row["network"] for row in rows(strange / "survey.csv")] == [
        "survey_networks:plain", "survey_networks:clipped",
    ]  # fmt: skip


def test_one_name_stands_for_every_network_of_a_survey(folder, evaluate):
    answer = evaluate("run=sweep", path="classifier.path=survey_networks:plain")
    assert "were found with other weights" in answer
    assert "or the network with classifier.path=MODULE:NAME (a survey's as a list of th" in answer


@pytest.fixture(scope="module")
def paired(folder):
    """A sweep over one function with two files of weights."""
    for name in ("plain", "clipped"):
        shutil.copy(folder / f"{name}.safetensors", folder / f"w_{name}.safetensors")
    pairs = ",".join(
        f"survey_networks:shape::w_{name}.safetensors" for name in ("plain", "clipped")
    )
    sweep = [each for each in SWEEP if not each.startswith("classifier.path")]
    arguments = (*sweep, f"classifier.path={pairs}", "pairs=random:2:0", "hydra.sweep.dir=paired")
    assert run_command(folder, "train.py", *arguments, "-m") is None
    return folder / "paired"


def test_a_survey_pairs_networks_with_weights(paired, evaluate):
    """Two jobs and not four, and each finds its own weights again."""
    assert evaluate("run=paired", path=SHAPE) is None
    assert [row["network"] for row in rows(paired / "survey.csv")] == [
        "survey_networks:shape::w_plain.safetensors",
        "survey_networks:shape::w_clipped.safetensors",
    ]
    hashes = set()
    for job, name in (("0", "plain"), ("1", "clipped")):
        for path in (paired / job).glob("*/config.yaml"):
            classifier = yaml.safe_load(path.read_text())["classifier"]
            assert classifier["path"] == "survey_networks:shape"
            assert classifier["weights"] == f"w_{name}.safetensors"
            summary = json.loads(path.with_name("summary.json").read_text())
            hashes.add((job, summary["classifier_hash"]))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    "given",
    ["classifier.weights=[moved/w_clipped.safetensors,moved/w_plain.safetensors]",
     "classifier.weights=[moved/b,moved/a]",
     "classifier.path=[survey_networks:shape::moved/a,survey_networks:shape::moved/b]",
     "classifier.path=[survey_networks:shape::moved/b,survey_networks:shape::moved/a]"],
)  # fmt: skip
def test_weights_of_a_survey_that_moved_are_a_list_in_any_order(paired, evaluate, given):
    folder = paired.parent
    moved = folder / "moved"
    moved.mkdir()
    for name, short in (("plain", "a"), ("clipped", "b")):
        file = folder / f"w_{name}.safetensors"
        shutil.copy(file, moved / short)
        shutil.move(file, moved / file.name)
    try:
        assert evaluate("run=paired", path=SHAPE) is not None
        own = given if given.startswith("classifier.path") else SHAPE
        assert evaluate("run=paired", *{given} - {own}, path=own) is None
        for weights, said in (("moved/a", "other weights"), ("[1,2]", "classifier.weights")):
            assert said in evaluate("run=paired", f"classifier.weights={weights}", path=SHAPE)
    finally:
        for name in ("plain", "clipped"):
            shutil.move(moved / f"w_{name}.safetensors", folder)
        shutil.rmtree(moved)


def test_weights_in_a_strangers_path_name_no_code(paired, evaluate):
    """`::` in a run's own path is no way past what the user names."""
    strange = shutil.copytree(paired, paired.with_name("strange_pair"))
    marker = paired.parent / "executed"
    (paired.parent / "evil_module.py").write_text(f"open({str(marker)!r}, 'w')")
    for name in ("evil_module:x", "evil_module:x::w_plain.safetensors"):
        for path in strange.rglob("config.yaml"):
            text = (paired / path.relative_to(strange)).read_text()
            path.write_text(text.replace("path: survey_networks:shape\n", f"path: {name}\n"))
        assert "a user's code" in evaluate("run=strange_pair", path=None)
        answer = evaluate("run=strange_pair", path=SHAPE)
        assert answer is None or "evil" not in answer
        assert not marker.exists()


def test_intervals_are_those_of_the_mean():
    assert interval_of([0.5] * 6) == (0.5, 0.5, 0.5)
    assert interval_of([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, None, None)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    found = interval_of(values.tolist())
    assert found.mean == pytest.approx(float(values.mean()))
    half = 1.96 * float(values.std()) / 40**0.5
    assert found.low == pytest.approx(found.mean - half, abs=0.3 * half)
    assert found.high == pytest.approx(found.mean + half, abs=0.3 * half)
    assert found == interval_of(values.tolist())


def row_of_all(value):
    """A row that has this in every column."""
    return Row(outcome="neither", **dict.fromkeys(MEASURED, value))


def test_the_figure_shows_sizes_against_blind_units_and_the_users_first_two_columns():
    entry = row_of_all(0.5)
    figures = {"m:a": [entry, entry], "m:b": [entry | {"relative_size": 0.25}] * 2}
    extra = {"m:a": {"x": 1.0, "y": 2.0, "z": 3.0}, "m:b": {"x": 4.0, "y": 5.0, "z": 6.0}}
    figure = survey_figure(figures, means(figures), extra)
    shown = {axes.get_xlabel(): axes for axes in figure.axes if axes.has_data()}
    assert list(shown) == ["relative size", "share of inactive units", "x", "y"]
    points = [
        line.get_xydata()[0].tolist() for line in shown["y"].lines if len(line.get_xdata()) == 1
    ]
    assert points == [[2.0, 0.5], [5.0, 0.25]]


def test_labels_of_networks_that_lie_close_together_stay_apart():
    sizes = {"m:first_network": 0.5, "m:second_network": 0.5, "m:third_network": 0.502}
    figures = {name: [row_of_all(0.5) | {"relative_size": size}] for name, size in sizes.items()}
    figures["m:far"] = [row_of_all(0.9)]
    figure = survey_figure(figures, means(figures), {})
    (axes,) = (axes for axes in figure.axes if axes.get_xlabel() == "share of inactive units")
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == {"first_network", "second_network", "third_network", "far"}
    for one, other in itertools.combinations(boxes, 2):
        assert not boxes[one].overlaps(boxes[other]), (one, other)


def test_sizes_at_unequal_feature_errors_are_flagged(tmp_path):
    entry = row_of_all(0.1)
    figures = {
        "m:a": [entry] * 2,
        "m:b": [entry | {"feature_relative_max": 0.19}] * 2,
        "m:c": [entry | {"feature_relative_max": 0.21}] * 2,
    }
    write_survey(tmp_path, figures, "m:a", {}, {"stop.max_steps": "2"})
    for name in ("survey.md", "survey.html"):
        page = (tmp_path / name).read_text()
        assert "Sizes of m:c (0.210) are at feature errors more than 2 times" in page
    del figures["m:c"]
    write_survey(tmp_path, figures, "m:a", {}, {"stop.max_steps": "2"})
    assert "a larger error allows" not in (tmp_path / "survey.md").read_text()


@pytest.mark.parametrize(
    ("size", "error", "pairs", "said"),
    [
        (0.2, 0.1, 6, "+0.100 [+0.100, +0.100] *"),  # larger at the same error
        (0.2, 0.05, 6, "+0.100 [+0.100, +0.100] *"),
        (0.2, 0.11, 6, "not comparable"),  # larger, but so is the error
        (0.05, 0.11, 6, "-0.050 [-0.050, -0.050] *"),  # smaller even so
        (0.05, 0.05, 6, "not comparable"),
        (0.2, 0.1, 5, "+0.100"),  # too few for an interval
    ],
)
def test_a_size_has_a_star_where_the_larger_one_has_no_larger_error(
    tmp_path, size, error, pairs, said
):
    entry = row_of_all(0.1)
    other = entry | {"relative_size": size, "feature_relative_max": error}
    figures = {"m:a": [entry] * pairs, "m:b": [other] * pairs}
    _, paired, _ = write_survey(tmp_path, figures, "m:a", {}, {"stop.max_steps": "2"})
    assert dict(zip(paired.columns, paired.rows[0], strict=True))["relative size"] == said
    page = (tmp_path / "survey.md").read_text()
    assert ("No intervals and no stars: 6 pairs or more are needed" in page) == (pairs < 6)
    assert ("excludes 0" in page) == (pairs == 6)


def test_sizes_of_corners_that_were_kept_apart_in_another_way_are_not_compared(tmp_path):
    entry = row_of_all(0.1) | {"push": "unit"}
    other = entry | {"relative_size": 0.05}  # smaller, at the same error
    figures = {"m:a": [entry] * 6, "m:b": [other] * 6, "m:c": [other | {"push": "apart"}] * 6}
    overview, paired, _ = write_survey(tmp_path, figures, "m:a", {}, {"stop.max_steps": "2"})
    place = paired.columns.index("relative size")
    assert [row[place] for row in paired.rows] == ["-0.050 [-0.050, -0.050] *", "not comparable"]
    assert "loss.push was apart for m:c, unit for m:a and m:b: sizes" in overview.note


def test_a_survey_says_what_it_is_what_its_columns_mean_and_what_all_searches_shared(tmp_path):
    """Only of columns that have values: here there is no judge."""
    entry = row_of_all(0.1) | {"judge_size": None, "judge_kept": None}
    shared = {"stop.max_steps": "2"}
    tables = write_survey(tmp_path, {"m:a": [entry], "m:b": [entry]}, "m:a", {}, shared)
    assert [name for name, _ in tables[0].meanings] == list(tables[0].columns[1:])
    assert "size to the judge" not in tables[0].columns
    assert tables[-1].rows == [("stop.max_steps", "2")]
    page = (tmp_path / "survey.html").read_text()
    assert "<h1>Survey of 2 networks</h1>" in page
    assert f"Folder: {tmp_path.name}<" in page
    assert "<dt>feature error</dt><dd>the largest" in page
    text = (tmp_path / "survey.md").read_text()
    assert "\n- feature error: the largest" in text
    assert "| stop.max_steps" in text


def test_shares_proved_are_left_out_where_no_proof_got_anywhere(tmp_path):
    """A mean of zeros that were never tried is no result; some that were reached are."""
    none = row_of_all(0.1) | {"share_proved": 0.0, "relative_size_proved": 0.0, "unproved": "late"}
    some = row_of_all(0.5)
    figures = {"m:a": [none] * 2, "m:b": [none, some]}
    overview, paired, _ = write_survey(tmp_path, figures, "m:a", {}, {"stop.max_steps": "2"})
    shown = [dict(zip(overview.columns, row, strict=True)) for row in overview.rows]
    assert [row["share proved"] for row in shown] == ["-", "25 %"]
    assert [row["size proved"] for row in shown] == ["-", "0.250"]
    assert "share proved" not in paired.columns


def test_differences_are_paired():
    """What varies from pair to pair and is the same in both networks takes no part."""
    base = [0.1, 5.0, 2.0, 9.0, 4.0, 7.0]
    entry = row_of_all(0.0)
    figures = {
        "a": [entry | {"relative_size": value, "share_proved": None} for value in base],
        "b": [entry | {"relative_size": value + 0.1, "share_proved": 1.0} for value in base],
    }
    found = differences(figures, "b", "a")
    assert found["relative_size"].decides
    assert found["relative_size"].mean == pytest.approx(0.1)
    assert not found["accuracy"].decides
    assert found["share_proved"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network,x\na:one,1\n", "has no line for b:two"),
        ("network,x\none,1\none,2\ntwo,3\n", "line 3 names one again"),
        ("network,x\none,1\ntwo,big\n", "line 3: x='big' must be a finite number"),
        ("network,x\none,1,2\n", "line 2 has 2 entries, and there are 1 columns"),
        ("network\none\n", "has no columns"),
        ('network,x\n"one,1\n', r"survey\.extra=.*: line 2 cannot be read \(unexpected end of"),
        ("network,x,x\none,1,1\n", "two columns share a name"),
    ],
)
def test_an_extra_file_that_does_not_fit_is_refused(tmp_path, text, message):
    (tmp_path / "extra.csv").write_text(text)
    with pytest.raises(SettingError, match=message):
        read_extra(str(tmp_path / "extra.csv"), ["a:one", "b:two"])


def test_a_hull_that_cannot_be_measured_leaves_its_pair_out(folder, evaluate, capsys):
    damaged = shutil.copytree(folder / "sweep", folder / "damaged")
    path = next(iter(sorted((damaged / "1").glob("001_*")))) / "summary.json"
    summary = json.loads(path.read_text())
    summary["corners"][0]["positive"] += 1000
    path.write_text(json.dumps(summary))
    answer = evaluate("run=damaged", "seed=1")
    assert "some measurements failed" in answer
    assert "positive=" in answer
    assert (damaged / "survey.md").read_text().startswith("# 2 networks, 2 pairs")


def test_a_strangers_name_is_only_text(folder, evaluate, capsys):
    strange = shutil.copytree(folder / "sweep", folder / "named")
    for path in (strange / "1").rglob("config.yaml"):
        path.write_text(path.read_text().replace("survey_networks:clipped", '"a:$x_{<b>\\e[31m"'))
    answer = evaluate("run=named")
    assert "config.yaml: has control characters" in answer
    assert "\x1b" not in answer + capsys.readouterr().out
