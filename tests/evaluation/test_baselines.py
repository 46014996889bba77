"""The worst point of a hull, and the balls and simplices it is compared with."""

import torch
from torch import Tensor, nn

from feature_collisions.evaluation.baselines import (
    on_span_sphere,
    on_sphere,
    plain_corners,
    radius,
    turned,
)
from feature_collisions.hull.hull import Hull


class Hole(nn.Module):
    """Class 0 everywhere, but for a small ball of class 1 round `centre`."""

    def __init__(self, centre: Tensor, width: float) -> None:
        super().__init__()
        self.features = nn.Linear(5, 5)
        nn.init.eye_(self.features.weight)
        nn.init.zeros_(self.features.bias)
        self.relu = nn.ReLU()
        self.register_buffer("centre", centre)
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        weights = self.relu(self.features(images.flatten(1)))
        distance = (weights - self.centre).abs().sum(1)
        return torch.stack([torch.zeros_like(distance), self.width - distance], 1)


def hull_of_weights(model: nn.Module) -> Hull:
    """Corners that are unit vectors, so that a point's pixels are its weights."""
    corners = torch.eye(5).view(5, 1, 1, 5)
    summary = {"target_class": 0, "distance_scale": 1}
    return Hull(model, "features", corners, corners[0], corners[1], torch.arange(5), summary)


def test_the_search_finds_a_hole_that_2000_samples_miss() -> None:
    centre = torch.tensor([0.62, 0.05, 0.2, 0.1, 0.03])
    hull = hull_of_weights(Hole(centre, 0.03))
    assert hull.sample(2000)["accuracy"] == 1
    worst = hull.worst_case()
    assert not worst.correct
    assert worst.predicted_class == 1
    assert (worst.weights - centre).abs().sum() < 0.03
    assert worst.weights.min() >= 0
    torch.testing.assert_close(worst.weights.sum(), torch.tensor(1.0))
    assert torch.equal(worst.image.flatten(), hull.points(worst.weights[None]).flatten())


def test_the_search_finds_a_bad_corner() -> None:
    hull = hull_of_weights(Hole(torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]), 0.01))
    assert hull.worst_case(starts=0).weights.argmax() == 3


def test_balls_lie_where_the_appendix_puts_them() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(4, 2, 5, 6, dtype=torch.float64)
    centre = corners.mean(0)
    nearest = min(float((corner - centre).square().sum()) ** 0.5 for corner in corners)
    assert abs(radius(corners) - nearest) < 1e-12
    for draw in (on_sphere, on_span_sphere):
        offsets = (draw(corners, 50, generator) - centre).flatten(1)
        expected = torch.full((50,), nearest, dtype=torch.float64)
        torch.testing.assert_close(offsets.norm(dim=1), expected)
        rank = torch.linalg.matrix_rank(torch.cat([offsets, (corners - centre).flatten(1)]))
        assert int(rank) == (53 if draw is on_sphere else 3)


def test_a_turned_simplex_keeps_its_distances_and_centre_but_not_its_direction() -> None:
    corners = torch.rand(4, 2, 5, 6, dtype=torch.float64)
    other = turned(corners, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.pdist(other.flatten(1)), torch.pdist(corners.flatten(1)))
    torch.testing.assert_close(other.mean(0), corners.mean(0))
    both = torch.cat([corners, other]).flatten(1)
    assert int(torch.linalg.matrix_rank(both - both.mean(0))) == 6


def test_plain_corners_collide_and_differ() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 2))
    target = torch.rand(1, 6, 6)
    corners = target.repeat(3, 1, 1, 1)  # none fits better, so that all steps are taken
    summary = {"target_class": 0, "distance_scale": 1}
    hull = Hull(model, "1", corners, corners[0], target, torch.arange(3), summary)
    found = plain_corners(hull, 3, 300, seed=0)
    error = (model[:3](found) - model[:3](target[None])).norm(dim=1)
    assert error.max() < 0.05
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.pdist(found.flatten(1)).min() > 0.5
    assert torch.equal(found, plain_corners(hull, 3, 300, seed=0))


def test_plain_corners_end_as_near_as_the_hulls_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.ReLU(), nn.Linear(6, 2))
    target = torch.rand(1, 6, 6)
    corners = (target + 0.05 * torch.randn(3, 6, 6)[:, None]).clamp(0, 1)
    hull = Hull(model, "1", corners, corners[0], target, torch.arange(3), {"target_class": 0})
    errors = [
        hull.features.error(model[1](images.flatten(1))).max()
        for images in (corners, plain_corners(hull, 3, 300, 0), plain_corners(hull, 3, 1, 0))
    ]
    assert errors[0] / 5 < errors[1] <= errors[0] < errors[2]
