"""Exact walk of a segment between two images through a piecewise linear network.

Along such a segment the network is linear between breakpoints (ExactLine, Sotoudeh and Thakur
2019). `Line` propagates the values at all breakpoints through the network, and adds those at which
a ReLU, a clipped ReLU or a max pool switches.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..errors import SettingError
from ..graph.activations import base_name, ceiling_of
from ..graph.agreement import check_graph
from ..graph.graph import Graph, frozen_graph
from ..graph.operations import NotPiecewiseLinear, kinds, module_path, pooling, size_of


class TooManyPieces(RuntimeError):
    """A segment has more breakpoints than memory allows; it must be cut."""

    def __init__(self, points: int, limit: int) -> None:
        super().__init__(f"{points} breakpoints, {limit} fit into memory")
        self.share = limit / points


def traced(
    graph: Graph, dtype: torch.dtype = torch.float64, images: Tensor | None = None
) -> fx.GraphModule:
    """A frozen copy of the model in eval mode, as a graph.

    Args:
        graph: graph of any classifier.
        dtype: of the copy.
        images: (B, C, H, W) on which the graph must agree with the model.

    Raises:
        NotPiecewiseLinear: if there is no graph, or it does not agree with the model.
    """
    network = frozen_graph(graph, dtype)
    if images is not None:
        try:
            check_graph(graph.model, network, images)
        except SettingError as error:
            raise NotPiecewiseLinear(str(error)) from None
    return network


class Line(fx.Interpreter):
    """Walks segments between images exactly through a piecewise linear network.

    Args:
        network: from `traced`.
        memory: bytes for the values of one layer at all breakpoints.

    Raises:
        NotPiecewiseLinear: if the network is not piecewise linear.
    """

    def __init__(self, network: fx.GraphModule, memory: int = 2**28) -> None:
        super().__init__(network)
        self.extra_traceback = False  # it goes into messages
        self.kinds = kinds(network)
        for node, kind in self.kinds.items():
            if kind in ("curve", "product", "softmax"):
                name = f"{module_path(node)} ({base_name(node)})"
                raise NotPiecewiseLinear(f"{name} bends everywhere; the hull's class has bounds")
        self.memory = memory
        self.fullest = 0.0  # largest share of it in the last walk

    @torch.no_grad()
    def walk(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Breakpoints and logits along the segment from `start` to `end`, both (C, H, W).

        Returns:
            Positions (n,) from 0 to 1, increasing, and logits (n, classes) there. Between
            neighbours the logits are linear.

        Raises:
            TooManyPieces: if the breakpoints do not fit into `memory`.
        """
        self.places = torch.tensor([0.0, 1.0], dtype=start.dtype, device=start.device)
        self.fullest = 0.0
        logits: Tensor = self.run(torch.stack([start, end]))
        return self.places, logits

    def run_node(self, node: fx.Node) -> Any:
        """Compute a node at all breakpoints, with those at which it switches."""
        kind = self.kinds[node]
        if kind in ("relu", "clipped"):
            source, ceiling = node.all_input_nodes[0], ceiling_of(node)
            self._insert(*_zeros(self.env[source]))
            if kind == "clipped":
                self._insert(*_zeros(self.env[source] - ceiling))
            return self.env[source].clamp(0, ceiling)
        if kind == "max_pool":
            values, options = self.env[node.all_input_nodes[0]], pooling(node)
            self._insert(*_switches(values, *options))
        found = super().run_node(node)
        if kind == "affine" and node.op != "output" and len(found) != len(self.places):
            raise NotPiecewiseLinear(f"{node.name} does not keep images apart")
        return found

    def _insert(self, interval: Tensor, share: Tensor) -> None:
        """Add breakpoints, given by intervals (m,) and positions (m,) in them."""
        if not len(interval):
            return
        order = share.argsort()
        order = order[interval[order].argsort(stable=True)]
        interval, share = interval[order], share[order]
        old = torch.arange(len(self.places), device=interval.device)
        places_new = interval + 1 + torch.arange(len(interval), device=interval.device)
        parent = torch.cat([old, interval]).sort().values
        total = len(parent)
        live = [node for node in self.env if self.kinds[node] != "fixed"]
        row = max(self.env[node][0].numel() * self.env[node].element_size() for node in live)
        if total * row > self.memory:
            raise TooManyPieces(total, max(3, self.memory // row))
        self.fullest = max(self.fullest, total * row / self.memory)

        def refine(values: Tensor) -> Tensor:
            weight = share.view(-1, *[1] * (values.ndim - 1))
            refined = values[parent]
            refined[places_new] = values[interval].lerp_(values[interval + 1], weight)
            return refined

        self.places = refine(self.places)
        for node in self.env:
            if self.kinds[node] != "fixed":
                self.env[node] = refine(self.env[node])
            elif node.all_input_nodes:  # constants are folded: it is made of sizes
                self.env[node] = size_of(node, total)


def _zeros(values: Tensor) -> tuple[Tensor, Tensor]:
    """Sign changes of units (n, ...) between neighbours: interval (m,) and position in it (m,)."""
    above = values > 0
    interval, *unit = (above[:-1] ^ above[1:]).nonzero().unbind(1)
    before, after = values[interval, *unit], values[interval + 1, *unit]
    crossing = (before != 0) & (after != 0)  # zero at one end: the kink is there, not between
    before, after = before[crossing], after[crossing]
    return interval[crossing], before / (before - after)


def _switches(
    values: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """Changes of a window's largest cell between neighbours: interval (m,), position in it (m,)."""
    largest, index = F.max_pool2d(
        values, kernel, stride, padding, dilation, ceil_mode, return_indices=True
    )
    flat = values.flatten(2)
    # The left's largest being the right's, or the other way round, it is so all the way between.
    stays = flat[1:].gather(2, index[:-1].flatten(2)).view_as(largest[1:]) == largest[1:]
    stays |= flat[:-1].gather(2, index[1:].flatten(2)).view_as(largest[1:]) == largest[:-1]
    interval, channel, row, column = (~stays).nonzero().unbind(1)
    height, width = values.shape[2:]

    def positions(start: Tensor, axis: int, size: int) -> Tensor:
        kernel_, stride_, padding_, dilation_ = (
            option if isinstance(option, int) else option[axis]
            for option in (kernel, stride, padding, dilation)
        )
        steps = torch.arange(kernel_, device=start.device) * dilation_
        found = start[:, None] * stride_ - padding_ + steps
        return torch.where((found >= 0) & (found < size), found, -1)

    rows, columns = positions(row, 0, height)[:, :, None], positions(column, 1, width)[:, None]
    inside = ((rows >= 0) & (columns >= 0)).flatten(1)
    cells = (rows * width + columns).flatten(1).clamp_min(0)
    left = flat[interval[:, None], channel[:, None], cells]
    right = flat[interval[:, None] + 1, channel[:, None], cells]
    return _envelope(left, right, inside, interval)


def _envelope(
    left: Tensor, right: Tensor, inside: Tensor, interval: Tensor
) -> tuple[Tensor, Tensor]:
    """Changes of the largest of several lines on [0, 1]: lines (m, k) by their values at the ends.

    Returns:
        The entries of `interval` (m,) and the position of each change.
    """
    slope = right - left
    minus = torch.full_like(left, -torch.inf)
    start = torch.where(inside, left, minus)
    tied = start == start.amax(1, keepdim=True)
    top = torch.where(tied, slope, minus).argmax(1, keepdim=True)
    found_interval, found_share = [interval[:0]], [left[:0, 0]]
    while len(interval):
        steeper = inside & (slope > slope.gather(1, top))
        gap = left.gather(1, top) - left
        share = torch.where(steeper, gap / (slope - slope.gather(1, top)), torch.inf)
        first = share.amin(1, keepdim=True)
        going = (first < 1)[:, 0]
        if not going.any():
            break
        at_first = torch.where(share == first, slope, minus)
        interval, left, slope, inside = (v[going] for v in (interval, left, slope, inside))
        minus, top, first = minus[going], at_first.argmax(1, keepdim=True)[going], first[going, 0]
        found_interval.append(interval)
        found_share.append(first.clamp_min(0))
    return torch.cat(found_interval), torch.cat(found_share)
