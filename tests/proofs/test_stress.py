"""Proofs of 300 random networks over all known operations, compared with dense sampling.

Twenty architectures, each with fifteen draws of weights and hulls, degenerate ones included.
A second list of tiny networks is compared in rational arithmetic.
"""

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_collisions.graph.graph import trace
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.edges import prove_edges
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.settings.evaluate import EdgeSettings
from feature_collisions.simplex import dirichlet

ARCHITECTURES, DRAWS, SAMPLES = 20, 15, 200
PIECES = 0.03  # seconds of the proofs' clock: thirty pieces

Operation = Callable[[Tensor], Tensor]


def in_place_through_a_view(x: Tensor) -> Tensor:
    x = x * 1.0
    F.relu_(x.transpose(2, 3))
    return x


def in_place_on_half(x: Tensor) -> Tensor:
    x = x + 0.1
    x[:, :2].clamp_(min=-0.5)
    return x


def shuffled(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 2, 2, 4, 4).transpose(1, 2).reshape(x.shape[0], 4, 4, 4)


def swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    return torch.cat([second.relu(), first], 1)


def split_unevenly(x: Tensor) -> Tensor:
    first, second = x.split([1, 3], dim=-1)
    return torch.cat([second, first * 2], -1)


def unbound(x: Tensor) -> Tensor:
    rows = x.unbind(2)
    return torch.stack([rows[3], rows[1].relu(), rows[2], rows[0]], 2)


# Each keeps the shape (B, 4, 4, 4). Every operation that the registry knows is in one of them.
PLAIN: list[Operation] = [
    F.relu, F.relu6, torch.abs, F.hardsigmoid, F.leaky_relu, torch.neg, shuffled, swapped,
    split_unevenly, unbound, in_place_through_a_view, in_place_on_half,
    lambda x: F.hardtanh(x, 0.0, 0.25),
    lambda x: F.hardtanh(x),
    lambda x: x.clamp(-0.3, 0.4),
    lambda x: x.clamp(max=0.2),
    lambda x: F.threshold(x, 0.1, 0.1),
    lambda x: torch.maximum(x, x.flip(3)),
    lambda x: torch.minimum(x, x.roll(1, 2)),
    lambda x: F.max_pool2d(x, 3, 1, 1),
    lambda x: F.interpolate(F.max_pool2d(x, 2), scale_factor=2),
    lambda x: F.avg_pool2d(x, 3, 1, 1),
    lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear"),
    lambda x: x + x.mean((2, 3), keepdim=True),
    lambda x: x - x.sum(1, keepdim=True).expand(-1, 4, -1, -1),
    lambda x: torch.add(x, x.relu(), alpha=2),
    lambda x: torch.sub(x, x.relu(), alpha=0.5),
    lambda x: 1 - x,
    lambda x: x * 0.5 / 2.0 + 1,
    lambda x: x * torch.linspace(-1, 1, 4).to(x.dtype),
    lambda x: x @ torch.linspace(-1, 1, 16).view(4, 4).to(x.dtype),
    lambda x: x.permute(0, 3, 1, 2),
    lambda x: F.pad(x[:, :, 1:, :-1], (0, 1, 1, 0)),
    lambda x: x.index_select(1, torch.tensor([2, 0, 3, 1])),
    lambda x: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2),
    lambda x: F.dropout(x, 0.5, training=False),
    lambda x: x.narrow(3, 1, 3).flatten(1).unflatten(1, (4, 4, 3)) @ torch.ones(3, 4).to(x),
    lambda x: x.unsqueeze(1).squeeze(1),
    lambda x: x.clone().add_(0.2).mul_(0.9),
]  # fmt: skip


