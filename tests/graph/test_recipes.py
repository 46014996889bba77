"""CONTRIBUTING's recipes, done: one entry of one registry adds an activation, or an operation."""

import pytest
import torch
from torch import nn

from feature_collisions import LossSettings, StopSettings, find_corners
from feature_collisions.graph import activations, operations, simpler
from feature_collisions.graph.activations import Activation, Side, aten


class Arctan(nn.Module):
    def forward(self, x):
        return torch.atan(x)


def network(between):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), between, nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def found(model, layer):
    """A hull of two corners, and what is proved of its class, in well under a second."""
    model[-1].bias.data[1] += 3.0  # the class is plain
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    hull = find_corners(
        model, layer, *images, range(2), loss=LossSettings.paper(3.0, 0.1),
        stop=StopSettings(None, 30, 30), trainer={"accelerator": "cpu"},
    )  # fmt: skip
    return hull, hull.prove(seconds=20)["class"]


@pytest.mark.filterwarnings("ignore:not converged")
def test_an_activation_is_one_entry(monkeypatch):
    half = torch.pi / 2
    arctan = Activation("arctan", torch.atan, (Side(1, -half), Side(-1, half)), inflections=(0.0,))
    monkeypatch.setitem(activations._FIXED, aten.atan.default, arctan)
    hull, proof = found(network(Arctan()), "1")
    assert hull.summary["activation"] == "arctan"
    assert proof["outcome"] == "proved"
    weights = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    logits = hull.model(hull.points(weights))
    others = logits.clone()
    others[:, hull.target_class] = -torch.inf
    least = (logits[:, hull.target_class] - others.amax(1)).min()
    assert proof["margin_min"] <= least


@pytest.mark.filterwarnings("ignore:not converged")
def test_an_operation_made_of_known_ones_is_one_entry(monkeypatch):
    def softshrink(write, node):  # relu(x - c) - relu(-x - c)
        x, size = node.args[0], (*node.args, 0.5)[1]
        above = write(aten.relu.default, write.plus(x, -size))
        below = write(aten.relu.default, write.plus(write.times(x, -1.0), -size))
        return write.minus(above, below)

    def model():
        return network(nn.Softshrink(0.1))

    assert "softshrink" in found(model(), "3")[1]["reason"]
    monkeypatch.setitem(simpler._WRITTEN, aten.softshrink.default, softshrink)
    assert found(model(), "3")[1]["outcome"] == "proved"


class LowerTriangle(nn.Module):
    def forward(self, x):
        return torch.tril(x)


@pytest.mark.filterwarnings("ignore:not converged")
def test_an_affine_operation_is_one_entry(monkeypatch):
    def model():
        layers = network(nn.Identity())
        return nn.Sequential(LowerTriangle(), *layers)

    assert "tril" in found(model(), "4")[1]["reason"]
    known = operations._OF_FIRST | {aten.tril.default}
    monkeypatch.setattr(operations, "_OF_FIRST", known)
    assert found(model(), "4")[1]["outcome"] == "proved"
