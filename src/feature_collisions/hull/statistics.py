"""The outcome of a hull, and the confidence of a sampled rate."""

from collections.abc import Iterable
from typing import NamedTuple

from scipy.stats import beta

from ..graph.graph import Graph
from ..graph.target_layer import TargetLayer
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


FEATURES, CLASS, NEITHER = OUTCOMES = ("features collide", "class only", "neither")


class Outcome(NamedTuple):
    """The outcome of a hull by the points seen, and the reasons against a better one.

    `features collide`: all sampled points are of the target's class, their mean probability is
    within 0.05 of the target's, and the largest feature error seen (sampled, at corners, and
    searched where a search was made) is at most `stop.hull_relative`, by default
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
    if TargetLayer(graph, layer).is_affine:
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
