"""A traced network as a list of steps, each of which says how bounds go through it.

A step is affine in what moves with the pixels, or it bends: a rectifier or a max pool. Steps work
on batches of flat order, and know the shape of one image's values.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
    is_view,
    kinds,
    module_of,
    name_what_is_written,
    pooling,
)

_AVERAGES = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}
Common = tuple[str, tuple[int, ...], torch.Size]
_FEW = 4  # operations on a number in steps that only move, add or scale


@dataclass
class Step:
    """One node of the graph.

    Attributes:
        name: the node's.
        sources: the numbers of the steps that it takes its values from.
        shape: of one image's values.
        bends: how many bends lie on the way from the pixels, itself included.
    """

    name: str
    sources: tuple[int, ...]
    shape: torch.Size
    bends: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Numbers an image."""
        return math.prod(self.shape)


class Input(Step):
    """The images."""


@dataclass
class Affine(Step):
    """sum_i A_i x_i + b, each row of an A_i with entries of one sign: sums, averages, factors.

    Attributes:
        call: computes it of the sources' values, (B, ...) each.
        taken: one image's shape for each source.
        terms: how many products a sum has at most, forward or backward.
        error: how far each value may be off by what its coefficients were computed of.
    """

    call: Callable[..., Tensor]
    taken: list[torch.Size]
    terms: int
    like: Tensor
    error: Tensor | float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.offset = self.call(*self._zeros(1))[0]

    def _zeros(self, count: int) -> list[Tensor]:
        return [self.like.new_zeros(count, *shape) for shape in self.taken]

    def linear(self, *values: Tensor) -> Tensor:
        """sum_i A_i x_i."""
        return self.call(*values) - self.offset

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """sum_i |A_i| x_i, for values that are at least 0."""
        found = []
        for place, value in enumerate(values):
            given = self._zeros(len(value))
            given[place] = value
            found.append(self.linear(*given).abs())
        return torch.stack(found).sum(0)

    def back(self, rows: Tensor) -> list[Tensor]:
        """A_i^T applied to rows (B, ...), for each source."""
        with torch.enable_grad():
            given = [zeros.requires_grad_() for zeros in self._zeros(len(rows))]
            return list(torch.autograd.grad(self.call(*given), given, rows))


@dataclass
class Reshaped(Affine):
    """The same numbers in another shape."""

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """The values."""
        return self.call(*values)

    def back(self, rows: Tensor) -> list[Tensor]:
        """The rows in the source's shape."""
        return [rows.reshape(len(rows), *self.taken[0])]


@dataclass
class Scaled(Affine):
    """x s + b, channel by channel: batch norm by its running averages."""

    scale: Tensor

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """|s| x."""
        return values[0] * self.scale.abs()

    def back(self, rows: Tensor) -> list[Tensor]:
        """Rows times s."""
        return [rows * self.scale]


@dataclass
class Weighted(Affine):
    """A linear layer or a convolution: weights of both signs.

    Attributes:
        apply: computes it of values, weight and bias.
        weight: of the layer.
        transpose: applies the layer's transpose, where there is a direct way.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    weight: Tensor
    transpose: Callable[[Tensor], Tensor] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.absolute = self.weight.abs()

    def linear(self, *values: Tensor) -> Tensor:
        """W x."""
        return self.apply(values[0], self.weight, None)

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """|W| x."""
        return self.apply(values[0], self.absolute, None)

    def back(self, rows: Tensor) -> list[Tensor]:
        """W^T rows."""
        return [self.transpose(rows)] if self.transpose else super().back(rows)


@dataclass
class Rectifier(Step):
    """min(max(x, 0), ceiling) - tilt x; `tilt` is a number of each unit, in multiples of 2^-20."""

    ceiling: float
    tilt: Tensor | float = 0.0

    @property
    def is_tilted(self) -> bool:
        """Whether it is more than a rectifier."""
        return isinstance(self.tilt, Tensor)


@dataclass
class MaxPool(Step):
    """The largest of each window.

    Attributes:
        cells: (windows, cells) places of a flat channel; -1 for what lies outside.
    """

    cells: Tensor


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
            cells = _cells(taken[0], shape, pooling(self.module, node))
            return MaxPool(*common, cells.to(self.env[moving[0]].device))
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
        averages = node.target in _AVERAGES or isinstance(
            module, nn.AvgPool2d | nn.AdaptiveAvgPool2d
        )
        terms = math.prod(taken[0]) if averages else _FEW
        return Affine(*common, self._call(node, moving), taken, terms, like)

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

        return _weighted(apply, weight, bias, None, common, taken, like)


def _is_new_shape(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node's numbers are its input's, in the same order."""
    return is_view(network, node) and node.target is not operator.getitem


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

    return _weighted(
        module._conv_forward, module.weight, module.bias, transpose, common, taken, like
    )


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


def _cells(taken: torch.Size, shape: torch.Size, options: tuple[Any, ...]) -> Tensor:
    """Which places of a channel each window of a max pool has."""
    kernel, stride, padding, dilation, _ = options
    height, width = taken[-2:]

    def along(axis: int, size: int, count: int) -> Tensor:
        k, s, p, d = (
            option if isinstance(option, int) else option[axis]
            for option in (kernel, stride, padding, dilation)
        )
        places = torch.arange(count)[:, None] * s - p + torch.arange(k) * d
        return torch.where((places >= 0) & (places < size), places, -1)

    rows = along(0, height, shape[-2])[:, None, :, None]
    columns = along(1, width, shape[-1])[None, :, None, :]
    cells = torch.where((rows >= 0) & (columns >= 0), rows * width + columns, -1)
    return cells.flatten(2).flatten(0, 1)
