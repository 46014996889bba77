"""What is left of a network on one piece of a hull, where few units bend.

On a piece P with vertices v_1, ..., v_K every value of the network is

    z = sum_k w_k M_k + sum_j G_j e_j,   e_j = rho(z_j) - slope_j z_j,

w the weights of a point, j the units that bend on P, and e_j what each deviates from a line: linear
parts go through the network as images do, and each bend adds one image. So the network on P, and on
all pieces that P is cut into, is one of some hundreds of units instead of all. It is a list of
steps itself, so that a part of P can be taken out of it again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .relaxation import Bend, Range, between, rounding, tops_of
from .steps import Affine, Input, MaxPool, Rectifier, Step

_GRAIN = 2.0**20  # slopes are multiples of its inverse: sums of them and 1 are exact
_BENDS = 3000  # at most
_MEMORY = 2**30  # bytes that the images may take


@dataclass
class Dense(Affine):
    """sum_i W_i x_i, values off by at most `error`.

    Attributes:
        weights: (N, M_i) of each source.
    """

    weights: list[Tensor]

    def linear(self, *values: Tensor) -> Tensor:
        """sum_i W_i x_i."""
        parts = [value @ weight.T for value, weight in zip(values, self.weights, strict=True)]
        return torch.stack(parts).sum(0)

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """sum_i |W_i| x_i."""
        parts = [value @ weight.abs().T for value, weight in zip(values, self.weights, strict=True)]
        return torch.stack(parts).sum(0)

    def back(self, rows: Tensor) -> list[Tensor]:
        """W_i^T rows."""
        return [rows @ weight for weight in self.weights]


class _Form(NamedTuple):
    """A step's values, linear in the weights and the deviations.

    Attributes:
        base: (K, ...) at the vertices, without deviations.
        slopes: (n, ...) what each of the first n deviations does.
        error: (...) how far values may be off.
        size: (...) at most the sum of all terms' sizes, anywhere on the piece.
    """

    base: Tensor
    slopes: Tensor
    error: Tensor
    size: Tensor


class _TooManyBends(Exception):
    pass


def localise(
    steps: Sequence[Step], vertices: Tensor, error: Tensor | float = 0.0
) -> list[Step] | None:
    """The steps of a network on a piece, from weights (K,) of its vertices to the same values.

    Args:
        steps: of the network.
        vertices: (K, C, H, W), the piece's, or (K, K) where `steps` are of a local network.
        error: how far each of their numbers may be off.

    Returns:
        None where too many units bend.
    """
    try:
        with torch.no_grad():
            return _Localiser(steps, vertices, error).found
    except _TooManyBends:
        return None


class _Localiser:
    """Carries linear parts through a network.

    Attributes:
        found: the local network's steps.
    """

    def __init__(self, steps: Sequence[Step], vertices: Tensor, error: Tensor | float) -> None:
        self.corners = len(vertices)
        point = Input("point", (), torch.Size([self.corners]))
        self.found: list[Step] = [point]
        self.blocks: list[tuple[int, int | None]] = []  # deviations: their number and their step
        none = vertices.new_zeros(0, self.corners)
        self.middle, self.radius = none, none  # (n, K) where each deviation lies
        last_use = {source: number for number, step in enumerate(steps) for source in step.sources}
        forms: dict[int, _Form] = {}
        for number, step in enumerate(steps):
            given = [forms[source] for source in step.sources]
            if isinstance(step, Input):
                form = self._of_images(vertices, error)
            elif isinstance(step, Affine):
                form = self._affine(step, given)
            elif isinstance(step, Rectifier):
                form = self._rectifier(step, *given)
            else:
                assert isinstance(step, MaxPool)
                form = self._max_pool(step, *given)
            forms[number] = form
            for source in {source for source in step.sources if last_use[source] == number}:
                del forms[source]
        every = torch.arange(steps[-1].size, device=vertices.device)
        self._keep(steps[-1].name, forms[len(steps) - 1], every)

    def _of_images(self, vertices: Tensor, error: Tensor | float) -> _Form:
        off = (torch.zeros_like(vertices) + error).amax(0)
        return _Form(vertices, vertices[:0], off, vertices.abs().amax(0) + off)

    def _affine(self, step: Affine, given: list[_Form]) -> _Form:
        count = max(len(form.slopes) for form in given)
        base = step.call(*(form.base for form in given))
        slopes = base.new_zeros(count, *base.shape[1:])
        if count:
            slopes = step.linear(*(_padded(form.slopes, count) for form in given))
        error, size = step.spread([torch.stack([form.error, form.size]) for form in given])
        size = size + step.offset.abs() * (1 + self._most(count).sum())
        return _Form(base, slopes, error + step.error + rounding(step.terms, size), size)

    def _rectifier(self, step: Rectifier, given: _Form) -> _Form:
        x = self._range(given)
        bend = Bend(x, step.ceiling, step.tilt)
        slope = (bend.chord() * _GRAIN).round() / _GRAIN
        bends = ~(bend.is_on | bend.is_off | bend.is_full)[0].flatten()
        units = bends.nonzero().flatten()
        self._count(len(units), step)
        full = bend.is_full[0] * (step.ceiling if step.ceiling < math.inf else 0.0)
        line = slope[0] - step.tilt
        base, slopes = given.base * line + full, given.slopes * line
        size = given.size * line.abs() + full
        error = given.error * line.abs() + rounding(2, size)
        if len(units):
            inside = Range(*(each.flatten(each.ndim - step_dims(step))[..., units] for each in x))
            part = Bend(inside, step.ceiling, slope[0].flatten()[units])
            zero = torch.zeros_like(inside.low)
            middle, radius = between(part.start_below(zero)[0], part.start_above(zero)[0])
            source = self._keep(step.name + "_in", given, units)
            tilt = part.tilt
            self._append(Rectifier(step.name, (source,), units.shape, step.ceiling, tilt))
            slopes, size = self._deviate(slopes, size, units, middle.T, radius.T)
        return _Form(base, slopes, error, size)

    def _max_pool(self, step: MaxPool, given: _Form) -> _Form:
        """Where no cell is the largest everywhere, its window's deviation stays unknown."""
        x = self._range(given)
        tops, lower, upper = tops_of(step, x)
        middle, radius = (each[0].flatten(1) for each in between(lower, upper))
        units = (~tops.alone[0].flatten()).nonzero().flatten()
        self._count(len(units), step)

        def chosen(values: Tensor) -> Tensor:
            cells = tops.cell.expand(len(values), -1, -1)
            return values.flatten(-2).gather(-1, cells).view(-1, *step.shape)

        base, slopes = chosen(given.base), chosen(given.slopes)
        error, size = chosen(given.error[None])[0], chosen(given.size[None])[0]
        if len(units):
            base.view(self.corners, -1)[:, units] = middle[:, units]
            slopes.view(len(slopes), -1)[:, units] = 0
            error.view(-1)[units] = 0
            size.view(-1)[units] = middle[:, units].abs().amax(0)
            zero = torch.zeros_like(radius[:, units]).T
            slopes, size = self._deviate(slopes, size, units, zero, radius[:, units].T, False)
        return _Form(base, slopes, error, size)

    def _range(self, form: _Form) -> Range:
        """Where values lie on the piece."""
        count = len(form.slopes)
        base, slopes = form.base.flatten(1), form.slopes.flatten(1)
        middle = base + self.middle[:count].T @ slopes
        radius = self.radius[:count].T @ slopes.abs() + form.error.flatten()
        radius = radius + rounding(count + 4, form.size.flatten())
        below, above = (
            each[None].view(1, self.corners, *form.base.shape[1:])
            for each in (middle - radius, middle + radius)
        )
        return Range(below, above, below.amin(1), above.amax(1))

    def _most(self, count: int) -> Tensor:
        """(count,) how large deviations are at most."""
        return (self.middle[:count].abs() + self.radius[:count]).amax(1)

    def _count(self, more: int, step: Step) -> None:
        count = len(self.middle) + more
        if count > _BENDS or count * step.size * 8 > _MEMORY:
            raise _TooManyBends

    def _deviate(
        self, slopes: Tensor, size: Tensor, units: Tensor, middle: Tensor, radius: Tensor,
        kept: bool = True,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Add a deviation to each unit: slopes and sizes of the values."""
        before = len(self.middle)
        self.middle, self.radius = (
            torch.cat(both) for both in ((self.middle, middle), (self.radius, radius))
        )
        self.blocks.append((len(units), len(self.found) - 1 if kept else None))
        slopes = _padded(slopes, before + len(units))
        slopes.view(len(slopes), -1)[torch.arange(before, len(slopes)), units] = 1
        size = size.clone()
        size.view(-1)[units] += self._most(len(slopes))[before:]
        return slopes, size

    def _keep(self, name: str, form: _Form, units: Tensor) -> int:
        """Make a step of some units, and give its number."""
        weights, sources, start = [form.base.flatten(1)[:, units].T], [0], 0
        slopes = form.slopes.flatten(1).index_select(1, units).T
        error = form.error.flatten()[units]
        for count, number in self.blocks:
            part = slopes[:, start : start + count]
            if number is None:
                start += count
                continue
            if part.any():
                weights.append(part.contiguous())
                sources.append(number)
            start += count
        return self._append(_dense(name, sources, weights, error + self._unknown(slopes)))

    def _unknown(self, slopes: Tensor) -> Tensor:
        """What deviations that stay unknown do to units (N, n)."""
        numbers = [
            torch.full((count,), float(number is None), dtype=slopes.dtype, device=slopes.device)
            for count, number in self.blocks
        ]
        if not any(number is None for _, number in self.blocks):
            return slopes.new_zeros(len(slopes))
        most = (torch.cat(numbers) * self._most(len(self.middle)))[: slopes.shape[1]]
        found = slopes.abs() @ most
        return found + rounding(len(most), found)

    def _append(self, step: Step) -> int:
        bends = max(self.found[k].bends for k in step.sources)
        step.bends = bends + isinstance(step, Rectifier)
        self.found.append(step)
        return len(self.found) - 1


def step_dims(step: Step) -> int:
    return len(step.shape)


def _padded(slopes: Tensor, count: int) -> Tensor:
    return torch.cat([slopes, slopes.new_zeros(count - len(slopes), *slopes.shape[1:])])


def _dense(name: str, sources: list[int], weights: list[Tensor], error: Tensor) -> Dense:
    found = Dense(
        name, tuple(sources), error.shape,
        call=lambda *values: found.linear(*values),
        taken=[weight.shape[1:] for weight in weights],
        terms=sum(weight.shape[1] for weight in weights) + 1,
        like=error,
        weights=weights,
    )  # fmt: skip
    found.error = error
    return found
