"""One line for *collide* per kind of layer, from every entrance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from feature_collisions import StopSettings, find_corners
from feature_collisions.graph.graph import trace
from feature_collisions.hull.statistics import collision_limit, limit_of
from feature_collisions.report.findings import collision_line, distance_line
from feature_collisions.runs.records import Summary

SIZE = (3, 8, 8)
EXPERIMENTS = sorted((Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml"))


class Guarded(nn.Module):
    """No graph follows it: its forward depends on the pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(192, 16), nn.Linear(16, 3)

    def forward(self, images):
        if images.sum() < -1:
            images = images.abs()
        return self.last(self.first(images.flatten(1)).relu())


def deep():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 2),
        nn.ReLU(), nn.Flatten(), nn.Linear(24, 3),
    ).eval()  # fmt: skip


def pooled_first():
    layers = nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    return nn.Sequential(*layers)


def max_pooled_first():
    layers = nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    return nn.Sequential(*layers)


def tanh_first():
    layers = nn.Tanh(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("model", "layer", "pixels", "composite"),
    [
        (deep, "1", 0.05, 0.05),
        (deep, "4", 0.2, 0.3),
        (pooled_first, "1", 0.05, 0.05),
        (max_pooled_first, "1", 0.2, 0.3),
        (tanh_first, "1", 0.2, 0.3),
        (Guarded, "first", 0.2, 0.3),
    ],
)
def test_the_line_follows_the_layer(model, layer, pixels, composite):
    graph = trace(model(), SIZE)
    assert collision_limit(graph, layer) == pixels
    assert collision_limit(graph, layer, composite=True) == composite


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_no_experiment_has_a_line_of_its_own(path):
    assert "hull_relative" not in yaml.safe_load(path.read_text()).get("stop", {})


@pytest.mark.parametrize(("layer", "line"), [("1", 0.05), ("4", 0.2)])
def test_a_search_keeps_the_line_and_a_number_replaces_it(layer, line):
    images = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(3))
    stop = StopSettings(None, 2, 2, None, None)
    trainer = {"accelerator": "cpu"}
    found = find_corners(deep(), layer, *images, [0, 1], stop=stop, trainer=trainer).summary
    assert (found["hull_relative"], limit_of(found)) == (line, line)
    own = replace(stop, hull_relative=0.0)
    found = find_corners(deep(), layer, *images, [0, 1], stop=own, trainer=trainer).summary
    assert found["hull_relative"] == 0.0


def test_the_end_of_a_search_says_the_error_with_its_line_and_the_distance_with_its_unit():
    summary = Summary.of({
        "corner_feature_relative_max": 0.0067, "hull_relative": 0.05,
        "corner_distance_mean": 2324.5, "distance_scale": 255,
    })  # fmt: skip
    assert (
        "0.0067 of ||f(t)|| from the target's, the limit is 0.05: the corners collide; evaluate.py"
        in (collision_line(summary))
    )
    assert "limit is 0.005: the corners do not" in collision_line(
        summary | {"hull_relative": 0.005}
    )
    assert "0..255" in distance_line(summary)
    far = summary["corner_distance_mean"] / 255
    assert "2.00 times" in distance_line(summary, far / 2)
    assert collision_line(Summary.of({})) == distance_line(Summary.of({})) == ""


def test_a_search_measures_its_corners_as_the_hull_does():
    images = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(4))
    stop = StopSettings(None, 3, 3, None, None)
    hull = find_corners(deep(), "4", *images, [0, 1, 2], stop=stop, trainer={"accelerator": "cpu"})
    distance = float(hull.corner_distances().mean())
    assert hull.summary["corner_distance_mean"] == pytest.approx(distance)
    assert 0 < hull.summary["corner_feature_relative_max"] < 10
