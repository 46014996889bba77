"""The worst point of a hull, and the balls and simplices it is compared with."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.evaluation.baselines import (
    balls,
    dimension,
    on_span_sphere,
    on_sphere,
    other_images,
    plain_corners,
    radius,
    simplices,
    turned,
)
from feature_collisions.hull.hull import Hull
from helpers.hulls import made_hull


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


def _line(parts: list[float]) -> Tensor:
    ends = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.stack([ends[0] + part * (ends[1] - ends[0]) for part in parts])


@pytest.mark.parametrize("parts", [[0, 0, 1], [0, 1, 1, 0], [0, 0.37, 1], [0, 0.1, 0.3, 0.9, 1]])
def test_a_ball_and_a_simplex_of_corners_on_a_line_stay_on_a_line(parts: list[float]) -> None:
    corners, generator = _line(parts), torch.Generator().manual_seed(1)
    assert dimension(corners) == 1
    points = on_span_sphere(corners, 100, generator).flatten(1)
    start, way = corners[0].flatten(), (corners[-1] - corners[0]).flatten()
    way = corners.flatten(1)[corners.sub(corners[0]).flatten(1).norm(dim=1).argmax()] - start
    along = (points - start) @ way / way.square().sum()
    torch.testing.assert_close(points, start + along[:, None] * way, atol=1e-5, rtol=0)
    distances = torch.pdist(turned(corners, generator).flatten(1))
    torch.testing.assert_close(distances, torch.pdist(corners.flatten(1)), atol=1e-5, rtol=0)


def test_corners_that_all_coincide_have_a_ball_of_one_point() -> None:
    corners = _line([0.5, 0.5, 0.5])
    points = on_span_sphere(corners, 10, torch.Generator().manual_seed(1))
    assert dimension(corners) == 0
    torch.testing.assert_close(points, corners[:1].expand_as(points))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_turns_have_no_direction_that_is_preferred(count: int) -> None:
    corners = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(count))
    generator = torch.Generator().manual_seed(1)
    found = torch.stack([turned(corners, generator) for _ in range(2000)])
    offsets = (found - found.mean(1, keepdim=True)).flatten(2)
    offsets = offsets / offsets.norm(dim=2, keepdim=True)
    assert (offsets.mean(0).abs() * (9 * 2000) ** 0.5).max() < 4.5  # standard errors
    assert (offsets.square().mean(0) - 1 / 9).abs().max() < 0.02


def test_every_baseline_has_its_feature_error() -> None:
    hull = made_hull(corners=3)
    found = balls(hull, 20, 0) | simplices(hull, 20, 0)
    names = {key.removesuffix("_accuracy") for key in found if key.endswith("_accuracy")}
    assert names == {"ball", "ball_clipped", "ball_span", "random_simplex"}
    for name in names:
        assert found[f"{name}_feature_relative_max"] > 0


def test_features_of_other_images_are_compared_without_the_target():
    """Nearest, median and number within the line, one by one; the target itself is left out."""
    hull = made_hull()
    images = torch.rand(11, *hull.target.shape, generator=torch.Generator().manual_seed(1))
    images[4] = hull.target
    with torch.no_grad():
        wanted = hull.features.features
        errors = sorted(
            float((hull.model[:4](image[None])[0] - wanted).norm() / wanted.norm())
            for k, image in enumerate(images)
            if k != 4
        )
    limit = (errors[2] + errors[3]) / 2
    hull = replace(hull, summary=hull.summary | {"hull_relative": limit})
    found = other_images(hull, images)
    assert (found.images, found.within) == (10, 3)
    assert found.nearest == pytest.approx(errors[0], rel=1e-4)
    assert found.median == pytest.approx(errors[4], rel=1e-4)
    assert other_images(hull, hull.target[None]) is None
