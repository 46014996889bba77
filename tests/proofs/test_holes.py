"""Holes at ceilings, counter-examples that bounds miss, and what a proof leaves as it was."""

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.exact import first_layer as layers
from feature_collisions.exact.first_layer import first_layer
from feature_collisions.graph.graph import trace
from feature_collisions.graph.target_layer import TargetLayer
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs import whole_hull
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.edges import prove_edges
from feature_collisions.proofs.faces import prove_faces
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.evaluate import EdgeSettings


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
    found = prove_class(hull.problem, 0.2, suspects=[[0.5, 0.5, 0.0]])
    assert found["outcome"] == "refuted"
    assert found["share_proved"] < 0.6
    blind = whole_hull.ClassJudge(hull.problem)
    blind.try_points = lambda weights: None  # type: ignore[method-assign]
    blind.prepare()
    known = whole_hull.Splitting.of(torch.eye(3), 2)
    known.run(blind, 10.0, None, "", limit=300)
    assert known.share < 0.6


class Pit(nn.Module):
    """The margin of class 0 is ||x - at||_1 - depth, written with clipped or unclipped ReLUs."""

    def __init__(self, at: Sequence[float], depth: float, top: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.act = nn.ReLU() if top == math.inf else nn.Hardtanh(0.0, top)
        with torch.no_grad():
            self.first.weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)]))
            self.first.bias.copy_(torch.tensor([*(-x for x in at), *at]))
            self.last.weight.copy_(torch.cat([torch.ones(1, 8), torch.zeros(1, 8)]))
            self.last.bias.copy_(torch.tensor([0.0, depth]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last(self.act(self.first(images.flatten(1))))
        return logits


@pytest.mark.parametrize("top", [math.inf, 0.25])
@pytest.mark.parametrize(
    "at",
    [(0.5, 0.5, 0, 0), (0.875, 0.125, 0, 0), (0.375, 0.375, 0.25, 0), (0.25, 0.25, 0.25, 0.25),
     (0.75, 0.25, 0, 0)],
)  # fmt: skip
def test_a_hole_on_an_edge_a_face_or_inside_is_not_proved_away(
    at: tuple[float, ...], top: float
) -> None:
    corners = torch.eye(4).view(4, 1, 2, 2)
    corner = corners[int(torch.tensor(at).argmin())]  # the furthest from the hole
    for depth in (2.0**-6, 2.0**-3):
        hull = hull_of(Pit(at, depth, top).eval(), "first", corners, corner)
        for suspects in ([], [list(at)]):
            found = prove_class(hull.problem, 0.3, suspects=suspects)
            assert found["outcome"] != "proved"
            assert 0 < found["share_proved"] < 1
        assert found["outcome"] == "refuted"
    filled = hull_of(Pit(at, -0.5, top).eval(), "first", corners, corner)
    assert prove_class(filled.problem, 3.0)["outcome"] == "proved"


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
    found = prove_class(hull.problem, 0.2, suspects=[[0.5, 0.5, 0.0]])
    assert found["outcome"] == "refuted"
    assert found["share_proved"] < 1


def test_the_weight_is_found_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 9, 5), nn.ReLU())
    layer = first_layer(trace(model.append(nn.Linear(5, 2)).eval(), (2, 5, 5)), "2")
    whole, seen = layer.weight(), list[int]()
    layer.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(layers, "_CHUNK", 7 * 50)
    assert (whole - layer.weight()).abs().max() < 1e-15
    assert max(seen) == 7


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
    prove_faces(hull.problem, 0.2)
    assert model.training
    assert kind.training
    assert not model[3].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


class Tent(nn.Module):
    """Logit 1 has a tent of height 4 at x1 = `place`, narrower than a step of what computes it."""

    def __init__(self, gain: float, depth: int, place: float) -> None:
        super().__init__()
        self.body = nn.Sequential(*[nn.Linear(1, 1) for _ in range(depth)])
        self.tent, self.side, self.head = nn.Linear(1, 2), nn.Linear(1, 8), nn.Linear(10, 2)
        self.clip = nn.Hardtanh(0.0, 1.0)
        with torch.no_grad():
            for k, layer in enumerate(self.body):
                layer.weight.fill_(gain)
                layer.bias.fill_(0.0 if k else -gain * place)
            self.tent.weight.fill_(1.0)
            self.tent.bias.copy_(torch.tensor([1.0, 0.0]))
            self.side.weight.fill_(1.0)
            self.side.bias.copy_(-torch.linspace(0.6, 0.95, 8))
            self.head.weight.zero_()
            self.head.weight[0, 2:] = -0.125
            self.head.weight[1, :2] = torch.tensor([4.0, -4.0])
            self.head.bias.copy_(torch.tensor([2.0, -1.0]))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(2).mean(2)
        hidden = [self.clip(self.tent(self.body(x))), self.side(x).relu()]
        logits: Tensor = self.head(torch.cat(hidden, 1))
        return logits


