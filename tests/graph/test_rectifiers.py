"""What is written with rectifiers is the same function, and bounds then hold of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feature_collisions.graph.activations import IDENTITY, RELU
from feature_collisions.graph.flow import following
from feature_collisions.graph.graph import trace
from feature_collisions.graph.operations import kinds
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.edges import prove_edges
from feature_collisions.proofs.piecewise import traced
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.evaluate import EdgeSettings
from helpers.bounds import backward, bounds_of
from helpers.graphs import traced_for
from helpers.hulls import hull_of

FUNCTIONS = {
    "leaky": nn.LeakyReLU(0.1),
    "leaky in place": nn.LeakyReLU(0.25, inplace=True),
    "prelu": nn.PReLU(),
    "prelu by channel": nn.PReLU(6, 0.5),
    "abs": torch.abs,
    "hardtanh": nn.Hardtanh(-0.5, 0.25),
    "clamp min": lambda x: x.clamp(min=-0.3),
    "clamp max": lambda x: x.clamp_max(0.2),
    "clamp both": lambda x: x.clamp(0.1, 0.2),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "minimum": lambda x: torch.min(x, 0.5 * x),
    "hardsigmoid": F.hardsigmoid,
    "rrelu": nn.RReLU(),
}


class Bends(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.function = copy.deepcopy(function)

    def forward(self, images):
        hidden = self.function(self.first(images.flatten(1)))
        return self.last(self.second(hidden).relu())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "rrelu"])
def test_the_written_network_is_the_same_function(name) -> None:
    model = Bends(FUNCTIONS[name]).eval()
    images = 4 * torch.rand(300, 1, 2, 2, dtype=torch.float64) - 2
    network = traced_for(model, images)
    assert set(kinds(network).values()) <= {"fixed", "affine", "relu", "clipped"}
    expected = model.double()(images)
    torch.testing.assert_close(network(images), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "rrelu"])
def test_bounds_and_the_walk_hold_of_it(name, tmp_path) -> None:
    model = Bends(FUNCTIONS[name]).eval()
    corners = torch.rand(3, 1, 2, 2)
    points = torch.distributions.Dirichlet(torch.ones(3)).sample((2000,)).double()
    points = points / points.sum(1, keepdim=True)
    images = torch.tensordot(points, corners.double(), 1)
    network = traced(trace(model, (1, 2, 2)))
    values = network(images)
    for bound in (bounds_of, backward):
        lower, upper = bound(network, corners.double())
        assert (points @ lower - 1e-12 <= values).all()
        assert (values <= points @ upper + 1e-12).all()
    hull = hull_of(model, corners, "second")
    best = model(images.float()).argmax(1)
    found = prove_class(hull.problem, 10)
    agrees = bool((best == hull.target_class).all())
    assert found["outcome"] == "proved" if agrees else found["outcome"] != "proved"
    assert "reason" not in prove_collision(hull.problem, 10)
    edges = prove_edges(hull.problem, EdgeSettings(share=1), tmp_path)
    assert "reason" not in edges


def test_a_leaky_unit_is_no_flat_side() -> None:
    """*Is piecewise linear* and *has a flat side* are two questions."""
    graph = trace(Bends(nn.LeakyReLU()), (1, 2, 2))
    assert following(graph, "second").activation == RELU
    assert following(graph, "first").activation == IDENTITY
