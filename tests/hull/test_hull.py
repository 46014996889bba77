import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from feature_collisions import Hull
from feature_collisions.errors import SettingError
from feature_collisions.hull import evaluator
from feature_collisions.hull.evaluator import in_batches
from feature_collisions.hull.worst_case import descend, slopes_at
from feature_collisions.simplex import dirichlet, mixes, project_to_simplex, stick_breaking


def hull_of(model, corners, target_class, layer="hidden", **summary):
    summary = {"target_class": target_class, "distance_scale": 1, "corners": []} | summary
    units = torch.arange(len(corners))
    return Hull(model, layer, corners, corners[0], corners[0], units, summary)


def test_dirichlet_is_uniform_on_the_simplex():
    weights = dirichlet(100_000, 4, torch.Generator().manual_seed(0))
    assert weights.sum(1).allclose(torch.ones(1, dtype=torch.float64))
    assert weights.min() >= 0
    assert weights.mean(0).tolist() == pytest.approx([0.25] * 4, abs=3e-3)
    # under Dirichlet(1, 1, 1, 1) a weight has variance 3/80 and exceeds 1/2 one time in eight
    assert weights.var(0).tolist() == pytest.approx([3 / 80] * 4, abs=1e-3)
    assert (weights > 0.5).double().mean(0).tolist() == pytest.approx([1 / 8] * 4, abs=5e-3)


