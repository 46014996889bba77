"""An activation's flat sides, against its own values."""

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feature_collisions.graph.activations import RELU, Activation, activation_of, clipped
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target import TargetFeatures

EXACT = {
    "relu": (nn.ReLU(), [(1, 0.0)]),
    "relu6": (nn.ReLU6(), [(1, 0.0), (-1, 6.0)]),
    "hardtanh": (nn.Hardtanh(-2, 1), [(1, -2.0), (-1, 1.0)]),
    "clamp": (lambda x: x.clamp(max=2.0), [(-1, 2.0)]),
    "clamp_min": (lambda x: x.clamp_min(-0.1), [(1, -0.1)]),
    "threshold": (nn.Threshold(0, 0), [(1, 0.0)]),
    "hardswish": (nn.Hardswish(), [(1, -3.0)]),
    "hardsigmoid": (nn.Hardsigmoid(), [(1, -3.0), (-1, 3.0)]),
}
NEARLY = {
    "gelu": nn.GELU(),
    "gelu tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "softplus": nn.Softplus(2.0),
    "elu": nn.ELU(1.5),
    "celu": nn.CELU(0.5),
    "selu": nn.SELU(),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "logsigmoid": nn.LogSigmoid(),
}


def recognised(function) -> Activation:
    class Net(nn.Module):
        def forward(self, images):
            return function(images.flatten(1))

    nodes = trace(Net(), (1, 2, 2)).network.graph.nodes
    found = [activation for node in nodes if (activation := activation_of(node))]
    assert len(found) == 1
    return pickle.loads(pickle.dumps(found[0]))  # ranks of a search are given it so


@pytest.mark.parametrize("name", EXACT)
def test_exact_sides_are_flat_and_no_longer_than_that(name) -> None:
    function, expected = EXACT[name]
    activation = recognised(function)
    assert activation.is_exact
    assert [(side.sign, side.edge) for side in activation.sides] == expected
    z = torch.linspace(-9, 9, 3001, dtype=torch.float64)
    assert torch.equal(activation.function(z), function(z))
    for side in activation.sides:
        beyond = z[side.sign * (z - side.edge) <= 0]
        assert (function(beyond) == side.value).all()
        inside = z.new_tensor([side.edge + side.sign * 1e-3])
        assert function(inside) != side.value


@pytest.mark.parametrize("name", NEARLY)
@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_other_sides_are_as_flat_as_asked(name, spread) -> None:
    activation = recognised(NEARLY[name])
    assert not activation.is_exact
    resolved = activation.within(spread)
    assert len(resolved.sides) == len(activation.sides)
    for side in resolved.sides:
        away = torch.linspace(0, 80, 80_001, dtype=torch.float64)
        values = activation.function(side.edge - side.sign * away)
        moved = max(float(values.max()), side.value) - min(float(values.min()), side.value)
        assert 0.98 * spread <= moved <= spread * (1 + 1e-9)


def test_edges_are_those_that_were_measured_before() -> None:
    """GELU and SiLU at 0.01: -2.68 and -6.47 by another program."""
    assert recognised(nn.GELU()).within(0.01).sides[0].edge == pytest.approx(-2.68, abs=6e-3)
    assert recognised(nn.SiLU()).within(0.01).sides[0].edge == pytest.approx(-6.47, abs=5e-3)


def test_no_side_is_flat_to_no_tolerance() -> None:
    assert recognised(nn.GELU()).within(0.0).sides == ()
    assert clipped(0.0, 6.0).within(0.0).sides == clipped(0.0, 6.0).sides


@pytest.mark.parametrize("ceiling", [math.inf, 6.0])
def test_a_rectifier_is_what_it_always_was(ceiling) -> None:
    """The form with one ceiling, bit for bit."""
    t, x = 5 * torch.randn(1000), 5 * torch.randn(7, 1000)
    t[0] = 0.0
    target = TargetFeatures(t, clipped(0.0, ceiling))
    above = t >= ceiling
    active = (t >= 0) & ~above
    assert torch.equal(target.active, active)
    assert torch.equal(target.features, t.clamp(0, ceiling))
    assert torch.equal(target.values, t.clamp(0, ceiling) * active)
    assert torch.equal(target.oriented(x), torch.where(above, ceiling - x, x))


def test_a_hidden_unit_is_counted_from_its_edge() -> None:
    gelu = recognised(nn.GELU()).within(0.01)
    edge = gelu.sides[0].edge
    t = torch.tensor([-5.0, edge, -1.0, 2.0])
    target = TargetFeatures(t, gelu)
    assert target.active.tolist() == [False, True, True, True]
    assert target.features.tolist() == F.gelu(t).tolist()
    x = torch.tensor([-4.0, -4.0, 0.5, 1.0])
    assert target.oriented(x).tolist() == pytest.approx([-4 - edge, -4.0, 0.5, 1.0])
    assert target.values.tolist() == pytest.approx([0.0, edge, -1.0, 2.0])
    assert RELU.is_rectifier
    assert not gelu.is_rectifier
