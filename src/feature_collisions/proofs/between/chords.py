"""Secant bounds: deviation of a network from straight lines between points of a segment.

The network is computed at points of a segment. Between two neighbours each value is its secant, the
straight line between its ends, plus a deviation. Deviations start at unstable units. Near the
pixels, where a deviation reaches few units, it is propagated with its signs in a window of the map
(one generator of a zonotope, Singh et al. 2018). Once windows cover the map, its norm is propagated
(Szegedy et al. 2014).

Deviations are computed in float32: they are small, and their rounding is much smaller.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...graph.operations import NotPiecewiseLinear
from ..bounds.steps import (
    Affine,
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
from ..piecewise import TooManyPieces
from .norms import Ball, Norms, behind_pool
from .windows import Windows, born, looked_up, none_yet, put_back, together, united

_COVER = 0.5  # share of a map; larger windows are replaced by norms

Deviation = Windows | Ball | None


class Chords:
    """Bounds between points of segments.

    Args:
        steps: of the network.
        memory: bytes for the windows of one layer.

    Raises:
        NotPiecewiseLinear: if the norm of a layer is unknown.
    """

    def __init__(self, steps: Sequence[Step], memory: int) -> None:
        self.steps, self.memory, self.norms = steps, memory, Norms()
        self.weights = {}
        for step in steps:
            if isinstance(step, Weighted) and step.grid is not None:
                self.weights[step.name] = step.weight.float()
            elif isinstance(step, Weighted) and len(step.taken[0]) > 1:
                raise NotPiecewiseLinear(f"{step.name}: bounds know no norm of such a layer")
        self.last_use = {k: n for n, step in enumerate(steps) for k in step.sources}

    @torch.no_grad()
    def bound(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at points of a segment, and bounds on their deviation between points.

        Args:
            images: (M + 1, C, H, W) in the segment's order, at any spacing.

        Returns:
            Logits (M + 1, classes) at the images; upper bounds (M, classes) on their deviation
            from the straight line between neighbours; (M,) unstable units in windows.

        Raises:
            TooManyPieces: if the windows do not fit into `memory`.
        """
        self.intervals, self.names = len(images) - 1, 0
        self.bends = torch.zeros(self.intervals, dtype=torch.long, device=images.device)
        at: dict[int, tuple[Tensor, Deviation]] = {}
        for number, step in enumerate(self.steps):
            values = [at[k][0] for k in step.sources]
            strays = [at[k][1] for k in step.sources]
            if isinstance(step, Input):
                at[number] = images.contiguous(memory_format=torch.channels_last), None
            elif isinstance(step, Affine):
                at[number] = step.call(*values), self._affine(step, strays)
            elif isinstance(step, Rectifier):
                at[number] = self._rectifier(step, values[0], strays[0])
            elif isinstance(step, MaxPool):
                at[number] = self._max_pool(step, values[0], strays[0])
            for k in {k for k in step.sources if self.last_use[k] == number}:
                del at[k]
        logits, stray = at[len(self.steps) - 1]
        ball = self._ball(stray, self.steps[-1].shape)
        return logits, ball.channels.to(logits.dtype), self.bends

    def _affine(self, step: Affine, strays: list[Deviation]) -> Deviation:
        if all(each is None for each in strays):
            return None
        given = [each for each in strays if isinstance(each, Windows)]
        if len(given) == len(strays):
            found = self._in_windows(step, given)
            if found is not None:
                return found
        return self.norms.behind(step, list(map(self._ball, strays, step.taken)))

    def _in_windows(self, step: Affine, given: list[Windows]) -> Windows | None:
        """Windows after an affine step; None if it does not support them or they are too large."""
        if isinstance(step, Joined):
            return self._fitting(united(given, step.shape, None))
        if isinstance(step, Summed):
            return self._fitting(united(given, step.shape, step.signs))
        (windows,) = given
        if isinstance(step, Scaled):
            factors = step.scale.flatten().to(windows.patches.dtype)
            return replace(windows, patches=windows.patches * factors)
        if isinstance(step, Reshaped) and step.shape == windows.shape:
            return windows
        if not isinstance(step, Weighted) or step.grid is None or _covers(windows, step):
            return None
        weight = self.weights[step.name]
        return self._fitting(windows.convolved(weight, step.grid, step.groups, step.shape))

    def _fitting(self, windows: Windows) -> Windows:
        """The windows; raises TooManyPieces if they take too much memory."""
        size = windows.patches.numel() * windows.patches.element_size()
        if size > self.memory:
            count = len(windows.name)
            raise TooManyPieces(count, int(count * self.memory / size))
        return windows

    def _ball(self, stray: Deviation, shape: torch.Size) -> Ball:
        """By norms, of values of a shape."""
        if stray is None:
            zeros = torch.zeros(self.intervals, shape[0], dtype=torch.float64)
            return Ball.of_channels(zeros.to(self.bends.device))
        return Ball.of_units(stray.spread()) if isinstance(stray, Windows) else stray

    def _rectifier(
        self, step: Rectifier, values: Tensor, stray: Deviation
    ) -> tuple[Tensor, Deviation]:
        """Add a deviation for each unit that is unstable on an interval."""
        top = step.ceiling
        moves = spread = None
        if isinstance(stray, Windows):
            spread = stray.spread()
            low = torch.minimum(values[:-1], values[1:]) - spread
            high = torch.maximum(values[:-1], values[1:]) + spread
            bends, moves = _between(low, high, top), (low >= 0) & (high <= top)
        else:
            bends = _between(values[:-1], values[1:], top)
        units = bends.nonzero()
        at = tuple(units.unbind(1))
        radius = _gap(values[:-1][at], values[1:][at], top).float()
        if stray is None and values.ndim == 4:
            stray = none_yet(self.intervals, step.shape, values)
        if not isinstance(stray, Windows):
            return values.clamp(0, top), self._with(stray, step.shape, units, radius)
        if spread is not None and moves is not None:
            stray, radius = stray.masked(moves).without_zeros(), radius + spread[at]
        return values.clamp(0, top), self._grown(stray, units, radius)

    def _max_pool(
        self, step: MaxPool, values: Tensor, stray: Deviation
    ) -> tuple[Tensor, Deviation]:
        """Add a deviation for each window whose largest cell may change."""
        assert step.grid is not None
        largest, winner, gap = _pooled(step, values)
        if isinstance(stray, Windows) and _covers(stray, step):
            stray = self._ball(stray, values.shape[1:])
        if isinstance(stray, Ball):
            units = (winner < 0).nonzero()
            radius = gap[tuple(units.unbind(1))].float()
            return largest, self._with(behind_pool(step, stray), step.shape, units, radius)
        if stray is None:
            stray = none_yet(self.intervals, values.shape[1:], values)
        moved = stray.pooled(winner, step.grid, step.shape)
        if len(stray.name):
            shape = (self.intervals, *step.shape)
            touched = moved.places().unique()
            touched = touched[touched < shape[0] * shape[2] * shape[3]]
            changes, most = _unsettled(step, values, largest, winner, stray.spread(), touched)
            changed = put_back(changes, touched, shape)
            moved = moved.masked(~changed).without_zeros()
            winner = torch.where(changed, -1, winner)
            gap = gap + put_back(most, touched, shape)
        units = (winner < 0).nonzero()
        return largest, self._grown(moved, units, gap[tuple(units.unbind(1))])

    def _grown(self, windows: Windows, units: Tensor, radius: Tensor) -> Windows | None:
        """Add a window for each unit (n, 4) with deviation `radius` (n,)."""
        units, radius = units[radius > 0], radius[radius > 0]
        self.bends += units[:, 0].bincount(minlength=self.intervals)
        names = self.names + torch.arange(len(units), device=units.device)
        self.names += len(units)
        if len(units):
            windows = together(windows, born(units, radius, names, windows))
        return self._fitting(windows) if len(windows.name) else None

    def _with(
        self, ball: Ball | None, shape: torch.Size, units: Tensor, radius: Tensor
    ) -> Ball | None:
        """Add units (n, .) with deviations `radius` (n,)."""
        if not len(units):
            return ball
        self.bends += units[:, 0].bincount(minlength=self.intervals)
        squares = radius.new_zeros(self.intervals, shape[0], dtype=torch.float64)
        at = units[:, 0], units[:, 1]
        squares.index_put_(at, radius.double().square(), accumulate=True)
        return Ball.of_channels(squares.sqrt()) + self._ball(ball, shape)


