"""The nearest point of a polytope, exactly: a quadratic program, by Newton's method on its dual."""

from dataclasses import dataclass

import numpy as np

from ..errors import CollisionError

_STEPS = 500
_TOLERANCE = 1e-10  # of the constraints' largest value: what float64 leaves
_SHORTEST = 2.0**-40  # of a step: below it rounding decides


@dataclass(frozen=True)
class Constraints:
    """equal x = value, below x <= limit, 0 <= x <= 1; (M, n) and (L, n) matrices, float64."""

    equal: np.ndarray
    value: np.ndarray
    below: np.ndarray
    limit: np.ndarray


def nearest_point(point: np.ndarray, constraints: Constraints) -> tuple[np.ndarray, int]:
    """The x nearest to `point` (n,) in L2 that fulfils the constraints, and the steps it took.

    To minimise |x - point|^2 / 2 + v.x is to be nearest to point - v: so this solves every
    quadratic program whose quadratic part is a distance. For multipliers u of the constraints'
    rows M, the x that minimises the Lagrangian is clip(point - M'u); what remains is to maximise a
    concave, piecewise quadratic function of as many numbers as there are rows, those of `below`
    being at least 0. Newton's method on the pieces ends at the optimum after a few steps.

    Raises:
        CollisionError: when no x fulfils the constraints.
    """
    rows = np.vstack([constraints.equal, constraints.below])
    sides = np.concatenate([constraints.value, constraints.limit])
    equal = np.arange(len(sides)) < len(constraints.value)
    limit = _TOLERANCE * max(1.0, float(np.abs(sides).max(initial=0)))

    def dual(u: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """The unclipped x, the dual's gradient and its value."""
        free = point - rows.T @ u
        x = free.clip(0, 1)
        gap = rows @ x - sides
        return free, gap, float(((x - point) ** 2).sum() / 2 + u @ gap)

    u = np.zeros(len(sides))
    free, gap, value = dual(u)
    for step in range(_STEPS):
        left = np.where(equal, gap, np.maximum(gap, -u))
        if np.abs(left).max(initial=0) <= limit:
            return free.clip(0, 1), step
        moving, inside = equal | (u > 0) | (gap > 0), (free > 0) & (free < 1)
        part = rows[np.ix_(moving, inside)]
        curvature = part @ part.T
        curvature[np.diag_indices(len(part))] += 1e-12 * (1 + np.trace(curvature))
        direction = np.zeros(len(u))
        direction[moving] = np.linalg.solve(curvature, gap[moving])
        length = 1.0
        while length > _SHORTEST:
            new = u + length * direction
            new = np.where(equal, new, np.maximum(new, 0))
            found = dual(new)
            if found[2] >= value + 1e-4 * gap @ (new - u) - 1e-12 * abs(value):
                break
            length /= 2
        u, (free, gap, value) = new, found
    raise CollisionError(
        "the polytope is empty, or next to it: no image in [0, 1] was found that has the target's "
        "features; choose another target"
    )
