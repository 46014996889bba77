"""Corners with the target's values at a linear first layer: `exact_hull`."""

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ..data.images import check_image, check_pair
from ..errors import CollisionError, SettingError
from ..graph.agreement import validate_model
from ..graph.flow import following
from ..graph.graph import Graph, trace
from ..graph.probabilities import giving
from ..graph.target import (
    TOLERANCE,
    TargetFeatures,
    explain_forward_errors,
    logits_of,
    with_edges,
)
from ..hull.hull import Hull
from ..hull.outputs import output_of
from ..hull.statistics import AFFINE
from ..networks.unwrap import unwrap, unwrap_layer
from ..networks.weights import weights_hash
from ..runs.records import Summary
from ..search.summary import summarise
from ..settings.rules import SEED, whole
from .eight_bits import with_exact_pngs
from .first_layer import FirstLayer, first_layer
from .polytope import Polytope, polytope_of
from .programs import Pushed

_MOST = 1000  # corners
_SAME = 1e-4  # L2 distance, pixels in [0, 1], below which corners coincide
_EXACT = 1e-9  # relative to ||W t||: required accuracy of the corners in float64
_OF_PROGRAMS = 1e-7  # tolerance of HiGHS, and of float32 pixels
_MOVED = 1e-6  # relative to the distance from target to picture; smaller movements are rounding


def exact_hull(
    model: nn.Module, target: Tensor, towards: Tensor | int, layer: str = "auto", seed: int = 0
) -> Hull:
    """Corners with the target's values at a linear first layer, and so at every later layer.

    The images x in [0, 1] with W (x - t) = 0 are a convex polytope. The network gives all its
    points the same output, and so all interpolations of the corners. If an activation with an
    exactly flat side follows, units that it hides only need to stay beyond its edge. Corners are
    found in float64 and saved in float32; `prove` accounts for the rounding. Small
    windows are moved by a few levels, so 8-bit PNGs of them are nearly exact.

    Args:
        model: any network whose graph begins with affine steps.
        target: (C, H, W) float32 in [0, 1].
        towards: (K, C, H, W) pictures; each corner is the point of the polytope nearest to one of
            them. Or K, for K corners far from each other, moved along random directions first.
        layer: name of an affine layer that everything flows through; `auto` for the last.
        seed: of the random directions.

    Returns:
        The hull. Its initial image is the first picture, or the target.

    Raises:
        SettingError: if images cannot be used, the network does not begin with a linear layer, or
            the layer hides nothing.
        CollisionError: if the target's pixels at 0 or 1 leave no other image.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> stem = torch.nn.Conv2d(1, 4, 4, stride=4)
        >>> model = torch.nn.Sequential(stem, torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> hull = exact_hull(model, torch.rand(1, 8, 8), towards=torch.rand(3, 1, 8, 8))
        >>> logits = model(hull.corners)
        >>> torch.allclose(logits, hull.target_logits.expand_as(logits), atol=1e-5)
        True
    """
    return ExactCorners(model, target, towards, layer, seed).run()


