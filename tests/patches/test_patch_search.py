from dataclasses import replace

import pytest
import torch

from feature_collisions.errors import SettingError
from feature_collisions.patches.database import open_database
from feature_collisions.patches.nearest_patches import (
    Matches,
    query_patches,
    reduced_seed,
    same_images,
    search_patches,
)
from feature_collisions.patches.patch_windows import (
    ROUNDING,
    Descriptions,
    basis_of,
    squared_distances,
    windows_at,
)
from feature_collisions.settings.patches import PatchSettings
from helpers.patches import SETTINGS, assert_same, images_of, slow_search


@pytest.mark.parametrize("neighbours", [1, 3])
def test_exact_search_is_the_slow_one(database, neighbours):
    seed = database.image_set[int(database.members[7])]
    queries = query_patches(seed, replace(SETTINGS, stride=3))
    assert queries.shape == (64, 3, 7, 7)
    noise = torch.rand(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    black_and_white = torch.stack([torch.zeros(3, 7, 7), torch.ones(3, 7, 7)])
    queries = torch.cat([queries, noise, black_and_white])
    settings = replace(SETTINGS, neighbours=neighbours)
    found = search_patches(database, queries, settings, seed, progress=False)
    assert isinstance(found, Matches)
    assert_same(found, slow_search(database, queries, neighbours, left_out=(7,)))


def test_without_a_seed_windows_of_the_database_find_themselves(database):
    numbers = torch.arange(0, len(database), 97)
    queries = windows_at(database, numbers).float() / 255
    found = search_patches(database, queries, SETTINGS, progress=False)
    assert (found.distance == 0).all()
    assert_same(found, slow_search(database, queries, 1))


def test_of_equal_windows_the_first_counts(tmp_path, monkeypatch):
    """Blank pictures but for one dot: nearly all windows tie."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pixels = torch.zeros(80, 1, 28, 28, dtype=torch.uint8)
    pixels[:, :, :9, :9] = torch.arange(80, dtype=torch.uint8).view(-1, 1, 1, 1) + 1
    database = open_database(SETTINGS, images_of(pixels), 0)
    queries = torch.zeros(2, 1, 7, 7)
    queries[1] = 40.5 / 255
    found = search_patches(database, queries, replace(SETTINGS, neighbours=2), progress=False)
    assert_same(found, slow_search(database, queries, 2))
    assert found.image.tolist()[0] == [0, 1]
    assert (found.row[0, 0], found.column[0, 0]) == (0, 9)


def test_digits_find_digits(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    database = open_database(replace(SETTINGS, fraction=0.05), digits.test, 0)
    seed = digits.test[int(database.members[4])]
    queries = query_patches(seed, SETTINGS)
    found = search_patches(database, queries, SETTINGS, seed, progress=False)
    assert_same(found, slow_search(database, queries, 1, left_out=(4,)))


def test_the_bound_is_never_above_the_distance(database):
    """Also for black and white images, whose |x|^2 is largest, and in coordinates of others."""
    images = torch.cat([database.images[:6], torch.zeros_like(database.images[:1])])
    images = torch.cat([images, torch.full_like(images[:1], 255)])
    queries = windows_at(database, torch.arange(300, 340)).float() / 255
    for basis in (basis_of(queries, 5), basis_of(queries, 40)):
        assert torch.allclose(basis.T @ basis, torch.eye(basis.shape[1]), atol=1e-6)
        descriptions = Descriptions(basis, 7, 3)
        few, query_squares = descriptions.of_windows(queries)
        many, squares = descriptions.of_images(images)
        bounds = query_squares[:, None] + squares - 2 * few @ many.T
        windows = images.unfold(2, 7, 3).unfold(3, 7, 3).permute(0, 2, 3, 1, 4, 5)
        windows = windows.flatten(3).flatten(0, 2).double() / 255
        exact = torch.cdist(queries.flatten(1).double(), windows).square()
        slack = 4 * ROUNDING * (squares + query_squares[:, None])
        assert (bounds <= exact + slack).all()
        # In the queries' own coordinates it is also near: that is what makes it worth while.
        if basis.shape[1] > 5:
            assert (bounds >= exact - 0.05 * (squares + query_squares[:, None])).all()


def test_float32_errs_far_less_than_the_bound_allows():
    """At the paper's size, on images of one grey, where sums of rounding errors are largest."""
    levels = torch.arange(0, 256, 15, dtype=torch.uint8).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (8, 3, 128, 128), generator=generator, dtype=torch.uint8)
    images = torch.cat([levels.expand(-1, 3, 128, 128), noise])
    queries = images.unfold(2, 32, 48).unfold(3, 32, 48).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    basis = basis_of(queries.float() / 255, 64)
    few, squares = Descriptions(basis, 32, 48).of_images(images)
    exact = queries.double().flatten(1) / 255 - 0.5
    inside = exact @ basis.double()
    whole = exact.square().sum(1)
    assert ((squares - whole).abs() <= ROUNDING * whole / 2).all()
    rest = (whole - inside.square().sum(1)).clamp_min(0)
    grown = few[:, -1].double().square() - ROUNDING * squares
    assert ((grown - rest).abs() <= ROUNDING * whole).all()


