"""Extrema of y - slope x of a smooth activation, by tangents and secants.

Between its inflections and kinks an activation is convex or concave. On such a part any tangent is
a bound on one side, and the ends of an interval on the other. So the minimum and maximum of
y - slope x over an interval are at a few points, up to the error of the point of contact, which the
bound includes.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...graph.activations import Activation

_REACH, _TOUCHING = 12.0, 2049  # largest |input| of curved parts; points of contact per part
_FAR = 1e4  # the same for functions of positive numbers
_OFF = 2.0**-44  # relative error of the float64 functions and derivatives


class Part(NamedTuple):
    """An interval on which an activation is convex or concave.

    Attributes:
        start, end: its ends.
        convex: False if concave.
        points, slopes: (n,) inputs, and the activation's slopes there, increasing.
    """

    start: float
    end: float
    convex: bool
    points: Tensor
    slopes: Tensor


class Shape:
    """An activation's convex and concave parts.

    Args:
        activation: with known inflections.
        like: a tensor on the device.
    """

    def __init__(self, activation: Activation, like: Tensor) -> None:
        assert activation.inflections is not None
        self.function, self.off = activation.function, activation.off
        ends = [-math.inf, *activation.inflections, math.inf]
        self.parts = [self._part(*pair, like) for pair in itertools.pairwise(ends)]

    def _part(self, start: float, end: float, like: Tensor) -> Part:
        low = max(start, min(end, _REACH) - 2 * _REACH)
        high = min(end, low + 2 * _REACH)
        points = torch.linspace(low, high, _TOUCHING, dtype=torch.float64, device=like.device)
        if start > 0:  # of a function of positive numbers, which is steepest where it starts
            points = start * (_FAR / start) ** torch.linspace(0, 1, _TOUCHING).to(points)
        slopes = self._slope_within(points, start, end)
        convex = bool(slopes[-1] >= slopes[0])
        if not convex:
            points, slopes = points.flip(0), slopes.flip(0)
        return Part(start, end, convex, points, slopes.cummax(0).values)

    def _slope_within(self, x: Tensor, start: float, end: float) -> Tensor:
        """The slope of a part of the line; at a kink, where it ends, not of the next one."""
        return self.slope(x.clamp(math.nextafter(start, end), math.nextafter(end, start)))

    def slope(self, x: Tensor) -> Tensor:
        """The activation's derivative."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.function(x).sum(), x)
        return slope

    def error(self, x: Tensor, slope: Tensor) -> Tensor:
        """Upper bound on the error of y - slope x for inputs up to this size."""
        size = self.function(x).abs() + self.function(-x).abs() + (1 + slope.abs()) * x.abs()
        return self.off + _OFF * (size + 1)

    def most(self, low: Tensor, high: Tensor, slope: Tensor, sign: int = 1) -> Tensor:
        """Upper bound on sign (y - slope x) over [low, high], elementwise."""
        found = torch.full_like(low, -torch.inf)
        for start, end, convex, points, slopes in self.parts:
            first, last = low.clamp_min(start), high.clamp_max(end)
            at_ends = [sign * (self.function(x) - slope * x) for x in (first, last)]
            if convex == (sign < 0):
                touch = _between(points, slopes, slope).maximum(first).minimum(last)
                steep, value = self._slope_within(touch, start, end), self.function(touch)
                rises = [steep * (x - touch) for x in (first, last)]
                at_ends = [
                    sign * (value + rise - slope * x) + _OFF * rise.abs()
                    for rise, x in zip(rises, (first, last), strict=True)
                ]
            here = torch.maximum(*at_ends)
            found = torch.where(first <= last, found.maximum(here), found)
        found = found + self.error(torch.maximum(low.abs(), high.abs()), slope)
        return torch.where(found.isfinite() & (low <= high), found, torch.inf)

    def ends(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper bounds on the value over [low, high]."""
        flat = torch.zeros_like(low)
        return -self.most(low, high, flat, -1), self.most(low, high, flat)

    def is_all(self, convex: bool, low: Tensor, high: Tensor) -> Tensor:
        """Whether [low, high] is in one convex (or concave) part."""
        found = torch.zeros_like(low, dtype=torch.bool)
        for part in self.parts:
            if part.convex == convex:
                found |= (low >= part.start) & (high <= part.end)
        return found


def _between(points: Tensor, slopes: Tensor, slope: Tensor) -> Tensor:
    """Where about a slope is met, of slopes that rise at points."""
    after = torch.searchsorted(slopes, slope.contiguous()).clamp(1, len(points) - 1)
    width = (slopes[after] - slopes[after - 1]).clamp_min(torch.finfo(slopes.dtype).tiny)
    share = ((slope - slopes[after - 1]) / width).clamp(0, 1)
    return torch.lerp(points[after - 1], points[after], share)
