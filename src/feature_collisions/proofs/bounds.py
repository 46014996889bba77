"""Sound bounds on a piecewise linear network over pieces of a hull: carried forward and backward.

A piece is the simplex of K images. Every bound is a linear function on it, held by its values at
the K vertices; its least and its largest value are among these, so that the last step loses
nothing. Forward, a bound of every unit goes through the network once (K + 1 images' work). Backward
(CROWN: Zhang et al. 2018), a linear function of one layer is carried towards the pixels: where it
meets a bend, by a line below and a line above it; it stops behind the first bends, whose forward
bounds are the best there are.

They hold in exact arithmetic: docs/method.md ("Rounding") has the argument. What a network computes
of its weights alone is taken as float64 gives it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .steps import Affine, Input, MaxPool, Rectifier, Step

_WORK = 2**25  # numbers a piece that rows of a layer's bends may pass on their way
_MEMORY = 2**27  # bytes of the rows that are carried backward at once
_HARDLY = 1e-9  # of the largest deviation: what is smaller counts as rounding


def rounding(terms: int, size: Tensor) -> Tensor:
    """What a sum of `terms` products can be off by, whose sizes add up to `size`.

    Twice gamma and more (Higham 2002, section 3.1): rounding in `size` and in a bound that is
    widened are covered too.
    """
    limits = torch.finfo(size.dtype)
    return (terms + 4) * limits.eps * size + terms * limits.tiny


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


class Tops(NamedTuple):
    """Of each window of a max pool (P, C, windows): its cell that stands for it, and if for all."""

    cell: Tensor
    alone: Tensor


@dataclass
class Enclosure:
    """Where the values of a step lie over P pieces.

    At the point with weights w a value is within sum_k w_k radius_k of sum_k w_k middle_k, and
    between `low` and `high`.

    Attributes:
        middle, radius: (P, K, ...).
        low, high: (P, ...).
        toll: (P, N) what a row that is carried backward through the step pays for rounding, per
            unit of its entries.
        lines: of a rectifier.
        tops: of a max pool.
    """

    middle: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor
    toll: Tensor
    lines: Lines | None = None
    tops: Tops | None = None


class Bounds:
    """Bounds of every step of a network over P pieces of a hull.

    Args:
        steps: of the network.
        vertices: (P, K, C, H, W), each piece's.
        error: (P, K, C, H, W) or a number, how far each pixel may be off.
        work: units that bend are bounded backward, too, where the rows of a layer's pass at most
            so many numbers on their way to the pixels.
    """

    @torch.no_grad()
    def __init__(
        self, steps: Sequence[Step], vertices: Tensor, error: Tensor | float, work: int = _WORK
    ) -> None:
        self.steps, self.work = steps, work
        self.pieces, self.corners = vertices.shape[:2]
        bent = {k for step in steps if isinstance(step, Rectifier) for k in step.sources}
        self.at: list[Enclosure] = []
        for number, step in enumerate(steps):
            if isinstance(step, Input):
                self.at.append(self._input(step, vertices, error))
            elif isinstance(step, Affine):
                self.at.append(self._affine(step))
            elif isinstance(step, Rectifier):
                self.at.append(self._rectifier(step))
            elif isinstance(step, MaxPool):
                self.at.append(self._max_pool(step))
            if number in bent and step.bends > 1:
                self.tighten(number)

    def _flat(self, values: Tensor) -> Tensor:
        return values.flatten(0, 1)

    def _charge(self, step: Step, terms: int, size: Tensor) -> Tensor:
        """The toll of a step: `size` (P, ...) bounds what a row's entries are multiplied with."""
        return rounding(step.size + terms + 2 * len(self.steps), size.flatten(1))

    def _enclosure(self, step: Step, middle: Tensor, radius: Tensor, toll: Tensor) -> Enclosure:
        low, high = (middle - radius).amin(1), (middle + radius).amax(1)
        return Enclosure(middle, radius, low, high, toll)

    def _input(self, step: Step, vertices: Tensor, error: Tensor | float) -> Enclosure:
        radius = torch.zeros_like(vertices) + error
        toll = self._charge(step, 0, _largest(vertices, radius))
        return self._enclosure(step, vertices, radius, toll)

    def _affine(self, step: Affine) -> Enclosure:
        given = [self.at[k] for k in step.sources]
        middle = step.call(*(self._flat(each.middle) for each in given))
        middle = middle.unflatten(0, (self.pieces, self.corners))
        both = [
            torch.cat([self._flat(each.radius), _largest(each.middle, each.radius)])
            for each in given
        ]
        spread = step.spread(both)
        radius, size = spread.split([self.pieces * self.corners, self.pieces])
        size = size + step.offset.abs()
        radius = radius.unflatten(0, (self.pieces, self.corners))
        radius = radius + rounding(step.terms, size)[:, None]
        return self._enclosure(step, middle, radius, self._charge(step, step.terms, size))

    def _rectifier(self, step: Rectifier) -> Enclosure:
        given, top = self.at[step.sources[0]], step.ceiling
        below, above = given.middle - given.radius, given.middle + given.radius
        lines = _lines(below, above, given.low, given.high, top)
        convex = (given.high <= top)[:, None]  # there a value is below the mix of the vertices'
        line = lines.high_slope[:, None] * above + lines.high_start
        upper = torch.where(convex, above.relu(), line)
        lower = lines.low_slope[:, None] * below + lines.low_start
        middle, radius = _between(lower, upper)
        size = torch.maximum(lines.low_start.abs(), lines.high_start.abs()).amax(1)
        size = size + _largest(given.middle, given.radius)
        found = self._enclosure(step, middle, radius, self._charge(step, 0, size))
        found.low, found.high = given.low.clamp(0, top), given.high.clamp(0, top)
        return replace(found, lines=lines)

    def _max_pool(self, step: MaxPool) -> Enclosure:
        given = self.at[step.sources[0]]
        outside = step.cells < 0
        cells = step.cells.clamp_min(0)

        def windows(values: Tensor) -> Tensor:
            found = values.flatten(-2)[..., cells]
            return found.masked_fill(outside, -torch.inf)

        below, above = given.middle - given.radius, given.middle + given.radius
        place = windows(below.mean(1)).argmax(-1, keepdim=True)
        low, high = windows(given.low), windows(given.high)
        others = high.scatter(-1, place, -torch.inf).amax(-1, keepdim=True)
        alone = low.gather(-1, place) >= others
        cell = cells.expand_as(high).gather(-1, place)
        tops = Tops(cell[..., 0], alone[..., 0])
        chosen = tops.cell[:, None].expand(-1, self.corners, -1, -1)
        lower = below.flatten(-2).gather(-1, chosen)
        upper = torch.where(
            tops.alone[:, None], above.flatten(-2).gather(-1, chosen), windows(above).amax(-1)
        )
        middle, radius = (each.unflatten(-1, step.shape[-2:]) for each in _between(lower, upper))
        found = self._enclosure(step, middle, radius, torch.empty(0))
        found.low, found.high = (
            each.amax(-1).unflatten(-1, step.shape[-2:]) for each in (low, high)
        )
        found.toll = self._charge(step, 0, torch.maximum(found.low.abs(), found.high.abs()))
        return replace(found, tops=tops)

    def tighten(self, number: int) -> None:
        """Bound a step backward, too, and keep of both bounds what is better.

        Rows are carried for the units that bend alone, each piece's own; none where they are many.
        """
        found = self.at[number]
        low, high = found.low.flatten(1), found.high.flatten(1)
        bends = (low < 0) & (high > 0)
        count = int(bends.sum(1).max())
        way = sum(step.size for step in self.steps[: number + 1])
        if not 0 < count * way <= self.work:
            return
        units = bends.int().argsort(dim=1, descending=True, stable=True)[:, :count]
        mine = bends.gather(1, units)  # a piece with fewer has rows of zeros
        rows = low.new_zeros(*units.shape, low.shape[1])
        rows.scatter_(2, units[..., None], mine[..., None].to(low))
        below, above = (each.mT for each in self.spread(number, rows).ends())
        every = units[:, None].expand(-1, self.corners, -1)
        middle, radius = found.middle.flatten(2), found.radius.flatten(2)
        old = middle.gather(2, every), radius.gather(2, every)
        old_below, old_above = old[0] - old[1], old[0] + old[1]
        worse = (below.mean(1) <= old_below.mean(1)) | ~mine
        new_below = torch.where(worse[:, None], old_below, below)
        worse = (above.mean(1) >= old_above.mean(1)) | ~mine
        new_above = torch.where(worse[:, None], old_above, above)
        new = _between(new_below, new_above)
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
            number: of the step.
            rows: (S, N) the functions' coefficients, or (P, S, N) of each piece its own.

        Returns:
            (P, S, K): a linear function on each piece below each of them, by its vertices' values;
            -inf where nothing finite is known.
        """
        found = self._descents(_Descent, number, rows)
        self.met = {k: torch.cat([each.met[k] for each in found], 1) for k in found[0].met}
        return torch.cat([each.bound() for each in found], 1)

    def spread(self, number: int, rows: Tensor) -> "Spread":
        """Linear functions of one step's values, and all that can move them away (see `Spread`)."""
        found = self._descents(_Centred, number, rows)
        self.met = {k: torch.stack([each.met[k] for each in found]).sum(0) for k in found[0].met}
        columns = [
            torch.cat([torch.cat(parts, 1) for parts in every])
            for every in zip(*(each.columns for each in found), strict=True)
        ]
        radii = [torch.cat(parts, 1) for parts in found[0].radii]
        middle, reach, toll = (
            torch.cat([getattr(each, name) for each in found], 1)
            for name in ("total", "reach", "toll")
        )
        return Spread(middle, reach, toll, columns, radii)

    def edge_to_halve(self, weights: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
        """The edge of each piece along which the rectifiers bend most, by what they weigh.

        Args:
            weights: (P, N) of some rectifiers' units, by the number of their step.

        Returns:
            The numbers (P,) of its two vertices; of the longest edge where nothing bends.
        """
        first, second = torch.triu_indices(self.corners, self.corners, 1)
        images = self.at[0].middle.flatten(2)
        lengths = (images[:, first] - images[:, second]).norm(dim=2)
        scores = torch.zeros_like(lengths)
        for number, weight in weights.items():
            step = self.steps[number]
            assert isinstance(step, Rectifier)
            source = self.at[step.sources[0]]
            bends = (source.low < 0) & (source.high > 0)
            bends |= (source.low < step.ceiling) & (source.high > step.ceiling)
            weight = weight * bends.flatten(1)
            units = (weight > 0).any(0).nonzero().flatten()
            weight = weight.index_select(1, units)
            given = source.middle.flatten(2).index_select(2, units)
            value = given.clamp(0, step.ceiling)
            for k, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
                middle = ((given[:, i] + given[:, j]) / 2).clamp(0, step.ceiling)
                gap = ((value[:, i] + value[:, j]) / 2 - middle).abs()
                scores[:, k] += (gap * weight).sum(1)
        flat = ~(scores > 0).any(1, keepdim=True)
        edge = torch.where(flat, lengths, scores).argmax(1)
        return first.to(edge.device)[edge], second.to(edge.device)[edge]

    def _descents(self, kind: type["_DescentT"], number: int, rows: Tensor) -> list["_DescentT"]:
        """Rows carried down in parts that fit into memory."""
        rows = rows.expand(self.pieces, *rows.shape[-2:])
        widest = max(step.size for step in self.steps[: number + 1])
        most = max(1, _MEMORY // (self.pieces * widest * 8 * 4))
        found = []
        with torch.no_grad():
            for part in rows.split(most, 1):
                found.append(kind(self, part.shape[1]))
                found[-1].down(number, part)
        return found


class Spread(NamedTuple):
    """S functions of a piece's points: s = middle + columns e for some |e| <= radii, +- toll.

    Attributes:
        middle: (P, S, K) linear on the piece, by its vertices' values.
        reach: (P, S, K) the most that the deviations e can make of each function alone.
        toll: (P, S) for rounding.
        columns: of each piece, (S, M): what each of its M deviations does to each function.
        radii: of each piece, (K, M): how large these are, linear on the piece. Those of hardly any
            size are paid for in `toll`.
    """

    middle: Tensor
    reach: Tensor
    toll: Tensor
    columns: list[Tensor]
    radii: list[Tensor]

    def ends(self) -> tuple[Tensor, Tensor]:
        """The functions' bounds, (P, S, K) each."""
        reach = self.reach + self.toll[..., None]
        return self.middle - reach, self.middle + reach


class _Descent:
    """Rows (P, S, N) on their way to the pixels.

    Attributes:
        total: (P, S, K) what is known of the functions, by its vertices' values.
        toll: (P, S) what rounding may have changed.
        met: the rows that met each rectifier, by the number of its step.
    """

    def __init__(self, bounds: Bounds, count: int) -> None:
        self.bounds = bounds
        self.met = dict[int, Tensor]()
        like = bounds.at[0].middle
        self.total = like.new_zeros(bounds.pieces, count, bounds.corners)
        self.toll = like.new_zeros(bounds.pieces, count)

    def down(self, number: int, rows: Tensor) -> None:
        """Carry rows of one step to where they stop."""
        steps, at = self.bounds.steps, self.bounds.at
        waiting = {number: rows}
        for k in range(number, -1, -1):
            if (mine := waiting.pop(k, None)) is None:
                continue
            step, here, size = steps[k], at[k], mine.abs()
            if isinstance(step, Rectifier):
                self._meet(k, mine, size)
            if step.bends == 0 or (step.bends == 1 and not isinstance(step, Affine)):
                self._stop(mine, size, here)
                continue
            self.toll += _inner(size, here.toll)
            if isinstance(step, Affine):
                self.total += (mine @ step.offset.flatten())[..., None]
                flat = mine.flatten(0, 1).unflatten(1, step.shape)
                passed = [each.reshape(*mine.shape[:2], -1) for each in step.back(flat)]
            elif isinstance(step, Rectifier):
                passed = [self._through_lines(mine, size, here)]
            else:
                passed = [self._through_tops(mine, here, steps[step.sources[0]])]
            for source, each in zip(step.sources, passed, strict=True):
                waiting[source] = waiting[source] + each if source in waiting else each

    def bound(self) -> Tensor:
        """The lower bounds' values at the vertices, (P, S, K)."""
        found = self.total - self.toll[..., None] - torch.finfo(self.total.dtype).tiny ** 0.5
        return torch.where(found.isfinite(), found, -torch.inf)

    def _meet(self, number: int, rows: Tensor, size: Tensor) -> None:
        self.met[number] = rows

    def _stop(self, rows: Tensor, size: Tensor, here: Enclosure) -> None:
        """Where the forward bounds are the best there are."""
        self.total += rows @ here.middle.flatten(2).mT
        paid = size @ torch.cat([here.radius.flatten(2), here.toll[:, None]], 1).mT
        self.total -= paid[..., :-1]
        self.toll += paid[..., -1]

    def _through_lines(self, rows: Tensor, size: Tensor, here: Enclosure) -> Tensor:
        assert here.lines is not None
        lines = here.lines
        up = rows.clamp_min(0)
        down = rows - up
        self.total += up @ lines.low_start.flatten(2).mT + down @ lines.high_start.flatten(2).mT
        return (
            up * lines.low_slope.flatten(1)[:, None] + down * lines.high_slope.flatten(1)[:, None]
        )

    def _through_tops(self, rows: Tensor, here: Enclosure, source: Step) -> Tensor:
        """Where one cell is the largest everywhere, it stands for its window, else from below."""
        assert here.tops is not None
        alone = here.tops.alone.flatten(1)[:, None]
        up = torch.where(alone, rows, self._from_below(rows))
        rest = rows - up
        self._stop(rest, rest.abs(), here)
        shape = here.tops.cell.shape
        up = up.unflatten(2, shape[1:])
        index = here.tops.cell[:, None].expand_as(up)
        channels = rows.new_zeros(*up.shape[:-1], math.prod(source.shape[-2:]))
        return channels.scatter_add_(-1, index, up).flatten(2)

    def _from_below(self, rows: Tensor) -> Tensor:
        return rows.clamp_min(0)


class _Centred(_Descent):
    """Between two lines of one slope everywhere: what lies off their middle is a deviation.

    `met` holds the sums (P, N) of the rows' absolute values.
    """

    def __init__(self, bounds: Bounds, count: int) -> None:
        super().__init__(bounds, count)
        self.reach = torch.zeros_like(self.total)
        self.columns: list[list[Tensor]] = [[] for _ in range(bounds.pieces)]
        self.radii: list[list[Tensor]] = [[] for _ in range(bounds.pieces)]

    def _meet(self, number: int, rows: Tensor, size: Tensor) -> None:
        self.met[number] = size.sum(1)

    def _stop(self, rows: Tensor, size: Tensor, here: Enclosure) -> None:
        self.toll += _inner(size, here.toll)
        self._deviate(rows, size, here.middle.flatten(2), here.radius.flatten(2))

    def _deviate(self, rows: Tensor, size: Tensor, middle: Tensor, radius: Tensor) -> None:
        self.total += rows @ middle.mT
        most = radius.amax(1)
        wide = most > _HARDLY * most.amax(1, keepdim=True)
        narrow = torch.where(wide, 0, most)[:, None]
        reach = size @ torch.cat([radius, narrow], 1).mT
        self.reach += reach[..., :-1] * (1 + rounding(rows.shape[2] + 8, reach.new_ones(())))
        self.toll += 2 * reach[..., -1]
        for piece, units in enumerate(wide):
            has = units.nonzero().flatten()
            self.columns[piece].append(rows[piece].index_select(1, has))
            self.radii[piece].append(radius[piece].index_select(1, has))

    def _through_lines(self, rows: Tensor, size: Tensor, here: Enclosure) -> Tensor:
        assert here.lines is not None
        lines = here.lines
        middle, radius = _between(lines.floor.flatten(2), lines.high_start.flatten(2))
        self._deviate(rows, size, middle, radius)
        return rows * lines.high_slope.flatten(1)[:, None]

    def _from_below(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(rows)


_DescentT = TypeVar("_DescentT", bound=_Descent)


def _inner(rows: Tensor, of: Tensor) -> Tensor:
    """(P, S, N) and (P, N) to (P, S)."""
    return (rows @ of[..., None])[..., 0]


def _largest(middle: Tensor, radius: Tensor) -> Tensor:
    """The largest absolute value over a piece, (P, ...)."""
    return (middle.abs() + radius).amax(1)


def _between(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and radius of an interval; the radius reaches both ends however they round."""
    middle = (lower + upper) / 2
    radius = torch.maximum(upper - middle, middle - lower)
    return middle, radius + rounding(2, upper.abs() + lower.abs())


def _lines(below: Tensor, above: Tensor, low: Tensor, high: Tensor, top: float) -> Lines:
    """Lines below and above y = min(max(x, 0), top).

    x lies between `below` and `above`, linear on a piece by their values (P, K, ...) at its
    vertices, and between `low` and `high` (P, ...). Slopes are chosen freely, and the starts are
    what they demand. Where y is convex, so is y - slope x, and below the mix of its values at the
    vertices' ends: each vertex pays for its own interval alone. Likewise from below where y is
    concave; elsewhere the ends of [low, high] and the bends between them decide. A vertex's ends
    may lie beyond [low, high], so that max(x, 0), or min(x, top), stands for y there: it is y
    wherever x can be, and convex, or concave, everywhere.
    """
    on, off = (low >= 0) & (high <= top), (high <= 0) | (low >= top)
    middle = (below + above).mean(1) / 2
    tiny = torch.finfo(low.dtype).tiny
    passed = above.clamp(0) - below.clamp(0)
    high_slope = (passed.sum(1) / (above - below).sum(1).clamp_min(tiny)).clamp(0, 1)
    low_slope = (middle > 0).to(low)
    if top < math.inf:
        chord = (high.clamp(0, top) - low.clamp(0, top)) / (high - low).clamp_min(tiny)
        to_top = (top / (top - low).clamp_min(top)).clamp(0, 1) * (middle < top)
        high_slope = torch.where(high > top, to_top, high_slope)
        from_zero = (top / high.clamp_min(top)).clamp(0, 1) * (middle > 0)
        low_slope = torch.where(high > top, torch.where(low >= 0, chord, from_zero), low_slope)
    low_slope, high_slope = (
        torch.where(on, 1, torch.where(off, 0, each)) for each in (low_slope, high_slope)
    )
    ends, points = [below, above], [low, high, low.new_zeros(()).clamp(low, high)]
    if top < math.inf:
        points.append(low.new_full((), top).clamp(low, high))

    def demand(slope: Tensor, places: list[Tensor], least: float = 0, most: float = top) -> Tensor:
        return torch.stack([place.clamp(least, most) - slope * place for place in places])

    over = torch.where(
        (high <= top)[:, None],
        demand(high_slope[:, None], ends, most=math.inf).amax(0),
        demand(high_slope, points).amax(0)[:, None],
    )
    floor = demand(high_slope, points).amin(0)[:, None].expand_as(over)
    under = demand(low_slope, points).amin(0)[:, None].expand_as(over)
    if top < math.inf:
        under = torch.where(
            (low >= 0)[:, None], demand(low_slope[:, None], ends, least=-math.inf).amin(0), under
        )
    error = rounding(2, 2 * torch.maximum(low.abs(), high.abs()))[:, None]
    straight = (on | (high <= 0))[:, None]
    under, over, floor = (
        torch.where(straight, 0, each) for each in (under - error, over + error, floor - error)
    )
    return Lines(low_slope, under, high_slope, over, floor)
