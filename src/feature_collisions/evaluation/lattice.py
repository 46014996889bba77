"""The hull on a lattice of its simplex, for the page's explorer."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ..graph.graph import evaluating
from ..graph.logits import predict
from ..hull.evaluator import Replica
from ..hull.hull import Hull
from ..runs.records import Record

_MOST_POINTS = 750
_FINEST = 100
_MOST_CLASSES = 20
_LEAST_CLASSES = 5
_STEPS = 1_000_000  # probabilities are stored as multiples of 1 / _STEPS


def fineness(corners: int) -> int:
    """Steps of the lattice along an edge, such that it has fewer than 750 points."""
    fits = (n for n in range(_FINEST, 1, -1) if math.comb(n + corners - 1, n) <= _MOST_POINTS)
    return next(fits, 1)


def lattice(corners: int, steps: int) -> Tensor:
    """All weights that are multiples of 1 / `steps`.

    Returns:
        (comb(steps + K - 1, K - 1), K) float64. A point with partial sums s_0 <= s_1 <= ... of
        `steps` times its weights has index sum_j comb(s_j + j, j + 1); `page.js` relies on this.
    """
    sums = itertools.combinations_with_replacement(range(steps + 1), corners - 1)
    ordered = torch.tensor(sorted(sums, key=lambda s: s[::-1]), dtype=torch.float64)
    ends = (ordered.new_zeros(len(ordered), 1), ordered, ordered.new_full((len(ordered), 1), steps))
    return torch.cat(ends, 1).diff(dim=1) / steps


class Explorer(Record):
    """What `page.js` is given of a hull.

    Attributes:
        corners: their names.
        steps: of the lattice, along an edge.
        classes: names: the target's first, then those the classifier gives on the lattice, then
            the next likely.
        scale: of the values.
        values: point by point, the classes' probabilities times the scale; of an encoder the
            cosine.
        worst, worst_features: weights of the worst points found, of the output and the features.
    """

    corners: list[str]
    steps: int
    classes: list[str]
    scale: int
    values: list[int]
    worst: list[float] | None = None
    worst_features: list[float] | None = None


@torch.inference_mode()
def explored(hull: Hull, class_names: Sequence[str]) -> Explorer:
    """Ask the network about the lattice."""
    count = len(hull.corners)
    steps = fineness(count)
    parts = lattice(count, steps).split(hull.evaluator.batch_size)
    bars = hull.evaluator.map(_bars, parts)
    bar = tqdm(bars, "Explorer", len(parts), unit="batch", mininterval=0.5, delay=1)
    with evaluating(hull.model):
        found = torch.cat(list(bar))
    has_classes = hull.output.kind == "classes"
    listed = _listed(hull, found) if has_classes else [0]
    return Explorer(
        corners=[f"corner {number}" for number in hull.summary.numbers],
        steps=steps,
        classes=[class_names[k] for k in listed] if has_classes else ["cosine with the target"],
        scale=_STEPS,
        values=(found[:, listed] * _STEPS).round().int().flatten().tolist(),
    )


def _listed(hull: Hull, found: Tensor) -> list[int]:
    """The target's class, then classes on the lattice, then the next likely ones."""
    given = Counter(found.argmax(1).tolist())
    likely = found.mean(0).argsort(descending=True)[:_LEAST_CLASSES].tolist()
    ranked = [hull.target_class, *(k for k, _ in given.most_common(_MOST_CLASSES))]
    listed = list(dict.fromkeys(ranked))
    for k in likely:
        if len(listed) < _LEAST_CLASSES and k not in listed:
            listed.append(k)
    return listed


@torch.inference_mode()
def _bars(replica: Replica, weights: Tensor) -> Tensor:
    """Bars (B, k) on the CPU."""
    return replica.output.bars(predict(replica.model, replica.points(weights))).cpu()
