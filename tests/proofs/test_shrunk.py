"""The share to which a hull can be shrunk so that all of it is proved."""

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from feature_collisions.data.files import load_tensors
from feature_collisions.hull import hull as hulls
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.simplex import gauge, scale_without
from helpers.hulls import collided, hull_of, valley


def dirichlet(count: int, corners: int) -> Tensor:
    return hulls.dirichlet(count, corners, torch.Generator().manual_seed(0))


def least_gauge(subdomain: Tensor) -> float:
    """A second way: the point of the subdomain that needs the least share, mixed from vertices."""
    count, corners = subdomain.shape
    found = linprog(
        [0.0] * count + [1.0],
        A_ub=torch.cat([-corners * subdomain.T, -torch.ones(corners, 1)], 1).numpy(),
        b_ub=[-1.0] * corners,
        A_eq=[[1.0] * count + [0.0]],
        b_eq=[1.0],
    )
    return float(found.fun)


@pytest.mark.parametrize("corners", [2, 3, 5, 9])
def test_the_least_gauge_is_that_of_a_search_for_the_point(corners: int) -> None:
    width = 0.3 + torch.rand(20, 1, 1)
    points = dirichlet(20 * corners, corners).view(20, corners, corners)
    subdomains = points[:, :1] + width * (points - points[:, :1])
    subdomains = subdomains.clamp_min(0) / subdomains.clamp_min(0).sum(2, keepdim=True)
    expected = [least_gauge(each) for each in subdomains]
    for each, least in zip(subdomains, expected, strict=True):
        assert scale_without(each[None]) == pytest.approx(least, abs=1e-7)
    assert scale_without(subdomains) == pytest.approx(min(expected), abs=1e-7)
    assert scale_without(subdomains, 1e-3) <= 1e-3
    assert scale_without(subdomains[:0]) == 1


def test_the_gauge_is_the_share_that_just_holds_a_point() -> None:
    weights, centroid = dirichlet(50, 4), torch.full((4,), 0.25, dtype=torch.float64)
    assert gauge(torch.eye(4)).tolist() == [1] * 4
    assert gauge(centroid) == 0
    outwards = centroid + (weights - centroid) / gauge(weights)[:, None]
    assert outwards.amin(1) == pytest.approx(torch.zeros(50), abs=1e-12)


def test_a_hull_is_proved_as_far_as_its_hole(tmp_path) -> None:
    """The valley's margin is 0 between 0.3 and 0.3125 of the way to the second corner."""
    hull = valley()
    for seconds in (0.02, 0.2):
        found = prove_class(hull.problem, seconds, tmp_path)
        (kept,) = tmp_path.iterdir()
        unverified = load_tensors(kept)["weights"]
        expected = min(map(least_gauge, unverified))
        assert found["scale_proved"] == pytest.approx(expected, abs=1e-7)
        centroid = torch.full((3,), 1 / 3, dtype=torch.float64)
        points = centroid + found["scale_proved"] * (dirichlet(2000, 3) - centroid)
        inside = torch.linalg.solve(unverified.mT[:, None], points[..., None])[..., 0]
        assert not (inside > 1e-9).all(2).any()
    assert 0.01 < found["scale_proved"] <= 1 - 3 * 0.3125


def test_all_of_a_proved_hull_is_proved_and_nothing_of_one_without_time() -> None:
    hull = collided()
    hull.summary["hull_relative"] = 100.0
    assert prove_class(hull.problem, 0)["scale_proved"] == 0
    assert prove_class(hull.problem, 5)["scale_proved"] in (0.0, 1.0)
    assert prove_collision(hull.problem, 0)["scale_proved"] == 0
    assert prove_collision(hull.problem, 1)["scale_proved"] == 1


@pytest.mark.parametrize("layer", ["0", "3"])
def test_features_are_within_the_line_on_the_shrunk_hull(layer: str) -> None:
    hull = collided()
    hull = hull_of(hull.model, hull.corners, layer)
    bound = prove_collision(hull.problem, 1)["feature_relative_max"]
    shares = []
    centroid = torch.full((4,), 0.25, dtype=torch.float64)
    for line in (0.0, 0.8 * bound, 1.001 * bound):
        hull.summary["hull_relative"] = line
        shares.append(prove_collision(hull.problem, 0.5)["scale_proved"])
        points = hull.points(centroid + shares[-1] * (dirichlet(500, 4) - centroid))
        features = [hull_features(hull, each) for each in (points, hull.target[None])]
        errors = (features[0] - features[1]).norm(dim=1) / features[1].norm()
        assert not shares[-1] or errors.max() <= line
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    assert 0.2 < shares[1] < 1


def hull_features(hull, images: Tensor) -> Tensor:
    assert isinstance(hull.model, nn.Sequential)
    with torch.no_grad():
        return hull.model[: int(hull.layer) + 1](images).relu().flatten(1).double()
