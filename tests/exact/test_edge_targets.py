"""Targets with pixels at 0 or 1: little of the polytope is left, and it is exact."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feature_collisions import CollisionError, exact_hull
from feature_collisions.exact import nearest
from feature_collisions.exact.first_layer import FirstLayer, first_layer
from feature_collisions.exact.interior import Interior
from feature_collisions.exact.polytope import polytope_of
from feature_collisions.graph.graph import trace


def drawn(seed: int) -> tuple[FirstLayer, Tensor]:
    """A random stem and a target, two thirds of whose pixels are at 0 or 1."""
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    channels, kernel = int(draw.integers(1, 4)), int(draw.integers(2, 5))
    wide = int(draw.integers(1, max(2, channels * kernel * kernel // 3)))
    stride, padding = int(draw.integers(max(1, kernel - 2), kernel + 1)), int(draw.integers(2))
    stem = nn.Conv2d(channels, wide, kernel, stride, padding)
    bend = nn.ReLU() if draw.integers(2) else nn.Sigmoid()
    size = (channels, 8, 8)
    features = stem(torch.zeros(1, *size)).numel()
    model = nn.Sequential(stem, bend, nn.Flatten(), nn.Linear(features, 2)).double().eval()
    target = torch.rand(size)
    if draw.integers(2):  # an object on a black ground; else edges everywhere
        target[:, :, :5] = 0
    else:
        target[torch.rand(size) < 1 / 3], target[torch.rand(size) < 1 / 3] = 0, 1
    return first_layer(trace(model, size)), target


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("steps", [200, 4])
def test_corners_near_and_far_are_exact_however_few_steps_there_are(seed, steps, monkeypatch):
    monkeypatch.setattr(nearest, "_STEPS", steps)
    layer, target = drawn(seed)
    polytope = polytope_of(layer, target)
    near, _ = polytope.nearest(torch.rand(2, target.numel()).double())
    far, _ = polytope.apart(2, torch.Generator().manual_seed(seed))
    for found in (near, far):
        assert found.min() >= 0
        assert found.max() <= 1
        images = found.view(-1, *target.shape)
        assert layer.residual(images, layer.features(target)).max() <= 1e-9


def test_an_interior_moves_all_that_some_point_moves():
    """x0 + x1 = 0 holds both at 0; x2 = x3 rise together; x4 is inside; x5 - x6 may only fall."""
    rows = np.array([[1.0, 1, 0, 0, 0, 0, 0], [0, 0, 1, -1, 0, 0, 0], [0, 0, 0, 0, 0, 1, -1]])
    target = np.array([0, 0, 0, 0, 0.5, 1, 1])
    found = Interior.of(rows, rows @ target, np.array([True, True, False]), target)
    assert found.moves.tolist() == [False, False, True, True, True, True, True]
    assert found.equal.tolist() == [True, True, False]
    inside = found.point[2:]
    assert inside.min() > 0
    assert inside.max() < 1
    assert found.point[2] == found.point[3]
    assert found.point[5] < found.point[6]
    near = found.from_near(np.array([[0.3, 0.3, 0.2, 0.4, 1.0, 0.1, 0.9]]).T)[:, 0]
    np.testing.assert_allclose(near, [0, 0, 0.3, 0.3, 1, 0.1, 0.9], atol=1e-12)


def test_a_target_that_leaves_no_other_image_is_said_to():
    torch.manual_seed(0)
    stem = nn.Conv2d(1, 1, 2, 2)
    nn.init.ones_(stem.weight)  # of each square the sum
    model = nn.Sequential(stem, nn.Sigmoid(), nn.Flatten(), nn.Linear(4, 2)).eval()
    for towards in (2, torch.rand(2, 1, 4, 4)):
        with pytest.raises(CollisionError, match=r"hides 12 directions, but .*leave none of them"):
            exact_hull(model, torch.zeros(1, 4, 4), towards)
    again = exact_hull(model, torch.zeros(1, 4, 4), torch.zeros(1, 1, 4, 4))  # what was asked for
    assert again.summary["residual"] == 0