@pytest.mark.parametrize("place", [0.5, 0.375, 0.8125])
@pytest.mark.parametrize(("precision", "depth"), [(64, 4), (32, 2)])
def test_an_edge_with_a_hole_between_two_numbers_is_not_proved(
    precision: int, depth: int, place: float, tmp_path: Path
) -> None:
    corners = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(-1, -1, 2, 2).contiguous()
    hull = hull_of(Tent(2.0**14, depth, place).eval(), "side", corners, corners[0])
    found = prove_edges(hull.problem, EdgeSettings(share=1.0, precision=precision), tmp_path)
    point = hull.points(torch.tensor([[1 - place, place]]))
    assert hull.model(point).argmax() == 1
    if "reason" in found:
        assert "the walk and the network differ" in found["reason"]
        return
    assert found["edges"][0]["proved"] < 1
    assert found["edges"][0]["failed"] + found["edges"][0]["unconfirmed"] > 0


@pytest.mark.parametrize("seed", range(40))
def test_no_point_of_a_small_random_network_contradicts_a_proof(seed: int, tmp_path: Path) -> None:
    """Exact multiples, ceilings and equal weights, so that degenerate intervals occur."""
    draw = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=draw) / 2.0

    kinds = [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0.0, 1.0), nn.Hardtanh(0.0, 0.5)]
    first, second = (kinds[int(torch.randint(4, (1,), generator=draw))] for _ in range(2))
    pool = nn.MaxPool2d(2, 1) if seed % 2 else nn.AvgPool2d(2, 1)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2), first, pool, second, nn.Flatten(), nn.Linear(8, 4), nn.ReLU(),
        nn.Linear(4, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(some(*parameter.shape))
    corners = torch.randint(0, 3, (3, 1, 4, 4), generator=draw) / 2.0
    hull = hull_of(model, "0", corners, corners[0])
    with torch.no_grad():
        hull.summary["target_class"] = int(model(corners[:1]).argmax())
    settings = EdgeSettings(share=1.0)
    found, edges = prove_class(hull.problem, 0.3), prove_edges(hull.problem, settings, tmp_path)
    grid = torch.tensor(
        [[i, j, 40 - i - j] for i in range(41) for j in range(41 - i)], dtype=torch.float64
    )
    weights = grid / 40
    with torch.no_grad():
        images = torch.tensordot(weights, corners.double(), 1)
        logits = copy.deepcopy(model).double()(images)
    target = hull.target_class
    others = torch.arange(3) != target
    margins = (logits[:, target, None] - logits[:, others]).amin(1)
    if found["outcome"] == "proved":
        assert margins.min() >= found["margin_min"] - 1e-9
    for edge in edges["edges"]:
        i, j = edge["corners"]
        on_edge = (grid[:, [i, j]].sum(1) == 40).nonzero().flatten()
        if edge["proved"] == 1:
            assert (margins[on_edge] > 0).all()


class SumLast(nn.Module):
    """A residual sum of feature maps is the target layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(1, 2, 2),
            nn.Conv2d(2, 2, 1),
            nn.Linear(18, 3),
        )

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images).relu()
        logits: Tensor = self.head((hidden + self.second(hidden)).relu().flatten(1))
        return logits


def test_features_before_a_map_is_flattened_are_bounded(tmp_path: Path) -> None:
    model, corners = SumLast().eval(), torch.rand(3, 1, 4, 4)
    hull = hull_of(model, "add", corners, corners[0])
    found = prove_collision(hull.problem, 1)
    with torch.no_grad():
        values = TargetLayer(hull.graph, "add").double()(corners.double()).clamp(min=0)
    seen = (values - values[0]).norm(dim=1).max() / values[0].norm()
    assert found["share_proved"] == 1
    assert found["feature_relative_max"] >= float(seen)
