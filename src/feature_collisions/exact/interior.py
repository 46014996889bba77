"""Points of a polytope for certain, where its target is at the edge of the box."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lstsq
from scipy.optimize import linprog
from scipy.sparse import csr_array, hstack, vstack

_TIGHT = 1e-12  # of a row's length: what it has left where nothing is left
_MOVES = 0.5  # of 1: what may move at all moves by 1 in the linear program's answer


@dataclass(frozen=True)
class Interior:
    """A point of the polytope that is inside all constraints which some point of it is inside.

    Attributes:
        rows: (m, n) what is seen.
        limit: (m,) what the rows give at most.
        equal: (m,) bool, the rows that give just that, everywhere in the polytope.
        point: (n,).
        moves: (n,) bool, the pixels that are not the same everywhere in it.
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
        """Of the x in [0, 1] with rows x = limit where `equal`, else at most that; one is `target`.

        Directions in which the target may move are a cone. One of them moves all that any moves,
        and the linear program finds it: it counts what moves, each by at most 1.
        """
        slack = limit - rows @ target
        tight = ~equal & (slack <= _TIGHT * np.linalg.norm(rows, axis=1))
        edge = (target <= 0) | (target >= 1)
        inward = np.where(target >= 1, -1.0, 1.0)
        turned = csr_array(rows * inward)
        counted, count = turned[:, edge], int(edge.sum())
        of_rows = np.eye(int(tight.sum()))
        # d = the counted part of each, at most 1, and the rest; both at least 0 at an edge
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
        """Points of the polytope near points (n, B): the equations are met, then all the others."""
        x = np.where(self.moves[:, None], points, self.point[:, None])
        rows, limit = self.rows[self.equal], self.limit[self.equal, None]
        for _ in range(2):  # once more for the rounding of the first
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
    """How often `way` can be gone from `start` in [0, 1]."""
    return min(_until(1 - start, way), _until(start, -way))


def _until(slack: np.ndarray, way: np.ndarray) -> float:
    going = way > 0
    return float((slack[going] / way[going]).min(initial=np.inf))
