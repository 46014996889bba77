"""The first layer of a network: what it makes of the pixels is affine, and all that follows sees."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..errors import SettingError
from ..graph.graph import Graph, copied, fold, until
from ..graph.operations import (
    AVERAGES,
    BATCH_NORM,
    LAYERS,
    NotPiecewiseLinear,
    affine_part,
    base_name,
    ceiling_of,
    keeps_values,
    where,
)


@dataclass(frozen=True)
class FirstLayer:
    """Images to the values of the first layer, exactly affine, in float64 on the CPU.

    Attributes:
        name: of the layer, as `Graph.nodes` has it.
        node: it, in the graph.
        network: images (B, C, H, W) to its values; its weights are a copy.
        size: (C, H, W) of an image.
        bias: (N,) its values at the image of zeros.
        top: of the rectifier that follows, and that hides what is below 0 or above it: infinity of
            a ReLU; None where nothing is hidden.
    """

    name: str
    node: fx.Node
    network: fx.GraphModule
    size: torch.Size
    bias: Tensor
    top: float | None

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to (B, N)."""
        values: Tensor = self.network(images.to(torch.float64))
        return values.flatten(1)

    def sides(self, target: Tensor) -> "Sides":
        """What the values of an image must be, for the network to give what it gives this one."""
        values = self(target[None])[0]
        if self.top is None:
            return Sides(torch.ones_like(values).bool(), torch.ones_like(values), values - self.bias)
        above = values >= self.top
        equal = (values >= 0) & ~above
        sign = torch.where(above, -1.0, 1.0).to(values)
        edge = torch.where(equal, values, torch.where(above, self.top, 0.0))
        return Sides(equal, sign, sign * (edge - self.bias))


class Sides(NamedTuple):
    """Of the layer's N units: sign (W x) = side where `equal`, and at most side elsewhere.

    Attributes:
        equal: (N,) bool, the active units: all where nothing hides any.
        sign: (N,) -1 of units that the rectifier clips at its top, else 1.
        side: (N,).
    """

    equal: Tensor
    sign: Tensor
    side: Tensor


@torch.no_grad()
def first_layer(graph: Graph, layer: str = "auto") -> FirstLayer:
    """The first layer, or the one of this name.

    Args:
        graph: of the network.
        layer: the name of an affine layer that everything flows through; `auto`: the last such.

    Raises:
        SettingError: for a network that cannot be exported, one whose pixels pass through
            something else first, or a layer that is not affine or that something goes past.
    """
    try:
        network = graph.runnable()
    except NotPiecewiseLinear as error:
        raise SettingError(f"model: {error}; solver=exact reads the network as a graph") from None
    affine = affine_part(network)
    node = _named(graph, layer, affine) if layer != "auto" else _last_layer(graph, affine)
    name = next(name for name, each in graph.nodes.items() if each is node)
    cut = copied(until(network, node))
    fold(cut)
    cut.requires_grad_(False).eval().to("cpu", torch.float64)
    bias = cut(torch.zeros(1, *graph.size, dtype=torch.float64)).flatten()
    return FirstLayer(name, node, cut, graph.size, bias, _top(node))


def _named(graph: Graph, layer: str, affine: set[fx.Node]) -> fx.Node:
    node = graph.nodes.get(layer) or graph.ends.get(layer)
    if node is None:
        raise SettingError(
            f"layer={layer}: is not a layer of this network; leave it at auto, which finds the "
            "first"
        )
    if node not in affine:
        raise SettingError(
            f"layer={layer}: the pixels pass through {_first_bend(graph, affine)} first, which is "
            "not linear; leave it at auto, which finds the first layer"
        )
    if past := _past(graph, node):
        raise SettingError(
            f"layer={layer}: {past} goes past it, so later layers see more than its values; leave "
            "it at auto"
        )
    return node


def _last_layer(graph: Graph, affine: set[fx.Node]) -> fx.Node:
    """The last affine layer that everything flows through, with a batch norm behind it."""
    through = [node for node in graph.nodes.values() if node in affine and not _past(graph, node)]
    if not any(node.target in LAYERS | AVERAGES for node in through):
        raise SettingError(
            f"model: the pixels pass through {_first_bend(graph, affine)} before any linear layer "
            "that everything flows through, so no theorem says what it cannot see; search with "
            "solver=gradient"
        )
    last = through[-1]
    while keeps_values(last) and _top(last) is None:
        last = last.all_input_nodes[0]
    if _top(last) is not None:
        while keeps_values(last):
            last = last.all_input_nodes[0]
        return last
    kinds = LAYERS | AVERAGES | {BATCH_NORM}
    return next(node for node in reversed(through) if node.target in kinds)


def _first_bend(graph: Graph, affine: set[fx.Node]) -> str:
    """The first operation on the pixels that is not affine, as messages name it."""
    assert graph.network is not None
    moving: set[fx.Node] = set()
    for node in graph.network.graph.nodes:
        if node.op == "placeholder":
            moving.add(node)
        elif moving & set(node.all_input_nodes):
            if node not in affine and node.op != "output" and not base_name(node).startswith("sym"):
                return f"{where(node)} ({base_name(node)})"
            moving.add(node)
    return "nothing"


def _past(graph: Graph, node: fx.Node) -> str:
    """An operation through which the output sees the pixels past a node; empty where none does."""
    assert graph.network is not None
    names = {each: name for name, each in graph.nodes.items()}
    seen, waiting = {node}, [next(iter(reversed(graph.network.graph.nodes)))]
    while waiting:
        current = waiting.pop()
        for given in current.all_input_nodes:
            if given.op == "placeholder" and not base_name(current).startswith("sym"):
                return names.get(current, current.name)
            if given not in seen:
                seen.add(given)
                waiting.append(given)
    return ""


def _top(node: fx.Node) -> float | None:
    """The ceiling of the rectifiers that alone read a node's values, in whatever shape."""
    tops = []
    for user in node.users:
        found = _top(user) if keeps_values(user) else ceiling_of(user)
        if found is None and not base_name(user).startswith("sym"):
            return None
        tops += [] if found is None else [found]
    return max(tops, default=None)


def probe(size: torch.Size, count: int, seed: int = 0) -> Tensor:
    """Random images (count, C, H, W), float64, on which two ways of computing are compared."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *size, generator=generator, dtype=torch.float64)
