"""Exact corners of the polytope of section 2, where the target layer is affine in the pixels."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from scipy.optimize import linprog
from scipy.sparse import block_array, eye_array
from torch import Tensor, nn
from tqdm import tqdm

from ..data.images import check_pair
from ..errors import CollisionError, SettingError
from ..graph.agreement import check_agreement, validate_model
from ..graph.graph import Graph, trace
from ..graph.operations import NotPiecewiseLinear
from ..graph.probabilities import giving
from ..graph.target import (
    TargetFeatures,
    explain_forward_errors,
    logits_of,
    preactivation_of,
    target_features,
)
from ..graph.target_layer import Observed, TargetLayer
from ..hull.hull import Hull
from ..hull.outputs import output_of
from ..hull.statistics import AFFINE
from ..networks.unwrap import unwrap
from ..networks.weights import weights_hash
from ..runs.records import Summary
from ..search.losses import negative
from ..search.summary import summarise
from ..settings.rules import at_least, one_of
from ..settings.solver import OBJECTIVES
from ..settings.train import parse_corners
from .affine import AffineMap, affine_map
from .nearest import Constraints, nearest_point

_EXACT = 1e-3  # of ||f(t)||: pixels are rounded to float32
_SEEDS = 2**43  # a generator's has 64 bits, and each corner its own
_SAME = 1e-4  # corners nearer than this (L2, pixels in [0, 1]) are one


@dataclass(frozen=True)
class Polytope:
    """The images of section 2: active units at the target's values, the others at most 0.

    Attributes:
        map: images to oriented pre-activations, z of `TargetFeatures`.
        features: (N,) f(t) of active units.
        active: (N,) bool.
    """

    map: AffineMap
    features: np.ndarray
    active: np.ndarray

    @classmethod
    def around(cls, target: TargetFeatures, affine: AffineMap) -> "Polytope":
        """The polytope of a target, whose layer is `affine` in the pixels."""
        above, edge = target.above.numpy(), target.edge.numpy()
        weight, bias = affine.weight, affine.bias
        if edge.any():
            sign = np.where(above, -1.0, 1.0)
            weight = sign[:, None] * weight
            bias = sign * (bias - edge)
        return cls(AffineMap(weight, bias), target.values.numpy(), target.active.numpy())

    def near(self, unit: int, initial: np.ndarray, nearness: float) -> "Solution":
        """The image with the least f0_i + nearness / 2 |x - initial|^2: a quadratic program.

        As nearness grows, it is the collision nearest to `initial`.

        Args:
            unit: flat index i.
            initial: (C H W,) pixels.
            nearness: above 0.

        Raises:
            CollisionError: when there is no such image.
        """
        weight, bias = self.map.weight, self.map.bias
        constraints = Constraints(
            weight[self.active],
            (self.features - bias)[self.active],
            weight[~self.active],
            -bias[~self.active],
        )
        pixels, steps = nearest_point(initial - weight[unit] / nearness, constraints)
        value = weight[unit] @ pixels + bias[unit] + nearness / 2 * ((pixels - initial) ** 2).sum()
        return Solution(torch.from_numpy(pixels), float(value), steps)

    def solve(self, objective: str, unit: int, generator: torch.Generator) -> "Solution":
        """The corner of one objective.

        Args:
            objective: `eq2` (L_neg^i at L_pos = 0), `unit` (unit i alone) or `random` (a random
                direction of the pixels); the latter two keep inactive units at most 0.
            unit: flat index i; `random` ignores it.
            generator: decides the direction.

        Raises:
            CollisionError: when there is no such image.
        """
        weight, bias = self.map.weight, self.map.bias
        count, pixels = weight.shape
        if objective == "eq2":
            others = ~self.active & (np.arange(count) != unit)
            # |f0_j| = p + n where f0_j = p - n and both are at least 0
            split = eye_array(int(others.sum()))
            equal = block_array(
                [[weight[self.active], None, None], [weight[others], -split, split]], format="csc"
            )
            value = np.concatenate([(self.features - bias)[self.active], -bias[others]])
            cost = np.concatenate([weight[unit], np.ones(2 * int(others.sum()))])
            bounds = [(0, 1)] * pixels + [(0, None)] * (2 * int(others.sum()))
            # scipy takes sparse matrices here; its type hints do not say so
            result = linprog(  # type: ignore[call-overload]
                cost, A_eq=equal, b_eq=value, bounds=bounds, method="highs"
            )
        else:
            cost = weight[unit]
            if objective == "random":
                cost = torch.randn(pixels, generator=generator, dtype=torch.float64).numpy()
            result = linprog(
                cost,
                A_ub=weight[~self.active],
                b_ub=-bias[~self.active],
                A_eq=weight[self.active],
                b_eq=(self.features - bias)[self.active],
                bounds=(0, 1),
                method="highs",
            )
        if result.status == 2:
            raise CollisionError(
                "the polytope is empty: no image in [0, 1] has the target's features; choose "
                "another target"
            )
        if result.status != 0:
            raise CollisionError(f"unit {unit} has no corner: HiGHS says: {result.message}")
        image = torch.from_numpy(result.x[:pixels]).clamp(0, 1)
        offset = bias[unit] if objective != "random" else 0.0
        return Solution(image, float(result.fun + offset), int(result.nit))


@dataclass(frozen=True)
class Solution:
    """A corner's pixels (C H W,) float64, the objective's value there, the solver's iterations."""

    pixels: Tensor
    value: float
    iterations: int


