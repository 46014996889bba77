"""Relaxations at the edges of their cases, and statements that rounding must not undo."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.proofs.bounds.relaxation import Bend, Range
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.whole_hull import prove_class
from helpers.hulls import hull_of

ENDS = [-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5, 6.0, 7.0]


@pytest.mark.parametrize("tilt", [0.0, 0.5, -0.25])
@pytest.mark.parametrize("top", [0.25, 1.0, 6.0, math.inf])
def test_lines_hold_on_every_interval_degenerate_ones_included(top: float, tilt: float) -> None:
    """Also where an interval is 0 or the ceiling alone: two cases must not both apply."""
    for low, high in itertools.combinations_with_replacement(ENDS, 2):
        ends = torch.tensor([[[low], [high]]], dtype=torch.float64)  # (P, K, N)
        number = torch.tensor([[low]], dtype=torch.float64), torch.tensor([[high]]).double()
        slopes = torch.tensor(tilt) if tilt else 0.0
        bend = Bend(Range(ends, ends, *number), top, slopes)
        cases = torch.stack([bend.is_on, bend.is_off, bend.is_full])
        assert int(cases.sum()) <= 1
        found = bend.lines()
        for share in (0.0, 0.3, 0.5, 1.0):
            x = low + share * (high - low)
            y = min(max(x, 0.0), top) - tilt * x
            under = found.low_start[0, :, 0] @ torch.tensor([1 - share, share]).double()
            over = found.high_start[0, :, 0] @ torch.tensor([1 - share, share]).double()
            assert float(found.low_slope) * x + float(under) <= y + 1e-12, (low, high, x)
            assert float(found.high_slope) * x + float(over) >= y - 1e-12, (low, high, x)


@pytest.mark.parametrize("top", [nn.ReLU6(), nn.Hardtanh(0, 6)])
def test_a_unit_exactly_at_its_ceiling_is_not_lost(top: nn.Module) -> None:
    """Clipped twice: the second activation sees 6 alone, and the other class's logit is 6.5."""
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 1), nn.ReLU6(), top, nn.Linear(1, 2, bias=False)
    )
    model[1].weight.data.fill_(0.0)
    model[1].bias.data.fill_(9.0)
    model[4].weight.data = torch.tensor([[1.0], [1.25]])
    hull = hull_of(model, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), "1")
    assert prove_class(replace(hull.problem, target_class=0), 1)["outcome"] == "refuted"
    found = prove_class(replace(hull.problem, target_class=1), 1)
    assert found["outcome"] == "proved"
    assert found["margin_min"] == pytest.approx(1.5)


def test_a_perfect_collision_is_proved() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU6(), nn.Linear(2, 2)
    )
    model[1].weight.data = torch.tensor([[1.0, -1], [-1, 1]])
    model[1].bias.data.zero_()
    model[3].weight.data, model[3].bias.data = torch.eye(2), torch.tensor([7.0, -3])
    corners = torch.tensor([[0.2, 0.8], [0.9, 0.1]]).view(2, 1, 1, 2)
    found = prove_collision(hull_of(model, corners, "3").problem, 1)
    assert found["feature_relative_max"] == 0


@pytest.mark.parametrize("scale", [1.0, 2.0**6, 2.0**12])
def test_a_collision_behind_an_affine_layer_counts_rounding(scale: float) -> None:
    """By rational arithmetic: what is stated is never below what is true."""
    for seed in range(40):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
        weight = model[1].weight.data
        weight[:, 1], weight[:, 2] = weight[:, 1] * scale, -weight[:, 1] * scale
        corners = torch.rand(3, 1, 1, 5)
        corners[..., 2] = corners[..., 1]
        hull = hull_of(model, corners, "1")
        found = prove_collision(hull.problem, 1)
        if "reason" in found or found["feature_relative_max"] is None:
            continue
        exact = [features(model[1], image) for image in (hull.target, *corners)]
        length = sum(value**2 for value in exact[0])
        for values in exact[1:]:
            off = sum((a - b) ** 2 for a, b in zip(values, exact[0], strict=True))
            assert Fraction(found["feature_relative_max"]) ** 2 * length >= off


def features(layer: nn.Linear, image: Tensor) -> list[Fraction]:
    pixels = [Fraction(float(value)) for value in image.flatten()]
    rows = [[Fraction(float(value)) for value in row] for row in layer.weight.tolist()]
    biases = [Fraction(float(value)) for value in layer.bias.tolist()]
    sums = (
        sum((w * x for w, x in zip(row, pixels, strict=True)), bias)
        for row, bias in zip(rows, biases, strict=True)
    )
    return [max(Fraction(0), value) for value in sums]


class Parametrized(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask  # no buffer: a state dict does not hold it

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def test_what_is_kept_is_not_taken_for_another_parametrization(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    masks = Parametrized(torch.ones(6, 4))
    nn.utils.parametrize.register_parametrization(model[1], "weight", masks)
    corners = torch.rand(3, 1, 2, 2)
    hull = hull_of(model, corners, "1")
    first = prove_collision(hull.problem, 1, tmp_path)
    masks.mask = torch.zeros(6, 4)
    second = prove_class(replace(hull, graph=None).problem, 1, tmp_path)  # type: ignore[arg-type]
    fresh = prove_class(replace(hull, graph=None).problem, 1)  # type: ignore[arg-type]
    assert second["margin_min"] == fresh["margin_min"]
    assert first["share_proved"] == 1


def test_a_model_in_train_mode_is_proved_in_eval_mode_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.9),
        nn.Linear(6, 2),
    )  # fmt: skip
    model(torch.rand(32, 1, 2, 2))
    hull = hull_of(model.eval(), 0.5 + 0.01 * torch.rand(3, 1, 2, 2), "2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    found = prove_class(hull.problem, 1)
    assert found["outcome"] == "proved"
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
