"""Bounds of smooth activations, and proofs of networks that have them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.graph.activations import activation_of
from feature_collisions.proofs.bounds.curves import Shape
from feature_collisions.proofs.bounds.relaxation import Curved, Range
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.simplex import dirichlet
from helpers.bounds import backward, bounds_of, spread
from helpers.graphs import traced_for
from helpers.hulls import hull_of

FUNCTIONS = {
    "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "silu": nn.SiLU(),
    "hardswish": nn.Hardswish(), "mish": nn.Mish(), "sigmoid": nn.Sigmoid(), "tanh": nn.Tanh(),
    "softplus": nn.Softplus(), "softplus_steep": nn.Softplus(3.0, 5.0), "elu": nn.ELU(),
    "elu_steep": nn.ELU(1.8), "celu": nn.CELU(0.7), "selu": nn.SELU(),
    "log_sigmoid": nn.LogSigmoid(),
}  # fmt: skip


def shape_of(name: str) -> Shape:
    network = traced_for(FUNCTIONS[name], torch.rand(1, 1, 2, 2))
    (found,) = [a for node in network.graph.nodes if (a := activation_of(node))]
    return Shape(found, torch.zeros((), dtype=torch.float64))


def intervals() -> tuple[Tensor, Tensor]:
    """Of all sizes and places: single points, those that end at kinks, far ones."""
    torch.manual_seed(0)
    places = torch.tensor([-3.0, 0.0, 3.0, -(2**0.5), 2**0.5, -40.0, 40.0, 20.0, 5 / 3])
    low = torch.cat([8 * torch.randn(300), places.repeat(20)]).double()
    width = (10.0 ** (torch.rand(len(low)) * 7 - 5)).double() * (torch.rand(len(low)) > 0.1)
    down = torch.rand(len(low)) > 0.5
    return low - width * down, low + width * ~down


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_value_is_beyond_the_bounds_and_some_value_reaches_them(name: str) -> None:
    """Over each interval, for several slopes, beside 2001 points of it."""
    shape, (low, high) = shape_of(name), intervals()
    points = torch.lerp(low, high, torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None])
    kinks = [low.new_tensor(part.end).clamp(low, high) for part in shape.parts[:-1]]
    points = torch.cat([points, *(kink[None] for kink in kinks)])
    values = FUNCTIONS[name](points)
    for slope in (-1.5, -0.1, 0.0, 0.03, 0.5, 1.0, 1.08, 2.0):
        slopes = torch.full_like(low, slope)
        for sign in (1, -1):
            bound = shape.most(low, high, slopes, sign)
            found = (sign * (values - slope * points)).amax(0)
            slack = 2 * shape.off + 1e-12 * (1 + points.abs().amax(0))
            assert (bound >= found).all()
            reached = found + (high - low) ** 2 * 1e-3 + slack
            assert (bound <= reached).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lines_hold_on_a_piece(name: str) -> None:
    """Values of points of a simplex, whose vertices have intervals of their own."""
    shape = shape_of(name)
    generator = torch.Generator().manual_seed(0)
    middle = 3 * torch.randn(40, 3, 25, generator=generator, dtype=torch.float64)
    middle = middle.mean(1, keepdim=True) + torch.rand(40, 1, 1) * (middle - middle.mean(1, True))
    radius = torch.rand(40, 3, 25, generator=generator, dtype=torch.float64) * 0.3
    below, above = middle - radius, middle + radius
    curved = Curved(Range(below, above, below.amin(1), above.amax(1)), shape)
    lines = curved.lines()
    for _ in range(50):
        weights = torch.rand(40, 3, generator=generator, dtype=torch.float64) ** 2
        weights = (weights / weights.sum(1, keepdim=True))[..., None]
        for share in (0.0, 0.37, 1.0):
            x = (weights * torch.lerp(below, above, share)).sum(1)
            y = FUNCTIONS[name](x)
            start = [(weights * each).sum(1) for each in (lines.low_start, lines.floor)]
            assert (lines.low_slope * x + start[0] <= y).all()
            assert (lines.high_slope * x + start[1] <= y).all()
            assert (lines.high_slope * x + (weights * lines.high_start).sum(1) >= y).all()


class Smooth(nn.Module):
    """A convolution and linear layers, smooth activations of two kinds, a sum past one."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(1, 3, 3), first, second
        self.hidden, self.last = nn.Linear(48, 10), nn.Linear(10, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(3 * self.conv(images)).flatten(1)
        y = self.hidden(x)
        logits: Tensor = self.last(self.second(4 * y) - 0.3 * y)
        return logits


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bounds_of_a_network_hold_and_tighten(name: str) -> None:
    torch.manual_seed(1)
    model = Smooth(FUNCTIONS[name], FUNCTIONS["silu" if name == "gelu" else "gelu"]).double()
    corners = torch.rand(1, 6, 6, dtype=torch.float64) + torch.rand(4, 1, 6, 6) - 0.5
    network = traced_for(model, corners)
    widths = []
    for scale in (1.0, 0.1, 0.0):
        points = corners.mean(0) + scale * (corners - corners.mean(0))
        weights = torch.rand(300, 4, dtype=torch.float64) ** 3
        weights = torch.cat([torch.eye(4).double(), weights / weights.sum(1, keepdim=True)])
        values = network(torch.tensordot(weights, points, 1))
        for way in (bounds_of, backward, spread):
            low, high = way(network, points)
            assert (weights @ low <= values).all()
            assert (values <= weights @ high).all()
        widths.append(float((high - low).mean()))
    assert widths[1] < 0.15 * widths[0]
    assert 0 < widths[2] < (0.1 if "softplus" in name else 1e-9)  # it is not continuous


@pytest.mark.parametrize("name", ["gelu", "silu", "hardswish"])
def test_a_smooth_network_is_proved_or_refuted(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(36, 24), FUNCTIONS[name], nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)]
    model = nn.Sequential(nn.Flatten(), *layers)
    corners = torch.rand(1, 1, 6, 6) + 0.2 * torch.rand(4, 1, 6, 6)
    hull = hull_of(model, corners, "3")
    with torch.no_grad():
        logits = model(hull.points(dirichlet(500, 4, torch.Generator().manual_seed(0))))
        others = torch.arange(3) != hull.target_class
        margins = (logits[:, hull.target_class, None] - logits[:, others]).amin(1)
    found = prove_class(hull.problem, 1)
    assert found["scale_proved"] > 0
    if margins.min() > 0:
        assert found["outcome"] == "proved"
        assert found["margin_min"] <= margins.min()
    with torch.no_grad():
        layers[-1].bias[hull.target_class] -= margins.quantile(0.2)
    found = prove_class(hull.problem, 1)
    assert found["outcome"] != "proved"
    assert found["share_proved"] <= 0.85