def _covers(windows: Windows, step: Weighted | MaxPool) -> bool:
    """Whether windows would cover too much of the map after a step."""
    assert step.grid is not None
    return math.prod(windows.size_behind(step.grid)) > _COVER * math.prod(step.shape[1:])


def _between(first: Tensor, last: Tensor, top: float) -> Tensor:
    """Whether a rectifier has a kink between two values."""
    bends = (first > 0) ^ (last > 0)
    return bends if top == math.inf else bends | ((first > top) ^ (last > top))


def _gap(left: Tensor, right: Tensor, top: float) -> Tensor:
    """Largest deviation of a rectifier from its secant, on lines (n,) given by their ends."""
    gap = torch.zeros_like(left)
    ends = left.clamp(0, top), right.clamp(0, top)
    for kink in (0.0, top):
        if kink < math.inf:
            share = ((kink - left) / (right - left)).nan_to_num(0.0).clamp(0, 1)
            chord = torch.lerp(*ends, share)
            gap = torch.maximum(gap, (chord - torch.lerp(left, right, share).clamp(0, top)).abs())
    return gap


def _pooled(step: MaxPool, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A max pool at M + 1 points, on M intervals.

    Returns:
        Its values (M + 1, C, H', W'). Index (M, C, H', W') of the largest cell; -1 if it changes.
        Upper bounds (M, C, H', W') on the secant minus the largest line.
    """
    assert step.grid is not None
    largest, index = F.max_pool2d(values, *step.grid, ceil_mode=step.ceiled, return_indices=True)
    flat, at = values.flatten(2), index.flatten(2)
    # The larger of both ends' largest lines is below the chord by most where they cross.
    left = largest[:-1] - flat[:-1].gather(2, at[1:]).view_as(largest[1:])
    right = largest[1:] - flat[1:].gather(2, at[:-1]).view_as(largest[1:])
    # The left's largest being the right's, or the other way round, it is so all the way between.
    winner = torch.where(right == 0, index[:-1], torch.where(left == 0, index[1:], -1))
    gap = torch.where(winner < 0, left * right / (left + right), 0.0)
    return largest, winner, gap


def _unsettled(
    step: MaxPool,
    values: Tensor,
    largest: Tensor,
    winner: Tensor,
    spread: Tensor,
    touched: Tensor,
) -> tuple[Tensor, Tensor]:
    """Whether the largest cell may change when cells deviate by `spread` (M, C, H, W).

    Args:
        step: the pool.
        values: (M + 1, C, H, W), its input.
        largest: from `_pooled`.
        winner: from `_pooled`.
        spread: deviation of the values.
        touched: (n,) rows of (M H' W', C) to check.

    Returns:
        (n, C) whether it may change; (n, C) the largest deviation of a cell there, otherwise 0.
    """
    height, width = values.shape[2:]
    count = step.shape[1] * step.shape[2]
    interval, cells = touched // count, step.cells[touched % count]
    rows = torch.where(cells < 0, 0, cells) + (interval * height * width)[:, None]
    outside = (cells < 0)[..., None]
    best, strays = looked_up(winner, touched), looked_up(spread, rows)
    strays = strays.masked_fill(outside, 0.0)
    own = (strays * (cells[..., None] == best[:, None])).sum(1, keepdim=True)
    changes = best < 0
    for ends, tops in ((values[:-1], largest[:-1]), (values[1:], largest[1:])):
        ahead = looked_up(tops, touched)[:, None] - looked_up(ends, rows)
        near = (ahead < strays + own) & ~outside & (cells[..., None] != best[:, None])
        changes |= near.any(1)
    return changes, strays.amax(1) * changes
