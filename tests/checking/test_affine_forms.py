"""The checker's bounds: of every operation it knows, and beside rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feature_collisions.checking.forms import Form, Forms
from feature_collisions.checking.layers import adaptive_cells, averaged, convolved
from feature_collisions.checking.network import Network, NoBound, output_of
from feature_collisions.graph.graph import trace
from feature_collisions.simplex import dirichlet
from helpers.networks import everything


def followed(model: nn.Module, vertices: np.ndarray) -> tuple[Forms, Form]:
    graph = trace(model.eval(), vertices.shape[1:]).runnable()
    forms, (found,) = Network(graph, [output_of(graph)]).forms(vertices, np.zeros_like(vertices))
    return forms, found


class Clipped(nn.Module):
    """What `everything` has not: clips, strides, groups, paddings, slices, means."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, 2, 1, groups=2)
        self.second = nn.Conv2d(4, 4, (1, 3), padding=(0, 2), dilation=(1, 2))
        self.last = nn.Linear(8, 3)

    def forward(self, images):
        x = F.relu6(3 * self.first(images))
        x = F.hardtanh(self.second(x), 0.0, 0.7) - 0.5 * x
        x = F.pad(x[:, :, ::2, ::2], (0, 1, 1, 0, 2, 2)).clamp(min=0)
        x = F.avg_pool2d(1.0 - x, 2).mean((2, 3))
        return self.last(x.view(-1, 8) / torch.tensor([2.0]))


@pytest.mark.parametrize("make", [everything, Clipped])
@pytest.mark.parametrize("size", [0.0, 0.02, 0.3, 1.0])
def test_bounds_hold_at_points_of_the_simplex(make, size):
    torch.manual_seed(1)
    model = make().double()
    middle = torch.rand(1, 2, 16, 16).double()
    vertices = middle + size * (torch.rand(4, 2, 16, 16).double() - 0.5)
    forms, found = followed(model, vertices.numpy())
    weights = dirichlet(300, 4, torch.Generator().manual_seed(0))
    weights = torch.cat([weights, torch.eye(4, dtype=torch.float64)])
    with torch.no_grad():
        values = model(torch.tensordot(weights, vertices, 1)).numpy()
    reach = forms.reach(found)
    low, high = weights.numpy() @ (found.middle - reach), weights.numpy() @ (found.middle + reach)
    assert (low <= values + 1e-12).all()
    assert (values <= high + 1e-12).all()
    width = (high - low).max()
    spread = np.ptp(values, 0).max()
    assert width < 1e-9 if size == 0 else width < 40 * spread + 1e-9  # they say something


def test_tiny_networks_agree_with_rational_arithmetic():
    """At a point, the interval holds the exact value; over a simplex, every exact value."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        for parameter in model.parameters():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        vertices = torch.rand(3, 1, 1, 3, generator=generator).double()
        forms, found = followed(model, vertices.numpy())
        reach = forms.reach(found)
        for parts in ([1, 0, 0], [1, 1, 1], [3, 0, 4], [1, 5, 2]):
            weights = [Fraction(part, sum(parts)) for part in parts]
            exact = rational(model, weights, vertices)
            for k, value in enumerate(exact):
                ends = zip(weights, found.middle[:, k], reach[:, k], strict=True)
                low, high = map(sum, zip(*(
                    (w * (Fraction(m) - Fraction(r)), w * (Fraction(m) + Fraction(r)))
                    for w, m, r in ends
                ), strict=True))  # fmt: skip
                assert low <= value <= high
        forms, found = followed(model, vertices[:1].numpy())
        exact = rational(model, [Fraction(1)], vertices[:1])
        for k, value in enumerate(exact):
            middle, off = Fraction(found.middle[0, k]), Fraction(forms.reach(found)[0, k])
            assert abs(value - middle) <= off < Fraction(1, 10**12)


def rational(model: nn.Sequential, weights: list[Fraction], vertices: torch.Tensor):
    """The logits of a mix, exactly."""
    flat = vertices.flatten(1).tolist()
    x = [sum(w * Fraction(row[k]) for w, row in zip(weights, flat, strict=True)) for k in range(3)]
    for layer in (model[1], model[3]):
        rows, bias = layer.weight.tolist(), layer.bias.tolist()
        x = [
            sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) + Fraction(b)
            for row, b in zip(rows, bias, strict=True)
        ]
        x = [max(v, Fraction(0)) for v in x] if layer is model[1] else x
    return x


def test_rounding_is_in_the_radius():
    """A sum that float64 loses: 2^53 + 1 - 2^53, and a value that a ReLU then hides."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1).double(), nn.ReLU())
    model[1].weight.data.copy_(torch.tensor([[2.0**53, 1.0, -(2.0**53)]]))
    model[1].bias.data.zero_()
    forms, found = followed(model.double(), np.ones((2, 1, 1, 3)))
    assert found.middle.max() + forms.reach(found).max() >= 1


