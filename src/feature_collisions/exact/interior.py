"""Interior points of a polytope whose target has pixels at 0 or 1."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lstsq
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

_TIGHT = 1e-12  # relative to a row's norm; a smaller remainder is zero
_MOVES = 0.5  # in the linear program's solution a variable that can move at all moves by 1


@dataclass(frozen=True)
class Interior:
    """A point that strictly satisfies every constraint which some point of the polytope does.

    Attributes:
        rows: (m, n) rows of the constraints.
        limit: (m,) upper limits.
        equal: (m,) bool, rows at their limit everywhere in the polytope.
        point: (n,) the point.
        moves: (n,) bool, pixels that are not constant in the polytope.
    """

    rows: np.ndarray
    limit: np.ndarray
    equal: np.ndarray
    point: np.ndarray
    moves: np.ndarray

    @classmethod
    def of(
        cls, rows: np.ndarray, limit: np.ndarray, equal: np.ndarray, target: np.ndarray
    ) -> "Interior":
        """Interior point of {x in [0, 1]: rows x = limit if `equal`, otherwise <= limit}.

        The polytope contains `target`. Feasible directions at it form a cone, and one of them moves
        every variable that any moves. The linear program finds it: it maximises the sum of the
        movements, each at most 1.
        """
        slack = limit - rows @ target
        tight = ~equal & (slack <= _TIGHT * np.linalg.norm(rows, axis=1))
        edge = (target <= 0) | (target >= 1)
        inward = np.where(target >= 1, -1.0, 1.0)
        turned = csr_array(rows * inward)
        counted, count = turned[:, edge], int(edge.sum())
        of_rows = np.eye(int(tight.sum()))
        # d = counted part (at most 1) + rest; both are >= 0 at an edge
        same = hstack([turned[equal], counted[equal], csr_array((int(equal.sum()), len(of_rows)))])
        less = hstack([turned[tight], counted[tight], csr_array(of_rows)])
        bounds = [(0 if at else None, None) for at in edge] + [(0, 1)] * (count + len(of_rows))
        cost = np.r_[np.zeros(len(edge)), -np.ones(count + len(of_rows))]
        found = linprog(  # type: ignore[call-overload]
            cost, A_eq=vstack([same]), b_eq=np.zeros(same.shape[0]), A_ub=vstack([less]),
            b_ub=np.zeros(less.shape[0]), bounds=bounds, method="highs",
        )  # fmt: skip
        values = np.zeros(len(cost)) if found.x is None else found.x
        part = np.split(values, [len(edge), len(edge) + count])
        moves, freed = ~edge, tight.copy()
        moves[edge], freed[tight] = part[1] > _MOVES, part[2] > _MOVES
        way = part[0].copy()
        way[edge] += part[1]
        way = np.where(moves, inward * way, 0.0)
        below = ~equal
        step = min(1.0, _longest(target, way), _until(slack[below], rows[below] @ way)) / 2
        return cls(rows, limit, equal | (tight & ~freed), target + step * way, moves)

    def from_near(self, points: np.ndarray) -> np.ndarray:
        """Points of the polytope near points (n, B): first meet the equations, then the rest."""
        x = np.where(self.moves[:, None], points, self.point[:, None])
        rows, limit = self.rows[self.equal], self.limit[self.equal, None]
        for _ in range(2):  # twice, because of rounding
            x[self.moves] += lstsq(
                rows[:, self.moves], limit - rows @ x, _TIGHT, lapack_driver="gelsy"
            )[0]
        below = self.rows[~self.equal]
        slack = self.limit[~self.equal] - below @ self.point
        for column in x.T:
            way = column - self.point
            step = min(1.0, _longest(self.point, way), _until(slack, below @ way))
            column[:] = (self.point + step * way).clip(0, 1)
        return x


def _longest(start: np.ndarray, way: np.ndarray) -> float:
    """Largest multiple of `way` that stays in [0, 1] from `start`."""
    return min(_until(1 - start, way), _until(start, -way))


def _until(slack: np.ndarray, way: np.ndarray) -> float:
    going = way > 0
    return float((slack[going] / way[going]).min(initial=np.inf))
