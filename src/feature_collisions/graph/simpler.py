"""Rewrite operations with simpler ones, exactly in real numbers.

LeakyReLU, PReLU, absolute values, clamps, maxima of two and Hardsigmoid become rectifiers. Layer
norm, attention and quotients become products. Parts of a split become slices. PyTorch's internal
batch norm becomes the usual one. Regions, such as code under `no_grad`, become their operations.
"""

import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from .activations import Range, aten, ceiling_of, given_by_name, range_of
from .operations import SPLITS


def write_with_simpler(network: fx.GraphModule) -> None:
    """Replace such operations in place; others stay."""
    write_detach_out(network)
    for node in list(network.graph.nodes):
        write = _WRITTEN.get(node.target)
        if write is None or ceiling_of(node) is not None:
            continue
        with network.graph.inserting_before(node):
            found = write(_Writer(network, node), node)
        if found is not None:
            node.replace_all_uses_with(found)
            network.graph.erase_node(node)
    for node in reversed(network.graph.nodes):
        if node.target in SPLITS | {_BATCH_NORM, aten.permute.default} and not node.users:
            network.graph.erase_node(node)
    network.recompile()


def write_detach_out(network: fx.GraphModule) -> None:
    """Replace `detach` by its input, in place: a derivative is then that of the values."""
    for node in network.graph.find_nodes(op="call_function", target=aten.detach.default):
        node.replace_all_uses_with(node.args[0])
        network.graph.erase_node(node)
    network.recompile()


class _Writer:
    """Inserts nodes before a node, with its metadata."""

    def __init__(self, network: fx.GraphModule, node: fx.Node) -> None:
        self.network, self.node = network, node

    def __call__(self, target: Any, *arguments: Any) -> fx.Node:
        found = self.network.graph.call_function(target, arguments)
        found.meta = dict(self.node.meta)
        return found

    def constant(self, node: fx.Node) -> Tensor | None:
        """Value of a node, None if it depends on the images."""
        if node.op == "get_attr":
            held: Tensor = operator.attrgetter(str(node.target))(self.network)
            return held
        inputs = {each: self.constant(each) for each in node.all_input_nodes}
        if node.op != "call_function" or any(each is None for each in inputs.values()):
            return None
        args, kwargs = map_arg((node.args, node.kwargs), inputs.__getitem__)
        found: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
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
    """relu(x) - s relu(-x), with one slope or one per channel."""
    x, slopes = node.args[:2]
    shape = node.meta.get("shape")
    if not isinstance(x, fx.Node) or not isinstance(slopes, fx.Node) or shape is None:
        return None
    shaped = write(aten.reshape.default, slopes, [1, -1, *[1] * (len(shape) - 2)])
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


_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def _part(write: _Writer, node: fx.Node) -> fx.Node | None:
    """One of several outputs of an operation."""
    source, number = node.args[:2]
    if not isinstance(source, fx.Node) or not isinstance(number, int):
        return None
    if source.target is _BATCH_NORM:
        x, weight, bias, mean, variance, momentum, eps = source.args
        given = (x, weight, bias, mean, variance, False, momentum, eps, False)
        return write(aten.batch_norm.default, *given) if number == 0 else None
    return _part_of_split(write, source, number) if source.target in SPLITS else None