@dataclass
class LinearPrograms:
    """Corners as linear programs: checked when made, solved by `run`, as `Search` is.

    Args:
        model, layer, target: as `Search` takes them.
        initial: (C, H, W), for the pictures, and for `corner_order`; corners depend on it with the
            objective `near` alone.
        corners: which of the target's inactive units to push down; `random`: just their numbers.
        objective: `eq2`, `unit`, `random`, or `near`: unit i as low as `nearness` / 2 times the
            squared distance from `initial` lets it go, which keeps the picture.
        seed: decides random directions; the other objectives have one answer.
        corner_order: how `corners` count units: `flat`, or `inactive_first`, as `Search` does for
            pixels, so a corner has one unit with both.
        nearness: `loss.nearness`, for `near`.
        output, threshold: as `find_corners` takes them.

    A search's other settings are none of these: the answer is exact, and found in float64.

    Raises:
        SettingError: for images that cannot be used, a layer that is not affine in the pixels, a
            corner that does not exist, or an unknown objective or order.
    """

    model: nn.Module
    layer: str
    initial: Tensor
    target: Tensor
    corners: Sequence[int]
    objective: str = "eq2"
    seed: int = 0
    corner_order: str = "flat"
    nearness: float = 0.0
    output: str = "classes"
    threshold: float | None = None
    graph: Graph = None  # type: ignore[assignment]  # traced where none is given

    def __post_init__(self) -> None:
        one_of("objective", self.objective, OBJECTIVES)
        one_of("corner_order", self.corner_order, ("flat", "inactive_first"))
        at_least("seed", self.seed, 0)
        if self.objective == "random" and self.seed >= _SEEDS:
            raise SettingError(
                "seed", self.seed, f"must be less than {_SEEDS} for random directions"
            )
        if self.objective == "near" and not self.nearness > 0:
            raise SettingError(
                "loss.nearness",
                f"{self.nearness:g}",
                "objective=near weighs the distance to the initial image with it: it must be "
                "above 0",
                "10 keeps a digit's picture",
            )
        self.corners = parse_corners(self.corners)
        check_pair(self.initial, self.target)
        self.initial, self.target = self.initial.detach().cpu(), self.target.detach().cpu()
        self.model = validate_model(unwrap(self.model))
        self.model = giving(self.model, torch.stack([self.initial, self.target]), self.output)
        self.graph = self.graph or trace(self.model, self.target.shape)
        self.features = target_features(self.graph, self.layer, self.target, torch.float64)
        cut = TargetLayer(self.graph, self.layer).cpu().double()  # where HiGHS solves
        pair = torch.stack([self.initial, self.target])
        with explain_forward_errors(self.target.shape):
            check_agreement(self.graph, self.layer, pair, Observed(self.graph, self.layer), [cut])
        start = None
        if self.corner_order == "inactive_first":
            start = preactivation_of(self.graph, self.layer, self.initial[None], torch.float64)[0]
        self.units = self.features.units(self.corners, start)
        try:
            affine = affine_map(cut, self.target.shape)
        except NotPiecewiseLinear as error:
            raise SettingError(
                "solver",
                "linear_program",
                f"layer {self.layer} is not affine in the pixels ({error})",
                "choose the first affine layer, or solver=gradient",
            ) from None
        self.polytope = Polytope.around(self.features, affine)
        self.cut = cut

    def run(self, logger: Logger | None = None) -> Hull:
        """Solve for every corner.

        Raises:
            CollisionError: when the polytope is empty.
        """
        started = time.perf_counter()
        found = list(self.solutions())
        seconds = time.perf_counter() - started
        exact = torch.stack([solution.pixels for solution in found])
        _warn_of_same(exact, self.corners)
        images = exact.float().view(-1, *self.target.shape)
        if self.objective == "random":  # a corner's name is then the unit that it has lowest
            oriented = self.features.oriented(self.cut(images.double()))
            inactive = torch.where(self.features.active, torch.inf, oriented)
            self.units = inactive.argmin(1)
        summary = self._summary(
            images,
            steps=sum(solution.iterations for solution in found),
            seconds=seconds,
            seconds_total=time.perf_counter() - started,
        )
        return Hull(
            self.model, self.layer, images, self.initial, self.target, self.units, summary,
            graph=self.graph,
        )  # fmt: skip

    def solutions(self, name: str = "Linear programs") -> list[Solution]:
        """Every corner's solution, in order."""
        units = tqdm(self.units.tolist(), name, unit="corner", mininterval=0.5, delay=1)
        if self.objective == "near":
            initial = self.initial.flatten().double().numpy()
            return [self.polytope.near(unit, initial, self.nearness) for unit in units]
        generator = torch.Generator()
        return [
            self.polytope.solve(
                self.objective, unit, generator.manual_seed(self.seed * 2**20 + corner)
            )
            for corner, unit in zip(self.corners, units, strict=True)
        ]

    def _summary(self, images: Tensor, **others: Any) -> Summary:
        logits = logits_of(self.model, self.target[None])[0]
        summary = summarise(
            self.graph, self.layer, (self.initial, self.target), images, self.corners, self.units,
            self.features, output_of(self.output, logits, self.threshold),
            experiment="linear_program", classifier_hash=weights_hash(self.model),
            solver="linear_program",
            objective=self.objective, hull_relative=AFFINE, converged=True, **others,
        )  # fmt: skip
        limit = _EXACT * float(self.features.features.norm())
        if far := [each.corner for each in summary.corners if not each.positive <= limit]:
            summary.converged = False
            warnings.warn(
                f"not converged: L_pos of corners {far} is not under {_EXACT:g} ||f(t)||: features "
                "this small are within the solver's tolerance of 1e-7; scale the network's weights",
                stacklevel=3,
            )
        return summary


