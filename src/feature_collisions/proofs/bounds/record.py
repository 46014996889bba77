"""Convert a graph to a list of steps."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.nn.grad import conv2d_input

from ...graph.activations import aten, ceiling_of, curve_of, given_by_name
from ...graph.operations import (
    AVERAGES,
    BATCH_NORM,
    DIFFERENCES,
    LAYERS,
    MATRIX_PRODUCTS,
    MEANS,
    SUMS,
    NotPiecewiseLinear,
    is_new_shape,
    kinds,
    pooling,
)
from .curves import Shape
from .steps import (
    Affine,
    Averaged,
    Curve,
    Grid,
    Input,
    Joined,
    MaxPool,
    Product,
    Rectifier,
    Reshaped,
    Scaled,
    Smooth,
    Softmax,
    Step,
    Summed,
    Weighted,
)

_FEW = 4  # operations per number in steps that only move, add or scale
Common = tuple[str, tuple[int, ...], torch.Size]


def steps_of(network: fx.GraphModule, image: Tensor) -> list[Step]:
    """The steps of a frozen graph for images like this one (C, H, W).

    Raises:
        NotPiecewiseLinear: if a node is of no known kind, or mixes images.
    """
    return _Recorder(network, image).steps


class _Recorder(fx.Interpreter):
    """Runs the network on one and two images, and makes a step of each varying node."""

    def __init__(self, network: fx.GraphModule, image: Tensor) -> None:
        super().__init__(network, garbage_collect_values=False)
        self.extra_traceback = False  # it goes into messages
        self.kinds, self.steps = kinds(network), list[Step]()
        self.number: dict[fx.Node, int] = {}
        self.repeated = set[fx.Node]()  # fixed values, repeated for each image
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
                if value.ndim == 1:
                    raise NotPiecewiseLinear(f"{node.name} gives images a number without an axis")
                self._add(node, value)

    def _check_fixed(self, node: fx.Node, other: Any) -> None:
        """Refuse numbers that depend on the number of images, except in reshapes."""
        mine = self.env[node]
        sizes = [each.shape[:1] for each in (mine, other) if isinstance(each, Tensor)]
        if sizes == [(1,), (2,)] and torch.equal(mine.expand(2, *mine.shape[1:]), other):
            self.repeated.add(node)
            return
        same = torch.equal(mine, other) if isinstance(mine, Tensor) else mine == other
        if not same and not all(is_new_shape(user) for user in node.users):
            users = [u for u in node.users if not is_new_shape(u)]
            if any(self.kinds[user] != "fixed" for user in users):
                raise NotPiecewiseLinear(f"{node.name} depends on the number of images")

    def _add(self, node: fx.Node, value: Tensor) -> None:
        moving = [given for given in node.all_input_nodes if self.kinds[given] != "fixed"]
        step = self._step(node, moving, value.shape[1:])
        bends = isinstance(step, Rectifier | Smooth | MaxPool)
        step.bends = bends + max((self.steps[k].bends for k in step.sources), default=0)
        self.number[node] = len(self.steps)
        self.steps.append(step)

    def _step(self, node: fx.Node, moving: list[fx.Node], shape: torch.Size) -> Step:
        common = (node.name, tuple(self.number[given] for given in moving), shape)
        kind = self.kinds[node]
        if node.op == "placeholder":
            return Input(*common)
        if kind in ("relu", "clipped"):
            return Rectifier(*common, float(ceiling_of(node) or 0))
        if kind == "curve":
            curve = curve_of(node)
            assert curve is not None
            return Curve(*common, Shape(curve, self.env[moving[0]]))
        if kind == "softmax":
            axis: Any = node.args[1]
            return Softmax(*common, axis if axis < 0 else axis - len(shape) - 1)
        taken = [self.env[given].shape[1:] for given in moving]
        if kind == "max_pool":
            *options, ceiled = pooling(node)
            grid = Grid.of(*options)
            cells = _cells(taken[0], shape, grid).to(self.env[moving[0]].device)
            return MaxPool(*common, cells, grid, ceiled)
        like = self.env[moving[0]]
        if kind == "product":
            both = [each for each in node.args if isinstance(each, fx.Node)]
            common = (node.name, tuple(self.number[each] for each in both), shape)
            taken = [self.env[each].shape[1:] for each in both]
            if node.target in MATRIX_PRODUCTS and taken[0][:-2] != taken[1][:-2]:
                raise NotPiecewiseLinear(f"{node.name} multiplies stacks of different sizes")
            return Product(*common, taken, node.target in MATRIX_PRODUCTS)
        if is_new_shape(node) and math.prod(taken[0]) == math.prod(shape):
            return Reshaped(*common, lambda x: x.reshape(len(x), *shape), taken, 0, like)
        if node.target is BATCH_NORM:
            return self._batch_norm(node, common, taken, like)
        if node.target in LAYERS:
            return self._layer(node, common, taken, like)
        call = self._call(node, moving)
        if node.target in AVERAGES:
            return Averaged(*common, call, taken, math.prod(taken[0]), like)
        if node.target is aten.cat.default and shape[1:] == taken[0][1:] and _counts_channels(node):
            return Joined(*common, call, taken, _FEW, like)
        if node.target in SUMS and taken == [shape, shape] and not node.kwargs:
            return Summed(*common, call, taken, _FEW, like, _signs(node))
        terms = math.prod(taken[0]) if node.target in MEANS else _FEW
        return Affine(*common, call, taken, terms, like)

    def _call(self, node: fx.Node, moving: list[fx.Node]) -> Callable[..., Tensor]:
        """The node's own function of what moves."""

        def call(*values: Tensor) -> Tensor:
            given = dict(zip(moving, values, strict=True))

            def pick(source: fx.Node) -> Any:
                if source in self.repeated:
                    return self.env[source].expand(len(values[0]), *self.env[source].shape[1:])
                return given.get(source, self.env[source])

            args, kwargs = map_arg(node.args, pick), map_arg(node.kwargs, pick)
            result: Tensor = self.call_function(node.target, args, kwargs)
            return result

        return call

    def _given(self, node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
        """A call's arguments by name, with values in place of nodes."""
        return dict(map_arg(given_by_name(node, names), lambda source: self.env[source]))

    def _batch_norm(self, node: fx.Node, common: Common, taken: Any, like: Tensor) -> Scaled:
        """Batch norm with running averages; scale and offset are computed in float64."""
        names = ("input", "weight", "bias", "mean", "variance", "training", "momentum", "eps")
        given = self._given(node, names)
        scale = (given["variance"] + given["eps"]).rsqrt()
        scale = scale if given["weight"] is None else scale * given["weight"]
        offset = -given["mean"] * scale
        offset = offset if given["bias"] is None else offset + given["bias"]
        scale, offset = (each.view(-1, *[1] * (len(taken[0]) - 1)) for each in (scale, offset))
        return Scaled(
            *common, call=lambda x: x * scale + offset, taken=taken, terms=_FEW, like=like,
            scale=scale,
        )  # fmt: skip

    def _layer(self, node: fx.Node, common: Common, taken: Any, like: Tensor) -> Weighted:
        """A linear layer or a convolution with fixed weights."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given = self._given(node, names)
        weight, bias = given.pop("weight"), given.pop("bias", None)
        given.pop("input")
        function: Any = node.target

        def apply(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = function(values, weight, bias, **given)
            return result

        transpose: Callable[[Tensor], Tensor] | None = None
        grid = None
        stride, padding = given.get("stride", 1), given.get("padding", 0)
        dilation, groups = given.get("dilation", 1), given.get("groups", 1)
        if node.target is aten.linear.default:

            def transpose(rows: Tensor) -> Tensor:
                found: Tensor = rows @ weight
                return found

        elif node.target is aten.conv2d.default:
            grid = Grid.of(tuple(weight.shape[2:]), stride, padding, dilation)

            def transpose(rows: Tensor) -> Tensor:
                found: Tensor = conv2d_input(
                    (len(rows), *taken[0]), weight, rows, stride, padding, dilation, groups
                )
                return found

        terms = weight.numel() // min(weight.shape[:2]) + 1
        return Weighted(
            *common, call=lambda x: apply(x, weight, bias), taken=taken, terms=terms, like=like,
            apply=apply, weight=weight, transpose=transpose, grid=grid, groups=groups,
        )  # fmt: skip


def _signs(node: fx.Node) -> tuple[int, int]:
    return (1, -1) if node.target in DIFFERENCES else (1, 1)


def _counts_channels(node: fx.Node) -> bool:
    """Whether torch.cat joins distinct values along the channels."""
    given = given_by_name(node, ("tensors", "dim"))
    joined = given["tensors"]
    return given.get("dim") == 1 and len(joined) == len(node.all_input_nodes)


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