class Network(nn.Module):
    """Conv, rectifier, random operations and layers, linear. Weights are drawn anew by `draw`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(len(PLAIN), (4,), generator=generator).tolist()
        chosen[0], chosen[3] = number, (number + 20) % len(PLAIN)  # each of them in some network
        self.operations = [PLAIN[k] for k in chosen]
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.act = nn.ReLU() if number % 3 else nn.ReLU6()
        self.middle = [
            nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=2), nn.BatchNorm2d(4),
            nn.PReLU(4), nn.Linear(4, 4), nn.Conv2d(4, 4, 3, padding="same", dilation=2),
        ][number % 6]  # fmt: skip
        self.skips = number % 2
        self.last = nn.Linear(64, 3)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.conv(images))
        for k, operation in enumerate(self.operations):
            x = operation(x)
            if k == 1:
                x = x + self.middle(x) if self.skips else self.middle(x)
        logits: Tensor = self.last(x.flatten(1))
        return logits

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Ordinary weights, or degenerate ones: many zeros, units exactly at 0."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.normal_(0, 0.4, generator=generator)
            if seed % 5 == 3:
                keep = torch.rand(parameter.shape, generator=generator) > 0.5
                parameter.mul_(keep).round_()
        if seed % 5 == 3:
            self.conv.bias.zero_()
        for buffer in self.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.2, 1, generator=generator)
        self.last.bias[0] += 1.3 if seed % 2 else 0.3  # no logits that look like probabilities


def corners_of(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(3, 1, 4, 4, generator=generator)
    if seed % 5 == 2:
        corners[2] = corners[1]  # coinciding corners
    if seed % 5 == 3:
        corners = corners.round()
    if seed % 5 == 4:
        corners = corners[:1] + 0.05 * (corners - corners[:1])
    return corners


def hull_of(model: nn.Module, graph: Any, layer: str, corners: Tensor) -> Hull:
    with torch.no_grad():
        target_class = int(model(corners[:1])[0].argmax())
    summary: dict[str, Any] = {
        "target_class": target_class, "target_probability": 1.0, "distance_scale": 1,
        "corners": [{"corner": k, "unit": 0} for k in range(len(corners))],
    }  # fmt: skip
    units = torch.zeros(len(corners), dtype=torch.int64)
    return Hull(model, layer, corners, corners[0], corners[0], units, summary, graph=graph)


def margins(model: nn.Module, images: Tensor, target_class: int) -> Tensor:
    """By the model itself in float64: the target's logit over the largest other one."""
    logits = copy.deepcopy(model).double()(images)
    own = logits[:, target_class].clone()
    logits[:, target_class] = -math.inf
    return own - logits.amax(1)


@pytest.mark.parametrize("number", range(ARCHITECTURES))
@torch.no_grad()
def test_random_networks(number: int, tmp_path: Path) -> None:
    model = Network(number)
    graph = None
    for draw in range(DRAWS):
        seed = DRAWS * number + draw
        model.draw(seed)
        corners = corners_of(seed)
        graph = graph or trace(model, corners.shape[1:])
        hull = hull_of(model, graph, "conv", corners)
        weights = dirichlet(SAMPLES, len(corners), torch.Generator().manual_seed(seed))
        weights = torch.cat([weights, torch.eye(len(corners), dtype=torch.float64)])
        points = torch.tensordot(weights, corners.double(), 1)
        check_class(hull, points)
        check_collision(hull, points)
        if draw == 0:
            check_edge(hull, tmp_path)


def check_class(hull: Hull, points: Tensor) -> None:
    found = prove_class(hull.problem, PIECES)
    if "reason" in found:  # nothing that is in the list is unknown
        assert "two classes" in found["reason"]
    seen = margins(hull.model, points, hull.target_class)
    if found["outcome"] == "proved":
        assert found["margin_min"] <= float(seen.min())
    if found["outcome"] == "refuted":
        weights = torch.tensor(found["counter_example"]["weights"], dtype=torch.float64)
        point = torch.tensordot(weights, hull.corners.double(), 1)[None]
        assert float(margins(hull.model, point, hull.target_class)) <= 1e-5
    right = float((seen > 0).double().mean())
    assert found["share_proved"] <= right + 5 * (0.25 / SAMPLES) ** 0.5


