"""A search does not stop while points between its corners are of another class."""

import pytest
import torch
from torch import Tensor, nn

from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LossSettings
from helpers.defaults import stop_at_once


class Gap(nn.Module):
    """Class 0 where the first pixel is near 0 or 1, class 1 between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        nothing = 1e-3 * self.last(self.layer(images.flatten(1)).relu())
        away = 20 * ((images[:, 0, 0, 0] - 0.5).abs() - 0.2)
        return nothing + torch.stack([away, -away], 1)


@pytest.mark.parametrize(("points", "may_stop"), [(2, False), (0, True)])
def test_a_stop_looks_between_the_corners(points: int, may_stop: bool) -> None:
    ends = torch.zeros(2, 1, 2, 2)
    ends[1, 0, 0, 0] = 1
    module = Search(
        Gap(), "layer", *ends, range(2),
        loss=LossSettings.paper(1.0, 0.1, hull=points), stop=stop_at_once(0.1, probability=0.1),
        trainer={"accelerator": "cpu"},
    ).module  # fmt: skip
    assert module._classified_as_target(ends, ends) is may_stop


@pytest.mark.parametrize(("corners", "points"), [(5, 3), (10, 8), (4, 1)])
def test_points_between_corners_do_not_depend_on_the_number_of_threads(
    corners: int, points: int
) -> None:
    """A matrix product's gradient did: from five corners on it rounds otherwise on two."""
    ends = torch.rand(2, 1, 2, 2)
    module = Search(
        Gap(),
        "layer",
        *ends,
        [0],
        loss=LossSettings.paper(1.0, 0.1),
        trainer={"accelerator": "cpu"},
    ).module
    every, along = torch.rand(corners, 3, 32, 32), torch.randn(points, 3, 32, 32)
    found, before = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            images = every.clone().requires_grad_()
            inside = module._points_inside(points, 0, images)
            (gradient,) = torch.autograd.grad(inside, images, along)
            found.append((inside.detach(), gradient))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)