def test_more_deviations_than_are_kept_apart_widen_the_radius():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2)).double()
    vertices = torch.randn(3, 1, 2, 2).double()
    graph = trace(model.eval(), vertices.shape[1:]).runnable()
    network = Network(graph, [output_of(graph)])
    widths = []
    for most in (100, 3, 0):
        network.most = most
        forms, (found,) = network.forms(vertices.numpy(), np.zeros(vertices.shape))
        assert len(forms.sizes) <= most
        reach = forms.reach(found)
        weights = dirichlet(500, 3, torch.Generator().manual_seed(0))
        with torch.no_grad():
            values = model(torch.tensordot(weights, vertices, 1)).numpy()
        assert (weights.numpy() @ (found.middle - reach) <= values + 1e-12).all()
        assert (values <= weights.numpy() @ (found.middle + reach) + 1e-12).all()
        widths.append(reach.max())
    assert widths[0] <= widths[1] <= widths[2]


def test_values_that_overflow_settle_nothing():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    model[1].weight.data.fill_(1e308)
    model[3].weight.data.fill_(1e308)
    forms, found = followed(model, np.array([[[[1.0, 1.0]]], [[[2.0, -1.0]]]]))
    assert not (found.middle - forms.reach(found) > 0).any()


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups", "kernel"),
    [((2, 2), (1, 1), (1, 1), 1, (4, 4)), ((1, 2), (0, 2), (2, 1), 2, (3, 2)),
     ((3, 1), (1, 0), (1, 2), 4, (1, 3)), ((1, 1), (1, 1), (1, 1), 8, (3, 3))],
)  # fmt: skip
def test_convolutions_are_pytorchs(stride, padding, dilation, groups, kernel):
    x, weight = torch.randn(5, 8, 11, 12).double(), torch.randn(16, 8 // groups, *kernel).double()
    expected = F.conv2d(x, weight, None, stride, padding, dilation, groups)
    found = convolved(x.numpy(), weight.numpy(), stride, padding, dilation, groups)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-12)


def test_adaptive_averages_are_pytorchs():
    x = torch.randn(2, 3, 7, 5).double()
    found = averaged(x.flatten(2).numpy(), adaptive_cells((7, 5), (3, 2)))
    expected = F.adaptive_avg_pool2d(x, (3, 2)).flatten(2)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-12)


UNKNOWN = {
    "gelu": nn.GELU(),
    "softmax": nn.Softmax(1),
    "leaky_relu": nn.LeakyReLU(),
    "hardtanh": nn.Hardtanh(),
    "product": type("Squared", (nn.Module,), {"forward": lambda self, x: x * x})(),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_bound_is_refused(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), UNKNOWN[name])
    with pytest.raises(NoBound, match="has no independent bound yet"):
        followed(model, np.ones((2, 1, 2, 2)))
