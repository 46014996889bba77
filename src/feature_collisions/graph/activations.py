"""Activations: their functions, and the sides on which they are flat, exactly or approximately.

On a flat side the value is constant, so later layers cannot see how far a unit is beyond the edge.
GELU, SiLU and similar functions only approach a constant; within a tolerance they have an edge.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Side:
    """One flat side of an activation.

    Attributes:
        sign: 1 if flat below the edge, -1 if flat above.
        value: value of the activation there, or its limit.
        edge: input at which the side begins; None if `value` is only a limit.
    """

    sign: int
    value: float
    edge: float | None = None


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its flat sides.

    Attributes:
        name: its name in summaries, such as `relu` or `gelu`.
        function: pre-activations to activations, of any shape; can be pickled.
        sides: none, one or two.
        inflections: points, kinks included, between which it is convex or concave. None if
            unknown; proofs then have no bounds for it.
        off: largest difference between the computed function and one with these inflections.
    """

    name: str
    function: Callable[[Tensor], Tensor] = field(compare=False)
    sides: tuple[Side, ...] = ()
    inflections: tuple[float, ...] | None = None
    off: float = 0.0

    @property
    def is_rectifier(self) -> bool:
        """Whether it is min(max(z, 0), c), with c infinite for a ReLU."""
        return self.name in ("relu", "relu6", "clipped_relu", "unknown")

    @property
    def ceiling(self) -> float:
        """Largest value that it reaches; infinity if there is none."""
        return next((side.value for side in self.sides if side.sign < 0), math.inf)

    @property
    def is_exact(self) -> bool:
        """Whether every flat side is flat in exact arithmetic."""
        return all(side.edge is not None for side in self.sides)

    def within(self, spread: float) -> "Activation":
        """The same activation with an edge for every side; values beyond it differ by <= `spread`.

        Args:
            spread: largest change of the activation on a side that is not exactly flat. Sides
                without such an edge in the range searched are left out.
        """
        sides = (
            side if side.edge is not None else replace(side, edge=self._edge(side, spread))
            for side in self.sides
        )
        return replace(self, sides=tuple(side for side in sides if side.edge is not None))

    def _edge(self, side: Side, spread: float) -> float | None:
        """The edge: the values beyond it, up to the far end, are within `spread`."""
        if spread <= 0:
            return None
        low, high = -_FAR, _FAR
        for _ in range(2):  # over the whole range, then between two neighbours
            z = torch.linspace(low, high, _POINTS, dtype=torch.float64)
            values = torch.cat([z.new_tensor([side.value]), self.function(side.sign * z)])
            moved = values.cummax(0).values - values.cummin(0).values
            count = int((moved[1:] <= spread).sum())  # `moved` only rises
            if count == 0 and low == -_FAR:
                return None
            low, high = float(z[max(count - 1, 0)]), float(z[min(count, _POINTS - 1)])
        return side.sign * low


_FAR, _POINTS = 60.0, 30_001


def _itself(z: Tensor) -> Tensor:
    return z


IDENTITY = Activation("none", _itself)


def clipped(low: float = 0.0, high: float = math.inf) -> Activation:
    """min(max(z, low), high): a ReLU, ReLU6, Hardtanh or clamp."""
    names = {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}
    name = names.get((low, high), "clipped_relu" if low == 0 else "clamp")
    sides = [Side(1, low, low)] if low > -math.inf else []
    sides += [Side(-1, high, high)] if high < math.inf else []
    return Activation(name, partial(torch.clamp, min=low, max=high), tuple(sides))


RELU = clipped()


# Recognised from the graph's operations


class Range(NamedTuple):
    """Constant limits to which an operation clips its input; None if there are none."""

    low: float | None = None
    high: float | None = None


def _hardtanh(node: fx.Node) -> Range:
    given = given_by_name(node, ("input", "min_val", "max_val"))
    return Range(_constant(given.get("min_val", -1.0)), _constant(given.get("max_val", 1.0)))


def _clamp(node: fx.Node) -> Range:
    given = given_by_name(node, ("input", "min", "max"))
    low, high = given.get("min"), given.get("max")
    return Range(
        -math.inf if low is None else _constant(low), math.inf if high is None else _constant(high)
    )


