"""The first layer's constraints as small problems: windows of pixels that share their rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx
from torch.nn import functional

from ..graph.activations import aten, given_by_name
from ..graph.graph import end_of, held_by, until
from ..graph.operations import BATCH_NORM
from ..graph.target import TargetFeatures
from .first_layer import FirstLayer, Sides, probe
from .interior import Interior
from .nearest import Conditioned, Nearest, Rows, nearest_points

_HELD = 2**25  # largest explicit matrix of a layer: 256 MiB
_SAME = 1e-9  # relative to the largest value: agreement of two computations of a layer
_ROUNDS = 3  # rounds of moving points apart
_LOOSE = 1e-2  # relative to the norm of the sides: accuracy of all rounds but the last
_OFF = 1e-10  # the same, of Newton's method; otherwise a linear program finishes


@dataclass(frozen=True)
class Problem:
    """Independent windows of pixels with the same rows.

    Attributes:
        pixels: (P, p) flat indices, of P windows.
        rows: the layer's rows for a window's pixels.
        equal: (M,) bool, rows that are equations; the others are upper limits.
        sides: (M, P) the values, or limits.
        seen: rank of the equations: number of the p directions that a window does not hide.
        units: (P, m) of the layer, in the order of `given`.
        given: the original weights and limits of a window, before orthonormalisation; None if they
            are too large.
    """

    pixels: Tensor
    rows: Rows
    equal: Tensor
    sides: Tensor
    seen: int
    units: Tensor
    given: "Given | None" = None

    def nearest(self, points: Tensor, target: Tensor, tolerance: float) -> Nearest:
        """Points of the polytope nearest to points (K, P, p); the result is (p, K P)."""
        columns = points.flatten(0, 1).mT.contiguous()
        sides = self.sides.repeat(1, len(points))
        found = nearest_points(columns, self.rows, sides, self.equal, tolerance)
        if self.given is None:
            return found
        open_ = (found.error > max(tolerance, _OFF)).nonzero()[:, 0]
        for window in (open_ % len(self.pixels)).unique():
            own = open_[open_ % len(self.pixels) == window]
            matrix, limit, equal = self.given
            inside = Interior.of(
                matrix, limit[:, window], equal, target[self.pixels[window]].numpy()
            )
            found.points[:, own] = torch.from_numpy(inside.from_near(found.points[:, own].numpy()))
        return found


class Given(NamedTuple):
    """matrix (m, p) times a window's pixels = limit (m, P) if `equal`, otherwise <= limit."""

    matrix: np.ndarray
    limit: np.ndarray
    equal: np.ndarray


