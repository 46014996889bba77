"""A clipped ReLU is blind on both sides: section 2 and Eq. 2 against closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from feature_collisions import LossSettings, StopSettings, find_corners
from feature_collisions.errors import SettingError
from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.exact.programs import depth
from feature_collisions.graph.activations import clipped
from feature_collisions.graph.target import TargetFeatures
from feature_collisions.hull.outputs import Classes
from feature_collisions.hull.samples import HullStatistics
from feature_collisions.patches.composite import Sources
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.search.find_corners import Search
from feature_collisions.search.losses import CollisionLoss
from feature_collisions.settings.evaluate import EvaluateSettings, PlainSettings
from helpers.exact import linear_programs


class Clipped(nn.Module):
    """f0(x) = 2 x - 1/2, from -1/2 to 3/2, clipped to [0, 1]: its polytope is known exactly."""

    def __init__(self, activation):
        super().__init__()
        self.hidden = nn.Linear(9, 9)
        self.activation = activation
        self.output = nn.Linear(9, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.hidden.weight.copy_(2 * torch.eye(9))
            self.hidden.bias.fill_(-0.5)
            self.output.weight.normal_(generator=generator)
            self.output.bias.zero_()

    def forward(self, images):
        return self.output(self.activation(self.hidden(images.flatten(1))))


# Pixels 1, 4 and 8 are below the floor, 2 and 6 above the ceiling, the others are seen.
TARGET = torch.tensor([0.3, 0.1, 0.9, 0.5, 0.2, 0.7, 0.8, 0.4, 0.0]).view(1, 3, 3)
BELOW, ABOVE = [1, 4, 8], [2, 6]
BLIND = [1, 2, 4, 6, 8]


@pytest.fixture
def images():
    return torch.full((1, 3, 3), 0.45), TARGET


@pytest.fixture(params=["module", "function", "clamp"])
def network(request):
    given = {"module": nn.Hardtanh(0, 1), "function": None, "clamp": None}
    network = Clipped(given[request.param])
    if request.param == "function":
        network.activation = Functional()
    if request.param == "clamp":
        network.activation = Clamp()
    return network


class Functional(nn.Module):
    def forward(self, values):
        return F.hardtanh(values, 0.0, 1.0)


class Clamp(nn.Module):
    def forward(self, values):
        return values.clamp(0, 1)


def corner(unit):
    """Eq. 2's optimum: unit i as far out as pixels go, the other blind units at their kinks."""
    pixels = TARGET.flatten().clone()
    pixels[BELOW], pixels[ABOVE] = 0.25, 0.75
    pixels[unit] = 0.0 if unit in BELOW else 1.0
    return pixels.view(1, 3, 3)


def test_linear_programs_find_the_closed_forms_corners(network, images):
    hull = linear_programs(network, "hidden", *images, range(5)).run()
    assert hull.units.tolist() == BLIND
    for found, unit in zip(hull.corners, BLIND, strict=True):
        assert torch.allclose(found, corner(unit), atol=1e-6)
    sides = [entry["side"] for entry in hull.summary["corners"]]
    assert sides == ["below", "above", "below", "above", "below"]
    outside = [entry["unit_preactivation"] for entry in hull.summary["corners"]]
    assert outside == pytest.approx([-0.5, 1.5, -0.5, 1.5, -0.5], abs=1e-6)
    assert [entry["negative"] for entry in hull.summary["corners"]] == pytest.approx([-0.5] * 5)


@pytest.mark.filterwarnings("ignore:some corners coincide")
def test_unit_alone_and_random_directions_stay_in_the_polytope(network, images):
    for objective in ("unit", "random"):
        hull = linear_programs(network, "hidden", *images, range(5), objective).run()
        pixels = hull.corners.flatten(1)
        seen = [0, 3, 5, 7]
        assert torch.allclose(pixels[:, seen], TARGET.flatten()[seen], atol=1e-6)
        assert (pixels[:, BELOW] <= 0.25 + 1e-6).all()
        assert (pixels[:, ABOVE] >= 0.75 - 1e-6).all()


def test_a_search_finds_them_too_and_the_hull_collides(images):
    network = Clipped(nn.Hardtanh(0, 1, inplace=True))
    hull = find_corners(
        network, "hidden", *images, range(5), loss=LossSettings.paper(1.0, 0.1),
        stop=StopSettings(0.05, 2000, 2000), trainer={"precision": "64-true"},
    )  # fmt: skip
    for found, unit in zip(hull.corners, BLIND, strict=True):
        assert torch.allclose(found, corner(unit), atol=5e-3)
    sample = hull.sample(500)
    assert sample["accuracy"] == 1
    proof = prove_collision(hull.problem)
    assert proof["feature_error_max"] < 0.01
    assert proof["inactive_max"] < 0.01
    assert depth(hull)["share"] == pytest.approx([1.0] * 5, abs=0.02)


def test_an_evaluation_runs_on_a_clipped_network(images, tmp_path):
    hull = linear_programs(Clipped(nn.Hardtanh(0, 1)), "hidden", *images, range(3)).run()
    settings = EvaluateSettings(samples=50, plain=PlainSettings(20))
    result = evaluate(hull, lambda: {1: 1.0}, settings, tmp_path)
    assert "failed" not in result
    assert result["dirichlet"]["accuracy"] == 1
    assert result["dirichlet"]["positive_relative_max"] < 1e-5
    assert result["plain_corner_error_relative_max"] < 1


