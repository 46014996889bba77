"""Reduced network on a subdomain of a hull with few unstable units.

On a subdomain P with vertices v_1, ..., v_K every value of the network is

    z = sum_k w_k M_k + sum_j G_j e_j,   e_j = rho(z_j) - slope_j z_j,

where w are the weights of a point, j the units that are unstable on P, and e_j their deviations
from a line. Linear parts pass through the network like images, and each unstable unit adds one
image. So the network on P, and on all its parts, has a few hundred units instead of all. It is
again a list of steps, and can be reduced further on a part of P.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .relaxation import Bend, Range, between, rounding, tops_of, windows
from .steps import (
    Affine,
    Input,
    MaxPool,
    Rectifier,
    Reshaped,
    Smooth,
    Step,
    Weighted,
    check_time,
)

_GRAIN = 2.0**20  # slopes are multiples of 1 / _GRAIN, so their sums with 1 are exact
_BENDS = 3000  # most unstable units
_PAYS = 4  # values to make a reduced network, relative to those of one bound
_MEMORY = 2**30  # bytes for the images


@dataclass
class Dense(Affine):
    """sum_i W_i x_i, with an error of at most `error`.

    Attributes:
        weights: (N, M_i) of each source.
    """

    weights: list[Tensor]

    def linear(self, *values: Tensor) -> Tensor:
        """sum_i W_i x_i."""
        return _products(self.weights, values)

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """sum_i |W_i| x_i."""
        return _products([weight.abs() for weight in self.weights], values)

    def back(self, rows: Tensor) -> list[Tensor]:
        """W_i^T rows."""
        return [rows @ weight for weight in self.weights]


class _Form(NamedTuple):
    """A step's values, linear in the weights and the deviations.

    Attributes:
        base: (K, ...) at the vertices, without deviations.
        slopes: (n, ...) coefficients of the first n deviations.
        error: (...) bound on the error of values.
        size: (...) bound on the sum of all terms' absolute values on the subdomain.
        units: units of the last deviations.
    """

    base: Tensor
    slopes: Tensor
    error: Tensor
    size: Tensor
    units: Tensor

    @property
    def is_zero(self) -> Tensor:
        """(...) whether values are exactly 0, so windows of a max pool over them tie."""
        return (self.size == 0) & (self.error == 0)


class TooManyBends(Exception):
    """A subdomain is too large for a reduced network."""


@torch.no_grad()
def localise(
    steps: Sequence[Step],
    vertices: Tensor,
    error: Tensor | float = 0.0,
    until: float = math.inf,
) -> list[Step]:
    """Steps of the reduced network on a subdomain, from weights (K,) to the same values.

    Args:
        steps: of the network.
        vertices: (K, C, H, W) of the subdomain, or (K, K) if `steps` are of a reduced network.
        error: bound on the error of the vertices.
        until: deadline by the monotonic clock.

    Raises:
        TooManyBends: if too many units are unstable.
        OutOfTime: after `until`.
    """
    check_bends(steps, vertices)
    return _Localiser(steps, vertices, error, until).found


class _Localiser:
    """Propagates linear parts through a network.

    Attributes:
        found: the local network's steps.
    """

    def __init__(
        self, steps: Sequence[Step], vertices: Tensor, error: Tensor | float, until: float
    ) -> None:
        self.corners = len(vertices)
        point = Input("point", (), torch.Size([self.corners]))
        self.found: list[Step] = [point]
        self.blocks: list[tuple[int, int]] = []  # of deviations: their number and step
        self.none = torch.zeros(0, dtype=torch.int64, device=vertices.device)
        self.middle = vertices.new_zeros(0, self.corners)
        self.radius = self.middle  # (n, K), with the middle: range of each deviation
        last_use = {source: number for number, step in enumerate(steps) for source in step.sources}
        forms: dict[int, _Form] = {}
        for number, step in enumerate(steps):
            check_time(until)
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
        return _Form(vertices, vertices[:0], off, vertices.abs().amax(0) + off, self.none)

    def _affine(self, step: Affine, given: list[_Form]) -> _Form:
        count = max(len(form.slopes) for form in given)
        base = step.call(*(form.base for form in given))
        if isinstance(step, Dense):
            parts = zip(step.weights, given, strict=True)
            slopes = torch.stack([_padded(_through(*part), count) for part in parts]).sum(0)
        elif count:
            slopes = step.linear(*(_padded(form.slopes, count) for form in given))
        else:
            slopes = base[:0]
        error, size, some = step.spread(
            [torch.stack([form.error, form.size, (~form.is_zero).to(base)]) for form in given]
        )
        size = size + step.offset.abs() * (1 + self._most(count).sum())
        zero = (some == 0) & (size == 0)  # sums of zeros only
        error = error + step.error + rounding(step.terms, size).masked_fill(zero, 0)
        return _Form(base, slopes, error, size, self.none)

    def _rectifier(self, step: Rectifier, given: _Form) -> _Form:
        x = self._range(given)
        bend = Bend(x, step.ceiling, step.tilt)
        slope = (bend.chord() * _GRAIN).round() / _GRAIN
        bends = ~(bend.is_on | bend.is_off | bend.is_full)[0].flatten()
        units = bends.nonzero().flatten()
        self._count(len(units), step)
        full = torch.zeros_like(slope[0]).masked_fill(bend.is_full[0], step.ceiling)
        line = slope[0] - step.tilt
        base, slopes = given.base * line + full, given.slopes * line
        size = given.size * line.abs() + full
        error = given.error * line.abs() + rounding(2, size)
        error = error.masked_fill((line == 0) & (full == 0), 0)
        if len(units):
            inside = Range(*(each.flatten(-len(step.shape))[..., units] for each in x))
            part = Bend(inside, step.ceiling, slope[0].flatten()[units])
            zero = torch.zeros_like(inside.low)
            middle, radius = between(part.start_below(zero)[0], part.start_above(zero)[0])
            source = self._keep(step.name + "_in", given, units)
            tilt = part.tilt
            self._append(Rectifier(step.name, (source,), units.shape, step.ceiling, tilt))
            slopes, size = self._deviate(slopes, size, units, middle.T, radius.T)
        return _Form(base, slopes, error, size, units)

    def _max_pool(self, step: MaxPool, given: _Form) -> _Form:
        """Replace a window by its largest cell if that is constant; keep others whole."""
        x = self._range(given)
        tops, lower, upper = tops_of(step, x)
        units = (~tops.alone[0].flatten()).nonzero().flatten()
        self._count(len(units), step)

        def chosen(values: Tensor) -> Tensor:
            cells = tops.cell.expand(len(values), -1, -1)
            found = values.flatten(-2).gather(-1, cells).flatten(1)
            found[:, units] = 0
            return found.view(-1, *step.shape)

        base, slopes, error, size = (
            chosen(each) for each in (given.base, given.slopes, given.error[None], given.size[None])
        )
        if len(units):
            middle, radius = (each[0].flatten(1)[:, units].T for each in between(lower, upper))
            self._keep_windows(step, given, units, tops.cell[0].flatten()[units])
            slopes, size = self._deviate(slopes, size[0], units, middle, radius)
            return _Form(base, slopes, error[0], size, units)
        return _Form(base, slopes, error[0], size[0], units)

    def _keep_windows(self, step: MaxPool, given: _Form, units: Tensor, top: Tensor) -> None:
        cells = step.cells[units % len(step.cells)]
        cells = torch.where(cells < 0, top[:, None], cells)
        channel = units // len(step.cells) * math.prod(given.base.shape[-2:])
        source = self._keep(step.name + "_in", given, (channel[:, None] + cells).flatten())
        many, few = cells.numel(), len(units)
        shaped = self._reshape(source, torch.Size([1, 1, many]))
        places = torch.arange(many, device=cells.device).view(cells.shape)
        pooled = self._append(MaxPool(step.name, (shaped,), torch.Size([1, 1, few]), places))
        self._reshape(pooled, torch.Size([few]))

    def _reshape(self, source: int, shape: torch.Size) -> int:
        given = self.found[source]
        common = (given.name + "_as", (source,), shape)
        return self._append(
            Reshaped(*common, lambda x: x.reshape(len(x), *shape), [given.shape], 0, self.middle)
        )

    def _range(self, form: _Form) -> Range:
        """Range of values on the subdomain."""
        count = len(form.slopes)
        base, slopes = form.base.flatten(1), form.slopes.flatten(1)
        middle = base + self.middle[:count].T @ slopes
        radius = self.radius[:count].T @ slopes.abs() + form.error.flatten()
        size = form.size.flatten()
        radius = radius + rounding(count + 4, size).masked_fill(form.is_zero.flatten(), 0)
        below, above = (
            each[None].view(1, self.corners, *form.base.shape[1:])
            for each in (middle - radius, middle + radius)
        )
        return Range(below, above, below.amin(1), above.amax(1))

    def _most(self, count: int) -> Tensor:
        """(count,) bounds on deviations."""
        return (self.middle[:count].abs() + self.radius[:count]).amax(1)

    def _count(self, more: int, step: Step) -> None:
        _check_room(len(self.middle) + more, step)

    def _deviate(
        self, slopes: Tensor, size: Tensor, units: Tensor, middle: Tensor, radius: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add the last step's values (N, K) as deviations of units: all slopes, and the sizes."""
        before = len(self.middle)
        self.middle, self.radius = (
            torch.cat(both) for both in ((self.middle, middle), (self.radius, radius))
        )
        self.blocks.append((len(units), len(self.found) - 1))
        slopes = _padded(slopes, len(self.middle))
        new = torch.arange(before, len(slopes), device=units.device)
        slopes.flatten(1)[new, units] = 1
        size = size.flatten().index_add(0, units, self._most(len(slopes))[before:])
        return slopes, size.view(slopes.shape[1:])

    def _keep(self, name: str, form: _Form, units: Tensor) -> int:
        """Add a step of some units, and return its index."""
        weights, sources = [form.base.flatten(1)[:, units].T], [0]
        slopes = form.slopes.flatten(1).index_select(1, units).T
        counts = [count for count, _ in self.blocks]
        parts = _padded(slopes.T, sum(counts)).T.split(counts, 1)
        for (_, number), part in zip(self.blocks, parts, strict=True):
            if part.any():
                weights.append(part.contiguous())
                sources.append(number)
        return self._append(_dense(name, sources, weights, form.error.flatten()[units]))

    def _append(self, step: Step) -> int:
        bends = max(self.found[k].bends for k in step.sources)
        step.bends = bends + isinstance(step, Rectifier | MaxPool)
        self.found.append(step)
        return len(self.found) - 1


