import math

import pytest
import torch
from scipy.stats import binomtest

from feature_collisions.graph.target import TargetFeatures
from feature_collisions.hull.outputs import Classes, outcome_of
from feature_collisions.hull.samples import HullStatistics
from feature_collisions.hull.statistics import (
    clopper_pearson_lower,
    counted,
)
from feature_collisions.runs.evaluation import Sample

OUTPUT = Classes(torch.zeros(2), 0, 0.7)


def test_two_thousand_of_two_thousand_leaves_a_failure_rate_of_15_in_ten_thousand():
    assert clopper_pearson_lower(2000, 2000) == pytest.approx(0.05 ** (1 / 2000))
    assert 1 - clopper_pearson_lower(2000, 2000) < 0.0015


def test_the_bound_is_the_exact_binomial_one():
    for successes, trials in [(0, 10), (1, 10), (9, 10), (1234, 2000)]:
        exact = binomtest(successes, trials, alternative="greater").proportion_ci(0.95, "exact")
        assert clopper_pearson_lower(successes, trials) == pytest.approx(exact.low)


def test_statistics_are_what_a_slow_count_gives():
    generator = torch.Generator().manual_seed(0)
    target = TargetFeatures(torch.randn(20, generator=generator))
    logits = torch.randn(30, 4, generator=generator)
    f0 = torch.randn(30, 20, generator=generator)
    statistics = HullStatistics(target, Classes(torch.zeros(4), 2))
    for part in range(0, 30, 7):
        statistics.update(logits[part : part + 7], f0[part : part + 7])
    result = statistics.compute()
    correct, probabilities, errors, seen, kept = 0, [], [], [], 0
    for row, features in zip(logits.tolist(), f0.tolist(), strict=True):
        correct += max(range(4), key=row.__getitem__) == 2
        probabilities.append(math.exp(row[2]) / sum(map(math.exp, row)))
        pairs = list(zip(features, target.preactivation.tolist(), strict=True))
        errors.append(math.sqrt(sum((x - t) ** 2 for x, t in pairs if t >= 0)))
        seen.append(math.sqrt(sum((max(x, 0) - max(t, 0)) ** 2 for x, t in pairs)))
        kept += sum(x <= 0 for x, t in pairs if t < 0)
    inactive = int((target.preactivation < 0).sum())
    norm = math.sqrt(sum(max(t, 0) ** 2 for t in target.preactivation.tolist()))
    assert result["samples"] == 30
    assert result["accuracy"] == pytest.approx(correct / 30)
    assert result["accuracy_lower_95"] == pytest.approx(clopper_pearson_lower(correct, 30))
    assert result["probability_mean"] == pytest.approx(sum(probabilities) / 30, rel=1e-5)
    assert result["probability_min"] == pytest.approx(min(probabilities), rel=1e-5)
    assert result["positive_relative_max"] == pytest.approx(max(errors) / norm, rel=1e-5)
    assert result["feature_relative_max"] == pytest.approx(max(seen) / norm, rel=1e-5)
    assert result["inactive_kept"] == pytest.approx(kept / 30 / inactive)


def test_a_point_without_a_probability_is_of_no_class():
    statistics = HullStatistics(TargetFeatures(torch.ones(2)), Classes(torch.zeros(3), 0))
    statistics.update(
        torch.tensor([[9.0, 1, 1], [math.nan, 1, 1], [1, math.nan, 1]]), torch.ones(3, 2)
    )
    assert int(statistics.figures["correct_sum"]) == 1


@pytest.mark.parametrize(
    ("accuracy", "mean", "largest", "outcome", "reasons"),
    [
        (1.0, 0.65, 0.3, "features collide", 0),
        (1.0, 0.749, 0.0, "features collide", 0),
        (1.0, 0.7, 0.30001, "class only", 1),
        (1.0, 0.7, None, "class only", 1),
        (1.0, 0.7, math.nan, "class only", 1),
        (1.0, 0.64, 0.1, "neither", 1),
        (1.0, math.nan, 0.1, "neither", 1),
        (0.999, 0.7, 0.1, "neither", 1),
        (0.5, 0.2, 0.9, "neither", 3),
    ],
)
def test_a_hull_has_one_of_three_outcomes(accuracy, mean, largest, outcome, reasons):
    sample = Sample.model_construct(
        samples=1000, accuracy=accuracy, probability_mean=mean, feature_relative_max=largest
    )
    found = outcome_of(OUTPUT, sample, 0.3)
    assert (found.name, len(found.reasons)) == (outcome, reasons)


def test_a_corner_beyond_the_line_is_no_collision_whatever_was_sampled():
    sample = Sample(samples=10, accuracy=1.0, probability_mean=0.7, feature_relative_max=0.04)
    assert outcome_of(OUTPUT, sample, 0.05, at_corners=0.05).name == "features collide"
    found = outcome_of(OUTPUT, sample, 0.05, at_corners=0.06)
    assert found.name == "class only"
    assert "0.060" in found.reasons[0]


def test_outcomes_are_counted_apart():
    assert counted([]) == "0 of 0: features collide; 0: class only; 0: neither"
    assert counted(["neither", "broken"]).endswith("0: class only; 1: neither; 1: not measured")
