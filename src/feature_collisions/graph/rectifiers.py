"""What is piecewise linear but no rectifier, written with rectifiers: exact in real numbers.

LeakyReLU, PReLU, absolute values, clamps anywhere, maxima of two, Hardsigmoid: the walk and the
bounds then need to know rectifiers alone.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import fx

from .activations import Range, aten, ceiling_of, given_by_name, range_of


def write_with_rectifiers(network: fx.GraphModule) -> None:
    """Replace such operations in place; others stay."""
    for node in list(network.graph.nodes):
        write = _WRITTEN.get(node.target)
        if write is None or ceiling_of(node) is not None:
            continue
        with network.graph.inserting_before(node):
            found = write(_Writer(network, node), node)
        if found is not None:
            node.replace_all_uses_with(found)
            network.graph.erase_node(node)
    network.recompile()


class _Writer:
    """Adds nodes in a node's place, which say where they come from as it does."""

    def __init__(self, network: fx.GraphModule, node: fx.Node) -> None:
        self.network, self.node = network, node

    def __call__(self, target: Any, *arguments: Any) -> fx.Node:
        found = self.network.graph.call_function(target, arguments)
        found.meta = dict(self.node.meta)
        return found

    def relu(self, x: fx.Node) -> fx.Node:
        return self(aten.relu.default, x)

    def minus(self, x: Any, y: Any) -> fx.Node:
        return self(aten.sub.Tensor, x, y)

    def plus(self, x: Any, y: Any) -> fx.Node:
        return self(aten.add.Tensor, x, y)

    def times(self, x: fx.Node, factor: Any) -> fx.Node:
        return self(aten.mul.Tensor, x, factor)


def _leaky(write: _Writer, node: fx.Node) -> fx.Node:
    """relu(x) - s relu(-x)."""
    given = given_by_name(node, ("x", "slope"))
    below = write.relu(write.times(given["x"], -1.0))
    return write.minus(write.relu(given["x"]), write.times(below, given.get("slope", 0.01)))


def _prelu(write: _Writer, node: fx.Node) -> fx.Node | None:
    """relu(x) - s relu(-x), with slopes of one number or one for each channel."""
    x, slopes = node.args[:2]
    axes = node.meta.get("ndim")
    if not isinstance(x, fx.Node) or not isinstance(slopes, fx.Node) or axes is None:
        return None
    shaped = write(aten.reshape.default, slopes, [1, -1, *[1] * (axes - 2)])
    below = write.relu(write.times(x, -1.0))
    return write.minus(write.relu(x), write.times(below, shaped))


def _absolute(write: _Writer, node: fx.Node) -> fx.Node:
    """relu(x) + relu(-x)."""
    (x,) = node.all_input_nodes
    return write.plus(write.relu(x), write.relu(write.times(x, -1.0)))


def _clamped(write: _Writer, node: fx.Node) -> fx.Node | None:
    """low + relu(x - low) - relu(x - high)."""
    low, high = range_of(node)
    x = node.args[0]
    if not isinstance(x, fx.Node) or (low is None and high is None):
        return None
    return _between(write, x, Range(low, high))


def _clamped_above(write: _Writer, node: fx.Node) -> fx.Node | None:
    given = given_by_name(node, ("x", "max"))
    if not isinstance(given["max"], int | float):
        return None
    return _between(write, given["x"], Range(None, float(given["max"])))


def _between(write: _Writer, x: fx.Node, limits: Range) -> fx.Node | None:
    low, high = limits
    if low is not None and high is not None and not low < high:
        return None
    found: Any = x
    if low is not None and low > -math.inf:
        found = write.plus(write.relu(write.minus(x, low)), low)
    if high is not None and high < math.inf:
        found = write.minus(found, write.relu(write.minus(x, high)))
    return found if isinstance(found, fx.Node) else None


def _maximum(write: _Writer, node: fx.Node) -> fx.Node:
    """y + relu(x - y)."""
    x, y = node.args
    return write.plus(write.relu(write.minus(x, y)), y)


def _minimum(write: _Writer, node: fx.Node) -> fx.Node:
    """x - relu(x - y)."""
    x, y = node.args
    return write.minus(x, write.relu(write.minus(x, y)))


def _hardsigmoid(write: _Writer, node: fx.Node) -> fx.Node:
    """min(max(x + 3, 0), 6) / 6."""
    clipped = write(aten.hardtanh.default, write.plus(node.args[0], 3.0), 0.0, 6.0)
    return write(aten.div.Tensor, clipped, 6.0)


_WRITTEN: dict[Any, Callable[[_Writer, fx.Node], fx.Node | None]] = {
    aten.leaky_relu.default: _leaky,
    aten.prelu.default: _prelu,
    aten.abs.default: _absolute,
    aten.hardtanh.default: _clamped,
    aten.clamp.default: _clamped,
    aten.clip.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.clamp_max.default: _clamped_above,
    aten.maximum.default: _maximum,
    aten.minimum.default: _minimum,
    aten.max.other: _maximum,
    aten.min.other: _minimum,
    aten.hardsigmoid.default: _hardsigmoid,
}