def _threshold(node: fx.Node) -> Range:
    given = given_by_name(node, ("input", "threshold", "value"))
    same = given["threshold"] == given["value"]
    return Range(_constant(given["value"]), math.inf) if same else Range()


_RANGES: dict[Any, Callable[[fx.Node], Range]] = {
    aten.relu.default: lambda node: Range(0.0, math.inf),
    aten.relu6.default: lambda node: Range(0.0, 6.0),
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clip.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.threshold.default: _threshold,
}


def range_of(node: fx.Node) -> Range:
    """Constant limits to which an operation clips its input."""
    return _RANGES[node.target](node) if node.target in _RANGES else Range()


def is_clip(node: fx.Node) -> bool:
    """Whether an operation clips its input, to constants or otherwise."""
    return node.target in _RANGES


def ceiling_of(node: fx.Node) -> float | None:
    """Ceiling of a rectifier: infinity for a ReLU, None for other operations.

    Clipped ReLUs are ReLU6, and Hardtanh and clamp from 0 to a finite positive ceiling.
    """
    low, high = range_of(node)
    return high if low == 0 and high is not None and high > 0 else None


def gelu(z: Tensor, approximate: str = "none") -> Tensor:
    """z Phi(z), or its approximation with a tanh."""
    return F.gelu(z, approximate=approximate)


def _gelu(node: fx.Node) -> Activation:
    given = given_by_name(node, ("input", "approximate"))
    form = str(given.get("approximate", "none"))
    exact = form == "none"
    inflection = math.sqrt(2) if exact else 1.4185040087908285
    function = partial(gelu, approximate=form)
    return Activation("gelu", function, (Side(1, 0.0),), (-inflection, inflection))


def _scaled_elu(z: Tensor, alpha: float, scale: float, inner: float) -> Tensor:
    found: Tensor = aten.elu.default(z, alpha, scale, inner)
    return found


def _elu(node: fx.Node) -> Activation:
    given = given_by_name(node, ("input", "alpha", "scale", "input_scale"))
    names = ("alpha", "scale", "input_scale")
    alpha, scale, inner = (float(given.get(name, 1.0)) for name in names)
    function = partial(_scaled_elu, alpha=alpha, scale=scale, inner=inner)
    return Activation("elu", function, (Side(1, -alpha * scale),), inflections=(0.0,))


def _celu(node: fx.Node) -> Activation:
    alpha = given_by_name(node, ("input", "alpha")).get("alpha", 1.0)
    sides = (Side(1, -float(alpha)),)
    return Activation("celu", partial(F.celu, alpha=alpha), sides, inflections=(0.0,))


