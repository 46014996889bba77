"""A local network is the network on its piece, and so is one that is taken out of it."""

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.hull.hull import Hull
from feature_collisions.proofs import judge as judges
from feature_collisions.proofs.bounds.local import TooManyBends, localise, numbers_of, values_of
from feature_collisions.proofs.bounds.over_pieces import Bounds
from feature_collisions.proofs.bounds.record import steps_of
from feature_collisions.proofs.bounds.relaxation import rounding
from feature_collisions.proofs.bounds.steps import Step
from feature_collisions.proofs.splitting import Splitting
from feature_collisions.proofs.whole_hull import ClassJudge
from feature_collisions.simplex import dirichlet
from helpers.graphs import traced_for
from helpers.hulls import deep, hull_of
from proofs.test_proofs import NETWORKS, SIZES, made


def piece_of(depth: int, generator: torch.Generator) -> Tensor:
    """The weights (4, 4) of a simplex halved at random, so that they are exact."""
    piece = torch.eye(4, dtype=torch.float64)
    for _ in range(depth):
        i, j = torch.randperm(4, generator=generator)[:2].tolist()
        piece[i] = (piece[i] + piece[j]) / 2
    return piece


def ends(steps: list[Step], piece: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Lower and upper bounds (K, classes) over a piece, both ways."""
    bounds = Bounds(steps, piece[None], 0.0)
    last = len(steps) - 1
    rows = torch.eye(steps[last].size, dtype=torch.float64)
    below, above = bounds.spread(last, rows).ends()
    lines = bounds.lower(last, torch.cat([rows, -rows]))[0]
    return [(below[0].T, above[0].T), (lines[: len(rows)].T, -lines[len(rows) :].T)]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.001])
def test_a_local_network_computes_and_bounds_what_the_network_does(name: str, scale: float) -> None:
    for seed in range(3):
        network, corners = made(name, seed, SIZES[name], scale)
        generator = torch.Generator().manual_seed(seed)
        steps, weights = steps_of(network, corners[0]), torch.eye(4, dtype=torch.float64)
        local = localise(steps, corners, rounding(4, corners))
        points = torch.cat([torch.eye(4).double(), dirichlet(500, 4, generator)])
        for depth in (0, 2, 3):
            piece = piece_of(depth, generator)
            weights = piece @ weights
            local = localise(local, piece) if depth else local
            logits = network(torch.tensordot(points @ weights, corners, 1))
            torch.testing.assert_close(values_of(local, points), logits, atol=1e-12, rtol=1e-12)
            inner = piece_of(2, generator)
            inside = network(torch.tensordot(points @ inner @ weights, corners, 1))
            for lower, upper in ends(local, inner):
                assert (points @ lower <= inside).all()
                assert (inside <= points @ upper).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_local_network_is_no_looser_than_the_whole_one(name: str) -> None:
    network, corners = made(name, 0, SIZES[name], 0.1)
    steps = steps_of(network, corners[0])
    local = localise(steps, corners, rounding(4, corners))
    inner = piece_of(3, torch.Generator().manual_seed(0))
    last = len(steps) - 1
    rows = torch.eye(steps[last].size, dtype=torch.float64)
    points = torch.tensordot(inner, corners, 1)[None]
    whole = Bounds(steps, points, rounding(4, points)).lower(last, torch.cat([rows, -rows]))
    parts = Bounds(local, inner[None], 0.0).lower(len(local) - 1, torch.cat([rows, -rows]))
    assert -parts.sum() <= -1.1 * whole.sum() + 1e-10
    assert numbers_of(local) < sum(step.size for step in steps) ** 2


def test_a_local_network_holds_what_bends_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    network[1].weight.data = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    network[1].bias.data = torch.tensor([-0.25, -2, 1])
    image = torch.zeros(1, 1, 2, dtype=torch.float64)
    steps = steps_of(traced_for(network, image), image)
    corners = torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64).view(3, 1, 1, 2)
    local = localise(steps, corners)
    assert [step.size for step in local] == [3, 1, 1, 2]  # the first unit alone
    part = torch.tensor([[0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5]], dtype=torch.float64)
    inner = localise(local, part)
    assert [step.size for step in inner] == [3, 2]  # none: linear


def test_windows_of_zeros_do_not_bend() -> None:
    """Every unit but the last is off on the whole piece: a max pool over zeros ties everywhere."""
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1, bias=False),
                            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 2))  # fmt: skip
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([1.0, 1, 1]).view(3, 1, 1, 1))
        network[0].bias.copy_(torch.tensor([-9.0, -9, 1]))
        network[2].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).view(3, 3, 1, 1))
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(1, 4, 4, generator=generator, dtype=torch.float64)
    corners = middle + 1e-6 * torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)
    steps = steps_of(traced_for(network, corners), corners[0])
    local = localise(steps, corners, rounding(3, corners))
    assert [step.size for step in local] == [3, 2]


def test_a_network_with_too_many_bends_has_none() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4000), nn.ReLU(), nn.Linear(4000, 2))
    corners = torch.rand(3, 1, 2, 2, dtype=torch.float64) * 4 - 2
    with pytest.raises(TooManyBends):
        localise(steps_of(traced_for(network, corners), corners[0]), corners)


def wide() -> Hull:
    """Most units are in the first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    return hull_of(model, torch.rand(5, 1, 4, 4))


@pytest.mark.parametrize("pays", [False, True])
def test_a_reduced_network_is_made_only_where_it_costs_little(
    pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units of the first layer cost a reduced network much, and a bound nothing."""
    monkeypatch.setattr(judges, "_LITTLE", 0)
    hull = deep(0) if pays else wide()
    judge = ClassJudge(hull.problem)
    judge.prepare()
    whole = Splitting.of(torch.eye(5), 2).open
    assert (judge.localise(whole, None) is not None) == pays
