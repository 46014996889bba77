import pytest
import torch

from feature_collisions.data.datasets import Images
from feature_collisions.errors import SettingError
from feature_collisions.patches.database import open_database
from feature_collisions.patches.nearest_patches import query_patches, search_patches
from feature_collisions.report.figures import sheet_figure
from feature_collisions.report.sheets import matches_sheet
from feature_collisions.settings.patches import PatchSettings


def test_figure_4_boxes_the_patch_its_match_and_what_is_pasted(tmp_path, monkeypatch):
    """The seed is another image shifted by (3, 6): the match is the patch's place less that."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 200, (3, 1, 28, 28), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.zeros(3).long(), ("0",))
    settings = PatchSettings(None, 1.0, 28, 1, 3, 7, 3, 2)
    seed = torch.zeros(1, 28, 28)
    seed[:, 3:, 6:] = pixels[1, :, :-3, :-6] / 255
    database = open_database(settings, images, 0)
    matches = search_patches(database, query_patches(seed, settings), settings, progress=False)
    query = 2 * 8 + 7  # at row 6, column 21: its surround leaves the image by 2 pixels
    figure = sheet_figure(matches_sheet(seed, database, matches, [query], settings))
    titles = [" ".join(axes.get_title().split()) for axes in figure.axes]
    assert titles == ["query image", "nearest neighbour", "source image"]
    boxes = [axes.patches[-1].get_xy() for axes in figure.axes]
    assert boxes == [(20.5, 5.5), (14.5, 2.5), (20.5, 5.5)]
    pictures = [torch.from_numpy(axes.images[0].get_array().data) for axes in figure.axes]
    assert torch.equal(pictures[1], pixels[1, 0])
    expected = torch.full((28, 28), 255, dtype=torch.uint8)
    expected[4:15, 19:28] = pixels[1, 0, 1:12, 13:22]  # n + 2 s is 11, 9 of them inside
    assert torch.equal(pictures[2], expected)
    with pytest.raises(SettingError, match=r"query 64: the seed has patches 0 to 63"):
        matches_sheet(seed, database, matches, [64], settings)
