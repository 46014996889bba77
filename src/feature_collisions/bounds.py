"""Sound bounds on a piecewise linear network over the whole hull of some images."""

import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .piecewise import NotPiecewiseLinear, in_place, kinds, pooling


class Pair(NamedTuple):
    """Lower and upper bound of every unit over the hull, by their values at its corners (K, ...).

    At the point with weights w the unit lies between sum_k w_k lower_k and sum_k w_k upper_k. As
    long as no unit bends inside the hull, both are the unit itself.
    """

    lower: Tensor
    upper: Tensor


class Bounds(fx.Interpreter):
    """Carries a `Pair` through a network.

    Args:
        network: what `traced` gives.

    Raises:
        NotPiecewiseLinear: for a network that is not.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.kinds = kinds(network)

    @torch.no_grad()
    def over(self, corners: Tensor) -> Pair:
        """The logits' bounds over the hull of `corners` (K, C, H, W)."""
        pair: Pair = self.run(Pair(corners, corners))
        return pair

    def run_node(self, node: fx.Node) -> Any:
        """Bound one node."""
        kind = self.kinds[node]
        if node.op in ("placeholder", "output") or kind == "fixed":
            return super().run_node(node)
        if kind == "affine":
            return self._affine(node)
        source = node.all_input_nodes[0]
        if kind == "max_pool":
            return _max_pool(self.env[source], pooling(self.module, node))
        result = _relu(self.env[source])
        if in_place(self.module, node):
            self.env[source] = result
        return result

    def _affine(self, node: fx.Node) -> Pair:
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                return _weighted(module, self.env[node.all_input_nodes[0]])
        moving = [given for given in node.all_input_nodes if self.kinds[given] != "fixed"]
        differences = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
        mixes = len(moving) > 1 and (node.target in differences or "alpha" in node.kwargs)
        if mixes or node.target in {F.linear, F.conv2d}:
            raise NotPiecewiseLinear(f"no bounds are known for {node.name} ({node.target})")
        # What is left is monotone in every input, or turns each by a constant factor: its values
        # at the bounds are the bounds of its values, in one order or the other.
        first, second = (self._at(node, side) for side in (0, 1))
        return Pair(torch.minimum(first, second), torch.maximum(first, second))

    def _at(self, node: fx.Node, side: int) -> Tensor:
        def pick(given: fx.Node) -> Any:
            value = self.env[given]
            return value[side].clone() if isinstance(value, Pair) else value

        args, kwargs = map_arg(node.args, pick), map_arg(node.kwargs, pick)
        result: Tensor = getattr(self, node.op)(node.target, args, kwargs)
        return result


def _weighted(module: nn.Linear | nn.Conv1d | nn.Conv2d, pair: Pair) -> Pair:
    """Positive weights keep the order of the bounds, negative ones swap it."""

    def apply(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            convolved: Tensor = module._conv_forward(values, weight, bias)
            return convolved
        return F.linear(values, weight, bias)

    up, down = module.weight.clamp_min(0), module.weight.clamp_max(0)
    return Pair(
        apply(pair.lower, up, module.bias) + apply(pair.upper, down, None),
        apply(pair.upper, up, module.bias) + apply(pair.lower, down, None),
    )


def _relu(pair: Pair) -> Pair:
    """Above: a convex function lies below the mix of its values at the corners. Below: 0 or z."""
    keep = (pair.lower >= 0).all(0) | (pair.lower.mean(0) > 0)
    return Pair(torch.where(keep, pair.lower, 0.0), pair.upper.relu())


def _max_pool(pair: Pair, options: tuple[Any, ...]) -> Pair:
    """Above as for the ReLU; below one unit of the window, the one with the largest mean."""
    middle = pair.lower.mean(0, keepdim=True)
    _, index = F.max_pool2d(middle, *options, return_indices=True)
    chosen = index.flatten(2).expand(len(pair.lower), -1, -1)
    lower = pair.lower.flatten(2).gather(2, chosen).unflatten(2, index.shape[2:])
    return Pair(lower, F.max_pool2d(pair.upper, *options))
