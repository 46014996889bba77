"""A survey: sizes of hulls of several networks for the same pairs."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

from ..hull.hull import Hull
from ..runs.rows import Row, row_of
from ..settings.evaluate import EvaluateSettings
from .evaluate import Subject, measured
from .judge import Judge

MEASURED = (
    "relative_size", "pooled_size", "blind_share", "feature_relative_max", "worst_feature_relative",
    "accuracy", "probability_mean", "target_probability", "worst_case_probability", "cosine_min",
    "worst_case_cosine", "share_proved", "relative_size_proved", "judge_size", "judge_kept",
    "seconds",
)  # fmt: skip
"""Figures of every hull, averaged over the pairs."""
_ASKED = ("dataset_distance", "dirichlet", "worst_features", "outcome", "distances", "worst_case",
          "class_proof", "judge")  # fmt: skip
_RESAMPLES = 9999
FEWEST = 6
"""Pairs below which no interval is given: a bootstrap of fewer covers far less than it says."""
_OF_PROOFS = ("share_proved", "relative_size_proved")


def measure(
    hull: Hull,
    distances: Mapping[int, float],
    settings: EvaluateSettings,
    judge: Judge | None = None,
) -> Row:
    """Measure a hull.

    Args:
        hull: of one network and pair.
        distances: mean distances between two images of the data set, in [0, 1] pixels, after
            averaging over squares of pixels, by side of the square.
        settings: number of points, search for the worst point, seconds for the proof.
        judge: another network that judges the corners.
    """
    scale = hull.summary.distance_scale
    subject = Subject(
        hull, settings, None, lambda: {n: each * scale for n, each in distances.items()}, judge
    )
    found = measured(subject, _ASKED)
    blind = 1 - float(hull.features.active.float().mean())
    return row_of(hull.summary, found, blind_share=blind)


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % bootstrap interval; None if there are too few pairs."""

    mean: float
    low: float | None
    high: float | None

    @property
    def decides(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def interval_of(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of values, one per pair, with its bias-corrected accelerated bootstrap interval.

    Example:
        >>> interval_of([0.5] * 6)
        Interval(mean=0.5, low=0.5, high=0.5)
        >>> interval_of([0.5] * 5)
        Interval(mean=0.5, low=None, high=None)
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < FEWEST:
        return Interval(mean, None, None)
    if np.ptp(found) <= 1e-12 * abs(mean):  # nothing to resample
        return Interval(mean, mean, mean)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an undefined interval has NaN ends
        result = bootstrap(
            (found,), np.mean, n_resamples=_RESAMPLES, method="BCa",
            random_state=np.random.default_rng(seed),
        )  # fmt: skip
    low, high = map(float, result.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        return Interval(mean, None, None)
    return Interval(mean, low, high)


Rows = Mapping[str, Sequence[Row]]
"""By network: one row per pair, the same pairs in the same order."""


def means(rows: Rows, seed: int = 0) -> dict[str, dict[str, Interval | None]]:
    """Each network's means over the pairs; None if a pair lacks the figure."""
    return {
        network: {
            name: None if (values := _values(hulls, name)) is None else interval_of(values, seed)
            for name in MEASURED
        }
        for network, hulls in rows.items()
    }


def differences(
    rows: Rows, network: str, reference: str, seed: int = 0
) -> dict[str, Interval | None]:
    """Means of paired differences, `network` minus `reference`."""
    found: dict[str, Interval | None] = {}
    for name in MEASURED:
        ours, theirs = (_values(rows[each], name) for each in (network, reference))
        found[name] = None
        if ours is not None and theirs is not None:
            found[name] = interval_of([a - b for a, b in zip(ours, theirs, strict=True)], seed)
    return found


def _values(hulls: Sequence[Row], name: str) -> list[float] | None:
    if name in _OF_PROOFS and all(row.unproved for row in hulls):
        return None  # no proof got anywhere: a zero would look like a result
    values = [row.get(name) for row in hulls]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None
