"""Backward (CROWN) pass: linear functions of a layer's values over subdomains of a hull.

At an unstable unit a function continues with a linear lower and upper bound (Zhang et al. 2018).
It stops after the first activations, where forward bounds are already exact.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .local import Dense
from .planes import Plane
from .relaxation import Lines, Tops, Values, between, rounding
from .steps import Affine, Curve, Product, Rectifier, Softmax, Step, check_time

_MEMORY = 2**27  # bytes of rows per backward pass
_HARDLY = 1e-9  # relative to the largest deviation; smaller ones count as rounding


@dataclass
class Enclosure(Values):
    """Bounds on a step's values over P subdomains, and its relaxations for rows.

    Attributes:
        toll: (P, N) rounding error of a row that passes backward, per unit of its entries.
        lines: of a rectifier or a smooth activation.
        plane: of a product or a softmax.
        tops: of a max pool.
    """

    toll: Tensor
    lines: Lines | None = None
    plane: Plane | None = None
    tops: Tops | None = None


class Spread(NamedTuple):
    """S functions on a subdomain: s = middle + columns e for some |e| <= radii, +- toll.

    Attributes:
        middle: (P, S, K) linear on the subdomain, by values at its vertices.
        reach: (P, S, K) largest effect of the deviations e on each function.
        toll: (P, S) rounding error.
        columns: (P, S, M) effect of each of the M deviations on each function.
        radii: (P, K, M) bounds on the deviations, linear on the subdomain. Negligible ones are 0
            and part of `toll`.
    """

    middle: Tensor
    reach: Tensor
    toll: Tensor
    columns: Tensor
    radii: Tensor

    def ends(self) -> tuple[Tensor, Tensor]:
        """The functions' bounds, (P, S, K) each."""
        reach = self.reach + self.toll[..., None]
        return self.middle - reach, self.middle + reach


class Descent:
    """Backward pass of rows (P, S, N); (1, S, N) while all subdomains have the same.

    Attributes:
        total: (P, S, K) bounds accumulated so far, by values at the vertices.
        toll: (P, S) rounding error.
        met: rows at each activation, by index of its step.
    """

    def __init__(self, steps: Sequence[Step], at: Sequence[Enclosure], count: int) -> None:
        self.steps, self.at = steps, at
        self.met = dict[int, Tensor]()
        like = at[0].middle
        pieces, corners = like.shape[:2]
        self.total = like.new_zeros(pieces, count, corners)
        self.toll = like.new_zeros(pieces, count)

    def down(self, number: int, rows: Tensor) -> None:
        """Propagate rows of one step to where they stop."""
        self._carry({number: rows}, number)

    def down_from(self, number: int, units: Tensor, mine: Tensor) -> None:
        """Propagate units (P, S) of a step with a weight matrix; rows of zeros unless `mine`."""
        step = self.steps[number]
        assert isinstance(step, Dense)
        self.toll += self.at[number].toll.gather(1, units) * mine
        self.total += (step.offset[units] * mine)[..., None]
        rows = [weight[units] * mine[..., None] for weight in step.weights]
        self._carry(dict(zip(step.sources, rows, strict=True)), number - 1)

    def _carry(self, waiting: dict[int, Tensor], number: int) -> None:
        steps, at = self.steps, self.at
        for k in range(number, -1, -1):
            if (mine := waiting.pop(k, None)) is None:
                continue
            step, here, size = steps[k], at[k], mine.abs()
            if isinstance(step, Rectifier | Curve):
                self._meet(k, mine, size)
            self.toll += _inner(size, here.toll)
            if step.bends == 0 or (step.bends == 1 and not isinstance(step, Affine)):
                self._spread(mine, size, here.middle, here.radius)
                continue
            if isinstance(step, Affine):
                self.total += (mine @ step.offset.flatten())[..., None]
                flat = mine.flatten(0, 1).unflatten(1, step.shape)
                passed = [each.reshape(*mine.shape[:2], -1) for each in step.back(flat)]
            elif isinstance(step, Product | Softmax):
                assert here.plane is not None
                self._spread(mine, size, here.plane.middle, here.plane.radius)
                every = mine.expand(len(self.total), -1, -1).unflatten(2, step.shape)
                passed = [each.flatten(2) for each in step.back(here.plane.at, every)]
            elif here.lines is not None:
                passed = [self._through_lines(mine, size, here.lines)]
            else:
                passed = [self._through_tops(mine, here, steps[step.sources[0]])]
            for source, each in zip(step.sources, passed, strict=True):
                waiting[source] = waiting[source] + each if source in waiting else each

    def bound(self) -> Tensor:
        """Values (P, S, K) of the lower bounds at the vertices."""
        found = self.total - self.toll[..., None] - torch.finfo(self.total.dtype).tiny ** 0.5
        return torch.where(found.isfinite(), found, -torch.inf)

    def _meet(self, number: int, rows: Tensor, size: Tensor) -> None:
        self.met[number] = rows.expand(len(self.total), -1, -1)

    def _spread(self, rows: Tensor, size: Tensor, middle: Tensor, radius: Tensor) -> None:
        """Range of values within `radius` of `middle`, (P, K, ...) each."""
        self.total += rows @ middle.flatten(2).mT - size @ radius.flatten(2).mT

    def _through_lines(self, rows: Tensor, size: Tensor, lines: Lines) -> Tensor:
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
        self._spread(rest, rest.abs(), here.middle, here.radius)
        shape = here.tops.cell.shape
        up = up.unflatten(2, shape[1:])
        index = here.tops.cell[:, None].expand_as(up)
        channels = rows.new_zeros(*up.shape[:-1], math.prod(source.shape[-2:]))
        return channels.scatter_add_(-1, index, up).flatten(2)

    def _from_below(self, rows: Tensor) -> Tensor:
        return rows.clamp_min(0)


