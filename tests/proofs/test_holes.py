"""Holes at ceilings, counter-examples that bounds miss, and what a proof leaves as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.hull.hull import Hull
from feature_collisions.networks.graph import trace
from feature_collisions.networks.target_layer import TargetLayer
from feature_collisions.proofs import linear_program, whole_hull
from feature_collisions.proofs.faces import prove_faces
from feature_collisions.proofs.linear_program import affine_map
from feature_collisions.proofs.whole_hull import prove_class


def hull_of(model: nn.Module, layer: str, corners: Tensor, target: Tensor) -> Hull:
    summary: dict[str, Any] = {
        "target_class": 0, "target_probability": 1.0, "distance_scale": 1,
        "corners": [{"corner": k, "unit": 0} for k in range(len(corners))],
    }  # fmt: skip
    units = torch.zeros(len(corners), dtype=torch.int64)
    return Hull(model, layer, corners, corners[0], target, units, summary)


class AtItsCeiling(nn.Module):
    """The margin is |x1 - x2| + top - (top + 1/2): below 0 on a strip in the middle."""

    def __init__(self, top: float, between: nn.Module) -> None:
        super().__init__()
        self.conv, self.head, self.between = nn.Conv2d(1, 3, (1, 2)), nn.Linear(3, 2), between
        self.act = nn.Hardtanh(0.0, top)
        with torch.no_grad():
            weight = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
            self.conv.weight.copy_(weight.view(3, 1, 1, 2))
            self.conv.bias.copy_(torch.tensor([0.0, 0.0, 1.5 * top]))
            self.head.weight.copy_(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
            self.head.bias.copy_(torch.tensor([top, 0.5]))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.between(self.act(self.conv(images)))
        logits: Tensor = self.head(self.act(hidden).flatten(1))
        return logits


@pytest.mark.parametrize("top", [1.0, 6.0])
@pytest.mark.parametrize(
    "between",
    [nn.Identity(), nn.MaxPool2d((2, 1)), nn.Sequential(nn.ReLU6(), nn.ReLU()), nn.AvgPool2d(1)],
)
def test_a_unit_at_its_ceiling_hides_no_hole(top: float, between: nn.Module) -> None:
    rows = 2 if isinstance(between, nn.MaxPool2d) else 1
    ends = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]]).view(3, 1, 1, 2)
    corners = ends.expand(-1, -1, rows, -1).contiguous()
    hull = hull_of(AtItsCeiling(top, between).eval(), "conv", corners, corners[0])
    found = prove_class(hull, 0.2, suspects=[[0.5, 0.5, 0.0]])
    assert found["outcome"] == "refuted"
    assert found["share_proved"] < 0.6
    blind = whole_hull.ClassJudge(hull)
    blind.try_points = lambda weights: None  # type: ignore[method-assign]
    blind.prepare()
    known = whole_hull.Splitting.of(torch.eye(3), 2)
    known.run(blind, 10.0, None, "", worst_first=False, limit=300)
    assert known.share < 0.6


def test_a_counter_example_wins_over_bounds_that_do_not_see_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corners = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.9, 0.1]]).view(3, 1, 1, 2)
    hull = hull_of(AtItsCeiling(6.0, nn.Identity()).eval(), "conv", corners, corners[0])

    def lower(bounds: Any, number: int, rows: Tensor) -> Tensor:
        bounds.met = {}
        return torch.ones(bounds.pieces, bounds.corners, len(rows), dtype=torch.float64)

    monkeypatch.setattr(whole_hull.HullJudge, "_check", lambda *_: None)
    monkeypatch.setattr("feature_collisions.proofs.judge.Bounds.lower", lower)
    found = prove_class(hull, 0.2, suspects=[[0.5, 0.5, 0.0]])
    assert found["outcome"] == "refuted"
    assert found["share_proved"] < 1


def test_the_affine_map_is_made_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 9, 5), nn.ReLU())
    cut = TargetLayer(trace(model.append(nn.Linear(5, 2)).eval(), (2, 5, 5)), "2").double()
    whole = affine_map(cut, (2, 5, 5))
    seen = list[int]()
    forward = cut.forward
    cut.forward = lambda x: seen.append(len(x)) or forward(x)  # type: ignore[func-returns-value]
    monkeypatch.setattr(linear_program, "_CHUNK", 7 * 50)
    parts = affine_map(cut, (2, 5, 5))
    assert max(seen) == 7
    assert abs(whole.weight - parts.weight).max() < 1e-15


@pytest.mark.parametrize("kind", [nn.Dropout(0.9), nn.BatchNorm1d(8)])
def test_a_model_in_train_mode_is_proved_in_eval_mode_and_left_as_it_is(kind: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), kind, nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[4].bias[0] += 9
    corners = torch.rand(3, 1, 2, 2)
    model(corners)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model[3].eval()
    layer = "2" if isinstance(kind, nn.BatchNorm1d) else "1"
    hull = hull_of(model, layer, corners, corners[0])
    assert hull.prove(0.2)["class"]["outcome"] == "proved"
    prove_faces(hull, 0.2)
    assert model.training
    assert kind.training
    assert not model[3].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
