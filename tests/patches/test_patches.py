"""Pasting, against section 4's Figure 5 read a second time; the geometry's errors; a small run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from feature_collisions.data.image_set import ImageSet
from feature_collisions.errors import SettingError
from feature_collisions.patches.database import PatchDatabase
from feature_collisions.patches.nearest_patches import Matches
from feature_collisions.patches.paste import check_geometry, paste
from feature_collisions.settings.patches import PatchSettings


class Gradients(ImageSet):
    """Images whose every pixel says which image, row and column it is."""

    labels = torch.arange(3)
    class_names = ("a", "b", "c")

    @property
    def size(self) -> tuple[int, int, int]:
        return 3, 24, 24

    def __getitem__(self, index: Any) -> Tensor:
        return self.at_side(int(index), 24)

    def at_side(self, index: int, side: int) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        return torch.stack([torch.full((side, side), index), rows, columns]).float() / 255


def mirrored(place: int, side: int) -> int:
    """Beyond the border the image goes on as in a mirror that stands on the last pixel."""
    if place < 0:
        return -place
    return 2 * (side - 1) - place if place >= side else place


def test_paste_mirrors_surroundings_and_lays_patches_where_the_queries_lie() -> None:
    settings = PatchSettings(patch=8, stride=8, surround=3, size=24, reduction=2, search_stride=2)
    database = PatchDatabase(
        torch.zeros(3, 3, 12, 12, dtype=torch.uint8), Gradients(), torch.tensor([2, 0, 1]), 4, 1,
        Path(),
    )  # fmt: skip
    image = torch.arange(18).view(9, 2) % 3
    row, column = torch.arange(18).view(9, 2) % 9, torch.arange(18).flip(0).view(9, 2) % 9
    matches = Matches(image, row, column, torch.zeros(9, 2))
    sources = paste(database, matches, settings, 24)
    assert sources.size == (24, 24)
    assert sources.windows.shape == (18, 3, 14, 14)
    expected = torch.tensor([-3, 5, 13])
    assert torch.equal(sources.top, expected.repeat_interleave(6))
    assert torch.equal(sources.left, expected.repeat_interleave(2).repeat(3))
    for k, window in enumerate(sources.windows):
        of, top, left = (int(each.flatten()[k]) for each in (image, row, column))
        for i, j in ((0, 0), (13, 13), (5, 2), (0, 9)):
            known = int(database.members[of])
            pixel = [known, mirrored(2 * top - 3 + i, 24), mirrored(2 * left - 3 + j, 24)]
            assert (255 * window[:, i, j]).round().tolist() == pixel


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"patch": 30}, "patches.patch=30: a patch must fit into the images of 24 pixels"),
        ({"surround": 24}, "patches.surround=24: must be less than the images' 24 pixels"),
        ({"stride": 15}, "patches.stride=15: leaves pixels uncovered by patches of 8 \\+ 2 \\* 3"),
        ({"stride": 6}, "patches.stride=6: leaves pixels uncovered .* choose a divisor of 16"),
    ],
)
def test_patches_that_do_not_cover_the_image_are_refused(setting: Any, message: str) -> None:
    settings = PatchSettings(**({"patch": 8, "stride": 8, "surround": 3} | setting))
    with pytest.raises(SettingError, match=message):
        check_geometry(settings, 24)


def test_every_pixel_is_covered_where_the_geometry_is_accepted() -> None:
    for stride in range(1, 15):
        settings = PatchSettings(patch=8, stride=stride, surround=3)
        covered = torch.zeros(24, dtype=torch.bool)
        for start in range(0, 24 - 8 + 1, stride):
            covered[max(0, start - 3) : start + 8 + 3] = True
        try:
            check_geometry(settings, 24)
        except SettingError:
            assert stride not in (1, 2, 4, 8)
        else:
            assert covered.all(), stride
