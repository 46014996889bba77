"""What a node of the graph does to the pixels: rectifies, with which ceiling, or is affine."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feature_collisions.graph.activations import IDENTITY, ceiling_of, clipped
from feature_collisions.graph.flow import following
from feature_collisions.graph.graph import frozen_graph, trace
from feature_collisions.graph.operations import NotPiecewiseLinear, kinds
from feature_collisions.proofs.piecewise import Line
from helpers.graphs import traced_for

IMAGE = torch.zeros(1, 2, 2)


class Applies(nn.Module):
    """images, flattened, through a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(2 * images.flatten(1) - 1)


RECTIFIERS = {
    "relu": (lambda: nn.ReLU(), math.inf),
    "function": (lambda: F.relu, math.inf),
    "clamp from 0": (lambda: lambda x: x.clamp(min=0), math.inf),
    "clamp_min": (lambda: lambda x: x.clamp_min(0), math.inf),
    "relu6": (lambda: nn.ReLU6(), 6.0),
    "F.relu6": (lambda: F.relu6, 6.0),
    "hardtanh": (lambda: nn.Hardtanh(0.0, 0.5), 0.5),
    "F.hardtanh": (lambda: lambda x: F.hardtanh(x, 0.0, max_val=2.0), 2.0),
    "clamp": (lambda: lambda x: torch.clamp(x, 0, 0.25), 0.25),
    "clamp_": (lambda: lambda x: x.clamp_(0.0, max=3), 3.0),
}
NONE = {
    "identity": lambda: nn.Identity(),
    "hardtanh": lambda: nn.Hardtanh(),
    "F.hardtanh": lambda: F.hardtanh,
    "not from 0": lambda: lambda x: x.clamp(0.1, 1),
    "from above alone": lambda: lambda x: x.clamp(max=1),
    "empty": lambda: lambda x: x.clamp(0, 0),
    "of the values": lambda: lambda x: x.clamp(0, x.max()),
}


def ceilings(function):
    network = trace(Applies(function), (1, 2, 2)).runnable()
    return [c for c in map(ceiling_of, network.graph.nodes) if c is not None]


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_rectifier_has_its_ceiling(name):
    make, ceiling = RECTIFIERS[name]
    assert ceilings(make()) == [ceiling]
    network = traced_for(Applies(make()), IMAGE)
    kind = "relu" if ceiling == math.inf else "clipped"
    assert [k for k in kinds(network).values() if k in ("relu", "clipped")] == [kind]


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_rectifier_has_no_ceiling(name):
    assert ceilings(NONE[name]()) == []


def test_the_ceiling_after_a_layer_is_seen_through_a_new_shape():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Dropout(), nn.ReLU6(), nn.Linear(2, 2)
    )
    graph = trace(model, (1, 3, 3))
    assert following(graph, "0") == (clipped(0.0, 6.0), ())
    assert following(graph, "4") == (IDENTITY, ())


@pytest.mark.parametrize("activation", [nn.GELU(), F.silu, nn.ELU(), nn.Hardswish()])
def test_smooth_activations_are_known_and_have_no_walk(activation):
    class Smooth(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.activation = nn.Linear(4, 3), activation

        def forward(self, images):
            return self.activation(self.hidden(images.flatten(1)))

    network = traced_for(Smooth(), IMAGE)
    assert "curve" in kinds(network).values()
    with pytest.raises(NotPiecewiseLinear, match="bends everywhere"):
        Line(network)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.relu(x, True),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.hardtanh(x, 0.0, 0.5, True),
        lambda x: x.clamp_(0, 0.5),
    ],
)
def test_a_rectifier_that_writes_over_its_input_is_walked_as_it_runs(function):
    def both(x):
        return function(x) + x

    image = torch.zeros(1, 1, 2)
    network = traced_for(Applies(both), image)
    assert not any(str(node.target).split(".")[1:2] == ["relu_"] for node in network.graph.nodes)
    start, end = torch.zeros(1, 1, 2).double(), torch.ones(1, 1, 2).double()
    places, values = Line(network).walk(start, end)
    points = torch.lerp(start, end, places.view(-1, 1, 1, 1))
    torch.testing.assert_close(values, Applies(both)(points))


def test_a_clipped_relu_bends_twice_on_a_segment():
    network = traced_for(Applies(lambda x: 4 * x.clamp(0, 0.5)), torch.zeros(1, 1, 1))
    places, values = Line(network).walk(torch.zeros(1, 1, 1).double(), torch.ones(1, 1, 1).double())
    assert places.tolist() == [0, 0.5, 0.75, 1]
    assert values.flatten().tolist() == [0, 0, 2, 2]


class FunctionalBatchNorm(nn.Module):
    """As timm's BatchNormAct2d calls it."""

    def __init__(self, weighted):
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5, eps=1e-3, affine=weighted)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        x = F.batch_norm(self.layer(x), mean, variance, norm.weight, norm.bias, False, 0.1, 1e-3)
        return x.relu()


@pytest.mark.parametrize("weighted", [True, False])
def test_a_functional_batch_norm_by_running_averages_is_affine(weighted):
    torch.manual_seed(0)
    network, x = FunctionalBatchNorm(weighted).double().eval(), torch.randn(7, 4).double()
    graph = frozen_graph(trace(network, (4,)))
    assert torch.equal(graph(x), network(x))
    assert list(kinds(graph).values()).count("affine") == 4  # input, layer, norm, output


def test_a_functional_batch_norm_by_the_batch_is_not():
    class OfTheBatch(nn.Module):
        def forward(self, x):
            return F.batch_norm(x, None, None, training=True)

    with pytest.raises(NotPiecewiseLinear, match="batch_norm"):
        kinds(frozen_graph(trace(OfTheBatch(), (4,))))


def test_slices_and_padding_are_linear_but_not_across_the_images():
    class Slices(nn.Module):
        def forward(self, images):
            return F.pad(images[:, :, ::2, 1:], (0, 1, 0, 0)).flatten(1)

    assert set(kinds(traced_for(Slices(), torch.zeros(1, 4, 4))).values()) == {"affine"}
    for function in (lambda x: x[1:] - 0 * x[:1], lambda x: x[:, None, 0] * x[0], lambda x: x[x]):
        with pytest.raises(NotPiecewiseLinear):
            kinds(traced_for(Applies(function), IMAGE))
