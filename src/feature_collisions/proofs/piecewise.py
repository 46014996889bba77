"""Which parts of a network are affine and which piecewise linear, and a segment's exact walk.

Along a segment between two images such a network is linear between breakpoints (ExactLine,
Sotoudeh and Thakur 2019). `Line` carries the values at all breakpoints through the network, and
adds those at which a ReLU or a max pool switches.
"""

import copy
import operator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torchvision.models.feature_extraction import NodePathTracer

from ..data.devices import able
from ..networks.logits import device_of
from ..networks.target_layer import evaluating, to_trace

Kind = Literal["fixed", "affine", "relu", "max_pool"]

_AFFINE_MODULES = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.AvgPool2d,
    nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Dropout2d, nn.Identity, nn.ZeroPad2d,
)  # fmt: skip
_SUM = {operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub, torch.cat}
_PRODUCT = {operator.mul, operator.imul, torch.mul}
_QUOTIENT = {operator.truediv, operator.itruediv, torch.div}
_SHAPE_OF = {getattr, operator.getitem, "size", "dim"}
_AFFINE = {
    torch.flatten, torch.reshape, F.linear, F.conv2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    F.dropout, "flatten", "view", "reshape", "contiguous", "add", "add_", "sub", "sub_", "mean",
    torch.mean, "unsqueeze", torch.unsqueeze,
}  # fmt: skip
IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, "add_", "sub_"}
_VIEWS = {torch.flatten, torch.reshape, F.dropout, torch.unsqueeze, "flatten", "view", "reshape",
          "contiguous", "unsqueeze"}  # fmt: skip
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}


class NotPiecewiseLinear(ValueError):
    """A part of the network that cannot be walked exactly; the message names it."""


class TooManyPieces(RuntimeError):
    """A segment has more breakpoints than memory allows; it has to be cut first."""

    def __init__(self, points: int, limit: int) -> None:
        super().__init__(f"{points} breakpoints, {limit} fit into memory")
        self.share = limit / points


def traced(
    model: nn.Module, dtype: torch.dtype = torch.float64, images: Tensor | None = None
) -> fx.GraphModule:
    """A frozen copy of the model in eval mode, as a graph, where the model lies if that can.

    Args:
        model: any classifier.
        dtype: what the copy computes in.
        images: (B, C, H, W) for which the graph must give what the model itself gives.

    Raises:
        NotPiecewiseLinear: when torch.fx cannot trace it, or misses what the model does, or it
            returns more than a tensor.
    """
    with evaluating(model):
        root = to_trace(model)
        try:
            graph = NodePathTracer().trace(root)
        except Exception as error:  # fx raises whatever the model's own code meets in a proxy
            raise NotPiecewiseLinear(f"torch.fx cannot trace the network ({error})") from None
        if not isinstance(next(iter(reversed(graph.nodes))).args[0], fx.Node):
            raise NotPiecewiseLinear("the network returns more than one tensor of logits")
        network = fx.GraphModule(root, graph)
        if images is not None:
            _check_faithful(model, network, images)
        whole = copy.deepcopy(network)
    whole.requires_grad_(False).eval().to(able(device_of(model), dtype), dtype)
    return whole


@torch.no_grad()
def _check_faithful(model: nn.Module, network: fx.GraphModule, images: Tensor) -> None:
    """Compare a graph of all images at once with the model, asked for one after another."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)
    images = images.to(dtype)
    expected = [model(image[None]) for image in images]
    found = network(images)
    if not all(isinstance(logits, Tensor) for logits in (found, *expected)):
        raise NotPiecewiseLinear(f"the network returns {type(found).__name__}, not logits")
    logits = torch.cat(expected)
    same = found.shape == logits.shape
    # Far beyond rounding, far below what a hook or a branch does.
    if not (same and (found - logits).abs().max() <= logits.abs().max() * _eps(dtype) ** 0.5):
        raise NotPiecewiseLinear(
            "the network as torch.fx traces it gives other logits than the network itself: it has "
            "a hook, a forward that was replaced, something random, or an image's logits depend on "
            "the images beside it"
        )


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def kinds(network: fx.GraphModule) -> dict[fx.Node, Kind]:
    """What each node does to values that move with the pixels; `fixed` are those that do not.

    Raises:
        NotPiecewiseLinear: for the first node that is not known to be piecewise linear.
    """
    found: dict[fx.Node, Kind] = {}
    for node in network.graph.nodes:
        moving = [given for given in node.all_input_nodes if found[given] != "fixed"]
        if node.op in ("placeholder", "output"):
            found[node] = "affine"
        elif node.op == "get_attr" or not moving or _is_shape(node):
            found[node] = "fixed"
        else:
            found[node] = _kind(network, node, moving)
            _check_views(network, node, found[node])
    return found


def _check_views(network: fx.GraphModule, node: fx.Node, kind: Kind) -> None:
    """Refuse to write in place through a view of what is used otherwise too."""
    if not (node.target in IN_PLACE or (kind == "relu" and in_place(network, node))):
        return
    source = node.all_input_nodes[0]
    while _is_view(network, source):
        source = source.all_input_nodes[0]
        if len(source.users) > 1:
            raise NotPiecewiseLinear(f"{node.name} writes over {source.name}, which is used again")


def _is_view(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten | nn.Dropout | nn.Dropout2d | nn.Identity)
    return node.target in _VIEWS


def _is_shape(node: fx.Node) -> bool:
    """A size, and an entry of one: whole numbers, which hold still while the pixels move."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_shape(node.args[0])
    return node.target in ("size", "dim") or (
        node.target is getattr and node.args[1] in ("shape", "ndim")
    )


