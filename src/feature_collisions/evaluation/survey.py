"""A survey: how large is what each of several networks cannot tell from the same targets?"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from ..data.images import SQUARES, pooled_distance
from ..hull.hull import Hull
from ..proofs.whole_hull import prove_class
from ..settings.evaluate import EvaluateSettings
from .judge import Judge

COLUMNS = (
    "relative_size", "pooled_size", "blind_share", "feature_relative_max", "accuracy",
    "probability_mean", "target_probability", "worst_case_probability", "cosine_min",
    "worst_case_cosine", "share_proved", "relative_size_proved", "judge_size", "judge_kept",
    "seconds",
)  # fmt: skip
"""What is measured of every hull, and averaged over the pairs."""
_RESAMPLES = 9999


class HullFigures(NamedTuple):
    """What was measured of a hull.

    Attributes:
        figures: by the names of `COLUMNS`; None where nothing can be said.
        unproved: why nothing of it is proved, where that is known.
    """

    figures: dict[str, float | None]
    unproved: str | None


def measure(
    hull: Hull,
    distances: Mapping[int, float],
    settings: EvaluateSettings,
    judge: Judge | None = None,
) -> HullFigures:
    """A hull's figures.

    Args:
        hull: of one network and pair.
        distances: mean distances between two images of the data set, in [0, 1] pixels, after
            averaging over squares of pixels, by the squares' side.
        settings: points to sample, the search for the worst point, seconds for the proof.
        judge: another network that is asked about the corners.
    """
    sample = hull.sample(settings.samples, seed=settings.seed)
    several = len(hull.corners) > 1
    search = settings.worst_case
    worst = hull.worst_case(search.starts, search.steps, settings.seed)
    proof = prove_class(hull.problem, settings.proof.seconds, suspects=[worst.weights.tolist()])
    size = float(hull.corner_distances().mean()) / hull.summary.distance_scale if several else 0
    distance, seen = distances[1], distances.get(SQUARES[-1])
    pooled = pooled_distance(hull.corners, SQUARES[-1]) if several and seen else 0
    relative, scale = size / distance if distance else None, proof.get("scale_proved")
    said = judge.verdict(hull)["judge"] if judge else {}
    figures = {
        "relative_size": relative,
        "pooled_size": pooled / seen if seen else None,
        "blind_share": 1 - float(hull.features.active.float().mean()),
        "feature_relative_max": sample["feature_relative_max"],
        "accuracy": sample.get("accuracy"),
        "probability_mean": sample.get("probability_mean"),
        "target_probability": hull.summary.get("target_probability"),
        "worst_case_probability": None if worst.correct is None else worst.probability,
        "cosine_min": sample.get("cosine_min"),
        "worst_case_cosine": worst.cosine,
        "share_proved": proof.get("share_proved"),
        "relative_size_proved": scale * relative
        if several and scale is not None and relative is not None
        else None,
        "judge_size": said.get("size"),
        "judge_kept": said["initial_kept"] / said["corners"] if said else None,
        "seconds": hull.summary.seconds,
    }
    return HullFigures(figures, None if figures["share_proved"] else proof.get("reason"))


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % bootstrap interval; None where there are too few pairs."""

    mean: float
    low: float | None
    high: float | None

    @property
    def decides(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval_of(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of values, one per pair, with its interval: bias-corrected, accelerated bootstrap.

    Example:
        >>> interval_of([0.5, 0.5, 0.5])
        Interval(mean=0.5, low=0.5, high=0.5)
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, None, None)
    if np.ptp(found) <= 1e-12 * abs(mean):  # nothing to resample
        return Interval(mean, mean, mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an interval cannot be had is seen in its ends
        result = bootstrap(
            (found,), np.mean, n_resamples=_RESAMPLES, method="BCa",
            random_state=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = map(float, result.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        return Interval(mean, None, None)
    return Interval(mean, low, high)


Figures = Mapping[str, Sequence[Mapping[str, float | None]]]
"""By network: what was measured, one entry per pair, the same pairs in the same order."""


def means(figures: Figures, seed: int = 0) -> dict[str, dict[str, Interval | None]]:
    """Each network's means over the pairs; None where a pair has no such figure."""
    return {
        network: {
            name: None if (values := _values(entries, name)) is None else interval_of(values, seed)
            for name in COLUMNS
        }
        for network, entries in figures.items()
    }


def differences(
    figures: Figures, network: str, reference: str, seed: int = 0
) -> dict[str, Interval | None]:
    """What `network` has more than `reference`, pair by pair: means of paired differences."""
    found: dict[str, Interval | None] = {}
    for name in COLUMNS:
        ours, theirs = (_values(figures[each], name) for each in (network, reference))
        found[name] = None
        if ours is not None and theirs is not None:
            found[name] = interval_of([a - b for a, b in zip(ours, theirs, strict=True)], seed)
    return found


def _values(entries: Sequence[Mapping[str, float | None]], name: str) -> list[float] | None:
    values = [entry[name] for entry in entries]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
