"""A search on a small convolutional network, which takes a fraction of a second."""

import torch
from torch import nn

from feature_collisions.search.find_corners import find_corners
from feature_collisions.settings.search import (
    LogSettings,
    LossSettings,
    StopSettings,
)
from helpers.defaults import plain_optimizer

ALONE = {"accelerator": "cpu"}
APART = LossSettings.paper(10.0, 0.1, positive_form="half_square")


def convolutions():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip


def two_images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def search(pair, **changes):
    settings = {
        "loss": APART,
        "optimizer": plain_optimizer("adam", 0.01, 0.01),
        "stop": StopSettings(None, 0, 60, 0.1, None),
        "log": LogSettings(20, 20, 20),
        "trainer": ALONE,
    }
    return find_corners(convolutions(), "2", *pair, range(5), **settings | changes)
