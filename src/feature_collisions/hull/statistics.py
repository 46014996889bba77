"""What a set of points says about a hull, as torchmetrics; memory does not grow with the points."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from scipy.stats import beta
from torch import Tensor
from torchmetrics import Metric

from ..data.devices import able
from ..graph.graph import Graph
from ..graph.target import TargetFeatures, positive
from ..graph.target_layer import is_affine
from ..runs.evaluation import Sample
from ..runs.records import Summary


def clopper_pearson_lower(successes: int, trials: int, confidence: float = 0.95) -> float:
    """Exact one-sided lower bound on a success rate: 2000 of 2000 says at least 0.9985.

    It speaks of the sampling law that was used, and of nothing else.

    Example:
        >>> round(clopper_pearson_lower(2000, 2000), 4)
        0.9985
    """
    if successes == 0:
        return 0.0
    return float(beta.ppf(1 - confidence, successes, trials - successes + 1))


class HullStatistics(Metric):
    """The feature error over points of a hull (Tables 1 to 4); `outputs` adds what a network says.

    It is kept where the target's features lie (in float64, so on the CPU where they have none), and
    waits for nothing before `compute`.

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
        self.place = able(target.preactivation.device)
        self.target = TargetFeatures(target.preactivation.to(self.place), target.activation)
        self.inactive = ~self.target.active
        for name in ("samples", "kept"):
            self.add_sum(name, whole=True)
        for name in ("feature_max", "positive_max"):
            self.add_largest(name)

    def add_sum(self, name: str, whole: bool = False) -> None:
        """A state that adds up over points, in float64 or whole numbers."""
        start = torch.tensor(0) if whole else torch.tensor(0.0, dtype=torch.float64)
        self.add_state(name, start, dist_reduce_fx="sum")

    def add_largest(self, name: str) -> None:
        """A state that is the largest of a figure that is at least 0."""
        self.add_state(name, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def add_least(self, name: str) -> None:
        """A state that is the smallest of a figure that is at most 1."""
        self.add_state(name, torch.tensor(1.0, dtype=torch.float64), dist_reduce_fx="min")

    def update(self, outputs: Tensor, preactivation: Tensor) -> None:
        """Take in points.

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
        """The entries of one sampler in `evaluation.json`; None where nothing can be said.

        `feature_relative_max` is the largest ||f(x) - f(t)|| over ||f(t)||: all that later layers
        see where nothing goes past the layer, inactive units above zero too, which
        `positive_relative_max`, the largest L_pos of Eq. 2 over ||f(t)||, leaves out.
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
    """What sampled points say a hull is, and why it is no more than that.

    `features collide`: all points are of the target's class, their mean probability is within 0.05
    of the target's, and the largest ||f(x) - f(t)|| over ||f(t)|| is at most `collision_limit`, or
    `stop.hull_relative` where that is a number. `class only`: all of this but for the last. Of an
    encoder, which has no classes, the last alone. `neither`: anything else.
    """

    name: str
    reasons: list[str]


AFFINE, DEEP, COMPOSITE = 0.05, 0.2, 0.3


def collision_limit(graph: Graph, layer: str, composite: bool = False) -> float:
    """The largest feature error over ||f(t)|| at which features are said to collide at a layer.

    A layer that is affine in the pixels has exact collisions, so little is allowed there. Behind a
    deeper layer a search comes close, and composites (section 4) less close than pixels.

    Args:
        graph: of the classifier.
        layer: the target layer.
        composite: whether the corners are made of patches.
    """
    if is_affine(graph, layer):
        return AFFINE
    return COMPOSITE if composite else DEEP


def limit_of(summary: Summary) -> float:
    """The largest feature error over ||f(t)|| that `summary.json` calls a collision."""
    return COMPOSITE if summary.hull_relative is None else summary.hull_relative


def counted(outcomes: Iterable[str]) -> str:
    """How many hulls have which outcome, in words; what could not be measured is its reason.

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