def slow_terms(f0_x, f0_t, i, ceiling):
    """L_pos and L_neg^i of one corner, unit by unit, from what the layer is blind to."""
    squares, outward = 0.0, 0.0
    for j, (x, t) in enumerate(zip(f0_x, f0_t, strict=True)):
        if 0 <= t < ceiling:
            squares += (x - t) ** 2
        elif t < 0:
            outward += x if j == i else abs(x)
        else:
            outward += ceiling - x if j == i else abs(x - ceiling)
    return math.sqrt(squares), outward


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)
    target = 4 * torch.randn(40, generator=generator, dtype=torch.float64) + 2
    target[3], target[5] = 0.0, 6.0  # at the floor a unit is active, at the ceiling it is blind
    return 4 * torch.randn(6, 40, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize("form", ["norm", "half_square"])
def test_losses_are_the_slow_ones(features, form):
    x, t = features
    target = TargetFeatures(t, clipped(0.0, 6.0))
    units = target.units(range(6))
    blind = [j for j, value in enumerate(t.tolist()) if value < 0 or value >= 6]
    assert units.tolist() == blind[:6]
    assert set(target.sides(units)) == {"below", "above"}
    loss = CollisionLoss(target, units, LossSettings.paper(3.0, 0.7, positive_form=form))
    curves = loss.curves(x, torch.zeros(6))
    for k, total in enumerate(loss(x).tolist()):
        pos, neg = slow_terms(x[k].tolist(), t.tolist(), int(units[k]), 6.0)
        assert float(curves["positive"][k]) == pytest.approx(pos, rel=1e-12)
        assert float(curves["negative"][k]) == pytest.approx(neg, rel=1e-12)
        assert total == pytest.approx(3 * (pos if form == "norm" else pos**2 / 2) + 0.7 * neg)


@pytest.mark.parametrize("form", ["norm", "half_square"])
@pytest.mark.parametrize("rectified", [False, True])
def test_gradients_in_float64(features, form, rectified):
    x, t = features
    target = TargetFeatures(t, clipped(0.0, 6.0))
    settings = LossSettings.paper(2.0, 0.5, positive_form=form, rectified=rectified)
    loss = CollisionLoss(target, target.units(range(6)), settings)
    assert torch.autograd.gradcheck(loss, (x.requires_grad_(),))


def test_what_is_rectified_is_what_the_clipped_relu_shows(features):
    """As long as no unit crosses from one blind side to the other."""
    _, t = features
    x = t[None] + 0.5 * torch.randn(3, 40, dtype=t.dtype)
    target = TargetFeatures(t, clipped(0.0, 6.0))
    settings = LossSettings.paper(1.0, 0.0, positive_form="norm", rectified=True)
    found = CollisionLoss(target, target.units([0]), settings).interior(x)
    seen = torch.where(target.active, x - t, x.clamp(0, 6) - t.clamp(0, 6))
    assert found.tolist() == pytest.approx(seen.norm(dim=1).tolist())


def test_statistics_count_blind_units_that_are_still_blind():
    target = TargetFeatures(torch.tensor([-1.0, 7.0, 3.0, 8.0]), clipped(0.0, 6.0))
    statistics = HullStatistics(target, Classes(torch.tensor([1.0, 0.0]), 0))
    points = torch.tensor([[-2.0, 9.0, 3.0, 5.0], [1.0, 6.0, 3.5, 8.0]])
    statistics.update(torch.zeros(2, 2), points)
    found = statistics.compute()
    assert found["inactive_kept"] == pytest.approx(4 / 6)
    norm = math.sqrt(6**2 + 3**2 + 6**2)
    assert found["positive_relative_max"] == pytest.approx(0.5 / norm)
    assert found["feature_relative_max"] == pytest.approx(math.hypot(1.0, 0.5) / norm)


def test_a_relu_has_no_upper_side():
    values = torch.tensor([-1.0, 0.0, 1e30])
    target = TargetFeatures(values)
    assert target.oriented(values) is values
    assert target.active.tolist() == [False, True, True]
    assert target.sides(torch.tensor([0])) == ["below"]


def test_corners_beyond_the_blind_units_are_refused(images):
    with pytest.raises(SettingError, match="corner=5: the target has 5 inactive units"):
        find_corners(Clipped(nn.Hardtanh(0, 1)), "hidden", *images, [5])


def test_composites_search_a_clipped_network():
    """The first step's gradient is that of the slow terms, through Eq. 5's composite."""
    torch.manual_seed(3)
    starts = torch.arange(0, 9, 4) - 1
    sources = Sources(
        torch.rand(9, 1, 10, 10), starts.repeat_interleave(3), starts.repeat(3), (16, 16)
    )
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 12), nn.ReLU6(), nn.Linear(12, 3))
    with torch.no_grad():
        model[1].weight.mul_(40)
    initial, target = torch.rand(2, 1, 16, 16)
    search = Search(
        model, "1", initial, target, range(3), loss=LossSettings.paper(2.0, 0.5, gamma=0.0),
        stop=StopSettings(None, 0, 1), sources=sources, trainer={"precision": "64-true"},
    )  # fmt: skip
    features = search.features
    assert features.above.any()
    images = search.module.parameterisation()
    found = search.module.loss(search.module.network(images))
    with torch.no_grad():
        preactivation = model[1](images.float().flatten(1)).tolist()
    for k, unit in enumerate(search.units.tolist()):
        pos, neg = slow_terms(preactivation[k], features.preactivation.tolist(), unit, 6.0)
        assert found[k].item() == pytest.approx(2 * pos + 0.5 * neg, rel=1e-4)
    (gradient,) = torch.autograd.grad(
        found.sum(), list(search.module.parameterisation.parameters())[:1]
    )
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