def test_the_measured_distance_is_the_distance(database):
    queries = torch.rand(3, 3, 7, 7, generator=torch.Generator().manual_seed(2))
    query, patches = torch.tensor([2, 0, 0, 1]), torch.tensor([5, 700, 5, 64])
    found = squared_distances(database, queries, query, patches)
    for pair, number in enumerate(patches.tolist()):
        image, place = divmod(number, 64)
        row, column = 3 * (place // 8), 3 * (place % 8)
        window = database.images[image, :, row : row + 7, column : column + 7] / 255
        slow = (window - queries[query[pair]]).double().square().sum()
        assert float(found[pair]) == pytest.approx(float(slow), rel=1e-5)


def test_queries_are_the_seed_at_the_databases_size():
    paper = PatchSettings()
    seed = torch.zeros(3, 224, 224)
    seed[:, 56:112, 63:119] = 1  # the patch at row 8, column 9 of 25
    queries = query_patches(seed, paper)
    assert queries.shape == (625, 3, 32, 32)
    assert queries[8 * 25 + 9].mean() > 0.98
    assert queries[8 * 25 + 9].mean() == queries.mean((1, 2, 3)).max()
    assert queries[0].max() == 0
    with pytest.raises(SettingError, match=r"patches\.stride=5: 5 of the images' 224 pixels are"):
        query_patches(seed, replace(paper, stride=5))


def test_the_seeds_own_picture_is_left_out_however_it_was_reduced(database):
    assert same_images(database.images, None).sum() == 0
    first = database.images[0].float() / 255
    assert same_images(database.images, first).nonzero().flatten().tolist() == [0, 39]
    blurred = torch.nn.functional.interpolate(first[None], 26, mode="bilinear", antialias=True)
    again = torch.nn.functional.interpolate(blurred, 28, mode="bilinear")[0]
    assert same_images(database.images, again).nonzero().flatten().tolist() == [0, 39]


def test_the_samples_own_images_are_told_from_all_others(tmp_path, monkeypatch):
    from feature_collisions.data.image_folder import ImageFolder
    from feature_collisions.settings.train import DataSettings
    from helpers.commands import SHARED

    root = SHARED / "data" / "imagenet-sample"
    if not root.exists():
        pytest.skip("the ImageNet sample is not beside the checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = ImageFolder(DataSettings("image_folder", str(root)))
    folder.files, folder.labels = folder.files[::30], folder.labels[::30]
    database = open_database(PatchSettings(fraction=1.0), folder, 0)
    for number in range(0, len(database.images), 3):
        seed = reduced_seed(folder[int(database.members[number])], PatchSettings())
        assert same_images(database.images, seed).nonzero().flatten().tolist() == [number]


def test_bad_requests_are_refused(database):
    with pytest.raises(SettingError, match=r"queries: must be \(Q, 3, 7, 7\).*are \(1, 3, 8, 8\)"):
        search_patches(database, torch.zeros(1, 3, 8, 8), SETTINGS)


@pytest.mark.parametrize(
    ("fraction", "images", "neighbours", "advice"),
    [
        (0.5, 39, 39, r"38; lower it, or raise patches\.fraction"),
        (1.0, 39, 39, r"38; lower it, or name more \(patches\.root\)"),
        (1.0, 1, 1, r"0; name more \(patches\.root\)"),
    ],
)
def test_a_database_too_small_for_the_neighbours_is_refused(
    database, fraction, images, neighbours, advice
):
    few = replace(database, images=database.images[:images])
    settings = replace(SETTINGS, neighbours=neighbours, fraction=fraction)
    seed = database.images[0].float() / 255
    rule = rf"patches\.neighbours={neighbours}: images .* not the seed's own: {advice}"
    with pytest.raises(SettingError, match=rule):
        search_patches(few, torch.zeros(1, 3, 7, 7), settings, seed)
