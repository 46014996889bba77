"""The first layer of a network: affine in the pixels, and the only input of later layers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..errors import SettingError
from ..graph.activations import IDENTITY, Activation, base_name
from ..graph.flow import bypasses, following, is_size
from ..graph.graph import Graph, until
from ..graph.operations import (
    AVERAGES,
    BATCH_NORM,
    LAYERS,
    NotPiecewiseLinear,
    affine_part,
    keeps_values,
    module_path,
)
from ..graph.simpler import write_detach_out
from ..graph.target import TargetFeatures
from ..graph.target_layer import frozen


@dataclass(frozen=True)
class FirstLayer:
    """Images to the values of the first layer, exactly affine, in float64 on the CPU.

    Attributes:
        name: of the layer in `Graph.nodes`.
        node: of the layer in the graph.
        network: images (B, C, H, W) to its values; its weights are a copy.
        size: (C, H, W) of an image.
        bias: (N,) its values at the black image.
        activation: the next activation, if it is exactly flat on a side and nothing else reads the
            layer; otherwise the identity, so every value counts.
    """

    name: str
    node: fx.Node
    network: fx.GraphModule
    size: torch.Size
    bias: Tensor
    activation: Activation

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N)."""
        values: Tensor = self.network(images.to(torch.float64))
        return values.flatten(1)

    @torch.enable_grad()
    def back(self, rows: Tensor) -> Tensor:
        """Weights of units (B, N) to those of pixels (B, n): W transposed."""
        images = torch.zeros(len(rows), *self.size).double().requires_grad_()
        (found,) = torch.autograd.grad((rows * self(images)).sum(), images)
        return found.flatten(1)

    @torch.no_grad()
    def weight(self) -> Tensor:
        """(N, n) W, by the layer's values at one pixel after another."""
        pixels = self.size.numel()
        columns = torch.empty(pixels, len(self.bias), dtype=torch.float64)
        for part in torch.arange(pixels).split(max(1, _CHUNK // pixels)):
            units = torch.zeros(len(part), pixels, dtype=torch.float64)
            units[torch.arange(len(part)), part] = 1
            columns[part] = self(units.view(-1, *self.size)) - self.bias
        return columns.mT

    def features(self, target: Tensor) -> TargetFeatures:
        """Features of an image (C, H, W) at the layer."""
        return TargetFeatures(self(target[None])[0], self.activation)

    def residual(
        self, images: Tensor, features: TargetFeatures, active_alone: bool = False
    ) -> Tensor:
        """(B,) violation of the conditions by W x, relative to ||W t||; absolute if t is black."""
        sides = Sides.of(features, self.bias)
        gap = sides.sign * (self(images) - self.bias) - sides.side
        gap = torch.where(sides.equal, gap, 0 if active_alone else gap.relu())
        norm = float((features.preactivation - self.bias).norm())
        found: Tensor = gap.norm(dim=1) / (norm or 1.0)
        return found


_CHUNK = 2**22  # numbers in a batch of images: 32 MiB


class Sides(NamedTuple):
    """Conditions on the layer's N units: sign (W x) = side if `equal`, otherwise <= side.

    Attributes:
        equal: (N,) bool, the active units; all if nothing is hidden.
        sign: (N,) -1 for units that the rectifier clips at its ceiling, otherwise 1.
        side: (N,).
    """

    equal: Tensor
    sign: Tensor
    side: Tensor

    @classmethod
    def of(cls, target: TargetFeatures, bias: Tensor) -> "Sides":
        """Conditions on an image's values for the same output as the target."""
        sign = torch.where(target.above, -1.0, 1.0).to(bias)
        edge = torch.where(target.active, target.preactivation, target.edge)
        return cls(target.active, sign, sign * (edge - bias))


@torch.no_grad()
def first_layer(graph: Graph, layer: str = "auto") -> FirstLayer:
    """The first layer, or the one with this name.

    Args:
        graph: graph of the network.
        layer: name of an affine layer that everything flows through; `auto` for the last.

    Raises:
        SettingError: if the network cannot be exported or begins with another operation, or the
            layer is not affine or is bypassed.
    """
    try:
        network = graph.runnable()
    except NotPiecewiseLinear as error:
        raise SettingError(
            "model", None, str(error), "exact corners need the network as a graph"
        ) from None
    affine = affine_part(network)
    node = _named(graph, layer, affine) if layer != "auto" else _last_layer(graph, affine)
    name = _name(graph, node)
    cut = frozen(until(network, node)).to("cpu", torch.float64)
    write_detach_out(cut)
    bias = cut(torch.zeros(1, *graph.size, dtype=torch.float64)).flatten()
    return FirstLayer(name, node, cut, graph.size, bias, _activation(graph, node))


def _named(graph: Graph, layer: str, affine: set[fx.Node]) -> fx.Node:
    node = graph.nodes.get(layer) or graph.ends.get(layer)
    if node is None:
        raise SettingError(
            "layer",
            layer,
            "is not a layer of this network",
            "leave it at auto, which chooses the first layer",
        )
    if node not in affine:
        raise SettingError(
            "layer",
            layer,
            f"the pixels pass through {_first_bend(graph, affine)} first, which is not linear",
            "leave it at auto, which chooses the first layer",
        )
    if past := bypasses(graph, [node]):
        raise SettingError(
            "layer",
            layer,
            f"{past[0]} bypasses it, so later layers see more than its values",
            "leave it at auto",
        )
    return node


def _last_layer(graph: Graph, affine: set[fx.Node]) -> fx.Node:
    """The last affine layer that everything flows through, with its batch norm."""
    through = [
        node for node in graph.nodes.values() if node in affine and not bypasses(graph, [node])
    ]
    if not any(node.target in LAYERS | AVERAGES for node in through):
        raise SettingError(
            "model",
            None,
            f"the pixels pass through {_first_bend(graph, affine)} before any linear layer that "
            "everything flows through, so its hidden directions are unknown",
            "search with solver=gradient",
        )
    last = through[-1]
    while keeps_values(last):
        last = last.all_input_nodes[0]
    if _activation(graph, last).sides:
        return last
    kinds = LAYERS | AVERAGES | {BATCH_NORM}
    return next(node for node in reversed(through) if node.target in kinds)


def _first_bend(graph: Graph, affine: set[fx.Node]) -> str:
    """Name of the first operation on the pixels that is not affine, for messages."""
    assert graph.network is not None
    moving: set[fx.Node] = set()
    for node in graph.network.graph.nodes:
        if node.op == "placeholder":
            moving.add(node)
        elif moving & set(node.all_input_nodes):
            if node not in affine and node.op != "output" and not is_size(node):
                return f"{module_path(node)} ({base_name(node)})"
            moving.add(node)
    return "nothing"


def _name(graph: Graph, node: fx.Node) -> str:
    return next(name for name, each in graph.nodes.items() if each is node)


def _activation(graph: Graph, node: fx.Node) -> Activation:
    if node not in graph.nodes.values():
        return IDENTITY
    found = following(graph, _name(graph, node))
    return found.activation if found.activation.is_exact and not found.past else IDENTITY


def probe(size: torch.Size, count: int, seed: int = 0) -> Tensor:
    """Random images (count, C, H, W), float64, to compare two computations."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *size, generator=generator, dtype=torch.float64)
