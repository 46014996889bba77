"""Statistics of points of a hull, as torchmetrics with constant memory."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor
from torchmetrics import Metric

from ..data.devices import device_for
from ..graph.graph import Graph
from ..graph.target import TargetFeatures, positive
from ..graph.target_layer import is_affine
from ..runs.evaluation import Sample
from ..runs.records import Summary


def clopper_pearson_lower(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound on a success rate: 2000 of 2000 gives 0.9985.

    It is valid only for the sampler that was used.

    Example:
        >>> round(clopper_pearson_lower(2000, 2000), 4)
        0.9985
    """
    if successes == 0:
        return 0.0
    return float(beta.ppf(1 - confidence, successes, trials - successes + 1))


class HullStatistics(Metric):
    """Feature errors over points of a hull (Tables 1 to 4); `outputs` adds those of the output.

    States are float64, on the device of the target's features, or on the CPU if it lacks float64.
    Nothing is synchronised before `compute`.

    Args:
        target: the target's features.
    """

    full_state_update = False
    samples: Tensor
    feature_max: Tensor
    positive_max: Tensor
    kept: Tensor

    def __init__(self, target: TargetFeatures, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.place = device_for(target.preactivation.device)
        self.target = TargetFeatures(target.preactivation.to(self.place), target.activation)
        self.inactive = ~self.target.active
        for name in ("samples", "kept"):
            self.add_sum(name, whole=True)
        for name in ("feature_max", "positive_max"):
            self.add_largest(name)

    def add_sum(self, name: str, whole: bool = False) -> None:
        """Add a state that sums over points, float64 or integer."""
        start = torch.tensor(0) if whole else torch.tensor(0.0, dtype=torch.float64)
        self.add_state(name, start, dist_reduce_fx="sum")

    def add_largest(self, name: str) -> None:
        """Add a state for the maximum of a figure >= 0."""
        self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def add_least(self, name: str) -> None:
        """Add a state for the minimum of a figure <= 1."""
        self.add_state(name, torch.tensor(1.0, dtype=torch.float64), dist_reduce_fx="min")

    def update(self, outputs: Tensor, preactivation: Tensor) -> None:
        """Add points.

        Args:
            outputs: (B, D) of the network.
            preactivation: (B, N) at the target layer.
        """
        preactivation = preactivation.to(self.place)
        oriented = self.target.oriented(preactivation)
        norms = positive(oriented, self.target.values, self.target.active)
        feature = self.target.error(preactivation)
        self.samples += len(outputs)
        self.feature_max = torch.maximum(self.feature_max, feature.max().double())
        self.positive_max = torch.maximum(self.positive_max, norms.max().double())
        self.kept += ((oriented <= 0) & self.inactive).sum()

    def compute(self) -> Sample:
        """The entries of one sampler in `evaluation.json`; None if undefined.

        `feature_relative_max` is the largest ||f(x) - f(t)|| / ||f(t)||. It counts inactive units
        above zero, so it is all that later layers see if no branch bypasses the layer.
        `positive_relative_max`, the largest L_pos of Eq. 2 / ||f(t)||, does not count them.
        """
        samples, inactive = int(self.samples), int(self.inactive.sum())
        norm = float(self.target.features.norm())
        return Sample(
            samples=samples,
            feature_relative_max=float(self.feature_max) / norm if norm else None,
            positive_relative_max=float(self.positive_max) / norm if norm else None,
            inactive_kept=float(self.kept) / (samples * inactive) if inactive else None,
        )


FEATURES, CLASS, NEITHER = OUTCOMES = ("features collide", "class only", "neither")


class Outcome(NamedTuple):
    """The outcome of a hull by sampled points, and the reasons against a better one.

    `features collide`: all points are of the target's class, their mean probability is within 0.05
    of the target's, and the feature error is at most `stop.hull_relative`, by default
    `collision_limit`. `class only`: all of this except the feature error. For an encoder, which has
    no classes, only the feature error counts. `neither`: anything else.
    """

    name: str
    reasons: list[str]


AFFINE, DEEP, COMPOSITE = 0.05, 0.2, 0.3


def collision_limit(graph: Graph, layer: str, composite: bool = False) -> float:
    """Default limit of the relative feature error of a collision at a layer.

    A layer that is affine in the pixels has exact collisions, so its limit is small. At deeper
    layers a search only comes close, and with composites (section 4) less close than with pixels.

    Args:
        graph: graph of the classifier.
        layer: the target layer.
        composite: whether the corners are composites.
    """
    if is_affine(graph, layer):
        return AFFINE
    return COMPOSITE if composite else DEEP


def limit_of(summary: Summary) -> float:
    """Limit of the relative feature error of a collision, from `summary.json`."""
    return COMPOSITE if summary.hull_relative is None else summary.hull_relative


def counted(outcomes: Iterable[str]) -> str:
    """Count outcomes in words; an outcome that is an error counts as not measured.

    Example:
        >>> counted(["class only", "features collide", "RuntimeError: x", "features collide"])
        '2 of 4: features collide; 1: class only; 0: neither; 1: not measured'
    """
    found = list(outcomes)
    numbers = [found.count(name) for name in OUTCOMES]
    parts = [f"{n}: {name}" for n, name in zip(numbers, OUTCOMES, strict=True)]
    parts[0] = f"{numbers[0]} of {len(found)}: {FEATURES}"
    if sum(numbers) < len(found):
        parts.append(f"{len(found) - sum(numbers)}: not measured")
    return "; ".join(parts)
