"""Sound bounds on a piecewise linear network over the whole hull of some images.

They hold in exact arithmetic: each layer's are widened by what rounding can have changed, so that
large values which cancel are covered. A sum of n products that is computed in any order is within
gamma_n sum |w x| of the exact one, gamma_n = n u / (1 - n u) (Higham, 2002, section 3.1). What a
network computes of its weights alone is taken as float64 gives it.
"""

import operator
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ..networks.graph import IN_PLACE, NotPiecewiseLinear, in_place, kinds, pooling

_DIFFERENCES = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_AVERAGES = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}


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
    def over(self, corners: Tensor, error: Tensor | float = 0.0) -> Pair:
        """The logits' bounds over the hull of `corners` (K, C, H, W), each known to `error`."""
        pair: Pair = self.run(Pair(corners - error, corners + error))
        return pair

    def run_node(self, node: fx.Node) -> Any:
        """Bound one node."""
        kind = self.kinds[node]
        if node.op in ("placeholder", "output") or kind == "fixed":
            return super().run_node(node)
        if kind == "affine":
            return self._affine(node)
        if kind == "clipped":
            raise NotPiecewiseLinear(f"no bounds are known for {node.name} ({node.target})")
        source = node.all_input_nodes[0]
        if kind == "max_pool":
            return _max_pool(self.env[source], pooling(self.module, node))
        result = _relu(self.env[source])
        if in_place(self.module, node):
            self.env[source] = result
        return result

    def _affine(self, node: fx.Node) -> Pair:
        module = None
        if node.op == "call_module":
            module = self.module.get_submodule(str(node.target))
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                return _weighted(module, self.env[node.all_input_nodes[0]])
        moving = [given for given in node.all_input_nodes if self.kinds[given] != "fixed"]
        mixes = len(moving) > 1 and node.target in _DIFFERENCES
        if mixes or "alpha" in node.kwargs or node.target in {F.linear, F.conv2d}:
            raise NotPiecewiseLinear(f"no bounds are known for {node.name} ({node.target})")
        # What is left is monotone in every input, or turns each by a constant factor: its values
        # at the bounds are the bounds of its values, in one order or the other.
        first, second = (self._of(node, attrgetter(side)) for side in Pair._fields)
        pair = Pair(torch.minimum(first, second), torch.maximum(first, second))
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            pair = _widened(pair, 8, _normalised(module, _size(self.env[moving[0]])))
        elif node.target in _AVERAGES or isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            pair = _widened(pair, self.env[moving[0]].lower[0].numel(), self._of(node, _size).abs())
        else:
            pair = _widened(pair, 1, _size(pair))
        if node.target in IN_PLACE:
            self.env[moving[0]] = pair
        return pair

    def _of(self, node: fx.Node, side: Callable[[Pair], Tensor]) -> Tensor:
        """The node's own function, of one value out of each pair."""

        def pick(given: fx.Node) -> Any:
            value = self.env[given]
            return side(value).clone() if isinstance(value, Pair) else value

        args, kwargs = map_arg(node.args, pick), map_arg(node.kwargs, pick)
        result: Tensor = getattr(self, node.op)(node.target, args, kwargs)
        return result


def rounding(terms: int, size: Tensor) -> Tensor:
    """What float64 can be off by in sums of `terms` products whose sizes add up to `size`.

    Twice gamma and more: rounding in `size` and in a bound that is widened are covered too.
    """
    limits = torch.finfo(torch.float64)
    return (terms + 4) * limits.eps * size + terms * limits.tiny


def _widened(pair: Pair, terms: int, size: Tensor) -> Pair:
    error = rounding(terms, size)
    return Pair(pair.lower - error, pair.upper + error)


def _size(pair: Pair) -> Tensor:
    """The largest absolute value between the bounds."""
    return torch.maximum(pair.lower.abs(), pair.upper.abs())


def _weighted(module: nn.Linear | nn.Conv1d | nn.Conv2d, pair: Pair) -> Pair:
    """Positive weights keep the order of the bounds, negative ones swap it."""

    def apply(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            convolved: Tensor = module._conv_forward(values, weight, bias)
            return convolved
        return F.linear(values, weight, bias)

    weight, bias = module.weight, module.bias
    up, down = weight.clamp_min(0), weight.clamp_max(0)
    found = Pair(
        apply(pair.lower, up, bias) + apply(pair.upper, down, None),
        apply(pair.upper, up, bias) + apply(pair.lower, down, None),
    )
    size = apply(_size(pair), weight.abs(), None if bias is None else bias.abs())
    return _widened(found, weight[0].numel(), size)


def _normalised(module: nn.BatchNorm1d | nn.BatchNorm2d, size: Tensor) -> Tensor:
    """The sizes of a batch norm's terms, added up: |x| s, |mean| s and |bias|."""
    mean, variance = module.running_mean, module.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance + module.eps).rsqrt()
    shape = (-1, *[1] * (size.ndim - 2))
    if module.affine:
        scale = scale * module.weight.abs()
    summed = (size + mean.abs().view(shape)) * scale.view(shape)
    return summed + module.bias.abs().view(shape) if module.affine else summed


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
