"""A traced network as a list of steps."""

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.grad import conv2d_input

from ...networks.graph import (
    IN_PLACE,
    NotPiecewiseLinear,
    ceiling_of,
    given_by_name,
    is_view,
    kinds,
    module_of,
    name_what_is_written,
    pooling,
)
from .steps import (
    Affine,
    Averaged,
    Grid,
    Input,
    Joined,
    MaxPool,
    Rectifier,
    Reshaped,
    Scaled,
    Step,
    Summed,
    Weighted,
)

_MEANS = {torch.mean, "mean"}
_AVERAGES = {F.avg_pool2d, F.adaptive_avg_pool2d}
_DIFFERENCES = {operator.sub, operator.isub, torch.sub, "sub", "sub_"}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"} | _DIFFERENCES
_FEW = 4  # operations on a number in steps that only move, add or scale
Common = tuple[str, tuple[int, ...], torch.Size]


def steps_of(network: fx.GraphModule, image: Tensor) -> list[Step]:
    """The steps of a frozen graph that takes images as this one (C, H, W).

    Raises:
        NotPiecewiseLinear: for a node that is not known to be piecewise linear, or not to keep
            images apart.
    """
    name_what_is_written(network)
    return _Recorder(network, image).steps


class _Recorder(fx.Interpreter):
    """Runs the network on one image and on two, and makes a step of each node that moves."""

    def __init__(self, network: fx.GraphModule, image: Tensor) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.kinds, self.steps = kinds(network), list[Step]()
        self.number: dict[fx.Node, int] = {}
        with torch.no_grad():
            self.run(image.expand(2, *image.shape))
            pair, self.env = self.env, {}
            self.run(image[None])
            for node in network.graph.nodes:
                if node.op == "output":
                    continue
                if self.kinds[node] == "fixed":
                    self._check_fixed(node, pair[node])
                    continue
                value, both = self.env[node], pair[node]
                if not isinstance(value, Tensor) or both.shape != (2, *value.shape[1:]):
                    raise NotPiecewiseLinear(f"{node.name} does not keep images apart")
                self._add(node, value)

    def _check_fixed(self, node: fx.Node, other: Any) -> None:
        """Refuse numbers that depend on how many images there are, but for new shapes."""
        mine = self.env[node]
        same = torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other
        if not same and not all(_is_new_shape(self.module, user) for user in node.users):
            users = [u for u in node.users if not _is_new_shape(self.module, u)]
            if any(self.kinds[user] != "fixed" for user in users):
                raise NotPiecewiseLinear(f"{node.name} depends on how many images there are")

    def _add(self, node: fx.Node, value: Tensor) -> None:
        moving = [given for given in node.all_input_nodes if self.kinds[given] != "fixed"]
        step = self._step(node, moving, value.shape[1:])
        bends = isinstance(step, Rectifier | MaxPool)
        step.bends = bends + max((self.steps[k].bends for k in step.sources), default=0)
        self.number[node] = len(self.steps)
        self.steps.append(step)

    def _step(self, node: fx.Node, moving: list[fx.Node], shape: torch.Size) -> Step:
        common = (node.name, tuple(self.number[given] for given in moving), shape)
        kind = self.kinds[node]
        if node.op == "placeholder":
            return Input(*common)
        if kind in ("relu", "clipped"):
            return Rectifier(*common, float(ceiling_of(self.module, node) or 0))
        taken = [self.env[given].shape[1:] for given in moving]
        if kind == "max_pool":
            *options, ceiled = pooling(self.module, node)
            grid = Grid.of(*options)
            cells = _cells(taken[0], shape, grid).to(self.env[moving[0]].device)
            return MaxPool(*common, cells, grid, ceiled)
        like = self.env[moving[0]]
        if _is_new_shape(self.module, node) and math.prod(taken[0]) == math.prod(shape):
            return Reshaped(*common, lambda x: x.reshape(len(x), *shape), taken, 0, like)
        module = module_of(self.module, node) if node.op == "call_module" else None
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return _batch_norm(module, common, taken, like)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            return _layer(module, common, taken, like)
        if node.target in (F.linear, F.conv2d):
            return self._functional(node, moving, common, taken, like)
        call = self._call(node, moving)
        if node.target in _AVERAGES or isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d):
            return Averaged(*common, call, taken, math.prod(taken[0]), like)
        if node.target is torch.cat and shape[1:] == taken[0][1:] and _counts_channels(node):
            return Joined(*common, call, taken, _FEW, like)
        if node.target in _SUMS and taken == [shape, shape] and not node.kwargs:
            return Summed(*common, call, taken, _FEW, like, _signs(node))
        terms = math.prod(taken[0]) if node.target in _MEANS else _FEW
        return Affine(*common, call, taken, terms, like)

    def _call(self, node: fx.Node, moving: list[fx.Node]) -> Callable[..., Tensor]:
        """The node's own function of what moves; what it writes over is a copy."""
        copies = node.target in IN_PLACE
        method = {"call_module": self.call_module, "call_function": self.call_function,
                  "call_method": self.call_method}[node.op]  # fmt: skip

        def call(*values: Tensor) -> Tensor:
            given = dict(zip(moving, values, strict=True))

            def pick(source: fx.Node) -> Any:
                value = given.get(source, self.env[source])
                return value.clone() if copies and source in given else value

            args, kwargs = map_arg(node.args, pick), map_arg(node.kwargs, pick)
            result: Tensor = method(node.target, args, kwargs)
            return result

        return call

    def _functional(
        self, node: fx.Node, moving: list[fx.Node], common: Common, taken: Any, like: Tensor
    ) -> Weighted:
        """F.linear and F.conv2d, of weights that do not move."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        nodes = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        given: dict[str, Any] = dict(map_arg(nodes, lambda source: self.env[source]))
        weight, bias = given.pop("weight"), given.pop("bias", None)
        given.pop("input")
        function: Any = node.target

        def apply(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = function(values, weight, bias, **given)
            return result

        found = _weighted(apply, weight, bias, None, common, taken, like)
        padding = given.get("padding", 0)
        if node.target is F.conv2d and not isinstance(padding, str):
            found.grid = Grid.of(
                tuple(weight.shape[2:]), given.get("stride", 1), padding, given.get("dilation", 1)
            )
            found.groups = given.get("groups", 1)
        return found


def _is_new_shape(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node's numbers are its input's, in the same order."""
    return is_view(network, node) and node.target is not operator.getitem


