"""Nearest points of polytopes: quadratic programs by Newton's method on their duals."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from scipy.linalg import qr, solve_triangular
from torch import Tensor

_STEPS = 200
_TOLERANCE = 1e-12  # relative to the norm of the sides: accuracy of float64
_SHORTEST = 2.0**-40  # shortest step; rounding dominates below
_COARSE = 1e-3  # relative accuracy of steps that float32 suffices for
_CONJUGATE = 60  # conjugate gradient steps per Newton step
_DIRECT = 2**32  # products to form systems that are solved directly, as the last few are
_HELD = 2**22  # numbers in the rows of systems solved together: 32 MiB
_TINY = 1e-30  # replaces 0 in a denominator
_LITTLE = 1e-10  # added to curvatures of about 1, which pixels at 0 and 1 can make 0
_PAST = 0.5  # largest negative slope at a step's end, relative to the slope at its start


class Rows(Protocol):
    """A linear map of several points at once."""

    def times(self, points: Tensor) -> Tensor:
        """(n, B) to (M, B)."""

    def back(self, multipliers: Tensor) -> Tensor:
        """(M, B) to (n, B) by the transpose."""


@dataclass(frozen=True)
class Matrix:
    """An explicit matrix: weight (M, n), float64."""

    weight: Tensor

    def times(self, points: Tensor) -> Tensor:
        """(n, B) to (M, B)."""
        return self.weight @ points

    def back(self, multipliers: Tensor) -> Tensor:
        """(M, B) to (n, B)."""
        return self.weight.mT @ multipliers


class Nearest(NamedTuple):
    """Nearest points (n, B), number of Newton steps, relative violation of constraints (B,)."""

    points: Tensor
    steps: int
    error: Tensor


class _State(NamedTuple):
    """State of B unsolved problems, the last axis of every tensor; see `nearest_points`."""

    point: Tensor
    side: Tensor
    scale: Tensor
    u: Tensor
    free: Tensor
    gap: Tensor
    value: Tensor

    def at(self, which: Tensor) -> "_State":
        return _State(*(each[..., which] for each in self))


def nearest_points(
    points: Tensor, rows: Rows, sides: Tensor, equal: Tensor, tolerance: float = _TOLERANCE
) -> Nearest:
    """The x nearest to each point in L2 with rows x = sides, or <= sides, and 0 <= x <= 1.

    Minimising |x - point|^2 / 2 + v.x finds the point nearest to point - v, so this solves every
    quadratic program whose quadratic part is a distance. For multipliers u the Lagrangian has the
    minimiser x = clip(point - rows' u). The dual is a concave, piecewise quadratic function of M
    numbers, those of inequalities >= 0. Newton's method reaches its maximum in a few steps.
    Conjugate gradients solve the systems; with orthonormal rows they are near the identity.

    Args:
        points: (n, B) float64.
        rows: M rows, shared by all problems.
        sides: (M, B).
        equal: (M,) bool, the rows that are equations.
        tolerance: relative to the norm of the sides, or absolute if that is below 1.
    """
    u = torch.zeros_like(sides)
    scale = sides.norm(dim=0).clamp_min(1)
    state = _State(points, sides, scale, u, *_dual(rows, points, sides, u))
    found, error = torch.empty_like(points), torch.empty_like(scale)
    left = torch.arange(points.shape[1])
    for step in range(_STEPS + 1):
        off = torch.where(equal[:, None], state.gap, state.gap.maximum(-state.u))
        off = off.norm(dim=0) / state.scale
        found[:, left], error[left] = state.free.clamp(0, 1), off
        open_ = off > tolerance
        if not open_.any() or step == _STEPS:
            break
        left, state = left[open_], state.at(open_)
        state = _newton(rows, state, equal[:, None], float(off.max()))
    return Nearest(found, step, error)


def _dual(rows: Rows, point: Tensor, side: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unclipped x (n, B), gradient (M, B) and value (B,) of the dual."""
    free = point - rows.back(u)
    x = free.clamp(0, 1)
    gap = rows.times(x) - side
    return free, gap, (x - point).square().sum(0) / 2 + (u * gap).sum(0)


def _newton(rows: Rows, state: _State, equal: Tensor, error: float) -> _State:
    """One Newton step of every problem, with a line search on the dual."""
    moving = (equal | (state.u > 0) | (state.gap > 0)).to(state.u)
    inside = ((state.free > 0) & (state.free < 1)).to(state.u)

    goal = moving * state.gap
    length = (state.free.clamp(0, 1) - state.point).norm(dim=0)  # the multipliers' norm is similar
    damping: Tensor = (goal.norm(dim=0) / length.clamp_min(1)).clamp_min(_LITTLE)

    if (
        isinstance(rows, Matrix)
        and rows.weight.shape[0] * rows.weight.numel() * goal.shape[1] <= _DIRECT
    ):
        direction = _solved(rows.weight, moving, inside, goal, damping)
    else:
        direction = _conjugate_gradients(rows, moving, inside, goal, damping, min(0.1, error))
    length = torch.ones_like(state.value)
    new, left = state, torch.arange(len(length))
    parts = [each.clone() for each in (state.u, state.free, state.gap, state.value)]
    while len(left):
        old = state.at(left)
        u = old.u + length[left] * direction[:, left]
        u = torch.where(equal, u, u.clamp_min(0))
        free, gap, value = _dual(rows, old.point, old.side, u)
        growth = (old.gap * (u - old.u)).sum(0)
        enough = value >= old.value + 1e-4 * growth - 1e-12 * old.value.abs()
        enough &= (gap * (u - old.u)).sum(0) >= -_PAST * growth  # values differ only by rounding
        ended = enough | (length[left] <= _SHORTEST)
        for part, each in zip(parts, (u, free, gap, value), strict=True):
            part[..., left[ended]] = each[..., ended]
        left = left[~ended]
        length[left] /= 2
    return new._replace(u=parts[0], free=parts[1], gap=parts[2], value=parts[3])


def _solved(
    weight: Tensor, moving: Tensor, inside: Tensor, goal: Tensor, damping: Tensor
) -> Tensor:
    """Solve the system directly, for many columns of the goal (M, B) together."""
    found = torch.zeros_like(goal)
    for part in torch.arange(goal.shape[1]).split(max(1, _HELD // weight.numel())):
        of = moving[:, part].any(1).nonzero()[:, 0]
        seen = weight[of][:, inside[:, part].any(1)]
        rows = moving[of][:, part].mT[:, :, None] * seen
        rows = rows * inside[:, part][inside[:, part].any(1)].mT[:, None]
        curved = rows @ rows.mT  # (B, M, M)
        curved.diagonal(dim1=1, dim2=2).add_(damping[part, None])
        factor = torch.linalg.cholesky(curved)
        solved = torch.cholesky_solve(goal[of][:, part].mT[..., None], factor)
        found[of[:, None], part] = solved[..., 0].mT
    return found


def _conjugate_gradients(
    rows: Rows, moving: Tensor, inside: Tensor, goal: Tensor, damping: Tensor, share: float
) -> Tensor:
    """Solve curvature(x) = goal for each column, to the relative accuracy `share`.

    In float32 if it suffices.
    """
    if isinstance(rows, Matrix) and share > _COARSE and goal.dtype == torch.float64:
        narrow = (Matrix(rows.weight.float()), moving.float(), inside.float(), goal.float())
        return _conjugate_gradients(*narrow, damping.float(), share).double()

    def curvature(v: Tensor) -> Tensor:
        found: Tensor = moving * rows.times(inside * rows.back(moving * v)) + damping * v
        return found

    x, rest, way = torch.zeros_like(goal), goal.clone(), goal.clone()
    square = rest.square().sum(0)
    enough = share**2 * square
    for _ in range(_CONJUGATE):
        if not (square > enough).any():
            break
        turned = curvature(way)
        along = (way * turned).sum(0)
        on = (square > enough) & (along > 0)
        step = torch.where(on, square / along.clamp_min(_TINY), 0.0)
        x += step * way
        rest -= step * turned
        new = torch.where(on, rest.square().sum(0), 0.0)
        way = rest + new / square.clamp_min(_TINY) * way
        square = new
    return x


_DEPENDENT = 1e-7  # relative to the largest; a row that adds less counts as dependent


class Conditioned:
    """Constraints rewritten with orthonormal equations, and inequalities orthogonal to them.

    Args:
        equal: (E, n) rows of equations, float64; they may be dependent.
        below: (L, n) rows of inequalities.

    Attributes:
        rows: the rewritten rows.
        equal: (M,) bool, which of them are equations.
        rank: of the equations.
    """

    def __init__(self, equal: np.ndarray, below: np.ndarray) -> None:
        if not len(equal):  # LAPACK rejects empty matrices
            equal = np.zeros((1, equal.shape[1]))
        basis, triangle = qr(equal.T, mode="economic")
        order, sizes = np.arange(len(triangle)), np.abs(np.diag(triangle))
        if len(equal) > len(sizes) or sizes.min() <= _DEPENDENT * sizes.max():
            basis, triangle, order = qr(equal.T, mode="economic", pivoting=True)
            sizes = np.abs(np.diag(triangle))
        least = max(equal.shape) * np.finfo(float).eps * sizes[0]
        self.rank = rank = int((sizes > least).sum())
        self._basis = basis = basis[:, :rank].T
        self._triangle, self._order = triangle[:rank, :rank], order[:rank]
        self._tied = below @ basis.T
        rest = below - self._tied @ basis
        lengths = np.linalg.norm(rest, axis=1)
        self._kept = lengths > 1e-12 * np.linalg.norm(below, axis=1)  # others are implied
        self._lengths = lengths[self._kept]
        rows = np.vstack([basis, rest[self._kept] / self._lengths[:, None]])
        self.rows = Matrix(torch.from_numpy(rows))
        self.equal = torch.arange(len(rows)) < rank

    def sides(self, value: np.ndarray, limit: np.ndarray) -> Tensor:
        """Sides (M, B) of the rewritten rows, for equal x = value (E, B), below x <= limit."""
        at = np.zeros((self.rank, limit.shape[1]))
        if self.rank:
            at = solve_triangular(self._triangle, value[self._order], trans="T")
        rest = (limit - self._tied @ at)[self._kept] / self._lengths[:, None]
        return torch.from_numpy(np.vstack([at, rest]))
