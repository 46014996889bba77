"""Sound bounds on a network over subdomains of a hull, by forward and backward passes.

A subdomain is the simplex of K images. Every bound is a linear function on it, stored by its values
at the K vertices. Its minimum and maximum are among these, so the last step loses nothing. The
forward pass bounds every unit once (the work of K + 1 images). The backward pass (CROWN: Zhang et
al. 2018) propagates a linear function of one layer towards the pixels, with a linear lower and
upper bound at each unstable unit. It stops after the first activations, where forward bounds are
already exact.

Bounds hold in exact arithmetic: docs/explanation/method.md ("Rounding") has the argument. Values
that depend only on weights are taken as float64 gives them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .backward import Centred, Descent, Enclosure, Spread, Units, descents
from .planes import of_product, of_softmax
from .relaxation import Bend, Curved, Lines, between, rounding, tops_of, windows
from .steps import (
    Affine,
    Curve,
    Input,
    MaxPool,
    Product,
    Rectifier,
    Softmax,
    Step,
    check_time,
)

_WORK = 2**25  # most numbers per subdomain in a layer's backward pass
_UNITS = 2**14  # most units that decide how subdomains are halved


class Bounds:
    """Bounds on every step of a network over P subdomains of a hull.

    Args:
        steps: of the network.
        vertices: (P, K, C, H, W) of each subdomain.
        error: (P, K, C, H, W) or a number, bound on the error of each pixel.
        work: unstable units of a layer also get a backward pass, if its rows have at most so many
            numbers.
        until: deadline by the monotonic clock; raises OutOfTime.
    """

    @torch.no_grad()
    def __init__(
        self,
        steps: Sequence[Step],
        vertices: Tensor,
        error: Tensor | float,
        work: int = _WORK,
        until: float = math.inf,
    ) -> None:
        self.steps, self.work, self.until = steps, work, until
        self.pieces, self.corners = vertices.shape[:2]
        users = {k: step for step in steps for k in step.sources
                 if isinstance(step, Rectifier | Curve)}  # fmt: skip
        self.at: list[Enclosure] = []
        for number, step in enumerate(steps):
            check_time(until)
            if isinstance(step, Input):
                self.at.append(self._input(step, vertices, error))
            elif isinstance(step, Affine):
                self.at.append(self._affine(step))
            elif isinstance(step, Rectifier):
                self.at.append(self._rectifier(step))
            elif isinstance(step, Curve):
                self.at.append(self._curve(step))
            elif isinstance(step, Product | Softmax):
                self.at.append(self._plane(step))
            elif isinstance(step, MaxPool):
                self.at.append(self._max_pool(step))
            _widen(self.at[-1])
            if number in users and step.bends > 1:
                self.tighten(number, users[number])

    def _flat(self, values: Tensor) -> Tensor:
        return values.flatten(0, 1)

    def _charge(self, step: Step, terms: int, size: Tensor) -> Tensor:
        """Rounding error of a step: `size` (P, ...) bounds the factors of a row's entries."""
        return rounding(step.size + terms + 2 * len(self.steps), size.flatten(1))

    def _enclosure(self, step: Step, middle: Tensor, radius: Tensor, toll: Tensor) -> Enclosure:
        low, high = (middle - radius).amin(1), (middle + radius).amax(1)
        return Enclosure(middle, radius, low, high, toll)

    def _input(self, step: Step, vertices: Tensor, error: Tensor | float) -> Enclosure:
        radius = torch.zeros_like(vertices) + error
        toll = self._charge(step, 0, (vertices.abs() + radius).amax(1))
        return self._enclosure(step, vertices, radius, toll)

    def _affine(self, step: Affine) -> Enclosure:
        given = [self.at[k] for k in step.sources]
        middle = step.call(*(self._flat(each.middle) for each in given))
        middle = middle.unflatten(0, (self.pieces, self.corners))
        both = [torch.cat([self._flat(each.radius), each.largest]) for each in given]
        spread = step.spread(both)
        radius, size = spread.split([self.pieces * self.corners, self.pieces])
        size = size + step.offset.abs()
        radius = radius.unflatten(0, (self.pieces, self.corners))
        radius = radius + (rounding(step.terms, size) + step.error)[:, None]
        toll = self._charge(step, step.terms, size) + step.error
        return self._enclosure(step, middle, radius, toll)

    def _rectifier(self, step: Rectifier) -> Enclosure:
        given, top = self.at[step.sources[0]], step.ceiling
        x = given.range
        bend = Bend(x, top, step.tilt)
        lines = bend.lines()
        convex = (x.high <= top)[:, None]  # there a value is below the mix of the vertices'
        ends = torch.maximum(bend.value(x.below), bend.value(x.above))
        upper = torch.where(convex, ends, x.most(lines.high_slope) + lines.high_start)
        lower = lines.low_start - x.most(-lines.low_slope)
        middle, radius = between(lower, upper)
        if step.is_tilted or top < math.inf:  # differences of larger numbers
            radius = radius + rounding(4, x.below.abs() + x.above.abs())
        found = self._of_lines(step, given, lines, middle, radius)
        if not step.is_tilted:
            found.low, found.high = x.low.clamp(0, top), x.high.clamp(0, top)
        return found

    def _curve(self, step: Curve) -> Enclosure:
        given = self.at[step.sources[0]]
        curved = Curved(given.range, step.curve)
        lines = curved.lines()
        least, most = curved.own_ends()  # of each vertex's interval, where these decide
        lower = lines.low_start - given.range.most(-lines.low_slope)
        upper = given.range.most(lines.high_slope) + lines.high_start
        lower = torch.where((least.mean(1) > lower.mean(1))[:, None], least, lower)
        upper = torch.where((most.mean(1) < upper.mean(1))[:, None], most, upper)
        middle, radius = between(lower, upper)
        radius = radius + rounding(4, given.middle.abs() + given.radius)
        found = self._of_lines(step, given, lines, middle, radius)
        found.low, found.high = step.curve.ends(given.low, given.high)
        return found

    def _of_lines(
        self, step: Step, given: Enclosure, lines: Lines, middle: Tensor, radius: Tensor
    ) -> Enclosure:
        size = torch.maximum(lines.low_start.abs(), lines.high_start.abs()).amax(1)
        size = size + given.largest
        found = self._enclosure(step, middle, radius, self._charge(step, 0, size))
        return replace(found, lines=lines)

    def _plane(self, step: Product | Softmax) -> Enclosure:
        given = [self.at[k] for k in step.sources]
        if isinstance(step, Product):
            (plane, found), terms = of_product(step, *given), step.terms
        else:
            (plane, found), terms = of_softmax(step, *given), step.shape[step.axis]
        rest = (plane.middle.abs() + plane.radius).amax(1)
        toll = self._charge(step, terms, plane.size + rest + found.largest)
        return Enclosure(found.middle, found.radius, found.low, found.high, toll, plane=plane)

    def _max_pool(self, step: MaxPool) -> Enclosure:
        x = self.at[step.sources[0]].range
        tops, lower, upper = tops_of(step, x)
        middle, radius = (each.unflatten(-1, step.shape[-2:]) for each in between(lower, upper))
        found = self._enclosure(step, middle, radius, torch.empty(0))
        found.low, found.high = (
            windows(step, each).amax(-1).unflatten(-1, step.shape[-2:]) for each in (x.low, x.high)
        )
        found.toll = self._charge(step, 0, torch.maximum(found.low.abs(), found.high.abs()))
        return replace(found, tops=tops)

    def tighten(self, number: int, user: Step) -> None:
        """Bound a step by a backward pass as well, and keep the better bounds.

        Only units at which `user` is unstable have rows, separately for each subdomain; none if
        there are too many.
        """
        found = self.at[number]
        low, high = found.low.flatten(1), found.high.flatten(1)
        bends = low < high if isinstance(user, Curve) else (low < 0) & (high > 0)
        count = int(bends.sum(1).max())
        way = sum(step.size for step in self.steps[: number + 1])
        if not 0 < count * way <= self.work:
            return
        units = bends.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        mine = bends.gather(1, units)  # a subdomain with fewer has rows of zeros
        below, above = (each.mT for each in self.spread(number, Units(units, mine.to(low))).ends())
        every = units[:, None].expand(-1, self.corners, -1)
        middle, radius = found.middle.flatten(2), found.radius.flatten(2)
        old = middle.gather(2, every), radius.gather(2, every)
        old_below, old_above = old[0] - old[1], old[0] + old[1]
        worse = (below.mean(1) <= old_below.mean(1)) | ~mine
        new_below = torch.where(worse[:, None], old_below, below)
        worse = (above.mean(1) >= old_above.mean(1)) | ~mine
        new_above = torch.where(worse[:, None], old_above, above)
        new = between(new_below, new_above)
        found.middle = middle.scatter(2, every, torch.where(mine[:, None], new[0], old[0]))
        found.radius = radius.scatter(2, every, torch.where(mine[:, None], new[1], old[1]))
        found.middle = found.middle.unflatten(2, self.steps[number].shape)
        found.radius = found.radius.unflatten(2, self.steps[number].shape)
        least = torch.maximum(low.gather(1, units), below.amin(1))
        most = torch.minimum(high.gather(1, units), above.amax(1))
        least = torch.where(mine, least, low.gather(1, units))
        most = torch.where(mine, most, high.gather(1, units))
        found.low = low.scatter(1, units, least).view_as(found.low)
        found.high = high.scatter(1, units, most).view_as(found.high)

    def lower(self, number: int, rows: Tensor) -> Tensor:
        """Lower bounds of linear functions of one step's values.

        Args:
            number: index of the step.
            rows: coefficients (S, N), or (P, S, N) for each subdomain.

        Returns:
            (P, S, K): a linear lower bound on each subdomain, by values at its vertices; -inf if
            there is no finite bound.
        """
        found = descents(Descent, self.steps, self.at, number, rows, self.until)
        self.met = {k: torch.cat([each.met[k] for each in found], 1) for k in found[0].met}
        return torch.cat([each.bound() for each in found], 1)

    def spread(self, number: int, rows: Tensor | Units) -> Spread:
        """Linear functions of one step's values with their deviations (see `Spread`)."""
        found = descents(Centred, self.steps, self.at, number, rows, self.until)
        self.met = {k: torch.stack([each.met[k] for each in found]).sum(0) for k in found[0].met}
        columns = torch.cat([torch.cat(each.columns, 2) for each in found], 1)
        radii = torch.cat(found[0].radii, 2)
        middle, reach, toll = (
            torch.cat([getattr(each, name) for each in found], 1)
            for name in ("total", "reach", "toll")
        )
        return Spread(middle, reach, toll, columns, radii)

    def parts(self, weights: dict[int, Tensor], halvings: Tensor) -> "Parts":
        """Halve each subdomain several times, across the edges with the most nonlinearity.

        Args:
            weights: (P, N) of some activations' units, by index of their step.
            halvings: (P,) number of halvings of each.
        """
        images = self.at[0].middle.flatten(2)
        inner = images @ images.mT
        bent = []
        for number, weight in weights.items():
            step = self.steps[number]
            if not isinstance(step, Rectifier | Curve):
                continue
            given = self.at[step.sources[0]]
            weight = weight * step.bends_on(given.low, given.high).flatten(1)
            units = (weight > 0).any(0).nonzero().flatten()
            x = given.middle.flatten(2).index_select(2, units)
            bent.append(Bent(x, weight.index_select(1, units), step.value))
        heaviest = _heaviest(bent)
        every = torch.arange(self.pieces, device=images.device)
        inside = torch.eye(self.corners, dtype=images.dtype, device=images.device)
        cut = Parts(every, inside.expand(self.pieces, -1, -1))
        for turn in range(int(halvings.max())):
            check_time(self.until)
            going = halvings[cut.piece] > turn
            stay, go = (Parts(*(each[which] for each in cut)) for which in (~going, going))
            lengths = _lengths(go.inside @ inner[go.piece] @ go.inside.mT)
            parts = [
                Bent(go.inside @ x[go.piece], weight[go.piece], value)
                for x, weight, value in heaviest
            ]
            edge = _most_bent(parts, lengths)
            halves = Parts(go.piece.repeat_interleave(2), halve(go.inside, *edge))
            cut = Parts(*(torch.cat(both) for both in zip(stay, halves, strict=True)))
        return cut