def softplus(z: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta z)) / beta."""
    return F.softplus(z, beta, threshold)


def log_sigmoid(z: Tensor) -> Tensor:
    """log(1 / (1 + exp(-z)))."""
    return F.logsigmoid(z)


def _softplus(node: fx.Node) -> Activation:
    given = given_by_name(node, ("input", "beta", "threshold"))
    beta, threshold = given.get("beta", 1.0), given.get("threshold", 20.0)
    function = partial(softplus, beta=beta, threshold=threshold)
    off = 1.01 * math.exp(-threshold) / beta  # beyond the threshold it is the identity
    return Activation("softplus", function, (Side(1, 0.0),), inflections=(), off=off)


_SELU_FLOOR = -1.0507009873554805 * 1.6732632423543772
_FIXED: dict[Any, Activation] = {
    aten.hardswish.default: Activation(
        "hardswish", F.hardswish, (Side(1, 0.0, -3.0),), (-3.0, 3.0)
    ),
    aten.hardsigmoid.default: Activation(
        "hardsigmoid", F.hardsigmoid, (Side(1, 0.0, -3.0), Side(-1, 1.0, 3.0))
    ),
    aten.silu.default: Activation(
        "silu", F.silu, (Side(1, 0.0),), (-2.399357280515468, 2.399357280515468)
    ),
    aten.mish.default: Activation(
        "mish",
        F.mish,
        (Side(1, 0.0),),
        (-2.2563763963607935, 1.4905711794854284),
    ),
    aten.selu.default: Activation("selu", F.selu, (Side(1, _SELU_FLOOR),), inflections=(0.0,)),
    aten.sigmoid.default: Activation(
        "sigmoid", torch.sigmoid, (Side(1, 0.0), Side(-1, 1.0)), inflections=(0.0,)
    ),
    aten.tanh.default: Activation(
        "tanh", torch.tanh, (Side(1, -1.0), Side(-1, 1.0)), inflections=(0.0,)
    ),
    aten.log_sigmoid.default: Activation(
        "log_sigmoid", log_sigmoid, (Side(-1, 0.0),), inflections=()
    ),
}
_MADE: dict[Any, Callable[[fx.Node], Activation]] = {
    aten.gelu.default: _gelu,
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.softplus.default: _softplus,
}
_NAMES = {
    "relu": "ReLU", "relu6": "ReLU6", "clipped_relu": "the clipped ReLU", "clamp": "the clamp",
    "gelu": "GELU", "silu": "SiLU", "mish": "Mish", "elu": "ELU", "celu": "CELU", "selu": "SELU",
    "softplus": "Softplus", "sigmoid": "Sigmoid", "tanh": "Tanh", "log_sigmoid": "LogSigmoid",
    "none": "no activation", "hardswish": "Hardswish", "hardsigmoid": "Hardsigmoid",
}  # fmt: skip


def activation_of(node: fx.Node) -> Activation | None:
    """Activation with a flat side that the operation computes; None if it computes none."""
    low, high = range_of(node)
    if low is not None and high is not None and low < high:
        return clipped(low, high)
    if node.target in _MADE:
        return _MADE[node.target](node)
    return _FIXED.get(node.target)


def curve_of(node: fx.Node) -> Activation | None:
    """Elementwise function, smooth except for kinks, that the operation computes, if any."""
    if node.target in _POSITIVE:
        floor = least_of(node.args[0])
        return _POSITIVE[node.target](floor) if floor > 0 else None
    if node.target is aten.pow.Tensor_Scalar:
        return _SQUARE if node.args[1] == 2 else None
    if node.target in (aten.exp.default, aten.square.default):
        return _EXP if node.target is aten.exp.default else _SQUARE
    return activation_of(node)


def least_of(node: Any) -> float:
    """Lower bound on an operation's values, from the operations of its inputs."""
    if not isinstance(node, fx.Node):
        return -math.inf
    if node.target is aten.add.Tensor and isinstance(node.args[1], int | float) and not node.kwargs:
        return least_of(node.args[0]) + float(node.args[1])
    if node.target in _KEEP_SIGNS:
        return min(least_of(node.args[0]), 0.0)
    if node.target is aten.sqrt.default:
        return math.sqrt(max(least_of(node.args[0]), 0.0))
    low, high = range_of(node)
    if low is not None:
        return low if high is None else min(low, high)
    square = node.target is aten.pow.Tensor_Scalar and node.args[1] == 2
    return 0.0 if square or node.target in _NEVER_NEGATIVE else -math.inf


_NEVER_NEGATIVE = {
    aten.square.default, aten.exp.default, aten.softmax.int, aten.sigmoid.default, aten.abs.default,
}  # fmt: skip
_KEEP_SIGNS = {aten.mean.dim, aten.sum.dim_IntList}


def _from(z: Tensor, function: Callable[[Tensor], Tensor], floor: float) -> Tensor:
    return function(z.clamp_min(floor))


def _positive(name: str, function: Callable[[Tensor], Tensor]) -> Callable[[float], Activation]:
    """A function of positive numbers, constant below its smallest input."""
    return lambda floor: Activation(
        name, partial(_from, function=function, floor=floor), inflections=(floor,)
    )


_POSITIVE = {
    aten.rsqrt.default: _positive("rsqrt", torch.rsqrt),
    aten.sqrt.default: _positive("sqrt", torch.sqrt),
    aten.reciprocal.default: _positive("reciprocal", torch.reciprocal),
}
_EXP = Activation("exp", torch.exp, inflections=())
_SQUARE = Activation("square", torch.square, inflections=())


def title_of(name: str) -> str:
    """Name of an activation as in its paper: `GELU` for `gelu`."""
    return _NAMES.get(name, name)


def base_name(node: fx.Node) -> str:
    """Name of an operation without its overload: `relu`, `conv2d`."""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def given_by_name(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a call by name."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _constant(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