def _check_room(count: int, step: Step) -> None:
    if count > _BENDS or count * step.size * 8 > _MEMORY:
        raise TooManyBends


@torch.no_grad()
def check_bends(steps: Sequence[Step], vertices: Tensor) -> None:
    """Count rectifiers that are on at one vertex and off at another, so certainly unstable.

    This takes one pass of the vertices. Without it, thousands of images would take seconds and
    gigabytes before they are too many.

    Raises:
        TooManyBends: if these are already too many.
    """
    count = 0
    for number, bends in _bends_of(steps, vertices):
        count += bends
        _check_room(count, steps[number])


@torch.no_grad()
def pays(steps: Sequence[Step], vertices: Tensor) -> bool:
    """Whether to make a reduced network costs about as little as one bound of the network.

    Each unstable unit passes forward through all later steps when the reduced network is made, and
    backward through the earlier ones, from the second activation on, in a bound. So it pays where
    many unstable units are deep. The cost is counted in values, not seconds.

    Raises:
        TooManyBends: as `check_bends`.
    """
    sizes = [step.size if step.bends else 0 for step in steps]
    count = forward = backward = 0
    for number, bends in _bends_of(steps, vertices):
        count += bends
        _check_room(count, steps[number])
        forward += bends * sum(sizes[number:])
        backward += bends * sum(sizes[:number]) * (steps[number].bends > 1)
    return forward <= _PAYS * backward


