"""Linear functions of one layer's values on their way back to the pixels, over pieces of a hull.

CROWN (Zhang et al. 2018): where a function meets a bend, it goes on by a line below and a line
above it. It stops behind the first bends, whose forward bounds are the best there are.
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

_MEMORY = 2**27  # bytes of the rows that are carried backward at once
_HARDLY = 1e-9  # of the largest deviation: what is smaller counts as rounding


@dataclass
class Enclosure(Values):
    """The values of a step over P pieces, and how rows get through it.

    Attributes:
        toll: (P, N) what a row that is carried backward through the step pays for rounding, per
            unit of its entries.
        lines: of a rectifier or a smooth activation.
        plane: of a product or a softmax.
        tops: of a max pool.
    """

    toll: Tensor
    lines: Lines | None = None
    plane: Plane | None = None
    tops: Tops | None = None


class Spread(NamedTuple):
    """S functions of a piece's points: s = middle + columns e for some |e| <= radii, +- toll.

    Attributes:
        middle: (P, S, K) linear on the piece, by its vertices' values.
        reach: (P, S, K) the most that the deviations e can make of each function alone.
        toll: (P, S) for rounding.
        columns: (P, S, M) what each of a piece's M deviations does to each function.
        radii: (P, K, M) how large these are, linear on the piece. Those of hardly any size are paid
            for in `toll`, and are 0.
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
    """Rows (P, S, N) on their way to the pixels; (1, S, N) while all pieces have the same.

    Attributes:
        total: (P, S, K) what is known of the functions, by its vertices' values.
        toll: (P, S) what rounding may have changed.
        met: the rows that met each activation, by the number of its step.
    """

    def __init__(self, steps: Sequence[Step], at: Sequence[Enclosure], count: int) -> None:
        self.steps, self.at = steps, at
        self.met = dict[int, Tensor]()
        like = at[0].middle
        pieces, corners = like.shape[:2]
        self.total = like.new_zeros(pieces, count, corners)
        self.toll = like.new_zeros(pieces, count)

    def down(self, number: int, rows: Tensor) -> None:
        """Carry rows of one step to where they stop."""
        self._carry({number: rows}, number)

    def down_from(self, number: int, units: Tensor, mine: Tensor) -> None:
        """Carry units (P, S) of a step with a weight matrix, or rows of zeros where not `mine`."""
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
        """The lower bounds' values at the vertices, (P, S, K)."""
        found = self.total - self.toll[..., None] - torch.finfo(self.total.dtype).tiny ** 0.5
        return torch.where(found.isfinite(), found, -torch.inf)

    def _meet(self, number: int, rows: Tensor, size: Tensor) -> None:
        self.met[number] = rows.expand(len(self.total), -1, -1)

    def _spread(self, rows: Tensor, size: Tensor, middle: Tensor, radius: Tensor) -> None:
        """Of what lies within `radius` of `middle`, (P, K, ...) each."""
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
    """Between two lines of one slope everywhere: what lies off their middle is a deviation.

    `met` holds the sums (P, N) of the rows' absolute values.
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
    """Rows (P, S, N) of one unit (P, S) each, or of zeros where a piece has no more (`mine`)."""

    units: Tensor
    mine: Tensor

    def rows(self, size: int) -> Tensor:
        """All their numbers."""
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
    """Rows (P, S, N), or (S, N), of one step carried down, in parts that fit into memory.

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