class Centred(Descent):
    """Backward pass with parallel lower and upper lines; distances from the middle are deviations.

    `met` has the sums (P, N) of the rows' absolute values.
    """

    def __init__(self, steps: Sequence[Step], at: Sequence[Enclosure], count: int) -> None:
        super().__init__(steps, at, count)
        self.reach = torch.zeros_like(self.total)
        self.columns: list[Tensor] = []
        self.radii: list[Tensor] = []

    def _meet(self, number: int, rows: Tensor, size: Tensor) -> None:
        self.met[number] = size.sum(1).expand(len(self.total), -1)

    def _spread(self, rows: Tensor, size: Tensor, middle: Tensor, radius: Tensor) -> None:
        middle, radius = middle.flatten(2), radius.flatten(2)
        self.total += rows @ middle.mT
        most = radius.amax(1)
        wide = most > _HARDLY * most.amax(1, keepdim=True)
        narrow = torch.where(wide, 0, most)[:, None]
        reach = size @ torch.cat([radius, narrow], 1).mT
        self.reach += reach[..., :-1] * (1 + rounding(rows.shape[2] + 8, reach.new_ones(())))
        self.toll += 2 * reach[..., -1]
        count = int(wide.sum(1).max())
        units = wide.int().argsort(dim=1, descending=True)[:, None, :count]
        rows = rows.expand(len(units), -1, -1)
        self.columns.append(rows.gather(2, units.expand(-1, rows.shape[1], -1)))
        kept = torch.where(wide[:, None], radius, 0)
        self.radii.append(kept.gather(2, units.expand(-1, radius.shape[1], -1)))

    def _through_lines(self, rows: Tensor, size: Tensor, lines: Lines) -> Tensor:
        self._spread(rows, size, *between(lines.floor, lines.high_start))
        return rows * lines.high_slope.flatten(1)[:, None]

    def _from_below(self, rows: Tensor) -> Tensor:
        return torch.zeros_like(rows)


def _inner(rows: Tensor, of: Tensor) -> Tensor:
    """(P, S, N) and (P, N) to (P, S)."""
    return (rows @ of[..., None])[..., 0]


DescentT = TypeVar("DescentT", bound=Descent)


class Units(NamedTuple):
    """Rows (P, S, N) of one unit (P, S) each; zeros if a subdomain has fewer (`mine`)."""

    units: Tensor
    mine: Tensor

    def rows(self, size: int) -> Tensor:
        """The dense rows."""
        rows = self.mine.new_zeros(*self.units.shape, size)
        return rows.scatter_(2, self.units[..., None], self.mine[..., None])


def descents(
    kind: type[DescentT],
    steps: Sequence[Step],
    at: Sequence[Enclosure],
    number: int,
    rows: Tensor | Units,
    until: float,
) -> list[DescentT]:
    """Backward passes of rows (P, S, N) or (S, N) of one step, in parts that fit into memory.

    Raises:
        OutOfTime: after `until`.
    """
    widest = max(step.size for step in steps[: number + 1])
    most = max(1, _MEMORY // (len(at[0].middle) * widest * 8 * 4))
    found = []
    with torch.no_grad():
        if isinstance(rows, Units) and isinstance(steps[number], Dense):
            for part in zip(*(each.split(most, 1) for each in rows), strict=True):
                check_time(until)
                found.append(kind(steps, at, part[0].shape[1]))
                found[-1].down_from(number, *part)
            return found
        rows = rows.rows(steps[number].size) if isinstance(rows, Units) else rows
        for each in (rows if rows.ndim == 3 else rows[None]).split(most, 1):
            check_time(until)
            found.append(kind(steps, at, each.shape[1]))
            found[-1].down(number, each)
    return found
