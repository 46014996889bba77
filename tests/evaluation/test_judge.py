"""`sizes.judge`: an independent network is asked about the corners."""

import json
import re

import pytest
import torch

from feature_collisions.data.datasets import DataSplit, Images
from feature_collisions.errors import SettingError
from feature_collisions.evaluation.judge import judge_of
from feature_collisions.hull.distances import mean_width
from feature_collisions.report.findings import describe
from helpers.hulls import evaluated, made_hull

MODULE = """
from torch import nn
import torch

class Means(nn.Module):
    # four classes: which quarter of the image, 6x6, is the brightest
    def forward(self, images):
        return nn.functional.avg_pool2d(images, 3).flatten(1).relu()

def means():
    return nn.Sequential(Means(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

def quarters():
    model = means()
    for layer in (model[1], model[3]):
        layer.weight.data = torch.eye(4)
        layer.bias.data = torch.zeros(4)
    return model

def blind():
    model = quarters()
    model[1].weight.data.zero_()
    return model

def three():
    return nn.Sequential(Means(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))

def large():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4))
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "judges_of_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    pixels = torch.randint(0, 256, (30, 1, 6, 6)).to(torch.uint8)
    images = Images(pixels, torch.arange(30) % 4, ("a", "b", "c", "d"))
    return DataSplit(images, images)


def test_a_judge_compares_features_and_counts_classes(data):
    hull = made_hull(3)
    quarters = torch.nn.functional.avg_pool2d(hull.corners, 3).flatten(1)
    of_data = torch.nn.functional.avg_pool2d(data.test[torch.arange(30)], 3).flatten(1)
    classes = quarters.argmax(1).tolist()
    initial = int(torch.nn.functional.avg_pool2d(hull.initial, 3).argmax())
    found = judge_of("judges_of_tests:quarters", data).verdict(hull).entries()
    size = torch.pdist(quarters).mean() / torch.pdist(of_data).mean()
    assert found.pop("size") == pytest.approx(float(size), rel=1e-5)
    assert found == {
        "network": "judges_of_tests:quarters", "corners": 3, "initial_class": initial,
        "initial_kept": classes.count(initial), "target_given": classes.count(1),
    }  # fmt: skip
    assert judge_of("judges_of_tests:quarters", data).verdict(made_hull(1)).size is None
    assert judge_of(None, data) is None


@pytest.mark.parametrize(
    ("judge", "rule"),
    [
        ("judges_of_tests:large", r"cannot judge these images: .* rejects an image"),
        ("judges_of_tests:blind", "sees no difference between the data set's images"),
        ("judges_of_tests:nobody", "cannot judge these images: classifier.path="),
        ("squeezenet9", "cannot judge these images: classifier.name=squeezenet9"),
    ],
)
def test_a_judge_that_cannot_be_one_is_refused(data, judge, rule):
    with pytest.raises(SettingError, match=rf"^sizes\.judge={re.escape(judge)}: {rule}"):
        judge_of(judge, data)


def test_a_judge_of_other_classes_is_refused(data):
    rule = r"^sizes\.judge=judges_of_tests:three: has 3 classes, and the .* has 4; give one with"
    with pytest.raises(SettingError, match=rule):
        judge_of("judges_of_tests:three", data).check(made_hull())


def test_what_a_judge_says_is_in_the_report(data, tmp_path):
    hull = made_hull(3)
    judge = judge_of("judges_of_tests:quarters", data)
    result = evaluated(hull, tmp_path, judge=judge)
    assert json.loads((tmp_path / "evaluation.json").read_text())["judge"] == result.judge.entries()
    claims = {each.label: each.value for each in describe(hull.summary, result, "abcd").claims}
    kept = result["judge"]["initial_kept"]
    name = "abcd"[result["judge"]["initial_class"]]
    said = rf"relative size \d\.\d\d in its features; {kept} of 3 corners are {name}, as the"
    assert re.search(said, claims["to judges_of_tests:quarters"])


def test_the_mean_width_is_a_distance_that_grows_with_what_is_covered():
    two = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert mean_width(two) == pytest.approx(5, rel=0.01)
    assert mean_width(two[:1]) == 0
    inside = torch.cat([two, torch.tensor([[1.5, 2.0]])])
    assert mean_width(inside) == pytest.approx(mean_width(two), rel=0.01)
    apart = [mean_width(torch.eye(count) / 2**0.5) for count in (3, 5, 50)]
    assert apart == pytest.approx([1.5, 2.06, 3.99], rel=0.01)