@dataclass(frozen=True)
class Polytope:
    """The images in [0, 1] with the same values at the first layer as the target.

    Attributes:
        target: (n,) float64.
        problems: of the pixels that the layer sees; the others are free.
    """

    target: Tensor
    problems: list[Problem]

    @property
    def hidden(self) -> int:
        """Number of directions of the pixels that the layer's active units do not see."""
        return len(self.target) - sum(len(each.pixels) * each.seen for each in self.problems)

    @property
    def counted(self) -> bool:
        """Whether `hidden` is exact: implicit equations may be dependent."""
        return all(problem.given for problem in self.problems)

    def nearest(self, points: Tensor, tolerance: float = 1e-12) -> tuple[Tensor, int]:
        """Its points (K, n) nearest to given points, and the number of steps."""
        found, steps = points.clamp(0, 1), 0
        for problem in self.problems:
            part = problem.nearest(points[:, problem.pixels], self.target, tolerance)
            shape = (len(points), *problem.pixels.shape)
            found[:, problem.pixels] = part.points.mT.reshape(shape)
            steps += part.steps
        return found, steps

    def apart(self, count: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """`count` points far from each other: moved along random directions, then apart.

        Each round is a step of maximising the convex sum of their squared distances: a quadratic
        program that moves the points near the corners of the box.
        """
        draws = torch.randn(count, len(self.target), generator=generator, dtype=torch.float64)
        way, taken = draws.sign(), 0
        for turn in range(_ROUNDS if count > 1 else 1):
            last = turn == _ROUNDS - 1 or count == 1
            found, steps = self.nearest(0.5 + way, 1e-12 if last else _LOOSE)
            others = (found.sum(0) - found) / max(1, count - 1)
            way, taken = found - others, taken + steps
            way /= way.square().mean().sqrt().clamp_min(1e-12)
        return found, taken


@torch.no_grad()
def polytope_of(
    layer: FirstLayer, target: Tensor, features: TargetFeatures | None = None
) -> Polytope:
    """The polytope of a target (C, H, W), and of features that have other edges than the layer."""
    sides = Sides.of(features or layer.features(target), layer.bias)
    pixels = target.flatten().double()
    windows = _windows(layer)
    if windows is not None:
        return Polytope(pixels, _of_windows(windows, sides))
    if len(pixels) * len(sides.side) <= _HELD:
        return Polytope(pixels, list(_of_matrix(layer, sides)))
    return Polytope(pixels, [_of_network(layer, sides)])


class Windows(NamedTuple):
    """Values (P, M) of units: matrix (M, p) times the pixels (P, p), plus a bias."""

    matrix: Tensor
    pixels: Tensor
    units: Tensor

    def problem(self, sides: Sides) -> Problem:
        """Their common problem, if all windows have the same equations."""
        equal, sign = sides.equal[self.units[0]].numpy(), sides.sign[self.units[0]]
        matrix, side = (sign[:, None] * self.matrix).numpy(), sides.side[self.units].mT.numpy()
        given = Conditioned(matrix[equal], matrix[~equal])
        made = given.sides(side[equal], side[~equal])
        kept = Given(matrix, side, equal)
        return Problem(self.pixels, given.rows, given.equal, made, given.rank, self.units, kept)


def _of_windows(windows: Windows, sides: Sides) -> list[Problem]:
    """One problem for all windows, or one for each if their equations differ."""
    if sides.equal.all():
        return [windows.problem(sides)]
    parts = range(len(windows.pixels))
    return [
        Windows(windows.matrix, windows.pixels[k : k + 1], windows.units[k : k + 1]).problem(sides)
        for k in parts
    ]


def _of_matrix(layer: FirstLayer, sides: Sides) -> Iterator[Problem]:
    """Problems of connected components of pixels and units."""
    matrix = layer.weight()
    units, pixels = matrix.nonzero().mT.numpy()
    count = len(matrix)
    shape = (count + matrix.shape[1],) * 2
    joined = coo_array((np.ones(len(units)), (units, count + pixels)), shape)
    _, part = connected_components(joined, directed=False)
    for each in np.unique(part[count:][np.unique(pixels)]):
        own, seen = np.flatnonzero(part[:count] == each), np.flatnonzero(part[count:] == each)
        window = Windows(
            matrix[np.ix_(own, seen)], torch.from_numpy(seen)[None], torch.from_numpy(own)[None]
        )
        yield window.problem(sides)


class _Network(NamedTuple):
    """Implicit rows, for large matrices: the layer and its gradient."""

    layer: FirstLayer
    sign: Tensor

    def times(self, points: Tensor) -> Tensor:
        """(n, B) to (N, B)."""
        images = points.mT.reshape(-1, *self.layer.size)
        return self.sign[:, None] * (self.layer(images) - self.layer.bias).mT

    def back(self, multipliers: Tensor) -> Tensor:
        """(N, B) to (n, B)."""
        return self.layer.back((self.sign[:, None] * multipliers).mT).mT


def _of_network(layer: FirstLayer, sides: Sides) -> Problem:
    """One problem of all pixels. Its equations are assumed independent: more may be hidden."""
    count = layer.size.numel()
    return Problem(
        torch.arange(count)[None], _Network(layer, sides.sign), sides.equal,
        sides.side[:, None], min(count, int(sides.equal.sum())),
        torch.arange(len(sides.side))[None],
    )  # fmt: skip


def _windows(layer: FirstLayer) -> Windows | None:
    """A convolution or linear layer whose windows share no pixel, read from the graph.

    Before it, pixels may be scaled, shifted and permuted; after it there may be a batch norm. The
    result is compared with the layer. None if there are no such windows.
    """
    end = end_of(layer.network)
    while end.target is BATCH_NORM:
        end = end.all_input_nodes[0]
    if end.target not in (aten.conv2d.default, aten.linear.default):
        return None
    given = given_by_name(end, _ARGUMENTS)
    weight = held_by(layer.network, str(given["weight"].target))
    if given.get("groups", 1) != 1 or any(_pair(given.get("padding", 0))):
        return None
    before = until(layer.network, given["input"])
    moved = _moved(before, layer.size)
    if moved is None:
        return None
    pixels, scale = (_cut(each, weight, given) for each in moved)
    if len(pixels.unique()) < pixels.numel() or not torch.equal(scale, scale[:1].expand_as(scale)):
        return None
    units = torch.arange(len(pixels) * len(weight))
    of_channels = weight.ndim == 4  # (M, P); a linear layer gives (P, M)
    units = units.view(len(weight), -1).mT if of_channels else units.view(-1, len(weight))
    return _as_the_layer(Windows(weight.flatten(1) * scale[0], pixels, units), layer)


_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _moved(before: fx.GraphModule, size: torch.Size) -> tuple[Tensor, Tensor] | None:
    """Pixel index and scale of each input of the layer, in its shape."""
    numbers = torch.arange(1.0, size.numel() + 1, dtype=torch.float64).view(1, *size)
    zero, one = (before(torch.full_like(numbers, value)) for value in (0.0, 1.0))
    scale = one - zero
    index = (before(numbers) - zero) / scale - 1
    whole = index.round()
    inside = (whole >= 0) & (whole < size.numel()) & ((index - whole).abs() < _WHOLE)
    return (whole.long(), scale) if inside.all() else None


_WHOLE = 1e-3  # tolerance when a pixel's index is rounded to an integer


def _cut(values: Tensor, weight: Tensor, given: dict[str, Any]) -> Tensor:
    """Cut the layer's input into windows (P, p)."""
    if weight.ndim == 2:
        return values.reshape(-1, weight.shape[1])
    stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
    shape = tuple(weight.shape[2:])
    found = functional.unfold(values.double(), shape, dilation, 0, stride)[0].mT
    return found.to(values.dtype)


def _pair(value: Any) -> tuple[int, int]:
    both = list(value) if isinstance(value, list | tuple) else [value]
    return int(both[0]), int(both[-1])


def _as_the_layer(windows: Windows, layer: FirstLayer) -> Windows | None:
    """The windows with a batch norm's scale; None if they do not give the layer's values."""
    images = probe(layer.size, 3)
    values = layer(images) - layer.bias
    if values.shape[1] != windows.units.numel():
        return None
    seen = images.flatten(1)[:, windows.pixels] @ windows.matrix.mT  # (3, P, M)
    there = values[:, windows.units]
    scale = (seen * there)[:2].sum((0, 1)) / seen[:2].square().sum((0, 1)).clamp_min(1e-300)
    if not (there - scale * seen).abs().max() <= _SAME * values.abs().max():
        return None
    return windows._replace(matrix=scale[:, None] * windows.matrix)
