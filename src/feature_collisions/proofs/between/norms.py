"""Upper bounds on the norms of the linear parts of steps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds.steps import (
    Affine,
    Averaged,
    Grid,
    Joined,
    MaxPool,
    Reshaped,
    Scaled,
    Summed,
    Weighted,
)

_SQUARINGS = 6
_WORK = 2**28  # largest number of products for a layer's Fourier transform


@dataclass
class Ball:
    """Euclidean norms of the deviation of a step's values on M intervals.

    Attributes:
        total: (M,) of all values.
        channels: (M, C) of each channel.
    """

    total: Tensor
    channels: Tensor

    @classmethod
    def of_channels(cls, channels: Tensor, total: Tensor | None = None) -> "Ball":
        """From the norms of channels, and `total` if it is smaller."""
        together = channels.norm(dim=1)
        return cls(together if total is None else torch.minimum(total, together), channels)

    @classmethod
    def of_units(cls, radius: Tensor) -> "Ball":
        """From bounds `radius` (M, C, ...) on the deviations of units."""
        return cls.of_channels(radius.double().reshape(*radius.shape[:2], -1).norm(dim=2))

    def __add__(self, other: "Ball") -> "Ball":
        return Ball.of_channels(self.channels + other.channels, self.total + other.total)

    def times(self, factor: float) -> "Ball":
        """Each norm times a factor."""
        return Ball(self.total * factor, self.channels * factor)

    @classmethod
    def all_alike(cls, total: Tensor, channels: int) -> "Ball":
        """From the total norm only."""
        return cls(total, total[:, None].expand(-1, channels))


class Norms:
    """Bounds on the norms of a network's steps, computed on first use."""

    def __init__(self) -> None:
        self.weights: dict[str, tuple[float, Tensor]] = {}
        self.signed: dict[tuple[str, int], float] = {}

    def behind(self, step: Affine, balls: list[Ball]) -> Ball:
        """Norms after an affine step."""
        if isinstance(step, Joined):
            return Ball(
                torch.stack([ball.total for ball in balls]).norm(dim=0),
                torch.cat([ball.channels for ball in balls], 1),
            )
        if isinstance(step, Summed):
            return balls[0] + balls[1]
        ball = balls[0]
        if isinstance(step, Reshaped):
            taken, shape = step.taken[0], step.shape
            if shape[0] == taken[0] and ball.channels.shape[1] == shape[0]:
                return ball
            if len(shape) == 1:
                return Ball(ball.total, ball.channels.repeat_interleave(math.prod(taken[1:]), 1))
            return Ball.all_alike(ball.total, shape[0])
        if isinstance(step, Scaled):
            factors = step.scale.abs().flatten()
            return Ball.of_channels(ball.channels * factors, ball.total * factors.max())
        if isinstance(step, Weighted) and (step.grid is not None or len(step.taken[0]) == 1):
            total, channels = self._of_weights(step)
            return Ball.of_channels(ball.total[:, None] * channels, ball.total * total)
        norms = [self._of_signed(step, place) for place in range(len(balls))]
        if isinstance(step, Averaged):
            return ball.times(norms[0])
        totals = [each.total * norm for each, norm in zip(balls, norms, strict=True)]
        return Ball.all_alike(torch.stack(totals).sum(0), step.shape[0])

    def _of_weights(self, step: Weighted) -> tuple[float, Tensor]:
        """Of a linear layer or a convolution: of the whole, and (C,) of each channel's rows."""
        if step.name not in self.weights:
            self.weights[step.name] = _of_weights(step)
        return self.weights[step.name]

    def _of_signed(self, step: Affine, place: int) -> float:
        """Of the part for one source, whose rows have entries of one sign each."""
        at = step.name, place
        if at not in self.signed:
            self.signed[at] = _of_signed(step, place)
        return self.signed[at]


def behind_pool(step: MaxPool, ball: Ball) -> Ball:
    """Norms after a max pool: a cell counts in each window that contains it."""
    assert step.grid is not None
    return ball.times(math.sqrt(_windows_of_a_cell(step.grid)))


def _windows_of_a_cell(grid: Grid) -> int:
    """Largest number of windows that contain a cell."""
    return math.prod(
        k if d > 1 else -(-k // s)
        for k, s, d in zip(grid.kernel, grid.stride, grid.dilation, strict=True)
    )


def _of_signed(step: Affine, place: int) -> float:
    """|A|_2 <= sqrt(|A|_1 |A|_inf) of the part for one source: its rows are of one sign each."""
    given = [step.like.new_zeros(1, *shape) for shape in step.taken]
    given[place] = torch.ones_like(given[place])
    rows = step.linear(*given)
    columns = step.back(rows.sign())[place]
    return math.sqrt(float(rows.abs().max()) * float(columns.abs().max()))


def _of_weights(step: Weighted) -> tuple[float, Tensor]:
    weight, factor = step.weight.double(), 1.0
    if step.grid is None:
        symbols = weight[None, None]
    elif _work(step) > _WORK:
        # All windows together are as long as the map times the root of how often a cell is in one.
        symbols = weight.unflatten(0, (step.groups, -1)).flatten(2)[None]
        factor = math.sqrt(_windows_of_a_cell(step.grid))
    else:
        # On a torus as large as the map and the kernel's reach around it, a
        # convolution without stride is diagonal in frequencies, and has this one as a part. Along
        # an axis on which the kernel is one cell, all frequencies are alike.
        size = [
            n + (k - 1) * d + 2 * p if k > 1 else 1
            for n, k, p, d in zip(
                step.taken[0][1:], step.grid.kernel, step.grid.padding, step.grid.dilation,
                strict=True,
            )
        ]  # fmt: skip
        spread = weight.new_zeros(*weight.shape[:2], *size)
        rows, columns = step.grid.dilation
        height, width = step.grid.kernel
        spread[..., : height * rows : rows, : width * columns : columns] = weight
        symbols = torch.fft.rfft2(spread).movedim((0, 1), (2, 3)).flatten(0, 1)[:, None]
        symbols = symbols.unflatten(2, (step.groups, -1))[:, 0]  # (frequencies, groups, out, in)
    channels = symbols.abs().square().sum(-1).amax(0).sqrt().flatten()
    return factor * _largest_singular_value(symbols), factor * channels


def _work(step: Weighted) -> int:
    """Approximate number of products for the norms at all frequencies."""
    assert step.grid is not None
    frequencies = math.prod(step.taken[0][1:]) if max(step.grid.kernel) > 1 else 1
    return int(frequencies * min(step.weight.shape[:2]) ** 3)


def _largest_singular_value(matrices: Tensor) -> float:
    """A tight upper bound on the largest norm of the matrices (..., n, m).

    Of a Gram matrix G: lambda_max <= |G^p|_F^(1/p), which is at most n^(1 / 2p) times too large.
    """
    wide = matrices.shape[-1] > matrices.shape[-2]
    gram = matrices @ matrices.mH if wide else matrices.mH @ matrices
    logarithm = torch.zeros(gram.shape[:-2], dtype=torch.float64, device=gram.device)
    power = 1
    for _ in range(_SQUARINGS):
        size = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
        logarithm += size.log() / power
        gram = gram / size[..., None, None]
        gram, power = gram @ gram, 2 * power
    size = torch.linalg.matrix_norm(gram).clamp_min(torch.finfo(torch.float64).tiny)
    return float((logarithm + size.log() / power).max().div(2).exp())
