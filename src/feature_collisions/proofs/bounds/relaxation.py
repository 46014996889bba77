"""Linear relaxations of rectifiers, smooth activations and max pools on a subdomain of a hull.

A subdomain is the simplex of K points. A linear function on it is stored by its values at the K
vertices.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .curves import Shape
from .steps import MaxPool


def rounding(terms: int, size: Tensor) -> Tensor:
    """Bound on the rounding error of a sum of `terms` products with total absolute value `size`.

    It is more than twice gamma (Higham 2002, section 3.1), to cover rounding in `size` and in the
    widened bound.
    """
    limits = torch.finfo(size.dtype)
    return (terms + 4) * limits.eps * size + terms * limits.tiny


def between(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and radius of an interval; the radius reaches both ends however they round."""
    middle = (lower + upper) / 2
    radius = torch.maximum(upper - middle, middle - lower)
    return middle, radius + rounding(2, upper.abs() + lower.abs())


class Range(NamedTuple):
    """Bounds on the values x of a step on P subdomains.

    Attributes:
        below, above: (P, K, ...) linear bounds, by values at the vertices.
        low, high: (P, ...) constant bounds.
    """

    below: Tensor
    above: Tensor
    low: Tensor
    high: Tensor

    def most(self, slope: Tensor) -> Tensor:
        """Upper bound (P, K, ...) on slope x for slopes (P, ...)."""
        slope = slope[:, None]
        return torch.maximum(slope * self.below, slope * self.above)


@dataclass
class Values:
    """Bounds on the values of a step over P subdomains.

    At the point with weights w a value is within sum_k w_k radius_k of sum_k w_k middle_k, and
    between `low` and `high`.

    Attributes:
        middle, radius: (P, K, ...).
        low, high: (P, ...).
    """

    middle: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor

    @property
    def range(self) -> Range:
        """As a Range, from the ends of intervals."""
        return Range(self.middle - self.radius, self.middle + self.radius, self.low, self.high)

    @property
    def largest(self) -> Tensor:
        """(P, ...) largest absolute value over a subdomain, from the vertices' intervals."""
        return (self.middle.abs() + self.radius).amax(1)


class Lines(NamedTuple):
    """Below and above a rectifier's value y of x: slope x + start, the start linear on the piece.

    Slopes are (P, ...), starts (P, K, ...), by their values at the vertices. `floor` (P, K, ...) is
    where a line below starts that has the slope of the one above.
    """

    low_slope: Tensor
    low_start: Tensor
    high_slope: Tensor
    high_start: Tensor
    floor: Tensor