def _part_of_split(write: _Writer, split: fx.Node, number: int) -> fx.Node | None:
    x, shape = split.args[0], split.all_input_nodes[0].meta.get("shape")
    if split.target is aten.unbind.int:
        return _selected(write, x, (*split.args, 0)[1], number)
    axis = split.kwargs.get("dim", (*split.args, 0)[2])
    size = None if shape is None or not isinstance(axis, int) else shape[axis]
    given = split.args[1]
    if size is None or not isinstance(axis, int):
        return None
    if split.target is aten.split_with_sizes.default:
        if not isinstance(given, list | tuple):
            return None
        sizes = [each for each in given if isinstance(each, int)]
        if len(sizes) < len(given):
            return None
        first, last = sum(sizes[:number]), sum(sizes[: number + 1])
    else:
        if not isinstance(given, int):
            return None
        each = -(-size // given) if split.target is aten.chunk.default else given
        first, last = number * each, min((number + 1) * each, size)
    return write(aten.slice.Tensor, x, axis, first, last)


def _select(write: _Writer, node: fx.Node) -> fx.Node | None:
    found = _selected(write, *node.args)
    return found if found.target is aten.permute.default else None


def _selected(write: _Writer, x: Any, axis: Any, number: Any) -> fx.Node:
    """Select after the permutation, so that images stay on the first axis."""
    if x.target is not aten.permute.default or axis != 0 or x.args[1][0] == 0:
        return write(aten.select.int, x, axis, number)
    source, order = x.args
    order = [each % len(order) for each in order]
    rest = [each - (each > order[0]) for each in order[1:]]
    part = write(aten.select.int, source, order[0], number)
    return write(aten.permute.default, part, rest)


def _layer_norm(write: _Writer, node: fx.Node) -> fx.Node:
    """(x - m) / sqrt(mean((x - m)^2) + eps) w + b, m the mean."""
    given = given_by_name(node, ("x", "shape", "weight", "bias", "eps"))
    axes = list(range(-len(given["shape"]), 0))
    centred = write.minus(given["x"], write(aten.mean.dim, given["x"], axes, True))
    variance = write(aten.mean.dim, write(aten.square.default, centred), axes, True)
    found = write.times(
        centred, write(aten.rsqrt.default, write.plus(variance, given.get("eps", 1e-5)))
    )
    found = write.times(found, given["weight"]) if given.get("weight") is not None else found
    return write.plus(found, given["bias"]) if given.get("bias") is not None else found


def _attention(write: _Writer, node: fx.Node) -> fx.Node | None:
    """softmax(scale q k^T) v; without a mask, dropout or causality."""
    given: Any = node.args
    q, k, v = given[:3]
    shape = q.meta.get("shape")
    others = [*given[3:], *(value for name, value in node.kwargs.items() if name != "scale")]
    plain = all(_hides_nothing(write, each) for each in others)
    if not plain or shape is None or k.meta.get("shape", ())[:-2] != shape[:-2]:
        return None
    scores = write(aten.matmul.default, q, write(aten.transpose.int, k, -1, -2))
    scale: Any = node.kwargs.get("scale")
    scores = write.times(scores, shape[-1] ** -0.5 if scale is None else scale)
    return write(aten.matmul.default, write(aten.softmax.int, scores, -1), v)


def _hides_nothing(write: _Writer, option: Any) -> bool:
    """Whether an option is off, or a constant mask that masks nothing."""
    if not isinstance(option, fx.Node):
        return not option
    while option.target == aten.expand.default:
        option = option.args[0]
    mask = write.constant(option)
    if mask is None:
        return False
    return bool(mask.all()) if mask.dtype == torch.bool else not mask.any()


def _quotient(write: _Writer, node: fx.Node) -> fx.Node | None:
    """x (1 / y), both dependent on the images."""
    x: Any = node.args[0]
    y = node.args[1]
    shape = y.meta.get("shape") if isinstance(y, fx.Node) else None
    if not shape or shape[0] is not None or node.kwargs:
        return None
    return write.times(x, write(aten.reciprocal.default, y))


_WRITTEN: dict[Any, Callable[[_Writer, fx.Node], fx.Node | None]] = {
    aten.leaky_relu.default: _leaky,
    aten.prelu.default: _prelu,
    aten.abs.default: _absolute,
    aten.hardtanh.default: _clamped,
    aten.clamp.default: _clamped,
    aten.clip.default: _clamped,
    aten.clamp_min.default: _clamped,
    aten.clamp_max.default: _clamped_above,
    aten.threshold.default: _clamped,
    aten.maximum.default: _maximum,
    aten.minimum.default: _minimum,
    aten.max.other: _maximum,
    aten.min.other: _minimum,
    aten.hardsigmoid.default: _hardsigmoid,
    aten.select.int: _select,
    aten.layer_norm.default: _layer_norm,
    aten.scaled_dot_product_attention.default: _attention,
    aten.div.Tensor: _quotient,
    operator.getitem: _part,
}


# Regions: torch.export keeps code under `no_grad` or `autocast` apart, as a module that is called


def write_regions_out(network: fx.GraphModule, devices: Collection[str]) -> None:
    """Replace regions by their operations, in place, where this gives the same values.

    A region stays if autocast is on in it for one of `devices`: its operations have other dtypes
    there. Where a region under `no_grad` stops the gradient, a `detach` stops it.

    Args:
        network: exported; its last output is the logits, its last placeholder the images.
        devices: types of the devices of its tensors, such as `cpu`.
    """
    _inline(network, devices)
    _stop_gradients(network.graph)


def _inline(network: fx.GraphModule, devices: Collection[str]) -> None:
    for call in list(network.graph.nodes):
        body = _body_of(network, call, devices)
        if body is None:
            continue
        _inline(body, devices)
        results = _copy_body(network, call, body)
        for part in list(call.users):  # getitem
            part.replace_all_uses_with(results[part.args[1]], propagate_meta=False)
            network.graph.erase_node(part)
        network.graph.erase_node(call)


def _body_of(
    network: fx.GraphModule, call: fx.Node, devices: Collection[str]
) -> fx.GraphModule | None:
    """The operations of a region that can be written out; None for any other node."""
    kind = str(call.target)
    if kind == _GRADIENT:
        body: Any = call.args[1]
    elif kind == AUTOCAST and not (call.args[2] and call.args[0] in devices):
        body = call.args[4]
    else:
        return None
    found = operator.attrgetter(str(body.target))(network)
    return found if isinstance(found, fx.GraphModule) else None


def _copy_body(network: fx.GraphModule, call: fx.Node, body: fx.GraphModule) -> Any:
    """Copy a region's operations to the place of its call, and return its outputs there."""
    inputs = body.graph.find_nodes(op="placeholder")
    given = call.args[len(call.args) - len(inputs) :]
    copies: dict[fx.Node, Any] = dict(zip(inputs, given, strict=True))
    stopped = str(call.target) == _GRADIENT and not call.args[0]
    with network.graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "get_attr":
                name = f"{call.name}_{node.name}"
                setattr(network, name, operator.attrgetter(str(node.target))(body))
                copies[node] = network.graph.get_attr(name)
            elif node.op == "call_function":
                copies[node] = network.graph.node_copy(node, copies.__getitem__)
                copies[node].meta.setdefault(_STOPPED, stopped)
    return map_arg(body.graph.output_node().args[0], copies.__getitem__)


def _stop_gradients(graph: fx.Graph) -> None:
    """Detach values computed under `no_grad` from all that is computed outside it.

    If that leaves the logits without a gradient, nothing is detached. Either the model has none,
    or the gradient is turned on again where torch.export does not see it, in an autograd function
    such as a reentrant checkpoint.
    """
    end: Any = graph.output_node().args[0]
    flows = set(graph.find_nodes(op="placeholder")[-1:])
    for node in graph.nodes:
        if not node.meta.get(_STOPPED) and not flows.isdisjoint(node.all_input_nodes):
            flows.add(node)
    if end[-1] not in flows:
        return
    for node in list(graph.nodes):
        value = node.meta.get("val")
        outside = [user for user in node.users if not user.meta.get(_STOPPED)]
        if not node.meta.get(_STOPPED) or not isinstance(value, Tensor) or not outside:
            continue
        with graph.inserting_after(node):
            stop = graph.call_function(aten.detach.default, (node,))
        stop.meta = {"val": value}
        for user in outside:
            user.replace_input_with(node, stop)


_GRADIENT = "wrap_with_set_grad_enabled"
AUTOCAST = "wrap_with_autocast"
_STOPPED = "no_grad"  # key of a node's metadata