def _signs(node: fx.Node) -> tuple[int, int]:
    return (1, -1) if node.target in _DIFFERENCES else (1, 1)


def _counts_channels(node: fx.Node) -> bool:
    """Whether torch.cat joins along the channels, and each value once."""
    given = given_by_name(node, ("tensors", "dim"))
    joined = given["tensors"]
    return given.get("dim") == 1 and len(joined) == len(node.all_input_nodes)


def _batch_norm(
    module: nn.BatchNorm1d | nn.BatchNorm2d, common: Common, taken: Any, like: Tensor
) -> Scaled:
    """Its scale and offset are taken as float64 gives them."""
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = (module.running_var + module.eps).rsqrt()
    scale = scale * module.weight if module.affine else scale
    offset = -module.running_mean * scale
    offset = offset + module.bias if module.affine else offset
    scale, offset = (each.view(-1, *[1] * (len(taken[0]) - 1)) for each in (scale, offset))
    return Scaled(
        *common, call=lambda x: x * scale + offset, taken=taken, terms=_FEW, like=like, scale=scale
    )


def _layer(
    module: nn.Linear | nn.Conv1d | nn.Conv2d, common: Common, taken: Any, like: Tensor
) -> Weighted:
    if isinstance(module, nn.Linear):
        return _weighted(
            F.linear, module.weight, module.bias, lambda rows: rows @ module.weight,
            common, taken, like,
        )  # fmt: skip
    transpose = None
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if isinstance(module, nn.Conv2d) and plain:

        def transpose(rows: Tensor) -> Tensor:
            found: Tensor = conv2d_input(
                (len(rows), *taken[0]), module.weight, rows, module.stride,
                module.padding, module.dilation, module.groups,
            )  # fmt: skip
            return found

    found = _weighted(
        module._conv_forward, module.weight, module.bias, transpose, common, taken, like
    )
    if transpose is not None:
        found.grid = Grid.of(module.kernel_size, module.stride, module.padding, module.dilation)
        found.groups = module.groups
    return found


def _weighted(
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    weight: Tensor,
    bias: Tensor | None,
    transpose: Callable[[Tensor], Tensor] | None,
    common: Common,
    taken: Any,
    like: Tensor,
) -> Weighted:
    terms = weight.numel() // min(weight.shape[:2]) + 1
    return Weighted(
        *common, call=lambda x: apply(x, weight, bias), taken=taken, terms=terms, like=like,
        apply=apply, weight=weight, transpose=transpose,
    )  # fmt: skip


def _cells(taken: torch.Size, shape: torch.Size, grid: Grid) -> Tensor:
    """Which places of a channel each window of a max pool has."""
    height, width = taken[-2:]

    def along(axis: int, size: int, count: int) -> Tensor:
        k, s, p, d = (option[axis] for option in grid)
        places = torch.arange(count)[:, None] * s - p + torch.arange(k) * d
        return torch.where((places >= 0) & (places < size), places, -1)

    rows = along(0, height, shape[-2])[:, None, :, None]
    columns = along(1, width, shape[-1])[None, :, None, :]
    cells = torch.where((rows >= 0) & (columns >= 0), rows * width + columns, -1)
    return cells.flatten(2).flatten(0, 1)
