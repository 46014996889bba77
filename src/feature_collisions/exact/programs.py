"""Linear programs over the first layer's polytope: vertices (section 2), and optima of Eq. 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import block_array, eye_array
from torch import Tensor
from tqdm import tqdm

from ..errors import CollisionError, SettingError
from ..graph.target import TargetFeatures
from ..hull.hull import Hull
from ..runs.evaluation import Depth
from ..search.losses import negative
from ..settings.rules import one_of
from ..settings.solver import OBJECTIVES
from ..settings.train import parse_corners
from .first_layer import FirstLayer, first_layer
from .polytope import Polytope, Problem, polytope_of


class Solution(NamedTuple):
    """A point (n,) float64, the minimum of the objective, and the solver's iterations."""

    point: Tensor
    value: float
    iterations: int


def least(polytope: Polytope, cost: Tensor) -> Solution:
    """The point of the polytope that minimises `cost` (n,) times the pixels."""
    point, iterations = torch.where(cost > 0, 0.0, 1.0).double(), 0  # for pixels that nothing sees
    for problem in polytope.problems:
        for window, pixels in enumerate(problem.pixels):
            point[pixels] = polytope.target[pixels]
            if cost[pixels].any():
                found = _solve(problem, window, cost[pixels].numpy())
                point[pixels], iterations = found.point, iterations + found.iterations
    return Solution(point, float(cost @ point), iterations)


def least_of_eq2(polytope: Polytope, unit: int) -> Solution:
    """The minimum of L_neg^i of Eq. 2 at L_pos = 0, which holds other units near zero."""
    point, value, iterations = polytope.target.clone(), 0.0, 0
    for problem in polytope.problems:
        for window, pixels in enumerate(problem.pixels):
            found = _solve(problem, window, pushed=unit)
            point[pixels], iterations = found.point, iterations + found.iterations
            value += found.value
    return Solution(point, value, iterations)


def _solve(
    problem: Problem, window: int, cost: np.ndarray | None = None, pushed: int = -1
) -> Solution:
    """Minimise one window's cost, or z_i + sum_j |z_j| over inactive units with pushed unit i."""
    if problem.given is None:
        raise SettingError("layer", None, "is too large for linear programs", "set solver=exact")
    matrix, limit, equal = problem.given
    limit, below, held, constant = limit[:, window], ~equal, np.zeros_like(equal), 0.0
    if cost is None:
        own = (problem.units[window] == pushed).numpy()
        below, held = held, below & ~own
        cost, constant = matrix[own].sum(0), float(limit[own].sum())
    count, extra = len(cost), 2 * int(held.sum())
    split = eye_array(extra // 2)  # |z_j| = p + n with z_j = p - n and p, n >= 0
    same = block_array([[matrix[equal], None, None], [matrix[held], -split, split]], format="csc")
    result = linprog(  # type: ignore[call-overload]  # its type hints lack sparse matrices
        np.r_[cost, np.ones(extra)], A_eq=same, b_eq=np.r_[limit[equal], limit[held]],
        A_ub=np.pad(matrix[below], ((0, 0), (0, extra))), b_ub=limit[below],
        bounds=[(0, 1)] * count + [(0, None)] * extra, method="highs",
    )  # fmt: skip
    if result.status != 0:
        raise CollisionError(f"a corner was not found: HiGHS says: {result.message}")
    point = torch.from_numpy(result.x[:count]).clamp(0, 1)
    return Solution(point, float(result.fun) - constant, int(result.nit))


@dataclass(frozen=True)
class Pushed:
    """Corners that each push one unit down, or move along one direction.

    Attributes:
        corners: which of the target's inactive units to push down; for `random` only indices.
        objective: `eq2` (L_neg^i at L_pos = 0), `unit` (only unit i), `near` (unit i plus
            `nearness` / 2 times the squared distance from the initial image, which keeps the
            picture) or `random` (a random direction of the pixels). All except `eq2` keep inactive
            units <= 0.
        corner_order: order in which `corners` count units, `flat` or `inactive_first`, as in
            `Search`.
        nearness: `loss.nearness`, for `near`.

    Raises:
        SettingError: if objective, order, corners or nearness are invalid.
    """

    corners: Sequence[int]
    objective: str = "eq2"
    corner_order: str = "flat"
    nearness: float = 0.0

    def __post_init__(self) -> None:
        one_of("objective", self.objective, OBJECTIVES)
        one_of("corner_order", self.corner_order, ("flat", "inactive_first"))
        parse_corners(self.corners)
        if self.objective == "near" and not self.nearness > 0:
            raise SettingError(
                "loss.nearness",
                f"{self.nearness:g}",
                "objective=near weights the distance to the initial image with it, so it must be "
                "above 0",
                "10 keeps a digit recognisable",
            )

    def units(self, layer: FirstLayer, features: TargetFeatures, initial: Tensor) -> Tensor:
        """(K,) the units of the corners.

        Raises:
            SettingError: if a corner does not exist.
        """
        start = layer(initial[None])[0] if self.corner_order == "inactive_first" else None
        return features.units(self.corners, start)

    def solve(
        self, polytope: Polytope, ways: Tensor, units: Tensor, initial: Tensor, seed: int
    ) -> tuple[Tensor, int]:
        """Corners (K, n), and the number of steps.

        Args:
            polytope: of the target.
            ways: (K, n) gradient of each unit, oriented so that down is further hidden.
            units: (K,).
            initial: (C, H, W).
            seed: of random directions; the other objectives have one solution.
        """
        if self.objective == "near":
            return polytope.nearest(initial.flatten().double() - ways / self.nearness)
        if self.objective == "random":
            generator, ways = torch.Generator(), torch.empty_like(ways)
            for way, corner in zip(ways, self.corners, strict=True):
                way.normal_(generator=generator.manual_seed(seed * 2**20 + corner))
        problems = tqdm(
            zip(ways, units.tolist(), strict=True), "Linear programs", len(units), unit="corner",
            mininterval=0.5, delay=1,
        )  # fmt: skip
        found = [
            least_of_eq2(polytope, unit) if self.objective == "eq2" else least(polytope, way)
            for way, unit in problems
        ]
        return torch.stack([each.point for each in found]), sum(each.iterations for each in found)


def depth(hull: Hull) -> Depth | None:
    """L_neg of gradient descent's corners as a share of Eq. 2's exact optimum.

    Both are for the units of the hull's corners. The optimum at L_pos = 0 is found by linear
    programs. None if the layer is not affine, or the corners are from linear programs.
    """
    if hull.summary.solver != "gradient" or hull.summary.push != "unit":
        return None
    try:
        layer = first_layer(hull.graph, hull.layer)
    except SettingError:
        return None
    corners, target = hull.corners.cpu(), hull.target.cpu()
    features = TargetFeatures(layer(target[None])[0], hull.features.activation)
    polytope = polytope_of(layer, target, features)
    units = tqdm(hull.units.tolist(), "Eq. 2's optima", unit="corner", mininterval=0.5, delay=1)
    try:
        optima = [least_of_eq2(polytope, unit).value for unit in units]
    except CollisionError as error:
        return Depth(reason=str(error))
    except SettingError:
        return None
    found = negative(features.oriented(layer(corners)), ~features.active, hull.units.cpu()).tolist()
    shares = [f / best if best < 0 else None for f, best in zip(found, optima, strict=True)]
    return Depth(optimum=optima, share=shares)
