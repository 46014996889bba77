"""The steps of a network, with the operations that bounds need.

A step is affine in varying values, or nonlinear: a rectifier, an activation, a product, a softmax
or a max pool. Steps work on flat batches, and know the shape of one image's values.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .curves import Shape

Pair = tuple[int, int]


class OutOfTime(Exception):
    """The time ended before bounds were found."""


def check_time(until: float) -> None:
    """Raise OutOfTime after `until`, by the monotonic clock; for long computations."""
    if time.monotonic() > until:
        raise OutOfTime


class Grid(NamedTuple):
    """Geometry of a convolution or max pool, by rows and columns.

    Attributes:
        kernel: cells of a window.
        stride: from one window to the next.
        padding: before the first cell: zeros, or nothing in a max pool.
        dilation: from one cell of a window to the next.
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @classmethod
    def of(cls, *options: Any) -> "Grid":
        """From PyTorch's options, numbers or pairs."""
        pairs = [(each, each) if isinstance(each, int) else tuple(each) for each in options]
        return cls(*pairs)


@dataclass
class Step:
    """One node of the graph.

    Attributes:
        name: of the node.
        sources: indices of its input steps.
        shape: of one image's values.
        bends: number of nonlinear steps from the pixels to this one, included.
    """

    name: str
    sources: tuple[int, ...]
    shape: torch.Size
    bends: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Values per image."""
        return math.prod(self.shape)


class Input(Step):
    """The images."""


@dataclass
class Affine(Step):
    """sum_i A_i x_i + b, each row of an A_i with entries of one sign: sums, averages, factors.

    Attributes:
        call: computes it from the sources' values, (B, ...) each.
        taken: shape of one image for each source.
        terms: largest number of products in a sum, forward or backward.
        error: bound on the error of values from rounding of the coefficients.
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
        """sum_i |A_i| x_i, for values >= 0."""
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
    """The same values in another shape."""

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """The values."""
        return self.call(*values)

    def back(self, rows: Tensor) -> list[Tensor]:
        """The rows in the source's shape."""
        return [rows.reshape(len(rows), *self.taken[0])]


@dataclass
class Joined(Affine):
    """The sources' channels, concatenated."""


@dataclass
class Summed(Affine):
    """x + y or x - y, of one shape.

    Attributes:
        signs: of both.
    """

    signs: tuple[int, int]


@dataclass
class Averaged(Affine):
    """Averages over positions, the same in each channel."""


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
        apply: computes it from values, weight and bias.
        weight: of the layer.
        transpose: applies the layer's transpose, if there is a direct way.
        grid: of a zero-padded convolution of images; otherwise None.
        groups: of a convolution.
    """

    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    weight: Tensor
    transpose: Callable[[Tensor], Tensor] | None
    grid: Grid | None = None
    groups: int = 1

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
        """Whether `tilt` is not zero."""
        return isinstance(self.tilt, Tensor)

    def value(self, x: Tensor) -> Tensor:
        """The rectifier of values, without `tilt`."""
        return x.clamp(0, self.ceiling)

    def bends_on(self, low: Tensor, high: Tensor) -> Tensor:
        """Whether it is not linear on intervals."""
        top = self.ceiling
        return (low < 0) & (high > 0) | (low < top) & (high > top)


@dataclass
class Curve(Step):
    """A smooth activation, elementwise."""

    curve: Shape

    def value(self, x: Tensor) -> Tensor:
        """The activation of values."""
        return self.curve.function(x)

    def bends_on(self, low: Tensor, high: Tensor) -> Tensor:
        """True everywhere."""
        return low < high


@dataclass
class Product(Step):
    """Products of two varying values, elementwise or of matrices.

    Attributes:
        taken: shape of one image for each source.
        matrices: whether it is a matrix product.
    """

    taken: list[torch.Size]
    matrices: bool

    @property
    def terms(self) -> int:
        """Number of products in a value, or in a row of the backward pass."""
        return max(*self.taken[0], *self.taken[1]) if self.matrices else self.size

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """x y, of values with any axes before one image's."""
        return x @ y if self.matrices else x * y

    def back(self, at: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Rows (P, S, ...) through the tangent plane at_0 y + x at_1 at values (P, ...)."""
        x, y = (each[:, None] for each in at)
        if self.matrices:
            return [rows @ y.mT, x.mT @ rows]
        both = zip((rows * y, rows * x), self.taken, strict=True)
        return [each.sum_to_size(*rows.shape[:2], *shape) for each, shape in both]


@dataclass
class Softmax(Step):
    """exp(x_i) / sum_j exp(x_j) along an axis, counted from the last."""

    axis: int

    def value(self, x: Tensor) -> Tensor:
        """The softmax of values with any axes before one image's."""
        return x.softmax(self.axis)

    def back(self, at: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
        """Rows (P, S, ...) through s_i (x_i - sum_j s_j x_j) if `kept`; `at` is s and kept."""
        shares, kept = (each[:, None] for each in at)
        rows = rows * (shares * kept)
        return [rows - shares * rows.sum(self.axis, keepdim=True)]


Smooth = Curve | Product | Softmax


@dataclass
class MaxPool(Step):
    """The largest of each window.

    Attributes:
        cells: (windows, cells) flat positions in a channel; -1 outside.
        grid: of the windows, if the values are of the original network.
        ceiled: whether the last window may extend beyond the map.
    """

    cells: Tensor
    grid: Grid | None = None
    ceiled: bool = False
