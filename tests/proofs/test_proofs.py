"""Bounds over a hull are sound, tight where nothing bends, and decide what they should."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.hull.hull import Hull, dirichlet
from feature_collisions.networks.graph import NotPiecewiseLinear
from feature_collisions.proofs.bounds import Bounds
from feature_collisions.proofs.linear_program import LinearPrograms
from feature_collisions.proofs.piecewise import traced
from feature_collisions.proofs.whole_hull import class_proof, collision_proof, depth
from helpers.hulls import valley
from helpers.networks import everything


@pytest.mark.parametrize("scale", [1.0, 0.05, 0.001])
def test_bounds_hold_at_every_point_and_tighten_as_the_hull_shrinks(scale: float) -> None:
    network = traced(everything())
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(4, 2, 11, 9, generator=generator, dtype=torch.float64)
    corners = corners[0] + scale * (corners - corners[0])
    lower, upper = Bounds(network).over(corners)
    weights = torch.cat([torch.eye(4).double(), dirichlet(500, 4, generator)])
    with torch.no_grad():
        logits = network(torch.tensordot(weights, corners, 1))
    assert (weights @ lower <= logits + 1e-9).all()
    assert (logits <= weights @ upper + 1e-9).all()
    assert (upper - lower).max() < 60 * scale
    assert (upper - lower).max() > 0


class Signs(nn.Module):
    """Steps that turn the order of bounds round: negative factors, 1-d convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, 3, 3), nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = (0.5 - self.first(images.flatten(1).unsqueeze(1)) * -2).relu()
        logits: Tensor = self.last(1 - x.flatten(1))
        return logits


def test_bounds_hold_through_negative_factors() -> None:
    torch.manual_seed(0)
    network = traced(Signs())
    corners = torch.rand(3, 1, 2, 3, dtype=torch.float64) * 4 - 2
    lower, upper = Bounds(network).over(corners)
    weights = torch.cat([torch.eye(3).double(), dirichlet(500, 3, torch.Generator())])
    logits = network(torch.tensordot(weights, corners, 1))
    assert (weights @ lower <= logits + 1e-12).all()
    assert (logits <= weights @ upper + 1e-12).all()
    assert (upper - lower).max() > 0


def test_a_difference_of_two_moving_values_is_refused_and_not_bounded_wrongly() -> None:
    class Difference(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = images.flatten(1)
            return torch.add(x.relu(), (2 * x).relu(), alpha=-1)

    with pytest.raises(NotPiecewiseLinear, match="no bounds are known for add"):
        Bounds(traced(Difference())).over(torch.rand(2, 1, 2, 2, dtype=torch.float64))


def test_without_a_bend_the_bounds_are_the_network() -> None:
    network = traced(everything())
    corners = torch.rand(1, 2, 11, 9, dtype=torch.float64).repeat(3, 1, 1, 1)
    lower, upper = Bounds(network).over(corners)
    torch.testing.assert_close(lower, network(corners))
    torch.testing.assert_close(upper, network(corners))


def test_a_hull_with_a_hole_is_not_proved_and_the_rest_of_it_is() -> None:
    hull = valley()  # class 1 where pixel 0 lies between 0.3 and 0.3125
    found = class_proof(hull, seconds=2)
    assert 0.9 < found["share_proved"] < 0.9871
    hull.corners = hull.corners * 0.25 + torch.tensor([0.5, 0]).view(1, 1, 1, 2)
    assert class_proof(hull)["share_proved"] == 1


def affine_hull(objective: str = "unit") -> Hull:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    initial, target = torch.rand(2, 1, 6, 6)
    return LinearPrograms(model, "1", initial, target, range(3), objective).run()


def test_a_hull_of_exact_corners_collides_and_has_one_class_all_over() -> None:
    hull = affine_hull()
    collision, of_class = collision_proof(hull), class_proof(hull)
    assert collision["positive_relative_max"] < 1e-5
    assert collision["inactive_max"] < 1e-5
    assert collision["feature_error_max"] < 1e-5
    assert of_class["share_proved"] == 1
    logits = hull.model(hull.target[None])[0].tolist()
    best, second = sorted(logits)[-1], sorted(logits)[-2]
    assert of_class["margin_min"] == pytest.approx(best - second, abs=1e-3)


def test_the_largest_violation_is_the_slow_one_over_many_points_of_the_hull() -> None:
    hull = affine_hull()
    hull.corners = (hull.corners + 0.05 * torch.randn(hull.corners.shape)).clamp(0, 1)
    found = collision_proof(hull)
    layer = hull.model[1]  # type: ignore[index]
    target = layer(hull.target.flatten()).tolist()
    most = 0.0
    for weights in torch.cat([torch.eye(3), dirichlet(200, 3, torch.Generator()).float()]):
        f0 = layer(torch.tensordot(weights, hull.corners, 1).flatten()).tolist()
        most = max(most, *(abs(max(a, 0) - max(b, 0)) for a, b in zip(f0, target, strict=True)))
    assert found["feature_error_max"] == pytest.approx(most, rel=1e-4)
    assert found["inactive_max"] > 0


def test_a_deeper_layer_is_not_stated_as_proved() -> None:
    deeper = replace(affine_hull(), layer="3")
    assert "not affine in the pixels" in collision_proof(deeper)["reason"]
    assert depth(deeper) == {}


def test_depth_is_one_at_eq2s_corners_and_less_elsewhere() -> None:
    hull = affine_hull("eq2")
    hull.summary["solver"] = "gradient"
    found = depth(hull)["depth"]
    assert found["share"] == pytest.approx([1, 1, 1], abs=1e-3)
    hull.corners[1] = (hull.corners[1] + hull.target) / 2
    layer, unit = hull.model[1], int(hull.units[1])  # type: ignore[index]
    target = layer(hull.target.flatten()).tolist()
    f0 = layer(hull.corners[1].flatten()).tolist()
    held = sum(abs(f0[j]) for j in range(12) if target[j] < 0 and j != unit)
    share = (f0[unit] + held) / found["optimum"][1]
    assert share < 0.9
    assert depth(hull)["depth"]["share"] == pytest.approx([1, share, 1], abs=1e-3)


def test_depth_is_of_the_units_that_the_hull_holds() -> None:
    hull = affine_hull("eq2")
    hull.summary["solver"] = "gradient"
    order = [2, 0, 1]  # the same corners, counted otherwise
    hull.corners, hull.units = hull.corners[order], hull.units[order]
    assert depth(hull)["depth"]["share"] == pytest.approx([1, 1, 1], abs=1e-3)
