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
from ..runs.records import Summary

_BINS = 50


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
    """Accuracy, probability and feature error over points of a hull (Tables 1 to 4).

    It is kept where the target's features lie (in float64, so on the CPU where they have none), and
    waits for nothing before `compute`.

    Args:
        target: the target's features.
        target_class: the class the target is given.
        target_logits: (classes,) the target's logits.
    """

    full_state_update = False
    samples: Tensor
    correct: Tensor
    probability_sum: Tensor
    probability_min: Tensor
    feature_max: Tensor
    positive_max: Tensor
    kept: Tensor
    kl_sum: Tensor
    kl_max: Tensor
    histogram: Tensor

    def __init__(
        self, target: TargetFeatures, target_class: int, target_logits: Tensor, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.place, self.target_class = able(target_logits.device), target_class
        self.target = TargetFeatures(target.preactivation.to(self.place), target.activation)
        self.inactive = ~self.target.active
        self.target_log = target_logits.to(self.place).double().log_softmax(0)
        for name in ("samples", "correct", "kept"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        zero = torch.tensor(0.0, dtype=torch.float64)
        for name in ("probability_sum", "kl_sum"):
            self.add_state(name, zero.clone(), dist_reduce_fx="sum")
        self.add_state("histogram", torch.zeros(_BINS, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probability_min", zero + 1, dist_reduce_fx="min")
        for name in ("feature_max", "positive_max", "kl_max"):
            self.add_state(name, zero.clone(), dist_reduce_fx="max")
        self.to(self.place)

    def update(self, logits: Tensor, preactivation: Tensor) -> None:
        """Take in points.

        Args:
            logits: (B, classes).
            preactivation: (B, N) at the target layer.
        """
        logits, preactivation = logits.to(self.place), preactivation.to(self.place)
        log = logits.double().log_softmax(1)
        probability = log[:, self.target_class].exp()
        divergence = (self.target_log.exp() * (self.target_log - log)).sum(1)
        oriented = self.target.oriented(preactivation)
        norms = positive(oriented, self.target.values, self.target.active)
        feature = self.target.error(preactivation)
        self.samples += len(logits)
        given = logits.argmax(1) == self.target_class
        self.correct += (given & probability.isfinite()).sum()  # argmax takes NaN for the largest
        self.probability_sum += probability.sum()
        bins = (probability * _BINS).long().clamp(0, _BINS - 1)  # NaN goes to a bin too
        self.histogram.index_add_(0, bins, torch.ones_like(bins))
        self.probability_min = torch.minimum(self.probability_min, probability.min())
        self.feature_max = torch.maximum(self.feature_max, feature.max().double())
        self.positive_max = torch.maximum(self.positive_max, norms.max().double())
        self.kept += ((oriented <= 0) & self.inactive).sum()
        self.kl_sum += divergence.sum()
        self.kl_max = torch.maximum(self.kl_max, divergence.max())

    def compute(self) -> dict[str, Any]:
        """The entries of one sampler in `evaluation.json`; None where nothing can be said.

        `feature_relative_max` is the largest ||f(x) - f(t)|| over ||f(t)||: all that later layers
        see where nothing goes past the layer, inactive units above zero too, which
        `positive_relative_max`, the largest L_pos of Eq. 2 over ||f(t)||, leaves out.

        `kl_mean` and `kl_max` are the divergence of the points' class probabilities from the
        target's, KL(target || point), in nats; `probability_histogram` counts points by the
        probability of the target's class, in equal bins from 0 to 1.
        """
        samples, correct = int(self.samples), int(self.correct)
        norm = float(self.target.features.norm())
        inactive = int(self.inactive.sum())
        return {
            "samples": samples,
            "accuracy": correct / samples,
            "accuracy_lower_95": clopper_pearson_lower(correct, samples),
            "probability_mean": float(self.probability_sum) / samples,
            "probability_min": float(self.probability_min),
            "probability_histogram": self.histogram.tolist(),
            "feature_relative_max": float(self.feature_max) / norm if norm else None,
            "positive_relative_max": float(self.positive_max) / norm if norm else None,
            "inactive_kept": float(self.kept) / (samples * inactive) if inactive else None,
            "kl_mean": float(self.kl_sum) / samples,
            "kl_max": float(self.kl_max),
        }


NEAR = 0.05  # of the target's probability, for the mean over the hull
FEATURES, CLASS, NEITHER = OUTCOMES = ("features collide", "class only", "neither")


class Outcome(NamedTuple):
    """What sampled points say a hull is, and why it is no more than that.

    `features collide`: all points are of the target's class, their mean probability is within 0.05
    of the target's, and the largest ||f(x) - f(t)|| over ||f(t)|| is at most `collision_limit`, or
    `stop.hull_relative` where that is a number. `class only`: all of this but for the last.
    `neither`: anything else.
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


def outcome_of(
    sample: dict[str, Any], target_probability: float, limit: float, at_corners: float | None = None
) -> Outcome:
    """Which of the three outcomes a hull has; what is claimed is sampled, not proved.

    Args:
        sample: what `HullStatistics.compute` gives.
        target_probability: the class's, at the target.
        limit: of the largest ||f(x) - f(t)|| over ||f(t)||.
        at_corners: the largest at a corner, where it is known: corners are points of the hull, and
            a sample seldom comes near one.

    Example:
        >>> sample = {"accuracy": 1.0, "probability_mean": 0.7, "feature_relative_max": 0.4}
        >>> outcome_of(sample, 0.7, limit=0.3)
        Outcome(name='class only', reasons=['feature error 0.400 ||f(t)||, the limit is 0.3'])
    """
    reasons = []
    if sample["accuracy"] < 1:
        wrong = sample["samples"] - round(sample["accuracy"] * sample["samples"])
        reasons.append(f"{wrong} of {sample['samples']} interpolations are of another class")
    mean = sample["probability_mean"]
    if not abs(mean - target_probability) <= NEAR:
        reasons.append(f"mean probability {mean:.3f}, the target's is {target_probability:.3f}")
    name, largest = NEITHER if reasons else CLASS, sample["feature_relative_max"]
    if largest is None:
        reasons.append("the target has no active unit, so there is no ||f(t)|| to compare with")
    elif not largest <= limit:
        reasons.append(f"feature error {largest:.3f} ||f(t)||, the limit is {limit:g}")
    elif at_corners is not None and not at_corners <= limit:
        reasons.append(
            f"feature error {at_corners:.3f} ||f(t)|| at a corner, the limit is {limit:g}"
        )
    return Outcome(name if reasons else FEATURES, reasons)


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
