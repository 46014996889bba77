"""Affine forms over a simplex with K vertices: the checker's arithmetic, with rounding bounded.

A value over the simplex is

    z(w) = sum_k w_k (m_k + sum_j c_j s_jk e_j) + r e_0,   w >= 0, sum_k w_k = 1, |e_j| <= 1,

m_k its middle at vertex k, c_j how it moves with deviation j, whose size s_jk is linear in w. The
e_j may be any function of w. Affine steps keep this shape. What bends is g(z) = y - a z for some a,
convex and at least 0: by convexity g(z(w)) <= sum_k w_k d_k, d_k the largest g at vertex k, so

    y = a z + sum_k w_k d_k / 2 (1 + e),   |e| <= 1.

Everything is float64, and each step adds to r what it may round by: a sum of n products is off by
at most n u / (1 - n u) times the sum of their absolute values, u = 2^-53, in any order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
_UNIT = 2.0**-53
_TINY = 1e-290  # for what underflows
_FEW = 8  # operations on a number at most, where a step names no count


@dataclass
class Form:
    """Values of one shape.

    Attributes:
        middle: (K, ...) at the vertices.
        columns: (J, ...) how each deviation moves them; later deviations do not.
        radius: (...) by how much they may be off.
    """

    middle: Array
    columns: Array
    radius: Array

    def reshaped(self, *shape: int) -> "Form":
        """The same numbers in another shape."""
        count, moved = len(self.middle), len(self.columns)
        middle, columns = self.middle.reshape(count, *shape), self.columns.reshape(moved, *shape)
        return Form(middle, columns, self.radius.reshape(shape))


def up(sums: Array | np.floating[Any], terms: int = _FEW) -> Array:
    """At least the true sums: of `terms` numbers that are at least 0."""
    return np.asarray(sums * (1 + 4 * (terms + _FEW) * _UNIT) + _TINY)


class Forms:
    """Steps of affine forms over one simplex.

    Args:
        vertices: (K, C, H, W).
        error: (K, C, H, W) how far each pixel may be off.
        most: deviations to keep apart; of more the smallest are put into the radius.

    Attributes:
        start: the images.
    """

    def __init__(self, vertices: Array, error: Array, most: int) -> None:
        self.sizes = np.zeros((0, len(vertices)))
        self.most = most
        columns = np.zeros((0, *vertices.shape[1:]))
        self.start = Form(vertices, columns, error.max(0))

    def reach(self, form: Form) -> Array:
        """(K, ...) how far values may be from their middle at each vertex."""
        count = len(form.columns)
        moved = np.tensordot(self.sizes[:count].T, np.abs(form.columns), 1)
        return up(moved + form.radius + 2 * _UNIT * np.abs(form.middle), count)

    def affine(
        self,
        form: Form,
        linear: Callable[[Array], Array],
        absolute: Callable[[Array], Array] | None = None,
        offset: Array | float = 0.0,
        terms: int = _FEW,
    ) -> Form:
        """A z + b.

        Args:
            form: z.
            linear: applies A to a batch (B, ...).
            absolute: applies |A|; None: A itself, whose entries are at least 0.
            offset: b.
            terms: how many products a sum has at most, with what A's entries are rounded by.
        """
        largest = up((np.abs(form.middle) + self.reach(form)).max(0))
        radius, size = up((absolute or linear)(np.stack([form.radius, largest])), terms)
        rounded = (terms + _FEW) * _UNIT * (size + np.abs(offset))
        middle, columns = linear(form.middle) + offset, linear(form.columns)
        return Form(middle, columns, up(radius + up(rounded)))

    def total(self, one: Form, other: Form, sign: int = 1) -> Form:
        """x + y, or x - y."""
        both = [np.abs(each.middle) + self.reach(each) for each in (one, other)]
        count = max(len(one.columns), len(other.columns))
        first, second = (_padded(each.columns, count) for each in (one, other))
        radius = one.radius + other.radius + _FEW * _UNIT * (both[0] + both[1]).max(0)
        return Form(one.middle + sign * other.middle, first + sign * second, up(radius))

    def joined(self, forms: list[Form], axis: int) -> Form:
        """One after the other along an axis of a batch."""
        count = max(len(form.columns) for form in forms)
        return Form(
            np.concatenate([form.middle for form in forms], axis),
            np.concatenate([_padded(form.columns, count) for form in forms], axis),
            np.concatenate([form.radius for form in forms], axis - 1),
        )

    def rectified(self, form: Form) -> Form:
        """max(z, 0): g(z) = max(z, 0) - a z with a = u / (u - l) for z in [l, u]."""
        reach = self.reach(form)
        low, high = form.middle - reach, form.middle + reach
        least, most = low.min(0), high.max(0)
        bends = ~((least >= 0) | (most <= 0))  # NaN bends
        slope = np.where(bends, np.clip(most / (most - least), 0, 1), least >= 0)
        above = np.maximum(_gap(low, slope), _gap(high, slope))
        rounded = np.where(bends, _FEW * _UNIT * (np.abs(low) + np.abs(high)).max(0), 0)
        above = np.where(bends, up(above + rounded), 0)
        return self._bent(form, slope, above, bends, rounded)

    def clipped(self, form: Form, ceiling: float) -> Form:
        """min(max(z, 0), c) = max(z, 0) - max(z - c, 0)."""
        shifted = self.affine(form, lambda z: z, offset=-ceiling)
        return self.total(self.rectified(form), self.rectified(shifted), -1)

    def largest(self, form: Form, cells: Array) -> Form:
        """The largest of each window: (C, P) to (C, windows).

        g = max_i (z_i - z_b), 0 for the cell b, which is the largest at the simplex's centre.

        Args:
            form: (C, P), places in flat order.
            cells: (windows, cells) places of each; -1 for none.
        """
        centre = np.where(cells >= 0, form.middle.mean(0)[:, cells], -np.inf)
        best = np.take_along_axis(np.broadcast_to(cells, centre.shape),
                                  centre.argmax(2)[..., None], 2)[..., 0]  # fmt: skip
        channel = np.arange(len(best))[:, None]
        top = Form(*(each[..., channel, best] for each in (form.middle, form.columns, form.radius)))
        above = np.zeros_like(top.middle)
        for cell in cells.T:
            other = Form(form.middle[..., cell], form.columns[..., cell], form.radius[..., cell])
            gap = self.total(other, top, -1)
            more = np.maximum(gap.middle + self.reach(gap), 0)
            above = np.maximum(above, np.where((cell >= 0) & (cell != best), more, 0))
        bends = ~(above.max(0) <= 0)
        rounded = np.where(bends, _FEW * _UNIT * (np.abs(top.middle) + above).max(0), 0)
        return self._bent(top, np.ones_like(top.radius), above, bends, rounded)

    def _bent(self, form: Form, slope: Array, above: Array, bends: Array, rounded: Array) -> Form:
        """a z + sum_k w_k d_k / 2 (1 + e), with one deviation for each value that bends.

        Args:
            form: z.
            slope: a.
            above: (K, ...) d.
            bends: where d is not 0.
            rounded: what else it may be off by.
        """
        size = (np.abs(form.middle) + self.reach(form)).max(0) + above.max(0)
        radius = slope * form.radius + rounded + np.where(bends, _FEW * _UNIT * size, 0)
        where = np.flatnonzero(bends)
        half = (above / 2).reshape(len(above), -1)[:, where]
        order = np.argsort(-half.max(0), kind="stable")
        kept, rest = np.split(order, [max(0, self.most - len(self.sizes))])
        radius.reshape(-1)[where[rest]] += half[:, rest].max(0)
        moved = _padded(slope * form.columns, len(self.sizes))
        own = np.zeros((len(kept), radius.size))
        own[np.arange(len(kept)), where[kept]] = 1.0
        self.sizes = np.concatenate([self.sizes, half[:, kept].T])
        columns = np.concatenate([moved, own.reshape(len(kept), *radius.shape)])
        return Form(slope * form.middle + above / 2, columns, up(radius))


def _padded(columns: Array, count: int) -> Array:
    """Columns, with zeros up to a number of them."""
    return np.concatenate([columns, np.zeros((count - len(columns), *columns.shape[1:]))])


def _gap(z: Array, slope: Array) -> Array:
    """max(z, 0) - a z."""
    found: Array = np.maximum(z, 0) - slope * z
    return found
