"""Hulls made quickly: random ones of any size with their evaluation, and one that is known."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from feature_collisions.evaluation.evaluate import evaluate
from feature_collisions.hull.hull import Hull
from feature_collisions.settings.evaluate import (
    EdgeSettings,
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WorstCaseSettings,
)
from feature_collisions.simplex import dirichlet
from helpers.networks import Valley

NASTY = "<img src=x onerror=window.broken=1></script></script x><!--<script><b>&amp;|$"
NAMES = ("tench", NASTY, "`tick` \"quote\" 'apostrophe'", "plain")


def made_hull(corners=5, size=(1, 6, 6), target_class=1):
    """Random images; a classifier of four classes that gives the target `target_class`."""
    generator = torch.Generator().manual_seed(0)
    channels = size[0]
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(36 * channels, 16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    images = torch.rand(corners + 2, *size, generator=generator)
    with torch.no_grad():
        logits = model(images)
        model[4].bias[target_class] += (logits.amax(1) - logits[:, target_class]).mean()
        model[4].bias[target_class] += (logits.amax(1) - logits[:, target_class])[1].relu()
        probabilities = model(images).softmax(1)
    entries = [
        {
            "corner": k,
            "unit": k,
            "positive": 0.5,
            "positive_relative": 0.01,
            "negative": -1.0,
            "unit_preactivation": -2.0,
            "predicted_class": int(row.argmax()),
            "probability": float(row[target_class]),
        }
        for k, row in enumerate(probabilities[2:])
    ]
    summary = {
        "experiment": "mnist",
        "classifier": "made <i>up</i>",
        "layer": "2",
        "initial_class": int(probabilities[0].argmax()),
        "target_class": target_class,
        "target_probability": float(probabilities[1][target_class]),
        "distance_scale": 1,
        "converged": True,
        "steps": 10,
        "seconds": 0.5,
        "corners": entries,
    }
    units = torch.arange(corners)
    return Hull(model, "2", images[2:], images[0], images[1], units, summary)


def evaluated(hull, directory, samples=40, judge=None):
    """What evaluate.py would find, with as little work as possible."""
    settings = EvaluateSettings(
        samples=samples,
        worst_case=WorstCaseSettings(starts=2, steps=3),
        plain=PlainSettings(0),
        edges=EdgeSettings(seconds=0.0),
        proof=ProofSettings(0.0, False),
    )
    return evaluate(hull, lambda: {1: 2.0, 2: 2.0}, settings, directory, judge=judge)


def hull_of(model: nn.Module, corners: Tensor, layer: str = "3", **known: Any) -> Hull:
    """The hull of corners, the last of which is the target."""
    target_class = int(model(corners[-1:]).argmax())
    entries = [{"corner": k} for k in range(len(corners))]
    summary = {"target_class": target_class, "distance_scale": 1, "corners": entries, **known}
    units = torch.arange(len(corners))
    return Hull(model, layer, corners, corners[0], corners[-1], units, summary)


def collided(seed: int = 0) -> Hull:
    """Corners near each other, and a target layer behind another."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    corners = torch.rand(1, 1, 6, 6) + 0.2 * torch.rand(4, 1, 6, 6)
    return hull_of(model, corners)


def valley() -> Hull:
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).view(3, 1, 1, 2)
    summary: dict[str, Any] = {
        "target_class": 0,
        "distance_scale": 1,
        "corners": [{"corner": 4}, {"corner": 5}, {"corner": 9}],
    }
    return Hull(Valley(), "bend", corners, corners[0], corners[1], torch.arange(3), summary)


def deep(seed: int) -> Hull:
    """Of a network whose bounds are far off on a whole hull; its class holds by little."""
    torch.manual_seed(seed)
    layers = [layer for _ in range(4) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 3)).eval()
    for each in model.parameters():
        each.data.mul_(2.6)
    corners = torch.rand(5, 1, 4, 4)
    weights = dirichlet(2000, 5, torch.Generator().manual_seed(0)).float()
    points = torch.tensordot(weights, corners, 1)
    with torch.no_grad():
        logits = model(torch.cat([corners.mean(0, keepdim=True), corners, points]))
        order = logits[0].argsort(descending=True)
        worst = (logits[:, order[0], None] - logits[:, order[1:]]).amin(1)
        model[-1].bias.data[order[0]] -= worst[0] - 1.02 * (worst[0] - worst.min())
    hull = replace(hull_of(model, corners, "7"), target=corners.mean(0))
    hull.summary["target_class"] = int(order[0])
    return hull
