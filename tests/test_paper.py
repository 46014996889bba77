"""The paper's equations read a second time, slowly, and compared with what the package computes."""

import math

import pytest
import torch

from feature_collisions.graph.target import TargetFeatures, positive
from feature_collisions.search.losses import CollisionLoss, negative
from feature_collisions.settings.search import LossSettings
from feature_collisions.simplex import stick_breaking


def psgn(x):
    return max(math.copysign(1, x) if x else 1, 0)  # the paper's table: 1 for x >= 0


def nsgn(x):
    return min(math.copysign(1, x) if x else 0, 0)  # -1 for x < 0, 0 for x >= 0


def slow_positive(f0_x, f0_t):
    """Eq. 2: || f0(x) o psgn(f0(t)) - f(t) ||_2."""
    difference = [x * psgn(t) - max(t, 0) for x, t in zip(f0_x, f0_t, strict=True)]
    return math.sqrt(sum(d * d for d in difference))


def slow_negative(f0_x, f0_t, i):
    """Eq. 2: -(f0(x) o nsgn(f0(t)))_i + sum over j != i of |(f0(x) o nsgn(f0(t)))_j|."""
    product = [x * nsgn(t) for x, t in zip(f0_x, f0_t, strict=True)]
    return -product[i] + sum(abs(p) for j, p in enumerate(product) if j != i)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(40, generator=generator, dtype=torch.float64)
    target[3] = 0.0  # psgn(0) = 1: a unit at zero is active
    return torch.randn(6, 40, generator=generator, dtype=torch.float64), target


def test_positive_is_equation_2(features):
    x, t = features
    mask = (t >= 0).double()
    slow = [slow_positive(row.tolist(), t.tolist()) for row in x]
    assert positive(x, t.relu(), mask).tolist() == pytest.approx(slow, rel=1e-12)
    halves = [value**2 / 2 for value in slow]
    assert positive(x, t.relu(), mask, "half_square").tolist() == pytest.approx(halves, rel=1e-12)


def test_negative_is_equation_2(features):
    x, t = features
    units = (t < 0).nonzero().flatten()[:6]
    slow = [
        slow_negative(row.tolist(), t.tolist(), int(unit))
        for row, unit in zip(x, units, strict=True)
    ]
    assert negative(x, (t < 0).double(), units).tolist() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("form", ["norm", "half_square"])
def test_total_is_equation_4(features, form):
    x, t = features
    target = TargetFeatures(t)
    units = target.units(range(6))
    loss = CollisionLoss(target, units, LossSettings.paper(alpha=3.0, beta=0.7, positive_form=form))
    for row, unit, total in zip(x, units, loss(x), strict=True):
        slow = slow_positive(row.tolist(), t.tolist())
        slow = slow if form == "norm" else slow**2 / 2
        expected = 3.0 * slow + 0.7 * slow_negative(row.tolist(), t.tolist(), int(unit))
        assert float(total) == pytest.approx(expected, rel=1e-12)


def test_corner_counts_inactive_units_in_flat_order():
    target = TargetFeatures(torch.tensor([1.0, -1.0, 0.0, -2.0, 3.0, -0.5]))
    assert target.units([0, 2, 1]).tolist() == [1, 5, 3]


def test_stick_breaking_is_the_authors():
    """w1 = u1, w2 = u2 (1 - w1), ..., the last corner takes the rest."""
    weights = stick_breaking(50, 5, torch.Generator().manual_seed(3))
    breaks = torch.rand(50, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for row, u in zip(weights.tolist(), breaks.tolist(), strict=True):
        left, expected = 1.0, []
        for value in u:
            expected.append(value * left)
            left -= expected[-1]
        assert row == pytest.approx([*expected, left], abs=1e-15)


def test_stick_breaking_favours_the_first_corners():
    means = stick_breaking(200_000, 5, torch.Generator().manual_seed(0)).mean(0)
    assert means.tolist() == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.0625], abs=3e-3)