def check_collision(hull: Hull, points: Tensor) -> None:
    found = prove_collision(hull.problem, PIECES)
    if found.get("feature_relative_max") is None or found.get("share_proved") != 1:
        return
    double = copy.deepcopy(hull.model).double()
    features = double.act(double.conv(points)).flatten(1)  # type: ignore[operator]
    target = double.act(double.conv(hull.target[None].double())).flatten(1)  # type: ignore[operator]
    errors = (features - target).norm(dim=1) / target.norm()
    assert float(errors.max()) <= found["feature_relative_max"] * (1 + 1e-12)


def check_edge(hull: Hull, directory: Path) -> None:
    found = prove_edges(hull.problem, EdgeSettings(share=1, seconds=PIECES), directory)
    assert "reason" not in found
    for edge in found["edges"]:
        first, last = (hull.corners[k].double() for k in edge["corners"])
        places = torch.linspace(0, edge["walked"], 101, dtype=torch.float64).view(-1, 1, 1, 1)
        seen = margins(hull.model, first + places * (last - first), hull.target_class)
        wrong = float((seen < 0).double().mean())
        assert edge["failed"] + edge["unconfirmed"] >= (wrong - 0.02) * edge["walked"]
        if edge["failed"] == edge["unconfirmed"] == 0 and edge["walked"] > 0:
            assert float(seen.min()) > 0


class Tiny(nn.Module):
    """Two layers of three units on two pixels, every number a small multiple of 1/4."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first, self.second, self.last = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.act = nn.ReLU() if seed % 2 else nn.Hardtanh(0.0, 0.75)
        with torch.no_grad():
            for parameter in self.parameters():
                drawn = torch.randint(-6, 7, parameter.shape, generator=generator)
                parameter.copy_(drawn / 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.act(self.second(self.act(self.first(images.flatten(1)))))
        logits: Tensor = self.last(hidden)
        return logits

    def exactly(self, values: list[Fraction]) -> list[Fraction]:
        top = Fraction(3, 4) if isinstance(self.act, nn.Hardtanh) else None
        for layer in (self.first, self.second, self.last):
            rows, biases = layer.weight.tolist(), layer.bias.tolist()
            values = [
                sum((Fraction(w) * v for w, v in zip(row, values, strict=True)), Fraction(bias))
                for row, bias in zip(rows, biases, strict=True)
            ]
            if layer is not self.last:
                values = [max(v, Fraction(0)) for v in values]
                values = values if top is None else [min(v, top) for v in values]
        return values


@pytest.mark.parametrize("seed", range(25))
def test_tiny_networks_in_rational_arithmetic(seed: int) -> None:
    model = Tiny(seed).eval()
    drawn = torch.randint(0, 5, (3, 1, 1, 2), generator=torch.Generator().manual_seed(seed))
    corners = drawn / 4
    hull = hull_of(model, trace(model, corners.shape[1:]), "first", corners)
    found = prove_class(hull.problem, 0.3)
    steps = 12
    exact = []
    for i in range(steps + 1):
        for j in range(steps + 1 - i):
            weights = [Fraction(i, steps), Fraction(j, steps), Fraction(steps - i - j, steps)]
            point = [
                sum((w * Fraction(float(c)) for w, c in zip(weights, pixel, strict=True)),
                    Fraction(0))
                for pixel in corners.flatten(1).T.tolist()
            ]  # fmt: skip
            logits = model.exactly(point)
            own = logits[hull.target_class]
            exact.append(own - logits[1 - hull.target_class])
    if found["outcome"] == "proved":
        assert min(exact) > 0
        assert Fraction(found["margin_min"]) <= min(exact)
    if min(exact) < 0:
        assert found["outcome"] != "proved"
        assert found["share_proved"] < 1