class Bend(NamedTuple):
    """y = min(max(x, 0), top) - tilt x of the values x in a range (see `steps.Rectifier`).

    Slopes of lines are chosen freely, and where they start is what they demand. Where y is convex,
    so is y - slope x, and below the mix of its values at the vertices' ends: each vertex pays for
    its own interval alone. Likewise from below where y is concave; elsewhere the ends of
    [low, high] and the bends between them decide. A vertex's ends may lie beyond [low, high], so
    that max(x, 0), or min(x, top), stands for the bend there: it is the bend wherever x can be, and
    convex, or concave, everywhere.
    """

    x: Range
    top: float
    tilt: Tensor | float

    @property
    def is_on(self) -> Tensor:
        """(P, ...) whether y is (1 - tilt) x everywhere, and not `is_off`; x may be only 0."""
        return (self.x.low >= 0) & (self.x.high <= self.top) & ~self.is_off

    @property
    def is_off(self) -> Tensor:
        """(P, ...) whether y is -tilt x everywhere."""
        return self.x.high <= 0

    @property
    def is_full(self) -> Tensor:
        """(P, ...) whether y is top - tilt x everywhere, and not `is_on`; x may be only top."""
        return (self.x.low >= self.top) & ~self.is_on

    def value(self, x: Tensor, least: float = 0.0, most: float = math.inf) -> Tensor:
        """y, or what stands for it."""
        return x.clamp(least, most) - self.tilt * x

    def chord(self) -> Tensor:
        """A slope (P, ...) for a line above the rectifier, without its tilt."""
        below, above, low, high = self.x
        tiny = torch.finfo(low.dtype).tiny
        passed = above.clamp(0) - below.clamp(0)
        slope = (passed.sum(1) / (above - below).sum(1).clamp_min(tiny)).clamp(0, 1)
        if self.top < math.inf:
            to_top = (self.top / (self.top - low).clamp_min(self.top)).clamp(0, 1)
            slope = torch.where(high > self.top, to_top * (self._middle() < self.top), slope)
        slope = torch.where(self.is_on, 1, slope)
        return torch.where(self.is_off | self.is_full, 0, slope)

    def lines(self) -> Lines:
        """Linear lower and upper bounds."""
        low_slope, high_slope = self._low_slope() - self.tilt, self.chord() - self.tilt
        starts = self.start_below(low_slope), self.start_above(high_slope)
        floor = self.start_below(high_slope)
        if self.top < math.inf:
            ends = self._demand(
                low_slope[:, None], [self.x.below, self.x.above], -math.inf, self.top
            )
            concave = ends.amin(0) - self._error()
            starts = torch.where((self.x.low >= 0)[:, None], concave, starts[0]), starts[1]
        straight = (self.is_on | self.is_off)[:, None]
        under, over, floor = (torch.where(straight, 0, each) for each in (*starts, floor))
        return Lines(low_slope, under, high_slope, over, floor)

    def start_below(self, slope: Tensor) -> Tensor:
        """Where a line of this slope (P, ...) below y starts: (P, K, ...)."""
        start = self._demand(slope, self._points(), 0, self.top).amin(0)[:, None]
        return (start - self._error()).expand_as(self.x.below)

    def start_above(self, slope: Tensor) -> Tensor:
        """Where a line of this slope (P, ...) above y starts: (P, K, ...)."""
        ends = self._demand(slope[:, None], [self.x.below, self.x.above], 0, math.inf).amax(0)
        if self.top < math.inf:
            of_all = self._demand(slope, self._points(), 0, self.top).amax(0)[:, None]
            ends = torch.where((self.x.high <= self.top)[:, None], ends, of_all)
        return ends + self._error()

    def _low_slope(self) -> Tensor:
        """Of the bend itself, for a line below it."""
        low, high, top = self.x.low, self.x.high, self.top
        middle = self._middle()
        slope = (middle > 0).to(low)
        if top < math.inf:
            tiny = torch.finfo(low.dtype).tiny
            chord = (high.clamp(0, top) - low.clamp(0, top)) / (high - low).clamp_min(tiny)
            from_zero = (top / high.clamp_min(top)).clamp(0, 1) * (middle > 0)
            slope = torch.where(high > top, torch.where(low >= 0, chord, from_zero), slope)
        slope = torch.where(self.is_on, 1, slope)
        return torch.where(self.is_off | self.is_full, 0, slope)

    def _middle(self) -> Tensor:
        return (self.x.below + self.x.above).mean(1) / 2

    def _points(self) -> list[Tensor]:
        """The ends of [low, high] and the bends between them."""
        low, high = self.x.low, self.x.high
        bends = [0.0] if self.top == math.inf else [0.0, self.top]
        return [low, high, *(low.new_full((), bend).clamp(low, high) for bend in bends)]

    def _demand(self, slope: Tensor, places: list[Tensor], least: float, most: float) -> Tensor:
        return torch.stack([self.value(x, least, most) - slope * x for x in places])

    def _error(self) -> Tensor:
        """What rounding makes of a start."""
        return rounding(4, 3 * torch.maximum(self.x.low.abs(), self.x.high.abs()))[:, None]