@pytest.mark.parametrize("name", ["gelu", "hardsigmoid", "none"])
def test_features_behind_a_smooth_layer_stay_within_their_bounds(name: str) -> None:
    """Of the layer's activation, or of its values where nothing flat follows."""
    torch.manual_seed(2)
    act = FUNCTIONS.get(name, nn.Hardsigmoid() if name == "hardsigmoid" else nn.Identity())
    layers = [nn.Linear(36, 24), nn.GELU(), nn.Linear(24, 16), act, nn.Linear(16, 3)]
    model = nn.Sequential(nn.Flatten(), *layers)
    corners = torch.rand(1, 1, 6, 6) + 0.3 * torch.rand(4, 1, 6, 6)
    known = {"push": "apart"} if name == "none" else {}
    hull = hull_of(model, corners, "3", **known)
    problem = hull.problem
    weights = torch.cat([torch.eye(4), dirichlet(500, 4, torch.Generator().manual_seed(0))])

    def errors(share: float) -> Tensor:
        points = hull.points(0.25 + share * (weights - 0.25))
        with torch.no_grad():
            values, target = (act(model[:4](each)) for each in (points, hull.target[None]))
        return (values - target).norm(dim=1) / target.norm()

    found = prove_collision(replace(problem, limit=0.7 * float(errors(1).max())), 0.4)
    assert found["by"] == "bounds"
    assert errors(1).max() <= found["feature_relative_max"] * (1 + 1e-5)
    assert found["feature_relative_max"] <= 1.2 * errors(1).max()
    assert 0.2 < found["scale_proved"] < 1
    assert errors(found["scale_proved"]).max() <= 0.7 * errors(1).max() * (1 + 1e-5)
