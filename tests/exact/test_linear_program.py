"""Exact corners against closed forms, and the section's own conditions read again."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feature_collisions.errors import CollisionError, SettingError
from feature_collisions.exact.linear_program import (
    OBJECTIVES,
    AffineMap,
    LinearPrograms,
    Polytope,
    affine_map,
)
from feature_collisions.graph.operations import NotPiecewiseLinear
from helpers.graphs import cut_at


def random_net(pixels: int = 36, units: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, units), nn.ReLU(), nn.Linear(units, 3))
    return net.requires_grad_(False)


def programs(objective: str, corners: range = range(3), seed: int = 0) -> LinearPrograms:
    model = random_net()
    initial, target = torch.rand(2, 1, 6, 6)
    return LinearPrograms(model, "1", initial, target, corners, objective, seed, nearness=1.0)


def test_the_affine_map_is_the_layer() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    model = nn.Sequential(nn.AvgPool2d(2), conv, nn.BatchNorm2d(3), nn.ReLU()).eval()
    cut = cut_at(model, "2", torch.zeros(2, 6, 8)).double()
    found = affine_map(cut, (2, 6, 8), batch=7)
    images = torch.rand(5, 2, 6, 8, dtype=torch.float64) * 3 - 1
    expected = images.flatten(1) @ torch.tensor(found.weight).T + torch.tensor(found.bias)
    torch.testing.assert_close(cut(images), expected)


def test_a_layer_after_a_bend_is_refused_with_the_reason() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU())
    image, target = torch.rand(2, 1, 2, 2)
    with pytest.raises(SettingError, match=r"solver=linear_program: layer 3 .*through 2 first"):
        LinearPrograms(model, "3", image, target, [0])


def test_images_that_make_no_problem_are_refused() -> None:
    model, image = random_net(), torch.rand(1, 6, 6)
    for initial, target, message in (
        (image, image, "initial and target are the same image"),
        (image, image * 2, r"target: pixels must be in \[0, 1\]"),
        (torch.rand(1, 5, 5), torch.rand(1, 5, 5), "an image of 1x5x5 does not pass through"),
    ):
        with pytest.raises(SettingError, match=message):
            LinearPrograms(model, "1", initial, target, [0])


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            x: Tensor = self.layer(images.flatten(1))
            return x if x.sum() > 0 else x.relu()

    with pytest.raises(NotPiecewiseLinear, match="cannot follow"):
        affine_map(cut_at(Branching(), "layer", torch.zeros(1, 2, 2)).double(), (1, 2, 2))


def test_two_pixels_in_closed_form() -> None:
    """x + y is the target's; unit 1 is x - 0.5 and falls as far as the box lets x."""
    map_ = AffineMap(np.array([[1.0, 1], [1, 0]]), np.array([0, -0.5]))
    polytope = Polytope(map_, np.array([0.8, 0]), np.array([True, False]))
    for objective in ("eq2", "unit"):
        found = polytope.solve(objective, 1, torch.Generator())
        assert found.pixels.tolist() == pytest.approx([0, 0.8])
        assert found.value == pytest.approx(-0.5)


def test_eq2_weighs_the_other_units() -> None:
    """Unit 0 is x - 0.5, unit 1 is 2 x - 1.2: pushing x down costs twice what it gains."""
    map_ = AffineMap(np.array([[1.0], [2.0]]), np.array([-0.5, -1.2]))
    polytope = Polytope(map_, np.zeros(2), np.array([False, False]))
    eq2 = polytope.solve("eq2", 0, torch.Generator())
    assert eq2.pixels.tolist() == pytest.approx([0.6])
    assert eq2.value == pytest.approx(0.1)
    unit = polytope.solve("unit", 0, torch.Generator())
    assert unit.pixels.tolist() == pytest.approx([0.0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_corners_meet_section_2s_conditions_and_no_other_point_is_deeper(objective: str) -> None:
    found = programs(objective)
    hull = found.run()
    target = (hull.model[1](hull.target.flatten())).double()  # type: ignore[operator,index]
    for entry, corner in zip(hull.summary["corners"], hull.corners, strict=True):
        f0 = (hull.model[1](corner.flatten())).double()  # type: ignore[operator,index]
        for own, wanted in zip(f0.tolist(), target.tolist(), strict=True):
            if wanted > 0:
                assert own == pytest.approx(wanted, abs=1e-5)
            elif objective != "eq2":
                assert own <= 1e-5
        assert f0[entry["unit"]] == pytest.approx(entry["unit_preactivation"], abs=1e-5)
    assert hull.corners.min() >= 0
    assert hull.corners.max() <= 1
    if objective == "unit":  # nothing in the hull of the others is lower in a corner's unit
        units = [entry["unit"] for entry in hull.summary["corners"]]
        values = hull.model[1](hull.corners.flatten(1))[:, units]  # type: ignore[operator,index]
        assert (values.diagonal() <= values.amin(0) + 1e-5).all()


def test_the_value_of_eq2_is_its_loss_at_the_corner() -> None:
    found = programs("eq2")
    hull, solutions = found.run(), found.solutions()
    target = hull.model[1](hull.target.flatten())  # type: ignore[operator,index]
    for unit, solution in zip(found.units.tolist(), solutions, strict=True):
        f0 = hull.model[1](solution.pixels.float())  # type: ignore[operator,index]
        loss = float(f0[unit])
        for j, (own, wanted) in enumerate(zip(f0.tolist(), target.tolist(), strict=True)):
            loss += abs(own) if wanted < 0 and j != unit else 0
        assert solution.value == pytest.approx(loss, abs=1e-4)


def test_random_corners_differ_with_the_seed_and_are_the_same_with_the_same() -> None:
    first, again, other = (programs("random", seed=seed).run().corners for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


def test_an_empty_polytope_is_told() -> None:
    map_ = AffineMap(np.array([[1.0, 1], [1, 0]]), np.array([0, -0.5]))
    polytope = Polytope(map_, np.array([2.5, 0]), np.array([True, False]))
    for objective in OBJECTIVES:
        with pytest.raises(CollisionError, match="the polytope is empty"):
            polytope.solve(objective, 1, torch.Generator())


def test_corners_that_coincide_are_named() -> None:
    """As many active units as pixels leave the target as the polytope's one point."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model[1].weight.data = torch.cat([torch.eye(4), -torch.rand(2, 4)])
    model[1].bias.data = torch.tensor([0.1, 0.1, 0.1, 0.1, -1, -1])
    image, target = torch.rand(2, 1, 2, 2)
    with pytest.warns(UserWarning, match="do not exist on their own: corner 1 is 0"):
        hull = LinearPrograms(model, "1", image, target, [0, 1]).run()
    torch.testing.assert_close(hull.corners, target.expand_as(hull.corners), atol=1e-5, rtol=0)