class Curved(NamedTuple):
    """y = g(x) of the values x in a range, g an activation.

    If g is convex on all of the vertices' intervals, y - slope x is below the interpolation of its
    values at their ends, so each vertex needs only its interval. If g is concave, the same holds
    from below. Otherwise [low, high] decides.
    """

    x: Range
    shape: Shape

    def lines(self) -> Lines:
        """Linear lower and upper bounds: secant or tangent, the closer one in the middle."""
        low, high = self.x.low, self.x.high
        width = high - low
        middle = (low + high) / 2
        tangent = self.shape.slope(middle)
        ends = self.shape.function(torch.stack([low, high]))
        secant = torch.where(width > 1e-6, (ends[1] - ends[0]) / width.clamp_min(1e-6), tangent)
        both = [(slope, *self._starts(slope)) for slope in (tangent, secant)]
        below = [start.mean(1) + slope * middle for slope, start, _ in both]
        above = [start.mean(1) + slope * middle for slope, _, start in both]
        first_below, first_above = below[0] >= below[1], above[0] <= above[1]
        low_slope, high_slope = (
            torch.where(first, tangent, secant) for first in (first_below, first_above)
        )
        low_start = torch.where(first_below[:, None], both[0][1], both[1][1])
        high_start = torch.where(first_above[:, None], both[0][2], both[1][2])
        floor = torch.where(first_above[:, None], both[0][1], both[1][1])
        return Lines(low_slope, low_start, high_slope, high_start, floor)

    def own_ends(self) -> tuple[Tensor, Tensor]:
        """Minimum and maximum from the vertices' intervals, (P, K, ...) each.

        Infinite on a side that they do not bound.
        """
        flat = torch.zeros_like(self.x.low)
        return -self._own(flat, -1), self._own(flat, 1)

    def _starts(self, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Where lines of a slope (P, ...) below and above y start: (P, K, ...) each."""
        return -self._most(slope, -1), self._most(slope, 1)

    def _most(self, slope: Tensor, sign: int) -> Tensor:
        whole = self.shape.most(self.x.low, self.x.high, slope, sign)[:, None]
        own = self._own(slope, sign)  # all vertices of a unit or none
        return torch.where(own.isfinite(), own, whole.expand_as(own))

    def _own(self, slope: Tensor, sign: int) -> Tensor:
        """Maximum of sign (y - slope x) from the vertices' intervals, if it is convex."""
        below, above, steep = self.x.below, self.x.above, slope[:, None]
        ends = [sign * (self.shape.function(x) - steep * x) for x in (below, above)]
        error = self.shape.error(torch.maximum(below.abs(), above.abs()), steep)
        mixed = self.shape.is_all(sign > 0, below.amin(1), above.amax(1))[:, None]
        found = torch.maximum(*ends) + error
        return torch.where(mixed & found.isfinite().all(1, keepdim=True), found, torch.inf)


class Tops(NamedTuple):
    """Representative cell of each window of a max pool (P, C, windows), and whether it is exact."""

    cell: Tensor
    alone: Tensor


def windows(step: MaxPool, values: Tensor) -> Tensor:
    """Cells (..., windows, cells) of each window; -inf outside of the map."""
    found = values.flatten(-2)[..., step.cells.clamp_min(0)]
    return found.masked_fill(step.cells < 0, -torch.inf)


def tops_of(step: MaxPool, x: Range) -> tuple[Tops, Tensor, Tensor]:
    """Representative cells of windows, and linear bounds (P, K, C, windows).

    If one cell is the largest everywhere, the bounds are those of the cell.
    """
    place = windows(step, x.below.mean(1)).argmax(-1, keepdim=True)
    least, most = windows(step, x.low), windows(step, x.high)
    others = most.scatter(-1, place, -torch.inf).amax(-1, keepdim=True)
    alone = least.gather(-1, place) >= others
    cell = step.cells.clamp_min(0).expand_as(most).gather(-1, place)
    tops = Tops(cell[..., 0], alone[..., 0])
    chosen = tops.cell[:, None].expand(-1, x.below.shape[1], -1, -1)
    lower, upper = (each.flatten(-2).gather(-1, chosen) for each in (x.below, x.above))
    upper = torch.where(tops.alone[:, None], upper, windows(step, x.above).amax(-1))
    return tops, lower, upper