def _bends_of(steps: Sequence[Step], vertices: Tensor) -> Iterator[tuple[int, int]]:
    """Index of each rectifier, and its units that are on at one vertex and off at another."""
    values = list[Tensor]()
    for number, value in enumerate(_values_of(steps, vertices)):
        values.append(value)
        if isinstance(steps[number], Rectifier):
            given = values[steps[number].sources[0]]
            yield number, int(((given.amax(0) > 0) & (given.amin(0) < 0)).sum())


def _padded(slopes: Tensor, count: int) -> Tensor:
    return torch.cat([slopes, slopes.new_zeros(count - len(slopes), *slopes.shape[1:])])


def _through(weight: Tensor, form: _Form) -> Tensor:
    """The slopes (n, N) of W x; one that is a unit's own is a column of W."""
    before = len(form.slopes) - len(form.units)
    return torch.cat([form.slopes[:before] @ weight.T, weight.T[form.units]])


def _products(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    parts = [value @ weight.T for value, weight in zip(values, weights, strict=True)]
    return torch.stack(parts).sum(0)


def _dense(name: str, sources: list[int], weights: list[Tensor], error: Tensor) -> Dense:
    """A step sum_i W_i x_i of its sources, (N, M_i) each, with error at most `error` (N,)."""
    found = Dense(
        name, tuple(sources), error.shape,
        call=lambda *values: _products(weights, values),
        taken=[weight.shape[1:] for weight in weights],
        terms=sum(weight.shape[1] for weight in weights) + 1,
        like=error,
        weights=weights,
    )  # fmt: skip
    found.error = error
    return found


def numbers_of(steps: Sequence[Step]) -> int:
    """Number of products in the linear and convolutional layers for an image."""
    count = 0
    for step in steps:
        if isinstance(step, Dense):
            count += sum(weight.numel() for weight in step.weights)
        elif isinstance(step, Weighted):
            count += step.size * step.weight[0].numel()
    return count


def values_of(steps: Sequence[Step], points: Tensor) -> Tensor:
    """Output of a network of steps at points (B, ...)."""
    *_, last = _values_of(steps, points)
    return last


def _values_of(steps: Sequence[Step], points: Tensor) -> Iterator[Tensor]:
    """Values of every step of a network at points (B, ...)."""
    values: list[Tensor] = []
    for step in steps:
        given = [values[k] for k in step.sources]
        if isinstance(step, Affine):
            values.append(step.call(*given))
        elif isinstance(step, Rectifier):
            values.append(given[0].clamp(0, step.ceiling) - step.tilt * given[0])
        elif isinstance(step, Smooth):
            values.append(step.value(*given))
        elif isinstance(step, MaxPool):
            values.append(windows(step, given[0]).amax(-1).unflatten(-1, step.shape[-2:]))
        else:
            values.append(points)
        yield values[-1]