@dataclass
class ExactCorners:
    """Points of the first layer's polytope: checked on creation, found by `run`, as in `Search`.

    Args:
        model, target, layer: as for `exact_hull`.
        towards: also `Pushed`, for corners that push units.
        seed: of random directions.
        graph: graph of the model that returns logits; traced if None.
        initial: (C, H, W), for the pictures of the run.
        numbers: indices of the corners; from 0 by default.
        output, threshold: as for `find_corners`.

    Attributes:
        first: the first layer.
        features: the target's features at it.
        polytope: the images with the same features.
        units: (K,) that the corners push down; -1 for none.

    Raises:
        SettingError: if images cannot be used, the layer is not linear in the pixels or hides
            nothing, or a corner does not exist.
    """

    model: nn.Module
    target: Tensor
    towards: Tensor | int | Pushed
    layer: str = "auto"
    seed: int = 0
    graph: Graph = None  # type: ignore[assignment]
    initial: Tensor | None = None
    numbers: Sequence[int] | None = None
    output: str = "classes"
    threshold: float | None = None

    def __post_init__(self) -> None:
        whole("seed", self.seed, 0, SEED)
        check_image("target", self.target)
        if self.initial is not None:
            check_pair(self.initial, self.target)
        self.target = self.target.detach().cpu()
        self.towards = _checked(self.towards, self.target)
        if self.layer != "auto":
            self.layer = unwrap_layer(self.model, self.layer)
        self.model = validate_model(unwrap(self.model))
        images = self._pictures()
        with explain_forward_errors(self.target.shape):
            logits_of(self.model, images)
            self.model = giving(self.model, images, self.output)
            if self.graph is None or self.graph.model is not self.model:
                self.graph = trace(self.model, self.target.shape)
            self.first: FirstLayer = first_layer(self.graph, self.layer)
        self.layer = self.first.name
        self.features = self.first.features(self.target)
        if isinstance(self.towards, Pushed):
            found = following(self.graph, self.layer).activation
            values = self.features.preactivation
            self.features = TargetFeatures(values, with_edges(found, values, TOLERANCE))
            self.units = self.towards.units(self.first, self.features, images[0])
            self.numbers = self.towards.corners
        else:
            number = self.towards if isinstance(self.towards, int) else len(self.towards)
            self.units = torch.full((number,), -1)
        self.polytope: Polytope = polytope_of(self.first, self.target, self.features)
        if not self.polytope.hidden:
            count = len(self.first.bias)
            raise SettingError(
                "layer",
                self.layer,
                f"this layer hides nothing: its {count} values leave none of the "
                f"{self.target.numel()} directions of the pixels free",
                "choose a network whose first layer has fewer outputs than inputs, or search "
                "with solver=gradient",
            )

    def _pictures(self) -> Tensor:
        """(2, C, H, W): the initial image and the target."""
        if self.initial is None:
            towards = self.towards
            self.initial = towards[0] if isinstance(towards, Tensor) else self.target
        self.initial = self.initial.detach().cpu()
        return torch.stack([self.initial, self.target])

    def run(self, logger: Logger | None = None) -> Hull:
        """Find the corners.

        Raises:
            CollisionError: if the target's pixels at 0 or 1 leave no other image.
        """
        started = time.perf_counter()
        found, steps = self._points()
        seconds = time.perf_counter() - started
        exact = found.view(-1, *self.target.shape)
        wanted = 1.0
        if isinstance(self.towards, Tensor):
            wanted = float((self.towards - self.target).abs().max().clamp_max(1))
        if not (exact - self.target).abs().max() > wanted * _MOVED and wanted:
            raise CollisionError(
                f"no image but the target has its values at {self.layer}: the layer hides "
                f"{self.polytope.hidden} directions, but the target's pixels at 0 or 1 leave none "
                "of them free; choose another target"
            )
        corners, numbers = exact.float(), self.numbers or range(len(exact))
        _warn_of_same(found, numbers)
        summary = self._summary(exact, corners, numbers)
        summary.steps, summary.seconds = steps, seconds
        summary.seconds_total = time.perf_counter() - started
        assert self.initial is not None
        return Hull(
            self.model, self.layer, corners, self.initial, self.target, self.units, summary,
            graph=self.graph,
        )  # fmt: skip

    def _points(self) -> tuple[Tensor, int]:
        """The corners (K, n) float64, and the number of steps."""
        if not isinstance(self.towards, Pushed):
            if isinstance(self.towards, Tensor):
                found, steps = self.polytope.nearest(self.towards.flatten(1).double())
            else:
                generator = torch.Generator().manual_seed(self.seed)
                found, steps = self.polytope.apart(self.towards, generator)
            return with_exact_pngs(self.polytope, found), steps
        assert self.initial is not None
        each = torch.arange(len(self.units))
        rows = torch.zeros(len(each), len(self.first.bias), dtype=torch.float64)
        rows[each, self.units] = torch.where(self.features.above[self.units], -1.0, 1.0).double()
        ways = self.first.back(rows)
        return self.towards.solve(self.polytope, ways, self.units, self.initial, self.seed)

    def _summary(self, exact: Tensor, corners: Tensor, numbers: Sequence[int]) -> Summary:
        solver, push, objective = "exact", "direction", "near"
        features = self.features
        if isinstance(self.towards, int):
            push, objective = "apart", "random"
        elif isinstance(self.towards, Pushed):
            solver, push, objective = "linear_program", "unit", self.towards.objective
            if objective == "random":  # a corner is then named after its lowest unit
                oriented = features.oriented(self.first(corners))
                self.units = torch.where(features.active, torch.inf, oriented).argmin(1)
        seen = objective == "eq2"  # it allows hidden units to rise
        residual = float(self.first.residual(exact, features, seen).max())
        by_programs = solver == "linear_program" and objective != "near"
        if not (converged := residual <= (_OF_PROGRAMS if by_programs else _EXACT)):
            warnings.warn(
                f"not converged: the corners' values at {self.layer} differ from the target's by "
                f"{residual:.2g} (relative), more than rounding; choose a target with fewer pixels "
                "at 0 or 1",
                stacklevel=3,
            )
        assert self.initial is not None
        logits = logits_of(self.model, self.target[None])[0]
        return summarise(
            self.graph, self.layer, (self.initial, self.target), corners, numbers, self.units,
            features, output_of(self.output, logits, self.threshold), experiment=solver,
            classifier_hash=weights_hash(self.model), solver=solver, objective=objective,
            push=push, hull_relative=AFFINE, converged=converged, residual=residual,
            steps=0, seconds=0.0, seconds_total=0.0,
        )  # fmt: skip


def _warn_of_same(exact: Tensor, numbers: Sequence[int]) -> None:
    near = torch.cdist(exact, exact) < _SAME
    pairs = near.triu(1).nonzero().tolist()
    if pairs:
        same = ", ".join(f"{numbers[j]} is {numbers[i]}" for i, j in pairs)
        warnings.warn(
            f"some corners coincide: corner {same}; the polytope has fewer corners than requested",
            stacklevel=3,
        )


def _checked(towards: Tensor | int | Pushed, target: Tensor) -> Tensor | int | Pushed:
    if isinstance(towards, Pushed):
        return towards
    if isinstance(towards, int) and not isinstance(towards, bool):
        whole("towards", towards, 1, _MOST)
        return towards
    if not isinstance(towards, Tensor) or towards.ndim != 4:
        given = tuple(towards.shape) if isinstance(towards, Tensor) else type(towards).__name__
        raise SettingError(
            "towards",
            None,
            "must be pictures (K, C, H, W), float32, or a number of corners",
            f"is {given}",
        )
    if towards.shape[1:] != target.shape:
        raise SettingError(
            "towards",
            None,
            f"pictures of {'x'.join(map(str, towards.shape[1:]))}, where the target is "
            f"{'x'.join(map(str, target.shape))}",
            "resize them to the target's size",
        )
    whole("number of pictures in towards", len(towards), 1, _MOST)
    for picture in towards:
        check_image("towards", picture)
    return towards.detach().cpu()