def _warn_of_same(exact: Tensor, corners: Sequence[int]) -> None:
    distances = torch.cdist(exact, exact)
    same = [
        f"{corners[j]} is {corners[i]}"
        for i in range(len(exact))
        for j in range(i + 1, len(exact))
        if distances[i, j] < _SAME
    ]
    if same:
        warnings.warn(
            f"some corners do not exist on their own: corner {', '.join(same)}; the polytope has "
            "fewer corners than were asked for",
            stacklevel=3,
        )


def depth(hull: Hull) -> dict[str, Any]:
    """How deep gradient descent's corners are: L_neg as a share of Eq. 2's exact optimum.

    Both are of the units that the hull says its corners push down. The optimum is at L_pos = 0, by
    linear programs. Empty where the layer is not affine, or where the corners are linear programs'
    already.
    """
    if hull.summary.solver == "linear_program" or hull.summary.push != "unit":
        return {}
    cut = TargetLayer(hull.graph, hull.layer).cpu().double()  # where HiGHS solves
    try:
        affine = affine_map(cut, hull.target.shape)
    except NotPiecewiseLinear:
        return {}
    with torch.no_grad():
        target, *corners = cut(torch.stack([hull.target, *hull.corners]).cpu().double())
    features = TargetFeatures(target, hull.features.activation)
    polytope = Polytope.around(features, affine)
    units = tqdm(hull.units.tolist(), "Eq. 2's optima", unit="corner", mininterval=0.5, delay=1)
    try:
        optima = [polytope.solve("eq2", unit, torch.Generator()).value for unit in units]
    except CollisionError as error:
        return {"depth": {"reason": str(error)}}
    found = negative(
        features.oriented(torch.stack(corners)), ~features.active, hull.units.cpu()
    ).tolist()
    shares = [f / best if best < 0 else None for f, best in zip(found, optima, strict=True)]
    return {"depth": {"optimum": optima, "share": shares}}
