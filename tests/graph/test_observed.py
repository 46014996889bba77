"""Logits and pre-activations from one pass, and what is said of many points of a hull."""

import math

import torch
from torch import Tensor, nn

from feature_collisions.graph.target import TargetFeatures
from feature_collisions.hull.hull import Hull
from feature_collisions.hull.outputs import Classes
from feature_collisions.hull.samples import HullStatistics
from helpers.graphs import observed_at


def in_place_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 3),
    ).eval()


class Untraceable(nn.Module):
    """Branches on a value, which no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.net = in_place_net()

    def forward(self, images: Tensor) -> Tensor:
        if images.sum() > -1:
            images = images * 1
        logits: Tensor = self.net(images)
        return logits


def test_one_pass_gives_both_before_an_in_place_relu_overwrites_them() -> None:
    images = torch.rand(5, 1, 8, 8)
    for model, prefix in ((in_place_net(), ""), (Untraceable(), "net.")):
        plain = model.net if isinstance(model, Untraceable) else model
        for index in (0, 4):
            expected = plain[: index + 1](images).flatten(1)
            assert expected.min() < 0  # else an overwritten copy would not show
            logits, preactivation = observed_at(model, f"{prefix}{index}", images)(images)
            assert torch.equal(preactivation, expected)
            assert torch.equal(logits, model(images))


def test_statistics_are_the_definitions_read_again_one_point_at_a_time() -> None:
    torch.manual_seed(1)
    target = TargetFeatures(torch.randn(20))
    target_logits, logits = torch.randn(4), torch.randn(9, 4)
    preactivation = torch.randn(9, 20)
    statistics = HullStatistics(target, Classes(target_logits, 2))
    statistics.update(logits[:4], preactivation[:4])
    statistics.update(logits[4:], preactivation[4:])
    found = statistics.compute()

    t = target_logits.softmax(0).tolist()
    divergences, errors, kept, correct = [], [], 0, 0
    for row, units in zip(logits, preactivation.tolist(), strict=True):
        p = row.softmax(0).tolist()
        divergences.append(sum(a * math.log(a / b) for a, b in zip(t, p, strict=True)))
        correct += p.index(max(p)) == 2
        square = 0.0
        for f0_x, f0_t in zip(units, target.preactivation.tolist(), strict=True):
            if f0_t >= 0:
                square += (f0_x - f0_t) ** 2
            else:
                kept += f0_x <= 0
        errors.append(square**0.5 / float(target.preactivation.relu().norm()))
    inactive = sum(f < 0 for f in target.preactivation.tolist())
    assert found["samples"] == 9
    assert found["accuracy"] == correct / 9
    torch.testing.assert_close(found["kl_mean"], sum(divergences) / 9, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["kl_max"], max(divergences), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["positive_relative_max"], max(errors), rtol=1e-5, atol=0)
    assert found["inactive_kept"] == kept / (9 * inactive)


def test_a_hull_of_the_target_alone_has_no_divergence_and_no_feature_error() -> None:
    model, target = in_place_net(), torch.rand(1, 8, 8)
    corners = target.repeat(3, 1, 1, 1)
    summary = {"target_class": int(model(target[None]).argmax()), "distance_scale": 1}
    hull = Hull(model, "4", corners, target, target, torch.arange(3), summary, batch=7)
    found = hull.sample(30)
    assert found["samples"] == 30
    assert found["accuracy"] == 1
    assert found["kl_max"] is not None
    assert found["kl_max"] < 1e-6
    assert found["positive_relative_max"] is not None
    assert found["positive_relative_max"] < 1e-5
    assert found["feature_relative_max"] is not None
    assert found["feature_relative_max"] < 1e-5
    assert found["inactive_kept"] == 1