def _kind(network: fx.GraphModule, node: fx.Node, moving: list[fx.Node]) -> Kind:
    target: Any = node.target
    if node.op == "call_module":
        module = network.get_submodule(target)
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise NotPiecewiseLinear(f"{target} has a hook, or a forward that was replaced")
        if isinstance(module, nn.ReLU):
            return "relu"
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            return "max_pool"
        if isinstance(module, _AFFINE_MODULES) and _running_averages(module):
            return "affine"
        raise NotPiecewiseLinear(f"{target} ({type(module).__name__}) is not known to be linear")
    if target in _RELU:
        return "relu"
    if target is F.max_pool2d and not node.kwargs.get("return_indices"):
        return "max_pool"
    if target is F.dropout and _training(node):
        raise NotPiecewiseLinear(f"{node.name} draws at random in eval mode too")
    by_name = any(given in moving for given in _nodes(node.kwargs))
    if "rounding_mode" in node.kwargs or (by_name and target not in _SUM):
        raise NotPiecewiseLinear(f"{node.name} ({target}) is not known to be linear")
    first_alone = [given for given in node.args if given in moving] == list(node.args[:1])
    scaled = target in _PRODUCT and sum(given in moving for given in node.args) == 1
    of_first = target in _AFFINE | _QUOTIENT and first_alone
    if target in _SUM or scaled or of_first:
        return "affine"
    raise NotPiecewiseLinear(f"{node.name} ({target}) is not known to be linear")


def _nodes(arguments: Any) -> list[fx.Node]:
    """The nodes among arguments, nested ones too."""
    found: list[fx.Node] = []
    map_arg(arguments, found.append)
    return found


def _training(node: fx.Node) -> bool:
    """Whether F.dropout(input, p=0.5, training=True) drops."""
    given = dict(zip(("input", "p", "training"), node.args, strict=False)) | dict(node.kwargs)
    return bool(given.get("training", True) and given.get("p", 0.5))


def _running_averages(module: nn.Module) -> bool:
    batch_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    return not batch_norm or module.running_mean is not None


def in_place(network: nn.Module, node: fx.Node) -> bool:
    """Whether a ReLU writes over its input."""
    if node.op == "call_module":
        return bool(network.get_submodule(str(node.target)).inplace)
    name = str(getattr(node.target, "__name__", node.target))
    return name.endswith("_") or bool(node.kwargs.get("inplace", False))


def pooling(network: nn.Module, node: fx.Node) -> tuple[Any, ...]:
    """A max pool's kernel_size, stride, padding, dilation and ceil_mode."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return tuple(getattr(module, name) for name in names)
    given = dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)
    options = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False} | given
    options["stride"] = options["stride"] or options["kernel_size"]
    return tuple(options[name] for name in names)


class Line(fx.Interpreter):
    """Walks segments between images exactly through a piecewise linear network.

    Args:
        network: what `traced` gives.
        memory: bytes the values at all breakpoints may take in any one layer.

    Raises:
        NotPiecewiseLinear: for a network that is not.
    """

    def __init__(self, network: fx.GraphModule, memory: int = 2**28) -> None:
        super().__init__(network)
        self.kinds = kinds(network)
        self.memory = memory
        self.fullest = 0.0  # the largest share of it that the last walk took

    @torch.no_grad()
    def walk(self, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Breakpoints and logits along the segment from `start` to `end`, both (C, H, W).

        Returns:
            Places (n,) from 0 to 1, rising, and logits (n, classes) there: between two
            neighbours the logits are linear.

        Raises:
            TooManyPieces: when the breakpoints do not fit into `memory`.
        """
        self.places = torch.tensor([0.0, 1.0], dtype=start.dtype, device=start.device)
        self.fullest = 0.0
        logits: Tensor = self.run(torch.stack([start, end]))
        return self.places, logits

    def run_node(self, node: fx.Node) -> Any:
        """Compute a node at all breakpoints, after adding those at which it switches."""
        kind = self.kinds[node]
        if kind == "relu":
            source = node.all_input_nodes[0]
            self._insert(*_zeros(self.env[source]))
            result = self.env[source].relu()
            if in_place(self.module, node):
                self.env[source] = result
            return result
        if kind == "max_pool":
            values, options = self.env[node.all_input_nodes[0]], pooling(self.module, node)
            self._insert(*_switches(values, *options))
        return super().run_node(node)

    def _insert(self, interval: Tensor, share: Tensor) -> None:
        """Add breakpoints: in which intervals (m,), and at which share (m,) of each."""
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
        if any(not isinstance(self.env[node], Tensor) for node in self.env):
            raise NotPiecewiseLinear("the number of images is used on both sides of a ReLU")
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
        for node in live:
            self.env[node] = refine(self.env[node])


def _zeros(values: Tensor) -> tuple[Tensor, Tensor]:
    """Where units (n, ...) change sign between neighbours: interval (m,) and share of it (m,)."""
    above = values > 0
    interval, *unit = (above[:-1] ^ above[1:]).nonzero().unbind(1)
    before, after = values[interval, *unit], values[interval + 1, *unit]
    crossing = (before != 0) & (after != 0)  # zero at one end: it bends there, not between
    before, after = before[crossing], after[crossing]
    return interval[crossing], before / (before - after)


def _switches(
    values: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
) -> tuple[Tensor, Tensor]:
    """Where the largest of a window changes between neighbours: interval (m,), share of it (m,)."""
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
    """Where the largest of some lines on [0, 1] changes: lines (m, k) by their values at the ends.

    Returns:
        The entries of `interval` (m,) and the place of each change.
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
