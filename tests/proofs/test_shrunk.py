"""The share to which a hull can be shrunk so that all of it is proved."""

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from feature_collisions.data.files import load_tensors
from feature_collisions.hull import hull as hulls
from feature_collisions.proofs import splitting
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.splitting import shrunk
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.simplex import gauge, scale_without
from helpers.hulls import collided, deep, hull_of, valley


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
        pieces = load_tensors(kept)
        unverified = pieces["weights"][~(pieces["figures"][:, 0] > 0)]
        inner = float(pieces["numbers"][5])
        expected = min(map(least_gauge, unverified))
        assert found["scale_proved"] == pytest.approx(max(inner, expected), abs=1e-7)
        if inner > expected:
            continue
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


@pytest.mark.parametrize("corners", [2, 3, 5, 24])
@pytest.mark.parametrize("share", [0.75, 0.5, 0.09375])
def test_a_shrunk_hull_has_exact_weights_and_holds_what_it_is_said_to(
    corners: int, share: float
) -> None:
    weights = shrunk(corners, share)
    assert torch.equal(weights * 2**17, (weights * 2**17).round())
    assert torch.equal(weights.sum(1), torch.ones(corners, dtype=torch.float64))
    holds = 1 - corners * float(weights.amin(0).max())
    assert share - 0.01 < holds <= share
    centroid = torch.full((corners,), 1 / corners, dtype=torch.float64)
    edge = centroid + holds * (torch.eye(corners).double() - centroid)
    assert torch.linalg.solve(weights.T, edge.T).min() > -1e-12


@pytest.mark.parametrize("prove", [prove_class, prove_collision])
def test_an_inner_part_is_proved_by_few_pieces_and_never_past_a_hole(
    prove, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """The class holds by little where it holds least; the features are beyond the line outside."""
    shares = []
    for seed in range(4):
        hull = deep(seed)
        target = hull_features(hull, hull.target[None])

        def errors(hull, points: Tensor, target: Tensor = target) -> Tensor:
            return (hull_features(hull, hull.points(points)) - target).norm(dim=1) / target.norm()

        hull.summary["hull_relative"] = 0.6 * float(errors(hull, dirichlet(2000, 5)).max())
        scale = prove(hull.problem, 0.05, tmp_path)["scale_proved"]
        assert scale < 1
        points = 0.2 + scale * (dirichlet(4000, 5) - 0.2)
        with torch.no_grad():
            right = hull.model(hull.points(points)).argmax(1) == hull.summary["target_class"]
        near = errors(hull, points) <= hull.summary["hull_relative"]
        assert (right if prove is prove_class else near).all()
        assert prove(hull.problem, 0.05, tmp_path)["scale_proved"] >= scale  # it is kept
        with monkeypatch.context() as alone:
            alone.setattr(splitting, "_SHRUNK", [])
            shares.append((scale, prove(hull.problem, 0.05)["scale_proved"]))
    inner_first, alone_first = map(sum, zip(*shares, strict=True))
    assert inner_first > 1.2 * alone_first


def test_what_overflows_is_not_called_lost_in_rounding() -> None:
    """Differences of 1e38 cancel, and each layer multiplies what they round by as much."""
    many = [layer for _ in range(9) for layer in (nn.Linear(1, 1), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1), nn.ReLU(), *many, nn.Linear(1, 2))
    with torch.no_grad():
        for each in model.parameters():
            each.fill_(1e38 if each.ndim == 2 else 0)
        model[1].weight.copy_(torch.tensor([[1e38, -1e38]]))
        model[-3].bias.fill_(1.0)
        model[-1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    found = prove_collision(hull_of(model, torch.full((3, 1, 1, 2), 0.5), "19").problem, 0.1)
    assert found["scale_proved"] == 0
    assert "overflow" in found["reason"]