def _widen(found: Enclosure) -> None:
    """Replace overflowed bounds by infinite ones, in place, so they are never NaN.

    Comparisons with NaN are false, and a comparison must not decide an unknown value.
    """
    lost = found.middle.isnan() | found.radius.isnan()
    if not lost.any():
        return
    found.middle = found.middle.masked_fill(lost, 0)
    found.radius = found.radius.masked_fill(lost, torch.inf)
    found.low = found.low.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    found.high = found.high.nan_to_num(torch.inf, torch.inf, -torch.inf)


class Parts(NamedTuple):
    """Parts of subdomains.

    Attributes:
        piece: (Q,) index of each part's subdomain.
        inside: (Q, K, K) its vertices, by weights of the subdomain's.
    """

    piece: Tensor
    inside: Tensor


def halve(weights: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Halve subdomains (n, V, K) across an edge each: (2n, V, K), halves next to each other."""
    each = torch.arange(len(weights), device=weights.device)
    middle = (weights[each, first] + weights[each, second]) / 2
    halves = torch.stack([weights, weights], 1)
    halves[each, 0, first] = middle
    halves[each, 1, second] = middle
    return halves.flatten(0, 1)


class Bent(NamedTuple):
    """An activation's units over P subdomains.

    Attributes:
        x: (P, K, N) inputs at the vertices.
        weight: (P, N) of each unit.
        value: the activation.
    """

    x: Tensor
    weight: Tensor
    value: Callable[[Tensor], Tensor]


def _heaviest(bent: Sequence[Bent]) -> Sequence[Bent]:
    """The units that can bend most by their weight: all of them, or `_UNITS`."""
    counts = [x.shape[2] for x, _, _ in bent]
    if sum(counts) <= _UNITS:
        return bent
    ends = ((value(x), weight) for x, weight, value in bent)
    most = torch.cat([((y.amax(1) - y.amin(1)) * weight).amax(0) for y, weight in ends])
    kept = torch.zeros_like(most, dtype=torch.bool)
    kept[most.topk(_UNITS).indices] = True
    return [
        Bent(x[..., units], weight[:, units], value)
        for (x, weight, value), units in zip(bent, kept.split(counts), strict=True)
    ]


def _most_bent(bent: Sequence[Bent], lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The edge of each subdomain with the most nonlinearity at its middle: two vertices (P,).

    Args:
        bent: the units that count.
        lengths: (P, K, K) of the edges; the longest is taken if nothing is nonlinear.
    """
    corners = lengths.shape[1]
    first, second = torch.triu_indices(corners, corners, 1, device=lengths.device)
    scores = lengths.new_zeros(len(lengths), len(first))
    for x, weight, value in bent:
        values = value(x)
        for k, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            middle = value((x[:, i] + x[:, j]) / 2)
            scores[:, k] += (((values[:, i] + values[:, j]) / 2 - middle).abs() * weight).sum(1)
    flat = ~(scores > 0).any(1, keepdim=True)
    edge = torch.where(flat, lengths[:, first, second], scores).argmax(1)
    return first[edge], second[edge]


def _lengths(inner: Tensor) -> Tensor:
    """Squares of distances between points, by their inner products (P, K, K)."""
    square = inner.diagonal(dim1=1, dim2=2)
    return square[:, None] + square[:, :, None] - 2 * inner