def test_mixes_lie_in_memory_as_the_corners_do():
    corners = torch.rand(3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    weights = dirichlet(7, 3, torch.Generator().manual_seed(1))
    expected = torch.einsum("bk,kchw->bchw", weights.float(), corners)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = mixes(weights, corners.contiguous(memory_format=layout))
        assert torch.allclose(found, expected, atol=1e-6)
        assert found.is_contiguous(memory_format=layout)


def test_projection_to_the_simplex_is_the_nearest_point():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    simplex = torch.stack([first, second, 1 - first - second], -1).view(-1, 3)
    simplex = simplex[simplex[:, 2] >= -1e-12]
    for point, projected in zip(points, project_to_simplex(points), strict=True):
        assert projected.min() >= 0
        assert projected.sum() == pytest.approx(1)
        nearest = (simplex - point).norm(dim=1).min()
        assert (projected - point).norm() <= nearest + 1e-9


def test_samples_are_the_weights_images(shift, shift_images):
    corners = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    hull = replace(hull_of(shift, corners, 1), batch=7)  # several batches, the last one smaller
    result = hull.sample(50, seed=4)
    weights = dirichlet(50, 3, torch.Generator().manual_seed(4)).float()
    images = torch.stack([sum(w * c for w, c in zip(row, corners, strict=True)) for row in weights])
    with torch.no_grad():
        probabilities = shift(images).softmax(1)
    assert result["samples"] == 50
    assert result["accuracy"] == (probabilities.argmax(1) == 1).double().mean()
    assert result["probability_mean"] == pytest.approx(float(probabilities[:, 1].mean()), rel=1e-5)
    assert result["probability_min"] == pytest.approx(float(probabilities[:, 1].min()), rel=1e-5)


def test_same_seed_same_samples(shift):
    hull = hull_of(shift, torch.rand(3, 1, 3, 3), 1)
    assert hull.sample(100, seed=0) == hull.sample(100, seed=0)
    assert hull.sample(100, seed=0) != hull.sample(100, seed=1)


def test_uint8_mixes_what_the_pngs_hold(shift):
    corners = torch.full((2, 1, 3, 3), 200.4 / 255)
    corners[0] = 200 / 255  # which is the target too
    exact = hull_of(shift, (corners * 255).round() / 255, 0)
    assert hull_of(shift, corners, 0).sample(10, uint8=True) == exact.sample(10)
    assert hull_of(shift, corners, 0).sample(10) != exact.sample(10)


def test_distances_are_between_all_pairs_and_scaled(shift):
    corners = torch.zeros(3, 1, 3, 3)
    corners[1, 0, 0, 0] = 1
    corners[2, 0] = 1
    hull = hull_of(shift, corners, 0, distance_scale=255)
    expected = [255, 255 * 3, 255 * math.sqrt(8)]
    assert sorted(hull.corner_distances().tolist()) == pytest.approx(sorted(expected))


class Hole(nn.Module):
    """Class 0 everywhere but close to one mix of three corners."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(9, 9)
        self.relu = nn.ReLU()
        self.register_buffer("centre", torch.tensor([0.13, 0.21, 0.66]))

    def forward(self, images):
        nothing = 0 * self.relu(self.hidden(images.flatten(1))).sum(1)
        distance = nothing + (images.flatten(1)[:, :3] - self.centre).norm(dim=1)
        return torch.stack([distance - 0.003, torch.zeros_like(distance)], 1)


def test_the_worst_case_finds_a_hole_that_samples_miss():
    corners = torch.zeros(3, 1, 3, 3)
    corners.view(3, 9)[:, :3] = torch.eye(3)
    hull = hull_of(Hole(), corners, 0)
    assert hull.sample(2000)["accuracy"] == 1
    worst = hull.worst_case()
    assert not worst.correct
    assert worst.predicted_class == 1
    assert worst.weights.tolist() == pytest.approx([0.13, 0.21, 0.66], abs=0.003)
    assert torch.allclose(worst.image, hull.points(worst.weights[None])[0])


def test_the_worst_case_of_a_linear_margin_is_a_corner():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(9))
        model[1].bias.zero_()
        model[3].weight.copy_(torch.stack([torch.ones(9), torch.zeros(9)]))
    corners = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    worst = hull_of(model, corners, 0, layer="1").worst_case()
    assert worst.weights.argmax() == corners.flatten(1).sum(1).argmin()
    assert worst.weights.max() == pytest.approx(1)


def linear(weight, bias):
    layer = nn.Linear(*torch.tensor(weight).T.shape)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return layer


def test_the_largest_feature_error_of_an_affine_layer_is_at_a_corner():
    """Every unit is active, so the error is a norm of an affine function: convex."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(9))
        model[1].bias.zero_()
    corners = torch.rand(5, 1, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    hull = replace(hull_of(model, corners, 0, layer="1"), target=corners.mean(0))
    worst = hull.worst_case(of="features")
    distances = (corners - hull.target).flatten(1).norm(dim=1)
    assert worst.weights.argmax() == distances.argmax()
    assert worst.weights.max() == pytest.approx(1)
    expected = distances.max() / hull.target.norm()
    assert worst.feature_relative == pytest.approx(float(expected), rel=1e-5)


def spike():
    """Two features of the distance d from one mix of three corners: 2.74 - d, and near it 5000
    times more, which no sample sees."""
    centre, eye = [0.13, 0.21, 0.66], torch.eye(3).tolist()
    distances = linear(eye + (-torch.eye(3)).tolist(), [-c for c in centre] + centre)
    features = linear([[-1.0] * 6, [-5000.0] * 6], [19.0, 25.0])
    answers = linear([[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0])
    return nn.Sequential(nn.Flatten(), distances, nn.ReLU(), features, nn.ReLU(), answers)


def test_a_search_finds_a_feature_error_inside_that_samples_miss():
    hull = hull_of(spike(), torch.eye(3).view(3, 1, 1, 3), 0, layer="3", hull_relative=0.2)
    sample = hull.sample(2000)
    assert sample["feature_relative_max"] < 0.12
    assert hull.outcome(sample).name == "features collide"
    worst = hull.worst_case(of="features")
    assert worst.feature_relative > 0.5
    assert worst.correct
    assert worst.weights.tolist() == pytest.approx([0.13, 0.21, 0.66], abs=0.003)
    name, reasons = hull.outcome(sample, worst.feature_relative)
    assert name == "class only"
    assert "||f(t)|| at the worst point found, the limit is 0.2" in reasons[0]


def test_the_search_for_the_worst_features_depends_only_on_its_seed():
    def found(seed):
        hull = hull_of(spike(), torch.eye(3).view(3, 1, 1, 3), 0, layer="3")
        return hull.worst_case(starts=20, steps=1, seed=seed, of="features").weights.tolist()

    assert found(0) == found(0)
    assert found(0) != found(1)


@pytest.mark.parametrize("pixel", [math.nan, math.inf])
def test_corners_that_are_not_numbers_are_refused(shift, pixel):
    corners = torch.rand(2, 1, 3, 3)
    corners[1, 0, 0, 0] = pixel
    with pytest.raises(SettingError, match="corners: have pixels that are not finite numbers"):
        Hull(shift, "hidden", corners, corners[0], corners[0], torch.arange(2), {})


def test_zero_samples_are_refused(shift):
    with pytest.raises(SettingError, match="samples=0: must be at least 1"):
        hull_of(shift, torch.rand(2, 1, 3, 3), 0).sample(0)


@pytest.mark.parametrize("batch", [1, 7, 256, 300, 1000])
def test_points_do_not_depend_on_how_many_are_taken_at_once(shift, monkeypatch, batch):
    corners = torch.rand(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    hull, seen = replace(hull_of(shift, corners, 1), batch=batch), []
    monkeypatch.setattr(evaluator, "threads_of_cpu", lambda: 1)  # as they come
    observe = evaluator.Replica.observe
    monkeypatch.setattr(
        evaluator.Replica, "observe", lambda self, x: (seen.append(x), observe(self, x))[1]
    )
    hull.sample(600, "stick_breaking", seed=3)
    assert max(map(len, seen)) == min(batch, 600)
    generator = torch.Generator().manual_seed(3)
    weights = torch.cat([stick_breaking(n, 3, generator) for n in (256, 256, 88)])
    assert torch.equal(torch.cat(seen), mixes(weights, corners))


def test_rows_come_in_batches_in_their_order():
    pieces = [torch.arange(4), torch.arange(4, 5), torch.arange(5, 5), torch.arange(5, 13)]
    for size in (1, 3, 4, 5, 13, 20):
        found = list(in_batches(pieces, size))
        assert torch.cat(found).equal(torch.arange(13))
        assert all(len(batch) == size for batch in found[:-1])
        assert 0 < len(found[-1]) <= size
    assert list(in_batches([], 3)) == []


@pytest.mark.parametrize("steps", [1, 5, 50])
def test_the_paths_that_go_on_are_the_ones_that_fall_lowest(steps):
    """Margins rise with the distance from one point each path falls to: all are told apart."""
    goal = torch.tensor([0.2, 0.3, 0.5])
    starts = dirichlet(30, 3, torch.Generator().manual_seed(0)).float()
    given = []

    def margins_of(weights):
        given.append(len(weights))
        return (weights - goal).norm(dim=1)

    lowest = descend(partial(slopes_at, margins_of), starts, steps)
    assert len(lowest) <= 30
    assert margins_of(lowest).min() <= margins_of(starts).min()
    if steps == 50:
        assert sum(given) == 30 * 5 + 10 * 10 + 4 * 36 + len(lowest) + 30
        assert margins_of(lowest).min() < 0.01
